//! Tests of the register: against an exhaustive search on small histories, against simulated registers that are
//! right (never flagged) and that are wrong in one place (always flagged). Seeds are printed by what fails.

use fastrand::Rng;

use super::*;

/// What the register is told of an operation, in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Saw(OpId),
    Written,
    Failed,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    span: Span,
    outcome: Outcome,
}

impl Op {
    fn is_write(&self) -> bool {
        self.span.kind != Kind::Read
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Settle {
    /// As in a run: now and then.
    Sometimes,
    Always,
    /// Nothing is ever forgotten.
    AtTheEnd,
}

fn verdict(ops: &[Op], how: Settle) -> Result<(), Violation> {
    let begins = ops.iter().map(|op| (op.span.begin, true, op));
    let ends = ops.iter().map(|op| (op.span.end, false, op));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_by_key(|event| event.0);
    let mut register = Register {
        check_at: if how == Settle::AtTheEnd {
            usize::MAX
        } else {
            0
        },
        ..Register::default()
    };
    for (now, begins, op) in events {
        match op.outcome {
            _ if begins => register.begin(op.span.op, op.span.kind, now),
            Outcome::Saw(id) => register.end_read(op.span.op, Some(Seen::Value(id)), now)?,
            outcome => register.end_write(op.span.op, outcome == Outcome::Written, now)?,
        }
        if how == Settle::Always {
            register.settle(now)?;
        }
    }
    register.check()
}

/// Some order of `rest`, each within its time, in which every read sees the last write before it.
fn has_an_order(ops: &[Op], rest: u32, value: OpId) -> bool {
    let left = |i: &usize| rest & 1 << i != 0;
    let all = || (0..ops.len()).filter(left);
    // A failed write may be left out; nothing has to wait for it but its reads, and what was fenced off by it.
    if all().all(|i| ops[i].outcome == Outcome::Failed) {
        return true;
    }
    let must_precede = |a: &Op, b: &Op| match a.outcome {
        Outcome::Failed => false,
        _ => a.span.end < b.span.begin,
    };
    all().any(|i| {
        let op = ops[i];
        if all().any(|j| must_precede(&ops[j], &op)) {
            return false;
        }
        // What failed before a later write began is over when that one is done.
        let fenced =
            |j: &usize| ops[*j].outcome == Outcome::Failed && ops[*j].span.end < op.span.begin;
        let dropped = match op.outcome {
            Outcome::Written => all().filter(fenced).fold(0, |set, j| set | 1 << j),
            _ => 0,
        };
        let rest = rest & !(1 << i) & !dropped;
        match op.outcome {
            Outcome::Saw(id) => id == value && has_an_order(ops, rest, value),
            _ => has_an_order(ops, rest, op.span.op),
        }
    })
}

fn search(ops: &[Op]) -> bool {
    has_an_order(ops, (1 << ops.len()) - 1, 0)
}

/// Up to eight operations; writes don't overlap each other, reads do as they like and see something recent.
fn small_history(random: &mut Rng, failures: bool) -> Vec<Op> {
    let count = random.usize(2..=8);
    let mut times: Vec<Time> = (10..10 + 2 * count as Time).collect();
    random.shuffle(&mut times);
    let mut spans: Vec<(Time, Time)> = times
        .chunks(2)
        .map(|two| (two[0].min(two[1]), two[0].max(two[1])))
        .collect();
    spans.sort_unstable();
    let mut written = 0;
    let mut ops = vec![initial()];
    for (begin, end) in spans {
        let op = ops.len() as OpId;
        let write = begin > written && random.bool();
        let (kind, outcome) = match write {
            true if failures && random.u8(..3) == 0 => (Kind::Write, Outcome::Failed),
            true => (Kind::Write, Outcome::Written),
            false => (Kind::Read, Outcome::Saw(0)),
        };
        if write {
            written = end;
        }
        ops.push(Op {
            span: Span {
                op,
                kind,
                begin,
                end,
            },
            outcome,
        });
    }
    let writes: Vec<OpId> = ops
        .iter()
        .filter(|op| op.is_write())
        .map(|op| op.span.op)
        .collect();
    for op in ops.iter_mut().filter(|op| !op.is_write()) {
        let known = writes.iter().filter(|id| **id <= op.span.op + 1).count();
        op.outcome = Outcome::Saw(writes[random.usize(known.saturating_sub(3)..known)]);
    }
    ops
}

fn initial() -> Op {
    let span = Span {
        op: 0,
        kind: Kind::Write,
        begin: 1,
        end: 2,
    };
    Op {
        span,
        outcome: Outcome::Written,
    }
}

#[test]
fn the_verdict_is_the_exhaustive_searchs() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let ops = small_history(&mut Rng::with_seed(seed), false);
        let possible = search(&ops);
        let found = verdict(&ops, Settle::AtTheEnd);
        assert_eq!(
            found.is_ok(),
            possible,
            "seed {seed}: {found:?} of {ops:#?}"
        );
        *(if possible { &mut good } else { &mut bad }) += 1;
    }
    assert!(good > 2_000 && bad > 2_000, "{good} good, {bad} bad");
}

