//! Faults on purpose: storage that stalls or fails where a test says so.
//!
//! Owns the trait that a backend asks before each operation, and a script of faults to give it.
//! Used by tests of the server (also by those outside this crate). Never reachable from a command line or a file.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    Read,
    Write,
    Flush,
    Trim,
    Zero,
    Cache,
    Status,
}

/// One operation that is about to touch the storage; a flush covers all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPoint {
    pub kind: FaultKind,
    pub offset: u64,
    pub length: u64,
}

/// Asked before each operation, on the thread that runs it; may block, which stalls the operation.
pub trait Faults: Send + Sync + Debug {
    fn before(&self, point: &FaultPoint) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Fail { errno: i32, times_left: u32 },
    Hold { reached: u32 },
}

#[derive(Debug)]
struct Rule {
    id: u64,
    kind: FaultKind,
    range: Range<u64>,
    act: Act,
}

impl Rule {
    fn meets(&self, point: &FaultPoint) -> bool {
        let end = point.offset.saturating_add(point.length);
        self.kind == point.kind && self.range.start < end && point.offset < self.range.end
    }
}

#[derive(Debug, Default)]
struct Rules {
    next_id: u64,
    list: Vec<Rule>,
}

/// Faults by range and kind, changeable while operations run.
#[derive(Debug, Default)]
pub struct FaultScript {
    rules: Mutex<Rules>,
    changed: Condvar,
}

impl FaultScript {
    pub fn new() -> Arc<FaultScript> {
        Arc::default()
    }

    /// The next `times` operations of this kind that touch `range` fail and change nothing.
    pub fn fail(&self, kind: FaultKind, range: Range<u64>, errno: i32, times: u32) {
        let times_left = times;
        self.add(kind, range, Act::Fail { errno, times_left });
    }

    /// Operations of this kind that touch `range` stall until the [`Hold`] is released or dropped, then run.
    #[must_use]
    pub fn hold(self: &Arc<Self>, kind: FaultKind, range: Range<u64>) -> Hold {
        let id = self.add(kind, range, Act::Hold { reached: 0 });
        let script = self.clone();
        Hold { script, id }
    }

    fn add(&self, kind: FaultKind, range: Range<u64>, act: Act) -> u64 {
        let mut rules = self.lock();
        let id = rules.next_id;
        rules.next_id += 1;
        rules.list.push(Rule {
            id,
            kind,
            range,
            act,
        });
        id
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults for FaultScript {
    fn before(&self, point: &FaultPoint) -> io::Result<()> {
        let mut rules = self.lock();
        let mut counted = Vec::new();
        loop {
            let mut held = false;
            for rule in rules.list.iter_mut().filter(|rule| rule.meets(point)) {
                match &mut rule.act {
                    Act::Fail {
                        errno, times_left, ..
                    } if *times_left > 0 => {
                        *times_left -= 1;
                        return Err(io::Error::from_raw_os_error(*errno));
                    }
                    Act::Fail { .. } => {}
                    Act::Hold { reached } => {
                        held = true;
                        if !counted.contains(&rule.id) {
                            counted.push(rule.id);
                            *reached += 1;
                        }
                    }
                }
            }
            if !held {
                return Ok(());
            }
            self.changed.notify_all();
            rules = self
                .changed
                .wait(rules)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A stall that lasts as long as this lives.
#[derive(Debug)]
pub struct Hold {
    script: Arc<FaultScript>,
    id: u64,
}

impl Hold {
    /// Waits until `count` operations have come to the stall; false: they haven't within `limit`.
    #[must_use]
    pub fn wait_reached(&self, count: u32, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut rules = self.script.lock();
        loop {
            if reached(&rules, self.id) >= count {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            rules = self
                .script
                .changed
                .wait_timeout(rules, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How many operations have come to the stall.
    pub fn reached(&self) -> u32 {
        reached(&self.script.lock(), self.id)
    }

    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.script.lock().list.retain(|rule| rule.id != self.id);
        self.script.changed.notify_all();
    }
}

fn reached(rules: &Rules, id: u64) -> u32 {
    let rule = rules.list.iter().find(|rule| rule.id == id);
    match rule.map(|rule| rule.act) {
        Some(Act::Hold { reached }) => reached,
        _ => 0,
    }
}
