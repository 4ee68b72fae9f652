//! apply and the daemon's passes against the simulated kernel, case by case.

use std::sync::Arc;
use std::time::Duration;

use super::run::{Daemon, Pass};
use super::worker::{Answer, Report};
use super::*;
use crate::kernel::sim::{SimKernel, SimNodes, export};
use crate::kernel::{Conduct, Kernel, NbdFlags, Negotiated, NodeState, Policy};
use crate::plan::{Allowed, plan};
use crate::topology::Topology;
use crate::units::{Id, NodeName};

const MULTI: u16 = NbdFlags::CAN_MULTI_CONN;

struct World {
    kernel: Arc<SimKernel>,
    nodes: Arc<SimNodes>,
}

impl World {
    fn new() -> Self {
        let nodes = SimNodes::default();
        nodes
            .exports()
            .insert("nbd://a/".into(), export(1000, MULTI));
        nodes.exports().insert("nbd://b/".into(), export(2000, 0));
        Self {
            kernel: Arc::default(),
            nodes: Arc::new(nodes),
        }
    }

    async fn apply(&self, text: &str) -> Result<Applied, ApplyError> {
        self.apply_allowed(text, &Allowed::default()).await
    }

    async fn apply_allowed(&self, text: &str, allowed: &Allowed) -> Result<Applied, ApplyError> {
        apply(
            &Interrupt::default(),
            &self.kernel,
            &self.nodes,
            &topology(text),
            allowed,
            |_| {},
        )
        .await
    }

    fn table(&self) -> Vec<String> {
        let devices = self.kernel.devices().unwrap();
        devices
            .iter()
            .flat_map(|d| &d.lines)
            .map(ToString::to_string)
            .collect()
    }

    fn node(&self, name: &str) -> crate::kernel::ObservedNode {
        self.kernel.state().nodes[&name.parse::<NodeName>().unwrap()].clone()
    }
}

fn topology(text: &str) -> Topology {
    let nodes =
        "version: 1\nnodes: {a: {uri: \"nbd://a/\", links: 2}, b: {uri: \"nbd://b/\", links: 2}}\n";
    Topology::parse_one("test.yaml", format!("{nodes}{text}")).unwrap()
}

const ONE: &str = "devices: {d: {table: [dst: {node: a}]}}";
const TWO: &str = "devices: {d: {table: [dst: {node: a}, dst: {node: b}]}}";

#[tokio::test]
async fn a_device_is_made_and_then_left_alone() {
    let world = World::new();
    let applied = world.apply(TWO).await.unwrap();
    assert_eq!(applied.steps, 5, "create, load, two connects, resume");
    assert_eq!(
        world.table(),
        ["0 3000 dst 2 a 0 1000 b 0 2000 2 block_size 512"]
    );
    assert_eq!((world.node("a").live, world.node("a").wanted), (2, 2));
    // Without multi-conn one link is all there may be.
    assert_eq!(
        (world.node("b").live, world.node("b").state),
        (1, NodeState::Live)
    );
    let calls = world.kernel.state().calls.len();
    assert_eq!(world.apply(TWO).await.unwrap().steps, 0);
    assert_eq!(world.kernel.state().calls.len(), calls);
}

#[tokio::test]
async fn growing_loads_before_it_suspends() {
    let world = World::new();
    world.apply(ONE).await.unwrap();
    world.kernel.state().calls.clear();
    world.apply(TWO).await.unwrap();
    let calls = world.kernel.state().calls.clone();
    assert_eq!(calls, ["load d", "links_set b", "suspend d", "resume d"]);
    assert!(world.kernel.state().data_changes.is_empty());
}

#[tokio::test]
async fn an_export_that_grew_makes_the_device_grow() {
    let world = World::new();
    world.apply(ONE).await.unwrap();
    world
        .nodes
        .exports()
        .insert("nbd://a/".into(), export(1500, MULTI));
    world.kernel.state().calls.clear();
    world.apply(ONE).await.unwrap();
    let calls = world.kernel.state().calls.clone();
    assert_eq!(calls, ["links_set a", "load d", "suspend d", "resume d"]);
    assert_eq!(world.table(), ["0 1500 dst 1 a 0 1500 2 block_size 512"]);
}

