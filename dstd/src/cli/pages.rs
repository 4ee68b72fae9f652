//! `dstd schema`, `completions` and `man`: pages made from the same source as the commands.
//! Called by cli. They only print.

use clap::Args;
use clap_complete::Shell;

use super::{Exit, Stop, command, names, print, status_schema};
use crate::topology::json_schema;

/// Print the JSON schema of topology files, for editors
#[derive(Debug, Args)]
pub struct Schema {
    /// That of `status --json` instead
    #[arg(long)]
    status: bool,
}

impl Schema {
    pub fn run(self) -> Result<Exit, Stop> {
        print(match self.status {
            true => status_schema(),
            false => json_schema(),
        })?;
        Ok(Exit::Done)
    }
}

/// Print completions for a shell
#[derive(Debug, Args)]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<Exit, Stop> {
        let mut text = Vec::new();
        let mut command = names::visible(&command());
        clap_complete::generate(self.shell, &mut command, "dstd", &mut text);
        let text = String::from_utf8_lossy(&text);
        match self.shell {
            Shell::Bash => print(names::bash(&command, &text))?,
            _ => print(text)?,
        }
        Ok(Exit::Done)
    }
}

/// Write the man pages into a directory
#[derive(Debug, Args)]
pub struct Man {
    #[arg(value_name = "DIRECTORY")]
    directory: std::path::PathBuf,
}

impl Man {
    pub fn run(self) -> Result<Exit, Stop> {
        clap_mangen::generate_to(command(), &self.directory)
            .map_err(|error| Stop::failed(format!("{}: {error}", self.directory.display())))?;
        Ok(Exit::Done)
    }
}
