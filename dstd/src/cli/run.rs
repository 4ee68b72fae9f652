//! `dstd run`: the daemon.
//! Called by cli. Sets up logs and memory, then hands over to reconcile.

use clap::Args;

use super::args::TopologyArgs;
use super::protect::protect;
use super::{Exit, Stop, logs, system};
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
        let _logs = logs::start(&self.log)?;
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
