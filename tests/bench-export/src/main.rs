//! bench-export: `dstd export` beside nbdkit, nbd-server and qemu-nbd, on the same files, in one run.
//! Called by `make bench-export`; writes target/bench/export.json, export-rounds.json and export.svg.
//!
//! Owns the command line and the order of runs. Each round starts every server anew and runs each cell with one
//! setup after the other, in an order that turns by one from round to round, so whatever slows this host for a
//! while slows them all. A cell without a result fails the whole; a bar that isn't met is only said.

mod cpu;
mod files;
mod fio;
mod matrix;
mod plot;
mod report;
mod server;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::files::Files;
use crate::matrix::{Backing, Cell, Job, Setup, Transport};
use crate::report::{Results, Run};
use crate::server::Server;

#[derive(Parser)]
#[command(about = "Measure dstd export against nbdkit, nbd-server and qemu-nbd")]
struct Cli {
    /// Runs of each cell with each setup; results are their medians
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each run
    #[arg(long, default_value_t = 800)]
    msecs: u64,
    /// One short round: shows that everything works, measures nothing
    #[arg(long)]
    quick: bool,
    /// Only these setups
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Setup::ALL)]
    setups: Vec<Setup>,
    /// Only cells whose name contains this text, as unix/tmpfs-randread (repeat for more)
    #[arg(long)]
    cells: Vec<String>,
    /// The binary to measure
    #[arg(long, default_value = "target/release/dstd")]
    dstd: PathBuf,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    if cli.quick {
        (cli.rounds, cli.msecs) = (1, 150);
    }
    match bench(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-export: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every cell has a result.
fn bench(cli: &Cli) -> Result<bool> {
    let cells = cells(&cli.cells);
    if cells.is_empty() {
        bail!("no cell's name contains {}", cli.cells.join(" or "));
    }
    if cli.rounds == 0 {
        bail!("--rounds 0 measures nothing");
    }
    std::fs::create_dir_all(&cli.out).with_context(|| format!("{}", cli.out.display()))?;
    let files = Files::make(&cli.out)?;
    let mut results = Results::new(&cells, &cli.setups, cli.rounds);
    let begin = Instant::now();
    for round in 0..cli.rounds {
        for backing in Backing::ALL {
            files.warm(backing)?;
            for transport in Transport::ALL {
                let jobs: Vec<Cell> = cells
                    .iter()
                    .filter(|cell| (cell.backing, cell.transport) == (backing, transport))
                    .copied()
                    .collect();
                if jobs.is_empty() {
                    continue;
                }
                eprintln!(
                    "{:4} s  round {} of {}: {} over {}",
                    begin.elapsed().as_secs(),
                    round + 1,
                    cli.rounds,
                    backing.id(),
                    transport.id()
                );
                block(cli, &files, round, &jobs, &mut results);
            }
        }
    }
    report::write(&results, &cli.out)?;
    plot::write(&results, &cli.out.join("export.svg"))?;
    report::print(&results)
}

fn cells(wanted: &[String]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for backing in Backing::ALL {
        for transport in Transport::ALL {
            cells.extend(Job::ALL.map(|job| Cell {
                backing,
                transport,
                job,
            }));
        }
    }
    cells.retain(|cell| {
        let name = cell.to_string();
        wanted.is_empty() || wanted.iter().any(|text| name.contains(text))
    });
    cells
}

/// All cells of one backing and transport: each server is started once, and idles while another is measured.
fn block(cli: &Cli, files: &Files, round: usize, cells: &[Cell], results: &mut Results) {
    let Some(Cell {
        backing, transport, ..
    }) = cells.first().copied()
    else {
        return;
    };
    let mut servers = Vec::new();
    for setup in &cli.setups {
        let dir = files.dir().join(setup.id());
        let file = files.path(backing, *setup);
        match Server::start(*setup, transport, file, &dir, &cli.dstd) {
            Ok(server) => servers.push((*setup, server)),
            Err(error) => results.missing(format!(
                "{setup} {}/{}-*: {error:#}",
                transport.id(),
                backing.id()
            )),
        }
    }
    let time = Duration::from_millis(cli.msecs);
    for cell in cells {
        for n in 0..servers.len() {
            let at = (n + round) % servers.len();
            let (setup, server) = &mut servers[at];
            match measure(server, cell.job, time, files.dir()) {
                Ok(run) => results.add(*cell, *setup, run),
                Err(error) => results.missing(format!("{setup} {cell}: {error:#}")),
            }
        }
        servers.retain_mut(|(setup, server)| match server.ended() {
            Some(how) => {
                results.missing(format!("{setup} {cell} and what follows it: {how}"));
                false
            }
            None => true,
        });
    }
}

fn measure(server: &Server, job: Job, time: Duration, dir: &Path) -> Result<Run> {
    let before = server.cpu_seconds()?;
    let done = fio::run(job, &server.uri, time, dir)?;
    let cpu = server.cpu_seconds()? - before;
    Ok(Run {
        iops: done.ops / done.seconds,
        mbps: done.bytes / 1e6 / done.seconds,
        p50_us: done.p50_us,
        p99_us: done.p99_us,
        server_cpu_s_per_mop: cpu / (done.ops / 1e6),
        server_cpu_s_per_gb: cpu / (done.bytes / 1e9),
    })
}
