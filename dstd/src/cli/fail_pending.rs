//! `dstd fail-pending`: ends everything that waits for a node.
//! Called by cli. The node and its links stay, but for links that have requests in flight: the kernel cuts them.

use clap::Args;

use super::{Exit, Stop, known_node, print, system};
use crate::kernel::Kernel;
use crate::units::NodeName;

/// Fail at once all I/O that is queued or in flight on a node
#[derive(Debug, Args)]
pub struct FailPending {
    #[arg(value_name = "NODE")]
    node: NodeName,
}

impl FailPending {
    pub fn run(self) -> Result<Exit, Stop> {
        let kernel = system::kernel()?;
        let node = known_node(&kernel.nodes()?, &self.node)?;
        kernel.fail_pending(&self.node)?;
        print(format!(
            "Failed what waited on {}: {} queued, {} at a fence, {} in flight.\n",
            node.name, node.queued, node.barred, node.in_flight
        ))?;
        Ok(Exit::Done)
    }
}
