//! The checks of a topology that need more than one value: references, overlaps.
//! Called by load. Pure; what depends on sizes of nodes is left to `table`.

use std::collections::BTreeMap;

use super::error::{At, Path, Place, TopologyError};
use super::load::{Entry, Topology, item_path};
use super::nearest::nearest;
use super::spec::{DeviceSpec, DstItem, Item, LinearItem};
use crate::table::{DstArgs, Line, TARGET};
use crate::units::{BlockSize, DeviceName, NodeName, Sectors};

pub fn check(topology: &Topology) -> Vec<TopologyError> {
    let mut checker = Checker {
        topology,
        errors: Vec::new(),
        uses: Vec::new(),
    };
    for (name, device) in &topology.devices {
        checker.device(name, device);
    }
    checker.overlaps();
    checker.errors
}

/// A range of a node or disk that an item uses. An end that is not known yet is taken as the largest.
struct Use<'a> {
    /// "node `a`", "disk `/dev/vdb`".
    place: String,
    start: u64,
    end: u64,
    device: &'a DeviceName,
    source: usize,
    item: usize,
    writes: bool,
}

struct Checker<'a> {
    topology: &'a Topology,
    errors: Vec<TopologyError>,
    uses: Vec<Use<'a>>,
}

/// Where an item stands.
#[derive(Clone, Copy)]
struct ItemAt<'a> {
    device: &'a DeviceName,
    source: usize,
    item: usize,
    writes: bool,
    block_size: BlockSize,
}

impl ItemAt<'_> {
    fn path(&self) -> Path {
        item_path(self.device, self.item)
    }
}

impl<'a> Checker<'a> {
    fn wrong(&mut self, source: usize, path: &Path, at: At, message: String) {
        self.errors
            .push(self.topology.error(source, path, at, message));
    }

    fn device(&mut self, name: &'a DeviceName, device: &'a Entry<DeviceSpec>) {
        let spec = &device.spec;
        if spec.table.is_empty() {
            let path = Path::root().to("devices").to(name.as_str()).to("table");
            let message = format!("the table of {name} is empty: give it at least one item");
            self.wrong(device.source, &path, At::Value, message);
        }
        let mut position = Some(Sectors::ZERO);
        for (item, what) in spec.table.iter().enumerate() {
            let at = ItemAt {
                device: name,
                source: device.source,
                item,
                writes: spec.read_only != Some(true),
                block_size: spec.block_size,
            };
            let length = match what {
                Item::Dst(dst) => self.dst(at, dst),
                Item::Linear(linear) => self.linear(at, linear),
                Item::Raw(raw) => self.raw(at, &raw.0, position),
            };
            position = position.zip(length).and_then(|(p, l)| p.checked_add(l));
        }
    }

    /// The item's length, where it is known without asking.
    fn dst(&mut self, at: ItemAt<'a>, item: &DstItem) -> Option<Sectors> {
        let path = at.path().to("dst");
        self.known(at, &item.node, &path.to("node"));
        let lengths = [("offset", Some(item.offset)), ("length", item.length)];
        for (key, value) in lengths {
            if value.is_some_and(|v| !v.is_aligned_to(at.block_size)) {
                let message = format!(
                    "the {key} is no multiple of the device's block_size {}: move it, or lower block_size",
                    at.block_size
                );
                self.wrong(at.source, &path.to(key), At::Value, message);
            }
        }
        let place = of_node(&item.node);
        self.used(at, &path, place, item.offset, item.length);
        item.length
    }

    fn linear(&mut self, at: ItemAt<'a>, item: &LinearItem) -> Option<Sectors> {
        let path = at.path().to("linear");
        if !item.device.is_absolute() {
            let message = format!(
                "`{}` is no absolute path: write the block device as /dev/...",
                item.device.display()
            );
            self.wrong(at.source, &path.to("device"), At::Value, message);
        }
        let place = format!("disk `{}`", item.device.display());
        self.used(at, &path, place, item.offset, item.length);
        item.length
    }

    fn used(
        &mut self,
        at: ItemAt<'a>,
        path: &Path,
        place: String,
        offset: Sectors,
        length: Option<Sectors>,
    ) {
        let end = self.range(at, path, offset, length);
        self.uses.push(Use {
            place,
            start: offset.0,
            end,
            device: at.device,
            source: at.source,
            item: at.item,
            writes: at.writes,
        });
    }

    /// The end of a range; the largest number where it is open or wrong.
    fn range(
        &mut self,
        at: ItemAt<'a>,
        path: &Path,
        offset: Sectors,
        length: Option<Sectors>,
    ) -> u64 {
        let Some(length) = length else {
            return u64::MAX;
        };
        if length == Sectors::ZERO {
            let message =
                "the length is 0: leave it out to take all, or remove the item".to_owned();
            self.wrong(at.source, &path.to("length"), At::Value, message);
        }
        let end = offset
            .checked_add(length)
            .filter(|end| end.bytes().is_some());
        if end.is_none() {
            let message = "offset and length together are larger than a device can be".to_owned();
            self.wrong(at.source, &path.to("length"), At::Value, message);
        }
        end.map_or(u64::MAX, |end| end.0)
    }

