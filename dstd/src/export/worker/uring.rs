//! The engine on io_uring: sockets and files, one system call a turn.
//!
//! Owns the ring, its registered files and the message headers of gathered sends. Used by one worker thread.
//! Never touches a buffer itself.
#![allow(unsafe_code)] // Entries carry addresses that must stay valid until the completion.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use nix::libc;

use super::pool::{Pool, Span};
use super::ring::{Completion, Inbox, Op, Ring, SPANS, Target};

const ENTRIES: u32 = 256;
const COMPLETIONS: u32 = 4096;
const WAKE: u64 = u64::MAX;
/// IORING_RECVSEND_POLL_FIRST: don't try before the socket says that there is something.
const POLL_FIRST: u16 = 1;

/// A gathered send's header; read by the kernel when the entry is submitted.
struct Message {
    header: libc::msghdr,
    parts: [libc::iovec; SPANS],
}

pub struct Uring {
    ring: IoUring,
    event: RawFd,
    /// Where the read of the event counter goes. Leaked: the last one is still under way when the ring is closed.
    counter: &'static mut u64,
    counter_wanted: bool,
    /// The inbox's notice came since the last wait began.
    woken: bool,
    /// How many slots can be registered.
    fixed: u32,
    enter_flags: u32,
    #[expect(
        clippy::vec_box,
        reason = "the kernel has their addresses while the list grows"
    )]
    messages: Vec<Box<Message>>,
    messages_used: usize,
    /// Taken before the worker asked, or never submitted.
    early: Vec<Completion>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("fixed", &self.fixed)
            .finish_non_exhaustive()
    }
}

fn build() -> io::Result<IoUring> {
    // The newest flags make completions cheapest; each older kernel knows fewer of them.
    let newest = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .dontfork()
        .build(ENTRIES);
    if newest.is_ok() {
        return newest;
    }
    let middle = IoUring::builder()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .dontfork()
        .build(ENTRIES);
    if middle.is_ok() {
        return middle;
    }
    IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES)
}

impl Uring {
    /// Addresses in an entry must be read at submission, lost completions must not exist, and receives must wait
    /// by themselves.
    fn check(ring: &IoUring) -> io::Result<()> {
        let params = ring.params();
        let good = params.is_feature_submit_stable()
            && params.is_feature_nodrop()
            && params.is_feature_fast_poll();
        if good {
            return Ok(());
        }
        let text = "this kernel's io_uring is too old (5.7 or later is needed)";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    fn enqueue(&mut self, entry: Entry) {
        loop {
            // SAFETY: the addresses in an entry are blocks that their operation holds until its completion, or
            // parts of `self` on the heap that live as long as the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            if let Err(error) = self.submit() {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.early.push(Completion {
                    token: entry.get_user_data(),
                    result: -errno,
                    more: false,
                });
                return;
            }
        }
    }

    /// A chain that is cut in two by a submission is none.
    fn make_room_for_two(&mut self) {
        let queue = self.ring.submission();
        if queue.capacity() - queue.len() < 2 {
            drop(queue);
            // If that fails the pushes will, too, and tell it.
            let _ = self.submit();
        }
    }

    /// Makes room in the queue. Completions are taken too, because a kernel without room for more of them may
    /// refuse entries.
    fn submit(&mut self) -> io::Result<()> {
        match self.enter(0) {
            Err(error) if !is_transient(&error) => return Err(error),
            _ => {}
        }
        let mut early = std::mem::take(&mut self.early);
        self.reap(&mut early);
        self.early = early;
        Ok(())
    }

    fn enter(&mut self, want: u32) -> io::Result<()> {
        let (submitter, mut submission, _) = self.ring.split();
        submission.sync();
        let count = submission.len() as u32;
        // SAFETY: no argument is passed; the entries were checked when they were pushed.
        let entered = unsafe { submitter.enter::<()>(count, want, self.enter_flags, None) };
        submission.sync();
        if submission.is_empty() {
            self.messages_used = 0;
        }
        entered.map(|_| ())
    }

    fn target(&mut self, target: Target, with: impl Fn(Place) -> Entry) -> Entry {
        if target.fixed {
            with(Place::Fixed(types::Fixed(target.slot)))
        } else {
            with(Place::Fd(types::Fd(target.fd)))
        }
    }

    fn message(&mut self, pool: &Pool, spans: &[Span]) -> *const libc::msghdr {
        if self.messages_used == self.messages.len() {
            // SAFETY: both are plain C structures for which zero is valid.
            let message: Message = unsafe { std::mem::zeroed() };
            self.messages.push(Box::new(message));
        }
        let message = &mut *self.messages[self.messages_used];
        self.messages_used += 1;
        for (part, span) in message.parts.iter_mut().zip(spans) {
            part.iov_base = pool.address(*span).as_ptr().cast();
            part.iov_len = span.len as usize;
        }
        message.header.msg_iov = message.parts.as_mut_ptr();
        message.header.msg_iovlen = spans.len().min(SPANS);
        &raw const message.header
    }

    fn send(&mut self, pool: &Pool, to: Target, spans: &[Span]) -> Entry {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if let [span] = spans {
            let at = pool.address(*span).as_ptr().cast_const();
            let len = span.len;
            return self.target(to, |place| match place {
                Place::Fixed(fd) => opcode::Send::new(fd, at, len).flags(flags).build(),
                Place::Fd(fd) => opcode::Send::new(fd, at, len).flags(flags).build(),
            });
        }
        let message = self.message(pool, spans);
        let flags = flags as u32;
        self.target(to, |place| match place {
            Place::Fixed(fd) => opcode::SendMsg::new(fd, message).flags(flags).build(),
            Place::Fd(fd) => opcode::SendMsg::new(fd, message).flags(flags).build(),
        })
    }

    fn recv(&mut self, pool: &Pool, to: Target, span: Span, all: bool, wait: bool) -> Entry {
        let at = pool.address(span).as_ptr();
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        let how = if wait { POLL_FIRST } else { 0 };
        self.target(to, |place| match place {
            Place::Fixed(fd) => opcode::Recv::new(fd, at, span.len)
                .flags(flags)
                .ioprio(how)
                .build(),
            Place::Fd(fd) => opcode::Recv::new(fd, at, span.len)
                .flags(flags)
                .ioprio(how)
                .build(),
        })
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE {
                self.counter_wanted = true;
                self.woken = true;
                continue;
            }
            done.push(Completion {
                token: entry.user_data(),
                result: entry.result(),
                more: cqueue::sock_nonempty(entry.flags()),
            });
        }
    }

    /// The event counter is read by the ring like everything else, so a wake-up ends a wait.
    fn watch_event(&mut self) {
        if !self.counter_wanted {
            return;
        }
        self.counter_wanted = false;
        let at = (&raw mut *self.counter).cast::<u8>();
        let entry = opcode::Read::new(types::Fd(self.event), at, 8).build();
        self.enqueue(entry.user_data(WAKE));
    }
}

