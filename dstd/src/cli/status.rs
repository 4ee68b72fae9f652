//! `dstd status`: devices and nodes as the kernel has them now.
//! Called by cli. Changes nothing; reads no topology. The JSON only grows.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use super::{Exit, Stop, print, system};
use crate::kernel::{Access, Kernel, LinkState, NodeState, ObservedDevice, ObservedNode, OldLink};
use crate::table::{DstArgs, Extent, Line, TARGET};
use crate::units::{Bytes, Sectors};

/// How long a device of others may take to say what it is.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Extents that are shown of one device before it is cut short.
const EXTENTS_SHOWN: usize = 24;

/// Show devices and nodes as the kernel has them
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show all extents of every device
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    devices: Vec<DeviceReport>,
    nodes: Vec<ObservedNode>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    name: String,
    uuid: String,
    /// Made by dstd, so dstd may change it.
    ours: bool,
    number: String,
    sectors: Sectors,
    state: &'static str,
    access: Access,
    open_count: u32,
    inactive_table: bool,
    nodes: Vec<String>,
    table: Vec<PieceReport>,
}

/// A run of a device's sectors.
#[derive(Debug, Serialize)]
struct PieceReport {
    start: Sectors,
    length: Sectors,
    target: String,
    /// Of `dst` pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<Sectors>,
    /// Of all other pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<String>,
}

impl Status {
    pub fn run(self) -> Result<Exit, Stop> {
        let kernel = system::kernel()?;
        let mut devices = kernel.devices()?;
        let silent = add_tables_by_hand(&kernel, &mut devices);
        if !silent.is_empty() {
            eprintln!(
                "dstd: devices that don't answer are left out: {}",
                silent.join(", ")
            );
        }
        let report = Report::of(&devices, kernel.nodes()?);
        if self.json {
            let json = serde_json::to_string_pretty(&report).map_err(Stop::failed)?;
            print(format!("{json}\n"))?;
        } else {
            print(report.text(self.all))?;
        }
        Ok(Exit::Done)
    }
}

/// The tables of others that hold a `dst` line. Names those that don't answer: what lies on a dead node may block.
fn add_tables_by_hand<K: Kernel + 'static>(
    kernel: &Arc<K>,
    devices: &mut [ObservedDevice],
) -> Vec<String> {
    let others = devices.iter().filter(|d| !d.uuid.is_ours());
    let names: Vec<_> = others.map(|d| d.name.clone()).collect();
    let kernel = Arc::clone(kernel);
    let mut tables = answers(ANSWER_LIMIT, &names, move |name| kernel.dst_table(name));
    for device in devices.iter_mut() {
        // One that went meanwhile has none.
        if let Some(Ok(lines)) = tables.get_mut(&device.name) {
            device.lines = std::mem::take(lines);
        }
    }
    names
        .into_iter()
        .filter(|n| !tables.contains_key(n))
        .collect()
}

/// Asks all at once, and takes what comes in time; a thread that is stuck is left behind.
fn answers<T: Send + 'static>(
    limit: Duration,
    names: &[String],
    ask: impl Fn(&str) -> T + Send + Sync + 'static,
) -> BTreeMap<String, T> {
    let deadline = Instant::now() + limit;
    let (tell, told) = mpsc::channel();
    let ask = Arc::new(ask);
    for name in names {
        let (ask, tell, name) = (Arc::clone(&ask), tell.clone(), name.clone());
        std::thread::spawn(move || {
            let answer = ask(&name);
            // Whoever asked may be gone.
            let _ = tell.send((name, answer));
        });
    }
    drop(tell);
    let mut all = BTreeMap::new();
    while let Ok((name, answer)) =
        told.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        all.insert(name, answer);
    }
    all
}

impl Report {
    fn of(devices: &[ObservedDevice], nodes: Vec<ObservedNode>) -> Self {
        let shown = |device: &&ObservedDevice| {
            device.uuid.is_ours() || device.lines.iter().any(|line| line.target == TARGET)
        };
        Self {
            devices: devices.iter().filter(shown).map(DeviceReport::of).collect(),
            nodes,
        }
    }

    fn text(&self, all: bool) -> String {
        let mut text = String::new();
        if self.devices.is_empty() {
            text += "No devices.\n";
        } else {
            text += &self.device_table();
            for device in &self.devices {
                text += &device.pieces(all);
            }
        }
        text += "\n";
        text += &if self.nodes.is_empty() {
            "No nodes.\n".to_owned()
        } else {
            self.node_table() + "\n" + &self.settings_table() + &self.unfenced_table()
        };
        text
    }

    fn device_table(&self) -> String {
        let rows = self.devices.iter().map(|device| {
            vec![
                device.name.clone(),
                bytes(device.sectors),
                device.state.to_owned(),
                match device.access {
                    Access::ReadWrite => "rw".to_owned(),
                    Access::ReadOnly => "ro".to_owned(),
                },
                device.open_count.to_string(),
                device.number.clone(),
                if device.ours {
                    "dstd".to_owned()
                } else {
                    "hand".to_owned()
                },
                shorten(&device.nodes.join(" "), 60),
            ]
        });
        table(
            &[
                "DEVICE", "SIZE", "STATE", "ACCESS", "OPEN", "NUMBER", "MADE BY", "NODES",
            ],
            rows,
        )
    }

