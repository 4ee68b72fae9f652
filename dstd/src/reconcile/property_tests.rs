//! Random topologies and histories against the simulated kernel: the daemon dies between any two calls, any call fails,
//! hangs, or works and says that it failed, and nodes come, go and move. Whatever happened, a later apply, or the daemon,
//! arrives at the topology and then changes nothing more; what must never be (`kernel/sim/rules.rs`) never was.
//! proptest prints the seed of a failure and keeps it in proptest-regressions/; PROPTEST_CASES=10000 tries more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fence::{Fencer, addresses};
use super::run::Daemon;
use super::worker::Report;
use super::*;
use crate::kernel::sim::{Death, Fault, SimKernel, SimNodes, When, export};
use crate::kernel::{Conduct, Fence, Kernel, LinkState, NbdFlags, ObservedDevice, Policy};
use crate::plan::Allowed;
use crate::table::DstArgs;
use crate::topology::Topology;
use crate::units::{Id, Millis};

const NODES: u64 = 5;
/// More passes than a daemon needs to arrive. Each waits for some seconds, and links for half a minute at most.
const LONG: u32 = 500;
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
    /// The operator takes back what hasn't gone live yet, and may give it to another device.
    Undo(Index, bool),
    /// A device that was not there before.
    Add(Device),
    /// A device leaves the topology; it may be pruned.
    Drop(Index),
    /// A device's cells are another one's, which has more.
    Reuse(Index, Vec<(u64, u64)>),
    /// A device gets another name, in the topology and by `dstd rename`.
    Rename(Index),
    /// Somebody opens a device, or nobody has it open any more.
    Open(Index, bool),
    /// Somebody else has a device of the name that is the next, or has it no more.
    Stranger(bool),
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
    /// A server can't be reached, or doesn't answer.
    Vanish(Index, bool),
    /// It is back.
    Return(Index),
    /// It is somewhere else.
    Move(Index),
}

/// Who acts then, and what goes wrong: a death, calls with faults, and the passes after which those that hang go on.
#[derive(Clone, Debug)]
struct Turn {
    event: Event,
    actor: Actor,
    death: Death,
    faults: Vec<(When, Fault)>,
    patience: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    Apply,
    /// One that has just started.
    Daemon,
    /// The one of the last turn, if it is alive.
    SameDaemon,
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
        3 => (any::<Index>(), any::<bool>()).prop_map(|(i, other)| Event::Undo(i, other)),
        2 => device().prop_map(Event::Add),
        1 => any::<Index>().prop_map(Event::Drop),
        2 => (any::<Index>(), cells()).prop_map(|(i, cells)| Event::Reuse(i, cells)),
        1 => any::<Index>().prop_map(Event::Rename),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(i, open)| Event::Open(i, open)),
        1 => any::<bool>().prop_map(Event::Stranger),
        1 => (any::<Index>(), 1..5u64).prop_map(|(i, n)| Event::Links(i, n)),
        1 => any::<Index>().prop_map(Event::Lose),
        1 => any::<Index>().prop_map(Event::Export),
        2 => (any::<Index>(), 0..3usize).prop_map(|(i, n)| Event::Conduct(i, n)),
        1 => any::<Index>().prop_map(Event::LoseWrites),
        1 => any::<Index>().prop_map(Event::Restart),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(i, silent)| Event::Vanish(i, silent)),
        1 => any::<Index>().prop_map(Event::Return),
        1 => any::<Index>().prop_map(Event::Move),
    ]
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        6 => Just(Death::Never),
        4 => (0..7u32).prop_map(Death::Before),
        4 => (0..7u32).prop_map(Death::After),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::Fails),
        3 => Just(Fault::Lies),
        1 => Just(Fault::Hangs),
        1 => Just(Fault::HangsAndFails),
    ]
}

/// Soon, after as many calls as an apply has until it switches tables, or in one of those that change devices.
fn when() -> impl Strategy<Value = When> {
    const CALLS: [&str; 6] = ["create", "load", "clear", "suspend", "resume", "remove"];
    prop_oneof![
        (0..6u32).prop_map(When::After),
        (6..40u32).prop_map(When::After),
        proptest::sample::select(&CALLS).prop_map(When::At),
    ]
}

