//! A simulated kernel and simulated nodes, for tests of everything above the traits.
//! Models what the real ones promise: nodes exist while a table names them, an open device can't be removed, tables
//! and links that don't fit are refused. Old links stay unfenced, also when their node goes and comes back, until
//! someone fences them: there is no quiesce here. It can die before or after any call, as a daemon does; its calls can
//! fail, lie and hang (`faults`), and it notes what must never be (`rules`).

mod faults;
mod nodes;
mod rules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::sync::mpsc;

pub use faults::{Fault, When};
pub use nodes::{HANDSHAKE, SimNodes, export};

use super::*;
use crate::netlink::numbers::LATENCY_BUCKETS;
use crate::table::{DstArgs, Extent};
use crate::units::{Bytes, DeviceNumber, Generation, Sectors};

#[derive(Clone, Debug)]
struct Table {
    lines: Vec<Line>,
    access: Access,
}

#[derive(Clone, Debug)]
pub struct SimDevice {
    uuid: DmUuid,
    minor: u32,
    suspended: bool,
    access: Access,
    pub open_count: u32,
    live: Option<Table>,
    inactive: Option<Table>,
}

/// When the daemon that calls dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Death {
    #[default]
    Never,
    /// Before the effect of the call after this many.
    Before(u32),
    /// After its effect; the answer is lost.
    After(u32),
}

#[derive(Debug, Default)]
pub struct State {
    pub devices: BTreeMap<String, SimDevice>,
    pub nodes: BTreeMap<NodeName, ObservedNode>,
    pub locals: BTreeMap<PathBuf, LocalDevice>,
    pub death: Death,
    dead: bool,
    /// Calls that changed something.
    pub calls: Vec<String>,
    /// Live tables that were replaced by others that show less or other data.
    pub data_changes: Vec<String>,
    /// What is kept of nodes that no table names: the last generation and the old links.
    graves: BTreeMap<NodeName, (Generation, Vec<OldLink>)>,
    /// The next suspend hangs until the other end sends or goes.
    pub hold: Option<std::sync::mpsc::Receiver<()>>,
    /// Events get lost, and nobody is told so.
    pub mute: bool,
    /// So many fences are answered with success and change nothing.
    pub deaf: u32,
    next_minor: u32,
    events: Vec<mpsc::Sender<KernelEvent>>,
    device_events: Vec<mpsc::Sender<()>>,
    faults: faults::Faults,
    /// What happened and must not.
    pub forbidden: Vec<String>,
    /// Old links that were fenced on a server's word.
    pub fenced: Vec<(NodeName, Session, Slot, Generation)>,
}

#[derive(Debug, Default)]
pub struct SimKernel {
    state: Mutex<State>,
    /// Told when calls that hang go on, and when one has.
    moved: Condvar,
}

fn refuse<T>(what: &str, errno: Errno, reason: impl Into<String>) -> Result<T, KernelError> {
    Err(KernelError::new(what, Some(errno), reason))
}

