//! `dstd run`: the daemon.
//! Called by cli. Sets up logs and memory, then hands over to reconcile.

use std::io::IsTerminal;

use clap::Args;
use nix::sys::stat::fstat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::TopologyArgs;
use super::protect::protect;
use super::{Exit, Stop, system};
use crate::reconcile::{RunError, run};

/// Keep the kernel as the topology says, until told to end
///
/// Reads the topology again on SIGHUP and when a file changes. SIGTERM ends it and leaves devices and links as they are.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    topology: TopologyArgs,
    /// What to log: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info", env = "DSTD_LOG")]
    log: String,
}

impl Run {
    pub fn run(self) -> Result<Exit, Stop> {
        start_logs(&self.log)?;
        protect();
        let kernel = system::kernel()?;
        let ended = system::block_on(run(kernel, system::connector(), self.topology.paths()))?;
        match ended {
            Ok(()) => Ok(Exit::Done),
            Err(RunError::Topology(errors)) => Err(errors.into()),
            Err(error) => Err(Stop::failed(error)),
        }
    }
}

/// The variable alone proves nothing: whoever a service starts inherits it, also with standard error elsewhere.
fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// To the journal where standard error leads there, else to standard error.
pub(super) fn start_logs(filter: &str) -> Result<(), Stop> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Stop::new(Exit::Usage, format!("`{filter}` is no log filter: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = stderr_is_journal().then(tracing_journald::layer);
    match journal.and_then(Result::ok) {
        Some(journal) => registry.with(journal).init(),
        None => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .init(),
    }
    Ok(())
}
