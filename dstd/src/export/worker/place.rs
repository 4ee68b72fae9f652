//! On which processors a thread of the server may run.
//!
//! A worker that serves several clients one request at a time is drawn to another processor by each of them, and draws them
//! to others: most wake-ups start an idle processor then, which costs more than the request. While the worker stays where it
//! is, its clients gather around it. `Pace` decides (`Way::Stay`), the worker's loop calls. Errors are left alone: a thread
//! that may run anywhere works, too.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, getpid};

const SELF: Pid = Pid::from_raw(0);

#[derive(Debug)]
pub struct Place {
    /// Which of the processors it stays on: each worker on one of its own.
    index: usize,
    staying: bool,
    /// Where it might run before.
    free: Option<CpuSet>,
}

impl Place {
    pub fn new(index: usize) -> Place {
        Place {
            index,
            staying: false,
            free: None,
        }
    }

    /// Cheap while nothing changes.
    pub fn stay(&mut self, stay: bool) {
        if stay == self.staying {
            return;
        }
        self.staying = stay;
        if let Some(free) = self.free.take() {
            let _ = sched_setaffinity(SELF, &free);
        }
        if stay {
            self.free = settle(self.index);
        }
    }
}

/// Stays on one processor from now on; returns on which it might run.
fn settle(index: usize) -> Option<CpuSet> {
    let free = sched_getaffinity(SELF).ok()?;
    let one = pick(&free, index)?;
    sched_setaffinity(SELF, &one).ok()?;
    Some(free)
}

fn pick(free: &CpuSet, index: usize) -> Option<CpuSet> {
    let cpus = (0..CpuSet::count()).filter(|cpu| free.is_set(*cpu).unwrap_or(false));
    let cpus: Vec<usize> = cpus.collect();
    let mut one = CpuSet::new();
    one.set(*cpus.get(index.checked_rem(cpus.len())?)?).ok()?;
    Some(one)
}

/// A thread that a worker started stays where the worker did; this one may run wherever the server may.
pub fn roam() {
    if let Ok(all) = sched_getaffinity(getpid()) {
        let _ = sched_setaffinity(SELF, &all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(*cpu).expect("a processor that exists");
        }
        set
    }

    #[test]
    fn each_worker_has_a_processor_of_those_that_it_may_use() {
        let free = set(&[1, 4, 7]);
        for (index, cpu) in [(0, 1), (1, 4), (2, 7), (3, 1)] {
            assert_eq!(pick(&free, index), Some(set(&[cpu])));
        }
        assert_eq!(pick(&set(&[]), 0), None);
    }

    #[test]
    fn who_stayed_may_go_where_it_might_before_and_who_it_started_too() {
        std::thread::spawn(|| {
            let before = sched_getaffinity(SELF).expect("the mask");
            let mut place = Place::new(1);
            place.stay(true);
            let now = sched_getaffinity(SELF).expect("the mask");
            assert_eq!(Some(now), pick(&before, 1));
            let started = std::thread::spawn(|| {
                roam();
                sched_getaffinity(SELF).expect("the mask")
            });
            assert_eq!(started.join().expect("a mask"), before);
            place.stay(false);
            assert_eq!(sched_getaffinity(SELF).expect("the mask"), before);
        })
        .join()
        .expect("no panic");
    }
}
