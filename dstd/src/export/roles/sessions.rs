//! What a server remembers of sessions that have no link: fenced numbers, and why one may not come back.
//!
//! Owned by the state machine of the roles. Pure. Never grows beyond its limit but for sessions in use.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::Session;

/// Sessions remembered although they have no link; the one named longest ago is forgotten first. What is lost
/// with it matters only to a handshake of a fenced link that is still under way, and to a client that went on
/// without its export while as many others came and went.
pub const REMEMBERED: usize = 256;

#[derive(Debug, Default)]
struct Record {
    /// By slot: no link up to this generation may join.
    fences: BTreeMap<u32, u64>,
    /// The same client's session that took over.
    superseded_by: Option<Session>,
    /// Who took the role from it without its DISC.
    lost_to: Option<String>,
    touched: u64,
}

/// What stands against a session's coming back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    Nothing,
    Superseded(Session),
    LostTo(&'a str),
}

#[derive(Debug, Default)]
pub struct Sessions {
    records: BTreeMap<Session, Record>,
    clock: u64,
}

impl Sessions {
    pub fn verdict(&self, session: Session) -> Verdict<'_> {
        match self.records.get(&session) {
            Some(Record {
                superseded_by: Some(by),
                ..
            }) => Verdict::Superseded(*by),
            Some(Record {
                lost_to: Some(taker),
                ..
            }) => Verdict::LostTo(taker),
            _ => Verdict::Nothing,
        }
    }

    pub fn is_fenced(&self, session: Session, slot: u32, generation: u64) -> bool {
        let fenced = self.records.get(&session).and_then(|r| r.fences.get(&slot));
        fenced.is_some_and(|fenced| generation <= *fenced)
    }

    pub fn fence(&mut self, session: Session, slot: u32, generation: u64) {
        let fenced = self.record(session).fences.entry(slot).or_default();
        *fenced = generation.max(*fenced);
    }

    pub fn supersede(&mut self, session: Session, by: Session) {
        self.record(session).superseded_by = Some(by);
    }

    pub fn lose(&mut self, session: Session, taker: &str) {
        self.record(session).lost_to = Some(taker.to_owned());
    }

    /// It has the role again; its fenced links stay fenced.
    pub fn revive(&mut self, session: Session) {
        if let Some(record) = self.records.get_mut(&session) {
            record.superseded_by = None;
            record.lost_to = None;
        }
    }

    pub fn is_full(&self) -> bool {
        self.records.len() > REMEMBERED
    }

    pub fn forget_idle(&mut self, busy: &BTreeSet<Session>) {
        let idle = self.records.iter().filter(|(s, _)| !busy.contains(s));
        let mut idle: Vec<_> = idle.map(|(s, r)| (r.touched, *s)).collect();
        idle.sort_unstable();
        let excess = self.records.len().saturating_sub(REMEMBERED);
        for (_, session) in idle.into_iter().take(excess) {
            self.records.remove(&session);
        }
    }

    fn record(&mut self, session: Session) -> &mut Record {
        self.clock += 1;
        let record = self.records.entry(session).or_default();
        record.touched = self.clock;
        record
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.records.len()
    }
}