    fn raw(&mut self, at: ItemAt<'a>, line: &Line, position: Option<Sectors>) -> Option<Sectors> {
        let path = at.path();
        if let Some(position) = position
            && line.start != Sectors::ZERO
            && line.start != position
        {
            let message = format!(
                "the line starts at {}, the item before it ends at {position}: write {position}, or 0 for \"where the item before it ends\"",
                line.start
            );
            self.wrong(at.source, &path, At::Value, message);
        }
        if line.target != TARGET {
            return Some(line.length);
        }
        match DstArgs::of(line) {
            Ok(args) => self.raw_dst(at, &args),
            Err(error) => self.wrong(
                at.source,
                &path,
                At::Value,
                format!("in this dst line {error}"),
            ),
        }
        Some(line.length)
    }

    fn raw_dst(&mut self, at: ItemAt<'a>, args: &DstArgs) {
        for extent in &args.extents {
            self.known(at, &extent.node, &at.path());
            self.uses.push(Use {
                place: of_node(&extent.node),
                start: extent.offset.0,
                end: extent.end().map_or(u64::MAX, |end| end.0),
                device: at.device,
                source: at.source,
                item: at.item,
                writes: at.writes && !args.features.read_only,
            });
        }
    }

    fn known(&mut self, at: ItemAt<'a>, node: &NodeName, path: &Path) {
        let nodes = &self.topology.nodes;
        if nodes.contains_key(node) {
            return;
        }
        let names = nodes.keys().map(NodeName::as_str);
        let hint = match nearest(node.as_str(), names.clone()) {
            Some(name) => format!("did you mean `{name}`?"),
            None if nodes.is_empty() => "the topology has no nodes".to_owned(),
            None if nodes.len() > 20 => {
                format!("none of the {} nodes has a similar name", nodes.len())
            }
            None => format!("the nodes are {}", names.collect::<Vec<_>>().join(", ")),
        };
        self.wrong(
            at.source,
            path,
            At::Value,
            format!("there is no node `{node}`: {hint}"),
        );
    }

    /// Ranges of one node or disk that two items share.
    fn overlaps(&mut self) {
        let mut by_place: BTreeMap<&str, Vec<&Use<'a>>> = BTreeMap::new();
        for used in &self.uses {
            by_place.entry(&used.place).or_default().push(used);
        }
        let mut found = Vec::new();
        for uses in by_place.values_mut() {
            uses.sort_by_key(|u| (u.start, u.end));
            let mut by_device: BTreeMap<_, Vec<&Use<'a>>> = BTreeMap::new();
            for used in uses.iter() {
                by_device.entry(used.device).or_default().push(used);
            }
            for uses in by_device.values() {
                found.extend(shared_ranges(uses.iter().copied(), |_, _| true));
            }
            let writers = uses.iter().copied().filter(|u| u.writes);
            found.extend(shared_ranges(writers, |a, b| a.device != b.device));
        }
        let errors: Vec<_> = found.iter().map(|(a, b)| self.overlap(a, b)).collect();
        self.errors.extend(errors);
    }

    fn overlap(&self, one: &Use<'a>, two: &Use<'a>) -> TopologyError {
        let place = |u: &Use<'a>| {
            self.topology
                .place(u.source, &item_path(u.device, u.item), At::Value)
        };
        let (start, end) = (one.start.max(two.start), one.end.min(two.end));
        let range = match end {
            u64::MAX => format!("sectors {start} and up"),
            _ => format!("sectors {start} to {end}"),
        };
        // The error stands at the later place and names the earlier.
        let mut places: [(Place, &Use<'a>); 2] = [(place(one), one), (place(two), two)];
        places.sort_by(|a, b| a.0.cmp(&b.0));
        let [(first, earlier), (second, later)] = places;
        let what = if earlier.device == later.device {
            format!(
                "{} uses {range} of {} twice, first at {first}: change offset or length",
                later.device, later.place
            )
        } else {
            format!(
                "{} and {} both write {range} of {}, the other at {first}: change offset or length, or say `read_only: true` on one device",
                earlier.device, later.device, later.place
            )
        };
        TopologyError {
            place: second,
            message: what,
        }
    }
}

fn of_node(node: &NodeName) -> String {
    format!("node `{node}`")
}

/// Pairs that overlap, out of uses of one place sorted by start.
fn shared_ranges<'u, 'a>(
    uses: impl Iterator<Item = &'u Use<'a>>,
    counts: impl Fn(&Use<'a>, &Use<'a>) -> bool,
) -> Vec<(&'u Use<'a>, &'u Use<'a>)> {
    let mut pairs = Vec::new();
    let mut widest: Option<&Use<'a>> = None;
    for used in uses {
        if let Some(before) = widest
            && used.start < before.end
            && counts(before, used)
        {
            pairs.push((before, used));
        }
        if widest.is_none_or(|before| used.end > before.end) {
            widest = Some(used);
        }
    }
    pairs
}