impl SimKernel {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new daemon calls from now on.
    pub fn revive(&self, death: Death) {
        let mut state = self.state();
        state.death = death;
        state.dead = false;
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Ends links of a node, as a network does.
    pub fn lose_links(&self, node: &NodeName, slots: &[u32]) {
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(node) {
            node.links.retain(|link| !slots.contains(&link.slot.0));
            settle(node);
        }
        state.tell(KernelEvent::Overflow);
    }

    /// The same while each link carries writes, whose ranges are ambiguous then.
    pub fn lose_writes(&self, name: &NodeName, slots: &[u32], ambiguous: u32) {
        let mut state = self.state();
        let Some(node) = state.nodes.get_mut(name) else {
            return;
        };
        let (lost, kept) = std::mem::take(&mut node.links)
            .into_iter()
            .partition::<Vec<_>, _>(|link| slots.contains(&link.slot.0));
        node.links = kept;
        for link in &lost {
            node.unfenced.push(OldLink {
                slot: link.slot,
                generation: link.generation,
                ambiguous,
                merged: 0,
                quiet_in: None,
            });
        }
        settle(node);
        for link in lost {
            state.tell(KernelEvent::Fence {
                node: name.clone(),
                slot: link.slot,
                generation: link.generation,
                ambiguous,
                reason: Some("the network".to_owned()),
            });
        }
    }

    /// A device of somebody else's, which may go again.
    pub fn stranger(&self, name: &str, is_there: bool) {
        let mut state = self.state();
        let others = |d: &SimDevice| !d.uuid.is_ours();
        if !is_there && state.devices.get(name).is_some_and(others) {
            state.devices.remove(name);
        } else if is_there && !state.devices.contains_key(name) {
            let device = SimDevice {
                uuid: DmUuid("LVM-of-others".to_owned()),
                minor: state.next_minor,
                suspended: false,
                access: Access::ReadWrite,
                open_count: 0,
                live: None,
                inactive: None,
            };
            state.next_minor += 1;
            state.devices.insert(name.to_owned(), device);
        }
    }

    /// One call that only looks.
    fn look<T>(&self, name: &str, answer: impl FnOnce(&State) -> T) -> Result<T, KernelError> {
        let (state, fault) = self.suffer(name, self.state());
        match fault {
            None | Some(Fault::Hangs) => Ok(answer(&state)),
            Some(_) => refuse(name, Errno::EIO, "a fault that the test wants"),
        }
    }

    /// One call that changes something: refuses when dead, dies when it is time.
    fn call<T>(
        &self,
        name: String,
        effect: impl FnOnce(&mut State) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let dead = |what: &str| refuse(what, Errno::EINTR, "the daemon is dead");
        let fault = |what: &str| refuse(what, Errno::EIO, "a fault that the test wants");
        let (mut state, wrong) = self.suffer(&name, self.state());
        if let Some(Fault::Fails | Fault::HangsAndFails) = wrong {
            return fault(&name);
        }
        if state.dead {
            return dead(&name);
        }
        let lost = match &mut state.death {
            Death::Before(0) => {
                state.dead = true;
                return dead(&name);
            }
            Death::After(0) => true,
            Death::Before(n) | Death::After(n) => {
                *n -= 1;
                false
            }
            Death::Never => false,
        };
        let result = effect(&mut state);
        state.calls.push(name.clone());
        state.follow_tables();
        if lost {
            state.dead = true;
            return dead(&name);
        }
        match wrong {
            Some(Fault::Lies) => fault(&name),
            _ => result,
        }
    }

    fn on_node<T>(
        &self,
        verb: &str,
        node: &NodeName,
        effect: impl FnOnce(&mut ObservedNode) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let name = format!("{verb} {node}");
        self.call(name.clone(), |state| match state.nodes.get_mut(node) {
            Some(node) => effect(node),
            None => refuse(&name, Errno::ENOENT, "no table names this node"),
        })
    }

    fn on_device(
        &self,
        verb: &str,
        device: &DeviceName,
        effect: impl FnOnce(&mut SimDevice) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let name = format!("{verb} {device}");
        self.call(name.clone(), |state| {
            state.may_touch(verb, device.as_str());
            match verb {
                "suspend" => state.may_suspend(device.as_str()),
                "resume" => state.may_resume(device.as_str()),
                _ => {}
            }
            match state.devices.get_mut(device.as_str()) {
                Some(device) => effect(device),
                None => refuse(&name, Errno::ENXIO, "no such device"),
            }
        })
    }
}

fn extents(tables: &[&Table]) -> Vec<(Extent, bool, u32)> {
    let lines = tables.iter().flat_map(|table| &table.lines);
    let args = lines.filter_map(|line| DstArgs::of(line).ok());
    args.flat_map(|args| {
        let DstArgs { extents, features } = args;
        extents
            .into_iter()
            .map(move |e| (e, !features.read_only, features.block_size.bytes()))
    })
    .collect()
}

/// State and count, from links.
fn settle(node: &mut ObservedNode) {
    node.ambiguous = node.unfenced.iter().map(|old| old.ambiguous).sum();
    node.live = u32::try_from(node.links.len()).unwrap_or(u32::MAX);
    node.state = match node.live {
        0 if node.negotiated.is_none() => NodeState::Waiting,
        0 => NodeState::Lost,
        n if n >= node.wanted => NodeState::Live,
        _ => NodeState::Degraded,
    };
}

fn misfit(export: &Negotiated, size: Bytes, block: u32, write: bool) -> Option<&'static str> {
    if export.size < size {
        return Some("the export is smaller than its extents");
    }
    if block != 0 && export.min_block > block {
        return Some("the minimum block is larger than the block size");
    }
    (write && export.flags.read_only()).then_some("the export is read-only")
}

