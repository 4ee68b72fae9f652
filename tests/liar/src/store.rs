//! What the server keeps and counts, for all its connections: the data, which is always right, and the lies told.
//! Used by serve and main.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use nbdpeer::Request;
use nbdpeer::proto;
use serde_json::{Value, json};

use crate::lies::Lie;

#[derive(Debug, Clone)]
pub struct Manner {
    pub seed: u64,
    /// Lies, of a hundred requests; links ended by one, of a thousand requests.
    pub lies: u32,
    pub fatal: u32,
    pub among: Vec<Lie>,
    /// After so many lies it is honest.
    pub exchanges: u64,
}

#[derive(Debug, Default)]
struct Counts {
    honest: u64,
    lies: u64,
    kinds: BTreeMap<Lie, u64>,
    connections: u64,
}

#[derive(Debug)]
pub struct Store {
    pub manner: Manner,
    /// Cleared: nothing but the truth for now.
    pub lying: AtomicBool,
    data: Mutex<Vec<u8>>,
    counts: Mutex<Counts>,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right answer to a request: an error, or what a read is to get.
pub type Answer = Result<Vec<u8>, u32>;

impl Store {
    pub fn new(size: usize, manner: Manner) -> Self {
        Self {
            manner,
            lying: AtomicBool::new(true),
            data: Mutex::new(vec![0; size]),
            counts: Mutex::default(),
            done: Condvar::new(),
        }
    }

    /// Held: nobody else sees or changes it.
    pub fn data(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.data)
    }

    /// Number of the connection, from 1.
    pub fn connected(&self) -> u64 {
        let mut counts = lock(&self.counts);
        counts.connections += 1;
        counts.connections
    }

    /// Whether to lie now, and to the end of the link: counted by the caller, when it has.
    pub fn roll(&self, random: &mut Rng) -> Option<bool> {
        let manner = &self.manner;
        if !self.lying.load(Ordering::Relaxed) || lock(&self.counts).lies >= manner.exchanges {
            return None;
        }
        if random.u32(..1000) < manner.fatal {
            return Some(true);
        }
        (random.u32(..100) < manner.lies).then_some(false)
    }

    pub fn told(&self, lie: Option<Lie>) {
        let mut counts = lock(&self.counts);
        match lie {
            None => counts.honest += 1,
            Some(lie) => {
                counts.lies += 1;
                *counts.kinds.entry(lie).or_default() += 1;
                if counts.lies == self.manner.exchanges {
                    self.done.notify_all();
                }
            }
        }
    }

    /// Until all lies are told.
    pub fn wait(&self) {
        let mut counts = lock(&self.counts);
        while counts.lies < self.manner.exchanges {
            counts = self
                .done
                .wait(counts)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn report(&self) -> Value {
        let counts = lock(&self.counts);
        let kinds: BTreeMap<&str, u64> = counts
            .kinds
            .iter()
            .map(|(lie, n)| (lie.name(), *n))
            .collect();
        json!({
            "done": counts.lies >= self.manner.exchanges,
            "seed": self.manner.seed,
            "mutated": counts.lies,
            "honest": counts.honest,
            "connections": counts.connections,
            "kinds": kinds,
        })
    }
}

/// Does what is asked. A read's answer is what is there now.
pub fn apply(data: &mut [u8], request: &Request) -> Answer {
    let end = request.offset.checked_add(request.length);
    if end.is_none_or(|end| end > data.len() as u64) {
        return Err(proto::EINVAL);
    }
    let range = &mut data[request.offset as usize..][..request.length as usize];
    match request.kind {
        proto::READ => return Ok(range.to_vec()),
        proto::WRITE => range.copy_from_slice(&request.payload),
        proto::TRIM | proto::WRITE_ZEROES => range.fill(0),
        proto::FLUSH => {}
        _ => return Err(proto::EINVAL),
    }
    Ok(Vec::new())
}
