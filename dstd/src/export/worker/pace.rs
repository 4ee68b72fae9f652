//! How a worker waits when it has nothing to do: blocked, looking again for a moment, after a nap, or blocked on a processor
//! of its own.
//!
//! Owns the choice, which it makes by trying: a way to wait is kept only while requests are served at least as fast as
//! before it. Told of each round by the worker's loop. Pure: time comes in as a number; waits for nothing itself.

use std::time::Duration;

/// To be woken costs both sides much more than the request itself: an idle processor has to be started by an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Until something happens.
    Block,
    /// Look again and again for a moment first: for a client that sends its next request when it has the reply.
    Spin,
    /// Receive nothing for a moment, so that many requests come with one wake-up: for a client that has many under way.
    Nap,
    /// Block, but stay on one processor: for several clients that each wait for a reply.
    Stay,
}

/// As long as a client needs to see a reply and send the next request.
pub const SPIN: Duration = Duration::from_micros(30);
/// Short against what a client with many requests under way has still to do.
pub const NAP: Duration = Duration::from_micros(40);

/// Rates are compared over so much time.
const WINDOW: Duration = Duration::from_millis(4);
/// Windows until a way shows what it is worth: an idle processor's governor has to get used to it first.
const SETTLE: u8 = 3;
/// How long a way is kept before the worker blocks for a window, to see what that is like now.
const KEEP: Duration = Duration::from_millis(200);
/// From a trial that failed to the next one; doubles with each.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_millis(640);
/// Requests a second below which nothing is gained.
const SPIN_FROM: f64 = 5_000.0;
const NAP_FROM: f64 = 60_000.0;
/// Requests a round up to which a client seems to wait for each reply.
const ONE_AT_A_TIME: f64 = 1.05;
/// By how much spinning has to be faster, as it takes a processor; and how much slower the others may seem: naps save one,
/// to stay costs none, and two windows are never quite alike. (After it stayed a worker is as fast for some windows more, so
/// no gain would be seen.)
const SPIN_GAINS: f64 = 1.3;
const MAY_LOSE: f64 = 0.9;

/// ```text
///           promising             fast enough
///  Watch ─────────────▶ Try(way) ─────────────▶ Keep(way)
///    ▲                     │ not                    │ time is up, or slower than blocking was
///    └─────────────────────┴────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Watch,
    /// Since so many windows.
    Try(Way, f64, u8),
    Keep(Way, f64, Duration),
}

#[derive(Debug)]
pub struct Pace {
    phase: Phase,
    /// The window began then; requests and rounds with requests since.
    since: Duration,
    served: usize,
    rounds: usize,
    /// No trial before.
    next: Duration,
    pause: Duration,
    /// Naps were tried last, and failed.
    no_naps: bool,
    /// There is another processor for the client meanwhile.
    may_spin: bool,
    /// Each worker can have a processor of its own.
    may_stay: bool,
    fixed: Option<Way>,
}

impl Pace {
    /// `cpus`: that this process may run on; `fixed`: always this way; for tests.
    pub fn new(cpus: usize, workers: usize, fixed: Option<Way>) -> Pace {
        Pace {
            phase: Phase::Watch,
            since: Duration::ZERO,
            served: 0,
            rounds: 0,
            next: Duration::ZERO,
            pause: PAUSE,
            no_naps: false,
            may_spin: cpus > 1,
            may_stay: cpus > 1 && workers <= cpus,
            fixed,
        }
    }

    pub fn way(&self) -> Way {
        match self.phase {
            _ if let Some(way) = self.fixed => way,
            Phase::Watch => Way::Block,
            Phase::Try(way, ..) | Phase::Keep(way, ..) => way,
        }
    }

