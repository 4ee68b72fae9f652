//! dst-vm: boots a stock Debian kernel with our module and daemon in a throwaway VM and runs guest tests,
//! the demo or a shell in it. Called by the Makefile and by developers; needs no root once the caches are
//! filled. This file owns the command line and the exit status; it never touches the host's kernel.

mod console;
mod disks;
mod host;
mod protocol;
mod qemu;
mod supervise;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::disks::{Bench, Disks, Mode, Which};
use crate::host::{Guest, Tree};
use crate::qemu::Machine;

/// What kernel.sh answers when Debian can't be asked for a kernel, and what we pass on: skipped, not passed.
pub const SKIPPED: u8 = 77;
/// Of the guest of tests that are about memory, in MiB.
const SMALL_MEMORY: u32 = 256;

#[derive(Parser)]
#[command(
    name = "dst-vm",
    about = "Run DST's guest tests, demo or a shell in a throwaway VM"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the guest tests of tests/vm/cases and report each
    Run {
        #[command(flatten)]
        common: Common,
        /// Only tests whose name contains this text (repeat for more)
        #[arg(long)]
        filter: Vec<String>,
        /// Also the tests tagged "only faults", which take long, and those tagged "only small", in a guest of 256 MiB
        #[arg(long)]
        faults: bool,
        /// Only list the tests
        #[arg(long)]
        list: bool,
        /// Give up on the whole VM after this many minutes (60; on the debug kernel 360)
        #[arg(long)]
        minutes: Option<u64>,
    },
    /// Run tests/vm/demo.sh in the guest and show its output as it comes
    Demo {
        #[command(flatten)]
        common: Common,
    },
    /// Walk through a plan of the bench in the guest (tests/vm/bench/run.sh); called by bench-vm
    Bench {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        bench: Bench,
        /// Give up after this many minutes
        #[arg(long, default_value_t = 360)]
        minutes: u64,
    },
    /// Boot the guest with a root shell on this terminal (leave with `poweroff` or Ctrl-A X)
    Shell {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Clone)]
struct Common {
    /// 6.1, 6.12, sid, or debug (a 6.12 with KASAN, lockdep and more, built on first use)
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Take dstd and the test tools from target/debug instead of target/release
    #[arg(long)]
    debug: bool,
    /// Boot without dm-dst.ko (to work on the harness itself)
    #[arg(long)]
    no_module: bool,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// CPUs of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dst-vm: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    let tree = Tree::find()?;
    match command {
        Command::Run {
            list: true, filter, ..
        } => {
            tree.list_tests(filter)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run {
            common,
            filter,
            faults,
            minutes,
            ..
        } => tests(&tree, common, filter, *faults, *minutes),
        Command::Demo { common } => with_machine(&tree, common, &Mode::Demo, |machine, out| {
            supervise::demo(machine, out)
        }),
        Command::Shell { common } => with_machine(&tree, common, &Mode::Shell, |machine, _| {
            machine.interactive()
        }),
        Command::Bench {
            common,
            bench,
            minutes,
        } => {
            let limit = Duration::from_secs(minutes * 60);
            let mut common = common.clone();
            if bench.icount {
                common.cpus = 1;
            }
            let mode = Mode::Bench(bench.clone());
            with_machine(&tree, &common, &mode, |machine, out| {
                supervise::bench(machine, out, limit)
            })
        }
    }
}

/// The tests of the usual guest, then, with the fault tests, those of the small one.
fn tests(
    tree: &Tree,
    common: &Common,
    filter: &[String],
    faults: bool,
    minutes: Option<u64>,
) -> Result<ExitCode> {
    let tags = tree.tags(filter)?;
    let small = faults && tags.iter().any(|tag| tag == "small");
    let mut ends = Vec::new();
    let mut boot = |common: &Common, which: Which| -> Result<()> {
        let mode = Mode::Tests {
            filter: filter.to_owned(),
            which,
        };
        ends.push(with_machine(tree, common, &mode, |machine, out| {
            let slow = u64::from(machine.guest.slowness());
            let limit = Duration::from_secs(minutes.unwrap_or(60 * slow) * 60);
            supervise::tests(machine, out, &common.kernel, limit)
        })?);
        Ok(())
    };
    if !small || tags.iter().any(|tag| tag != "small") {
        boot(common, if faults { Which::Faults } else { Which::Quick })?;
    }
    if small {
        let common = Common {
            memory: SMALL_MEMORY,
            ..common.clone()
        };
        boot(&common, Which::Small)?;
    }
    let bad = ends.iter().find(|end| **end != ExitCode::SUCCESS);
    Ok(bad.copied().unwrap_or(ExitCode::SUCCESS))
}

/// Gets everything a guest needs, runs `work` on it and brings the guest's logs home, whatever came out.
fn with_machine(
    tree: &Tree,
    common: &Common,
    mode: &Mode,
    work: impl FnOnce(&Machine, &PathBuf) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let Some(guest) = Guest::prepare(tree, &common.kernel, !common.no_module)? else {
        return Ok(ExitCode::from(SKIPPED));
    };
    let out = tree.output_dir(&match mode {
        Mode::Bench(bench) if bench.icount => "bench-icount".to_owned(),
        Mode::Bench(_) => "bench-plain".to_owned(),
        _ if mode.is_small() => format!("{}-small", common.kernel),
        _ => common.kernel.clone(),
    });
    let _lock = host::lock_dir(&out)?;
    let disks = Disks::make(tree, &guest, &out, mode, common.debug)?;
    let mut machine = Machine::new(guest, disks, &out, common.memory, common.cpus)?;
    if let Mode::Bench(bench) = mode {
        machine.set_up(bench, &tree.bin_dir(common.debug));
    }
    let result = work(&machine, &out);
    machine
        .disks
        .bring_logs_home(&out)
        .context("bringing the guest's logs home")?;
    machine.disks.remove()?;
    if matches!(mode, Mode::Tests { .. } | Mode::Bench(_)) && !out.join("logs").is_dir() {
        bail!(
            "the guest left no logs; its console is in {}",
            out.join("console.log").display()
        );
    }
    result
}
