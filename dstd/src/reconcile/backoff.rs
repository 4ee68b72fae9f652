//! Pauses between tries: growing up to a limit, and shortened by chance.
//! Used by the tasks that connect and that fence. Pure but for chance; never ends.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Half to all of the pause that is due, so that many nodes don't come back at the same moment.
    pub fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        pause.mul_f64(rand::random_range(0.5..1.0))
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute_and_are_never_the_same_for_all() {
        let mut backoff = Backoff::default();
        let mut due = FIRST;
        for _ in 0..20 {
            let pause = backoff.next();
            assert!(pause >= due / 2 && pause <= due, "{pause:?} of {due:?}");
            due = (due * 2).min(LONGEST);
        }
        assert_eq!(due, LONGEST);
        let many: std::collections::BTreeSet<_> =
            (0..100).map(|_| Backoff::default().next()).collect();
        assert!(many.len() > 50, "all at the same moment");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
