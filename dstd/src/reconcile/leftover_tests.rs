//! What others left behind: devices of no topology that write the same ranges, and devices whose I/O pauses because a dstd
//! died between suspend and resume, or because a call did its work and said that it hadn't.

use std::sync::Arc;

use super::*;
use crate::kernel::sim::{Death, Fault, SimKernel, SimNodes, When, export};
use crate::kernel::{Access, DmUuid, Flush, Kernel, LocalDevice, NbdFlags};
use crate::plan::{Action, Allowed};
use crate::topology::Topology;
use crate::units::{DeviceNumber, Sectors};

struct World {
    kernel: Arc<SimKernel>,
    nodes: Arc<SimNodes>,
}

fn topology(devices: &str) -> Topology {
    let nodes = "version: 1\nnodes: {a: {uri: \"nbd://a/\"}, b: {uri: \"nbd://b/\"}}\n";
    Topology::parse_one("test.yaml", format!("{nodes}devices: {{{devices}}}")).unwrap()
}

const OLD: &str = "old: {table: [dst: {node: a, length: 8s}]}";
const NEW: &str =
    "new: {table: [dst: {node: b, length: 8s}, dst: {node: a, offset: 4s, length: 8s}]}";
const GROWN: &str = "old: {table: [dst: {node: a, length: 16s}]}";

fn prune() -> Allowed {
    Allowed {
        prune: true,
        ..Allowed::default()
    }
}

impl World {
    async fn with(devices: &str) -> Self {
        let world = Self {
            kernel: Arc::default(),
            nodes: Arc::default(),
        };
        for node in ["nbd://a/", "nbd://b/"] {
            let export = export(1000, NbdFlags::CAN_MULTI_CONN);
            world.nodes.exports().insert(node.to_owned(), export);
        }
        world.apply(devices, &Allowed::default()).await.unwrap();
        world.kernel.state().calls.clear();
        world
    }

    async fn apply(&self, devices: &str, allowed: &Allowed) -> Result<Applied, ApplyError> {
        let topology = topology(devices);
        apply(
            &Interrupt::default(),
            &self.kernel,
            &self.nodes,
            &topology,
            allowed,
            |_| {},
        )
        .await
    }

    async fn refused(&self, devices: &str) -> String {
        let refused = self.apply(devices, &Allowed::default()).await;
        refused.unwrap_err().to_string()
    }

    fn names(&self) -> Vec<String> {
        let devices = self.kernel.devices().unwrap();
        devices.into_iter().map(|d| d.name).collect()
    }

    fn calls(&self) -> Vec<String> {
        self.kernel.state().calls.clone()
    }

    fn opened(&self, device: &str) {
        let mut state = self.kernel.state();
        state.devices.get_mut(device).unwrap().open_count = 1;
    }

    fn by_hand(&self, device: &str, line: &str) {
        let (device, lines) = (device.parse().unwrap(), [line.parse().unwrap()]);
        let (kernel, access) = (&self.kernel, Access::ReadWrite);
        let made = kernel.create(&device, &DmUuid::of(&device), access);
        made.unwrap();
        kernel.load(&device, &lines, access).unwrap();
        kernel.resume(&device).unwrap();
        kernel.state().calls.clear();
    }

    /// Grows device old, and dies between suspend and resume.
    async fn left_suspended() -> Self {
        let world = World::with(OLD).await;
        world.kernel.revive(Death::After(1));
        let _ = world.apply(GROWN, &Allowed::default()).await;
        world.kernel.revive(Death::Never);
        assert_eq!(world.calls(), ["load old", "suspend old"]);
        world.kernel.state().calls.clear();
        world
    }
}

#[tokio::test]
async fn a_range_that_a_forgotten_device_writes_is_given_to_no_other() {
    let world = World::with(OLD).await;
    let text = world.refused(NEW).await;
    let expected = "! device new: device old, which is in no topology, writes 4 sectors of node a from sector 4 on, too: \
                    `dstd remove old` first, or say `read_only: true` here (--prune allows it)";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.calls(), [] as [&str; 0]);
    // Whoever only reads does no harm.
    let reader = NEW.replace("{table", "{read_only: true, table");
    world.apply(&reader, &Allowed::default()).await.unwrap();
    assert_eq!(world.names(), ["new", "old"]);
    let in_use = World::with(OLD).await;
    in_use.opened("old");
    let text = in_use.refused(NEW).await;
    assert!(text.contains("first, when nobody has it open"), "{text}");
    assert!(!text.contains("--prune allows"), "{text}");
}