    fn node_table(&self) -> String {
        let rows = self.nodes.iter().map(|node| {
            let negotiated = node.negotiated.as_ref();
            vec![
                node.name.to_string(),
                state_word(node.state).to_owned(),
                links(node),
                negotiated.map_or_else(|| "-".to_owned(), |n| n.size.to_string()),
                node.in_flight.to_string(),
                node.queued.to_string(),
                node.barred.to_string(),
                node.errors.to_string(),
                node.reconnects.to_string(),
                cache(node).to_owned(),
                node.reason.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        table(
            &[
                "NODE",
                "STATE",
                "LINKS",
                "SIZE",
                "IN FLIGHT",
                "QUEUED",
                "BARRED",
                "ERRORS",
                "RECONNECTS",
                "CACHE",
                "REASON",
            ],
            rows,
        )
    }
}

impl Report {
    /// How each node treats a loss.
    fn settings_table(&self) -> String {
        let rows = self.nodes.iter().map(|node| {
            let words = node.conduct.words().map(|(_, word)| word);
            let negotiated = node.negotiated.as_ref();
            let incarnation = negotiated.and_then(|n| n.incarnation);
            [
                vec![node.name.to_string()],
                words.to_vec(),
                vec![incarnation.map_or_else(|| "-".to_owned(), |id| id.to_string())],
            ]
            .concat()
        });
        let header = [
            "NODE",
            "POLICY",
            "QUIESCE",
            "EOF FENCES",
            "RESTART",
            "TIMEOUT",
            "INCARNATION",
        ];
        table(&header, rows)
    }

    /// Lost links that may still write; nothing where there is none.
    fn unfenced_table(&self) -> String {
        let rows: Vec<_> = self.nodes.iter().flat_map(unfenced_rows).collect();
        if rows.is_empty() {
            return String::new();
        }
        let header = [
            "UNFENCED LINK OF",
            "SLOT",
            "GENERATION",
            "AMBIGUOUS RANGES",
            "AND OLDER LINKS",
            "QUIET IN",
        ];
        format!("\n{}", table(&header, rows.into_iter()))
    }
}

fn unfenced_rows(node: &ObservedNode) -> Vec<Vec<String>> {
    let quiet = |old: &OldLink| match (old.quiet_in, node.conduct.quiesce) {
        (Some(time), _) => time.to_string(),
        (None, None) => "never".to_owned(),
        (None, Some(quiesce)) => format!("{quiesce} after the node has answered"),
    };
    let row = |old: &OldLink| {
        vec![
            node.name.to_string(),
            old.slot.to_string(),
            old.generation.to_string(),
            old.ambiguous.to_string(),
            old.merged.to_string(),
            quiet(old),
        ]
    };
    node.unfenced.iter().map(row).collect()
}

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Waiting => "waiting",
        NodeState::Live => "live",
        NodeState::Degraded => "degraded",
        NodeState::Lost => "lost",
        NodeState::Failed => "failed",
        NodeState::Mismatch => "mismatch",
    }
}

/// Live and wanted, and those that still wait for answers.
fn links(node: &ObservedNode) -> String {
    let draining = node
        .links
        .iter()
        .filter(|l| l.state == LinkState::Draining)
        .count();
    match draining {
        0 => format!("{}/{}", node.live, node.wanted),
        n => format!("{}/{} (+{n} draining)", node.live, node.wanted),
    }
}

/// Whether acknowledged writes can still be lost with the node.
fn cache(node: &ObservedNode) -> &'static str {
    match &node.negotiated {
        None => "-",
        Some(n) if !n.flags.has(crate::kernel::NbdFlags::SEND_FLUSH) => "write-through",
        Some(_) if node.writes > 0 => "dirty",
        Some(_) => "clean",
    }
}

impl DeviceReport {
    fn of(device: &ObservedDevice) -> Self {
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
            table,
        }
    }

    fn pieces(&self, all: bool) -> String {
        let shown = if all { self.table.len() } else { EXTENTS_SHOWN };
        let rows = self.table.iter().take(shown).map(|piece| {
            let place = match (&piece.node, piece.offset, &piece.args) {
                (Some(node), Some(offset), _) => format!("node {node} at {offset}"),
                (.., Some(args)) => format!("{} {}", piece.target, shorten(args, 80)),
                _ => piece.target.clone(),
            };
            vec![
                format!("  {}", piece.start),
                piece.length.to_string(),
                bytes(piece.length),
                place,
            ]
        });
        let mut text = format!("\n{}\n", self.name);
        text += &table(&["  START", "SECTORS", "SIZE", "LIES ON"], rows);
        if self.table.len() > shown {
            text += &format!(
                "  ... {} more; --all shows them\n",
                self.table.len() - shown
            );
        }
        text
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

fn bytes(sectors: Sectors) -> String {
    sectors
        .bytes()
        .map_or_else(String::new, |bytes: Bytes| bytes.to_string())
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(NOTHING).set_header(header);
    table.add_rows(rows);
    let lines: Vec<_> = table
        .lines()
        .map(|line| {
            let line = line.strip_prefix(' ').unwrap_or(&line);
            line.trim_end().to_owned()
        })
        .collect();
    format!("{}\n", lines.join("\n"))
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(super) mod tests;
