//! The engine without io_uring: epoll and non-blocking sockets; files go to the job threads.
//!
//! Owns the epoll descriptor and, for each socket, the receive and the send that wait for it.
//! Used by one worker thread where io_uring is refused. Never blocks but in epoll_wait.
#![allow(unsafe_code)] // recv and sendmsg take addresses.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd;

use super::pool::{Pool, Span};
use super::ring::{Completion, Inbox, Op, Ring, SPANS, Target};

const WAKE: u64 = u64::MAX;
const EVENTS: usize = 64;
/// How often completions may be handed on before the other sockets are asked.
const ROUNDS: u32 = 4;

#[derive(Debug, Clone, Copy)]
struct Receive {
    token: u64,
    span: Span,
    all: bool,
    got: u32,
}

#[derive(Debug, Default)]
struct Socket {
    fd: RawFd,
    receive: Option<Receive>,
    send: Option<u64>,
    /// What the send is to carry; kept between sends for its memory.
    spans: Vec<Span>,
}

#[derive(Debug)]
pub struct Plain {
    epoll: Epoll,
    event: RawFd,
    sockets: Vec<Socket>,
    /// Sockets whose operations are to be tried.
    due: VecDeque<u32>,
    done: Vec<Completion>,
    events: Vec<EpollEvent>,
    rounds: u32,
}

impl Plain {
    fn attempt(&mut self, pool: &Pool, slot: u32) {
        let Some(socket) = self.sockets.get_mut(slot as usize) else {
            return;
        };
        if let Some(token) = socket.send
            && let Some(result) = send(pool, socket.fd, &socket.spans)
        {
            socket.send = None;
            self.done.push(Completion {
                token,
                result,
                more: false,
            });
        }
        while let Some(receive) = &mut socket.receive {
            let Some(result) = recv(pool, socket.fd, receive.span.skip(receive.got)) else {
                return;
            };
            if result > 0 {
                receive.got += result as u32;
                if receive.all && receive.got < receive.span.len {
                    continue;
                }
            }
            // What was received before an error is told first; the error comes again with the next receive.
            let result = match receive.got {
                0 => result,
                got => got as i32,
            };
            self.done.push(Completion {
                token: receive.token,
                result,
                more: false,
            });
            socket.receive = None;
        }
    }

    fn poll(&mut self, block: bool) -> io::Result<()> {
        let timeout = if block {
            EpollTimeout::NONE
        } else {
            EpollTimeout::ZERO
        };
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &self.events[..count] {
            if event.data() == WAKE {
                let mut counter = [0; 8];
                // SAFETY: the inbox outlives its worker's engine.
                let event = unsafe { BorrowedFd::borrow_raw(self.event) };
                let _ = unistd::read(event, &mut counter);
            } else {
                self.due.push_back(event.data() as u32);
            }
        }
        Ok(())
    }
}

impl Ring for Plain {
    fn open(inbox: &Inbox) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, WAKE);
        epoll.add(&inbox.event, event)?;
        Ok(Plain {
            epoll,
            event: inbox.event.as_fd().as_raw_fd(),
            sockets: Vec::new(),
            due: VecDeque::new(),
            done: Vec::new(),
            events: vec![EpollEvent::empty(); EVENTS],
            rounds: 0,
        })
    }

    fn does_files(&self) -> bool {
        false
    }

    /// A send that succeeds at once costs no wake-up here.
    fn joins(&self) -> bool {
        false
    }

    fn add(&mut self, fd: RawFd, slot: u32) -> io::Result<Target> {
        if self.sockets.len() <= slot as usize {
            self.sockets.resize_with(slot as usize + 1, Socket::default);
        }
        let socket = &mut self.sockets[slot as usize];
        (socket.fd, socket.receive, socket.send) = (fd, None, None);
        // Edge-triggered: one registration serves both directions, because every operation is tried first.
        let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        // SAFETY: the caller keeps the socket open until `remove`.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.epoll.add(fd, EpollEvent::new(what, u64::from(slot)))?;
        let fixed = false;
        let fd = socket.fd;
        Ok(Target { fd, slot, fixed })
    }

    fn remove(&mut self, target: Target) {
        // SAFETY: the caller keeps the socket open until this returns.
        let fd = unsafe { BorrowedFd::borrow_raw(target.fd) };
        let _ = self.epoll.delete(fd.as_fd());
        self.due.retain(|slot| *slot != target.slot);
    }

    fn push(&mut self, _pool: &Pool, token: u64, op: Op<'_>) {
        let slot = match op {
            Op::Recv { to, span, all, .. } => {
                let got = 0;
                self.sockets[to.slot as usize].receive = Some(Receive {
                    token,
                    span,
                    all,
                    got,
                });
                to.slot
            }
            Op::Send { to, spans, .. } => {
                let socket = &mut self.sockets[to.slot as usize];
                socket.send = Some(token);
                socket.spans.clear();
                socket.spans.extend_from_slice(spans);
                to.slot
            }
            Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } => {
                self.done.push(Completion {
                    token,
                    result: -libc::EOPNOTSUPP,
                    more: false,
                });
                return;
            }
        };
        if self.due.back() != Some(&slot) {
            self.due.push_back(slot);
        }
    }

    fn wait(&mut self, pool: &Pool, block: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        while let Some(slot) = self.due.pop_front() {
            self.attempt(pool, slot);
        }
        self.rounds += 1;
        if self.done.is_empty() || self.rounds >= ROUNDS {
            self.rounds = 0;
            self.poll(block && self.done.is_empty())?;
            while let Some(slot) = self.due.pop_front() {
                self.attempt(pool, slot);
            }
        }
        done.append(&mut self.done);
        Ok(())
    }
}

/// `None`: nothing is there yet.
fn recv(pool: &Pool, fd: RawFd, span: Span) -> Option<i32> {
    let at = pool.address(span).as_ptr().cast();
    // SAFETY: the span is this receive's own until its completion.
    outcome(|| unsafe { libc::recv(fd, at, span.len as usize, libc::MSG_DONTWAIT) })
}

/// `None`: the socket takes nothing at the moment.
fn send(pool: &Pool, fd: RawFd, spans: &[Span]) -> Option<i32> {
    let none = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut parts = [none; SPANS];
    for (part, span) in parts.iter_mut().zip(spans) {
        part.iov_base = pool.address(*span).as_ptr().cast();
        part.iov_len = span.len as usize;
    }
    // SAFETY: zero is valid for a msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = spans.len().min(SPANS);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header and its parts are alive during the call, the spans until the send's completion.
    outcome(|| unsafe { libc::sendmsg(fd, &raw const header, flags) })
}

fn outcome(call: impl Fn() -> isize) -> Option<i32> {
    loop {
        let result = call();
        if result >= 0 {
            return Some(i32::try_from(result).unwrap_or(i32::MAX));
        }
        match Errno::last() {
            Errno::EINTR => {}
            Errno::EAGAIN => return None,
            errno => return Some(-(errno as i32)),
        }
    }
}
