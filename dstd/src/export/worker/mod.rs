//! The data plane: worker threads that serve negotiated links.
//!
//! Owns the threads and which link goes to which. Called by the control plane, once for each link after its
//! handshake. Never negotiates, and never returns a link: its gate tells when it has ended.

mod core;
mod finish;
mod gather;
mod jobs;
mod large;
mod link;
mod pace;
mod place;
mod plain;
mod pool;
mod reply;
mod request;
mod ring;
mod run;
mod rx;
mod serve;
mod slice;
#[cfg(test)]
mod tests;
mod tx;
mod uring;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tracing::{error, info};

use super::link::Transmission;
use jobs::Jobs;
use pace::{Pace, Way};
use place::Place;
use plain::Plain;
use ring::{Inbox, Message, Ring};
use run::{Gauges, Worker};
use uring::Uring;

pub use request::{SEND_CACHE, SEND_DF, SEND_FAST_ZERO};

/// How the workers talk to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring where the system allows it.
    #[default]
    Auto,
    Uring,
    Plain,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Engine::Auto => "auto",
            Engine::Uring => "io_uring",
            Engine::Plain => "epoll",
        })
    }
}

#[derive(Debug)]
struct Handle {
    inbox: Arc<Inbox>,
    gauges: Arc<Gauges>,
}

/// The worker threads. Dropping it stops them as [`Workers::stop`] does.
#[derive(Debug)]
pub struct Workers {
    engine: Engine,
    workers: Vec<Handle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    pub fn start(count: usize, engine: Engine) -> io::Result<Workers> {
        Workers::start_paced(count, engine, None)
    }

    /// With a fixed way to wait, for tests.
    fn start_paced(count: usize, engine: Engine, way: Option<Way>) -> io::Result<Workers> {
        let start = |engine| Workers::start_with(count.max(1), engine, way);
        match engine {
            Engine::Auto => start(Engine::Uring).or_else(|error| {
                info!("io_uring can't be used ({error}); the workers use epoll and threads");
                start(Engine::Plain)
            }),
            engine => start(engine),
        }
    }

    fn start_with(count: usize, engine: Engine, way: Option<Way>) -> io::Result<Workers> {
        let jobs = Jobs::default();
        let links = Arc::default();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut workers = Workers {
            engine,
            workers: Vec::new(),
            threads: Mutex::default(),
        };
        for index in 0..count {
            let inbox = Arc::new(Inbox::new()?);
            let gauges = Arc::new(Gauges::new(&links));
            let (opened, result) = channel();
            let (jobs, to, seen) = (jobs.clone(), Arc::clone(&inbox), Arc::clone(&gauges));
            let waits = (Pace::new(cpus, count, way), Place::new(index));
            let thread = std::thread::Builder::new()
                .name(format!("dst-export-{index}"))
                .spawn(move || match engine {
                    Engine::Plain => serve::<Plain>(jobs, to, seen, waits, &opened),
                    _ => serve::<Uring>(jobs, to, seen, waits, &opened),
                })?;
            workers.lock().push(thread);
            workers.workers.push(Handle { inbox, gauges });
            // A thread that ended without a word has aborted the process.
            result.recv().unwrap_or(Ok(()))?;
        }
        Ok(workers)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which engine was taken: never [`Engine::Auto`].
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Serves a link until its end, which its gate tells.
    pub fn serve(&self, transmission: Transmission) {
        let load = |worker: &&Handle| worker.gauges.links.load(Ordering::SeqCst);
        if let Some(worker) = self.workers.iter().min_by_key(load) {
            worker.gauges.link_came();
            let told = worker.inbox.tell(Message::Serve(Box::new(transmission)));
            if let Err(Message::Serve(transmission)) = told {
                worker.gauges.link_went();
                run::refuse(*transmission);
            }
        }
    }

    /// Bytes of buffers in use by all links.
    pub fn memory(&self) -> usize {
        let memory = |worker: &Handle| worker.gauges.memory.load(Ordering::Relaxed);
        self.workers.iter().map(memory).sum()
    }

    /// How often the workers woke or went on: an idle server's stands still.
    pub fn rounds(&self) -> usize {
        let rounds = |worker: &Handle| worker.gauges.rounds.load(Ordering::Relaxed);
        self.workers.iter().map(rounds).sum()
    }

    /// Flushes of the storage that FLUSH and FUA requests have led to; fewer than those, because they share.
    pub fn flushes(&self) -> usize {
        let flushes = |worker: &Handle| worker.gauges.flushes.load(Ordering::Relaxed);
        self.workers.iter().map(flushes).sum()
    }

    /// Reads that were done with one system call together with the one before them.
    pub fn gathered(&self) -> usize {
        let gathered = |worker: &Handle| worker.gauges.gathered.load(Ordering::Relaxed);
        self.workers.iter().map(gathered).sum()
    }

    /// How many links there are.
    pub fn links(&self) -> usize {
        let links = |worker: &Handle| worker.gauges.links.load(Ordering::SeqCst);
        self.workers.iter().map(links).sum()
    }

    /// Cuts every link, waits for their ends and for the threads'. Blocks; a second call does nothing.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.lock());
        if threads.is_empty() {
            return;
        }
        for worker in &self.workers {
            let _ = worker.inbox.tell(Message::Stop);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A worker that fails can't say what of its links still runs, so no fence could be answered: the process ends,
/// and with it every operation. A new one starts with a clean slate.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!("a worker of the node server failed; the server ends at once");
            std::process::abort();
        }
    }
}

fn serve<R: Ring>(
    jobs: Jobs,
    inbox: Arc<Inbox>,
    gauges: Arc<Gauges>,
    waits: (Pace, Place),
    opened: &Sender<io::Result<()>>,
) {
    let _abort = AbortOnPanic;
    let ring = match R::open(&inbox) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    slice::shorten();
    let _ = opened.send(Ok(()));
    if let Err(failure) = Worker::new(ring, jobs, inbox, gauges, waits).run() {
        error!("a worker's engine failed, the server ends at once: {failure}");
        std::process::abort();
    }
}
