//! One node's trouble is nobody else's: dead nodes, failing steps, stuck calls, servers that drop every link.
//! In virtual time, against the simulated kernel and nodes: what is counted are tries, passes and seconds that never pass.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::run::{Daemon, Pass};
use super::worker::{Answer, Report, Want, Worker};
use super::*;
use crate::kernel::sim::{HANDSHAKE, SimKernel, SimNodes, export};
use crate::kernel::{Access, Conduct, DmUuid, Kernel, KernelEvent, NbdFlags, Policy};
use crate::plan::{Allowed, Connect};
use crate::topology::Topology;
use crate::units::NodeName;

const LONG: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(100);

struct World {
    kernel: Arc<SimKernel>,
    nodes: Arc<SimNodes>,
    daemon: Daemon<SimKernel, SimNodes>,
    inbox: mpsc::UnboundedReceiver<Report>,
    passes: usize,
}

fn good() -> NodeName {
    "zz-good".parse().unwrap()
}

impl World {
    /// So many nodes that never answer, and one that does; each has a device.
    fn new(dead: usize) -> Self {
        let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
        let names = (0..dead).map(|i| format!("dead{i}"));
        let names: Vec<_> = names.chain([good().to_string()]).collect();
        let (mut text, mut devices) = ("version: 1\nnodes:\n".to_owned(), String::new());
        for name in &names {
            text += &format!("  {name}: {{uri: 'nbd://{name}/'}}\n");
            devices += &format!("  {name}: {{table: [dst: {{node: {name}, length: 8s}}]}}\n");
            nodes.silent().insert(format!("nbd://{name}/"));
        }
        let uri = format!("nbd://{}/", good());
        nodes.silent().remove(&uri);
        nodes.exports().insert(uri, export(8, 0));
        let topology = Topology::parse_one("t.yaml", format!("{text}devices:\n{devices}"));
        let (daemon, inbox) = Daemon::new(kernel.clone(), nodes.clone(), topology.unwrap());
        World {
            nodes,
            kernel,
            daemon,
            inbox,
            passes: 0,
        }
    }

    fn is_live(&self) -> bool {
        let state = self.kernel.state();
        state.nodes.get(&good()).is_some_and(|node| node.live == 1)
    }