    /// After a round that served so many requests, of so many links that the worker has.
    pub fn round(&mut self, now: Duration, served: usize, links: usize) {
        self.served += served;
        self.rounds += usize::from(served > 0);
        let window = now.saturating_sub(self.since);
        if window < WINDOW {
            return;
        }
        let rate = self.served as f64 / window.as_secs_f64();
        let together = self.served as f64 / self.rounds.max(1) as f64;
        // After a long time blocked the window tells nothing of either.
        let idle = window > 4 * WINDOW;
        self.phase = match self.phase {
            _ if idle => Phase::Watch,
            Phase::Watch => self.watch(now, rate, together, links),
            Phase::Try(way, blocked, windows) if windows + 1 < SETTLE => {
                Phase::Try(way, blocked, windows + 1)
            }
            Phase::Try(way, blocked, _) => self.judge(now, way, rate, blocked),
            Phase::Keep(way, blocked, until) if now < until && good(way, rate, blocked) => {
                Phase::Keep(way, blocked, until)
            }
            Phase::Keep(..) => Phase::Watch,
        };
        (self.since, self.served, self.rounds) = (now, 0, 0);
    }

    fn watch(&self, now: Duration, rate: f64, together: f64, links: usize) -> Phase {
        if now < self.next {
            return Phase::Watch;
        }
        // Requests may also come one at a time because the worker keeps up with a client that has many under way.
        let spin = self.may_spin && links == 1 && together <= ONE_AT_A_TIME && rate >= SPIN_FROM;
        let stay = self.may_stay && links > 1 && rate >= SPIN_FROM;
        match rate >= NAP_FROM {
            true if !((spin || stay) && self.no_naps) => Phase::Try(Way::Nap, rate, 0),
            _ if spin => Phase::Try(Way::Spin, rate, 0),
            _ if stay => Phase::Try(Way::Stay, rate, 0),
            _ => Phase::Watch,
        }
    }

    fn judge(&mut self, now: Duration, way: Way, rate: f64, blocked: f64) -> Phase {
        let kept = good(way, rate, blocked);
        self.no_naps = way == Way::Nap && !kept;
        if kept {
            self.pause = PAUSE;
            return Phase::Keep(way, blocked, now + KEEP);
        }
        self.next = now + self.pause;
        self.pause = (2 * self.pause).min(PAUSE_MOST);
        Phase::Watch
    }
}