enum Place {
    Fixed(types::Fixed),
    Fd(types::Fd),
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)
    )
}

impl Ring for Uring {
    fn open(inbox: &Inbox) -> io::Result<Self> {
        let ring = build()?;
        Uring::check(&ring)?;
        // Only saves the kernel a look-up; where it is refused it works without.
        let fixed = [4096, 512, 64]
            .into_iter()
            .find(|count| ring.submitter().register_files_sparse(*count).is_ok())
            .unwrap_or(0);
        let mut enter_flags = EnterFlags::GETEVENTS.bits();
        if ring.params().is_feature_no_iowait() {
            // An idle worker waits for clients, not for a disk: it must not show as such.
            enter_flags |= EnterFlags::NO_IOWAIT.bits();
        }
        Ok(Uring {
            ring,
            event: inbox.event.as_raw_fd(),
            counter: Box::leak(Box::new(0)),
            counter_wanted: true,
            woken: false,
            fixed,
            enter_flags,
            messages: Vec::new(),
            messages_used: 0,
            early: Vec::new(),
        })
    }

    fn does_files(&self) -> bool {
        true
    }

    fn joins(&self) -> bool {
        self.ring.params().is_feature_skip_cqe_on_success()
    }

    fn add(&mut self, fd: RawFd, slot: u32) -> io::Result<Target> {
        // The ring waits by itself on a blocking socket; on a non-blocking one it would return EAGAIN.
        set_blocking(fd)?;
        let fixed = slot < self.fixed
            && self
                .ring
                .submitter()
                .register_files_update(slot, &[fd])
                .is_ok();
        Ok(Target { fd, slot, fixed })
    }

    fn remove(&mut self, target: Target) {
        if target.fixed {
            let _ = self
                .ring
                .submitter()
                .register_files_update(target.slot, &[-1]);
        }
    }

    fn push(&mut self, pool: &Pool, token: u64, op: Op<'_>) {
        let entry = match op {
            Op::Recv {
                to,
                span,
                all,
                wait,
            } => self.recv(pool, to, span, all, wait),
            Op::Send { to, spans, then } => {
                if then {
                    self.make_room_for_two();
                }
                let entry = self.send(pool, to, spans);
                let pair = squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
                if then { entry.flags(pair) } else { entry }
            }
            Op::Read { fd, span, offset } => {
                let at = pool.address(span).as_ptr();
                opcode::Read::new(types::Fd(fd), at, span.len)
                    .offset(offset)
                    .build()
            }
            Op::Write { fd, span, offset } => {
                let at = pool.address(span).as_ptr().cast_const();
                opcode::Write::new(types::Fd(fd), at, span.len)
                    .offset(offset)
                    .build()
            }
            Op::Sync { fd } => opcode::Fsync::new(types::Fd(fd))
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        self.enqueue(entry.user_data(token));
    }

    fn wait(&mut self, _pool: &Pool, block: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        self.watch_event();
        // A push may have taken the notice after the worker looked into its inbox.
        let woken = std::mem::take(&mut self.woken);
        let idle = block && !woken && self.early.is_empty() && self.ring.completion().is_empty();
        match self.enter(u32::from(idle)) {
            Err(error) if !is_transient(&error) => return Err(error),
            _ => {}
        }
        done.append(&mut self.early);
        self.reap(done);
        // This one the worker sees by itself.
        self.woken = false;
        Ok(())
    }
}

fn set_blocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take a descriptor and an integer; the caller's socket is open.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) >= 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
