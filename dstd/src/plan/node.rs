//! The steps of nodes: settings that differ, links that are missing, link counts that changed, exports that don't fit.
//! Called by `plan`, and by reconcile to look once more before it connects. Pure.

use std::collections::BTreeMap;

use super::device::{DevicePlans, nodes_in};
use super::{Action, Allowed, Connect, Desired, DesiredNode, Observed, Plan, Step};
use crate::kernel::{Conduct, LinkState, Negotiated, ObservedNode};
use crate::units::{AddressMark, Bytes, Generation, NodeName, Sectors, Slot};

#[derive(Default)]
pub struct NodePlans {
    /// How nodes that are there treat a loss. First of all: it may be what the operator waits for.
    pub settings: Vec<Step>,
    /// Links that tables to be loaded depend on: their exports grew.
    pub before_tables: Vec<Step>,
    pub after_tables: Vec<Step>,
}

/// The slots below `wanted` without a live link newer than `replace`.
pub fn missing_slots(
    node: Option<&ObservedNode>,
    wanted: u32,
    replace: Option<Generation>,
) -> Vec<Slot> {
    let counts = |slot: Slot| {
        let links = node.map_or(&[][..], |n| &n.links);
        links.iter().any(|link| {
            link.slot == slot
                && link.state == LinkState::Live
                && replace.is_none_or(|old| link.generation > old)
        })
    };
    (0..wanted)
        .map(Slot)
        .filter(|slot| !counts(*slot))
        .collect()
}

pub fn plan_nodes(
    desired: &Desired,
    observed: &Observed,
    allowed: &Allowed,
    devices: &DevicePlans,
    plan: &mut Plan,
) -> NodePlans {
    let mut plans = NodePlans::default();
    let needs = sizes_needed(devices);
    let coming = nodes_in(&devices.extents);
    for name in observed
        .nodes
        .keys()
        .chain(coming.iter().filter(|n| !observed.nodes.contains_key(n)))
    {
        match desired.nodes.get(name) {
            Some(node) => plan_node(
                name,
                *node,
                observed,
                allowed,
                needs.get(name).copied(),
                plan,
                &mut plans,
            ),
            None => plan.notes.push(format!(
                "node {name} is named by a table and in no topology: dstd leaves it alone"
            )),
        }
    }
    plans
}

/// How large each node's export must be for the tables to be loaded.
fn sizes_needed(devices: &DevicePlans) -> BTreeMap<NodeName, Sectors> {
    let mut needs = BTreeMap::new();
    for extent in &devices.extents {
        let need: &mut Sectors = needs.entry(extent.node.clone()).or_default();
        *need = (*need).max(extent.end().unwrap_or_default());
    }
    needs
}

fn plan_node(
    name: &NodeName,
    desired: DesiredNode,
    observed: &Observed,
    allowed: &Allowed,
    need: Option<Sectors>,
    plan: &mut Plan,
    plans: &mut NodePlans,
) {
    let node = observed.nodes.get(name);
    let settings = set_conduct(name, desired, node);
    match node {
        Some(_) => plans.settings.extend(settings),
        // It is there once its table is loaded.
        None => plans.after_tables.extend(settings),
    }
    let subject = format!("node {name}");
    if let Some(reason) = node.and_then(|node| misfit(node, observed)) {
        plan.refuse(subject, reason, None);
        plan.doubts.insert(name.clone());
        plan.misfits.extend(offer(name, desired, node));
        return;
    }
    if let Some(reason) = node.and_then(|node| stranger(node, observed))
        && !allowed.same_data.contains(name)
    {
        plan.refuse(subject, reason, Some(format!("--same-data {name}")));
        plan.doubts.insert(name.clone());
        return;
    }
    if let Some(node) = node
        && leads_elsewhere(node, desired.address)
        && node
            .negotiated
            .as_ref()
            .is_some_and(|n| n.identity.is_none())
        && !allowed.same_data.contains(name)
    {
        plan.refuse(
            subject,
            other_address(),
            Some(format!("--same-data {name}")),
        );
        return;
    }
    let wanted = wanted(name, desired, observed, plan);
    plan_links(name, desired, node, wanted, allowed, need, plans);
}

fn plan_links(
    name: &NodeName,
    desired: DesiredNode,
    node: Option<&ObservedNode>,
    wanted: u32,
    allowed: &Allowed,
    need: Option<Sectors>,
    plans: &mut NodePlans,
) {
    let grown = node.is_some_and(|node| node.live > 0 && must_reconnect(node, need));
    let flipped = node.is_some_and(|node| {
        node.live > 0 && desired.zero_copy.is_some() && node.zero_copy != desired.zero_copy
    });
    let moved = allowed.same_data.contains(name)
        && node.is_some_and(|node| leads_elsewhere(node, desired.address));
    let replace = node
        .filter(|_| grown || flipped || moved)
        .map(|node| node.generation);
    let slots = missing_slots(node, wanted, replace);
    if slots.is_empty() {
        if let Some(node) = node.filter(|node| node.wanted != wanted) {
            let why = format!("it has {} links, the topology wants {wanted}", node.wanted);
            let node = name.clone();
            let action = Action::SetWanted { node, wanted };
            plans.after_tables.push(Step { action, why });
        }
        return;
    }
    let why = match (grown, flipped, node) {
        (true, ..) => "its export grew, and a table needs the new size".to_owned(),
        _ if moved => "its address changed".to_owned(),
        (_, true, _) => "its zero_copy setting changed".to_owned(),
        (_, _, None) => "a new table names it".to_owned(),
        (_, _, Some(node)) => format!("{} of {wanted} links are live", node.live.min(wanted)),
    };
    let connect = Connect {
        node: name.clone(),
        slots,
        wanted,
        zero_copy: desired.zero_copy,
        replace,
        steal: allowed.steal.contains(name),
        same_data: allowed.same_data.contains(name),
        conduct: desired.conduct,
    };
    let step = Step {
        action: Action::Connect(connect),
        why,
    };
    if grown {
        plans.before_tables.push(step)
    } else {
        plans.after_tables.push(step)
    }
}