impl State {
    fn tell(&mut self, event: KernelEvent) {
        if self.mute {
            return;
        }
        self.events
            .retain(|sender| sender.try_send(event.clone()).is_ok());
    }

    /// A device came, went, was renamed or got another live table.
    fn tell_of_devices(&mut self) {
        if self.mute {
            return;
        }
        self.device_events.retain(|sender| {
            !matches!(
                sender.try_send(()),
                Err(mpsc::error::TrySendError::Closed(()))
            )
        });
    }

    pub fn observed(&self) -> Vec<ObservedDevice> {
        let devices = self.devices.iter().map(|(name, d)| ObservedDevice {
            name: name.clone(),
            uuid: d.uuid.clone(),
            number: DeviceNumber {
                major: 254,
                minor: d.minor,
            },
            suspended: d.suspended,
            access: d.access,
            open_count: d.open_count,
            lines: match &d.live {
                Some(table) if d.uuid.is_ours() => table.lines.clone(),
                _ => Vec::new(),
            },
            inactive: match &d.inactive {
                Some(table) if d.uuid.is_ours() => Some(table.lines.clone()),
                _ => None,
            },
        });
        devices.collect()
    }

    fn tables(&self) -> Vec<&Table> {
        let devices = self.devices.values();
        devices
            .flat_map(|d| d.live.iter().chain(&d.inactive))
            .collect()
    }

    /// Nodes come and go with the tables that name them.
    fn follow_tables(&mut self) {
        let mut extents_of: BTreeMap<NodeName, Vec<_>> = BTreeMap::new();
        for (extent, write, block) in extents(&self.tables()) {
            let node = extent.node.clone();
            extents_of
                .entry(node)
                .or_default()
                .push((extent, write, block));
        }
        let graves = &mut self.graves;
        self.nodes.retain(|name, node| {
            let stays = extents_of.contains_key(name);
            if !stays && !node.unfenced.is_empty() {
                let unfenced = std::mem::take(&mut node.unfenced);
                graves.insert(name.clone(), (node.generation, unfenced));
            }
            stays
        });
        for (name, mine) in extents_of {
            let graves = &mut self.graves;
            let node = self
                .nodes
                .entry(name.clone())
                .or_insert_with(|| new_node(&name, graves.remove(&name)));
            let ends = mine.iter().filter_map(|(e, ..)| e.end()?.bytes());
            node.need_size = ends.max().unwrap_or_default();
            node.need_write = mine.iter().any(|(_, write, _)| *write);
            node.need_block = mine
                .iter()
                .map(|(.., block)| *block)
                .min()
                .unwrap_or_default();
        }
    }

    /// What the constructor of the target checks.
    fn construct(&self, lines: &[Line], access: Access) -> Result<(), String> {
        let mut position = Sectors::ZERO;
        for line in lines {
            if line.start != position {
                return Err(format!("gap before `{line}`"));
            }
            position = line.end().ok_or("overflow")?;
            if line.target == "dst" {
                self.construct_dst(line, access)?;
            }
        }
        Ok(())
    }

