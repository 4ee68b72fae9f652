//! Every operation of a run: which sectors it is about, when it began and ended, and what the registers say to it.
//! Owns the registers of the hot sectors and the counts of the report. Called by load's threads and main, under one
//! lock. Never does I/O, and asks no clock.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::register::{Kind, NEVER, OpId, Register, Seen, Span, Time, Violation};
use crate::sector::{Alien, SECTOR};

/// The hot sectors: regions of equal length, spread over the device. A *place* counts through all of them.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub regions: u64,
    pub length: u64,
    /// From the begin of one to the begin of the next.
    pub stride: u64,
}

impl Layout {
    pub fn places(&self) -> u64 {
        self.regions * self.length
    }

    pub fn sector(&self, place: u64) -> u64 {
        place / self.length * self.stride + place % self.length
    }
}

/// `length` sectors from a place on, all in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub place: u64,
    pub length: u64,
}

impl Extent {
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.place < other.place + other.length && other.place < self.place + self.length
    }

    pub fn places(&self) -> std::ops::Range<u64> {
        self.place..self.place + self.length
    }
}

/// Writes that ended, kept for reports.
const PAST: usize = 100_000;

#[derive(Debug, Clone, Copy)]
struct Running {
    extent: Extent,
    kind: Kind,
    begin: Time,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    reads: u64,
    writes: u64,
    zeroings: u64,
    flushes: u64,
    failed_reads: u64,
    failed_writes: u64,
    failed_flushes: u64,
    sectors_read: u64,
    torn: u64,
    fences: u64,
}

#[derive(Debug)]
pub struct Ledger {
    layout: Layout,
    registers: Vec<Register>,
    running: HashMap<OpId, Running>,
    past: VecDeque<(Span, Extent)>,
    last_op: OpId,
    counts: Counts,
    longest: Span,
    /// The first one, with its sector; later ones are often its consequence.
    violation: Option<(u64, Violation)>,
}