/// The link that a node without any is offered although it can't be taken.
fn offer(name: &NodeName, desired: DesiredNode, node: Option<&ObservedNode>) -> Option<Connect> {
    node.filter(|node| node.live == 0).map(|_| Connect {
        node: name.clone(),
        slots: vec![Slot(0)],
        wanted: 1,
        zero_copy: desired.zero_copy,
        replace: None,
        steal: false,
        same_data: false,
        conduct: desired.conduct,
    })
}

/// A node that isn't there yet comes with the kernel's defaults.
fn set_conduct(name: &NodeName, desired: DesiredNode, node: Option<&ObservedNode>) -> Option<Step> {
    let from = node.map_or_else(Conduct::default, |node| node.conduct);
    let to = desired.conduct;
    (from != to).then(|| Step {
        action: Action::SetConduct {
            node: name.clone(),
            from,
            to,
        },
        why: "the topology says so".to_owned(),
    })
}

/// Why what answers at the node's address, as it was just probed, isn't the export that the node had.
fn stranger(node: &ObservedNode, observed: &Observed) -> Option<String> {
    let now = observed.probes.get(&node.name)?.as_ref().ok()?;
    other_identity(node.negotiated.as_ref()?, now)
}

/// Why `now` isn't the export that was, where the one that was told its identity; a stock server tells none.
pub fn other_identity(was: &Negotiated, now: &Negotiated) -> Option<String> {
    let expected = was.identity?;
    if now.identity == Some(expected) {
        return None;
    }
    let found = now.identity.map_or_else(
        || "a server that doesn't tell which export it has".to_owned(),
        |found| format!("export {found}"),
    );
    Some(format!(
        "its address leads to {found}, its devices hold data of export {expected}: mend the address or the server. Only if \
         it holds the same data, and the old server can't write to it any more, may it take the place"
    ))
}

/// Whether links that are live lead to another address than this one. The first link of a session says where; later ones
/// lead to the same export, if not to the same address.
pub fn leads_elsewhere(node: &ObservedNode, address: AddressMark) -> bool {
    let session = node.session.unwrap_or_default();
    node.live > 0 && session.address().differs(address)
}

/// Why links to a new address can't be made beside those to the old one, where the two don't tell the same identity.
pub fn other_address() -> String {
    "its live links lead to another address than the topology names, and nobody can tell whether the same export is there: \
     stop the old server first, and its links go to the new address. Only if that holds the same data, and the old server \
     can't write to it any more, may all links be replaced at once"
        .to_owned()
}

/// More than one link only where the server says that they see each other's writes.
fn wanted(name: &NodeName, desired: DesiredNode, observed: &Observed, plan: &mut Plan) -> u32 {
    let single = observed
        .negotiated(name)
        .is_some_and(|n| !n.flags.multi_conn());
    if single && desired.links > 1 {
        plan.notes.push(format!(
            "node {name} gets one link instead of {}: its server doesn't announce multi-conn",
            desired.links
        ));
        return 1;
    }
    desired.links
}

/// Whether a table to be loaded reaches beyond the size that the kernel knows.
fn must_reconnect(node: &ObservedNode, need: Option<Sectors>) -> bool {
    let known = node.negotiated.as_ref().map_or(Bytes(0), |n| n.size);
    need.and_then(Sectors::bytes)
        .is_some_and(|need| need > known)
}

/// Why the export, as it was just probed, can't carry the tables that name the node.
fn misfit(node: &ObservedNode, observed: &Observed) -> Option<String> {
    let export = observed.probes.get(&node.name)?.as_ref().ok()?;
    if export.size < node.need_size {
        return Some(format!(
            "its export has {} bytes, the live tables need {}: enlarge the export, or connect the right one",
            export.size.0, node.need_size.0
        ));
    }
    if node.need_block != 0 && export.min_block > node.need_block {
        return Some(format!(
            "it takes blocks of {} bytes and up, a live table has block_size {}: set the server to smaller blocks, or remake the device with `block_size: {}`",
            export.min_block, node.need_block, export.min_block
        ));
    }
    if node.need_write && export.flags.read_only() {
        return Some("its export is read-only, and a live table writes to it: make the export writable, or remake the device with `read_only: true`".to_owned());
    }
    None
}
