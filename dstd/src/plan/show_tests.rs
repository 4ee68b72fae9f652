//! A plan as a person reads it, whole.

use super::super::{Action, Connect, Plan, Step};
use super::*;
use crate::kernel::{Conduct, DmUuid, Policy};
use crate::units::{Generation, NodeName};

fn step(action: Action, why: &str) -> Step {
    let why = why.to_owned();
    Step { action, why }
}

fn lines(texts: &[&str]) -> Vec<Line> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn connect(node: &str, replace: Option<Generation>) -> Action {
    Action::Connect(Connect {
        node: node.parse().unwrap(),
        slots: vec![Slot(0), Slot(1)],
        wanted: 2,
        zero_copy: None,
        replace,
        steal: false,
        same_data: false,
        conduct: Conduct::default(),
    })
}

fn of_new() -> [Step; 2] {
    let device: DeviceName = "new".parse().unwrap();
    let access = Access::ReadOnly;
    let create = Action::Create {
        device: device.clone(),
        uuid: DmUuid::of(&device),
        access,
    };
    let load = Action::Load {
        device,
        live: Vec::new(),
        lines: lines(&["0 8 dst 1 beta 200 8 3 block_size 512 read_only"]),
        access,
    };
    [
        step(create, "the topology has it, the kernel doesn't"),
        step(load, "the new device has no table yet"),
    ]
}

fn of_grown() -> Step {
    let was = [
        "0 100 dst 1 beta 0 100 2 block_size 512",
        "100 8 linear 8:16 0",
    ];
    let then = [
        "0 150 dst 1 beta 0 150 2 block_size 512",
        "150 8 zero ",
        "100 8 linear 8:16 0",
    ];
    let load = Action::Load {
        device: "old".parse().unwrap(),
        live: lines(&was),
        lines: lines(&then),
        access: Access::ReadWrite,
    };
    step(load, "it grows, what it has stays where it is")
}

fn settings(node: NodeName) -> Step {
    let to = Conduct {
        policy: Policy::Error,
        ..Conduct::default()
    };
    let from = Conduct::default();
    step(
        Action::SetConduct { node, from, to },
        "the topology says so",
    )
}

/// A new device, one that grows, one that goes, a node's settings, and what is refused.
fn plan() -> Plan {
    let device = |name: &str| name.parse::<DeviceName>().unwrap();
    let suspend = Action::Suspend {
        device: device("old"),
    };
    let resume = |name: &str| Action::Resume {
        device: device(name),
    };
    let remove = Action::Remove {
        device: device("gone"),
    };
    let mut steps = vec![settings("beta".parse().unwrap())];
    steps.extend(of_new());
    steps.push(of_grown());
    let grew = connect("beta", Some(Generation(2)));
    let pause = "the tables are switched while no I/O is under way";
    steps.extend([
        step(grew, "its export grew, and a table needs the new size"),
        step(connect("gamma", None), "a new table names it"),
        step(resume("new"), "the table is complete"),
        step(suspend, pause),
        step(resume("old"), "the new table goes live"),
        step(remove, "it is in no topology, and --prune was given"),
    ]);
    let note = "node delta is named by a table and in no topology: dstd leaves it alone";
    let mut plan = Plan {
        steps,
        notes: vec![note.to_owned()],
        ..Plan::default()
    };
    let reason = "it would shrink from 8 to 4 sectors and lose what lies beyond";
    let flag = Some("--allow-shrink small".to_owned());
    plan.refuse("device small".to_owned(), reason, flag);
    plan.refuse("device other".to_owned(), "it isn't dstd's", None);
    plan
}

#[test]
fn a_plan_reads_like_a_diff() {
    let expected = "  \
  ~ set node beta: policy queue -> error: the topology says so
  + create device new (UUID DST-new), read-only: the topology has it, the kernel doesn't
  ~ load a read-only table for device new: the new device has no table yet
      0 8 dst 1 beta 200 8 3 block_size 512 read_only
  ~ load a table for device old: it grows, what it has stays where it is
    - 0 100 dst 1 beta 0 100 2 block_size 512
    + 0 150 dst 1 beta 0 150 2 block_size 512
    + 150 8 zero
      100 8 linear 8:16 0
  ~ connect node beta, slot 0 1: its export grew, and a table needs the new size
  + connect node gamma, slot 0 1: a new table names it
  ~ resume device new: the table is complete
  ~ suspend device old (pauses its I/O until it is resumed): the tables are switched while no I/O is under way
  ~ resume device old: the new table goes live
  - remove device gone: it is in no topology, and --prune was given
  ! device small: it would shrink from 8 to 4 sectors and lose what lies beyond (--allow-shrink small allows it)
  ! device other: it isn't dstd's
  # node delta is named by a table and in no topology: dstd leaves it alone
10 steps, 2 changes refused.
I/O pauses for a moment on old.
";
    assert_eq!(plan().to_string(), expected.trim_start_matches("  \n"));
}

#[test]
fn what_pauses_nothing_says_nothing_of_pauses() {
    let mut plan = plan();
    plan.steps.truncate(3);
    plan.refusals.clear();
    plan.notes.clear();
    assert!(
        plan.to_string().ends_with("read_only\n3 steps.\n"),
        "{plan}"
    );
    plan.steps.clear();
    assert_eq!(plan.to_string(), "Nothing to do.\n");
}
