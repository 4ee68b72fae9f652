//! Random topologies and histories, with the daemon dying between any two calls, against the simulated kernel.
//! Whatever happened, a later apply arrives at the topology, changes nothing more, and no sector ever showed other data.
//! proptest prints the seed of a failure and keeps it in proptest-regressions/.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::run::Daemon;
use super::*;
use crate::kernel::sim::{Death, SimKernel, SimNodes, export};
use crate::kernel::{Conduct, Kernel, LinkState, NbdFlags, ObservedDevice, Policy};
use crate::plan::Allowed;
use crate::table::DstArgs;
use crate::topology::Topology;
use crate::units::{Id, Millis};

const NODES: u64 = 5;
/// What each extent is cut from, so that ranges never overlap.
const CELL: u64 = 64;

/// A device: the cells it lies on, in order, as (node, length); the offset is the cell's own.
#[derive(Clone, Debug)]
struct Device {
    cells: Vec<(u64, u64)>,
}

/// A device's name, and its extents as (node, offset, length).
type Extents = (String, Vec<(u64, u64, u64)>);

/// What happens between two topologies.
#[derive(Clone, Debug)]
enum Event {
    /// A device gets more cells.
    Grow(Index, Vec<(u64, u64)>),
    /// The operator takes back what hasn't gone live yet.
    Undo(Index),
    /// A device that was not there before.
    Add(Device),
    /// A device leaves the topology; it may be pruned.
    Drop(Index),
    /// A node should have another number of links.
    Links(Index, u64),
    /// The network cuts links.
    Lose(Index),
    /// An export grows, or comes to announce multi-conn.
    Export(Index),
    /// A node should treat a loss in another way.
    Conduct(Index, usize),
    /// The network cuts links that carry writes.
    LoseWrites(Index),
    /// A server comes back without what wasn't flushed.
    Restart(Index),
}

/// Written and meant.
fn conducts() -> [(&'static str, Conduct); 3] {
    let default = Conduct::default();
    let wait = Policy::QueueFor(Millis::seconds(300));
    [
        ("", default),
        (
            ", policy: error, timeout: 5s",
            Conduct {
                policy: Policy::Error,
                timeout: Some(Millis::seconds(5)),
                ..default
            },
        ),
        (
            ", policy: {queue_for: 5m}, quiesce: never",
            Conduct {
                policy: wait,
                quiesce: None,
                ..default
            },
        ),
    ]
}

fn cells() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..NODES, 1..=CELL), 1..6)
}

fn device() -> impl Strategy<Value = Device> {
    cells().prop_map(|cells| Device { cells })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (any::<Index>(), cells()).prop_map(|(i, cells)| Event::Grow(i, cells)),
        3 => any::<Index>().prop_map(Event::Undo),
        2 => device().prop_map(Event::Add),
        1 => any::<Index>().prop_map(Event::Drop),
        1 => (any::<Index>(), 1..5u64).prop_map(|(i, n)| Event::Links(i, n)),
        1 => any::<Index>().prop_map(Event::Lose),
        1 => any::<Index>().prop_map(Event::Export),
        2 => (any::<Index>(), 0..3usize).prop_map(|(i, n)| Event::Conduct(i, n)),
        1 => any::<Index>().prop_map(Event::LoseWrites),
        1 => any::<Index>().prop_map(Event::Restart),
    ]
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        1 => Just(Death::Never),
        4 => (0..7u32).prop_map(Death::Before),
        4 => (0..7u32).prop_map(Death::After),
    ]
}

/// The world and the topology that is wanted of it.
struct World {
    kernel: Arc<SimKernel>,
    nodes: Arc<SimNodes>,
    devices: Vec<Extents>,
    links: Vec<u64>,
    sizes: Vec<u64>,
    conducts: Vec<usize>,
    starts: Vec<u8>,
    next_cell: Vec<u64>,
    next_name: u32,
}