    fn construct_dst(&self, line: &Line, access: Access) -> Result<(), String> {
        let args = DstArgs::of(line).map_err(|error| error.to_string())?;
        if args.features.read_only && access == Access::ReadWrite {
            return Err("read_only in a writable table".to_owned());
        }
        let mut ranges: Vec<_> = args
            .extents
            .iter()
            .map(|e| (&e.node, e.offset, e.end()))
            .collect();
        ranges.sort();
        if ranges
            .windows(2)
            .any(|w| w[0].0 == w[1].0 && w[0].2 > Some(w[1].1))
        {
            return Err("extents overlap".to_owned());
        }
        let block = args.features.block_size;
        for extent in &args.extents {
            if !extent.offset.is_aligned_to(block) || !extent.length.is_aligned_to(block) {
                return Err("extent not aligned".to_owned());
            }
            let live = self.nodes.get(&extent.node).filter(|n| n.live > 0);
            let export = live.and_then(|n| n.negotiated.as_ref());
            let size = extent.end().and_then(Sectors::bytes).unwrap_or_default();
            let write = !args.features.read_only;
            if let Some(reason) = export.and_then(|e| misfit(e, size, block.bytes(), write)) {
                return Err(format!("node {}: {reason}", extent.node));
            }
        }
        Ok(())
    }

    fn set_links(&mut self, set: LinksSet) -> Result<ObservedNode, KernelError> {
        let what = format!("set links of {}", set.node);
        let Some(node) = self.nodes.get_mut(&set.node) else {
            return refuse(&what, Errno::ENOENT, "no table names this node");
        };
        if set.wanted > 1 && !set.negotiated.flags.multi_conn() {
            return refuse(
                &what,
                Errno::EINVAL,
                "more than one link without multi-conn",
            );
        }
        let mut newest = node.generation;
        for link in &set.links {
            if link.generation <= newest {
                return refuse(&what, Errno::ESTALE, "a generation that isn't new");
            }
            if link.slot.0 >= set.wanted {
                return refuse(&what, Errno::ERANGE, "slot out of range");
            }
            newest = link.generation;
        }
        let (size, block, write) = (node.need_size, node.need_block, node.need_write);
        if let Some(reason) = misfit(&set.negotiated, size, block, write) {
            if node.live == 0 {
                node.state = NodeState::Mismatch;
                node.reason = Some(reason.to_owned());
            }
            return refuse(&what, Errno::EMEDIUMTYPE, reason);
        }
        self.forbidden.extend(rules::needless(node, &set));
        let was_newest = std::mem::replace(&mut node.generation, newest);
        node.session = Some(set.session);
        let was = node.negotiated.as_ref().and_then(|n| n.incarnation);
        if was.is_some() && was != set.negotiated.incarnation {
            // Cut: nothing that the old incarnation says is believed.
            node.links.clear();
        }
        node.negotiated = Some(set.negotiated);
        node.zero_copy = Some(set.zero_copy);
        node.wanted = set.wanted;
        node.reason = None;
        for new in set.links {
            node.links.retain(|old| old.slot != new.slot);
            node.links.push(ObservedLink {
                slot: new.slot,
                generation: new.generation,
                state: LinkState::Live,
                in_flight: 0,
                sent: Bytes(0),
                received: Bytes(0),
            });
        }
        node.links.retain(|link| link.slot.0 < node.wanted);
        settle(node);
        let node = node.clone();
        for link in node
            .links
            .iter()
            .filter(|link| link.generation > was_newest)
        {
            self.tell(KernelEvent::Link {
                node: node.name.clone(),
                slot: link.slot,
                generation: link.generation,
                state: LinkState::Live,
                errno: None,
                reason: None,
            });
        }
        Ok(node)
    }
}

fn new_node(name: &NodeName, grave: Option<(Generation, Vec<OldLink>)>) -> ObservedNode {
    let (generation, unfenced) = grave.unwrap_or_default();
    let none = Latency::of(0, vec![0; LATENCY_BUCKETS]);
    ObservedNode {
        name: name.clone(),
        state: NodeState::Waiting,
        reason: None,
        session: None,
        negotiated: None,
        zero_copy: None,
        wanted: 1,
        live: 0,
        in_flight: 0,
        queued: 0,
        errors: 0,
        reconnects: 0,
        generation,
        need_size: Bytes(0),
        need_block: 0,
        need_write: false,
        writes: 0,
        links: Vec::new(),
        conduct: Conduct::default(),
        ambiguous: unfenced.iter().map(|old| old.ambiguous).sum(),
        barred: 0,
        latency: Some(Latencies {
            read: none.clone(),
            write: none,
        }),
        merged: Some(0),
        queue_time: Some(QueueTime::default()),
        unfenced,
    }
}

