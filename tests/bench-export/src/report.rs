//! From runs to medians, ratios, bars, the table and export.json.
//!
//! Owns what "ratio" and "best peer" mean. Called by `main`, read by `plot`; measures nothing.
//! A ratio is the median over the rounds of export's value by the peer's in the same round, so it compares runs
//! that were neighbours in time. The best peer is the one that export looks worst beside.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use dst_bench_export::stats::{median, save};
use serde::Serialize;

use crate::matrix::{Cell, Setup, Transport};

/// One run of a cell, or the median of each value over its runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    pub iops: f64,
    pub mbps: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub server_cpu_s_per_mop: f64,
    pub server_cpu_s_per_gb: f64,
}

impl Run {
    /// What the cell is judged by.
    pub fn speed(&self, cell: Cell) -> f64 {
        if cell.job.is_small() {
            self.iops
        } else {
            self.mbps
        }
    }
}

/// A row of export.json.
#[derive(Serialize)]
struct Row<'a> {
    setup: &'a str,
    transport: &'a str,
    job: String,
    #[serde(flatten)]
    values: Run,
}

/// A row of export-rounds.json: every run.
#[derive(Serialize)]
struct Round<'a> {
    round: usize,
    #[serde(flatten)]
    row: Row<'a>,
}

/// A peer, and export's value by its own.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub peer: Setup,
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug)]
pub struct Results {
    pub cells: Vec<Cell>,
    pub setups: Vec<Setup>,
    rounds: usize,
    runs: BTreeMap<(Cell, Setup), Vec<Run>>,
    missing: Vec<String>,
}

impl Results {
    pub fn new(cells: &[Cell], setups: &[Setup], rounds: usize) -> Results {
        Results {
            cells: cells.to_vec(),
            setups: setups.to_vec(),
            rounds,
            runs: BTreeMap::new(),
            missing: Vec::new(),
        }
    }

    pub fn add(&mut self, cell: Cell, setup: Setup, run: Run) {
        self.runs.entry((cell, setup)).or_default().push(run);
    }

    pub fn missing(&mut self, what: String) {
        self.missing.push(what);
    }

    /// The medians of a cell with a setup; none unless every round has a result.
    pub fn median(&self, cell: Cell, setup: Setup) -> Option<Run> {
        let runs = self.whole(cell, setup)?;
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
        Some(Run {
            iops: of(|run| run.iops)?,
            mbps: of(|run| run.mbps)?,
            p50_us: of(|run| run.p50_us)?,
            p99_us: of(|run| run.p99_us)?,
            server_cpu_s_per_mop: of(|run| run.server_cpu_s_per_mop)?,
            server_cpu_s_per_gb: of(|run| run.server_cpu_s_per_gb)?,
        })
    }

    fn whole(&self, cell: Cell, setup: Setup) -> Option<&[Run]> {
        let runs = self.runs.get(&(cell, setup))?;
        (runs.len() == self.rounds).then_some(runs)
    }

    /// Export's speed beside the peer's that is hardest to beat.
    pub fn speed_ratio(&self, cell: Cell) -> Option<Ratio> {
        let ratios = self.ratios(cell, |run| run.speed(cell));
        ratios.min_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }

    /// Export's CPU time per request beside the peer's that is hardest to undercut.
    pub fn cpu_ratio(&self, cell: Cell) -> Option<Ratio> {
        let ratios = self.ratios(cell, |run| run.server_cpu_s_per_mop);
        ratios.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }

    /// The same beside one peer.
    fn cpu_beside(&self, cell: Cell, peer: Setup) -> Option<f64> {
        self.ratios(cell, |run| run.server_cpu_s_per_mop)
            .find(|ratio| ratio.peer == peer)
            .map(|ratio| ratio.ratio)
    }