#[tokio::test]
async fn shrinking_and_reordering_need_to_be_named() {
    let world = World::new();
    world.apply(TWO).await.unwrap();
    let before = world.table();
    let error = world.apply(ONE).await.unwrap_err().to_string();
    assert!(error.contains("shrink from 3000 to 1000"), "{error}");
    assert!(error.contains("--allow-shrink d allows it"), "{error}");
    let swapped = "devices: {d: {table: [dst: {node: b}, dst: {node: a}]}}";
    let error = world.apply(swapped).await.unwrap_err().to_string();
    assert!(
        error.contains("sector 0 and what follows would show other data"),
        "{error}"
    );
    assert_eq!(world.table(), before);
    let mut allowed = Allowed::default();
    allowed.shrink.insert("d".parse().unwrap());
    world.apply_allowed(ONE, &allowed).await.unwrap();
    assert_eq!(world.table(), ["0 1000 dst 1 a 0 1000 2 block_size 512"]);
    assert!(
        !world
            .kernel
            .state()
            .nodes
            .contains_key(&"b".parse().unwrap())
    );
}

#[tokio::test]
async fn an_unreachable_node_changes_nothing() {
    let world = World::new();
    world.nodes.exports().remove("nbd://b/");
    let error = world.apply(TWO).await.unwrap_err().to_string();
    assert!(
        error.contains("nothing was changed") && error.contains("nbd://b/: connection refused"),
        "{error}"
    );
    assert!(world.kernel.state().calls.is_empty());
    let explicit = "devices: {d: {table: [dst: {node: b, length: 8s}]}}";
    let error = world.apply(explicit).await.unwrap_err().to_string();
    assert!(error.contains("nbd://b/: connection refused"), "{error}");
    assert!(world.kernel.state().calls.is_empty());
}

#[tokio::test]
async fn a_failed_step_is_taken_back() {
    let world = World::new();
    // The device-mapper's own limit on what may be loaded stands for any refusal of a load.
    let raw = "devices: {d: {table: [dst: {node: a}]}, e: {table: [\"0 8 dst 1 b 0 8 3 block_size 512 read_only\"], read_only: true}}";
    world.kernel.revive(crate::kernel::sim::Death::Before(3));
    let error = world.apply(raw).await.unwrap_err().to_string();
    assert!(error.contains("the daemon is dead"), "{error}");
    world.kernel.revive(crate::kernel::sim::Death::Never);
    world.apply(raw).await.unwrap();
    assert_eq!(world.table().len(), 2);
}

#[tokio::test]
async fn devices_of_others_are_never_touched() {
    let world = World::new();
    let name = "d".parse().unwrap();
    let uuid = crate::kernel::DmUuid("LVM-x".into());
    world
        .kernel
        .create(&name, &uuid, crate::kernel::Access::ReadWrite)
        .unwrap();
    world.kernel.state().calls.clear();
    let error = world.apply(ONE).await.unwrap_err().to_string();
    assert!(error.contains("isn't dstd's (UUID LVM-x)"), "{error}");
    assert!(world.kernel.state().calls.is_empty());
}

#[tokio::test]
async fn a_device_that_left_the_topology_stays_until_pruned() {
    let world = World::new();
    world.apply(ONE).await.unwrap();
    let applied = world.apply("devices: {}").await.unwrap();
    assert!(
        applied.notes[0].contains("device d is dstd's and in no topology"),
        "{:?}",
        applied.notes
    );
    let prune = Allowed {
        prune: true,
        ..Allowed::default()
    };
    world
        .kernel
        .state()
        .devices
        .get_mut("d")
        .unwrap()
        .open_count = 1;
    let error = world
        .apply_allowed("devices: {}", &prune)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("in use (1 opened it)"), "{error}");
    world
        .kernel
        .state()
        .devices
        .get_mut("d")
        .unwrap()
        .open_count = 0;
    world.apply_allowed("devices: {}", &prune).await.unwrap();
    assert!(world.kernel.state().devices.is_empty());
}

#[tokio::test]
async fn a_read_only_export_makes_a_read_only_device() {
    let world = World::new();
    world
        .nodes
        .exports()
        .insert("nbd://a/".into(), export(1000, MULTI | NbdFlags::READ_ONLY));
    world.apply(ONE).await.unwrap();
    assert_eq!(
        world.table(),
        ["0 1000 dst 1 a 0 1000 3 block_size 512 read_only"]
    );
    assert_eq!(
        world.kernel.devices().unwrap()[0].access,
        crate::kernel::Access::ReadOnly
    );
    let world = World::new();
    world
        .nodes
        .exports()
        .insert("nbd://a/".into(), export(1000, NbdFlags::READ_ONLY));
    let error = world
        .apply("devices: {d: {table: [dst: {node: a}], read_only: false}}")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("`read_only: false`"), "{error}");
}

