//! Which reads and writes a worker may do itself, without waiting for a disk.
//!
//! Owns that decision for one backend and what it learned. Called by `Backend::try_read` and `try_write`, by all
//! workers at once. Never touches storage; never waits.
//! Memory file systems: always. Others: reads with RWF_NOWAIT (a page that isn't cached is "not now"), writes too
//! where the file system takes it (xfs). Where it doesn't (ext4, block devices), a plain write into the page cache
//! is nearly always as quick, but may wait for a page to be read, for the journal or for dirty throttling. So: whole
//! pages only (nothing is read), and only while such writes are quick; one that wasn't closes the way for a time
//! that doubles while it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_millis(2);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(3200);
const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Not at all: the ring or the pool does it.
    Never,
    /// RWF_NOWAIT.
    NoWait,
    /// An ordinary call that doesn't wait.
    Plain,
    /// An ordinary call that may wait: its time goes to [`Inline::wrote`].
    Timed,
}

#[derive(Debug)]
pub struct Inline {
    memory: bool,
    /// The file system has no RWF_NOWAIT for it.
    no_nowait_read: AtomicBool,
    no_nowait_write: AtomicBool,
    pace: Pace,
    began: Instant,
}

impl Inline {
    /// `memory`: the file lies in a memory file system.
    pub fn new(memory: bool) -> Inline {
        Inline {
            memory,
            no_nowait_read: AtomicBool::new(false),
            no_nowait_write: AtomicBool::new(false),
            pace: Pace::default(),
            began: Instant::now(),
        }
    }

    pub fn read_way(&self) -> Way {
        if self.memory {
            Way::Plain
        } else if self.no_nowait_read.load(Relaxed) {
            Way::Never
        } else {
            Way::NoWait
        }
    }

    pub fn write_way(&self, offset: u64, length: usize) -> Way {
        if self.memory {
            Way::Plain
        } else if !self.no_nowait_write.load(Relaxed) {
            Way::NoWait
        } else {
            self.timed_way(offset, length)
        }
    }

    /// Where RWF_NOWAIT was refused.
    pub fn timed_way(&self, offset: u64, length: usize) -> Way {
        let whole = offset.is_multiple_of(PAGE) && (length as u64).is_multiple_of(PAGE);
        if whole && self.pace.open(self.began.elapsed()) {
            Way::Timed
        } else {
            Way::Never
        }
    }

    pub fn no_nowait_read(&self) {
        self.no_nowait_read.store(true, Relaxed);
    }

    pub fn no_nowait_write(&self) {
        self.no_nowait_write.store(true, Relaxed);
    }

    /// A [`Way::Timed`] write ended now and had begun at `start`.
    pub fn wrote(&self, start: Instant) {
        self.pace.took(self.began.elapsed(), start.elapsed());
    }
}

/// Opens and closes the way for timed writes. Times count from any fixed moment; workers may race, which at worst
/// counts one pause for two.
#[derive(Debug, Default)]
struct Pace {
    /// Closed until then, in nanoseconds.
    closed_until: AtomicU64,
    /// The last pause, in nanoseconds; 0: never slow, or quick for long enough to forget it.
    pause: AtomicU64,
}

impl Pace {
    fn open(&self, now: Duration) -> bool {
        nanos(now) >= self.closed_until.load(Relaxed)
    }

    fn took(&self, now: Duration, took: Duration) {
        let now = nanos(now);
        let until = self.closed_until.load(Relaxed);
        let pause = self.pause.load(Relaxed);
        // It "goes on" if the way wasn't open for as long as it had been closed.
        let goes_on = now < until.saturating_add(pause);
        if took > SLOW {
            // Begun before the way was closed: part of the same stall.
            if now < until {
                return;
            }
            let next = if goes_on { pause.saturating_mul(2) } else { 0 };
            let next = next.clamp(nanos(FIRST_PAUSE), nanos(LONGEST_PAUSE));
            self.pause.store(next, Relaxed);
            self.closed_until.store(now.saturating_add(next), Relaxed);
        } else if pause != 0 && !goes_on {
            self.pause.store(0, Relaxed);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const QUICK: Duration = Duration::from_micros(5);

    #[test]
    fn one_slow_write_closes_the_way_for_a_tenth_of_a_second() {
        let pace = Pace::default();
        assert!(pace.open(ms(0)));
        pace.took(ms(1000), ms(2));
        assert!(pace.open(ms(1000)), "2 ms are not yet slow");
        pace.took(ms(1000), ms(3));
        assert!(!pace.open(ms(1000)));
        assert!(!pace.open(ms(1099)));
        assert!(pace.open(ms(1100)));
    }

    #[test]
    fn the_pause_doubles_while_it_goes_on_up_to_a_limit() {
        let pace = Pace::default();
        let mut now = 1000;
        for expected in [100, 200, 400, 800, 1600, 3200, 3200] {
            pace.took(ms(now), ms(200));
            assert!(!pace.open(ms(now + expected - 1)), "pause {expected}");
            assert!(pace.open(ms(now + expected)), "pause {expected}");
            // The first write after the pause is slow again.
            now += expected + 1;
        }
    }

    #[test]
    fn a_quick_time_as_long_as_the_pause_forgets_it() {
        let pace = Pace::default();
        pace.took(ms(1000), ms(200));
        pace.took(ms(1150), QUICK);
        pace.took(ms(1190), ms(200));
        assert!(!pace.open(ms(1389)), "doubled: 50 quick ms weren't enough");
        pace.took(ms(1390 + 200), QUICK);
        pace.took(ms(1600), ms(200));
        assert!(pace.open(ms(1700)), "back to the first pause");
    }

    #[test]
    fn writes_of_one_stall_count_once() {
        let pace = Pace::default();
        for late in 0..4 {
            pace.took(ms(1000 + late), ms(200));
        }
        assert!(pace.open(ms(1100)), "four workers, one stall");
    }

    #[test]
    fn timed_writes_are_whole_pages() {
        let inline = Inline::new(false);
        assert_eq!(inline.write_way(512, 512), Way::NoWait);
        inline.no_nowait_write();
        assert_eq!(inline.write_way(4096, 8192), Way::Timed);
        assert_eq!(inline.write_way(512, 4096), Way::Never);
        assert_eq!(inline.write_way(4096, 512), Way::Never);
        assert_eq!(inline.read_way(), Way::NoWait);
        inline.no_nowait_read();
        assert_eq!(inline.read_way(), Way::Never);
        assert_eq!(Inline::new(true).write_way(1, 1), Way::Plain);
    }
}