#[test]
fn with_failed_writes_nothing_possible_is_flagged() {
    let (mut missed, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let ops = small_history(&mut Rng::with_seed(seed), true);
        let possible = search(&ops);
        let found = verdict(&ops, Settle::AtTheEnd);
        assert!(
            found.is_ok() || !possible,
            "seed {seed}: {found:?} of {ops:#?}"
        );
        bad += u32::from(!possible);
        missed += u32::from(!possible && found.is_ok());
    }
    // Several failed writes at once can hide each other; that is rare.
    assert!(
        bad > 2_000 && missed * 100 < bad,
        "{missed} of {bad} missed"
    );
}

#[test]
fn forgetting_changes_no_verdict() {
    for seed in 0..20_000 {
        let ops = small_history(&mut Rng::with_seed(seed), seed % 2 == 0);
        let (all, some) = (
            verdict(&ops, Settle::AtTheEnd),
            verdict(&ops, Settle::Always),
        );
        assert_eq!(
            all.is_ok(),
            some.is_ok(),
            "seed {seed}: {all:?}, {some:?} of {ops:#?}"
        );
    }
}

/// A register with several clients at work, whose failed writes linger. Each operation takes effect at one moment.
struct Simulation {
    random: Rng,
    now: Time,
    value: OpId,
    /// Under way: when it took effect, and what it saw.
    running: Vec<(Span, Option<OpId>)>,
    /// Failed writes that may still take effect.
    lingering: Vec<Span>,
    ops: Vec<Op>,
    exclusive: bool,
    failures: bool,
}

const CLIENTS: usize = 6;

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        Self {
            now: 10,
            value: 0,
            running: Vec::new(),
            lingering: Vec::new(),
            ops: vec![initial()],
            exclusive: random.bool(),
            failures: random.bool(),
            random,
        }
    }

    fn tick(&mut self) -> Time {
        self.now += self.random.u64(1..5);
        self.now
    }

    fn begin(&mut self, kind: Kind) -> OpId {
        let op = (self.ops.len() + self.running.len()) as OpId;
        let begin = self.tick();
        self.running.push((
            Span {
                op,
                kind,
                begin,
                end: NEVER,
            },
            None,
        ));
        op
    }

    /// A write waits for the fence of those that failed before it began.
    fn may_take_effect(&self, span: Span) -> bool {
        span.kind == Kind::Read || self.lingering.iter().all(|old| old.end > span.begin)
    }

    fn step(&mut self) {
        let writing = self
            .running
            .iter()
            .any(|(span, _)| span.kind == Kind::Write);
        match self.random.u8(..10) {
            0..4 if self.running.len() < CLIENTS => {
                let read = (writing && self.exclusive) || self.random.bool();
                self.begin(if read { Kind::Read } else { Kind::Write });
            }
            4 if !self.lingering.is_empty() => self.old_write(),
            _ if self.running.is_empty() => {}
            _ => self.advance(),
        }
    }

    /// A failed write takes effect after all, or is dropped.
    fn old_write(&mut self) {
        let old = self
            .lingering
            .swap_remove(self.random.usize(..self.lingering.len()));
        if self.random.bool() {
            self.value = old.op;
        }
    }

    fn advance(&mut self) {
        let at = self.random.usize(..self.running.len());
        match self.running[at] {
            (span, None)
                if span.kind == Kind::Write && self.failures && self.random.u8(..6) == 0 =>
            {
                self.running.swap_remove(at);
                let end = self.tick();
                let span = Span { end, ..span };
                self.lingering.push(span);
                self.ops.push(Op {
                    span,
                    outcome: Outcome::Failed,
                });
            }
            (span, None) if self.may_take_effect(span) => {
                if span.kind == Kind::Write {
                    self.value = span.op;
                }
                self.running[at].1 = Some(self.value);
            }
            (_, None) => {}
            (span, Some(seen)) => {
                self.running.swap_remove(at);
                self.end(span, seen);
            }
        }
    }

    fn end(&mut self, span: Span, seen: OpId) {
        let end = self.tick();
        let outcome = match span.kind {
            Kind::Read => Outcome::Saw(seen),
            _ => Outcome::Written,
        };
        self.ops.push(Op {
            span: Span { end, ..span },
            outcome,
        });
    }

    fn finish(&mut self) {
        while !self.running.is_empty() || !self.lingering.is_empty() {
            match self.lingering.is_empty() {
                true => self.advance(),
                false => self.old_write(),
            }
        }
    }

    /// A whole operation with nothing else under way: a write that happens, or not, or a read of `value`.
    fn alone(&mut self, kind: Kind, value: OpId) -> OpId {
        let op = self.begin(kind);
        let (span, _) = self.running.remove(self.running.len() - 1);
        self.end(span, value);
        op
    }
}