#[tokio::test]
async fn a_large_minimum_block_is_never_silently_taken() {
    let world = World::new();
    let mut big = export(1001, 0);
    big.min_block = 4096;
    world.nodes.exports().insert("nbd://b/".into(), big);
    let error = world.apply(TWO).await.unwrap_err().to_string();
    assert!(
        error.contains("set `block_size: 4096` on device `d`"),
        "{error}"
    );
    assert!(
        error.contains("node `b`") && error.contains("test.yaml:3:"),
        "{error}"
    );
    world
        .apply("devices: {d: {block_size: 4096, table: [dst: {node: b}]}}")
        .await
        .unwrap();
    // The last partial block of the export is left out.
    assert_eq!(world.table(), ["0 1000 dst 1 b 0 1000 2 block_size 4096"]);
}

/// Passes until the daemon has settled; every report of its workers is heard.
async fn settle(
    daemon: &mut Daemon<SimKernel, SimNodes>,
    inbox: &mut tokio::sync::mpsc::UnboundedReceiver<Report>,
) {
    for _ in 0..1000 {
        let pass = daemon.pass().await.unwrap();
        if daemon.settled(&pass) && pass.wanting.is_empty() {
            return;
        }
        if !pass.wanting.is_empty() {
            let report = inbox.recv().await.unwrap();
            daemon.hear(report);
        }
    }
    panic!("the daemon never settles");
}

#[tokio::test(start_paused = true)]
async fn the_daemon_brings_back_what_is_lost() {
    let world = World::new();
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(TWO));
    settle(&mut daemon, &mut inbox).await;
    assert_eq!(
        world.table(),
        ["0 3000 dst 2 a 0 1000 b 0 2000 2 block_size 512"]
    );
    world.kernel.lose_links(&"a".parse().unwrap(), &[1]);
    settle(&mut daemon, &mut inbox).await;
    assert_eq!(world.node("a").live, 2);
    assert_eq!(
        world.node("a").generation.0,
        3,
        "only the lost link was made anew"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_only_told_its_size_keeps_the_daemon_from_being_ready() {
    let world = World::new();
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(TWO));
    let unasked = daemon.pass().await.unwrap();
    assert!(!daemon.settled(&unasked));
    for _ in 0..2 {
        daemon.hear(inbox.recv().await.unwrap());
    }
    assert!(daemon.settled(&unasked), "sizes were all it wanted");
    let made = daemon.pass().await.unwrap();
    // The same look again, with nothing left but links.
    let unlinked = Pass { steps: 0, ..made };
    assert_eq!(unlinked.wanting.len(), 2);
    assert!(!daemon.settled(&unlinked), "no link was tried");
    for _ in 0..2 {
        assert!(!daemon.settled(&unlinked));
        daemon.hear(inbox.recv().await.unwrap());
    }
    assert!(daemon.settled(&unlinked));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_does_not_keep_the_daemon_from_being_ready() {
    let world = World::new();
    world.nodes.exports().remove("nbd://b/");
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(TWO));
    let pass = daemon.pass().await.unwrap();
    for _ in 0..2 {
        assert!(!daemon.settled(&pass));
        daemon.hear(inbox.recv().await.unwrap());
    }
    let pass = daemon.pass().await.unwrap();
    assert!(daemon.settled(&pass));
    assert!(world.table().is_empty(), "the size of b isn't known");
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_adopts_and_changes_nothing() {
    let world = World::new();
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(TWO));
    settle(&mut daemon, &mut inbox).await;
    drop(daemon);
    let calls = world.kernel.state().calls.len();
    // Not even a probe is needed: the nodes may be out of reach for a second connection.
    world.nodes.exports().clear();
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(TWO));
    settle(&mut daemon, &mut inbox).await;
    assert_eq!(world.kernel.state().calls.len(), calls);
}

