//! One sector's history, checked as a register whose values are unique (Gibbons & Korach): the writes, the reads
//! that saw them, and whether any order of them explains it all. Pure; times are what the caller says.
//!
//! A write and its reads are a *cluster*. Its value was there from the first end among them to the last begin: its
//! zone, "forward"; if all of them overlap, the zone is "backward", and the value was there at one moment of it.
//! The history is linearizable exactly if no two forward zones overlap, no backward zone lies inside a forward one,
//! and no read ends before its write begins. What can't matter any more is forgotten: see `Register::forget`.
//! Called by the ledger. Never does I/O.

use std::collections::VecDeque;

/// Nanoseconds on one monotonic clock.
pub type Time = u64;
/// Numbers every operation of a run, also as the value it writes.
pub type OpId = u64;

pub const NEVER: Time = Time::MAX;
/// A register with fewer clusters isn't worth a check.
const CHECK_FROM: usize = 32;
/// Forgotten values that a report can still tell the times of.
const REMEMBERED: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Zero,
}

/// What a read found in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Value(OpId),
    Zeroes,
    /// No write's bytes: good only while one is under way.
    Torn,
}

/// An operation and its time; `end` is NEVER while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub op: OpId,
    pub kind: Kind,
    pub begin: Time,
    pub end: Time,
}

/// Why no order explains what was seen, and the operations that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub what: String,
    /// The value of a write that is forgotten here; the ledger may know it.
    pub forgotten: Option<OpId>,
    pub proof: Vec<(String, Span)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done,
    /// It may still take effect, but not after this (NEVER: nobody knows).
    Failed(Time),
}

/// A write and what is worth knowing of its reads.
#[derive(Debug, Clone)]
struct Cluster {
    write: Span,
    state: State,
    /// Of all its reads, the one that ended first and the one that began last.
    first: Option<Span>,
    last: Option<Span>,
    /// A later write that succeeded, though this one had failed: a fence lies between them.
    superseded: Option<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Zone {
    low: Time,
    high: Time,
    forward: bool,
    at: usize,
}

impl Cluster {
    /// The latest moment at which the value must have been there for the first time.
    fn settled(&self) -> Time {
        let write = match self.state {
            State::Running => NEVER,
            State::Done => self.write.end,
            State::Failed(over) => over,
        };
        write.min(self.first.map_or(NEVER, |read| read.end))
    }

    /// The earliest moment at which it may have been there for the last time.
    fn wanted(&self) -> Time {
        let read = self.last.map_or(0, |read| read.begin);
        read.max(self.write.begin)
    }

    /// Whether the value has been there at all; nobody knows of a failed write that nobody read.
    fn counts(&self) -> bool {
        self.state == State::Done || self.first.is_some()
    }

    fn zone(&self, at: usize) -> Zone {
        let (settled, wanted) = (self.settled(), self.wanted());
        Zone {
            low: settled.min(wanted),
            high: settled.max(wanted),
            forward: settled < wanted,
            at,
        }
    }

    /// Its end came before the other's begin; a failed write's end counts, as the other had to wait for its fence.
    fn is_before(&self, other: &Cluster) -> bool {
        self.state != State::Running && self.write.end < other.write.begin
    }

    fn proof(&self) -> Vec<(String, Span)> {
        let said = match self.state {
            State::Running => "still under way",
            State::Done => "done",
            State::Failed(_) => "failed",
        };
        let mut proof = vec![(format!("write {said}"), self.write)];
        let reads = [
            self.first
                .map(|read| ("the read of it that ended first", read)),
            self.last
                .map(|read| ("the read of it that began last", read)),
        ];
        proof.extend(
            reads
                .into_iter()
                .flatten()
                .map(|(text, read)| (text.to_owned(), read)),
        );
        proof
    }
}

/// A value that was overwritten for good, and the write that did it.
#[derive(Debug, Clone)]
struct Tomb {
    dead: Cluster,
    by: Span,
}

#[derive(Debug, Default)]
pub struct Register {
    live: Vec<Cluster>,
    /// Reads and writes under way: nothing that is recorded later begins before the first of them.
    running: Vec<Span>,
    tombs: VecDeque<Tomb>,
    check_at: usize,
}

impl Register {
    pub fn begin(&mut self, op: OpId, kind: Kind, begin: Time) {
        let span = Span {
            op,
            kind,
            begin,
            end: NEVER,
        };
        self.running.push(span);
        if kind != Kind::Read {
            self.live.push(Cluster {
                write: span,
                state: State::Running,
                first: None,
                last: None,
                superseded: None,
            });
        }
    }

