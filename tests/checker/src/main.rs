//! dst-checker: issues numbered writes to overlapping ranges of a device, reads them back meanwhile, and proves that no
//! read ever goes back in time: for each sector, that all reads and writes have an order. Prints one line of JSON.
//!
//! Status 0: an order exists; 1: none does (`violation` in the JSON shows why); 2: it could not run. Owns the device's
//! hot sectors while it runs; needs no fence to be told, but knows more with --fenced-file. Run by the guest tests.

mod ledger;
mod load;
mod medium;
mod register;
mod sector;

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::ledger::Layout;
use crate::load::{Load, Plan};
use crate::medium::Device;
use crate::register::Time;
use crate::sector::SECTOR;

/// Between two looks at the clock and the files.
const POLL: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(
    name = "dst-checker",
    about = "Prove that no read of a device goes back in time"
)]
struct Args {
    /// Its hot sectors are overwritten
    #[arg(long, required_unless_present = "now")]
    device: Option<PathBuf>,
    /// Number of hot sectors
    #[arg(long, default_value_t = 512)]
    hot: u64,
    /// Spread them over the device in so many pieces
    #[arg(long, default_value_t = 1)]
    regions: u64,
    /// Leave everything behind so many sectors alone
    #[arg(long, default_value_t = u64::MAX)]
    within: u64,
    #[arg(long, default_value_t = 16)]
    threads: usize,
    /// Unit of all offsets and lengths, in sectors
    #[arg(long, default_value_t = 1)]
    block: u64,
    /// The longest operation, in sectors
    #[arg(long, default_value_t = 64)]
    longest: u64,
    /// Zeroings and flushes, of a hundred operations
    #[arg(long, default_value_t = 4)]
    zeroings: u8,
    #[arg(long, default_value_t = 2)]
    flushes: u8,
    /// Let overlapping writes be under way at the same time. Reads during two of them are then checked less strictly
    #[arg(long)]
    contend: bool,
    /// Default: from the clock
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long)]
    seconds: Option<u64>,
    #[arg(long, default_value_t = u64::MAX)]
    ops: u64,
    /// End when this file exists
    #[arg(long)]
    stop_file: Option<PathBuf>,
    /// Lines `fenced SINCE [FIRST LAST]`: writes that had failed before SINCE (`dst-checker --now`) on these sectors
    /// can't take effect any more
    #[arg(long)]
    fenced_file: Option<PathBuf>,
    /// Seconds for the last pass to read what can't be read at first
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Milliseconds that a thread rests after an error
    #[arg(long, default_value_t = 20)]
    after_error: u64,
    /// Print the time, as --fenced-file wants it, and end
    #[arg(long)]
    now: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dst-checker: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if args.now {
        println!("{}", load::now());
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.device.as_ref().context("which device?")?;
    let device = Device::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = device.size().context("asking the device's size")? / SECTOR as u64;
    let layout = layout(args, size.min(args.within))?;
    let seed = args.seed.unwrap_or_else(load::now);
    let load = Load::new(plan(args, seed), layout, &device);
    let started = load::now();
    load.fill()
        .context("writing the hot sectors for the first time")?;
    eprintln!("dst-checker: running, seed {seed}");
    let outcome = check(&load, args);
    println!("{}", load.ledger().report(seed, started));
    outcome?;
    Ok(ExitCode::from(u8::from(load.ledger().failed())))
}

fn plan(args: &Args, seed: u64) -> Plan {
    Plan {
        seed,
        threads: args.threads,
        longest: args.longest,
        block: args.block,
        zeroings: args.zeroings,
        flushes: args.flushes,
        contend: args.contend,
        ops: args.ops,
        after_error: Duration::from_millis(args.after_error),
    }
}

/// Regions begin and end at whole blocks.
fn layout(args: &Args, size: u64) -> Result<Layout> {
    ensure!(
        args.block > 0 && args.regions > 0,
        "--block and --regions begin at 1"
    );
    ensure!(args.longest >= args.block, "--longest is below --block");
    ensure!(
        args.zeroings.saturating_add(args.flushes) <= 50,
        "--zeroings and --flushes leave too few writes"
    );
    let length = args.hot / args.regions / args.block * args.block;
    let stride = match args.regions {
        1 => 0,
        several => size.saturating_sub(length) / (several - 1) / args.block * args.block,
    };
    ensure!(
        length > 0,
        "{} hot sectors in {} regions leave none for each",
        args.hot,
        args.regions
    );
    ensure!(
        length <= size && (stride >= length || args.regions == 1),
        "the device's {size} sectors are too few"
    );
    Ok(Layout {
        regions: args.regions,
        length,
        stride,
    })
}

/// The traffic from begin to end. An error: the last pass could not read.
fn check(load: &Load, args: &Args) -> Result<()> {
    let deadline = args
        .seconds
        .map(|seconds| load::now() + seconds * 1_000_000_000);
    let mut fences = Fences::new(args.fenced_file.as_deref());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..load.plan.threads as u64)
            .map(|number| scope.spawn(move || load.work(number)))
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            let stop = deadline.is_some_and(|at| load::now() > at)
                || args.stop_file.as_ref().is_some_and(|file| file.exists());
            load.stop.fetch_or(stop, Ordering::Relaxed);
            fences.look(load)?;
            std::thread::sleep(POLL);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    fences.look(load)?;
    load.finish(Duration::from_secs(args.patience))
        .context("reading all hot sectors at the end")
}

/// Follows --fenced-file.
struct Fences<'a> {
    file: Option<&'a Path>,
    seen: usize,
}

impl<'a> Fences<'a> {
    fn new(file: Option<&'a Path>) -> Self {
        Self { file, seen: 0 }
    }

    /// Takes the whole lines that are new.
    fn look(&mut self, load: &Load) -> Result<()> {
        let Some(text) = self.file.and_then(|file| fs::read_to_string(file).ok()) else {
            return Ok(());
        };
        let new = text.get(self.seen..).unwrap_or_default();
        let whole = new.rfind('\n').map_or(0, |end| end + 1);
        self.seen += whole;
        for line in new[..whole].lines() {
            let (since, sectors) =
                fence(line).with_context(|| format!("the line `{line}` of --fenced-file"))?;
            let mut ledger = load.ledger();
            let now = load::now();
            ledger.fenced(since, &sectors, now);
        }
        Ok(())
    }
}

fn fence(line: &str) -> Result<(Time, RangeInclusive<u64>)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["fenced", since] => Ok((since.parse()?, 0..=u64::MAX)),
        ["fenced", since, first, last] => Ok((since.parse()?, first.parse()?..=last.parse()?)),
        _ => anyhow::bail!("want `fenced SINCE [FIRST LAST]`"),
    }
}

#[cfg(test)]
mod tests;