#[tokio::test(start_paused = true)]
async fn the_daemon_waits_for_a_node_and_serves_the_others() {
    let world = World::new();
    let late = world.nodes.exports().remove("nbd://b/").unwrap();
    let both = "devices: {d: {table: [dst: {node: a}]}, e: {table: [dst: {node: b}]}}";
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(both));
    for _ in 0..6 {
        daemon.pass().await.unwrap();
        let report = inbox.recv().await.unwrap();
        daemon.hear(report);
    }
    assert_eq!(world.table(), ["0 1000 dst 1 a 0 1000 2 block_size 512"]);
    world.nodes.exports().insert("nbd://b/".into(), late);
    settle(&mut daemon, &mut inbox).await;
    assert_eq!(world.table().len(), 2);
}

fn step_told(told: Progress<'_>) -> Option<String> {
    match told {
        Progress::Step { step, .. } => Some(step.to_string()),
        Progress::Asking { .. } => None,
    }
}

#[tokio::test]
async fn who_waits_is_told_which_nodes_are_silent_and_how_many_steps_there_are() {
    let world = World::new();
    let mut told = Vec::new();
    let progress = |now: Progress<'_>| {
        told.push(match now {
            Progress::Asking { silent, of } => format!("{} of {of} silent", silent.len()),
            Progress::Step { nth, of, .. } => format!("step {nth} of {of}"),
        });
    };
    let allowed = Allowed::default();
    let (kernel, nodes) = (&world.kernel, &world.nodes);
    let (interrupt, topology) = (Interrupt::default(), topology(TWO));
    let work = apply(&interrupt, kernel, nodes, &topology, &allowed, progress);
    let steps = work.await.unwrap().steps;
    let asked = ["2 of 2 silent", "1 of 2 silent", "0 of 2 silent"].map(str::to_owned);
    let taken = (1..=steps).map(|nth| format!("step {nth} of {steps}"));
    let expected: Vec<_> = asked.into_iter().chain(taken).collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn the_role_is_stolen_for_the_named_node_only_and_the_plan_says_so() {
    let world = World::new();
    let allowed = Allowed {
        steal: ["a".parse().unwrap()].into(),
        ..Allowed::default()
    };
    let mut steps = Vec::new();
    let topology = topology(TWO);
    let progress = |told: Progress<'_>| steps.extend(step_told(told));
    let applied = apply(
        &Interrupt::default(),
        &world.kernel,
        &world.nodes,
        &topology,
        &allowed,
        progress,
    )
    .await;
    applied.unwrap();
    let stolen: Vec<bool> = world.nodes.attached().iter().map(|a| a.steal).collect();
    assert_eq!(stolen, [true, true, false], "two links of a, one of b");
    let said: Vec<_> = steps
        .iter()
        .filter(|s| s.contains("taking the writer role"))
        .collect();
    assert!(
        said.len() == 1 && said[0].contains("connect node a, slot 0 1"),
        "{said:?}"
    );
}

fn with_settings(settings: &str) -> Topology {
    let text =
        format!("version: 1\nnodes: {{a: {{uri: \"nbd://a/\", links: 2{settings}}}}}\n{ONE}");
    Topology::parse_one("test.yaml", text).unwrap()
}

#[tokio::test]
async fn settings_come_before_the_first_link_and_change_without_a_reload() {
    let world = World::new();
    let apply_to = async |settings| {
        world.kernel.state().calls.clear();
        let topology = with_settings(settings);
        let mut shown = Vec::new();
        let progress = |told: Progress<'_>| shown.extend(step_told(told));
        let allowed = Allowed::default();
        apply(
            &Interrupt::default(),
            &world.kernel,
            &world.nodes,
            &topology,
            &allowed,
            progress,
        )
        .await
        .unwrap();
        (world.kernel.state().calls.clone(), shown)
    };
    let (calls, shown) = apply_to(", policy: error, quiesce: never").await;
    assert_eq!(
        calls,
        [
            "create d",
            "load d",
            "set_conduct a",
            "links_set a",
            "resume d"
        ]
    );
    assert_eq!(
        shown[2],
        "~ set node a: policy queue -> error, quiesce 10s -> never: the topology says so"
    );
    let conduct = world.node("a").conduct;
    assert_eq!((conduct.policy, conduct.quiesce), (Policy::Error, None));

    let (calls, shown) =
        apply_to(", policy: {queue_for: 5m}, timeout: 1s, unknown_restart: eio").await;
    assert_eq!(calls, ["set_conduct a"]);
    assert_eq!(
        shown,
        [
            "~ set node a: policy error -> queue_for 5m, quiesce never -> 10s, unknown_restart trust -> eio, \
          timeout 30s -> 1s: the topology says so"
        ]
    );
    let (calls, _) = apply_to("").await;
    assert_eq!(calls, ["set_conduct a"]);
    assert_eq!(world.node("a").conduct, Conduct::default());
    let (calls, _) = apply_to("").await;
    assert!(calls.is_empty(), "{calls:?}");
}

