//! The steps of one device, and the changes that are refused.
//! Called by `plan`. Pure. Never plans anything for a device whose dm UUID isn't ours.

use std::collections::BTreeSet;

use super::share::{Shared, Writers, shares};
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

/// What a device is planned from.
struct Look<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    allowed: &'a Allowed,
    writers: Writers<'a>,
}

pub fn plan_devices(
    desired: &Desired,
    observed: &Observed,
    allowed: &Allowed,
    plan: &mut Plan,
) -> DevicePlans {
    let mut plans = DevicePlans::default();
    let look = Look {
        desired,
        observed,
        allowed,
        writers: Writers::of(&observed.devices),
    };
    for (name, table) in &desired.devices {
        let device = observed.device(name);
        match table {
            Ok(table) => plan_device(name, table, &look, plan, &mut plans),
            Err(Undecided::Waits { reason, .. }) => {
                plan.notes.push(format!("device {name} waits: {reason}"));
                stay(name, device, &mut plans);
            }
            Err(Undecided::Refused(reason)) => {
                plan.refuse(subject(name), reason, None);
                stay(name, device, &mut plans);
            }
        }
    }
    for device in &observed.devices {
        if device.uuid.is_ours() {
            plan_stranger(device, desired, allowed, plan, &mut plans);
        }
    }
    plans
}

/// Whether its table has to wait for another device, or is refused because of one: two that write the same range would
/// undo each other's writes, and no filesystem stands that.
fn held_back(name: &DeviceName, table: &Table, look: &Look<'_>, plan: &mut Plan) -> bool {
    let Some(shared) = look.writers.beside(name, table) else {
        return false;
    };
    let other = &shared.other.name;
    if let Some(until) = gives_up(&shared, table, look, &mut vec![name.as_str()]) {
        plan.notes
            .push(format!("device {name} waits until {until} {shared}"));
        return true;
    }
    let known = other
        .parse::<DeviceName>()
        .is_ok_and(|o| look.desired.devices.contains_key(&o));
    let (reason, flag) = if known {
        (
            format!(
                "device {other} still writes {shared}: what the topology says of that one must be done first"
            ),
            None,
        )
    } else {
        forgotten(name, table, &shared)
    };
    plan.refuse(subject(name), reason, flag);
    true
}

/// What to do about a device of no topology that writes the same: it may be the same one by its old name.
fn forgotten(name: &DeviceName, table: &Table, shared: &Shared<'_>) -> (String, Option<String>) {
    let other = shared.other;
    let unused = other.open_count == 0;
    let same = matches!(
        compare(&other.lines, &table.lines),
        Difference::Form | Difference::Grow
    );
    let remove = match unused {
        true => format!("`dstd remove {}` first", other.name),
        false => format!(
            "`dstd remove {}` first, when nobody has it open",
            other.name
        ),
    };
    let rename = match same {
        true => format!("`dstd rename {} {name}` if it is the same, ", other.name),
        false => String::new(),
    };
    (
        format!(
            "device {}, which is in no topology, writes {shared}, too: {rename}{remove}, or say `read_only: true` here",
            other.name
        ),
        unused.then(|| "--prune".to_owned()),
    )
}

