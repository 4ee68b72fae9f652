//! Compares what should exist with what does and lists the steps between them.
//! Called by reconcile and cli. Pure: never talks to the kernel or a node. The same input gives the same plan,
//! and a plan that was carried out leaves an empty plan.

mod compare;
mod desired;
mod device;
mod node;
mod share;
mod show;

use std::collections::{BTreeMap, BTreeSet};

pub use compare::{Difference, compare};
pub use desired::{Desired, DesiredNode, Undecided, desire};
pub use device::{extents_of, nodes_in};
pub use node::{leads_elsewhere, missing_slots, other_address, other_identity};

pub use share::second_writers;

use crate::kernel::{Access, Conduct, DmUuid, Negotiated, ObservedDevice, ObservedNode};
use crate::table::{Line, NodeFacts};
use crate::units::{DeviceName, Generation, NodeName, Slot};

/// What is there now.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub devices: Vec<ObservedDevice>,
    pub nodes: BTreeMap<NodeName, ObservedNode>,
    /// What nodes said when they were asked just now, or why they couldn't be.
    pub probes: BTreeMap<NodeName, Result<Negotiated, String>>,
}

impl Observed {
    pub fn device(&self, name: &DeviceName) -> Option<&ObservedDevice> {
        self.devices.iter().find(|d| d.name == name.as_str())
    }

    /// A probe is newer than what the kernel was told when the links were made.
    pub fn negotiated(&self, node: &NodeName) -> Option<&Negotiated> {
        let probed = self.probes.get(node).and_then(|p| p.as_ref().ok());
        probed.or_else(|| self.nodes.get(node)?.negotiated.as_ref())
    }

    pub fn node_facts(&self) -> BTreeMap<NodeName, NodeFacts> {
        let names = self.probes.keys().chain(self.nodes.keys());
        names
            .filter_map(|n| Some((n.clone(), self.negotiated(n)?.into())))
            .collect()
    }
}

/// What the operator allows by name.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    pub shrink: BTreeSet<DeviceName>,
    pub other_data: BTreeSet<DeviceName>,
    /// Remove devices of ours that no topology names.
    pub prune: bool,
    /// Nodes whose writer role is taken from another client.
    pub steal: BTreeSet<NodeName>,
    /// Nodes that may be another export from now on: the operator says that it holds the same data.
    pub same_data: BTreeSet<NodeName>,
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Create {
        device: DeviceName,
        uuid: DmUuid,
        access: Access,
    },
    Load {
        device: DeviceName,
        /// The live table's lines, which these are to replace: if others are live by then, they don't.
        live: Vec<Line>,
        lines: Vec<Line>,
        access: Access,
    },
    Clear {
        device: DeviceName,
    },
    /// Always noflush: what is under way is pushed back, nothing is waited for.
    Suspend {
        device: DeviceName,
    },
    Resume {
        device: DeviceName,
    },
    Remove {
        device: DeviceName,
    },
    Connect(Connect),
    SetWanted {
        node: NodeName,
        wanted: u32,
    },
    SetConduct {
        node: NodeName,
        from: Conduct,
        to: Conduct,
    },
}

/// Gives a node the links it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub node: NodeName,
    /// The slots that lack a link, as planned; looked at afresh when it is carried out.
    pub slots: Vec<Slot>,
    pub wanted: u32,
    /// None: `auto`, decided by the address.
    pub zero_copy: Option<bool>,
    /// Links up to this generation count as missing: they are to be replaced.
    pub replace: Option<Generation>,
    /// Take the writer role from whoever has it.
    pub steal: bool,
    /// Take an export of another identity.
    pub same_data: bool,
    /// How the node is to treat a loss; set before it has a link.
    pub conduct: Conduct,
}

impl Action {
    /// The device it is about, if it is about one.
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Self::Create { device, .. }
            | Self::Load { device, .. }
            | Self::Clear { device }
            | Self::Suspend { device }
            | Self::Resume { device }
            | Self::Remove { device } => Some(device),
            Self::Connect(_) | Self::SetWanted { .. } | Self::SetConduct { .. } => None,
        }
    }
}

/// An effect and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub why: String,
}

/// A change that is not made, and what would allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// "device archive", "node beta".
    pub subject: String,
    pub reason: String,
    /// The flag that allows it, where one does.
    pub flag: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub refusals: Vec<Refusal>,
    /// What a person may want to know, and dstd does nothing about.
    pub notes: Vec<String>,
    /// Nodes without a live link that were refused because their export doesn't fit the live tables: the kernel
    /// judges the same, and a node's state tells of it once a link was offered.
    pub misfits: Vec<Connect>,
    /// Nodes that were refused for what they said when they were asked; they may be mended meanwhile.
    pub doubts: BTreeSet<NodeName>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// Devices whose I/O waits for a moment: it is pushed back, and goes on with the new table.
    pub fn pauses(&self) -> Vec<&DeviceName> {
        let suspends = self.steps.iter().filter_map(|step| match &step.action {
            Action::Suspend { device } => Some(device),
            _ => None,
        });
        suspends.collect()
    }

    /// Settings of nodes that are there: they depend on nothing else, and are what an operator changes when a node is dead.
    pub fn settings(&self, observed: &Observed) -> Vec<Step> {
        let is_there = |step: &&Step| match &step.action {
            Action::SetConduct { node, .. } => observed.nodes.contains_key(node),
            _ => false,
        };
        self.steps.iter().filter(is_there).cloned().collect()
    }

    /// What ends pauses that somebody who died has left. A device whose change takes more than that goes on with its live
    /// table until the change is made: nodes have to be asked for it, and may be dead.
    pub fn mends(&self, observed: &Observed) -> Vec<Step> {
        let paused = observed
            .devices
            .iter()
            .filter(|device| device.suspended && !device.lines.is_empty() && device.uuid.is_ours());
        let mends = paused.filter_map(|device| {
            let name = device.name.parse().ok()?;
            let its = |step: &&Step| step.action.device() == Some(&name);
            let its: Vec<_> = self.steps.iter().filter(its).cloned().collect();
            let ends = |s: &Step| matches!(s.action, Action::Clear { .. } | Action::Resume { .. });
            match its.iter().all(ends) {
                true => Some(its),
                false => Some(device::go_on(&name, device)),
            }
        });
        mends.flatten().collect()
    }

    fn refuse(&mut self, subject: String, reason: impl Into<String>, flag: Option<String>) {
        let reason = reason.into();
        self.refusals.push(Refusal {
            subject,
            reason,
            flag,
        });
    }
}

/// The steps from what is to what should be, in the order in which they are safe:
/// settings, links for exports that grew, tables beside the live ones, settings and links of new nodes, then the short
/// pauses, then removals.
pub fn plan(desired: &Desired, observed: &Observed, allowed: &Allowed) -> Plan {
    let mut plan = Plan::default();
    let mut devices = device::plan_devices(desired, observed, allowed, &mut plan);
    let nodes = node::plan_nodes(desired, observed, allowed, &devices, &mut plan);
    plan.steps.extend(nodes.settings);
    plan.steps.extend(nodes.before_tables);
    plan.steps.append(&mut devices.tables);
    plan.steps.extend(nodes.after_tables);
    plan.steps.append(&mut devices.switches);
    plan.steps.append(&mut devices.removals);
    plan
}