#[tokio::test]
async fn with_prune_the_forgotten_device_goes_before_the_new_one_comes() {
    let world = World::with(OLD).await;
    // Its node is known to the kernel only as long as the old device is there: it is asked anew.
    world.apply(NEW, &prune()).await.unwrap();
    let calls = world.calls();
    let removed = calls.iter().position(|c| c == "remove old").unwrap();
    let created = calls.iter().position(|c| c == "create new").unwrap();
    assert!(removed < created, "{calls:?}");
    assert!(world.kernel.state().forbidden.is_empty());
}

#[tokio::test]
async fn a_range_that_another_device_is_to_give_up_waits_for_that() {
    let world = World::with(GROWN).await;
    let both = "old: {table: [dst: {node: a, length: 4s}]}, ".to_owned() + NEW;
    let text = world.refused(&both).await;
    assert!(
        text.contains("device old still writes 8 sectors of node a from sector 4 on"),
        "{text}"
    );
    let mut allowed = Allowed::default();
    allowed.shrink.insert("old".parse().unwrap());
    world.apply(&both, &allowed).await.unwrap();
    let calls = world.calls();
    let shrunk = calls.iter().position(|c| c == "resume old").unwrap();
    let created = calls.iter().position(|c| c == "create new").unwrap();
    assert!(shrunk < created, "{calls:?}");
    assert!(world.kernel.state().forbidden.is_empty());
}

#[tokio::test]
async fn a_device_that_was_left_suspended_goes_on_although_no_topology_names_it() {
    let world = World::left_suspended().await;
    world.apply("", &Allowed::default()).await.unwrap();
    assert_eq!(world.calls(), ["clear old", "resume old"]);
}

#[tokio::test]
async fn a_device_that_was_left_suspended_goes_on_although_the_rest_is_refused() {
    let world = World::left_suspended().await;
    world.kernel.stranger("new", true);
    let text = world
        .refused(&format!("{OLD}, new: {{table: [dst: {{node: b}}]}}"))
        .await;
    let expected = "nothing was changed but that one device, which was left suspended, goes on, because part of it is refused";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.calls(), ["clear old", "resume old"]);
    // The same where a node doesn't answer, and the switch can be ended.
    let world = World::left_suspended().await;
    world.nodes.exports().remove("nbd://b/");
    let text = world
        .refused(&format!("{GROWN}, new: {{table: [dst: {{node: b}}]}}"))
        .await;
    assert!(
        text.contains("goes on:\n") && text.contains("refused"),
        "{text}"
    );
    assert_eq!(world.calls(), ["resume old"]);
}

#[tokio::test]
async fn a_device_that_was_left_suspended_goes_on_although_another_change_needs_a_dead_node() {
    let grown = "old: {table: [dst: {node: a, length: 24s}, dst: {node: b, length: 8s}]}";
    let world = World::left_suspended().await;
    world.nodes.exports().remove("nbd://b/");
    let text = world.refused(grown).await;
    assert!(
        text.contains("goes on:\nnode b: nbd://b/: connection refused"),
        "{text}"
    );
    assert_eq!(world.calls(), ["clear old", "resume old"]);
    // The same where it is to be removed.
    let world = World::left_suspended().await;
    world.nodes.exports().remove("nbd://b/");
    let new = "new: {table: [dst: {node: b, length: 8s}]}";
    let ended = world.apply(new, &prune()).await;
    assert!(ended.is_err());
    assert_eq!(world.calls(), ["clear old", "resume old"]);
}

#[tokio::test]
async fn an_apply_that_is_interrupted_leaves_no_device_suspended() {
    let world = World::with(OLD).await;
    let (interrupt, topology, allowed) =
        (Interrupt::default(), topology(GROWN), Allowed::default());
    let mut asked = Vec::new();
    let progress = |told: Progress<'_>| {
        if let Progress::Step { step, .. } = told
            && matches!(step.action, Action::Suspend { .. })
        {
            asked.extend([interrupt.ask(), interrupt.ask()]);
        }
    };
    let (kernel, nodes) = (&world.kernel, &world.nodes);
    let ended = apply(&interrupt, kernel, nodes, &topology, &allowed, progress).await;
    let text = ended.unwrap_err().to_string();
    assert!(
        text.contains("interrupted") && text.contains("resume device old"),
        "{text}"
    );
    assert!(text.ends_with("\nWhat wasn't complete was taken back."));
    assert_eq!(asked, [Asked::Soon, Asked::Again]);
    let calls = ["load old", "suspend old", "clear old", "resume old"];
    assert_eq!(world.calls(), calls);
    // Nothing is begun any more; between steps the work may be dropped.
    let ended = apply(&interrupt, kernel, nodes, &topology, &allowed, |_| {}).await;
    assert!(ended.is_err());
    assert_eq!(world.calls(), calls);
    assert_eq!(Interrupt::default().ask(), Asked::AtOnce);
}

