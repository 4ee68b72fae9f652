//! What should exist, in the kernel's own terms: tables and link counts, from the topology and the facts known.
//! Called by reconcile and cli before `plan`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use super::Observed;
use crate::kernel::{Conduct, Policy, UnknownRestart};
use crate::table::{Facts, LocalFacts, Missing, RenderError, Table, nodes_of, render};
use crate::topology::{self, Item, NodeSpec, Quiesce, Topology, YesNo, ZeroCopy};
use crate::units::{AddressMark, DeviceName, NodeName};

#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// All nodes of the topology.
    pub nodes: BTreeMap<NodeName, DesiredNode>,
    /// All devices of the topology.
    pub devices: BTreeMap<DeviceName, Result<Table, Undecided>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredNode {
    /// Where its links are to lead.
    pub address: AddressMark,
    pub links: u32,
    /// None: `auto`.
    pub zero_copy: Option<bool>,
    pub conduct: Conduct,
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
        let node = DesiredNode {
            address: node.spec.uri.mark(),
            links: node.spec.links.0,
            zero_copy,
            conduct: conduct(&node.spec),
        };
        (name.clone(), node)
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

fn conduct(spec: &NodeSpec) -> Conduct {
    Conduct {
        policy: match spec.policy {
            topology::Policy::Queue => Policy::Queue,
            topology::Policy::QueueFor(time) => Policy::QueueFor(time),
            topology::Policy::Error => Policy::Error,
        },
        quiesce: match spec.quiesce {
            Quiesce::After(time) => Some(time),
            Quiesce::Never => None,
        },
        eof_fences: spec.eof_fences == YesNo::Yes,
        unknown_restart: match spec.unknown_restart {
            topology::UnknownRestart::Trust => UnknownRestart::Trust,
            topology::UnknownRestart::Eio => UnknownRestart::Eio,
        },
        timeout: Some(spec.timeout.0),
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
    if let Some(refusal) = unseen_disk(topology, name, locals) {
        return Err(refusal);
    }
    render(name, spec, facts).map_err(|error| {
        let text = at_item(topology, name, error.item(), &error);
        let RenderError::Missing {
            what: Missing::Node(node),
            ..
        } = &error
        else {
            return Undecided::Refused(text);
        };
        let why = match observed.probes.get(node) {
            Some(Err(why)) => format!(" ({why})"),
            _ => String::new(),
        };
        let nodes = BTreeSet::from([node.clone()]);
        let reason = format!("{text}{why}");
        Undecided::Waits { nodes, reason }
    })
}

/// A disk that can't be looked at is refused here: the kernel's own words would come too late.
fn unseen_disk(
    topology: &Topology,
    name: &DeviceName,
    locals: &BTreeMap<PathBuf, Result<LocalFacts, String>>,
) -> Option<Undecided> {
    let items = topology.devices[name].spec.table.iter().enumerate();
    items.into_iter().find_map(|(i, item)| match item {
        Item::Linear(linear) => {
            let why = locals.get(&linear.device)?.as_ref().err()?;
            Some(Undecided::Refused(at_item(topology, name, i, why)))
        }
        _ => None,
    })
}

/// A text with the item's place before it.
fn at_item(topology: &Topology, name: &DeviceName, item: usize, text: impl Display) -> String {
    match topology.item_place(name, item) {
        Some(place) => format!("{place}: {text}"),
        None => text.to_string(),
    }
}
