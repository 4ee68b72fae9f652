//! `dstd fail-pending`: ends everything that waits for a node.
//! Called by cli. The node and its links stay, but for links that have requests in flight: the kernel cuts them.

use clap::Args;

use super::{Exit, Stop, print, system};
use crate::kernel::Kernel;
use crate::topology::nearest;
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
        let nodes = kernel.nodes()?;
        let Some(node) = nodes.iter().find(|n| n.name == self.node) else {
            let hint = nearest(self.node.as_str(), nodes.iter().map(|n| n.name.as_str()))
                .map_or_else(
                    || "`dstd status` lists them".to_owned(),
                    |n| format!("did you mean `{n}`?"),
                );
            return Err(Stop::failed(format!(
                "the kernel has no node `{}`: {hint}",
                self.node
            )));
        };
        kernel.fail_pending(&self.node)?;
        print(format!(
            "Failed what waited on {}: {} queued, {} in flight.\n",
            node.name, node.queued, node.in_flight
        ))?;
        Ok(Exit::Done)
    }
}