/// A long right history with a hole in the middle, into which `plant` puts what it likes.
fn simulate(seed: u64, plant: impl Fn(&mut Simulation)) -> Vec<Op> {
    let mut simulation = Simulation::new(seed);
    let steps = simulation.random.usize(10..400);
    for _ in 0..steps {
        simulation.step();
    }
    simulation.finish();
    plant(&mut simulation);
    for _ in 0..steps {
        simulation.step();
    }
    simulation.finish();
    simulation.ops
}

#[test]
fn a_right_register_is_never_flagged() {
    for seed in 0..4_000 {
        let ops = simulate(seed, |_| {});
        for how in [Settle::Sometimes, Settle::Always, Settle::AtTheEnd] {
            let found = verdict(&ops, how);
            assert_eq!(found, Ok(()), "seed {seed}");
        }
    }
}

fn always_flagged(plant: impl Fn(&mut Simulation)) {
    for seed in 0..2_000 {
        let ops = simulate(seed, &plant);
        for how in [Settle::Sometimes, Settle::Always, Settle::AtTheEnd] {
            assert!(verdict(&ops, how).is_err(), "seed {seed}: not flagged");
        }
    }
}

#[test]
fn a_stale_read_is_always_flagged() {
    always_flagged(|s| {
        let old = s.value;
        s.value = s.alone(Kind::Write, 0);
        s.alone(Kind::Read, old);
    });
}

#[test]
fn a_lost_write_is_always_flagged() {
    always_flagged(|s| {
        s.value = s.alone(Kind::Write, 0);
        s.alone(Kind::Write, 0);
        s.alone(Kind::Read, s.value);
    });
}

#[test]
fn a_stale_write_is_always_flagged() {
    // An acknowledged one that is applied again, a newer one having been acknowledged.
    always_flagged(|s| {
        let old = s.alone(Kind::Write, 0);
        s.alone(Kind::Write, 0);
        s.value = old;
        s.alone(Kind::Read, old);
    });
}

#[test]
fn a_failed_write_that_comes_after_its_fence_is_always_flagged() {
    always_flagged(|s| {
        let old = s.begin(Kind::Write);
        let (span, _) = s.running.remove(s.running.len() - 1);
        let end = s.tick();
        s.ops.push(Op {
            span: Span { end, ..span },
            outcome: Outcome::Failed,
        });
        let new = s.alone(Kind::Write, 0);
        s.alone(Kind::Read, new);
        s.value = old;
        s.alone(Kind::Read, old);
    });
}

fn span_of(register: &mut Register, op: OpId, kind: Kind, times: (Time, Time)) -> Span {
    register.begin(op, kind, times.0);
    Span {
        op,
        kind,
        begin: times.0,
        end: times.1,
    }
}

#[test]
fn a_fence_ends_what_failed_before_it() {
    for fenced in [false, true] {
        let mut register = Register::default();
        span_of(&mut register, 1, Kind::Write, (1, 2));
        register.end_write(1, true, 2).unwrap();
        span_of(&mut register, 2, Kind::Write, (3, 4));
        register.end_write(2, false, 4).unwrap();
        if fenced {
            register.fenced(10, 12);
        }
        // The old value is read after the fence, and then the new one.
        for (op, seen, begin) in [(3, 1, 20), (4, 2, 30)] {
            register.begin(op, Kind::Read, begin);
            register
                .end_read(op, Some(Seen::Value(seen)), begin + 1)
                .unwrap();
        }
        let found = register.settle(40);
        assert_eq!(found.is_err(), fenced, "{found:?}");
    }
}

