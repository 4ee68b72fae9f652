//! The tables: on the terminal, and as Markdown.
//!
//! Owns how results look in text. Called by main and `page`; computes nothing.

use std::fmt::Write;

use crate::matrix::{Mode, Setup};
use crate::results::{Bar, Results, Row};

/// What a table shows of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// thousand instructions per I/O, or, where they aren't counted, thousand I/Os per second
    Speed,
    Mbps,
    Latency,
    Switches,
    Softirqs,
    Segments,
    Merged,
    Spread,
    Idle,
}

impl Value {
    pub fn title(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Value::Speed, Mode::Icount) => "thousand instructions per I/O (less is better)",
            (Value::Speed, Mode::Plain) => "thousand I/Os per second (more is better)",
            (Value::Mbps, _) => "MB/s (more is better)",
            (Value::Latency, _) => "latency in µs: median / 99th percentile",
            (Value::Switches, _) => "context switches per I/O",
            (Value::Softirqs, _) => "softirqs per I/O",
            (Value::Segments, _) => "TCP segments per I/O, both ways",
            (Value::Merged, _) => "requests merged into others below the device, per cent",
            (Value::Spread, _) => "spread of the rounds, per cent",
            (Value::Idle, _) => "share of the time that a CPU was idle, per cent",
        }
    }

    fn of(self, row: &Row) -> Option<String> {
        let short = |value: f64| match value {
            v if v >= 100.0 => format!("{v:.0}"),
            v if v >= 10.0 => format!("{v:.1}"),
            v => format!("{v:.2}"),
        };
        Some(match self {
            Value::Speed => short(row.kinstr_per_io.unwrap_or(row.iops / 1e3)),
            Value::Mbps => short(row.mbps),
            Value::Latency => format!("{:.0} / {:.0}", row.p50_us?, row.p99_us?),
            Value::Switches => short(row.switches_per_io),
            Value::Softirqs => short(row.softirqs_per_io),
            Value::Segments => short(row.segments_per_io),
            Value::Merged => short(row.merged_pct?),
            Value::Spread => short(row.spread_pct?),
            Value::Idle => short(row.idle_pct),
        })
    }
}

/// A head, and a line for each job: its name, each setup's value, and dmdst+export beside the best peer.
pub fn table(results: &Results, mode: Mode, value: Value, jobs: &[&str]) -> Vec<Vec<String>> {
    let setups = results.setups(mode);
    let ratios = matches!(value, Value::Speed | Value::Mbps);
    let mut head = vec!["job".to_owned()];
    head.extend(setups.iter().map(Setup::to_string));
    if ratios {
        head.push("dmdst+export / best peer".to_owned());
    }
    let mut table = vec![head];
    for job in jobs {
        let mut line = vec![(*job).to_owned()];
        let cell = |setup: &Setup| {
            results
                .find(mode, job, *setup)
                .and_then(|row| value.of(row))
        };
        line.extend(
            setups
                .iter()
                .map(|s| cell(s).unwrap_or_else(|| "-".to_owned())),
        );
        if ratios {
            let best = results.best_peer(mode, job);
            line.push(best.map_or("-".to_owned(), |(peer, r)| format!("{r:.2} {peer}")));
        }
        table.push(line);
    }
    table
}

pub fn text(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |n: usize| {
        table
            .iter()
            .filter_map(|l| l.get(n))
            .map(|c| c.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in table {
        for (n, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // writing to a String can't fail
            let _ = match n {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

pub fn markdown(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (n, line) in table.iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if n == 0 {
            let rules: Vec<&str> = line
                .iter()
                .enumerate()
                .map(|(n, _)| if n == 0 { "---" } else { "--:" })
                .collect();
            let _ = writeln!(text, "| {} |", rules.join(" | "));
        }
    }
    text
}

/// A job that is about MB/s.
pub fn is_large(job: &str) -> bool {
    job.contains("-128k") || job.contains("-1m")
}

/// All of a mode.
pub fn print(results: &Results, mode: Mode) {
    let jobs = results.jobs(mode);
    let large: Vec<&str> = jobs.iter().filter(|job| is_large(job)).copied().collect();
    let mut values = vec![(Value::Speed, jobs.clone())];
    if !large.is_empty() {
        values.push((Value::Mbps, large));
    }
    if mode == Mode::Plain {
        values.push((Value::Latency, jobs.clone()));
    }
    for value in [
        Value::Switches,
        Value::Softirqs,
        Value::Segments,
        Value::Merged,
        Value::Idle,
    ] {
        values.push((value, jobs.clone()));
    }
    if results
        .rows
        .iter()
        .any(|r| r.mode == mode.id() && r.spread_pct.is_some())
    {
        values.push((Value::Spread, jobs.clone()));
    }
    for (value, jobs) in values {
        println!("\n{}: {}", mode.id(), value.title(mode));
        print!("{}", text(&table(results, mode, value, &jobs)));
    }
}

/// The scale setups, which have jobs of their own.
pub fn print_scale(results: &Results, mode: Mode) {
    for (setup, job, ratio, least) in results.scale(mode) {
        let met = if ratio >= least { "" } else { ", NOT MET" };
        println!(
            "{}: {setup} {job} beside one node, as deep for each: {ratio:.2} (at least {least}{met})",
            mode.id()
        );
    }
}

pub fn bar_line(bar: &Bar) -> Vec<String> {
    let verdict = match bar.goal {
        _ if !bar.is_met() => "NOT MET",
        Some(goal) if bar.ratio < goal => "met, not the goal",
        _ => "met",
    };
    vec![
        bar.job.clone(),
        bar.what.clone(),
        format!("{:.2}", bar.ratio),
        match bar.goal {
            Some(goal) => format!("{} (goal {goal})", bar.wanted),
            None => bar.wanted.to_string(),
        },
        verdict.to_owned(),
    ]
}

pub fn print_bars(bars: &[Bar]) {
    if bars.is_empty() {
        return;
    }
    let met = bars.iter().filter(|bar| bar.is_met()).count();
    println!("\nbars met: {met} of {}; those that are not:", bars.len());
    let lines: Vec<_> = bars
        .iter()
        .filter(|bar| !bar.is_met())
        .map(bar_line)
        .collect();
    print!("{}", text(&lines));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::made;

    #[test]
    fn a_cell_without_a_result_is_a_dash() {
        let mut results = made("untar", &[(Setup::Iscsi, 50.0), (Setup::DmdstExport, 40.0)]);
        let other = made("randread-4k-qd1", &[(Setup::Iscsi, 1.0)]);
        results.rows.extend(other.rows);
        let table = table(
            &results,
            Mode::Icount,
            Value::Speed,
            &["untar", "randread-4k-qd1"],
        );
        assert_eq!(table[1], ["untar", "50.0", "40.0", "1.25 iscsi"]);
        assert_eq!(table[2], ["randread-4k-qd1", "1.00", "-", "-"]);
        let text = text(&table);
        assert!(
            text.lines()
                .all(|line| line.chars().count() == text.lines().next().map_or(0, str::len))
        );
        assert!(markdown(&table).contains("| untar | 50.0 | 40.0 | 1.25 iscsi |"));
    }
}