impl World {
    fn new() -> Self {
        let world = Self {
            kernel: Arc::default(),
            nodes: Arc::default(),
            devices: Vec::new(),
            links: vec![2; NODES as usize],
            sizes: vec![1 << 20; NODES as usize],
            conducts: vec![0; NODES as usize],
            starts: vec![0; NODES as usize],
            next_cell: vec![0; NODES as usize],
            next_name: 0,
        };
        for node in 0..NODES {
            world.publish(node);
        }
        world
    }

    /// Every second node may have one link only; every third tells who it is.
    fn publish(&self, node: u64) {
        let flags = if node.is_multiple_of(2) {
            NbdFlags::CAN_MULTI_CONN
        } else {
            0
        };
        let mut export = export(self.sizes[node as usize], flags);
        if node.is_multiple_of(3) {
            export.identity = Some(Id([node as u8; 16]));
            export.incarnation = Some(Id([self.starts[node as usize]; 16]));
        }
        self.nodes
            .exports()
            .insert(format!("nbd://n{node}/"), export);
    }

    /// Gives cells their offsets: each cell of a node is used once.
    fn place(&mut self, cells: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        cells
            .iter()
            .map(|(node, length)| {
                let cell = &mut self.next_cell[*node as usize];
                *cell += 1;
                (*node, (*cell - 1) * CELL, *length)
            })
            .collect()
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Add(device) => {
                let extents = self.place(&device.cells);
                self.devices.push((format!("d{}", self.next_name), extents));
                self.next_name += 1;
            }
            Event::Grow(i, cells) if !self.devices.is_empty() => {
                let extents = self.place(cells);
                let i = i.index(self.devices.len());
                self.devices[i].1.extend(extents);
            }
            Event::Undo(i) if !self.devices.is_empty() => {
                let i = i.index(self.devices.len());
                let (name, extents) = &mut self.devices[i];
                let live = live(&self.kernel)
                    .into_iter()
                    .find(|(n, e)| n == name && !e.is_empty());
                if let Some((_, live)) = live {
                    *extents = live;
                }
            }
            Event::Drop(i) if !self.devices.is_empty() => {
                drop(self.devices.remove(i.index(self.devices.len())))
            }
            Event::Links(i, n) => self.links[i.index(NODES as usize)] = *n,
            Event::Lose(i) => {
                let name = format!("n{}", i.index(NODES as usize)).parse().unwrap();
                self.kernel.lose_links(&name, &[0, 2]);
            }
            Event::Export(i) => {
                let node = i.index(NODES as usize);
                self.sizes[node] += 1 << 10;
                self.publish(node as u64);
            }
            Event::Conduct(i, n) => self.conducts[i.index(NODES as usize)] = *n,
            Event::LoseWrites(i) => {
                let name = format!("n{}", i.index(NODES as usize)).parse().unwrap();
                self.kernel.lose_writes(&name, &[0, 1], 3);
            }
            Event::Restart(i) => {
                let node = i.index(NODES as usize);
                self.starts[node] = self.starts[node].wrapping_add(1);
                self.publish(node as u64);
                let name = format!("n{node}").parse().unwrap();
                self.kernel.lose_writes(&name, &[0, 1, 2, 3], 1);
            }
            Event::Grow(..) | Event::Undo(_) | Event::Drop(_) => {}
        }
    }

    fn topology(&self) -> Topology {
        let mut text = String::from("version: 1\nnodes:\n");
        for (i, links) in self.links.iter().enumerate() {
            let conduct = conducts()[self.conducts[i]].0;
            text += &format!("  n{i}: {{uri: \"nbd://n{i}/\", links: {links}{conduct}}}\n");
        }
        text += "devices:\n";
        for (name, extents) in &self.devices {
            text += &format!("  {name}:\n    table:\n");
            for (node, offset, length) in extents {
                text += &format!(
                    "      - dst: {{node: n{node}, offset: {offset}s, length: {length}s}}\n"
                );
            }
        }
        Topology::parse_one("random.yaml", text).unwrap()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut wanted = self.devices.clone();
        wanted.sort();
        prop_assert_eq!(live(&self.kernel), wanted);
        for device in self.kernel.devices().unwrap() {
            prop_assert!(
                !device.suspended && device.inactive.is_none(),
                "{:?}",
                device
            );
        }
        for node in self.kernel.nodes().unwrap() {
            let i: usize = node.name.as_str()[1..].parse().unwrap();
            let wanted = if i.is_multiple_of(2) {
                self.links[i]
            } else {
                1
            };
            let live = node
                .links
                .iter()
                .filter(|l| l.state == LinkState::Live)
                .count();
            prop_assert_eq!(
                (live as u64, u64::from(node.wanted)),
                (wanted, wanted),
                "{}",
                node.name
            );
            prop_assert_eq!(
                node.conduct,
                conducts()[self.conducts[i]].1,
                "{}",
                node.name
            );
        }
        prop_assert!(
            self.kernel.state().data_changes.is_empty(),
            "{:?}",
            self.kernel.state().data_changes
        );
        Ok(())
    }
}

