//! `dstd table`: the dm table of each device, as `dmsetup create` takes it.
//! Called by cli. Needs no privilege; asks nodes for sizes that aren't given. Local disks stand as paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::task::JoinSet;

use super::args::{TopologyArgs, check_device};
use super::{Exit, Stop, print, system};
use crate::kernel::{Access, Connector, local_device};
use crate::table::{Facts, LocalFacts, Missing, NodeFacts, RenderError, nodes_of, render};
use crate::topology::{Item, Topology};
use crate::units::{DeviceName, NodeName, Sectors};

/// Print the device-mapper tables that a topology asks for
#[derive(Debug, Args)]
pub struct Table {
    #[command(flatten)]
    topology: TopologyArgs,
    /// Only this device, ready for `dmsetup create`
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// A node's size; such a node isn't asked
    #[arg(long, value_name = "NODE=SIZE", value_parser = pair::<NodeName>)]
    size: Vec<(NodeName, Sectors)>,
    /// A local disk's size; such a disk isn't looked at
    #[arg(long, value_name = "PATH=SIZE", value_parser = pair::<PathBuf>)]
    device_size: Vec<(PathBuf, Sectors)>,
    /// A file with one NODE=SIZE or PATH=SIZE a line
    #[arg(long, value_name = "FILE")]
    sizes: Option<PathBuf>,
}

fn pair<T: std::str::FromStr>(text: &str) -> Result<(T, Sectors), String>
where
    T::Err: std::fmt::Display,
{
    let (name, size) = text
        .rsplit_once('=')
        .ok_or("write NAME=SIZE, such as alpha=1GiB")?;
    let name = name.trim().parse().map_err(|e: T::Err| e.to_string())?;
    let size = size
        .trim()
        .parse()
        .map_err(|e: crate::units::SizeError| e.to_string())?;
    Ok((name, size))
}

impl Table {
    pub fn run(self) -> Result<Exit, Stop> {
        let topology = self.topology.load()?;
        if let Some(name) = &self.device {
            check_device(&topology, name)?;
        }
        let devices: Vec<_> = match &self.device {
            Some(name) => vec![name.clone()],
            None => topology.devices.keys().cloned().collect(),
        };
        let mut facts = self.given()?;
        look_at_locals(&topology, &devices, &mut facts)?;
        ask_nodes(&topology, &devices, &mut facts)?;
        let mut text = String::new();
        for name in &devices {
            let table = render(name, &topology.devices[name].spec, &facts)
                .map_err(|error| unrenderable(&topology, name, &error))?;
            for line in table.lines {
                // As `dmsetup table` does: the name only where there are several.
                if devices.len() > 1 {
                    text += &format!("{name}: ");
                }
                text += &format!("{line}\n");
            }
        }
        print(text)?;
        Ok(Exit::Done)
    }

    /// What the command line says of sizes.
    fn given(&self) -> Result<Facts, Stop> {
        let mut nodes = self.size.clone();
        let mut locals = self.device_size.clone();
        if let Some(file) = &self.sizes {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Stop::failed(format!("{}: {error}", file.display())))?;
            for (i, line) in text.lines().enumerate() {
                let line = line.split('#').next().unwrap_or_default().trim();
                let wrong = |why| Stop::failed(format!("{}:{}: {why}", file.display(), i + 1));
                match line {
                    "" => {}
                    _ if line.starts_with('/') => locals.push(pair(line).map_err(wrong)?),
                    _ => nodes.push(pair(line).map_err(wrong)?),
                }
            }
        }
        Ok(Facts {
            nodes: nodes
                .into_iter()
                .map(|(n, size)| (n, assumed(size)))
                .collect(),
            locals: locals
                .into_iter()
                .map(|(path, size)| (path, local(size, Access::ReadWrite)))
                .collect(),
        })
    }
}

/// A node that isn't asked is taken as one that fits.
fn assumed(size: Sectors) -> NodeFacts {
    NodeFacts {
        size: size.bytes().unwrap_or_default(),
        min_block: 1,
        read_only: false,
    }
}

fn local(size: Sectors, access: Access) -> LocalFacts {
    LocalFacts {
        size,
        read_only: access == Access::ReadOnly,
        number: None,
    }
}

fn look_at_locals(
    topology: &Topology,
    devices: &[DeviceName],
    facts: &mut Facts,
) -> Result<(), Stop> {
    for name in devices {
        for item in &topology.devices[name].spec.table {
            if let Item::Linear(linear) = item
                && linear.length.is_none()
                && !facts.locals.contains_key(&linear.device)
            {
                let found = local_device(&linear.device)?;
                facts
                    .locals
                    .insert(linear.device.clone(), local(found.size, found.access));
            }
        }
    }
    Ok(())
}

/// Asks, all at once, the nodes whose size isn't given.
fn ask_nodes(topology: &Topology, devices: &[DeviceName], facts: &mut Facts) -> Result<(), Stop> {
    let used: BTreeSet<_> = devices
        .iter()
        .flat_map(|d| nodes_of(&topology.devices[d].spec))
        .collect();
    let unknown: Vec<_> = used
        .into_iter()
        .filter(|n| !facts.nodes.contains_key(n))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let connector = system::connector();
    let answers = system::block_on(async {
        let mut running = JoinSet::new();
        for node in unknown {
            let connector = Arc::clone(&connector);
            let uri = topology.nodes[&node].spec.uri.clone();
            running.spawn(async move { (node, connector.probe(&uri).await) });
        }
        running.join_all().await
    })?;
    let answers: BTreeMap<_, _> = answers.into_iter().collect();
    for (node, answer) in answers {
        let found = answer.map_err(|error| {
            Stop::failed(format!("node {node}: {error}\nGive its size with --size {node}=SIZE to do without asking it."))
        })?;
        facts.nodes.insert(node, NodeFacts::from(&found.negotiated));
    }
    Ok(())
}

fn unrenderable(topology: &Topology, name: &DeviceName, error: &RenderError) -> Stop {
    let place = topology.item_place(name, error.item());
    let place = place.map_or_else(String::new, |place| format!("{place}: "));
    let advice = match error {
        RenderError::Missing {
            what: Missing::Node(node),
            ..
        } => format!("; give it with --size {node}=SIZE"),
        RenderError::Missing {
            what: Missing::Local(path),
            ..
        } => {
            format!("; give it with --device-size {}=SIZE", path.display())
        }
        RenderError::Refused { .. } => String::new(),
    };
    Stop::new(Exit::Refused, format!("{place}{error}{advice}"))
}