    fn ratios(&self, cell: Cell, value: impl Fn(&Run) -> f64) -> impl Iterator<Item = Ratio> {
        let export = self.whole(cell, Setup::Export);
        self.setups.iter().filter_map(move |peer| {
            let theirs = self.whole(cell, *peer).filter(|_| *peer != Setup::Export)?;
            let by_round: Vec<f64> = export?
                .iter()
                .zip(theirs)
                .map(|(ours, theirs)| value(ours) / value(theirs))
                .filter(|ratio| ratio.is_finite())
                .collect();
            Some(Ratio {
                peer: *peer,
                low: by_round.iter().copied().reduce(f64::min)?,
                high: by_round.iter().copied().reduce(f64::max)?,
                ratio: median(by_round)?,
            })
        })
    }
}

pub fn write(results: &Results, out: &Path) -> Result<()> {
    let row = |cell: Cell, setup: Setup, values| Row {
        setup: setup.id(),
        transport: cell.transport.id(),
        job: cell.job_id(),
        values,
    };
    let mut rows = Vec::new();
    let mut rounds = Vec::new();
    for cell in &results.cells {
        for setup in &results.setups {
            rows.extend(results.median(*cell, *setup).map(|v| row(*cell, *setup, v)));
            let runs = results.runs.get(&(*cell, *setup)).into_iter().flatten();
            rounds.extend(runs.enumerate().map(|(round, values)| Round {
                round,
                row: row(*cell, *setup, *values),
            }));
        }
    }
    save(&out.join("export.json"), &rows)?;
    save(&out.join("export-rounds.json"), &rounds)
}

/// The least that a cell's speed ratio must be.
fn speed_bar(cell: Cell) -> f64 {
    if cell.job.is_small() { 1.0 } else { 0.95 }
}

/// The most that a cell's CPU ratio may be; the kernel's share of TCP is everybody's.
fn cpu_bar(cell: Cell) -> Option<f64> {
    match cell.transport {
        _ if !cell.job.is_small() || cell.job.depth != 32 => None,
        Transport::Unix => Some(0.5),
        Transport::Tcp => Some(0.6),
    }
}

/// The table, the bars and what is missing; true if nothing is.
pub fn print(results: &Results) -> Result<bool> {
    println!(
        "4k: thousand IOPS; 128k, 1m: MB/s. Medians of {} rounds.",
        results.rounds
    );
    println!("ratio: export by the best peer, median of the rounds' ratios (lowest-highest).");
    println!(
        "cpu: the server's CPU seconds per million requests; by the thriftiest peer, by the fastest peer."
    );
    for transport in Transport::ALL {
        let cells: Vec<Cell> = results
            .cells
            .iter()
            .filter(|cell| cell.transport == transport)
            .copied()
            .collect();
        if !cells.is_empty() {
            table(results, transport, &cells);
        }
    }
    summary(results);
    for line in &results.missing {
        println!("MISSING {line}");
    }
    let whole = results.cells.iter().all(|cell| {
        results
            .setups
            .iter()
            .all(|s| results.median(*cell, *s).is_some())
    });
    if !whole {
        println!("Some cells have no result: this is no measurement.");
    }
    Ok(whole)
}

fn table(results: &Results, transport: Transport, cells: &[Cell]) {
    print!("\n{:<28}", transport.id());
    for setup in &results.setups {
        print!("{setup:>10}");
    }
    println!("  {:<28} {:<22}", "ratio", "cpu");
    for cell in cells {
        print!("{:<28}", cell.job_id());
        for setup in &results.setups {
            match results.median(*cell, *setup) {
                Some(run) if cell.job.is_small() => print!("{:>10.1}", run.iops / 1e3),
                Some(run) => print!("{:>10.0}", run.mbps),
                None => print!("{:>10}", "MISSING"),
            }
        }
        println!(
            "  {:<28} {}",
            speed_text(results, *cell),
            cpu_text(results, *cell)
        );
    }
}

fn speed_text(results: &Results, cell: Cell) -> String {
    let Some(Ratio {
        peer,
        ratio,
        low,
        high,
    }) = results.speed_ratio(cell)
    else {
        return "-".to_owned();
    };
    let met = if ratio >= speed_bar(cell) {
        ""
    } else {
        " NOT MET"
    };
    format!("{ratio:.2} ({low:.2}-{high:.2}) {peer}{met}")
}