    pub fn end_write(&mut self, op: OpId, ok: bool, end: Time) -> Result<(), Violation> {
        self.take_running(op);
        if let Some(cluster) = self.live.iter_mut().find(|c| c.write.op == op) {
            cluster.write.end = end;
            cluster.state = match ok {
                true => State::Done,
                false => State::Failed(NEVER),
            };
        }
        if self.live.len() < self.check_at.max(CHECK_FROM) {
            return Ok(());
        }
        self.settle(end)
    }

    /// `None`: it failed, and says nothing.
    pub fn end_read(&mut self, op: OpId, seen: Option<Seen>, end: Time) -> Result<(), Violation> {
        let Some(mut read) = self.take_running(op) else {
            return Ok(());
        };
        read.end = end;
        match seen {
            None => Ok(()),
            Some(Seen::Value(id)) => self.saw(id, read),
            Some(Seen::Zeroes) => self.saw_zeroes(read),
            Some(Seen::Torn) if self.overlapping(read).next().is_some() => Ok(()),
            Some(Seen::Torn) => Err(Violation {
                what: "damaged bytes, and no write was under way".to_owned(),
                forgotten: None,
                proof: vec![("read".to_owned(), read)],
            }),
        }
    }

    /// Writes that had failed before `since` can't take effect after `now`.
    pub fn fenced(&mut self, since: Time, now: Time) {
        for cluster in &mut self.live {
            if let State::Failed(over) = &mut cluster.state
                && cluster.write.end < since
            {
                *over = now.min(*over);
            }
        }
    }

    /// Checks all that is known so far, and forgets what can't matter any more.
    pub fn settle(&mut self, now: Time) -> Result<(), Violation> {
        self.check()?;
        let horizon = self.running.iter().map(|span| span.begin).min();
        self.forget(horizon.unwrap_or(now).min(now));
        self.check_at = 2 * self.live.len();
        Ok(())
    }

    #[cfg(test)]
    pub fn clusters(&self) -> usize {
        self.live.len()
    }

    fn take_running(&mut self, op: OpId) -> Option<Span> {
        let at = self.running.iter().position(|span| span.op == op)?;
        Some(self.running.swap_remove(at))
    }

    /// Writes that may change the sector while `read` looks at it.
    fn overlapping(&self, read: Span) -> impl Iterator<Item = &Cluster> {
        self.live.iter().filter(move |c| {
            let over = match c.state {
                State::Running => NEVER,
                State::Done => c.write.end,
                State::Failed(over) => over,
            };
            c.write.begin < read.end && over > read.begin
        })
    }

    /// Two writes at once have no order that a loss couldn't turn round before they end (docs/failures.md).
    fn is_contested(&self, read: Span) -> bool {
        let writes: Vec<Span> = self
            .live
            .iter()
            .map(|c| c.write)
            .filter(|w| w.begin < read.end && w.end > read.begin)
            .collect();
        let meet = |a: &Span, b: &Span| a.op < b.op && a.begin < b.end && b.begin < a.end;
        writes.iter().any(|a| writes.iter().any(|b| meet(a, b)))
    }

    fn saw(&mut self, id: OpId, read: Span) -> Result<(), Violation> {
        let Some(at) = self.live.iter().position(|c| c.write.op == id) else {
            return Err(self.unknown(id, read));
        };
        let cluster = &self.live[at];
        if read.end < cluster.write.begin {
            return Err(violation(
                "a read ended before its write began",
                &[cluster],
                Some(read),
            ));
        }
        if self.is_contested(read) {
            return match self.overwriter(cluster, read) {
                Some(by) => Err(violation(
                    "an old value came back",
                    &[cluster, by],
                    Some(read),
                )),
                None => Ok(()),
            };
        }
        let cluster = &mut self.live[at];
        if cluster.first.is_none_or(|first| read.end < first.end) {
            cluster.first = Some(read);
        }
        if cluster.last.is_none_or(|last| read.begin > last.begin) {
            cluster.last = Some(read);
        }
        Ok(())
    }

    /// A write that began after `cluster`'s had ended, and was done before `read` began.
    fn overwriter(&self, cluster: &Cluster, read: Span) -> Option<&Cluster> {
        let done = |c: &&Cluster| c.state == State::Done && c.write.end < read.begin;
        self.live.iter().filter(done).find(|c| cluster.is_before(c))
    }

    /// Zeroes don't say whose they are: they are good if they can be anybody's.
    fn saw_zeroes(&self, read: Span) -> Result<(), Violation> {
        let zeroings = self.live.iter().filter(|c| c.write.kind == Kind::Zero);
        let mut last = None;
        for cluster in zeroings.filter(|c| c.write.begin < read.end) {
            match self.overwriter(cluster, read) {
                None => return Ok(()),
                Some(by) => last = Some((cluster, by)),
            }
        }
        Err(match last {
            Some((cluster, by)) => violation("old zeroes came back", &[cluster, by], Some(read)),
            None => violation("zeroes, and no zeroing can explain them", &[], Some(read)),
        })
    }

