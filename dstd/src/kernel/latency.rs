//! How long a node's server takes to answer, and how long requests wait before, as the kernel counts it, and what that says in short.
//! Made by netlink::message; shown by status and metrics. Pure: plain data and arithmetic.

use schemars::JsonSchema;
use serde::Serialize;

/// Of the requests that a node has answered since a table first named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Latencies {
    pub read: Latency,
    pub write: Latency,
}

/// From when a request is gathered to be sent until it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Latency {
    /// Requests that were answered.
    pub count: u64,
    /// Nanoseconds that all of them took, together.
    pub sum_ns: u64,
    /// Half of them took no longer: a bucket's bound; null: there were none, or it is beyond the last bound.
    pub typical_us: Option<u64>,
    /// The same of 99 in 100.
    pub p99_us: Option<u64>,
    /// How many took up to 1, 2, 4, 8 and so on microseconds, and longer than the bound before; the last has no bound.
    pub buckets: Vec<u64>,
}

/// What requests of a node have waited for a link, a fence, or their pages in an old socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct QueueTime {
    /// Waits that have begun.
    pub count: u64,
    /// Nanoseconds that all of them took, together; those that go on are in it.
    pub sum_ns: u64,
}

impl Latencies {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            read: self.read.since(&before.read),
            write: self.write.since(&before.write),
        }
    }
}

impl Latency {
    pub fn of(sum_ns: u64, buckets: Vec<u64>) -> Self {
        let count = buckets.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        Self {
            count,
            sum_ns,
            typical_us: quantile(&buckets, count, 50),
            p99_us: quantile(&buckets, count, 99),
            buckets,
        }
    }

    /// What came since `before`; all of it, where that is another node's that had the name.
    pub fn since(&self, before: &Self) -> Self {
        let pairs = || self.buckets.iter().zip(&before.buckets);
        let goes_on = self.buckets.len() == before.buckets.len() && pairs().all(|(n, b)| n >= b);
        match (goes_on, self.sum_ns.checked_sub(before.sum_ns)) {
            (true, Some(sum)) => Self::of(sum, pairs().map(|(n, b)| n - b).collect()),
            _ => self.clone(),
        }
    }

    /// Each bound in microseconds, with how many took no longer. The rest is up to `count`.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let bounded = self.buckets.len().saturating_sub(1);
        let mut sum = 0_u64;
        let buckets = self.buckets.iter().take(bounded).enumerate();
        buckets.map(move |(i, n)| {
            sum = sum.saturating_add(*n);
            (bound(i), sum)
        })
    }

    /// The highest bound in microseconds, beyond which only the last bucket is.
    pub fn last_bound(&self) -> u64 {
        bound(self.buckets.len().saturating_sub(2))
    }
}

/// Of a bucket, in microseconds.
fn bound(bucket: usize) -> u64 {
    u32::try_from(bucket)
        .ok()
        .and_then(|n| 1_u64.checked_shl(n))
        .unwrap_or(u64::MAX)
}

/// The bound of the bucket that holds the last of so many in a hundred.
fn quantile(buckets: &[u64], count: u64, percent: u64) -> Option<u64> {
    let rank = (u128::from(count) * u128::from(percent)).div_ceil(100);
    let bounded = buckets.len().checked_sub(1)?;
    let mut sum = 0_u128;
    let found = buckets.iter().position(|n| {
        sum += u128::from(*n);
        rank > 0 && sum >= rank
    })?;
    (found < bounded).then(|| bound(found))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short(buckets: &[u64]) -> (u64, Option<u64>, Option<u64>) {
        let latency = Latency::of(0, buckets.to_vec());
        (latency.count, latency.typical_us, latency.p99_us)
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        assert_eq!(short(&[]), (0, None, None));
        assert_eq!(short(&[0, 0, 0]), (0, None, None));
        assert_eq!(short(&[0, 0, 1, 0]), (1, Some(4), Some(4)));
        // The 50th of 100 is the last of its bucket, the 99th the last but one.
        assert_eq!(short(&[50, 0, 49, 1, 0]), (100, Some(1), Some(4)));
        assert_eq!(short(&[49, 1, 48, 2, 0]), (100, Some(2), Some(8)));
        // Beyond the last bound.
        assert_eq!(short(&[50, 50]), (100, Some(1), None));
        assert_eq!(short(&[7]), (7, None, None));
    }

    #[test]
    fn bounds_and_what_took_no_longer() {
        let latency = Latency::of(0, vec![1, 0, 2, 3]);
        let all: Vec<_> = latency.cumulative().collect();
        assert_eq!(all, [(1, 1), (2, 1), (4, 3)]);
        assert_eq!(latency.last_bound(), 4);
        let kernels = Latency::of(0, vec![0; 26]);
        assert_eq!(kernels.last_bound(), 1 << 24);
    }

    #[test]
    fn a_node_that_was_made_anew_counts_from_nothing() {
        let before = Latency::of(9000, vec![1, 2, 3]);
        let now = Latency::of(12_000, vec![1, 3, 4]);
        assert_eq!(now.since(&before), Latency::of(3000, vec![0, 1, 1]));
        for other in [
            Latency::of(12_000, vec![0, 9, 9]),
            Latency::of(8000, vec![1, 3, 4]),
            Latency::of(12_000, vec![1, 3, 4, 0]),
        ] {
            assert_eq!(other.since(&before), other);
        }
    }

    proptest! {
        #[test]
        fn a_quantile_is_that_of_the_sorted_times(times in proptest::collection::vec(1u64..5000, 1..300)) {
            let mut buckets = vec![0; 12];
            for time in &times {
                let bucket = time.next_power_of_two().ilog2() as usize;
                buckets[bucket.min(11)] += 1;
            }
            let mut sorted = times;
            sorted.sort_unstable();
            let latency = Latency::of(0, buckets);
            for (percent, shown) in [(50, latency.typical_us), (99, latency.p99_us)] {
                let time = sorted[(sorted.len() * percent).div_ceil(100) - 1];
                let bound = time.next_power_of_two();
                prop_assert_eq!(shown, (bound <= 1024).then_some(bound));
            }
        }

        #[test]
        fn no_numbers_overflow(sum: u64, buckets in proptest::collection::vec(any::<u64>(), 0..65)) {
            let latency = Latency::of(sum, buckets);
            let all: Vec<_> = latency.cumulative().collect();
            prop_assert!(all.is_sorted());
            prop_assert!(all.last().is_none_or(|(_, n)| *n <= latency.count));
            prop_assert!(latency.typical_us.is_none_or(|t| latency.p99_us.is_none_or(|p| t <= p)));
        }
    }
}
