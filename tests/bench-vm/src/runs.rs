//! Reads what a run left: fio's JSON and the counts around it.
//!
//! Owns what "instructions per I/O" are: the guest's time, which is instructions, less what its CPU was idle. Called by
//! main after the VM has ended; runs nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::counters::Counters;
use crate::matrix::{Line, Mode, Setup};

/// One run of a cell, or the median of each value over its runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Run {
    pub ios: f64,
    pub iops: f64,
    pub mbps: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub kinstr_per_io: Option<f64>,
    pub switches_per_io: f64,
    pub softirqs_per_io: f64,
    pub segments_per_io: f64,
    /// of the disks below the device, where there are any
    pub merged_pct: Option<f64>,
    pub idle_pct: f64,
}

/// Where run.sh leaves it.
pub fn dir(logs: &Path, setup: Setup, line: Line, round: usize) -> PathBuf {
    logs.join(setup.id())
        .join(format!("c{}", line.connections))
        .join(line.job)
        .join(round.to_string())
}

pub fn read(dir: &Path, mode: Mode) -> Result<Run> {
    if let Ok(why) = fs::read_to_string(dir.join("why")) {
        bail!("{}", why.trim());
    }
    let text = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))
    };
    let count = |when: &str| -> Result<Counters> {
        let name = format!("{when}.txt");
        Counters::parse(&text(&name)?).with_context(|| name)
    };
    let spent = count("postrun")?.since(&count("prerun")?);
    let said = text("fio.json")?;
    // a fio that has something to complain of writes that first
    let json = serde_json::from_str(&said[said.find('{').unwrap_or(0)..]);
    from(&json.context("fio's output is no JSON")?, &spent, mode)
}

fn from(json: &Value, spent: &Counters, mode: Mode) -> Result<Run> {
    let group = &json["jobs"][0];
    if group["error"].as_i64() != Some(0) {
        bail!("fio reports error {}", group["error"]);
    }
    let all = &group["mixed"];
    let number = |value: &Value, what: &str| {
        let positive = value.as_f64().filter(|number| *number > 0.0);
        positive.with_context(|| format!("fio reports no {what}"))
    };
    let ios = number(&all["total_ios"], "requests")?;
    let ns = number(&all["runtime"], "run time")? * 1e6;
    let percentile = |name: &str| {
        all["lat_ns"]["percentile"][name]
            .as_f64()
            .map(|ns| ns / 1e3)
    };
    let requests = spent.disk_requests + spent.disk_merges;
    Ok(Run {
        ios,
        iops: ios / ns * 1e9,
        mbps: number(&all["io_bytes"], "bytes")? / ns * 1e3,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        kinstr_per_io: (mode == Mode::Icount).then(|| (ns - spent.idle_ns).max(0.0) / ios / 1e3),
        switches_per_io: spent.context_switches / ios,
        softirqs_per_io: spent.softirqs / ios,
        segments_per_io: spent.segments / ios,
        merged_pct: (requests > 0.0).then(|| spent.disk_merges / requests * 100.0),
        idle_pct: spent.idle_ns / ns * 100.0,
    })
}

/// The median of each value, and how far apart the runs were: in IOPS, from the slowest to the fastest, in per cent.
pub fn median(runs: &[Run]) -> Option<(Run, Option<f64>)> {
    let of =
        |value: fn(&Run) -> f64| dst_bench_export::stats::median(runs.iter().map(value).collect());
    let some = |value: fn(&Run) -> Option<f64>| {
        dst_bench_export::stats::median(runs.iter().filter_map(value).collect())
    };
    let iops = of(|run| run.iops)?;
    let low = runs.iter().map(|run| run.iops).fold(f64::MAX, f64::min);
    let high = runs.iter().map(|run| run.iops).fold(0.0, f64::max);
    let median = Run {
        ios: of(|run| run.ios)?,
        iops,
        mbps: of(|run| run.mbps)?,
        p50_us: some(|run| run.p50_us),
        p99_us: some(|run| run.p99_us),
        kinstr_per_io: some(|run| run.kinstr_per_io),
        switches_per_io: of(|run| run.switches_per_io)?,
        softirqs_per_io: of(|run| run.softirqs_per_io)?,
        segments_per_io: of(|run| run.segments_per_io)?,
        merged_pct: some(|run| run.merged_pct),
        idle_pct: of(|run| run.idle_pct)?,
    };
    Some((
        median,
        (runs.len() > 1).then(|| (high - low) / iops * 100.0),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fio(ios: u64, error: i32) -> Value {
        json!({"jobs": [{"error": error, "mixed": {"total_ios": ios, "io_bytes": ios * 4096, "runtime": 100,
            "lat_ns": {"percentile": {"50.000000": 3000, "99.000000": 9000}}}}]})
    }

    #[test]
    fn time_less_idleness_is_work() {
        let spent = Counters {
            context_switches: 500.0,
            idle_ns: 20e6,
            disk_requests: 300.0,
            disk_merges: 100.0,
            ..Counters::default()
        };
        let run = from(&fio(1000, 0), &spent, Mode::Icount).expect("a run");
        assert_eq!((run.iops, run.kinstr_per_io), (10000.0, Some(80.0)));
        assert_eq!((run.switches_per_io, run.idle_pct), (0.5, 20.0));
        assert_eq!((run.merged_pct, run.p99_us), (Some(25.0), Some(9.0)));
        let run = from(&fio(1000, 0), &spent, Mode::Plain).expect("a run");
        assert_eq!(run.kinstr_per_io, None);
    }

    #[test]
    fn a_run_that_did_nothing_or_failed_is_no_result() {
        let none = Counters::default();
        for (json, word) in [
            (fio(0, 0), "requests"),
            (fio(9, 5), "error 5"),
            (json!({}), "error"),
        ] {
            let error = from(&json, &none, Mode::Plain).expect_err("no result");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn spread_needs_two_runs() {
        let run = |iops| Run {
            iops,
            ..Run::default()
        };
        assert_eq!(median(&[run(5.0)]), Some((run(5.0), None)));
        let three = median(&[run(12.0), run(9.0), run(10.0)]);
        assert_eq!(three, Some((run(10.0), Some(30.0))));
        assert_eq!(median(&[]), None);
    }
}