/// What `table` has to wait for, if this plan and those after it end with the other device not writing any of what it writes.
/// `waiting` are those that wait for it: none may wait for itself.
fn gives_up<'a>(
    shared: &Shared<'a>,
    table: &Table,
    look: &Look<'a>,
    waiting: &mut Vec<&'a str>,
) -> Option<String> {
    let other = shared.other;
    let name = other.name.parse::<DeviceName>().ok()?;
    if !shared.live {
        return Some(format!(
            "device {name} has lost the table beside its live one, which writes"
        ));
    }
    let given_up = Some(format!("device {name} has given up"));
    let then = match look.desired.devices.get(&name) {
        None => return given_up.filter(|_| look.allowed.prune && other.open_count == 0),
        Some(Err(_)) => return None,
        Some(Ok(then)) => then,
    };
    if shares(then, table) || verdict(&name, other, then, look.allowed).is_err() {
        return None;
    }
    let Some(next) = look.writers.beside(&name, then) else {
        return given_up;
    };
    waiting.push(&other.name);
    let circle = waiting.contains(&next.other.name.as_str());
    given_up.filter(|_| !circle && gives_up(&next, then, look, waiting).is_some())
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
    if !allowed.prune || device.open_count > 0 {
        stay(&name, Some(device), plans);
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
    look: &Look<'_>,
    plan: &mut Plan,
    plans: &mut DevicePlans,
) {
    let device = look.observed.device(name);
    if let Some(device) = device.filter(|device| !device.uuid.is_ours()) {
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
    let mut why = "";
    if let Some(device) = device.filter(|device| !device.lines.is_empty()) {
        if device.lines == table.lines && device.access == table.access {
            return settle(name, device, plans);
        }
        match permitted(name, device, table, look.allowed, plan) {
            Some(reason) => why = reason,
            None => return settle(name, device, plans),
        }
    }
    // Last: nothing else is done for a change that is refused.
    if held_back(name, table, look, plan) {
        return stay(name, device, plans);
    }
    match device {
        None => create(name, table, look.observed, plans),
        Some(device) if device.lines.is_empty() => first_table(name, device, table, plans),
        Some(device) => change(name, device, table, why, plans),
    }
}

fn create(name: &DeviceName, table: &Table, observed: &Observed, plans: &mut DevicePlans) {
    let planned = plans.tables.iter().filter_map(|step| match &step.action {
        Action::Create { uuid, .. } => Some(uuid),
        _ => None,
    });
    let there = observed.devices.iter().map(|d| &d.uuid);
    let create = Action::Create {
        device: name.clone(),
        uuid: DmUuid::free(name, there.chain(planned)),
        access: table.access,
    };
    plans
        .tables
        .push(step(create, "the topology has it, the kernel doesn't"));
    load(name, &[], table, "the new device has no table yet", plans);
    plans.switch(
        Action::Resume {
            device: name.clone(),
        },
        "the table is complete",
    );
}

fn load(name: &DeviceName, live: &[Line], table: &Table, why: &str, plans: &mut DevicePlans) {
    plans.extents.extend(extents_of(&table.lines));
    let load = Action::Load {
        device: name.clone(),
        live: live.to_vec(),
        lines: table.lines.clone(),
        access: table.access,
    };
    plans.tables.push(step(load, why));
}

/// A device of dstd's that isn't changed goes on, also where one that died in the midst of a switch left it suspended.
fn stay(name: &DeviceName, device: Option<&ObservedDevice>, plans: &mut DevicePlans) {
    if let Some(device) = device.filter(|device| device.uuid.is_ours()) {
        settle(name, device, plans);
    }
}

/// The live table stays: nothing may lie beside it, and I/O must go on.
fn settle(name: &DeviceName, device: &ObservedDevice, plans: &mut DevicePlans) {
    plans.switches.extend(go_on(name, device));
}

/// What it takes for a device to have I/O by its live table, and no other beside it.
pub fn go_on(name: &DeviceName, device: &ObservedDevice) -> Vec<Step> {
    let mut steps = Vec::new();
    if device.inactive.is_some() {
        let clear = Action::Clear {
            device: name.clone(),
        };
        let why = "a table that isn't wanted lies in its inactive slot";
        steps.push(step(clear, why));
    }
    if device.suspended && !device.lines.is_empty() {
        let resume = Action::Resume {
            device: name.clone(),
        };
        steps.push(step(resume, "it is suspended"));
    }
    steps
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
        load(name, &device.lines, table, why, plans);
    }
}

/// Why the change is made; None, with a refusal, where it may not be.
fn permitted(
    name: &DeviceName,
    device: &ObservedDevice,
    table: &Table,
    allowed: &Allowed,
    plan: &mut Plan,
) -> Option<&'static str> {
    match verdict(name, device, table, allowed) {
        Ok(why) => Some(why),
        Err((reason, flag)) => {
            plan.refuse(subject(name), reason, flag);
            None
        }
    }
}

/// Why the change is made; or why it isn't, and what would allow it.
fn verdict(
    name: &DeviceName,
    device: &ObservedDevice,
    table: &Table,
    allowed: &Allowed,
) -> Result<&'static str, (String, Option<String>)> {
    if let Some(reason) = never(device, table) {
        return Err((reason.to_owned(), None));
    }
    match compare(&device.lines, &table.lines) {
        Difference::Form if device.access != table.access => {
            Ok("its access changes, its data stays")
        }
        Difference::Form => Ok("its features change, its data stays"),
        Difference::Grow => Ok("it grows, what it has stays where it is"),
        Difference::Shrink if allowed.shrink.contains(name) => Ok("--allow-shrink was given"),
        Difference::Shrink => {
            let (old, new) = (size(&device.lines), table.size());
            Err((
                format!("it would shrink from {old} to {new} sectors and lose what lies beyond"),
                Some(format!("--allow-shrink {name}")),
            ))
        }
        Difference::OtherData { .. } if allowed.other_data.contains(name) => {
            Ok("--allow-other-data was given")
        }
        Difference::OtherData { sector } => Err((
            format!(
                "sector {sector} and what follows would show other data. Now: {}. Then: {}",
                line_at(&device.lines, sector),
                line_at(&table.lines, sector)
            ),
            Some(format!("--allow-other-data {name}")),
        )),
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