#[tokio::test]
async fn a_node_whose_export_does_not_fit_gets_its_settings_all_the_same() {
    let world = World::new();
    world.apply(ONE).await.unwrap();
    world.kernel.lose_links(&"a".parse().unwrap(), &[0, 1]);
    let small = export(10, MULTI);
    world.nodes.exports().insert("nbd://a/".into(), small);
    let topology = with_settings(", policy: error");
    let allowed = Allowed::default();
    let (survey, _) = survey(&world.kernel, &world.nodes, &topology)
        .await
        .unwrap();
    let plan = plan(&survey.desired, &survey.observed, &allowed);
    assert!(
        plan.to_string()
            .contains("! node a: its export has 5120 bytes"),
        "{plan}"
    );
    assert!(
        plan.to_string()
            .contains("~ set node a: policy queue -> error"),
        "{plan}"
    );
}

fn told(identity: u8) -> Negotiated {
    Negotiated {
        identity: Some(Id([identity; 16])),
        incarnation: Some(Id([7; 16])),
        ..export(1000, MULTI)
    }
}

#[tokio::test]
async fn another_export_at_a_nodes_address_is_refused_until_it_is_said_to_hold_the_same_data() {
    let world = World::new();
    let serves = |export| drop(world.nodes.exports().insert("nbd://a/".into(), export));
    serves(told(1));
    world.apply(ONE).await.unwrap();
    let first = world.node("a");
    world.kernel.lose_links(&"a".parse().unwrap(), &[0, 1]);
    // A stock server tells nothing: then it isn't the one that told.
    for (other, found) in [
        (told(2), "02".repeat(16)),
        (export(1000, MULTI), "doesn't tell".into()),
    ] {
        serves(other);
        let error = world.apply(ONE).await.unwrap_err().to_string();
        assert!(
            error.contains(&found) && error.contains(&"01".repeat(16)),
            "{error}"
        );
        assert!(error.contains("--same-data a allows it"), "{error}");
        assert_eq!(world.node("a").live, 0);
    }
    serves(told(2));
    let mut allowed = Allowed::default();
    allowed.same_data.insert("a".parse().unwrap());
    world.apply_allowed(ONE, &allowed).await.unwrap();
    let node = world.node("a");
    assert_eq!(node.live, 2);
    assert_eq!(node.negotiated.unwrap().identity, Some(Id([2; 16])));
    assert_ne!(
        node.session, first.session,
        "its server never knew the old links"
    );
    // From here on it is the node's.
    world.kernel.lose_links(&"a".parse().unwrap(), &[0]);
    world.apply(ONE).await.unwrap();
    assert_eq!(world.node("a").live, 2);
}

#[tokio::test]
async fn a_new_address_takes_all_links_or_none() {
    let world = World::new();
    world.apply(ONE).await.unwrap();
    world
        .nodes
        .exports()
        .insert("nbd://z/".into(), export(1000, MULTI));
    let text = format!("version: 1\nnodes: {{a: {{uri: \"nbd://z/\", links: 2}}}}\n{ONE}");
    let moved = Topology::parse_one("test.yaml", text).unwrap();
    let to = |allowed| {
        let (kernel, nodes, moved) = (&world.kernel, &world.nodes, &moved);
        async move {
            apply(
                &Interrupt::default(),
                kernel,
                nodes,
                moved,
                &allowed,
                |_| {},
            )
            .await
        }
    };
    // Both links are live, and a third party sees what is wrong without losing one.
    let error = to(Allowed::default()).await.unwrap_err().to_string();
    assert!(error.contains("lead to another address"), "{error}");
    assert!(error.contains("--same-data a allows it"), "{error}");
    assert_eq!(world.node("a").generation.0, 2);
    let mut allowed = Allowed::default();
    allowed.same_data.insert("a".parse().unwrap());
    to(allowed).await.unwrap();
    let links: Vec<_> = world
        .node("a")
        .links
        .iter()
        .map(|l| l.generation.0)
        .collect();
    assert_eq!(links, [3, 4]);
    assert_eq!(to(Allowed::default()).await.unwrap().steps, 0);
}

