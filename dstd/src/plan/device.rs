//! The steps of one device, and the changes that are refused.
//! Called by `plan`. Pure. Never plans anything for a device whose dm UUID isn't ours.

use std::collections::BTreeSet;

use super::{Action, Allowed, Desired, Difference, Observed, Plan, Step, Undecided, compare};
use crate::kernel::{Access, DmUuid, ObservedDevice};
use crate::table::{DstArgs, Extent, Line, Table};
use crate::units::{BlockSize, DeviceName, NodeName};

/// Steps in their phases, and what the tables that will be loaded ask of nodes.
#[derive(Default)]
pub struct DevicePlans {
    pub tables: Vec<Step>,
    pub switches: Vec<Step>,
    pub removals: Vec<Step>,
    /// Extents of tables that are to be loaded.
    pub extents: Vec<Extent>,
}

impl DevicePlans {
    fn switch(&mut self, action: Action, why: &str) {
        self.switches.push(step(action, why));
    }
}

fn step(action: Action, why: impl Into<String>) -> Step {
    Step {
        action,
        why: why.into(),
    }
}

fn subject(device: &DeviceName) -> String {
    format!("device {device}")
}

pub fn plan_devices(
    desired: &Desired,
    observed: &Observed,
    allowed: &Allowed,
    plan: &mut Plan,
) -> DevicePlans {
    let mut plans = DevicePlans::default();
    for (name, table) in &desired.devices {
        let device = observed.device(name);
        match table {
            Ok(table) => plan_device(name, table, device, allowed, plan, &mut plans),
            Err(Undecided::Waits { reason, .. }) => {
                plan.notes.push(format!("device {name} waits: {reason}"));
            }
            Err(Undecided::Refused(reason)) => plan.refuse(subject(name), reason, None),
        }
    }
    for device in &observed.devices {
        if device.uuid.is_ours() {
            plan_stranger(device, desired, allowed, plan, &mut plans);
        }
    }
    plans
}

/// A device of ours that no topology names: kept, unless it may be pruned.
fn plan_stranger(
    device: &ObservedDevice,
    desired: &Desired,
    allowed: &Allowed,
    plan: &mut Plan,
    plans: &mut DevicePlans,
) {
    let Ok(name) = device.name.parse::<DeviceName>() else {
        return;
    };
    if desired.devices.contains_key(&name) {
        return;
    }
    match (allowed.prune, device.open_count) {
        (false, _) => plan.notes.push(format!(
            "device {name} is dstd's and in no topology: it stays; `dstd remove {name}` or `dstd apply --prune` removes it"
        )),
        (true, 0) => plans.removals.push(step(
            Action::Remove { device: name },
            "it is in no topology, and --prune was given",
        )),
        (true, users) => plan.refuse(
            subject(&name),
            format!("it is in no topology, but in use ({users} opened it): unmount or deactivate what is on it first"),
            None,
        ),
    }
}

fn plan_device(
    name: &DeviceName,
    table: &Table,
    device: Option<&ObservedDevice>,
    allowed: &Allowed,
    plan: &mut Plan,
    plans: &mut DevicePlans,
) {
    let Some(device) = device else {
        let create = Action::Create {
            device: name.clone(),
            uuid: DmUuid::of(name),
            access: table.access,
        };
        plans
            .tables
            .push(step(create, "the topology has it, the kernel doesn't"));
        load(name, table, "the new device has no table yet", plans);
        plans.switch(
            Action::Resume {
                device: name.clone(),
            },
            "the table is complete",
        );
        return;
    };
    if !device.uuid.is_ours() {
        let uuid = match device.uuid.0.as_str() {
            "" => "no UUID".to_owned(),
            uuid => format!("UUID {uuid}"),
        };
        plan.refuse(
            subject(name),
            format!("a device of this name is there, and it isn't dstd's ({uuid}): rename the one in the topology, or remove the other yourself"),
            None,
        );
        return;
    }
    if device.lines == table.lines && device.access == table.access {
        settle(name, device, plans);
    } else if device.lines.is_empty() {
        first_table(name, device, table, plans);
    } else if let Some(why) = permitted(name, device, table, allowed, plan) {
        change(name, device, table, &why, plans);
    } else {
        settle(name, device, plans);
    }
}

fn load(name: &DeviceName, table: &Table, why: &str, plans: &mut DevicePlans) {
    plans.extents.extend(extents_of(&table.lines));
    let load = Action::Load {
        device: name.clone(),
        lines: table.lines.clone(),
        access: table.access,
    };
    plans.tables.push(step(load, why));
}

/// The live table stays: nothing may lie beside it, and I/O must go on.
fn settle(name: &DeviceName, device: &ObservedDevice, plans: &mut DevicePlans) {
    if device.inactive.is_some() {
        let clear = Action::Clear {
            device: name.clone(),
        };
        plans.switch(clear, "a table that isn't wanted lies in its inactive slot");
    }
    if device.suspended && !device.lines.is_empty() {
        let resume = Action::Resume {
            device: name.clone(),
        };
        plans.switch(resume, "it is suspended");
    }
}