#[test]
fn a_fence_does_not_end_what_failed_after_it_began() {
    let mut register = Register::default();
    span_of(&mut register, 1, Kind::Write, (1, 2));
    register.end_write(1, true, 2).unwrap();
    span_of(&mut register, 2, Kind::Write, (3, 11));
    register.end_write(2, false, 11).unwrap();
    register.fenced(10, 12);
    for (op, seen, begin) in [(3, 1, 20), (4, 2, 30)] {
        register.begin(op, Kind::Read, begin);
        register
            .end_read(op, Some(Seen::Value(seen)), begin + 1)
            .unwrap();
    }
    assert_eq!(register.settle(40), Ok(()));
}

#[test]
fn zeroes_are_good_while_a_zeroing_can_explain_them() {
    let zeroing_then = |write: bool| {
        let mut register = Register::default();
        register.begin(1, Kind::Zero, 1);
        register.end_write(1, true, 2).unwrap();
        if write {
            register.begin(2, Kind::Write, 3);
            register.end_write(2, true, 4).unwrap();
        }
        register.begin(3, Kind::Read, 5);
        register.end_read(3, Some(Seen::Zeroes), 6)
    };
    assert_eq!(zeroing_then(false), Ok(()));
    assert_eq!(zeroing_then(true).unwrap_err().what, "old zeroes came back");
    let mut register = Register::default();
    register.begin(1, Kind::Read, 5);
    let found = register.end_read(1, Some(Seen::Zeroes), 6).unwrap_err();
    assert_eq!(found.what, "zeroes, and no zeroing can explain them");
}

#[test]
fn a_zeroing_is_not_undone() {
    let mut register = Register::default();
    register.begin(1, Kind::Write, 1);
    register.end_write(1, true, 2).unwrap();
    register.begin(2, Kind::Zero, 3);
    register.end_write(2, true, 4).unwrap();
    register.begin(3, Kind::Read, 5);
    register.end_read(3, Some(Seen::Value(1)), 6).unwrap();
    assert!(register.settle(7).is_err());
}

#[test]
fn torn_bytes_are_good_only_during_a_write() {
    let mut register = Register::default();
    register.begin(1, Kind::Write, 1);
    register.begin(2, Kind::Read, 2);
    assert_eq!(register.end_read(2, Some(Seen::Torn), 3), Ok(()));
    register.end_write(1, true, 4).unwrap();
    register.begin(3, Kind::Read, 5);
    let found = register.end_read(3, Some(Seen::Torn), 6).unwrap_err();
    assert_eq!(found.what, "damaged bytes, and no write was under way");
}

/// The order of two writes at once may turn round until both have ended (a loss replays them), and never after.
#[test]
fn writes_at_once_have_no_order_before_they_end() {
    let history = |last_begins: Time, seen: OpId| {
        let op = |op, kind, begin, end, outcome| Op {
            span: Span {
                op,
                kind,
                begin,
                end,
            },
            outcome,
        };
        let ops = [
            initial(),
            op(1, Kind::Write, 10, 50, Outcome::Written),
            op(2, Kind::Write, 11, 51, Outcome::Written),
            op(3, Kind::Read, 20, 21, Outcome::Saw(1)),
            op(4, Kind::Read, 22, 23, Outcome::Saw(2)),
            op(5, Kind::Read, 24, 25, Outcome::Saw(1)),
            op(6, Kind::Read, 60, 61, Outcome::Saw(2)),
            op(
                7,
                Kind::Read,
                last_begins,
                last_begins + 1,
                Outcome::Saw(seen),
            ),
        ];
        verdict(&ops, Settle::AtTheEnd)
    };
    assert_eq!(history(70, 2), Ok(()));
    assert!(history(70, 1).is_err());
    assert_eq!(history(30, 0), Ok(()));
    assert!(history(70, 0).is_err());
}

#[test]
fn what_can_not_matter_is_forgotten() {
    let mut register = Register::default();
    for op in 0..100_000 {
        register.begin(op, Kind::Write, 4 * op + 1);
        register.end_write(op, op % 10 != 3, 4 * op + 2).unwrap();
        assert!(register.clusters() <= 2 * CHECK_FROM);
    }
}
