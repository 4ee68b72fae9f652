//! When the daemon's next pass comes, and why.
//! Owned by the loop (run). Knows only what passes came to and what woke the loop; never looks at anything itself.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::run::Pass;
use crate::kernel::KernelEvent;

/// How often the watchdog is fed.
const TICK: Duration = Duration::from_secs(2);
/// How often the kernel is looked at when it says nothing.
pub const IDLE: Duration = Duration::from_secs(10);
/// Passes in a row that may take steps before the loop slows down: what they do doesn't last.
const BUSY: u32 = 8;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What made a pass come. Of several the last one here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Start,
    Time,
    Steps,
    Failure,
    Report,
    Node,
    Device,
    Missed,
    Topology,
}

impl Cause {
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Time,
        Self::Steps,
        Self::Failure,
        Self::Report,
        Self::Node,
        Self::Device,
        Self::Missed,
        Self::Topology,
    ];

    pub fn of(event: &KernelEvent) -> Self {
        match event {
            KernelEvent::Overflow => Self::Missed,
            _ => Self::Node,
        }
    }

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Time => "time",
            Self::Steps => "steps",
            Self::Failure => "failure",
            Self::Report => "report",
            Self::Node => "node_event",
            Self::Device => "device_event",
            Self::Missed => "missed_events",
            Self::Topology => "topology",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "the daemon begins",
            Self::Time => "it was time to",
            Self::Steps => "steps were taken",
            Self::Failure => "steps had failed",
            Self::Report => "a node was reached or not",
            Self::Node => "the kernel told of a node or link",
            Self::Device => "device-mapper told of a change",
            Self::Missed => "events of the kernel were missed",
            Self::Topology => "the topology was read again",
        })
    }
}

/// When the next pass is due.
pub struct Schedule {
    pub first: bool,
    ready: bool,
    next: Instant,
    cause: Cause,
    retry: Duration,
    /// Passes in a row that took steps.
    busy: u32,
}

impl Schedule {
    pub fn new() -> Self {
        Self {
            first: true,
            ready: false,
            next: Instant::now(),
            cause: Cause::Start,
            retry: FIRST_RETRY,
            busy: 0,
        }
    }

    pub fn due(&self) -> bool {
        Instant::now() >= self.next
    }

    /// Why the pass comes that is due.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// While steps are under way their end is what the next pass waits for.
    pub fn wake(&self, working: bool) -> Instant {
        let tick = Instant::now() + TICK;
        if working { tick } else { self.next.min(tick) }
    }

    pub fn after(&mut self, pass: &Pass) {
        self.busy = if pass.steps > 0 { self.busy + 1 } else { 0 };
        if pass.failures > 0 || self.busy > BUSY {
            return self.after_failure();
        }
        self.retry = FIRST_RETRY;
        // Steps were taken: look whether they came out as meant.
        let (pause, cause) = match pass.steps {
            0 => (IDLE, Cause::Time),
            _ => (Duration::ZERO, Cause::Steps),
        };
        (self.next, self.cause) = (Instant::now() + pause, cause);
    }

    pub fn after_failure(&mut self) {
        (self.next, self.cause) = (Instant::now() + self.retry, Cause::Failure);
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
    }

    /// Not sooner than a failed pass allows; false: it is later.
    pub fn soon(&mut self, cause: Cause) -> bool {
        let may = self.retry == FIRST_RETRY;
        if may {
            (self.next, self.cause) = (Instant::now(), cause);
        }
        may
    }

    /// True once, when the daemon has first settled.
    pub fn ready(&mut self, settled: bool) -> bool {
        let now = settled && !self.ready;
        self.ready |= settled;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(steps: usize, failures: usize) -> Pass {
        Pass {
            steps,
            failures,
            ..Pass::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_pass_has_its_cause() {
        let mut schedule = Schedule::new();
        assert_eq!((schedule.due(), schedule.cause()), (true, Cause::Start));
        schedule.after(&pass(3, 0));
        assert_eq!((schedule.due(), schedule.cause()), (true, Cause::Steps));
        schedule.after(&pass(0, 0));
        assert_eq!((schedule.due(), schedule.cause()), (false, Cause::Time));
        assert!(schedule.soon(Cause::Device));
        assert_eq!((schedule.due(), schedule.cause()), (true, Cause::Device));
        // A device that fails each time tells of each try: that is no reason to try sooner.
        schedule.after(&pass(3, 1));
        assert!(!schedule.soon(Cause::Device));
        assert_eq!((schedule.due(), schedule.cause()), (false, Cause::Failure));
    }

    #[test]
    fn what_was_missed_outdoes_what_was_told() {
        let told = KernelEvent::DataLost {
            node: "a".parse().unwrap(),
            writes: 1,
        };
        let both = Cause::of(&told).max(Cause::of(&KernelEvent::Overflow));
        assert_eq!(both, Cause::Missed);
    }
}