impl Ledger {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            registers: (0..layout.places()).map(|_| Register::default()).collect(),
            running: HashMap::new(),
            past: VecDeque::new(),
            last_op: 0,
            counts: Counts::default(),
            longest: Span {
                op: 0,
                kind: Kind::Read,
                begin: 0,
                end: 0,
            },
            violation: None,
        }
    }

    pub fn failed(&self) -> bool {
        self.violation.is_some()
    }

    /// `now` must have been asked for under the ledger's lock: nothing may begin before what is forgotten.
    pub fn begin(&mut self, kind: Kind, extent: Extent, now: Time) -> OpId {
        self.last_op += 1;
        let op = self.last_op;
        self.running.insert(
            op,
            Running {
                extent,
                kind,
                begin: now,
            },
        );
        for place in extent.places() {
            self.registers[place as usize].begin(op, kind, now);
        }
        op
    }

    /// A write that failed in part has failed.
    pub fn end_write(&mut self, op: OpId, ok: bool, now: Time) {
        let Some(running) = self.end(op, now) else {
            return;
        };
        match running.kind {
            Kind::Zero => self.counts.zeroings += 1,
            _ => self.counts.writes += 1,
        }
        self.counts.failed_writes += u64::from(!ok);
        let span = Span {
            op,
            kind: running.kind,
            begin: running.begin,
            end: now,
        };
        self.past.push_back((span, running.extent));
        let excess = self.past.len().saturating_sub(PAST);
        self.past.drain(..excess);
        for place in running.extent.places() {
            let found = self.registers[place as usize].end_write(op, ok, now);
            self.note(place, found);
        }
    }

    /// What was found in each sector; `None`: the read failed.
    pub fn end_read(&mut self, op: OpId, found: Option<&[Result<Seen, Alien>]>, now: Time) {
        let Some(running) = self.end(op, now) else {
            return;
        };
        self.counts.reads += 1;
        self.counts.failed_reads += u64::from(found.is_none());
        let span = Span {
            op,
            kind: Kind::Read,
            begin: running.begin,
            end: now,
        };
        for (i, place) in running.extent.places().enumerate() {
            let seen = match found.map(|found| found[i]) {
                None => None,
                Some(Ok(seen)) => Some(seen),
                Some(Err(alien)) => {
                    self.note(place, Err(alien_bytes(alien, span)));
                    continue;
                }
            };
            self.counts.sectors_read += u64::from(seen.is_some());
            self.counts.torn += u64::from(seen == Some(Seen::Torn));
            let found = self.registers[place as usize].end_read(op, seen, now);
            self.note(place, found);
        }
    }

    /// A flush: nothing of it is modelled, but it may be what stalls.
    pub fn end_flush(&mut self, ok: bool) {
        self.counts.flushes += 1;
        self.counts.failed_flushes += u64::from(!ok);
    }

    /// What had failed before `since` on these sectors can't take effect after `now`.
    pub fn fenced(&mut self, since: Time, sectors: &RangeInclusive<u64>, now: Time) {
        self.counts.fences += 1;
        for place in 0..self.layout.places() {
            if sectors.contains(&self.layout.sector(place)) {
                self.registers[place as usize].fenced(since, now);
            }
        }
    }

    pub fn settle(&mut self, now: Time) {
        for place in 0..self.layout.places() {
            let found = self.registers[place as usize].settle(now);
            self.note(place, found);
        }
    }

    fn end(&mut self, op: OpId, now: Time) -> Option<Running> {
        let running = self.running.remove(&op)?;
        let span = Span {
            op,
            kind: running.kind,
            begin: running.begin,
            end: now,
        };
        if now - running.begin > self.longest.end - self.longest.begin {
            self.longest = span;
        }
        Some(running)
    }

    fn note(&mut self, place: u64, found: Result<(), Violation>) {
        if let (Err(mut violation), None) = (found, &self.violation) {
            let known = self.past.iter().find(|(span, extent)| {
                Some(span.op) == violation.forgotten && extent.places().contains(&place)
            });
            if let Some((span, _)) = known {
                "an old value came back".clone_into(&mut violation.what);
                violation
                    .proof
                    .insert(0, ("the write of that value".to_owned(), *span));
            }
            self.violation = Some((self.layout.sector(place), violation));
        }
    }

    /// `started`: the times told count from it.
    pub fn report(&self, seed: u64, started: Time) -> Value {
        let c = &self.counts;
        json!({
            "ok": self.violation.is_none(),
            "seed": seed,
            "ops": c.reads + c.writes + c.zeroings + c.flushes,
            "reads": c.reads,
            "writes": c.writes,
            "zeroings": c.zeroings,
            "flushes": c.flushes,
            "failed": c.failed_reads + c.failed_writes + c.failed_flushes,
            "failed_reads": c.failed_reads,
            "failed_writes": c.failed_writes,
            "failed_flushes": c.failed_flushes,
            "fences": c.fences,
            "hot_sectors": self.layout.places(),
            "sectors_checked": c.sectors_read,
            "bytes_verified": c.sectors_read * SECTOR as u64,
            "torn": c.torn,
            "longest_stall_ms": (self.longest.end - self.longest.begin) / 1_000_000,
            "longest_stall": span_text("the longest", self.longest, started),
            "violation": self.violation.as_ref().map(|(sector, violation)| json!({
                "sector": sector,
                "what": violation.what,
                "proof": violation.proof.iter().map(|(text, span)| span_text(text, *span, started)).collect::<Vec<_>>(),
            })),
        })
    }
}

fn alien_bytes(alien: Alien, span: Span) -> Violation {
    let what = match alien {
        Alien::Run(seed) => format!("bytes of another run, with seed {seed}"),
        Alien::Misplaced { op, sector } => {
            format!("bytes that operation {op} wrote to sector {sector}")
        }
    };
    Violation {
        what,
        forgotten: None,
        proof: vec![("read".to_owned(), span)],
    }
}

