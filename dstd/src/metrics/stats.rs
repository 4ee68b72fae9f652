//! What the daemon counts of itself.
//! Written by the loop, read by whoever asks for metrics. Nobody waits: each lock is held for a moment.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::kernel::{NodeState, ObservedNode};
use crate::reconcile::Cause;
use crate::units::NodeName;

#[derive(Debug, Default)]
pub struct Stats(Mutex<Counts>);

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub passes: u64,
    pub causes: BTreeMap<Cause, u64>,
    /// Passes that couldn't look, or some of whose steps failed.
    pub failed_passes: u64,
    /// What all looks and plans took.
    pub looking: Duration,
    pub steps: u64,
    pub failed_steps: u64,
    /// Now.
    pub refusals: u64,
    pub wanting: u64,
    /// Events of the kernel that were missed.
    pub missed: u64,
    /// How often each node's server came back without acknowledged writes.
    pub data_lost: BTreeMap<NodeName, u64>,
    /// Since when each node is in its state, as far as this daemon has seen.
    pub since: BTreeMap<NodeName, (NodeState, SystemTime)>,
}

impl Stats {
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begun(&self, cause: Cause) {
        *self.counts().causes.entry(cause).or_default() += 1;
    }

    pub fn looked(&self, took: Duration) {
        self.counts().looking += took;
    }

    /// Of these steps so many failed; None: the kernel couldn't be looked at.
    pub fn pass(&self, steps: usize, failures: Option<usize>, refusals: usize, wanting: usize) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let mut counts = self.counts();
        counts.passes += 1;
        counts.failed_passes += u64::from(failures != Some(0));
        counts.steps += count(steps);
        counts.failed_steps += count(failures.unwrap_or(0));
        if failures.is_some() {
            counts.refusals = count(refusals);
            counts.wanting = count(wanting);
        }
    }

    pub fn seen<'a>(&self, nodes: impl Iterator<Item = &'a ObservedNode>, now: SystemTime) {
        let mut counts = self.counts();
        let mut before = std::mem::take(&mut counts.since);
        for node in nodes {
            let was = before.remove(&node.name);
            let same = was.filter(|(state, _)| *state == node.state);
            let entry = same.unwrap_or((node.state, now));
            counts.since.insert(node.name.clone(), entry);
        }
    }
}
