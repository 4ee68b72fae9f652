//! The loop of one worker thread: completions in, turns of links, operations out, one system call each time round.
//!
//! Owns the worker's links. Started by `Workers`, ends when told to and the last link has ended.
//! Never sleeps while a link can go on, never runs while none can.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use slab::Slab;

use super::core::{Core, Flight, Kind, job_outcome, outcome, parse};
use super::jobs::{Done, Jobs};
use super::link::{Link, Turn};
use super::pace::{NAP, Pace, SPIN, Way};
use super::place::Place;
use super::reply::refusal_of;
use super::ring::{Completion, Inbox, Message, Ring};
use crate::export::link::{End, Transmission};

/// What others may read of a worker.
#[derive(Debug, Default)]
pub struct Gauges {
    pub links: AtomicUsize,
    /// Of all workers.
    all_links: Arc<AtomicUsize>,
    /// Bytes of blocks in use.
    pub memory: AtomicUsize,
    /// Times round the loop.
    pub rounds: AtomicUsize,
    /// Flushes that were begun.
    pub flushes: AtomicUsize,
    /// Reads that were done together with the one before.
    pub gathered: AtomicUsize,
}

impl Gauges {
    pub fn new(all_links: &Arc<AtomicUsize>) -> Self {
        Gauges {
            all_links: Arc::clone(all_links),
            ..Gauges::default()
        }
    }

    pub fn link_came(&self) {
        self.links.fetch_add(1, Ordering::SeqCst);
        self.all_links.fetch_add(1, Ordering::Relaxed);
    }

    pub fn link_went(&self) {
        self.links.fetch_sub(1, Ordering::SeqCst);
        self.all_links.fetch_sub(1, Ordering::Relaxed);
    }
}

pub struct Worker<R> {
    core: Core<R>,
    links: Slab<Box<Link>>,
    /// Links that may have something to do.
    ready: VecDeque<usize>,
    /// Links whose operations are to be started, or that may have ended.
    touched: Vec<usize>,
    inbox: Arc<Inbox>,
    gauges: Arc<Gauges>,
    pace: Pace,
    place: Place,
    /// What the pace's times count from.
    began: Instant,
    /// Looked for something in vain: now it blocks.
    spun: bool,
    napped: bool,
    stopping: bool,
}

impl<R> std::fmt::Debug for Worker<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

impl<R: Ring> Worker<R> {
    pub fn new(
        ring: R,
        jobs: Jobs,
        inbox: Arc<Inbox>,
        gauges: Arc<Gauges>,
        (pace, place): (Pace, Place),
    ) -> Self {
        let links = Arc::clone(&gauges.all_links);
        Worker {
            core: Core::new(ring, jobs, Arc::clone(&inbox), links),
            links: Slab::new(),
            ready: VecDeque::new(),
            touched: Vec::new(),
            inbox,
            gauges,
            pace,
            place,
            began: Instant::now(),
            spun: false,
            napped: false,
            stopping: false,
        }
    }