#[tokio::test]
async fn a_suspend_that_worked_and_said_that_it_failed_is_taken_back() {
    let world = World::with(OLD).await;
    world
        .kernel
        .go_wrong([(When::At("suspend old"), Fault::Lies)]);
    let failed = world.apply(GROWN, &Allowed::default()).await;
    assert!(matches!(failed, Err(ApplyError::Failed(_))), "{failed:?}");
    assert_eq!(
        world.calls(),
        ["load old", "suspend old", "clear old", "resume old"]
    );
}

#[tokio::test]
async fn a_device_that_is_renamed_in_the_topology_is_renamed_by_hand_and_then_all_is_right() {
    let world = World::with(OLD).await;
    world.opened("old");
    let renamed = GROWN.replace("old", "new");
    let text = world.refused(&renamed).await;
    let advice =
        "`dstd rename old new` if it is the same, `dstd remove old` first, when nobody has it open";
    assert!(text.contains(advice), "{text}");
    let (old, new) = ("old".parse().unwrap(), "new".parse().unwrap());
    world.kernel.rename(&old, &new).unwrap();
    world.apply(&renamed, &Allowed::default()).await.unwrap();
    let calls = world.calls();
    assert_eq!(
        calls,
        ["rename old new", "load new", "suspend new", "resume new"]
    );
    // Its UUID is what it was, and one that gets its old name has another.
    let both = format!("{renamed}, old: {{table: [dst: {{node: b}}]}}");
    world.apply(&both, &Allowed::default()).await.unwrap();
    let uuids: Vec<_> = world
        .kernel
        .devices()
        .unwrap()
        .into_iter()
        .map(|d| (d.name, d.uuid.0))
        .collect();
    let expected =
        [("new", "DST-old"), ("old", "DST-old.2")].map(|(n, u)| (n.to_owned(), u.to_owned()));
    assert_eq!(uuids, expected);
    assert!(world.kernel.state().forbidden.is_empty());
}

