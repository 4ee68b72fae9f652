//! Threads for what may block and no ring does: TRIM, WRITE_ZEROES, CACHE, block status, and all file operations
//! of the plain engine.
//!
//! Owns the threads and their queue; shared by all workers, which find results in their inbox.
//! Never touches a socket. Threads appear when needed and go when idle.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::place;
use super::pool::Loan;
use super::ring::Inbox;
use crate::export::backend::{Backend, Run, SlowOp};

/// Enough that the stalled operations of one link (at most `link::JOBS`) leave room for others.
const THREADS: usize = 64;
const IDLE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub enum Work {
    Read {
        loan: Loan,
        offset: u64,
    },
    Write {
        loan: Loan,
        offset: u64,
    },
    Slow(SlowOp),
    Status {
        offset: u64,
        length: u64,
        max: usize,
    },
}

#[derive(Debug)]
pub struct Job {
    pub backend: Arc<Backend>,
    pub work: Work,
    pub token: u64,
    pub to: Arc<Inbox>,
}

/// A finished job; the runs are those of a block status.
#[derive(Debug)]
pub struct Done {
    pub token: u64,
    pub result: io::Result<Vec<Run>>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Debug, Clone, Default)]
pub struct Jobs {
    shared: Arc<Shared>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    pub fn start(&self, job: Job) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle {
            self.shared.more.notify_one();
            return;
        }
        if queue.threads >= THREADS {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let name = "dst-export-job".to_owned();
        let thread = std::thread::Builder::new().name(name);
        match thread.spawn(move || serve(&shared)) {
            Ok(_) => queue.threads += 1,
            // The threads that exist will come to it; without any the job would wait for ever.
            Err(_) if queue.threads > 0 => {}
            Err(error) => {
                if let Some(job) = queue.jobs.pop_back() {
                    job.end(Err(error));
                }
            }
        }
    }
}

fn serve(shared: &Shared) {
    place::roam();
    let mut queue = shared.lock();
    loop {
        while let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job.run();
            queue = shared.lock();
        }
        queue.idle += 1;
        let (back, waited) = shared
            .more
            .wait_timeout(queue, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        queue = back;
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

impl Job {
    fn run(mut self) {
        let backend = &self.backend;
        let work = &mut self.work;
        // A lost completion would keep its link, and every fence on it, waiting for ever.
        let result = catch_unwind(AssertUnwindSafe(|| work.run(backend)));
        self.end(result.unwrap_or_else(|_| Err(Errno::EIO.into())));
    }

    /// The backend and the memory are let go first: after the last completion nothing of a link is in use.
    fn end(self, result: io::Result<Vec<Run>>) {
        let Job {
            backend,
            work,
            token,
            to,
        } = self;
        drop(work);
        drop(backend);
        to.finished(Done { token, result });
    }
}

impl Work {
    fn run(&mut self, backend: &Backend) -> io::Result<Vec<Run>> {
        match self {
            Work::Read { loan, offset } => backend.read(loan.bytes_mut(), *offset)?,
            Work::Write { loan, offset } => backend.write(loan.bytes(), *offset)?,
            Work::Slow(op) => backend.slow(*op)?,
            Work::Status {
                offset,
                length,
                max,
            } => return backend.block_status(*offset, *length, *max),
        }
        Ok(Vec::new())
    }
}