fn span_text(text: &str, span: Span, started: Time) -> Value {
    let ms = |time: Time| match time {
        NEVER => Value::Null,
        time => json!((time as f64 - started as f64) / 1e6),
    };
    let kind = match span.kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Zero => "zeroing",
    };
    json!({"what": text, "op": span.op, "kind": kind, "begin_ms": ms(span.begin), "end_ms": ms(span.end)})
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        regions: 2,
        length: 4,
        stride: 100,
    };

    #[test]
    fn a_stale_sector_is_reported_with_its_place_and_times() {
        let mut ledger = Ledger::new(LAYOUT);
        let extent = Extent {
            place: 4,
            length: 3,
        };
        for begin in [1, 3] {
            let op = ledger.begin(Kind::Write, extent, begin);
            ledger.end_write(op, true, begin + 1);
        }
        let read = ledger.begin(Kind::Read, extent, 5);
        let found = [Ok(Seen::Value(2)), Ok(Seen::Value(1)), Ok(Seen::Value(2))];
        ledger.end_read(read, Some(&found), 6);
        ledger.settle(7);
        let report = ledger.report(9, 0);
        assert_eq!(report["ok"], false);
        assert_eq!(report["violation"]["sector"], 101);
        assert_eq!(report["bytes_verified"], 3 * 512);
        let proof = report["violation"]["proof"].to_string();
        assert!(
            proof.contains("\"op\":1") && proof.contains("\"op\":2") && proof.contains("\"op\":3"),
            "{proof}"
        );
    }

    #[test]
    fn a_value_of_long_ago_is_reported_with_its_write() {
        let mut ledger = Ledger::new(LAYOUT);
        let extent = Extent {
            place: 0,
            length: 1,
        };
        for begin in 0..1000 {
            let op = ledger.begin(Kind::Write, extent, 2 * begin);
            ledger.end_write(op, true, 2 * begin + 1);
        }
        for (old, proof) in [(7, 2), (7_000, 1)] {
            ledger.violation = None;
            let read = ledger.begin(Kind::Read, extent, 5000);
            ledger.end_read(read, Some(&[Ok(Seen::Value(old))]), 5001);
            let report = ledger.report(9, 0)["violation"].clone();
            let first = &report["proof"][0];
            assert_eq!(first["op"], if proof == 2 { 7 } else { 1000 }, "{report}");
            let says = report["what"].to_string();
            assert_eq!(
                says.contains("an old value came back"),
                proof == 2,
                "{report}"
            );
        }
    }

    #[test]
    fn bytes_of_elsewhere_are_reported() {
        for (alien, text) in [
            (Alien::Run(77), "seed 77"),
            (
                Alien::Misplaced { op: 5, sector: 9 },
                "operation 5 wrote to sector 9",
            ),
        ] {
            let mut ledger = Ledger::new(LAYOUT);
            let read = ledger.begin(
                Kind::Read,
                Extent {
                    place: 0,
                    length: 1,
                },
                5,
            );
            ledger.end_read(read, Some(&[Err(alien)]), 6);
            assert!(
                ledger.report(1, 0)["violation"]["what"]
                    .to_string()
                    .contains(text)
            );
        }
    }

    #[test]
    fn a_fence_is_for_its_sectors() {
        let mut ledger = Ledger::new(LAYOUT);
        for place in [0, 4] {
            for ok in [true, false] {
                let op = ledger.begin(Kind::Write, Extent { place, length: 1 }, 1);
                ledger.end_write(op, ok, 2);
            }
        }
        ledger.fenced(10, &(100..=103), 12);
        // The first write's value and then the failed one's: possible only where nothing is fenced.
        for (place, old) in [(0, 1), (4, 3)] {
            for (seen, begin) in [(old, 20), (old + 1, 30)] {
                let read = ledger.begin(Kind::Read, Extent { place, length: 1 }, begin);
                ledger.end_read(read, Some(&[Ok(Seen::Value(seen))]), begin + 1);
            }
            ledger.settle(40);
            assert_eq!(ledger.failed(), place == 4);
        }
    }
}
