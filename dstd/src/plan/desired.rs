//! What should exist, in the kernel's own terms: tables and link counts, from the topology and the facts known.
//! Called by reconcile and cli before `plan`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::Observed;
use crate::table::{Facts, LocalFacts, Missing, RenderError, Table, nodes_of, render};
use crate::topology::{Topology, ZeroCopy};
use crate::units::{DeviceName, NodeName};

#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// All nodes of the topology.
    pub nodes: BTreeMap<NodeName, DesiredNode>,
    /// All devices of the topology.
    pub devices: BTreeMap<DeviceName, Result<Table, Undecided>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredNode {
    pub links: u32,
    /// None: `auto`.
    pub zero_copy: Option<bool>,
}

/// Why a device has no table to aim at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// These nodes must be asked first; the text says what is known of them.
    Waits {
        nodes: BTreeSet<NodeName>,
        reason: String,
    },
    /// The topology can't be had with the nodes as they are.
    Refused(String),
}

/// Puts topology and facts together. `locals` holds the local disks that could be looked at.
pub fn desire(
    topology: &Topology,
    observed: &Observed,
    locals: &BTreeMap<PathBuf, Result<LocalFacts, String>>,
) -> Desired {
    let facts = Facts {
        nodes: observed.node_facts(),
        locals: locals
            .iter()
            .filter_map(|(path, facts)| Some((path.clone(), *facts.as_ref().ok()?)))
            .collect(),
    };
    let nodes = topology.nodes.iter().map(|(name, node)| {
        let zero_copy = match node.spec.zero_copy {
            ZeroCopy::Auto => None,
            ZeroCopy::On => Some(true),
            ZeroCopy::Off => Some(false),
        };
        let links = node.spec.links.0;
        (name.clone(), DesiredNode { links, zero_copy })
    });
    let devices = topology.devices.keys().map(|name| {
        let table = table_of(topology, name, observed, &facts, locals);
        (name.clone(), table)
    });
    Desired {
        nodes: nodes.collect(),
        devices: devices.collect(),
    }
}

fn table_of(
    topology: &Topology,
    name: &DeviceName,
    observed: &Observed,
    facts: &Facts,
    locals: &BTreeMap<PathBuf, Result<LocalFacts, String>>,
) -> Result<Table, Undecided> {
    let spec = &topology.devices[name].spec;
    // A new device's access and block size depend on its nodes, so each is asked once before it is made.
    if observed.device(name).is_none() {
        let unasked: BTreeSet<_> = nodes_of(spec)
            .into_iter()
            .filter(|n| !facts.nodes.contains_key(n) && !observed.probes.contains_key(n))
            .collect();
        if !unasked.is_empty() {
            let reason = "its nodes are being asked for the first time".to_owned();
            return Err(Undecided::Waits {
                nodes: unasked,
                reason,
            });
        }
    }
    render(name, spec, facts).map_err(|error| {
        let place = topology.item_place(name, error.item());
        let place = place.map_or_else(String::new, |p| format!("{p}: "));
        match &error {
            RenderError::Missing {
                what: Missing::Node(node),
                ..
            } => {
                let why = match observed.probes.get(node) {
                    Some(Err(why)) => format!(" ({why})"),
                    _ => String::new(),
                };
                let reason = format!("{place}{error}{why}");
                Undecided::Waits {
                    nodes: BTreeSet::from([node.clone()]),
                    reason,
                }
            }
            RenderError::Missing {
                what: Missing::Local(path),
                ..
            } => match locals.get(path) {
                Some(Err(why)) => Undecided::Refused(format!("{place}{why}")),
                _ => Undecided::Refused(format!("{place}{error}")),
            },
            RenderError::Refused { .. } => Undecided::Refused(format!("{place}{error}")),
        }
    })
}
