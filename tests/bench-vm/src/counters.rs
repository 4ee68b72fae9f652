//! What the kernel counted around a job: the two outputs of tests/vm/bench/count.sh.
//!
//! Pure parsing. Used by `runs`.

use anyhow::{Context, Result};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    pub context_switches: f64,
    pub softirqs: f64,
    /// TCP segments that went out, of everybody: each is data or an acknowledgement
    pub segments: f64,
    /// of all CPUs, whether a sleeper there waits for I/O (as whoever uses io_uring says of itself) or not
    pub idle_ns: f64,
    /// requests that the clients' disks below the device ended, and how many were merged into others; or dm-dst, which is
    /// counted around all of the job
    pub disk_requests: f64,
    pub disk_merges: f64,
}

impl Counters {
    pub fn parse(text: &str) -> Result<Counters> {
        let mut found = Counters::default();
        let mut tcp: Vec<&str> = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok());
            match fields.first().copied().unwrap_or_default() {
                "ctxt" => found.context_switches = number(1).context("ctxt")?,
                "softirq" => found.softirqs = number(1).context("softirq")?,
                ".idle_sleeptime" => found.idle_ns += number(2).context("idle_sleeptime")?,
                ".iowait_sleeptime:" => found.idle_ns += number(1).context("iowait_sleeptime")?,
                "Tcp:" if tcp.is_empty() => tcp = fields,
                "Tcp:" => {
                    let at = tcp.iter().position(|name| *name == "OutSegs");
                    found.segments = number(at.context("no OutSegs")?).context("OutSegs")?;
                }
                word @ ("dst" | "dst-before") => {
                    let sign = if word == "dst" { 1.0 } else { -1.0 };
                    let merges = number(2).context("dst")?;
                    found.disk_requests += sign * (number(1).context("dst")? - merges);
                    found.disk_merges += sign * merges;
                }
                // diskstats: reads, merged reads, …, writes, merged writes
                _ if fields.get(2).is_some_and(|name| is_client(name)) => {
                    let [reads, read_merges, writes, write_merges] =
                        [3, 4, 7, 8].map(|n| number(n).unwrap_or_default());
                    found.disk_requests += reads + writes;
                    found.disk_merges += read_merges + write_merges;
                }
                _ => {}
            }
        }
        anyhow::ensure!(found.context_switches > 0.0, "nothing was counted");
        Ok(found)
    }

    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            context_switches: self.context_switches - before.context_switches,
            softirqs: self.softirqs - before.softirqs,
            segments: self.segments - before.segments,
            idle_ns: self.idle_ns - before.idle_ns,
            disk_requests: self.disk_requests - before.disk_requests,
            disk_merges: self.disk_merges - before.disk_merges,
        }
    }
}

fn is_client(disk: &str) -> bool {
    ["nbd", "nvme", "sd"]
        .iter()
        .any(|kind| disk.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "cpu  1 2 3\nintr 99 1\nctxt 5000\nsoftirq 70 1 2\n\
        Tcp: RtoAlgorithm InSegs OutSegs\nTcp: 1 30 40\n\
        1 0 ram0 9 9 9 9 9 9 9 9\n43 0 nbd0 10 1 80 5 20 2 160 5 0\n43 32 nbd1 1 0 8 0 1 0 8 0 0\n\
        now at 12 nsecs\n  .idle_sleeptime : 7000 nsecs\n  .iowait_sleeptime: 600 nsecs\n  .idle_sleeptime : 50 nsecs\n\
        dst-before 100\t10\ndst 150\t30\n";

    #[test]
    fn finds_what_it_needs() {
        let counters = Counters::parse(TEXT).expect("a count");
        let want = Counters {
            context_switches: 5000.0,
            softirqs: 70.0,
            segments: 40.0,
            idle_ns: 7650.0,
            disk_requests: 62.0,
            disk_merges: 23.0,
        };
        assert_eq!(counters, want);
        assert_eq!(counters.since(&want), Counters::default());
        assert!(Counters::parse("").is_err());
    }
}
