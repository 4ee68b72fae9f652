//! Runs a program under ptrace and arms fail-nth for the length of one system call. Called by main. The program
//! dies with us.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::call::Call;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    NeverCalled,
    /// The allocation failed, and the call gave this.
    Injected(i64),
    /// The call ended before its Nth allocation.
    Survived(i64),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::NeverCalled => f.write_str("never called"),
            Outcome::Injected(result) => write!(f, "injected {result}"),
            Outcome::Survived(result) => write!(f, "survived {result}"),
        }
    }
}

struct Tracer {
    call: Call,
    /// How many such calls are still to be let go; 0 when ours was armed.
    left: u32,
    nth: u32,
    armed: Option<Pid>,
    inside: HashSet<Pid>,
    outcome: Outcome,
}

/// The program's exit status (128 + the signal that ended it), and what became of the allocation.
pub fn run(program: &[String], call: Call, occurrence: u32, nth: u32) -> Result<(u8, Outcome)> {
    let main = start(program)?;
    let mut tracer = Tracer {
        call,
        left: occurrence,
        nth,
        armed: None,
        inside: HashSet::new(),
        outcome: Outcome::NeverCalled,
    };
    let status = tracer.watch(main)?;
    Ok((status, tracer.outcome))
}

/// A shell that stops before it becomes the program, so that it is traced from its first call on.
fn start(program: &[String]) -> Result<Pid> {
    let child = Command::new("/bin/sh")
        .arg0("sh")
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .args(program)
        .spawn()
        .context("starting the program")?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("the program's pid")?);
    match waitpid(pid, Some(WaitPidFlag::WUNTRACED))? {
        WaitStatus::Stopped(..) => {}
        other => bail!("the program did not start: {other:?}"),
    }
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK;
    ptrace::seize(pid, options).context("tracing the program")?;
    kill(pid, Signal::SIGCONT)?;
    Ok(pid)
}

impl Tracer {
    fn watch(&mut self, main: Pid) -> Result<u8> {
        let mut ended = 0;
        loop {
            let event = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(event) => event,
                Err(Errno::ECHILD) => return Ok(ended),
                Err(error) => return Err(error.into()),
            };
            match event {
                WaitStatus::Exited(pid, status) => {
                    if pid == main {
                        ended = u8::try_from(status).unwrap_or(255);
                    }
                }
                WaitStatus::Signaled(pid, signal, _) => {
                    if pid == main {
                        ended = 128u8.saturating_add(u8::try_from(signal as i32).unwrap_or(127));
                    }
                }
                WaitStatus::PtraceSyscall(pid) => {
                    self.boundary(pid)?;
                    resume(pid, None)?;
                }
                WaitStatus::PtraceEvent(pid, ..) => resume(pid, None)?,
                WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal))?,
                other => bail!("what is {other:?}?"),
            }
        }
    }

    /// A thread enters a call or leaves it.
    fn boundary(&mut self, pid: Pid) -> Result<()> {
        if self.inside.remove(&pid) {
            if self.armed == Some(pid) {
                self.armed = None;
                self.outcome = outcome(pid)?;
            }
            return Ok(());
        }
        self.inside.insert(pid);
        if self.left == 0 {
            return Ok(());
        }
        let registers = ptrace::getregs(pid).context("reading registers")?;
        if self.call.is(pid, &registers) {
            self.left -= 1;
            if self.left == 0 {
                write_nth(pid, self.nth)?;
                self.armed = Some(pid);
            }
        }
        Ok(())
    }
}

fn outcome(pid: Pid) -> Result<Outcome> {
    let path = nth_file(pid);
    let left: u32 = fs::read_to_string(&path)
        .with_context(|| format!("reading {path}"))?
        .trim()
        .parse()
        .with_context(|| format!("what {path} holds"))?;
    write_nth(pid, 0)?;
    let result = ptrace::getregs(pid)
        .context("reading registers")?
        .rax
        .cast_signed();
    Ok(if left == 0 {
        Outcome::Injected(result)
    } else {
        Outcome::Survived(result)
    })
}

fn nth_file(pid: Pid) -> String {
    format!("/proc/{pid}/task/{pid}/fail-nth")
}

fn write_nth(pid: Pid, nth: u32) -> Result<()> {
    let path = nth_file(pid);
    fs::write(&path, nth.to_string()).with_context(|| format!("writing {path}"))
}

/// A thread that was killed meanwhile is reported by its end.
fn resume(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("letting the program go on"),
    }
}