    /// Until it was stopped and all its links have ended.
    pub fn run(mut self) -> io::Result<()> {
        let (mut completions, mut done, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        while !self.stopping || !self.links.is_empty() {
            self.wait(&mut completions)?;
            if self.inbox.take(&mut messages, &mut done) {
                messages.drain(..).for_each(|message| self.told(message));
                done.drain(..).for_each(|done| self.job_done(done));
            }
            completions.drain(..).for_each(|one| self.completed(one));
            for _ in 0..self.ready.len() {
                self.turn();
            }
            let begun = self.core.start_syncs();
            self.gauges.flushes.fetch_add(begun, Ordering::Relaxed);
            let served = std::mem::take(&mut self.core.served);
            let gathered = std::mem::take(&mut self.core.gathered);
            self.gauges.gathered.fetch_add(gathered, Ordering::Relaxed);
            if served > 0 {
                let now = self.began.elapsed();
                self.pace.round(now, served, self.links.len());
                self.place.stay(self.pace.way() == Way::Stay);
                if self.pace.way() == Way::Nap && self.ready.is_empty() {
                    self.nap(&mut completions)?;
                }
            }
            self.settle();
            let memory = self.core.pool.in_use();
            self.gauges.rounds.fetch_add(1, Ordering::Relaxed);
            self.gauges.memory.store(memory, Ordering::Relaxed);
        }
        // What came after the stop has no one else to end it.
        for message in self.inbox.close() {
            self.told(message);
        }
        Ok(())
    }

    /// Returns without a completion, too: something may be in the inbox, whose notice no second wait would see.
    fn wait(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let napped = std::mem::take(&mut self.napped);
        let block = self.ready.is_empty() && completions.is_empty() && !napped;
        let Core { ring, pool, .. } = &mut self.core;
        let spun = std::mem::take(&mut self.spun);
        if !block || spun || self.pace.way() != Way::Spin {
            return ring.wait(pool, block, completions);
        }
        let began = Instant::now();
        while completions.is_empty() && began.elapsed() < SPIN {
            ring.wait(pool, false, completions)?;
        }
        self.spun = completions.is_empty();
        Ok(())
    }

    /// What was answered leaves, what comes meanwhile is received together.
    fn nap(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        for id in &self.touched {
            if let Some(link) = self.links.get_mut(*id) {
                link.send_now(&mut self.core);
            }
        }
        let Core { ring, pool, .. } = &mut self.core;
        // It may see the inbox's notice, so the next wait may not block.
        ring.wait(pool, false, completions)?;
        self.napped = true;
        std::thread::sleep(NAP);
        Ok(())
    }

    fn told(&mut self, message: Message) {
        match message {
            Message::Serve(transmission) => self.add(*transmission),
            Message::Stop => {
                self.stopping = true;
                self.links.iter().for_each(|(_, link)| link.gate.cut());
            }
        }
    }

    fn add(&mut self, transmission: Transmission) {
        if self.stopping {
            self.refuse(transmission);
            return;
        }
        let entry = self.links.vacant_entry();
        let id = entry.key();
        match Link::new(id, transmission, &mut self.core) {
            Ok(link) => {
                entry.insert(Box::new(link));
                self.wake(id);
            }
            Err(transmission) => self.refuse(*transmission),
        }
    }

    fn refuse(&self, transmission: Transmission) {
        self.gauges.link_went();
        refuse(transmission);
    }

    /// The link is turned in this round, and settled.
    fn wake(&mut self, id: usize) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut link.ready, true) {
            self.ready.push_back(id);
        }
        if !std::mem::replace(&mut link.touched, true) {
            self.touched.push(id);
        }
    }

    fn turn(&mut self) {
        let Some(id) = self.ready.pop_front() else {
            return;
        };
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.ready = false;
        if !std::mem::replace(&mut link.touched, true) {
            self.touched.push(id);
        }
        if link.turn(&mut self.core) == Turn::More {
            self.wake(id);
        }
    }

    fn settle(&mut self) {
        while let Some(id) = self.touched.pop() {
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            link.touched = false;
            if link.settle(&mut self.core) {
                self.ready.retain(|other| *other != id);
                let link = self.links.remove(id);
                link.end(&mut self.core);
                self.gauges.link_went();
            }
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Some((kind, index)) = parse(completion.token) else {
            return;
        };
        match kind {
            Kind::Recv => {
                if let Some(link) = self.links.get_mut(index) {
                    link.received(&mut self.core, completion);
                }
                self.wake(index);
            }
            Kind::Send => {
                if let Some(link) = self.links.get_mut(index) {
                    link.sent(&mut self.core, completion);
                }
                self.wake(index);
            }
            Kind::Flight => self.flight_completed(index, outcome(completion)),
            Kind::Sync => {
                if let Some(result) = self.core.sync_completed(index, completion.result) {
                    self.synced(index, result);
                }
            }
            Kind::Job => {}
        }
    }

    fn job_done(&mut self, mut done: Done) {
        let Some((kind, index)) = parse(done.token) else {
            return;
        };
        match kind {
            Kind::Flight => {
                let flight = self.core.flights.get(index);
                let result = job_outcome(&mut done, flight);
                self.flight_completed(index, result);
            }
            Kind::Sync => self.synced(index, done.result.map(drop)),
            Kind::Job => {
                let id = self.core.requests[index].link;
                if let Some(link) = self.links.get_mut(id) {
                    link.job_done(&mut self.core, index, done.result);
                }
                self.wake(id);
            }
            Kind::Recv | Kind::Send => {}
        }
    }

    fn flight_completed(&mut self, index: usize, result: io::Result<u32>) {
        let Some(flight) = self.core.flights.get_mut(index) else {
            return;
        };
        let result = match result {
            Ok(bytes) if bytes >= flight.span.len => Ok(()),
            // A file that became shorter, or a device that takes nothing: never success.
            Ok(0) => Err(Errno::EIO.into()),
            Ok(bytes) => {
                flight.span = flight.span.skip(bytes);
                flight.offset += u64::from(bytes);
                self.relaunch(index, false);
                return;
            }
            Err(error) if !flight.job && never_ran(&error) => {
                self.relaunch(index, true);
                return;
            }
            Err(error) => Err(error),
        };
        let flight: Flight = self.core.flights.remove(index);
        if let Some(link) = self.links.get_mut(flight.link) {
            link.landed(&mut self.core, &flight, result);
        }
        self.wake(flight.link);
    }

    fn relaunch(&mut self, index: usize, on_job: bool) {
        let before = self.core.flights[index].job;
        let now = self.core.relaunch(index, on_job);
        let id = self.core.flights[index].link;
        if now
            && !before
            && let Some(link) = self.links.get_mut(id)
        {
            link.jobs += 1;
        }
    }

    fn synced(&mut self, export: usize, result: io::Result<()>) {
        let refusal = result.err().map(|error| refusal_of(&error));
        let waiting = self.core.take_synced(export);
        for request in &waiting {
            let id = self.core.requests[*request].link;
            if let Some(link) = self.links.get_mut(id) {
                link.answer(&mut self.core, *request, refusal.map_or(Ok(()), Err));
            }
            self.wake(id);
        }
        self.core.synced(export, waiting);
    }
}

/// Ends a link that no worker took.
pub fn refuse(transmission: Transmission) {
    let Transmission { socket, gate, .. } = transmission;
    gate.cut();
    drop(socket);
    gate.end(End::Lost);
}

/// The ring couldn't do it there; a thread can.
fn never_ran(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EAGAIN | Errno::EINTR | Errno::ECANCELED | Errno::EOPNOTSUPP)
    )
}
