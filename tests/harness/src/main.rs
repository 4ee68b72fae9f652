//! dst-vm: boots a stock Debian kernel with our module and daemon in a throwaway VM and runs guest tests,
//! the demo or a shell in it. Called by the Makefile and by developers; needs no root once the caches are
//! filled. This file owns the command line and the exit status; it never touches the host's kernel.

mod console;
mod disks;
mod host;
mod protocol;
mod qemu;
mod supervise;

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};

use crate::disks::{Bench, Disks, Mode, Which};
use crate::host::{Guest, Tree};
use crate::qemu::Machine;
use crate::supervise::Outcome;

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
        /// So many VMs at a time, each with its share of the files of cases
        #[arg(long, default_value_t = 1)]
        guests: usize,
        /// Skip, and say so, tests that would begin later than this, in seconds since 1970
        #[arg(long)]
        until: Option<u64>,
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
            guests,
            until,
            ..
        } => {
            let tests = Tests {
                filter,
                faults: *faults,
                minutes: *minutes,
                guests: *guests,
                until: *until,
            };
            tests.run(&tree, common)
        }
        Command::Demo { common } => alone(&tree, common, &Mode::Demo, supervise::demo),
        Command::Shell { common } => alone(&tree, common, &Mode::Shell, |machine, _| {
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
            alone(&tree, &common, &mode, |machine, out| {
                supervise::bench(machine, out, limit)
            })
        }
    }
}

/// The tests that were asked for.
struct Tests<'a> {
    filter: &'a [String],
    faults: bool,
    minutes: Option<u64>,
    guests: usize,
    until: Option<u64>,
}

impl Tests<'_> {
    /// Those of the usual guests, then, with the fault tests, those of the small one.
    fn run(&self, tree: &Tree, common: &Common) -> Result<ExitCode> {
        let Some(guest) = Guest::prepare(tree, &common.kernel, !common.no_module)? else {
            return Ok(ExitCode::from(SKIPPED));
        };
        let began = Instant::now();
        let mut outcome = Outcome::default();
        let usual = if self.faults {
            Which::Faults
        } else {
            Which::Quick
        };
        let hands = tree.deal(self.filter, usual.tags(), self.guests)?;
        let small = self.faults && !tree.deal(self.filter, Which::Small.tags(), 1)?.is_empty();
        if !hands.is_empty() || !small {
            self.side_by_side(tree, &guest, common, usual, &hands, &mut outcome);
        }
        if small {
            let common = Common {
                memory: SMALL_MEMORY,
                ..common.clone()
            };
            self.side_by_side(tree, &guest, &common, Which::Small, &[], &mut outcome);
        }
        println!(
            "kernel {}, {}, {:.0} s",
            common.kernel,
            guest.release,
            began.elapsed().as_secs_f32()
        );
        Ok(outcome.say())
    }

    /// A VM for each hand of topics; without hands one that has all of them.
    fn side_by_side(
        &self,
        tree: &Tree,
        guest: &Guest,
        common: &Common,
        which: Which,
        hands: &[Vec<String>],
        outcome: &mut Outcome,
    ) {
        let one = |n: usize| {
            let several = hands.len() > 1;
            let mode = Mode::Tests {
                filter: self.filter.to_owned(),
                which,
                topics: match several {
                    true => hands[n].clone(),
                    false => Vec::new(),
                },
                until: self.until,
            };
            let lane = match several {
                true => format!("[{}] ", n + 1),
                false => String::new(),
            };
            let limit = self.minutes.unwrap_or(60 * u64::from(guest.slowness()));
            let work = |machine: &Machine, out: &Path| {
                let limit = Duration::from_secs(limit * 60);
                Ok(supervise::tests(machine, out, limit, &lane))
            };
            with_machine(tree, guest.clone(), common, &mode, n, work)
        };
        thread::scope(|scope| {
            let guests: Vec<_> = (0..hands.len().max(1))
                .map(|n| scope.spawn(move || one(n)))
                .collect();
            for guest in guests {
                match guest.join() {
                    Ok(Ok(end)) => outcome.add(end),
                    Ok(Err(error)) => outcome.add_broken(&error),
                    Err(_) => outcome.add_broken(&anyhow!("the thread of a guest panicked")),
                }
            }
        });
    }
}

/// One VM for one purpose.
fn alone(
    tree: &Tree,
    common: &Common,
    mode: &Mode,
    work: impl FnOnce(&Machine, &Path) -> Result<ExitCode>,
) -> Result<ExitCode> {
    match Guest::prepare(tree, &common.kernel, !common.no_module)? {
        Some(guest) => with_machine(tree, guest, common, mode, 0, work),
        None => Ok(ExitCode::from(SKIPPED)),
    }
}

/// Makes the disks of guest `number` of those that run now, runs `work` on it and brings its logs home, whatever came out.
fn with_machine<T>(
    tree: &Tree,
    guest: Guest,
    common: &Common,
    mode: &Mode,
    number: usize,
    work: impl FnOnce(&Machine, &Path) -> Result<T>,
) -> Result<T> {
    let out = tree.output_dir(&match mode {
        Mode::Bench(bench) if bench.icount => "bench-icount".to_owned(),
        Mode::Bench(_) => "bench-plain".to_owned(),
        _ if mode.is_small() => format!("{}-small", common.kernel),
        _ if number > 0 => format!("{}-{}", common.kernel, number + 1),
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