fn fence(node: &mut ObservedNode, what: Fenced) -> Result<ObservedNode, KernelError> {
    let verb = "lift guards";
    match what {
        Fenced::All => node.unfenced.clear(),
        Fenced::Link { session, .. } if node.session != Some(session) => {
            return refuse(verb, Errno::ESTALE, "the links are of another session");
        }
        Fenced::Link { generation, .. } if generation > node.generation => {
            return refuse(verb, Errno::ENOENT, "the node never had this link");
        }
        Fenced::Link {
            slot, generation, ..
        } => {
            let is_it = |s: Slot, g: Generation| (s, g) == (slot, generation);
            node.links.retain(|l| !is_it(l.slot, l.generation));
            // A merged entry stands for others, too.
            node.unfenced
                .retain(|old| old.merged > 0 || !is_it(old.slot, old.generation));
        }
    }
    settle(node);
    Ok(node.clone())
}

impl Kernel for SimKernel {
    fn devices(&self) -> Result<Vec<ObservedDevice>, KernelError> {
        self.look("list the devices", State::observed)
    }

    fn dst_table(&self, device: &str) -> Result<Vec<Line>, KernelError> {
        let state = self.state();
        let table = state.devices.get(device).and_then(|d| d.live.as_ref());
        let lines = table.map_or_else(Vec::new, |t| t.lines.clone());
        let ours = lines.iter().any(|line| line.target == "dst");
        Ok(if ours { lines } else { Vec::new() })
    }

    fn nodes(&self) -> Result<Vec<ObservedNode>, KernelError> {
        self.look("list the nodes", |state| {
            state.nodes.values().cloned().collect()
        })
    }

    fn node(&self, node: &NodeName) -> Result<Option<ObservedNode>, KernelError> {
        self.look("look at a node", |state| state.nodes.get(node).cloned())
    }

    fn local_device(&self, path: &Path) -> Result<LocalDevice, KernelError> {
        let found = self.look("look at a disk", |state| state.locals.get(path).copied())?;
        found.ok_or_else(|| {
            let what = format!("look at {}", path.display());
            KernelError::new(what, Some(Errno::ENOENT), "No such file or directory")
        })
    }

    fn create(
        &self,
        device: &DeviceName,
        uuid: &DmUuid,
        access: Access,
    ) -> Result<(), KernelError> {
        let name = format!("create {device}");
        self.call(name.clone(), |state| {
            let same = |(name, d): (&String, &SimDevice)| {
                name == device.as_str() || (d.uuid == *uuid && !uuid.0.is_empty())
            };
            if state.devices.iter().any(same) {
                return refuse(&name, Errno::EBUSY, "name or UUID in use");
            }
            let minor = state.next_minor;
            state.next_minor += 1;
            let device_ = SimDevice {
                uuid: uuid.clone(),
                minor,
                suspended: true,
                access,
                open_count: 0,
                live: None,
                inactive: None,
            };
            state.devices.insert(device.to_string(), device_);
            state.tell_of_devices();
            Ok(())
        })
    }

    fn load(&self, device: &DeviceName, lines: &[Line], access: Access) -> Result<(), KernelError> {
        let name = format!("load {device}");
        self.call(name.clone(), |state| {
            state.may_touch("load", device.as_str());
            if let Err(reason) = state.construct(lines, access) {
                return refuse(&name, Errno::EINVAL, reason);
            }
            let Some(device) = state.devices.get_mut(device.as_str()) else {
                return refuse(&name, Errno::ENXIO, "no such device");
            };
            let mut lines = lines.to_vec();
            // As some targets do, this one prints more than it was given.
            for line in lines.iter_mut().filter(|l| l.target == "talkative") {
                line.args += " and more";
            }
            device.inactive = Some(Table { lines, access });
            Ok(())
        })
    }

    fn clear(&self, device: &DeviceName) -> Result<(), KernelError> {
        self.on_device("clear", device, |d| {
            d.inactive = None;
            Ok(())
        })
    }

