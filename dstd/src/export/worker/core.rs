//! What a worker's links share: engine, memory, requests under way, flushes.
//!
//! Owns every operation that was started and not completed, and who it was for. Used by links (to start) and by
//! the worker's loop (completions). Never decides what a request means.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use slab::Slab;

use super::jobs::{Done, Job, Jobs, Work};
use super::pool::{BlockId, Pool, Span};
use super::reply::To;
use super::request::Refusal;
use super::ring::{Completion, Inbox, Op, Ring};
use crate::export::backend::{Backend, SlowOp};

/// Data of a read that isn't served at once begins here in its block: its header goes before it.
pub const HEAD_ROOM: usize = 64;

/// What a completion is of; in the token's top byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Recv = 1,
    Send = 2,
    /// A read or write of the storage.
    Flight = 3,
    /// A flush that requests of one export wait for.
    Sync = 4,
    /// Anything else that one request waits for.
    Job = 5,
}

pub fn token(kind: Kind, index: usize) -> u64 {
    (kind as u64) << 56 | index as u64
}

pub fn parse(token: u64) -> Option<(Kind, usize)> {
    let kind = match token >> 56 {
        1 => Kind::Recv,
        2 => Kind::Send,
        3 => Kind::Flight,
        4 => Kind::Sync,
        5 => Kind::Job,
        _ => return None,
    };
    Some((kind, (token & ((1 << 56) - 1)) as usize))
}

/// A part of a read in a block of its own, data at [`HEAD_ROOM`].
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub block: BlockId,
    pub len: usize,
    /// Its place in the export.
    pub at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Data, as one reply.
    Data,
    /// Data, each piece a chunk of its own, sent as soon as it is read.
    Chunks,
    Plain,
    /// Block status.
    Runs,
    /// The link ended before the request was complete.
    Nothing,
}

/// A request that wasn't answered at once.
#[derive(Debug)]
pub struct Pending {
    pub link: usize,
    pub to: To,
    pub answer: Answer,
    pub length: u64,
    /// A flush follows success.
    pub fua: bool,
    /// ENOTSUP may be told.
    pub fast: bool,
    /// More operations of it may start.
    pub open: bool,
    pub outstanding: u32,
    pub error: Option<Refusal>,
    /// Bytes that it counts for in its link's limit.
    pub cost: usize,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// A read or write of the storage under way.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    pub request: usize,
    pub link: usize,
    pub export: usize,
    pub direction: Direction,
    /// What is left of it.
    pub span: Span,
    pub offset: u64,
    pub piece: usize,
    /// On a job thread.
    pub job: bool,
}

/// An export as one worker sees it: requests that wait for a flush.
#[derive(Debug)]
pub struct Export {
    pub backend: Arc<Backend>,
    pub links: usize,
    running: bool,
    /// Covered by the flush that runs.
    waiting: Vec<usize>,
    /// Came after it began: they share the next one.
    next: Vec<usize>,
}

#[derive(Debug)]
pub struct Core<R> {
    pub ring: R,
    pub pool: Pool,
    pub requests: Slab<Pending>,
    pub flights: Slab<Flight>,
    pub exports: Slab<Export>,
    /// Exports with requests in `next`.
    unsynced: Vec<usize>,
    spare: Vec<Vec<Piece>>,
    jobs: Jobs,
    inbox: Arc<Inbox>,
    /// Of all workers.
    links: Arc<AtomicUsize>,
    /// Requests begun in this round.
    pub served: usize,
    /// Reads among them that were done together with the one before.
    pub gathered: usize,
}

impl<R: Ring> Core<R> {
    pub fn new(ring: R, jobs: Jobs, inbox: Arc<Inbox>, links: Arc<AtomicUsize>) -> Self {
        Core {
            ring,
            pool: Pool::default(),
            requests: Slab::with_capacity(1024),
            flights: Slab::with_capacity(1024),
            exports: Slab::new(),
            unsynced: Vec::new(),
            spare: Vec::new(),
            jobs,
            inbox,
            links,
            served: 0,
            gathered: 0,
        }
    }

    /// How many links all workers have.
    pub fn all_links(&self) -> usize {
        self.links.load(Ordering::Relaxed)
    }

    pub fn join_export(&mut self, backend: &Arc<Backend>) -> usize {
        let known = self
            .exports
            .iter_mut()
            .find(|(_, export)| Arc::ptr_eq(&export.backend, backend));
        if let Some((index, export)) = known {
            export.links += 1;
            return index;
        }
        self.exports.insert(Export {
            backend: Arc::clone(backend),
            links: 1,
            running: false,
            waiting: Vec::new(),
            next: Vec::new(),
        })
    }

    /// A link's requests are all finished by then, so no flush of it runs for them.
    pub fn leave_export(&mut self, index: usize) {
        let export = &mut self.exports[index];
        export.links -= 1;
        if export.links == 0 {
            self.exports.remove(index);
            self.unsynced.retain(|other| *other != index);
        }
    }

