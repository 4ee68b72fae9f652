//! bench-vm: DST beside everything else that puts remote disks under one device, in a VM. Called by `make bench`; writes
//! target/bench/vm.json and vm.svg (of a part: vm-part.json and vm-part.svg), and with --page docs/performance.md.
//!
//! Owns the command line and what counts as a whole result. dst-vm boots, tests/vm/bench/run.sh runs; this only plans
//! and reads. A cell without a result fails the whole; a bar that isn't met is only said.

mod counters;
mod matrix;
mod page;
mod plan;
mod plot;
mod profile;
mod report;
mod results;
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::matrix::{Line, Mode, Setup};
use crate::plan::Plan;
use crate::results::{Results, Row};

/// All setups side by side have 1.4 GiB of RAM disks, and a page cache above most of them.
const MEMORY_MIB: &str = "4096";
/// Where the host's time counts.
const PLAIN_ROUNDS: usize = 7;

#[derive(Parser)]
#[command(about = "Measure DST against nbd.ko, nvme-tcp and iSCSI in a VM")]
struct Cli {
    /// Instructions on one CPU (icount), time on two (plain), or both
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Mode::Icount, Mode::Plain])]
    mode: Vec<Mode>,
    /// Only these setups
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Setup::every())]
    setups: Vec<Setup>,
    /// Only these jobs; where none has that id, those whose id contains it
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<String>,
    /// Runs of each cell: 1 where instructions are counted, else 7
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds of each run, in the guest's time
    #[arg(long, default_value_t = 500)]
    msecs: u64,
    /// One short round: shows that everything works, measures nothing
    #[arg(long)]
    quick: bool,
    /// zero_copy of dm-dst's nodes
    #[arg(long, value_parser = ["on", "off", "auto"], default_value = "on")]
    zero_copy: String,
    /// Say where the instructions are, by a plugin of QEMU: this many functions of each cell
    #[arg(long)]
    profile: Option<usize>,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Boot nothing: read again what the last run left
    #[arg(long)]
    again: bool,
    /// Boot nothing: write this page from the vm.json that is there
    #[arg(long)]
    page: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every cell has a result.
fn bench(cli: &Cli) -> Result<bool> {
    if let Some(page) = &cli.page {
        return page::write(&Results::load(&cli.out.join("vm.json"))?, page);
    }
    fs::create_dir_all(&cli.out).with_context(|| format!("{}", cli.out.display()))?;
    let whole = is_whole(cli);
    let name = if whole { "vm" } else { "vm-part" };
    let file = cli.out.join(format!("{name}.json"));
    let mut results = match whole && file.exists() {
        true => Results::load(&file)?,
        false => Results::default(),
    };
    let mut missing = Vec::new();
    for mode in &cli.mode {
        let measured = measure(cli, *mode, &mut missing)?;
        results.replace(*mode, measured);
        results.save(&file)?;
        report::print(&results, *mode);
        report::print_scale(&results, *mode);
    }
    plot::write(&results, &cli.out.join(format!("{name}.svg")))?;
    report::print_bars(&results::bars(&results));
    for what in &missing {
        println!("MISSING {what}");
    }
    Ok(missing.is_empty())
}

/// Of all that issue 5 wants measured, and as it wants it.
fn is_whole(cli: &Cli) -> bool {
    let few = |rounds| cli.mode.contains(&Mode::Plain) && rounds < PLAIN_ROUNDS;
    let all = cli.jobs.is_empty() && cli.setups.len() == Setup::every().len();
    all && !cli.quick
        && !cli.rounds.is_some_and(few)
        && cli.zero_copy == "on"
        && cli.profile.is_none()
}

fn measure(cli: &Cli, mode: Mode, missing: &mut Vec<String>) -> Result<Results> {
    let jobs = matrix::all_jobs()?;
    let mut lines = matrix::lines(mode)?;
    let ids: Vec<String> = lines.iter().map(Line::to_string).collect();
    lines.retain(|line| cli.jobs.is_empty() || cli.jobs.iter().any(|w| is_wanted(line, w, &ids)));
    if lines.is_empty() {
        bail!("no job's id contains {}", cli.jobs.join(" or "));
    }
    let rounds = match (cli.rounds, mode) {
        (Some(0), _) => bail!("--rounds 0 measures nothing"),
        (Some(rounds), _) => rounds,
        (None, Mode::Plain) if !cli.quick => PLAIN_ROUNDS,
        (None, _) => 1,
    };
    let plan = Plan {
        mode,
        setups: &cli.setups,
        lines: &lines,
        rounds,
        jobs: &jobs,
    };
    if plan.cells().next().is_none() {
        bail!("none of these setups has such a job");
    }
    let vm = target_dir(cli)?
        .join("vm")
        .join(format!("bench-{}", mode.id()));
    if !cli.again {
        boot(cli, &plan, &vm)?;
    }
    let logs = vm.join("logs/bench");
    if let Some(most) = cli.profile.filter(|_| mode == Mode::Icount) {
        let ran: Result<Vec<(String, f64)>> = plan
            .cells_in_order()
            .map(|(setup, line, round)| {
                let dir = runs::dir(&logs, setup, line, round);
                let run = runs::read(&dir, mode)?;
                Ok((format!("{setup} {line}"), run.ios))
            })
            .collect();
        let kallsyms = logs.join("kallsyms");
        profile::report(&cli.out.join("profile"), &kallsyms, &ran?, most)?;
    }
    read(cli, &plan, &logs, missing)
}

