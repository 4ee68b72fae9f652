//! Watches a running VM: shows each test as it ends, restarts a VM that died or hangs (the disks keep their
//! state, so the agent goes on with the next test) and counts the results. Called by main.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::last_words;
use crate::protocol::Message;
use crate::qemu::{Accel, Machine};

/// From power-on to the agent's first line; some 40 s under TCG on an idle host.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// What a test may take beyond its own limit: diagnosis, cleanup, module reload.
const GRACE: Duration = Duration::from_secs(180);
/// Where the host is so busy that a guest starves, the next boot may have more luck.
const BOOT_TRIES: u32 = 4;
const DEMO_LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// What came of the tests of one or more guests.
#[derive(Debug, Default)]
pub struct Outcome {
    tally: Tally,
    /// with where their logs are
    failures: Vec<(String, PathBuf)>,
}

/// How one life of the VM ended.
enum End {
    Done { status: u8 },
    DiedInBoot,
    DiedInTest(String),
}

/// One guest's tests; `lane` marks what isn't a verdict where several guests speak at a time.
pub fn tests(machine: &Machine, out: &Path, limit: Duration, lane: &str) -> Outcome {
    announce(machine, "tests");
    let mut report = Report {
        lane: lane.to_owned(),
        ..Report::default()
    };
    let end = run_to_end(machine, Instant::now() + limit, &mut |message| {
        report.take(message, out)
    });
    if let Err(error) = &end {
        report.outcome.add_broken(error);
    }
    report.outcome
}

impl Outcome {
    pub fn add(&mut self, other: Outcome) {
        self.tally.passed += other.tally.passed;
        self.tally.failed += other.tally.failed;
        self.tally.skipped += other.tally.skipped;
        self.failures.extend(other.failures);
    }

    /// The guest itself couldn't be made, or looked after to its end.
    pub fn add_broken(&mut self, error: &anyhow::Error) {
        println!("FAIL vm: {error:#}");
        self.tally.failed += 1;
    }