    /// An empty list with the memory of an old one.
    pub fn spare_pieces(&mut self) -> Vec<Piece> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn give_back(&mut self, mut pieces: Vec<Piece>) {
        if pieces.capacity() > 0 && self.spare.len() < 64 {
            pieces.clear();
            self.spare.push(pieces);
        }
    }

    /// Starts a flight, on the ring where that can do it; true: on a job thread.
    pub fn launch(&mut self, flight: Flight, apart: bool) -> bool {
        let index = self.flights.insert(flight);
        self.relaunch(index, apart || !self.ring.does_files())
    }

    pub fn relaunch(&mut self, index: usize, must_be_job: bool) -> bool {
        let flight = self.flights[index];
        let token = token(Kind::Flight, index);
        let backend = &self.exports[flight.export].backend;
        let Flight { span, offset, .. } = flight;
        if let Some(fd) = backend.ring_fd().filter(|_| !must_be_job && !flight.job) {
            let op = match flight.direction {
                Direction::Read => Op::Read { fd, span, offset },
                Direction::Write => Op::Write { fd, span, offset },
            };
            self.ring.push(&self.pool, token, op);
            return false;
        }
        let backend = Arc::clone(backend);
        let loan = self.pool.lend(span);
        let work = match flight.direction {
            Direction::Read => Work::Read { loan, offset },
            Direction::Write => Work::Write { loan, offset },
        };
        self.flights[index].job = true;
        self.start_job(backend, work, token);
        true
    }

    fn start_job(&self, backend: Arc<Backend>, work: Work, token: u64) {
        let to = Arc::clone(&self.inbox);
        self.jobs.start(Job {
            backend,
            work,
            token,
            to,
        });
    }

    pub fn job(&self, export: usize, request: usize, work: Work) {
        let backend = Arc::clone(&self.exports[export].backend);
        self.start_job(backend, work, token(Kind::Job, request));
    }

    /// The request is answered after a flush that begins from now on.
    pub fn join_sync(&mut self, export: usize, request: usize) {
        let state = &mut self.exports[export];
        if state.next.is_empty() {
            self.unsynced.push(export);
        }
        state.next.push(request);
    }

    /// At the end of a turn, so that all that came in it share one flush. Returns how many were begun.
    pub fn start_syncs(&mut self) -> usize {
        let (mut later, mut begun) = (0, 0);
        while later < self.unsynced.len() {
            let index = self.unsynced[later];
            let export = &mut self.exports[index];
            if export.running {
                later += 1;
                continue;
            }
            self.unsynced.swap_remove(later);
            std::mem::swap(&mut export.waiting, &mut export.next);
            export.running = true;
            begun += 1;
            let fd = export.backend.ring_fd();
            if let Some(fd) = fd.filter(|_| self.ring.does_files()) {
                let token = token(Kind::Sync, index);
                self.ring.push(&self.pool, token, Op::Sync { fd });
            } else {
                self.sync_job(index);
            }
        }
        begun
    }

    fn sync_job(&self, export: usize) {
        let backend = Arc::clone(&self.exports[export].backend);
        let work = Work::Slow(SlowOp::Flush);
        self.start_job(backend, work, token(Kind::Sync, export));
    }

    /// A flush ended on the ring; `None`: it was sent to a job thread instead.
    pub fn sync_completed(&mut self, export: usize, result: i32) -> Option<io::Result<()>> {
        let result = match Errno::from_raw(-result.min(0)) {
            // It never ran, so it tells nothing of the storage.
            Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED => {
                self.sync_job(export);
                return None;
            }
            _ if result >= 0 => Ok(()),
            errno => Err(errno.into()),
        };
        Some(self.exports[export].backend.flush_done(result))
    }

    /// Who waited for the flush that ended.
    pub fn take_synced(&mut self, export: usize) -> Vec<usize> {
        let export = &mut self.exports[export];
        export.running = false;
        std::mem::take(&mut export.waiting)
    }

    /// Gives the list's memory back.
    pub fn synced(&mut self, export: usize, mut list: Vec<usize>) {
        if let Some(export) = self.exports.get_mut(export) {
            list.clear();
            export.waiting = list;
        }
    }
}

/// What an operation on the storage ended with.
pub fn outcome(completion: Completion) -> io::Result<u32> {
    match u32::try_from(completion.result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(io::Error::from_raw_os_error(-completion.result)),
    }
}

/// A job's: all or nothing.
pub fn job_outcome(done: &mut Done, flight: Option<&Flight>) -> io::Result<u32> {
    let len = flight.map_or(0, |flight| flight.span.len);
    match &mut done.result {
        Ok(_) => Ok(len),
        Err(error) => Err(match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => Errno::EIO.into(),
        }),
    }
}