    fn unknown(&self, id: OpId, read: Span) -> Violation {
        match self.tombs.iter().find(|tomb| tomb.dead.write.op == id) {
            Some(tomb) => {
                let mut found = violation("an old value came back", &[&tomb.dead], Some(read));
                found
                    .proof
                    .insert(1, ("overwritten by".to_owned(), tomb.by));
                found
            }
            None => {
                let done = |c: &&Cluster| c.state == State::Done && c.write.end < read.begin;
                let newer = self.live.iter().filter(done).max_by_key(|c| c.write.end);
                let newer: Vec<&Cluster> = newer.into_iter().collect();
                let what = "a value that was overwritten long ago, or never written here";
                let mut found = violation(what, &newer, Some(read));
                found.forgotten = Some(id);
                found
            }
        }
    }

    fn zones(&self) -> impl Iterator<Item = Zone> {
        let counting = self.live.iter().enumerate().filter(|(_, c)| c.counts());
        counting.map(|(at, cluster)| cluster.zone(at))
    }

    fn check(&self) -> Result<(), Violation> {
        let (mut forward, backward): (Vec<_>, Vec<_>) = self.zones().partition(|zone| zone.forward);
        forward.sort_unstable_by_key(|zone| zone.low);
        let pair = |what, a: Zone, b: Zone| {
            Err(violation(what, &[&self.live[a.at], &self.live[b.at]], None))
        };
        for two in forward.windows(2) {
            if two[1].low < two[0].high {
                return pair("two values take turns", two[0], two[1]);
            }
        }
        for zone in backward {
            let next = forward.partition_point(|f| f.low < zone.low);
            if let Some(around) = next.checked_sub(1).map(|i| forward[i])
                && zone.high < around.high
            {
                return pair("an old value came back, or a write was lost", around, zone);
            }
        }
        self.check_failed()
    }

    /// A write that failed was fenced before a later one could succeed.
    fn check_failed(&self) -> Result<(), Violation> {
        let failed = |c: &&Cluster| matches!(c.state, State::Failed(_)) && c.first.is_some();
        for cluster in self.live.iter().filter(failed) {
            let later = self
                .live
                .iter()
                .filter(|c| c.state == State::Done && cluster.is_before(c));
            if let Some(by) = later.clone().find(|c| c.settled() < cluster.wanted()) {
                return Err(violation(
                    "a failed write took effect after its fence",
                    &[cluster, by],
                    None,
                ));
            }
            if let Some(by) = cluster.superseded.filter(|by| by.end < cluster.wanted()) {
                let mut found = violation(
                    "a failed write took effect after its fence",
                    &[cluster],
                    None,
                );
                found
                    .proof
                    .push(("the write that had to wait for the fence".to_owned(), by));
                return Err(found);
            }
        }
        Ok(())
    }

    /// All that comes begins at `horizon` or later. Take the latest zone that ends before it: a value whose zone
    /// lies wholly before that one can't be read again, and whatever would clash with it would clash with the
    /// latest zone, too. The same for a failed write whose fence a later write has proved.
    fn forget(&mut self, horizon: Time) {
        let past = self.zones().filter(|zone| zone.high < horizon);
        let Some(latest) = past.max_by_key(|zone| zone.low) else {
            return;
        };
        let by = self.live[latest.at].write;
        self.remember_fences();
        let (dead, live): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.live).into_iter().partition(|c| {
                let zone = c.zone(0);
                zone.high < latest.low
                    || c.superseded
                        .is_some_and(|by| !c.counts() && by.end < horizon)
            });
        self.live = live;
        self.tombs
            .extend(dead.into_iter().map(|dead| Tomb { dead, by }));
        let excess = self.tombs.len().saturating_sub(REMEMBERED);
        self.tombs.drain(..excess);
    }

    /// Which write proves a failed one's fence; `end` there is when its value was surely present.
    fn remember_fences(&mut self) {
        let done: Vec<Cluster> = self
            .live
            .iter()
            .filter(|c| c.state == State::Done)
            .cloned()
            .collect();
        let failed = |c: &&mut Cluster| matches!(c.state, State::Failed(_));
        for cluster in self.live.iter_mut().filter(failed) {
            let proofs = done.iter().filter(|c| cluster.is_before(c));
            let spans = proofs.map(|c| Span {
                end: c.settled(),
                ..c.write
            });
            cluster.superseded = spans.chain(cluster.superseded).min_by_key(|span| span.end);
        }
    }
}

fn violation(what: &str, clusters: &[&Cluster], read: Option<Span>) -> Violation {
    let mut proof: Vec<_> = clusters.iter().flat_map(|c| c.proof()).collect();
    proof.extend(read.map(|read| ("read".to_owned(), read)));
    Violation {
        what: what.to_owned(),
        forgotten: None,
        proof,
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