#[tokio::test(start_paused = true)]
async fn the_daemon_takes_no_other_export_and_goes_on_when_the_right_one_is_back() {
    let world = World::new();
    world.nodes.exports().insert("nbd://a/".into(), told(1));
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(ONE));
    settle(&mut daemon, &mut inbox).await;
    world.kernel.lose_links(&"a".parse().unwrap(), &[0, 1]);
    world.nodes.exports().insert("nbd://a/".into(), told(2));
    for _ in 0..5 {
        daemon.pass().await.unwrap();
        let report = inbox.recv().await.unwrap();
        match &report.answer {
            Answer::Failed(why) => assert!(why.contains("dstd apply --same-data a"), "{why}"),
            other => panic!("{other:?}"),
        }
        daemon.hear(report);
    }
    assert_eq!(world.node("a").live, 0);
    world.nodes.exports().insert("nbd://a/".into(), told(1));
    settle(&mut daemon, &mut inbox).await;
    assert_eq!(world.node("a").live, 2);
}

/// The wrong server is there just when the daemon asks for sizes; later the right one is back.
#[tokio::test(start_paused = true)]
async fn what_a_node_said_once_does_not_keep_it_away_for_ever() {
    for wrong in [told(2), export(10, MULTI)] {
        let world = World::new();
        world.nodes.exports().insert("nbd://a/".into(), told(1));
        let (mut daemon, mut inbox) =
            Daemon::new(world.kernel.clone(), world.nodes.clone(), topology(ONE));
        settle(&mut daemon, &mut inbox).await;
        world.nodes.exports().insert("nbd://a/".into(), wrong);
        daemon.replace(topology(ONE));
        let mut refused = 0;
        for pass in 0..30 {
            refused += daemon.pass().await.unwrap().refusals;
            match pass {
                2 => world.kernel.lose_links(&"a".parse().unwrap(), &[0, 1]),
                10 => drop(world.nodes.exports().insert("nbd://a/".into(), told(1))),
                _ => {}
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            while let Ok(report) = inbox.try_recv() {
                daemon.hear(report);
            }
        }
        assert!(refused > 0, "the wrong answer was never seen");
        assert_eq!(world.node("a").live, 2);
    }
}

fn made_by_hand(world: &World) {
    let name = "hand".parse().unwrap();
    let line = "0 8 dst 1 a 0 8".parse().unwrap();
    world
        .kernel
        .create(
            &name,
            &crate::kernel::DmUuid::default(),
            crate::kernel::Access::ReadWrite,
        )
        .unwrap();
    world
        .kernel
        .load(&name, &[line], crate::kernel::Access::ReadWrite)
        .unwrap();
}

#[tokio::test]
async fn nodes_of_tables_made_by_hand_get_their_links() {
    let world = World::new();
    made_by_hand(&world);
    world.apply("devices: {}").await.unwrap();
    assert_eq!(world.node("a").live, 2);
}

#[tokio::test]
async fn a_node_that_does_not_fit_a_table_made_by_hand_says_so() {
    let world = World::new();
    made_by_hand(&world);
    let mut large = export(1000, MULTI);
    large.min_block = 4096;
    world.nodes.exports().insert("nbd://a/".into(), large);
    let error = world.apply("devices: {}").await.unwrap_err().to_string();
    assert!(error.contains("4096"), "{error}");
    assert_eq!(world.node("a").state, NodeState::Mismatch);
    // Once the server is mended the node goes live.
    let fits = export(1000, MULTI);
    world.nodes.exports().insert("nbd://a/".into(), fits);
    world.apply("devices: {}").await.unwrap();
    assert_eq!(world.node("a").state, NodeState::Live);
}

#[tokio::test]
async fn a_target_that_prints_other_words_is_explained() {
    let world = World::new();
    let error = world
        .apply("devices: {d: {table: [\"0 8 talkative so much\"]}}")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("as `dmsetup table` prints them"), "{error}");
    assert!(
        error.contains("Now: `0 8 talkative so much and more`"),
        "{error}"
    );
}
