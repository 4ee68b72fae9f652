//! What a worker asks of its engine: operations go in with a token, completions come out with it.
//!
//! Owns the vocabulary that `uring` (io_uring) and `plain` (epoll) share, and the inbox that wakes them.
//! Called by the worker's loop. Never interprets a byte of a request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::jobs::Done;
use super::pool::{Pool, Span};
use crate::export::link::Transmission;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Most spans that one send gathers.
pub const SPANS: usize = 64;

/// A socket as an engine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub fd: RawFd,
    /// The link's number, unique among the worker's links.
    pub slot: u32,
    /// Registered with the ring under `slot`.
    pub fixed: bool,
}

/// An operation. Its blocks belong to it until its completion.
#[derive(Debug, Clone, Copy)]
pub enum Op<'a> {
    /// `all`: complete only when the span is full or the stream ends. `wait`: nothing is there yet, most likely.
    Recv {
        to: Target,
        span: Span,
        all: bool,
        wait: bool,
    },
    /// At most [`SPANS`] spans; may end early. `then`: see [`Ring::joins`].
    Send {
        to: Target,
        spans: &'a [Span],
        then: bool,
    },
    Read {
        fd: RawFd,
        span: Span,
        offset: u64,
    },
    Write {
        fd: RawFd,
        span: Span,
        offset: u64,
    },
    /// fdatasync.
    Sync {
        fd: RawFd,
    },
}

/// What came of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub token: u64,
    /// Bytes, or an errno below zero.
    pub result: i32,
    /// Of a receive: more is there already.
    pub more: bool,
}

pub trait Ring: Sized {
    /// Whether [`Op::Send`] can be made one with the receive that is pushed next (`then`): the receive begins when
    /// the send is complete, and only the receive's completion comes. If the send fails or is short, its own comes
    /// too, and the receive is gone without a word. It saves a wake-up where a client waits for each reply.
    fn joins(&self) -> bool;
    /// Made by the thread that uses it. Ends a wait whenever the inbox is notified.
    fn open(inbox: &Inbox) -> io::Result<Self>;
    /// Whether it does [`Op::Read`], [`Op::Write`] and [`Op::Sync`].
    fn does_files(&self) -> bool;
    fn add(&mut self, fd: RawFd, slot: u32) -> io::Result<Target>;
    /// After the last operation on it has completed.
    fn remove(&mut self, target: Target);
    /// At most one receive and one send at a time for each target.
    fn push(&mut self, pool: &Pool, token: u64, op: Op<'_>);
    /// Starts what was pushed and appends completions; waits for one only if `block` and there is none.
    fn wait(&mut self, pool: &Pool, block: bool, done: &mut Vec<Completion>) -> io::Result<()>;
}

/// What other threads tell a worker.
#[derive(Debug)]
pub enum Message {
    Serve(Box<Transmission>),
    Stop,
}

/// Where other threads leave messages and finished jobs for a worker.
#[derive(Debug)]
pub struct Inbox {
    pub event: EventFd,
    told: AtomicBool,
    /// `None`: the worker has ended.
    messages: Mutex<Option<Vec<Message>>>,
    done: Mutex<Vec<Done>>,
}

impl Inbox {
    pub fn new() -> io::Result<Inbox> {
        let flags = EfdFlags::EFD_CLOEXEC;
        Ok(Inbox {
            event: EventFd::from_value_and_flags(0, flags)?,
            told: AtomicBool::new(false),
            messages: Mutex::new(Some(Vec::new())),
            done: Mutex::default(),
        })
    }

    fn messages(&self) -> MutexGuard<'_, Option<Vec<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message comes back if the worker has ended.
    pub fn tell(&self, message: Message) -> Result<(), Message> {
        match &mut *self.messages() {
            Some(messages) => messages.push(message),
            None => return Err(message),
        }
        self.wake();
        Ok(())
    }

    /// The worker ends; what was told and not taken.
    pub fn close(&self) -> Vec<Message> {
        self.messages().take().unwrap_or_default()
    }

    pub fn finished(&self, done: Done) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(done);
        self.wake();
    }

    fn wake(&self) {
        if !self.told.swap(true, Ordering::SeqCst) {
            // Fails only if the counter overflows, and then the worker wakes anyway.
            let _ = self.event.write(1);
        }
    }

    /// Moves what is there to the caller; false: nothing was told since the last time.
    pub fn take(&self, messages: &mut Vec<Message>, done: &mut Vec<Done>) -> bool {
        if !self.told.swap(false, Ordering::SeqCst) {
            return false;
        }
        if let Some(from) = &mut *self.messages() {
            messages.append(from);
        }
        let mut from = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.append(&mut from);
        true
    }
}

/// A socket that `Arc` shares with the gate, as a number for the engine.
pub fn raw(socket: &OwnedFd) -> RawFd {
    socket.as_fd().as_raw_fd()
}