fn actor() -> impl Strategy<Value = Actor> {
    prop_oneof![
        Just(Actor::Apply),
        Just(Actor::Daemon),
        Just(Actor::SameDaemon)
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    let faults = proptest::collection::vec((when(), fault()), 0..4);
    let turn = (event(), actor(), death(), faults, 0..4u32);
    turn.prop_map(|(event, actor, death, faults, patience)| Turn {
        event,
        actor,
        death,
        faults,
        patience,
    })
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
    /// How often each node has moved.
    moves: Vec<u32>,
    away: BTreeSet<u64>,
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
            moves: vec![0; NODES as usize],
            away: BTreeSet::new(),
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
        if !self.away.contains(&node) {
            self.nodes.exports().insert(self.uri(node), export);
        }
    }

    fn uri(&self, node: u64) -> String {
        format!("nbd://n{node}-{}/", self.moves[node as usize])
    }

    fn is_back(&mut self, node: u64) {
        self.away.remove(&node);
        self.nodes.silent().remove(&self.uri(node));
        self.publish(node);
    }

    /// All that was out of order is in order again; what is left over is dstd's to mend.
    fn heal(&mut self) {
        self.kernel.go_wrong([]);
        self.kernel.release();
        self.kernel.revive(Death::Never);
        (0..NODES).for_each(|node| self.is_back(node));
        for n in 0..=self.next_name {
            self.kernel.stranger(&format!("d{n}"), false);
        }
        let mut state = self.kernel.state();
        state.devices.values_mut().for_each(|d| d.open_count = 0);
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
            Event::Undo(i, other) if !self.devices.is_empty() => {
                self.undo(i.index(self.devices.len()), *other);
            }
            Event::Drop(i) if !self.devices.is_empty() => {
                drop(self.devices.remove(i.index(self.devices.len())))
            }
            Event::Reuse(i, cells) if !self.devices.is_empty() => {
                let (_, mut extents) = self.devices.remove(i.index(self.devices.len()));
                extents.extend(self.place(cells));
                self.devices.push((format!("d{}", self.next_name), extents));
                self.next_name += 1;
            }
            Event::Rename(i) if !self.devices.is_empty() => {
                self.rename(i.index(self.devices.len()));
            }
            Event::Open(i, open) if !self.devices.is_empty() => {
                let name = &self.devices[i.index(self.devices.len())].0;
                if let Some(device) = self.kernel.state().devices.get_mut(name) {
                    device.open_count = u32::from(*open);
                }
            }
            Event::Stranger(there) => {
                self.kernel
                    .stranger(&format!("d{}", self.next_name), *there);
            }
            Event::Grow(..)
            | Event::Undo(..)
            | Event::Drop(_)
            | Event::Reuse(..)
            | Event::Rename(_)
            | Event::Open(..) => {}
            of_nodes => self.happen_to_node(of_nodes),
        }
    }

    fn undo(&mut self, i: usize, other: bool) {
        let (name, extents) = &mut self.devices[i];
        let live = live(&self.kernel);
        let Some((_, live)) = live.into_iter().find(|(n, e)| n == name && !e.is_empty()) else {
            return;
        };
        let mut undone = std::mem::replace(extents, live);
        undone.retain(|extent| !extents.contains(extent));
        if other && !undone.is_empty() {
            self.devices.push((format!("d{}", self.next_name), undone));
            self.next_name += 1;
        }
    }

    fn rename(&mut self, i: usize) {
        let new = format!("d{}", self.next_name);
        self.next_name += 1;
        let old = std::mem::replace(&mut self.devices[i].0, new.clone());
        self.kernel.stranger(&new, false);
        let mut state = self.kernel.state();
        let ours = |d: &ObservedDevice| d.name == old && d.uuid.is_ours();
        if state.observed().iter().any(ours) {
            let device = state.devices.remove(&old).unwrap();
            state.devices.insert(new, device);
        }
    }

    fn happen_to_node(&mut self, event: &Event) {
        match event {
            Event::Vanish(i, silent) => {
                let node = i.index(NODES as usize) as u64;
                self.away.insert(node);
                let uri = self.uri(node);
                self.nodes.exports().remove(&uri);
                if *silent {
                    self.nodes.silent().insert(uri);
                }
                let name = format!("n{node}").parse().unwrap();
                self.kernel.lose_writes(&name, &[0, 1, 2, 3], 2);
            }
            Event::Return(i) => self.is_back(i.index(NODES as usize) as u64),
            Event::Move(i) => {
                let node = i.index(NODES as usize);
                let name = format!("n{node}").parse().unwrap();
                self.kernel.lose_writes(&name, &[0, 1, 2, 3], 1);
                self.nodes.exports().remove(&self.uri(node as u64));
                self.nodes.silent().remove(&self.uri(node as u64));
                self.moves[node] += 1;
                self.publish(node as u64);
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
            _ => {}
        }
    }

    fn topology(&self) -> Topology {
        let mut text = String::from("version: 1\nnodes:\n");
        for (i, links) in self.links.iter().enumerate() {
            let conduct = conducts()[self.conducts[i]].0;
            let uri = self.uri(i as u64);
            text += &format!("  n{i}: {{uri: \"{uri}\", links: {links}{conduct}}}\n");
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
        self.never()
    }

    /// What holds at any time.
    fn never(&self) -> Result<(), TestCaseError> {
        let state = self.kernel.state();
        prop_assert!(state.data_changes.is_empty(), "{:?}", state.data_changes);
        prop_assert!(state.forbidden.is_empty(), "{:?}", state.forbidden);
        let granted = self.nodes.granted();
        for (node, session, slot, generation) in &state.fenced {
            let is_it = |f: &Fence| (f.session, f.slot) == (*session, *slot);
            let said = |f: &Fence| is_it(f) && f.generation >= *generation;
            prop_assert!(granted.iter().any(said), "{}: fenced, unasked", node);
        }
        Ok(())
    }
}

/// Calls that still hang would be waited for by the runtime.
impl Drop for World {
    fn drop(&mut self) {
        self.kernel.go_wrong([]);
        self.kernel.release();
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

type Running = (
    Daemon<SimKernel, SimNodes>,
    mpsc::UnboundedReceiver<Report>,
    Fencer,
);

fn start(world: &World) -> Running {
    let (kernel, nodes) = (world.kernel.clone(), world.nodes.clone());
    let topology = world.topology();
    let fencer = Fencer::start(kernel.clone(), nodes.clone(), addresses(&topology));
    let (daemon, inbox) = Daemon::new(kernel, nodes, topology);
    (daemon, inbox, fencer)
}

/// Passes until nothing is left, or so many; what hangs goes on after a few.
async fn run_for_a_while(world: &World, running: &mut Running, passes: u32, mut patience: u32) {
    let (daemon, inbox, _) = running;
    let hanging = world.kernel.hanging();
    for _ in 0..passes {
        let pass = daemon.pass().await;
        if *hanging.borrow() > 0 {
            match patience.checked_sub(1) {
                Some(left) => patience = left,
                None => world.kernel.release(),
            }
        }
        // It is looked at again.
        let Ok(pass) = pass else { continue };
        if daemon.settled(&pass) && pass.wanting.is_empty() && pass.refusals == 0 {
            return;
        }
        // As long as the daemon waits for a word at most.
        let word = timeout(Duration::from_secs(10), inbox.recv());
        if pass.steps == 0
            && let Ok(report) = word.await
        {
            daemon.hear(report.unwrap());
        }
    }
}

/// Runs it to its end. While a call hangs, tokio's paused clock stands still, so it is pushed on.
async fn outlast<T>(world: &World, work: impl Future<Output = T>) -> T {
    let mut hanging = world.kernel.hanging();
    let work = timeout(Duration::from_secs(86400), work);
    let work = async { work.await.expect("a turn ends within a day") };
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = hanging.wait_for(|calls| *calls > 0) => {
                // Time in which calls that don't hang return.
                std::thread::sleep(Duration::from_micros(200));
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn apply_once(world: &World) -> Result<Applied, ApplyError> {
    let topology = world.topology();
    apply(
        &Interrupt::default(),
        &world.kernel,
        &world.nodes,
        &topology,
        &prune(),
        |_| {},
    )
    .await
}

/// One turn of a history.
fn take(
    runtime: &tokio::runtime::Runtime,
    world: &mut World,
    daemon: &mut Option<Running>,
    turn: &Turn,
) -> Result<(), TestCaseError> {
    // What hung while the last one acted goes on before anybody else acts: no process ends before its calls.
    world.kernel.release();
    world.happen(&turn.event);
    if turn.actor != Actor::SameDaemon {
        *daemon = None;
    }
    let before = suspended(world);
    world.kernel.revive(turn.death);
    world.kernel.go_wrong(turn.faults.iter().copied());
    runtime.block_on(async {
        if turn.actor == Actor::Apply {
            // It may die on the way; only the end counts.
            let _ = outlast(world, apply_once(world)).await;
            return;
        }
        let running = match daemon {
            Some(running) => {
                running.2.tell(addresses(&world.topology()));
                running.0.replace(world.topology());
                running
            }
            None => daemon.insert(start(world)),
        };
        outlast(world, run_for_a_while(world, running, 20, turn.patience)).await;
    });
    if world.kernel.is_dead() {
        *daemon = None;
    } else {
        nothing_is_left_suspended(world, &before)?;
    }
    world.kernel.go_wrong([]);
    world.never()
}

/// Devices whose I/O pauses.
fn suspended(world: &World) -> BTreeSet<String> {
    let devices = world.kernel.state().observed();
    let pauses = |d: &ObservedDevice| d.suspended && !d.lines.is_empty() && d.uuid.is_ours();
    let paused = devices.into_iter().filter(pauses);
    paused.map(|d| d.name).collect()
}

/// Unless what would end it went wrong itself, or hangs; what others had left needs only that nothing goes wrong.
fn nothing_is_left_suspended(
    world: &World,
    before: &BTreeSet<String>,
) -> Result<(), TestCaseError> {
    let struck = world.kernel.struck();
    let excuses = |(call, fault): &(String, Fault)| {
        let ends = call.starts_with("resume") || call.starts_with("clear");
        ends || matches!(fault, Fault::Hangs | Fault::HangsAndFails)
    };
    for name in suspended(world) {
        let excused = struck.iter().any(excuses) || (before.contains(&name) && !struck.is_empty());
        prop_assert!(excused, "{} is left suspended: {:?}", name, struck);
    }
    Ok(())
}

proptest! {
    #[test]
    fn apply_arrives_whatever_went_wrong_before(history in proptest::collection::vec(turn(), 1..16)) {
        let runtime = runtime();
        let (mut world, mut daemon) = (World::new(), None);
        for turn in &history {
            take(&runtime, &mut world, &mut daemon, turn)?;
        }
        drop(daemon);
        world.heal();
        let ended = runtime.block_on(apply_once(&world));
        prop_assert!(ended.is_ok(), "{}", ended.unwrap_err());
        world.check()?;

        // Nothing is left to do, for apply and for a new daemon.
        let calls = world.kernel.state().calls.len();
        let again = runtime.block_on(apply_once(&world));
        prop_assert_eq!(again.unwrap().steps, 0);
        runtime.block_on(async {
            let mut daemon = start(&world);
            run_for_a_while(&world, &mut daemon, LONG, 0).await;
        });
        prop_assert_eq!(&world.kernel.state().calls[calls..], &[] as &[String]);
    }

    #[test]
    fn a_call_that_hangs_has_its_device_to_itself(
        device in device(),
        grow in (any::<Index>(), cells()),
        call in proptest::sample::select(&["load", "suspend", "resume"]),
        patience in 1..4u32,
    ) {
        let runtime = runtime();
        let (mut world, mut daemon) = (World::new(), None);
        let nothing = Event::Open(grow.0, false);
        let mut take = |event, actor, faults| {
            let turn = Turn { event, actor, death: Death::Never, faults, patience };
            take(&runtime, &mut world, &mut daemon, &turn)
        };
        take(Event::Add(device), Actor::Apply, Vec::new())?;
        let hangs = vec![(When::At(call), Fault::Hangs)];
        take(Event::Grow(grow.0, grow.1), Actor::Daemon, hangs)?;
        take(nothing, Actor::SameDaemon, Vec::new())?;
        world.check()?;
    }

    #[test]
    fn the_daemon_alone_arrives_too(history in proptest::collection::vec(turn(), 1..12)) {
        let runtime = runtime();
        let (mut world, mut daemon) = (World::new(), None);
        for turn in &history {
            let actor = match turn.actor {
                Actor::Apply => Actor::Daemon,
                other => other,
            };
            let turn = Turn { actor, ..turn.clone() };
            take(&runtime, &mut world, &mut daemon, &turn)?;
        }
        world.heal();
        // What left the topology stays: an operator removes it.
        let wanted: BTreeSet<_> = world.devices.iter().map(|(name, _)| name.clone()).collect();
        for (name, _) in live(&world.kernel) {
            if !wanted.contains(&name) {
                world.kernel.remove(&name.parse().unwrap()).unwrap();
            }
        }
        runtime.block_on(async {
            let running = match &mut daemon {
                Some(running) => {
                    running.0.replace(world.topology());
                    running
                }
                None => daemon.insert(start(&world)),
            };
            run_for_a_while(&world, running, LONG, 0).await;
        });
        world.check()?;
    }
}