#[tokio::test]
async fn devices_that_wait_for_each_other_are_refused() {
    let both = |old: &str, new: &str| {
        let device = |name: &str, node: &str| {
            format!("{name}: {{table: [dst: {{node: {node}, length: 8s}}]}}")
        };
        format!("{}, {}", device("old", old), device("new", new))
    };
    let world = World::with(&both("a", "b")).await;
    let mut allowed = Allowed::default();
    for device in ["old", "new"] {
        allowed.other_data.insert(device.parse().unwrap());
    }
    let refused = world.apply(&both("b", "a"), &allowed).await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, ApplyError::Refused { .. }), "{text}");
    let expected = "! device old: device new still writes 8 sectors of node b";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn nothing_is_pruned_for_a_device_that_is_refused() {
    let kept = "new: {table: [dst: {node: b, length: 8s}]}";
    let world = World::with(&format!("{OLD}, {kept}")).await;
    let moved = "new: {table: [dst: {node: a, length: 8s}]}";
    let refused = world.apply(moved, &prune()).await.unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, ApplyError::Refused { .. }), "{text}");
    assert!(text.contains("--allow-other-data new"), "{text}");
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn nothing_is_pruned_for_a_device_whose_node_does_not_answer() {
    let world = World::with(OLD).await;
    world.nodes.exports().remove("nbd://b/");
    let text = world.apply(NEW, &prune()).await.unwrap_err().to_string();
    assert!(text.starts_with("nothing was changed:\nnode b: "), "{text}");
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn what_lies_beside_a_device_is_cleared_before_another_one_gets_its_ranges() {
    let world = World::with(OLD).await;
    let (old, lines) = (
        "old".parse().unwrap(),
        ["0 16 dst 1 a 0 16".parse().unwrap()],
    );
    let loaded = world.kernel.load(&old, &lines, Access::ReadWrite);
    loaded.unwrap();
    world.kernel.state().calls.clear();
    // In the order of names it would be cleared last.
    let new = "new: {table: [dst: {node: a, offset: 8s, length: 8s}]}";
    let both = format!("{OLD}, {new}");
    world.apply(&both, &Allowed::default()).await.unwrap();
    assert_eq!(
        world.calls(),
        ["clear old", "create new", "load new", "resume new"]
    );
}

#[tokio::test]
async fn devices_that_share_some_of_a_node_come_to_share_no_more() {
    let world = World::with(GROWN).await;
    world.by_hand("new", "0 8 dst 1 a 0 8");
    let text = world
        .refused("new: {table: [dst: {node: a, length: 12s}]}")
        .await;
    let expected = "! device new: device old, which is in no topology, writes 12 sectors of node a from sector 0 on, too";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn new_devices_of_one_plan_get_uuids_of_their_own() {
    let world = World::with(OLD).await;
    let (old, new) = ("old".parse().unwrap(), "new".parse().unwrap());
    world.kernel.rename(&old, &new).unwrap();
    let more = |name: &str, offset: u32| {
        format!("{name}: {{table: [dst: {{node: b, offset: {offset}s, length: 8s}}]}}")
    };
    let all = [OLD.replace("old", "new"), more("old", 0), more("old.2", 8)];
    world
        .apply(&all.join(", "), &Allowed::default())
        .await
        .unwrap();
    assert_eq!(world.names(), ["new", "old", "old.2"]);
}

#[tokio::test]
async fn a_local_disk_is_written_by_one_device_too() {
    let world = World::with("").await;
    let disk = LocalDevice {
        number: DeviceNumber {
            major: 8,
            minor: 16,
        },
        size: Sectors(100),
        access: Access::ReadWrite,
    };
    let path = "/dev/vdb".into();
    world.kernel.state().locals.insert(path, disk);
    let old = "old: {table: [linear: {device: /dev/vdb}]}";
    world.apply(old, &Allowed::default()).await.unwrap();
    let text = world.refused(&old.replace("old", "new")).await;
    let expected = "device old, which is in no topology, writes 100 sectors of disk 8:16 from sector 0 on, too: \
                    `dstd rename old new` if it is the same";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.names(), ["old"]);
}

#[tokio::test]
async fn two_dstds_that_were_told_otherwise_never_give_one_range_to_two_devices() {
    let world = World::with(OLD).await;
    let (kernel, nodes) = (world.kernel.clone(), world.nodes.clone());
    // One has looked, and hangs when it begins; meanwhile the other one does what an older topology says.
    kernel.go_wrong([(When::At("create new"), Fault::Hangs)]);
    let new = "new: {table: [dst: {node: a, offset: 8s, length: 8s}]}";
    let newer = topology(&format!("{OLD}, {new}"));
    let slow = tokio::spawn(async move {
        let allowed = Allowed::default();
        apply(
            &Interrupt::default(),
            &kernel,
            &nodes,
            &newer,
            &allowed,
            |_| {},
        )
        .await
    });
    let mut hanging = world.kernel.hanging();
    hanging.wait_for(|calls| *calls > 0).await.unwrap();
    world.apply(GROWN, &Allowed::default()).await.unwrap();
    world.kernel.release();
    let text = slow.await.unwrap().unwrap_err().to_string();
    let expected = "switch the tables of new: device old has come to write 8 sectors of node a from sector 8 on, too";
    assert!(text.contains(expected), "{text}");
    assert_eq!(world.names(), ["old"]);
    assert!(world.kernel.state().forbidden.is_empty());
}

#[tokio::test]
async fn a_table_that_was_judged_against_another_one_does_not_go_live() {
    let world = World::with(OLD).await;
    let (kernel, nodes) = (world.kernel.clone(), world.nodes.clone());
    kernel.go_wrong([(When::At("load old"), Fault::Hangs)]);
    let slow = tokio::spawn(async move {
        let allowed = Allowed::default();
        apply(
            &Interrupt::default(),
            &kernel,
            &nodes,
            &topology(GROWN),
            &allowed,
            |_| {},
        )
        .await
    });
    let mut hanging = world.kernel.hanging();
    hanging.wait_for(|calls| *calls > 0).await.unwrap();
    let mut allowed = Allowed::default();
    allowed.other_data.insert("old".parse().unwrap());
    let other = "old: {table: [dst: {node: b, length: 8s}]}";
    world.apply(other, &allowed).await.unwrap();
    let lines = world.kernel.devices().unwrap().remove(0).lines;
    world.kernel.state().data_changes.clear();
    world.kernel.release();
    let text = slow.await.unwrap().unwrap_err().to_string();
    let expected = "switch the tables of old: it has got another table since it was looked at";
    assert!(text.contains(expected), "{text}");
    let device = world.kernel.devices().unwrap().remove(0);
    assert_eq!(device.lines, lines);
    assert!(!device.suspended && device.inactive.is_none());
    assert!(world.kernel.state().data_changes.is_empty());
}

#[tokio::test]
async fn a_device_that_was_left_suspended_goes_on_although_another_one_has_got_what_it_was_to_get()
{
    let world = World::left_suspended().await;
    let kernel = &world.kernel;
    world.by_hand("first", "0 8 dst 1 b 0 8 2 block_size 512");
    world.by_hand("new", "0 8 dst 1 a 8 8");
    let first = "first".parse().unwrap();
    kernel.suspend(&first, Flush::NoFlush).unwrap();
    kernel.state().calls.clear();
    let both = format!("first: {{table: [dst: {{node: b, length: 8s}}]}}, {OLD}");
    world.apply(&both, &Allowed::default()).await.unwrap();
    let calls = world.calls();
    assert_eq!(calls[..3], ["resume first", "clear old", "resume old"]);
}