fn cpu_text(results: &Results, cell: Cell) -> String {
    let Some(own) = results.median(cell, Setup::Export) else {
        return "-".to_owned();
    };
    let mut text = format!("{:.2}", own.server_cpu_s_per_mop);
    if let (Some(thrifty), Some(fast)) = (results.cpu_ratio(cell), results.speed_ratio(cell)) {
        let beside = results.cpu_beside(cell, fast.peer).unwrap_or(f64::NAN);
        text += &format!(
            " = {:.2} {}, {beside:.2} {}",
            thrifty.ratio, thrifty.peer, fast.peer
        );
        if cpu_bar(cell).is_some_and(|bar| thrifty.ratio > bar) {
            text += " NOT MET";
        }
    }
    text
}

fn summary(results: &Results) {
    println!();
    let mut lines: Vec<(&str, Vec<bool>)> = vec![
        ("4k speed, at least level with the best peer", Vec::new()),
        (
            "128k and 1m speed, at least 0.95 of the best peer",
            Vec::new(),
        ),
        (
            "4k depth 32 CPU over unix, at most 0.5 of the thriftiest peer",
            Vec::new(),
        ),
        (
            "4k depth 32 CPU over tcp, at most 0.6 of the thriftiest peer",
            Vec::new(),
        ),
    ];
    for cell in &results.cells {
        if let Some(speed) = results.speed_ratio(*cell) {
            let line = usize::from(!cell.job.is_small());
            lines[line].1.push(speed.ratio >= speed_bar(*cell));
        }
        if let (Some(bar), Some(cpu)) = (cpu_bar(*cell), results.cpu_ratio(*cell)) {
            let line = 2 + usize::from(cell.transport == Transport::Tcp);
            lines[line].1.push(cpu.ratio <= bar);
        }
    }
    for (bar, cells) in lines.iter().filter(|(_, cells)| !cells.is_empty()) {
        let met = cells.iter().filter(|met| **met).count();
        let word = if met == cells.len() { "met" } else { "not met" };
        println!("bar {word}: {bar} ({met} of {} cells)", cells.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Backing, Job};

    fn run(iops: f64, cpu: f64) -> Run {
        Run {
            iops,
            mbps: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            server_cpu_s_per_mop: cpu,
            server_cpu_s_per_gb: 1.0,
        }
    }

    /// The host slows down threefold in the last round; neighbours in time still compare.
    #[test]
    fn ratios_pair_runs_of_a_round() {
        let cell = Cell {
            backing: Backing::Tmpfs,
            transport: Transport::Unix,
            job: Job::ALL[2],
        };
        let setups = [Setup::Export, Setup::Nbdkit, Setup::QemuWb];
        let mut results = Results::new(&[cell], &setups, 3);
        for host in [1.0, 0.9, 0.3] {
            results.add(cell, Setup::Export, run(120.0 * host, 4.0));
            results.add(cell, Setup::Nbdkit, run(100.0 * host, 8.0));
            results.add(cell, Setup::QemuWb, run(25.0 * host, 5.0));
        }
        let best = results.speed_ratio(cell).expect("a ratio");
        assert_eq!(best.peer, Setup::Nbdkit);
        assert!((best.ratio - 1.2).abs() < 1e-9 && (best.high - best.low).abs() < 1e-9);
        let thrifty = results.cpu_ratio(cell).expect("a ratio");
        assert_eq!((thrifty.peer, thrifty.ratio), (Setup::QemuWb, 0.8));
        assert!(cpu_text(&results, cell).contains("0.80 qemu-wb, 0.50 nbdkit NOT MET"));
        assert!(print(&results).expect("it prints"));
    }

    #[test]
    fn a_cell_with_a_round_missing_has_no_result() {
        let cell = Cell {
            backing: Backing::Disk,
            transport: Transport::Tcp,
            job: Job::ALL[0],
        };
        let mut results = Results::new(&[cell], &[Setup::Export, Setup::Nbdkit], 2);
        for _ in 0..2 {
            results.add(cell, Setup::Nbdkit, run(1.0, 1.0));
        }
        results.add(cell, Setup::Export, run(1.0, 1.0));
        assert!(results.median(cell, Setup::Export).is_none());
        assert!(results.speed_ratio(cell).is_none());
        assert!(!print(&results).expect("it prints"));
    }
}