fn good(way: Way, rate: f64, blocked: f64) -> bool {
    rate >= match way {
        Way::Spin => blocked * SPIN_GAINS,
        _ => blocked * MAY_LOSE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load: how fast it goes with each way to wait, and how many requests come together.
    struct Load {
        block: f64,
        spin: f64,
        nap: f64,
        stay: f64,
        together: usize,
        links: usize,
    }

    /// Plays it for so long; returns the share of the time that was spent in each way.
    fn play(pace: &mut Pace, from: Duration, time: Duration, load: &Load) -> [f64; 4] {
        let (mut now, mut spent) = (from, [0.0; 4]);
        while now < from + time {
            let way = pace.way();
            let (rate, together) = match way {
                Way::Block => (load.block, load.together),
                Way::Spin => (load.spin, load.together),
                Way::Nap => (load.nap, 8),
                Way::Stay => (load.stay, load.together),
            };
            let step = Duration::from_secs_f64(together as f64 / rate);
            spent[way as usize] += step.as_secs_f64() / time.as_secs_f64();
            now += step;
            pace.round(now, together, load.links);
        }
        spent
    }

    const ONE: Load = Load {
        block: 20e3,
        spin: 40e3,
        nap: 10e3,
        stay: 20e3,
        together: 1,
        links: 1,
    };
    const MANY: Load = Load {
        block: 190e3,
        spin: 190e3,
        nap: 200e3,
        stay: 190e3,
        together: 2,
        links: 1,
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_waits_for_each_reply_is_looked_for_and_who_sends_many_is_let_gather() {
        let [block, spin, nap, _] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &ONE);
        assert!(spin > 0.95 && block < 0.05 && nap == 0.0, "{spin} {block}");
        let [block, spin, nap, _] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &MANY);
        assert!(nap > 0.95 && block < 0.05 && spin == 0.0, "{nap} {block}");
    }

    #[test]
    fn a_worker_that_keeps_up_with_many_requests_naps_too_and_a_fast_client_that_waits_is_looked_for()
     {
        let apart = Load {
            together: 1,
            ..MANY
        };
        let [block, _, nap, _] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &apart);
        assert!(nap > 0.95 && block < 0.05, "{nap} {block}");
        let fast = Load {
            block: 70e3,
            spin: 140e3,
            ..ONE
        };
        let [_, spin, ..] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &fast);
        assert!(spin > 0.8, "{spin}");
    }

    #[test]
    fn on_the_only_processor_nobody_is_looked_for() {
        let [_, spin, ..] = play(&mut Pace::new(1, 1, None), SECOND, SECOND, &ONE);
        assert!(spin == 0.0, "{spin}");
    }

    #[test]
    fn what_gains_nothing_is_tried_ever_less() {
        for load in [Load { spin: 21e3, ..ONE }, Load { nap: 160e3, ..MANY }] {
            let mut pace = Pace::new(2, 2, None);
            let [block, ..] = play(&mut pace, SECOND, 10 * SECOND, &load);
            assert!(block > 0.97, "{block}");
        }
    }

    const SEVERAL: Load = Load {
        stay: 35e3,
        links: 2,
        ..ONE
    };

    #[test]
    fn for_several_clients_that_wait_for_replies_it_stays_unless_that_is_slower() {
        let [block, .., stay] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &SEVERAL);
        assert!(stay > 0.95 && block < 0.05, "{stay} {block}");
        let crowded = Load {
            stay: 10e3,
            ..SEVERAL
        };
        let [block, .., stay] = play(&mut Pace::new(2, 2, None), SECOND, 10 * SECOND, &crowded);
        assert!(block > 0.97 && stay < 0.03, "{stay} {block}");
    }

    #[test]
    fn when_others_come_to_its_processor_it_leaves_and_comes_back_after_them() {
        let mut pace = Pace::new(2, 2, None);
        play(&mut pace, SECOND, SECOND, &SEVERAL);
        let crowded = Load {
            stay: 10e3,
            ..SEVERAL
        };
        let [block, ..] = play(&mut pace, 2 * SECOND, 10 * SECOND, &crowded);
        assert!(block > 0.95, "{block}");
        let [.., stay] = play(&mut pace, 12 * SECOND, 10 * SECOND, &SEVERAL);
        assert!(stay > 0.9, "{stay}");
    }

    #[test]
    fn workers_without_a_processor_each_do_not_stay() {
        let [block, ..] = play(&mut Pace::new(2, 3, None), SECOND, SECOND, &SEVERAL);
        assert!(block > 0.9999, "{block}");
    }

    #[test]
    fn slow_loads_and_idleness_are_left_alone() {
        let slow = Load {
            block: 4e3,
            spin: 30e3,
            ..ONE
        };
        let light = Load {
            block: 50e3,
            ..MANY
        };
        for load in [slow, light] {
            let [block, ..] = play(&mut Pace::new(2, 2, None), SECOND, SECOND, &load);
            assert!(block == 1.0 || block > 0.9999, "{block}");
        }
        let mut pace = Pace::new(2, 2, None);
        play(&mut pace, SECOND, SECOND, &ONE);
        assert_eq!(pace.way(), Way::Spin);
        pace.round(3 * SECOND, 1, 1);
        assert_eq!(pace.way(), Way::Block, "after a second without requests");
    }

    #[test]
    fn a_load_that_changes_is_noticed_within_windows() {
        let mut pace = Pace::new(2, 2, None);
        play(&mut pace, SECOND, SECOND, &MANY);
        let [_, spin, ..] = play(&mut pace, 2 * SECOND, SECOND, &ONE);
        assert!(spin > 0.9, "{spin}");
        let [_, _, nap, _] = play(&mut pace, 3 * SECOND, SECOND, &MANY);
        assert!(nap > 0.7, "{nap}");
    }
}
