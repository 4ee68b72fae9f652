//! The command line: one file per subcommand, this one only dispatches.
//! Called by main.rs. Never decides what should happen to a device: `plan` does.

use std::process::ExitCode;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