/// A device that was created and never got a table.
fn first_table(name: &DeviceName, device: &ObservedDevice, table: &Table, plans: &mut DevicePlans) {
    load_unless_there(name, device, table, "it has no table yet", plans);
    plans.switch(
        Action::Resume {
            device: name.clone(),
        },
        "the table is complete",
    );
}

fn change(
    name: &DeviceName,
    device: &ObservedDevice,
    table: &Table,
    why: &str,
    plans: &mut DevicePlans,
) {
    load_unless_there(name, device, table, why, plans);
    if !device.suspended {
        let suspend = Action::Suspend {
            device: name.clone(),
        };
        plans.switch(suspend, "the tables are switched while no I/O is under way");
    }
    let resume = Action::Resume {
        device: name.clone(),
    };
    plans.switch(resume, "the new table goes live");
}

/// An inactive table can't tell how it was loaded, so it counts only where the access stays.
fn load_unless_there(
    name: &DeviceName,
    device: &ObservedDevice,
    table: &Table,
    why: &str,
    plans: &mut DevicePlans,
) {
    let there = device.inactive.as_ref() == Some(&table.lines) && device.access == table.access;
    if there {
        plans.extents.extend(extents_of(&table.lines));
    } else {
        load(name, table, why, plans);
    }
}

/// Why the change is made; None, with a refusal, where it may not be.
fn permitted(
    name: &DeviceName,
    device: &ObservedDevice,
    table: &Table,
    allowed: &Allowed,
    plan: &mut Plan,
) -> Option<String> {
    if let Some(reason) = never(device, table) {
        plan.refuse(subject(name), reason, None);
        return None;
    }
    match compare(&device.lines, &table.lines) {
        Difference::Form if device.access != table.access => {
            Some("its access changes, its data stays".to_owned())
        }
        Difference::Form => Some("its features change, its data stays".to_owned()),
        Difference::Grow => Some("it grows, what it has stays where it is".to_owned()),
        Difference::Shrink if allowed.shrink.contains(name) => {
            Some("--allow-shrink was given".to_owned())
        }
        Difference::Shrink => {
            let (old, new) = (size(&device.lines), table.size());
            plan.refuse(
                subject(name),
                format!("it would shrink from {old} to {new} sectors and lose what lies beyond"),
                Some(format!("--allow-shrink {name}")),
            );
            None
        }
        Difference::OtherData { .. } if allowed.other_data.contains(name) => {
            Some("--allow-other-data was given".to_owned())
        }
        Difference::OtherData { sector } => {
            plan.refuse(
                subject(name),
                format!(
                    "sector {sector} and what follows would show other data. Now: {}. Then: {}",
                    line_at(&device.lines, sector),
                    line_at(&table.lines, sector)
                ),
                Some(format!("--allow-other-data {name}")),
            );
            None
        }
    }
}

/// Why no flag can allow the change.
fn never(device: &ObservedDevice, table: &Table) -> Option<&'static str> {
    let (old, new) = (block_sizes(&device.lines), block_sizes(&table.lines));
    if !old.is_empty() && !new.is_empty() && old.last() != new.last() {
        return Some(
            "its block_size can't change while it exists: `dstd remove` it first, or put the old block_size back",
        );
    }
    let becomes_read_only = device.access == Access::ReadWrite && table.access == Access::ReadOnly;
    (becomes_read_only && device.open_count > 0).then_some(
        "it would become read-only while in use: unmount or deactivate what is on it first",
    )
}

fn size(lines: &[Line]) -> u64 {
    lines.last().and_then(Line::end).unwrap_or_default().0
}

/// The line that holds a sector, for people: cut where it is long.
fn line_at(lines: &[Line], sector: u64) -> String {
    let line = lines.iter().rev().find(|line| line.start.0 <= sector);
    let text = line.map_or_else(|| "nothing".to_owned(), |line| format!("`{line}`"));
    match text.char_indices().nth(160) {
        Some((cut, _)) => format!("{}...`", &text[..cut]),
        None => text,
    }
}

fn block_sizes(lines: &[Line]) -> BTreeSet<BlockSize> {
    let args = lines.iter().filter_map(|line| DstArgs::of(line).ok());
    args.map(|args| args.features.block_size).collect()
}

pub fn extents_of(lines: &[Line]) -> Vec<Extent> {
    let args = lines.iter().filter_map(|line| DstArgs::of(line).ok());
    args.flat_map(|args| args.extents).collect()
}

/// The nodes that extents name.
pub fn nodes_in(extents: &[Extent]) -> BTreeSet<NodeName> {
    extents.iter().map(|e| e.node.clone()).collect()
}
