//! `dstd validate`: whether a topology is right as far as files can tell.
//! Called by cli. Asks no node and no kernel; needs no privilege.

use clap::Args;

use super::args::TopologyArgs;
use super::{Exit, Stop, print};

/// Check a topology without asking any node or the kernel
#[derive(Debug, Args)]
pub struct Validate {
    #[command(flatten)]
    topology: TopologyArgs,
}

impl Validate {
    pub fn run(self) -> Result<Exit, Stop> {
        let topology = self.topology.load()?;
        let mut text = String::from("The topology is right.\n");
        for (what, names) in [
            (
                "nodes",
                topology
                    .nodes
                    .keys()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
            ),
            (
                "devices",
                topology.devices.keys().map(ToString::to_string).collect(),
            ),
        ] {
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            text += &format!("  {what}: {names}\n");
        }
        print(text)?;
        Ok(Exit::Done)
    }
}