    fn suspend(&self, device: &DeviceName, _: Flush) -> Result<(), KernelError> {
        let hold = self.state().hold.take();
        if let Some(hold) = hold {
            let _ = hold.recv();
        }
        self.on_device("suspend", device, |d| {
            d.suspended = true;
            Ok(())
        })
    }

    fn resume(&self, device: &DeviceName) -> Result<(), KernelError> {
        let mut switched = false;
        let resumed = self.on_device("resume", device, |d| {
            if let Some(table) = d.inactive.take() {
                d.access = table.access;
                d.live = Some(table);
                switched = true;
            }
            if d.live.is_none() {
                return refuse("resume", Errno::EINVAL, "it has no table");
            }
            d.suspended = false;
            Ok(())
        });
        if switched {
            self.state().tell_of_devices();
        }
        resumed
    }

    fn remove(&self, device: &DeviceName) -> Result<(), KernelError> {
        let name = format!("remove {device}");
        self.call(name.clone(), |state| {
            state.may_touch("remove", device.as_str());
            state.may_remove(device.as_str());
            match state.devices.get(device.as_str()) {
                None => refuse(&name, Errno::ENXIO, "no such device"),
                Some(d) if d.open_count > 0 => refuse(&name, Errno::EBUSY, "in use"),
                Some(_) => {
                    state.devices.remove(device.as_str());
                    state.tell_of_devices();
                    Ok(())
                }
            }
        })
    }

    fn rename(&self, device: &DeviceName, to: &DeviceName) -> Result<(), KernelError> {
        let name = format!("rename {device} {to}");
        self.call(name.clone(), |state| {
            state.may_touch("rename", device.as_str());
            if state.devices.contains_key(to.as_str()) {
                return refuse(&name, Errno::EBUSY, "name in use");
            }
            let Some(found) = state.devices.remove(device.as_str()) else {
                return refuse(&name, Errno::ENXIO, "no such device");
            };
            state.devices.insert(to.to_string(), found);
            state.tell_of_devices();
            Ok(())
        })
    }

    fn links_set(&self, links: LinksSet) -> Result<ObservedNode, KernelError> {
        self.call(format!("links_set {}", links.node), |state| {
            state.set_links(links)
        })
    }

    fn links_drop(&self, node: &NodeName, slots: &[Slot], _: bool) -> Result<(), KernelError> {
        self.call(format!("links_drop {node}"), |state| {
            if let Some(node) = state.nodes.get_mut(node) {
                node.links
                    .retain(|l| !slots.is_empty() && !slots.contains(&l.slot));
                settle(node);
            }
            Ok(())
        })
    }

    fn set_wanted(&self, node: &NodeName, wanted: u32) -> Result<(), KernelError> {
        self.on_node("set_wanted", node, |node| {
            node.wanted = wanted;
            node.links.retain(|link| link.slot.0 < wanted);
            settle(node);
            Ok(())
        })
    }

    fn set_conduct(&self, node: &NodeName, conduct: &Conduct) -> Result<(), KernelError> {
        self.on_node("set_conduct", node, |node| {
            node.conduct = *conduct;
            Ok(())
        })
    }

    fn fenced(&self, node: &NodeName, what: Fenced) -> Result<ObservedNode, KernelError> {
        let deaf = {
            let mut state = self.state();
            if let Fenced::Link {
                session,
                slot,
                generation,
            } = what
            {
                let link = (node.clone(), session, slot, generation);
                state.fenced.push(link);
            }
            let deaf = state.deaf > 0;
            state.deaf = state.deaf.saturating_sub(1);
            deaf
        };
        self.on_node("fenced", node, |node| match deaf {
            true => Ok(node.clone()),
            false => fence(node, what),
        })
    }

    fn fail_pending(&self, node: &NodeName) -> Result<(), KernelError> {
        self.call(format!("fail_pending {node}"), |_| Ok(()))
    }

    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
        let (sender, receiver) = mpsc::channel(64);
        self.state().events.push(sender);
        Ok(receiver)
    }

    fn device_events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        let (sender, receiver) = mpsc::channel(1);
        self.state().device_events.push(sender);
        Ok(receiver)
    }
}