    /// Runs the daemon's passes, as reports ask for them.
    async fn run(&mut self, until: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !until(self) {
            assert!(begun.elapsed() < LONG, "in vain");
            self.passes += 1;
            if self.daemon.pass().await.unwrap().steps > 0 {
                continue;
            }
            tokio::select! {
                Some(report) = self.inbox.recv() => drop(self.daemon.hear(report)),
                () = sleep(MOMENT) => {}
            }
            while let Ok(report) = self.inbox.try_recv() {
                self.daemon.hear(report);
            }
        }
        begun.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_dead_nodes_do_not_slow_the_next_one_down() {
    let mut alone = World::new(0);
    let alone = alone.run(World::is_live).await;
    let mut world = World::new(200);
    let among = world.run(World::is_live).await;
    assert!(
        among <= alone + MOMENT,
        "{among:?} among dead nodes, {alone:?} alone"
    );
    assert!(world.passes < 10, "{} passes", world.passes);
    // Now all of them have failed a few times, and their devices are there.
    let late = Instant::now() + HANDSHAKE * 4;
    world.run(|_| Instant::now() >= late).await;
    assert_eq!(world.kernel.state().nodes.len(), 201);
    world.kernel.lose_links(&good(), &[0]);
    world.passes = 0;
    let again = world.run(World::is_live).await;
    assert!(again <= MOMENT * 3, "{again:?} for the second time");
    assert!(world.passes < 10, "{} passes", world.passes);
}

fn want() -> Want {
    Want::Links(Connect {
        node: good(),
        slots: Vec::new(),
        wanted: 1,
        zero_copy: None,
        replace: None,
        steal: false,
        same_data: false,
        conduct: Conduct::default(),
    })
}

/// A node with a table and a task, without a daemon.
fn worker() -> (
    Arc<SimKernel>,
    Arc<SimNodes>,
    Worker,
    mpsc::UnboundedReceiver<Report>,
) {
    let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
    let device = "d".parse().unwrap();
    let line = format!("0 8 dst 1 {} 0 8", good()).parse().unwrap();
    kernel
        .create(&device, &DmUuid::default(), Access::ReadWrite)
        .unwrap();
    kernel.load(&device, &[line], Access::ReadWrite).unwrap();
    let (reports, inbox) = mpsc::unbounded_channel();
    let uri = "nbd://g/".parse().unwrap();
    let worker = Worker::start(good(), uri, kernel.clone(), nodes.clone(), reports);
    (kernel, nodes, worker, inbox)
}

#[tokio::test(start_paused = true)]
async fn a_node_is_tried_for_ever_although_nobody_says_it_again() {
    let (kernel, nodes, worker, mut inbox) = worker();
    worker.tell(want());
    let begun = Instant::now();
    let mut tries = 0;
    while begun.elapsed() < Duration::from_secs(3600) {
        let report = timeout(LONG, inbox.recv()).await.unwrap().unwrap();
        assert!(matches!(report.answer, Answer::Failed(_)), "{report:?}");
        tries += 1;
    }
    assert!((120..300).contains(&tries), "{tries} tries in an hour");
    let export = export(8, NbdFlags::CAN_MULTI_CONN);
    nodes.exports().insert("nbd://g/".into(), export);
    let report = timeout(LONG, inbox.recv()).await.unwrap().unwrap();
    assert!(matches!(report.answer, Answer::Connected), "{report:?}");
    assert_eq!(kernel.state().nodes[&good()].live, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drops_every_link_at_once_is_not_asked_without_end() {
    let (kernel, nodes, worker, mut inbox) = worker();
    nodes.exports().insert("nbd://g/".into(), export(8, 0));
    let begun = Instant::now();
    for _ in 0..40 {
        worker.tell(want());
        timeout(LONG, inbox.recv()).await.unwrap().unwrap();
        kernel.lose_links(&good(), &[0]);
    }
    assert_eq!(nodes.attached().len(), 40);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(9), "forty links in {took:?}");
    assert!(took < Duration::from_secs(20), "forty links in {took:?}");
}

#[tokio::test]
async fn lost_data_is_counted_where_the_operator_looks() {
    let mut world = World::new(0);
    let node = good();
    let lost = KernelEvent::DataLost { node, writes: 7 };
    let pass = Pass::default();
    assert!(!world.daemon.status(&pass).contains("DATA LOST"));
    world.daemon.note(&lost);
    world.daemon.note(&lost);
    let status = world.daemon.status(&pass);
    assert!(
        status.contains("DATA LOST by node zz-good (2 times"),
        "{status}"
    );
}

#[tokio::test]
async fn missed_events_are_told_where_the_operator_looks() {
    let mut world = World::new(0);
    let pass = Pass::default();
    assert!(!world.daemon.status(&pass).contains("missed"));
    world.daemon.note(&KernelEvent::Overflow);
    let status = world.daemon.status(&pass);
    assert!(status.contains("events missed 1 times"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_nodes_task_that_ended_is_started_again() {
    let mut world = World::new(0);
    world.nodes.broken().insert(format!("nbd://{}/", good()));
    world.run(World::is_live).await;
    assert!(world.nodes.broken().is_empty(), "it has panicked once");
}

#[tokio::test]
async fn a_lost_link_does_not_wait_for_a_device_that_hangs() {
    let mut world = World::new(0);
    world.run(World::is_live).await;
    world
        .run(|world| !world.kernel.devices().unwrap()[0].suspended)
        .await;
    // The device changes, and its suspend hangs; meanwhile the link is lost.
    let name = good();
    let text = format!(
        "version: 1\nnodes:\n  {name}: {{uri: 'nbd://{name}/'}}\n\
         devices:\n  {name}: {{no_discard: true, table: [dst: {{node: {name}, length: 8s}}]}}\n"
    );
    world
        .daemon
        .replace(Topology::parse_one("t.yaml", text).unwrap());
    let (release, held) = std::sync::mpsc::channel();
    world.kernel.state().hold = Some(held);
    world.kernel.lose_links(&good(), &[0]);
    let kernel = Arc::clone(&world.kernel);
    let is_live = || kernel.state().nodes[&good()].live == 1;
    let pass = async {
        world.daemon.pass().await.unwrap();
        assert!(is_live(), "the pass ended before the link was there");
    };
    let watch = async {
        timeout(LONG, async {
            while !is_live() {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        drop(release);
    };
    tokio::join!(pass, watch);
    let lines = kernel.devices().unwrap()[0].lines.clone();
    assert!(lines[0].args.contains("no_discard"), "{lines:?}");
}

#[tokio::test]
async fn the_daemon_hears_of_a_lost_link_while_a_step_hangs() {
    let mut world = World::new(0);
    world.run(World::is_live).await;
    world
        .run(|world| !world.kernel.devices().unwrap()[0].suspended)
        .await;
    let World {
        kernel,
        nodes,
        daemon,
        ..
    } = world;
    drop(daemon);
    let name = good();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "version: 1\nnodes:\n  {name}: {{uri: 'nbd://{name}/'}}\n\
         devices:\n  {name}: {{no_discard: true, table: [dst: {{node: {name}, length: 8s}}]}}\n"
    );
    std::fs::write(dir.path().join("t.yaml"), text).unwrap();
    let (release, held) = std::sync::mpsc::channel();
    kernel.state().hold = Some(held);
    let paths = vec![dir.path().to_owned()];
    let daemon = tokio::spawn(run(kernel.clone(), nodes, paths, None));
    // Before the hanging call is given up, which would let the loop go on, too.
    let soon = Duration::from_secs(20);
    let wait = async |what: &str, is_so: &dyn Fn() -> bool| {
        let reached = async {
            while !is_so() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(soon, reached).await.is_ok(), "never: {what}");
    };
    wait("its suspend hangs", &|| kernel.state().hold.is_none()).await;
    kernel.lose_links(&name, &[0]);
    let is_live = || kernel.state().nodes[&name].live == 1;
    wait("the link is back", &is_live).await;
    assert!(
        kernel
            .state()
            .calls
            .last()
            .unwrap()
            .starts_with("links_set")
    );
    drop(release);
    let is_loaded = || {
        let device = &kernel.devices().unwrap()[0];
        !device.suspended && device.lines[0].args.contains("no_discard")
    };
    wait("the change is complete", &is_loaded).await;
    daemon.abort();
}

#[tokio::test(start_paused = true)]
async fn a_glance_brings_links_back_and_takes_no_step() {
    let mut world = World::new(0);
    world.run(World::is_live).await;
    let pass = world.daemon.pass().await.unwrap();
    assert_eq!(pass.steps, 0);
    // The node's task has met all it was told.
    sleep(MOMENT * 10).await;
    while world.inbox.try_recv().is_ok() {}
    let text = format!(
        "version: 1\nnodes:\n  {0}: {{uri: 'nbd://{0}/', policy: error}}\ndevices: {{}}\n",
        good()
    );
    world
        .daemon
        .replace(Topology::parse_one("t.yaml", text).unwrap());
    world.kernel.lose_links(&good(), &[0]);
    let before = world.kernel.state().calls.len();
    world.daemon.glance().await.unwrap();
    timeout(LONG, world.inbox.recv()).await.unwrap().unwrap();
    assert!(world.is_live());
    // The device is left as it is.
    let calls = world.kernel.state().calls[before..].to_vec();
    assert_eq!(calls, ["set_conduct zz-good", "links_set zz-good"]);
}

#[tokio::test(start_paused = true)]
async fn the_settings_of_a_dead_node_change_at_once() {
    let mut world = World::new(0);
    world.run(World::is_live).await;
    let uri = format!("nbd://{}/", good());
    world.nodes.silent().insert(uri);
    world.kernel.lose_links(&good(), &[0]);
    let text = |policy: &str| {
        let text = format!(
            "version: 1\nnodes:\n  {0}: {{uri: 'nbd://{0}/', policy: {policy}}}\n\
             devices:\n  {0}: {{table: [dst: {{node: {0}, length: 8s}}]}}\n",
            good()
        );
        Topology::parse_one("t.yaml", text).unwrap()
    };
    let begun = Instant::now();
    let kernel = Arc::clone(&world.kernel);
    let policy = || kernel.state().nodes[&good()].conduct.policy;
    // By the daemon, without a pass.
    world.daemon.replace(text("error"));
    world.daemon.glance().await.unwrap();
    assert_eq!(policy(), Policy::Error);
    drop(world.daemon);
    // By hand: before the node is asked, which fails.
    let (queue, allowed) = (text("queue"), Allowed::default());
    let interrupt = Interrupt::default();
    let progress = |told: Progress<'_>| {
        let is_step = matches!(told, Progress::Step { .. });
        assert!(!is_step || begun.elapsed() < HANDSHAKE);
    };
    let apply = apply(
        &interrupt,
        &kernel,
        &world.nodes,
        &queue,
        &allowed,
        progress,
    );
    let error = apply.await.unwrap_err().to_string();
    assert!(
        error.contains("nothing was changed but the settings of one node")
            && error.contains("no answer"),
        "{error}"
    );
    assert_eq!(policy(), Policy::Queue);
}

/// In virtual time: the regular look would come after ten seconds.
#[tokio::test(start_paused = true)]
async fn a_device_that_somebody_removes_is_made_again_because_the_kernel_tells_of_it() {
    let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
    let name = good();
    nodes
        .exports()
        .insert(format!("nbd://{name}/"), export(8, 0));
    let text = format!(
        "version: 1\nnodes:\n  {name}: {{uri: 'nbd://{name}/'}}\n\
         devices:\n  d: {{table: [dst: {{node: {name}, length: 8s}}]}}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.yaml"), text).unwrap();
    let paths = vec![dir.path().to_owned()];
    let daemon = tokio::spawn(run(kernel.clone(), nodes, paths, None));
    let device = "d".parse().unwrap();
    let made = || {
        let calls = kernel.state().calls.clone();
        calls.iter().filter(|call| *call == "resume d").count()
    };
    let live = || kernel.state().nodes.get(&name).is_some_and(|n| n.live == 1);
    let until = async |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    for times in 1..=3 {
        let made_and_live = || made() == times && live();
        let begun = Instant::now();
        timeout(LONG, until(&made_and_live)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "by chance");
        // What its own steps told is heard, and no reason for more of them.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(made(), times);
        kernel.remove(&device).unwrap();
    }
    daemon.abort();
}
