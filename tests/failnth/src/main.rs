//! dst-failnth --at CALL --nth N -- PROGRAM...: runs a program and makes the Nth allocation inside one of its system
//! calls fail (/proc/TID/fail-nth of a kernel with fault injection). Traced, because a program that sets it
//! itself would meet it in its own execve and page faults. Says on its last line, and in --report, what became of it:
//! "injected RESULT", "survived RESULT" (the call has fewer allocations) or "never called"; ends with PROGRAM's status.
//! Run by the guest tests; x86-64 only, like the guests.

mod call;
mod trace;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::call::Call;

#[derive(Parser)]
#[command(
    name = "dst-failnth",
    about = "Let one allocation fail inside one system call of a program"
)]
struct Cli {
    /// Which call: dm:load, dm:suspend (resume, too), dm:remove, dm:status, dm:message, netlink (a request to
    /// any family but the controller), or io (read, write or sync of a block device)
    #[arg(long)]
    at: Call,
    /// Which of such calls, from 1
    #[arg(long, default_value_t = 1)]
    occurrence: u32,
    /// Which of its allocations, from 1
    #[arg(long)]
    nth: u32,
    /// Also write the outcome there
    #[arg(long)]
    report: Option<PathBuf>,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dst-failnth: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let (status, outcome) = trace::run(&cli.program, cli.at, cli.occurrence, cli.nth)?;
    eprintln!("dst-failnth: {outcome}");
    if let Some(path) = &cli.report {
        fs::write(path, format!("{outcome}\n"))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::from(status))
}