    /// Ends with the counts, which tests/run adds up.
    pub fn say(&self) -> ExitCode {
        for (name, out) in &self.failures {
            println!("failed: {name}  (log: {}/logs/{name}.log)", out.display());
        }
        let Tally {
            passed,
            failed,
            skipped,
        } = self.tally;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 && passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

pub fn demo(machine: &Machine, _out: &Path) -> Result<ExitCode> {
    announce(machine, "the demo");
    let status = run_to_end(
        machine,
        Instant::now() + DEMO_LIMIT,
        &mut |message| match message {
            Message::Output(line) => println!("{line}"),
            Message::Fail { test, .. } => println!("FAIL {test}"),
            Message::Why(text) => println!("    {text}"),
            _ => {}
        },
    )?;
    Ok(ExitCode::from(status))
}

/// Every run is said; those that fail make the whole fail. What they measured is for the caller of dst-vm to read.
pub fn bench(machine: &Machine, out: &Path, limit: Duration) -> Result<ExitCode> {
    announce(machine, "the bench");
    let mut report = Report::default();
    let status = run_to_end(machine, Instant::now() + limit, &mut |message| {
        report.take(message, out)
    })?;
    let Tally { passed, failed, .. } = report.outcome.tally;
    println!("{passed} runs, {failed} failed");
    Ok(match (status, passed, failed) {
        (0, 1.., 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn announce(machine: &Machine, what: &str) {
    let accel = match machine.accel {
        Accel::Kvm => "KVM",
        Accel::Tcg => "TCG",
        Accel::Counting => "TCG, counting instructions,",
    };
    println!(
        "booting Linux {} under {accel} for {what}; console: {}",
        machine.guest.release,
        machine.console().display()
    );
}

/// What the user sees of the tests, and the count.
#[derive(Default)]
struct Report {
    lane: String,
    outcome: Outcome,
}

impl Report {
    fn take(&mut self, message: &Message, out: &Path) {
        let Outcome { tally, failures } = &mut self.outcome;
        match message {
            Message::Ok { test, seconds } => {
                tally.passed += 1;
                println!("ok {test} {seconds}s");
            }
            Message::Fail { test, seconds } => {
                tally.failed += 1;
                failures.push((test.clone(), out.to_path_buf()));
                println!(
                    "FAIL {test} {seconds}s  ({}/logs/{test}.log)",
                    out.display()
                );
            }
            Message::Skip { test, why } => {
                tally.skipped += 1;
                println!("skip {test}: {why}");
            }
            Message::Why(text) => println!("    {}{text}", self.lane),
            Message::Output(line) if !line.is_empty() => println!("  | {}{line}", self.lane),
            _ => {}
        }
    }
}

/// Boots and reboots until the agent says that all is done; returns its status.
fn run_to_end(machine: &Machine, deadline: Instant, show: &mut dyn FnMut(&Message)) -> Result<u8> {
    let mut boots_failed = 0;
    loop {
        match one_life(machine, deadline, show)? {
            End::Done { status } => return Ok(status),
            End::DiedInBoot => {
                boots_failed += 1;
                if boots_failed == BOOT_TRIES {
                    bail!(
                        "{BOOT_TRIES} boots died early; see {}",
                        machine.console().display()
                    );
                }
                eprintln!("dst-vm: the boot died early, trying again ({boots_failed})");
            }
            End::DiedInTest(test) => {
                boots_failed = 0;
                eprintln!(
                    "dst-vm: the VM died or hung in {test}; booting again for the tests after it"
                );
            }
        }
    }
}

/// One QEMU process, from start to power-off, death or a missed deadline.
fn one_life(
    machine: &Machine,
    vm_deadline: Instant,
    show: &mut dyn FnMut(&Message),
) -> Result<End> {
    let mut child = machine.boot()?;
    let lines = read_lines(&mut child)?;
    let mut running: Option<String> = None;
    let mut booted = false;
    let slowness = machine.slowness();
    let mut deadline = Instant::now() + BOOT_LIMIT * slowness;
    let end = loop {
        let left = deadline
            .min(vm_deadline)
            .saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(message) => {
                deadline = Instant::now() + allowance(&message, slowness);
                match &message {
                    Message::Boot(_) => {
                        if booted {
                            show_last_words(machine, true);
                        }
                        booted = true;
                    }
                    Message::Start { test, .. } => running = Some(test.clone()),
                    Message::Done { status } => break Some(End::Done { status: *status }),
                    Message::Reboot => booted = false,
                    _ => {}
                }
                show(&message);
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break None,
        }
    };
    if end.is_none() {
        show_last_words(machine, false);
    }
    // already gone is as good as killed
    let _ = child.kill();
    let status = child.wait().context("waiting for QEMU")?;
    if end.is_none() {
        eprintln!("dst-vm: QEMU ended with {status}");
    }
    match end {
        Some(end) => Ok(end),
        None if Instant::now() >= vm_deadline => {
            bail!(
                "the whole VM took too long{}",
                running.map(|t| format!(", in {t}")).unwrap_or_default()
            )
        }
        None if booted => Ok(End::DiedInTest(
            running.unwrap_or_else(|| "no test".to_owned()),
        )),
        None => Ok(End::DiedInBoot),
    }
}

/// Nobody asked for this end: the reason is on the console, if anywhere.
fn show_last_words(machine: &Machine, reset: bool) {
    for line in last_words(machine.console(), reset) {
        println!("  ! {line}");
    }
}

/// How long the guest may be silent after a message; a test's limit is the slow guest's own.
fn allowance(message: &Message, slowness: u32) -> Duration {
    match message {
        Message::Start { limit, .. } => *limit + GRACE * slowness,
        Message::Reboot => BOOT_LIMIT * slowness,
        _ => GRACE * slowness,
    }
}

fn read_lines(child: &mut Child) -> Result<Receiver<Message>> {
    let stdout = child.stdout.take().context("QEMU has no standard output")?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            if send
                .send(Message::parse(&String::from_utf8_lossy(&line)))
                .is_err()
            {
                return;
            }
            line.clear();
        }
    });
    Ok(receive)
}
