//! `dstd status`: devices and nodes as the kernel has them now.
//! Called by cli. Changes nothing; reads no topology. The JSON only grows.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::presets::NOTHING;

use super::report::{DeviceReport, Report};
use super::watch::watch;
use super::{Exit, Stop, print, system};
use crate::kernel::{
    Access, Kernel, Latency, LinkState, NodeState, ObservedDevice, ObservedNode, OldLink, device_io,
};
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
    /// Look again every so many seconds, and tell what went on between; with --json a line each
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
}

impl Status {
    pub fn run(self) -> Result<Exit, Stop> {
        let mut looker = Looker {
            kernel: system::kernel()?,
            silent: Vec::new(),
        };
        if let Some(seconds) = self.watch {
            return watch(&mut looker, seconds, self.json, self.all);
        }
        let report = looker.look()?;
        if self.json {
            let json = serde_json::to_string_pretty(&report).map_err(Stop::failed)?;
            print(format!("{json}\n"))?;
        } else {
            print(report.text(self.all))?;
        }
        Ok(Exit::Done)
    }
}

/// Looks at the kernel, again and again.
pub struct Looker<K> {
    pub kernel: Arc<K>,
    /// Devices of others that didn't answer: they aren't asked again, as each time a thread may be left behind.
    pub silent: Vec<String>,
}

impl<K: Kernel + 'static> Looker<K> {
    pub fn look(&mut self) -> Result<Report, Stop> {
        let mut devices = self.kernel.devices()?;
        devices.retain(|device| device.uuid.is_ours() || !self.silent.contains(&device.name));
        let silent = add_tables_by_hand(&self.kernel, &mut devices);
        if !silent.is_empty() {
            eprintln!(
                "dstd: devices that don't answer are left out: {}",
                silent.join(", ")
            );
        }
        self.silent.extend(silent);
        Ok(Report::of(&devices, self.kernel.nodes()?, device_io))
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

/// Devices and nodes in short, for the end of `apply`.
pub fn brief(devices: &[ObservedDevice], nodes: Vec<ObservedNode>) -> String {
    let report = Report::of(devices, nodes, |_| None);
    let nodes = match report.nodes.as_slice() {
        [] => "No nodes.\n".to_owned(),
        _ => report.node_table(),
    };
    match report.devices.as_slice() {
        [] => format!("No devices.\n\n{nodes}"),
        _ => format!("{}\n{nodes}", report.device_table()),
    }
}

impl Report {
    pub fn text(&self, all: bool) -> String {
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
            [
                self.node_table(),
                "\n".to_owned(),
                self.settings_table(),
                self.latency_table(),
                self.unfenced_table(),
            ]
            .concat()
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

    /// How long each node's server takes; nothing where the module doesn't say.
    fn latency_table(&self) -> String {
        let counted = self.nodes.iter();
        let counted = counted.filter_map(|node| Some((node, node.latency.as_ref()?)));
        let rows = counted.map(|(node, latency)| {
            let (read, write) = (latency_cells(&latency.read), latency_cells(&latency.write));
            [vec![node.name.to_string()], read.to_vec(), write.to_vec()].concat()
        });
        let rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            return String::new();
        }
        let header = [
            "NODE", "READS", "TYPICAL", "P99", "WRITES", "TYPICAL", "P99",
        ];
        format!("\n{}", table(&header, rows.into_iter()))
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

/// How many, and within which bound half and 99 in 100 of them were answered.
pub fn latency_cells(latency: &Latency) -> [String; 3] {
    let bound = |quantile: Option<u64>| match quantile {
        Some(us) => format!("up to {}", micros(us)),
        None if latency.count == 0 => "-".to_owned(),
        None => format!("over {}", micros(latency.last_bound())),
    };
    [
        latency.count.to_string(),
        bound(latency.typical_us),
        bound(latency.p99_us),
    ]
}

fn micros(us: u64) -> String {
    let tenths = |unit: u64| us.saturating_mul(10).saturating_add(unit / 2) / unit;
    let of = |unit, name| format!("{}.{}{name}", tenths(unit) / 10, tenths(unit) % 10);
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => of(1_000, "ms"),
        _ => of(1_000_000, "s"),
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

pub fn state_word(state: NodeState) -> &'static str {
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
        let mut text = format!("\n{}\n", harmless(&self.name));
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

/// Names and tables of others may hold what a terminal would obey.
fn harmless(text: &str) -> String {
    text.replace(char::is_control, "?")
}

pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(NOTHING).set_header(header);
    table.add_rows(rows.map(|row| {
        row.into_iter()
            .map(|cell| harmless(&cell))
            .collect::<Vec<_>>()
    }));
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
pub(crate) mod tests;
