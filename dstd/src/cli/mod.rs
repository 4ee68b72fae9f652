//! The command line: arguments, exit statuses, and one file per subcommand.
//! Called by main.rs. Never decides what should happen to a device: `plan` does.

mod apply;
mod args;
mod bar;
mod color;
mod doctor;
mod export;
mod fail_pending;
mod fence;
mod flusher;
mod logs;
mod names;
mod pages;
mod plan;
mod probe;
mod protect;
mod remove;
mod rename;
mod report;
mod run;
mod status;
mod system;
mod table;
mod validate;
mod watch;

use std::fmt;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::kernel::{KernelError, ObservedNode};
use crate::reconcile::ApplyError;
use crate::topology::{TopologyErrors, nearest};
use crate::units::NodeName;

pub use report::json_schema as status_schema;
#[cfg(test)]
pub(crate) use status::tests as status_tests;

/// How a command ended; docs/dstd.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Something couldn't be done: kernel, node or file.
    Failed = 1,
    /// `plan`: there is something to do.
    Changes = 2,
    /// A change is refused; the text names the flag that allows it, if one does.
    Refused = 3,
    /// The topology, or the node server's configuration, has errors.
    Topology = 4,
    /// The command line has errors.
    Usage = 64,
}

/// An ending with a text for standard error.
#[derive(Debug)]
pub struct Stop {
    pub exit: Exit,
    pub text: String,
}

impl Stop {
    pub fn failed(text: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, text)
    }

    pub fn new(exit: Exit, text: impl fmt::Display) -> Self {
        let text = text.to_string();
        Self { exit, text }
    }
}

impl From<TopologyErrors> for Stop {
    fn from(errors: TopologyErrors) -> Self {
        Self::new(Exit::Topology, errors)
    }
}

impl From<KernelError> for Stop {
    fn from(error: KernelError) -> Self {
        Self::failed(error)
    }
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        let exit = match error {
            ApplyError::Refused { .. } => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

/// One local block device out of many machines.
#[derive(Debug, Parser)]
#[command(name = "dstd", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Validate(validate::Validate),
    Table(table::Table),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Status(status::Status),
    Probe(probe::Probe),
    Remove(remove::Remove),
    Rename(rename::Rename),
    FailPending(fail_pending::FailPending),
    Fence(fence::Fence),
    Run(run::Run),
    Doctor(doctor::Doctor),
    Export(export::Export),
    Schema(pages::Schema),
    Completions(pages::Completions),
    #[command(hide = true)]
    Names(names::Names),
    Man(pages::Man),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let exit = match Cli::try_parse() {
        Ok(cli) => cli.command.run().unwrap_or_else(|stop| {
            eprintln!("dstd: {}", stop.text.trim_end());
            stop.exit
        }),
        Err(error) => {
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
                _ => Exit::Usage,
            }
        }
    };
    ExitCode::from(exit as u8)
}

impl Command {
    fn run(self) -> Result<Exit, Stop> {
        match self {
            Self::Validate(command) => command.run(),
            Self::Table(command) => command.run(),
            Self::Plan(command) => command.run(),
            Self::Apply(command) => command.run(),
            Self::Status(command) => command.run(),
            Self::Probe(command) => command.run(),
            Self::Remove(command) => command.run(),
            Self::Rename(command) => command.run(),
            Self::FailPending(command) => command.run(),
            Self::Fence(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Schema(command) => command.run(),
            Self::Completions(command) => command.run(),
            Self::Names(command) => command.run(),
            Self::Man(command) => command.run(),
        }
    }
}

/// The kernel's node of this name.
fn known_node(nodes: &[ObservedNode], name: &NodeName) -> Result<ObservedNode, Stop> {
    if let Some(node) = nodes.iter().find(|node| node.name == *name) {
        return Ok(node.clone());
    }
    let hint = match nearest(name.as_str(), nodes.iter().map(|n| n.name.as_str())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`dstd status` lists them".to_owned(),
    };
    Err(Stop::failed(format!(
        "the kernel has no node `{name}`: {hint}"
    )))
}

/// The whole command line, for man pages and completions.
fn command() -> clap::Command {
    Cli::command()
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
fn print(text: impl fmt::Display) -> Result<(), Stop> {
    use std::io::Write;
    match write!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Stop::failed(format!(
            "standard output can't be written: {error}"
        ))),
        _ => Ok(()),
    }
}
