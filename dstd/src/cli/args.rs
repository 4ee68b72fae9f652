//! Arguments that several commands share.
//! Used by the commands. Reads topology files, nothing else.

use std::path::PathBuf;

use clap::Args;

use super::Stop;
use crate::topology::{Topology, nearest};
use crate::units::{DeviceName, NodeName};

/// Where topologies lie when none is named.
const DEFAULT: &str = "/etc/dst";

#[derive(Debug, Default, Args)]
pub struct TopologyArgs {
    /// Topology files, or directories of *.yaml files; /etc/dst when none is named
    #[arg(value_name = "TOPOLOGY")]
    paths: Vec<PathBuf>,
    /// The same, as an option
    #[arg(long = "topology", short = 't', value_name = "TOPOLOGY")]
    named: Vec<PathBuf>,
}

impl TopologyArgs {
    pub fn paths(&self) -> Vec<PathBuf> {
        let paths: Vec<_> = self.paths.iter().chain(&self.named).cloned().collect();
        if paths.is_empty() {
            vec![DEFAULT.into()]
        } else {
            paths
        }
    }

    pub fn load(&self) -> Result<Topology, Stop> {
        Ok(Topology::load(&self.paths())?)
    }
}

/// The topology of /etc/dst, where there is one without errors.
pub fn default_topology() -> Option<Topology> {
    Topology::load(&[DEFAULT.into()]).ok()
}

/// Refuses a name that the topology doesn't have.
pub fn check_device(topology: &Topology, name: &DeviceName) -> Result<(), Stop> {
    let known = topology.devices.keys().map(DeviceName::as_str);
    check_name("device", name.as_str(), known)
}

/// The same for a node.
pub fn check_node(topology: &Topology, name: &NodeName) -> Result<(), Stop> {
    let known = topology.nodes.keys().map(NodeName::as_str);
    check_name("node", name.as_str(), known)
}

fn check_name<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Stop> {
    if known.clone().any(|k| k == name) {
        return Ok(());
    }
    let hint = match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`dstd validate` lists what there is".to_owned(),
    };
    Err(Stop::failed(format!(
        "the topology has no {what} `{name}`: {hint}"
    )))
}