/// By its whole id, or, where no job has that, by a part of it.
fn is_wanted(line: &Line, text: &String, ids: &[String]) -> bool {
    let id = line.to_string();
    match ids.contains(text) {
        true => id == *text,
        false => id.contains(text),
    }
}

/// Where cargo puts what it makes: this program lies in a folder of it.
fn target_dir(cli: &Cli) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this executable")?;
    let dir = exe.parent().and_then(Path::parent);
    Ok(dir.unwrap_or(&cli.out).to_path_buf())
}

/// dst-vm says what fails; what has no result is found when the results are read.
fn boot(cli: &Cli, plan: &Plan, vm: &Path) -> Result<()> {
    let tree = tree_file(cli, plan.mode);
    let what = first_line("git", &["describe", "--always", "--dirty"]);
    fs::write(&tree, what).with_context(|| format!("{}", tree.display()))?;
    let file = cli.out.join(format!("plan-{}", plan.mode.id()));
    fs::write(&file, plan.text()).with_context(|| format!("{}", file.display()))?;
    let old = vm.join("logs");
    if old.exists() {
        fs::remove_dir_all(&old).with_context(|| format!("{}", old.display()))?;
    }
    let msecs = if cli.quick { 50 } else { cli.msecs };
    let mut command = Command::new(std::env::current_exe()?.with_file_name("dst-vm"));
    command
        .args([
            "bench",
            "--memory",
            MEMORY_MIB,
            "--zero-copy",
            &cli.zero_copy,
        ])
        .args(["--msecs", &msecs.to_string()])
        .arg("--plan")
        .arg(&file);
    if plan.mode == Mode::Icount {
        command.arg("--icount");
    }
    if cli.profile.is_some() && plan.mode == Mode::Icount {
        command.arg("--profile").arg(cli.out.join("profile"));
    }
    let status = command.status().context("dst-vm can't be started")?;
    eprintln!("dst-vm ended with {status}");
    Ok(())
}

/// Says what tree was measured last in a mode: by the time that results are read it may be another.
fn tree_file(cli: &Cli, mode: Mode) -> PathBuf {
    cli.out.join(format!("tree-{}", mode.id()))
}

fn read(cli: &Cli, plan: &Plan, logs: &Path, missing: &mut Vec<String>) -> Result<Results> {
    let mut results = Results {
        machine: machine()?,
        ..Results::default()
    };
    let versions = fs::read_to_string(logs.join("versions")).context("the guest said nothing")?;
    let pairs = versions.lines().filter_map(|line| line.split_once('\t'));
    let mut versions: BTreeMap<_, _> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let tree = fs::read_to_string(tree_file(cli, plan.mode)).context("which tree was measured?")?;
    versions.insert("tree".to_owned(), tree);
    versions.insert("rounds".to_owned(), plan.rounds.to_string());
    results.versions.insert(plan.mode.id().to_owned(), versions);
    for (setup, line) in plan.cells() {
        match cell(plan, logs, setup, line) {
            Ok(row) => results.rows.push(row),
            Err(error) => missing.push(format!("{} {setup} {line}: {error:#}", plan.mode.id())),
        }
    }
    Ok(results)
}

/// Every round must have a result.
fn cell(plan: &Plan, logs: &Path, setup: Setup, line: Line) -> Result<Row> {
    let mut found = Vec::new();
    for round in 0..plan.rounds {
        let dir = runs::dir(logs, setup, line, round);
        found.push(runs::read(&dir, plan.mode)?);
    }
    let (run, spread) = runs::median(&found).context("no rounds")?;
    Ok(Row::new(setup, plan.mode, line.to_string(), run, spread))
}

/// The host, as far as it explains what the plain mode says.
fn machine() -> Result<BTreeMap<String, String>> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let count = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let launcher = first_line("scripts/qemu.sh", &[]);
    Ok(BTreeMap::from([
        ("host".to_owned(), format!("{count} × {model}")),
        ("qemu".to_owned(), first_line(&launcher, &["--version"])),
    ]))
}

fn first_line(program: &str, args: &[&str]) -> String {
    let said = Command::new(program).args(args).output();
    let said = said.map(|out| out.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    said.lines().next().unwrap_or("unknown").to_owned()
}
