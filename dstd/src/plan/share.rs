//! Which ranges of nodes and local disks tables write, and whether two tables write the same.
//! Called by the device planner, and by reconcile before tables go live. Pure. Sees devices of dstd's only: of others no table is known.

use std::collections::BTreeMap;
use std::fmt;

use super::compare::linear;
use crate::kernel::{Access, ObservedDevice};
use crate::table::{DstArgs, Line, Table};
use crate::units::{DeviceName, NodeName};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Node(NodeName),
    Disk(String),
}

#[derive(Clone, Debug)]
struct Range {
    place: Place,
    start: u64,
    end: u64,
}

impl Range {
    fn new(place: Place, start: u64, length: u64) -> Self {
        let end = start.saturating_add(length);
        Self { place, start, end }
    }
}

/// A range that two devices would write.
#[derive(Debug)]
pub struct Shared<'a> {
    pub other: &'a ObservedDevice,
    /// Its live table writes it; else the one in its inactive slot, which a resume would make live.
    pub live: bool,
    range: Range,
}

impl fmt::Display for Shared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { place, start, end } = &self.range;
        match place {
            Place::Node(node) => write!(f, "{} sectors of node {node}", end - start),
            Place::Disk(disk) => write!(f, "{} sectors of disk {disk}", end - start),
        }?;
        write!(f, " from sector {start} on")
    }
}

#[derive(Debug)]
struct Writer<'a> {
    range: Range,
    device: &'a ObservedDevice,
    live: bool,
}

/// Who writes what now, or would after a resume, by where it lies.
#[derive(Debug)]
pub struct Writers<'a>(BTreeMap<Place, Vec<Writer<'a>>>);

impl<'a> Writers<'a> {
    pub fn of(devices: &'a [ObservedDevice]) -> Self {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut add = |device, lines: &[Line], live| {
            for range in written(lines) {
                let place = range.place.clone();
                let writer = Writer {
                    range,
                    device,
                    live,
                };
                all.entry(place).or_default().push(writer);
            }
        };
        for device in devices {
            if device.access == Access::ReadWrite {
                add(device, &device.lines, true);
            }
            // How it was loaded nobody can tell.
            add(
                device,
                device.inactive.as_deref().unwrap_or_default(),
                false,
            );
        }
        Self(all)
    }

    /// Another device that writes what `table` is to write and the device itself doesn't write yet; one whose live table does
    /// so, if there is one.
    pub fn beside(&self, name: &DeviceName, table: &Table) -> Option<Shared<'a>> {
        if table.access == Access::ReadOnly {
            return None;
        }
        let mut by_place: BTreeMap<Place, Vec<Range>> = BTreeMap::new();
        for range in written(&table.lines) {
            by_place.entry(range.place.clone()).or_default().push(range);
        }
        let find = |live| {
            let mut places = by_place.iter();
            places.find_map(|(place, ranges)| beside(name, ranges, self.0.get(place)?, live))
        };
        find(true).or_else(|| find(false))
    }
}

/// Of devices whose inactive tables are to go live (None: with the access that they have): why they may not, where another device writes the same, or is about to.
pub fn second_writers(
    devices: &[ObservedDevice],
    switched: &BTreeMap<DeviceName, Option<Access>>,
) -> BTreeMap<DeviceName, String> {
    let writers = Writers::of(devices);
    let why = |name: &DeviceName, access: Option<Access>| {
        let device = devices.iter().find(|d| d.name == name.as_str())?;
        let lines = device.inactive.clone()?;
        let access = access.unwrap_or(device.access);
        let shared = writers.beside(name, &Table { lines, access })?;
        let now = if shared.live { "has come" } else { "is about" };
        Some(format!(
            "device {} {now} to write {shared}, too",
            shared.other.name
        ))
    };
    let refused = switched
        .iter()
        .filter_map(|(name, access)| Some((name.clone(), why(name, *access)?)));
    refused.collect()
}

/// The same for one node or disk.
fn beside<'a>(
    name: &DeviceName,
    ranges: &[Range],
    there: &[Writer<'a>],
    live: bool,
) -> Option<Shared<'a>> {
    let (mine, others): (Vec<_>, Vec<_>) = there
        .iter()
        .partition(|writer| writer.device.name == name.as_str());
    let had = |range: &Range| {
        let mine = mine.iter().filter(|writer| writer.live);
        let parts = mine.filter_map(|writer| common(&writer.range, range));
        parts.map(|part| part.end - part.start).sum::<u64>() >= range.end - range.start
    };
    let others: Vec<_> = others.iter().filter(|other| other.live == live).collect();
    ranges.iter().find_map(|range| {
        others.iter().find_map(|theirs| {
            let range = common(range, &theirs.range).filter(|range| !had(range))?;
            Some(Shared {
                other: theirs.device,
                live,
                range,
            })
        })
    })
}

/// Whether both write some sector of a node or disk.
pub fn shares(a: &Table, b: &Table) -> bool {
    if a.access == Access::ReadOnly || b.access == Access::ReadOnly {
        return false;
    }
    let b = written(&b.lines);
    let mut a = written(&a.lines).into_iter();
    a.any(|left| b.iter().any(|right| common(&left, right).is_some()))
}

/// What the lines write, in a device that isn't read-only.
fn written(lines: &[Line]) -> Vec<Range> {
    let of = |line: &Line| match DstArgs::of(line) {
        Ok(args) if args.features.read_only => Vec::new(),
        Ok(args) => {
            let extents = args.extents.into_iter();
            let range = extents.map(|e| Range::new(Place::Node(e.node), e.offset.0, e.length.0));
            range.collect()
        }
        Err(_) => {
            let disk = linear(line).into_iter();
            let range = disk.map(|(disk, offset)| {
                Range::new(Place::Disk(disk.to_owned()), offset, line.length.0)
            });
            range.collect()
        }
    };
    lines.iter().flat_map(of).collect()
}

fn common(a: &Range, b: &Range) -> Option<Range> {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    (start < end && a.place == b.place).then(|| Range {
        place: a.place.clone(),
        start,
        end,
    })
}