/// The extents of the live tables, in order.
fn live(kernel: &SimKernel) -> Vec<Extents> {
    let devices = kernel.devices().unwrap();
    let extents = |device: &ObservedDevice| {
        let args = device.lines.iter().map(|line| DstArgs::of(line).unwrap());
        args.flat_map(|args| args.extents)
            .map(|e| {
                (
                    e.node.as_str()[1..].parse().unwrap(),
                    e.offset.0,
                    e.length.0,
                )
            })
            .collect()
    };
    devices
        .iter()
        .map(|d| (d.name.clone(), extents(d)))
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

fn prune() -> Allowed {
    Allowed {
        prune: true,
        ..Allowed::default()
    }
}

/// A daemon's passes until nothing is left or it is dead.
async fn run_for_a_while(world: &World) {
    let (mut daemon, mut inbox) =
        Daemon::new(world.kernel.clone(), world.nodes.clone(), world.topology());
    for _ in 0..20 {
        let pass = daemon.pass().await.unwrap();
        if daemon.settled(&pass) && pass.wanting.is_empty() {
            return;
        }
        if !pass.wanting.is_empty() {
            let report = inbox.recv().await.unwrap();
            daemon.hear(report);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn apply_arrives_whatever_died_before(history in proptest::collection::vec((event(), death(), any::<bool>()), 1..16)) {
        let runtime = runtime();
        let mut world = World::new();
        for (event, death, daemon) in &history {
            world.happen(event);
            world.kernel.revive(*death);
            if *daemon {
                runtime.block_on(run_for_a_while(&world));
            } else {
                // It may die on the way; only the end counts.
                let _ = runtime.block_on(apply(&world.kernel, &world.nodes, &world.topology(), &prune(), |_| {}));
            }
        }
        world.kernel.revive(Death::Never);
        let topology = world.topology();
        let ended = runtime.block_on(apply(&world.kernel, &world.nodes, &topology, &prune(), |_| {}));
        prop_assert!(ended.is_ok(), "{}", ended.unwrap_err());
        world.check()?;

        // Nothing is left to do, for apply and for a new daemon.
        let calls = world.kernel.state().calls.len();
        let again = runtime.block_on(apply(&world.kernel, &world.nodes, &topology, &prune(), |_| {}));
        prop_assert_eq!(again.unwrap().steps, 0);
        runtime.block_on(run_for_a_while(&world));
        prop_assert_eq!(world.kernel.state().calls.len(), calls);
    }

    #[test]
    fn the_daemon_alone_arrives_too(history in proptest::collection::vec((event(), death()), 1..12)) {
        let runtime = runtime();
        let mut world = World::new();
        for (event, death) in &history {
            // What left the topology stays without --prune, so such devices are kept in it here.
            if matches!(event, Event::Drop(_)) {
                continue;
            }
            world.happen(event);
            world.kernel.revive(*death);
            runtime.block_on(run_for_a_while(&world));
        }
        world.kernel.revive(Death::Never);
        runtime.block_on(run_for_a_while(&world));
        world.check()?;
    }
}
