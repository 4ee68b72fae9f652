//! What `dstd status` tells, as data, and its JSON schema; rates between two looks.
//! Used by status and apply. Pure. Fields are only ever added.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;

use crate::kernel::{Access, DeviceIo, Latencies, ObservedDevice, ObservedLink, ObservedNode};
use crate::table::{DstArgs, Extent, Line, TARGET};
use crate::units::{Bytes, DeviceNumber, Sectors};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "dstd status --json")]
pub struct Report {
    pub devices: Vec<DeviceReport>,
    pub nodes: Vec<ObservedNode>,
    /// With `--watch`, from the second look on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct DeviceReport {
    pub name: String,
    pub uuid: String,
    /// Made by dstd, so dstd may change it.
    pub ours: bool,
    pub number: String,
    #[schemars(with = "u64")]
    pub sectors: Sectors,
    pub state: &'static str,
    pub access: Access,
    pub open_count: u32,
    pub inactive_table: bool,
    pub nodes: Vec<String>,
    /// What the kernel counts of its I/O; not there where it doesn't say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<DeviceIo>,
    pub table: Vec<PieceReport>,
}

/// A run of a device's sectors.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PieceReport {
    #[schemars(with = "u64")]
    pub start: Sectors,
    #[schemars(with = "u64")]
    pub length: Sectors,
    pub target: String,
    /// Of `dst` pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub offset: Option<Sectors>,
    /// Of all other pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
}

impl Report {
    /// `io` tells what a device's I/O came to.
    pub fn of(
        devices: &[ObservedDevice],
        nodes: Vec<ObservedNode>,
        io: impl Fn(DeviceNumber) -> Option<DeviceIo>,
    ) -> Self {
        let shown = |device: &&ObservedDevice| {
            device.uuid.is_ours() || device.lines.iter().any(|line| line.target == TARGET)
        };
        Self {
            devices: devices
                .iter()
                .filter(shown)
                .map(|device| DeviceReport::of(device, io(device.number)))
                .collect(),
            nodes,
            rates: None,
        }
    }
}

impl DeviceReport {
    fn of(device: &ObservedDevice, io: Option<DeviceIo>) -> Self {
        let table: Vec<_> = device.lines.iter().flat_map(pieces_of).collect();
        let mut nodes: Vec<String> = Vec::new();
        for node in table.iter().filter_map(|piece| piece.node.as_ref()) {
            if !nodes.contains(node) {
                nodes.push(node.clone());
            }
        }
        Self {
            name: device.name.clone(),
            uuid: device.uuid.0.clone(),
            ours: device.uuid.is_ours(),
            number: device.number.to_string(),
            sectors: device.lines.last().and_then(Line::end).unwrap_or_default(),
            state: match (device.lines.is_empty(), device.suspended) {
                (true, _) => "no table",
                (false, true) => "suspended",
                (false, false) => "active",
            },
            access: device.access,
            open_count: device.open_count,
            inactive_table: device.inactive.is_some(),
            nodes,
            io,
            table,
        }
    }
}

fn pieces_of(line: &Line) -> Vec<PieceReport> {
    let Ok(args) = DstArgs::of(line) else {
        return vec![PieceReport {
            start: line.start,
            length: line.length,
            target: line.target.clone(),
            node: None,
            offset: None,
            args: Some(line.args.clone()),
        }];
    };
    let mut start = line.start;
    let piece = |Extent {
                     node,
                     offset,
                     length,
                 }| {
        let piece = PieceReport {
            start,
            length,
            target: line.target.clone(),
            node: Some(node.to_string()),
            offset: Some(offset),
            args: None,
        };
        start = start.checked_add(length).unwrap_or(start);
        piece
    };
    args.extents.into_iter().map(piece).collect()
}

/// What went on between two looks, for a second; times are means, and not there where nothing was done.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rates {
    pub interval_ms: u64,
    pub devices: BTreeMap<String, DeviceRates>,
    pub nodes: BTreeMap<String, NodeRates>,
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceRates {
    pub reads: u64,
    pub read: Bytes,
    pub read_us: Option<u64>,
    pub writes: u64,
    pub written: Bytes,
    pub write_us: Option<u64>,
}

/// Bytes on the wire of all links.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NodeRates {
    pub sent: Bytes,
    pub received: Bytes,
    /// Of what was answered between the two looks, not for a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
}

impl Rates {
    pub fn between(before: &Report, now: &Report, interval: Duration) -> Self {
        let millis = u64::try_from(interval.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let old_io = |now: &DeviceReport| {
            let mut devices = before.devices.iter();
            // One that was made anew counts from nothing; one that was renamed goes on.
            let is_it = |d: &&DeviceReport| d.number == now.number && d.uuid == now.uuid;
            devices.find(is_it)?.io
        };
        let devices = now.devices.iter().filter_map(|device| {
            let was = old_io(device).unwrap_or_default();
            let rates = DeviceRates::between(&was, &device.io?, millis);
            Some((device.name.clone(), rates))
        });
        let nodes = now.nodes.iter().map(|node| {
            let was = before.nodes.iter().find(|n| n.name == node.name);
            (node.name.to_string(), NodeRates::between(was, node, millis))
        });
        Self {
            interval_ms: millis,
            devices: devices.collect(),
            nodes: nodes.collect(),
        }
    }
}

fn per_second(count: u64, millis: u64) -> u64 {
    let rate = u128::from(count) * 1000 / u128::from(millis);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

impl DeviceRates {
    fn between(was: &DeviceIo, now: &DeviceIo, millis: u64) -> Self {
        let rate = |was: u64, now: u64| per_second(now.saturating_sub(was), millis);
        let mean = |was: (u64, u64), now: (u64, u64)| {
            let (count, time) = (now.0.saturating_sub(was.0), now.1.saturating_sub(was.1));
            time.saturating_mul(1000).checked_div(count)
        };
        Self {
            reads: rate(was.reads, now.reads),
            read: Bytes(rate(was.read.0, now.read.0)),
            read_us: mean((was.reads, was.read_ms), (now.reads, now.read_ms)),
            writes: rate(was.writes, now.writes),
            written: Bytes(rate(was.written.0, now.written.0)),
            write_us: mean((was.writes, was.write_ms), (now.writes, now.write_ms)),
        }
    }
}

impl NodeRates {
    /// Links that are gone take what they carried last with them.
    fn between(was: Option<&ObservedNode>, now: &ObservedNode, millis: u64) -> Self {
        let links = was.map_or(&[][..], |was| &was.links);
        let before = |link: &ObservedLink| {
            let is_it =
                |old: &&ObservedLink| (old.slot, old.generation) == (link.slot, link.generation);
            let old = links.iter().find(is_it);
            old.map_or((0, 0), |old| (old.sent.0, old.received.0))
        };
        let (mut sent, mut received) = (0_u64, 0_u64);
        for link in &now.links {
            let old = before(link);
            sent = sent.saturating_add(link.sent.0.saturating_sub(old.0));
            received = received.saturating_add(link.received.0.saturating_sub(old.1));
        }
        Self {
            sent: Bytes(per_second(sent, millis)),
            received: Bytes(per_second(received, millis)),
            latency: now.latency.as_ref().map(|latency| {
                let before = was.and_then(|was| was.latency.as_ref());
                before.map_or_else(|| latency.clone(), |before| latency.since(before))
            }),
        }
    }
}

/// The schema of `status --json`, as text, ending in a newline.
pub fn json_schema() -> String {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let schema = settings.into_generator().into_root_schema_for::<Report>();
    format!("{:#}\n", schema.as_value())
}
