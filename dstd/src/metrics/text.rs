//! The text format: what the kernel shows and what the daemon counts, as families of samples.
//! Called by serve. Pure. Names and labels are an interface: they are only ever added to.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::{Duration, UNIX_EPOCH};

use super::stats::Counts;
use crate::kernel::{DeviceIo, Latency, LinkState, NodeState, ObservedDevice, ObservedNode};
use crate::reconcile::Cause;
use crate::table::Line;

/// What the kernel shows at one time.
pub struct Seen {
    pub devices: Vec<(ObservedDevice, Option<DeviceIo>)>,
    pub nodes: Vec<ObservedNode>,
}

const STATES: [(NodeState, &str); 6] = [
    (NodeState::Waiting, "waiting"),
    (NodeState::Live, "live"),
    (NodeState::Degraded, "degraded"),
    (NodeState::Lost, "lost"),
    (NodeState::Failed, "failed"),
    (NodeState::Mismatch, "mismatch"),
];

#[derive(Default)]
struct Page(String);

impl Page {
    /// A family: its name, help, and samples as (labels, value). One without samples isn't there.
    fn family<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        let mut head = format!("# HELP dst_{name} {help}\n# TYPE dst_{name} {kind}\n");
        for (labels, value) in samples {
            self.0 += &std::mem::take(&mut head);
            // A String takes all that is written.
            let _ = match labels.as_str() {
                "" => writeln!(self.0, "dst_{name} {value}"),
                labels => writeln!(self.0, "dst_{name}{{{labels}}} {value}"),
            };
        }
    }

    /// A family of histograms, each with its labels. Bounds and sums are in seconds.
    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (String, &'a Latency)>,
    ) {
        let mut text = String::new();
        for (labels, latency) in all {
            for (bound, count) in latency.cumulative() {
                let bound = seconds_of(bound, 6);
                text += &format!("dst_{name}_bucket{{{labels},le=\"{bound}\"}} {count}\n");
            }
            let (sum, count) = (seconds_of(latency.sum_ns, 9), latency.count);
            text += &format!("dst_{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n");
            text += &format!("dst_{name}_sum{{{labels}}} {sum}\n");
            text += &format!("dst_{name}_count{{{labels}}} {count}\n");
        }
        if !text.is_empty() {
            self.0 += &format!("# HELP dst_{name} {help}\n# TYPE dst_{name} histogram\n{text}");
        }
    }

    fn one<V: Display>(&mut self, name: &str, help: &str, value: V) {
        self.family(name, help, [(String::new(), value)]);
    }
}

pub fn page(seen: &Seen, counts: &Counts) -> String {
    let mut page = Page::default();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    page.family("build_info", "This dstd.", [(version, 1)]);
    daemon(&mut page, counts);
    losses(&mut page, &seen.nodes, counts);
    devices(&mut page, &seen.devices);
    nodes(&mut page, &seen.nodes);
    latencies(&mut page, &seen.nodes);
    states(&mut page, &seen.nodes, counts);
    links(&mut page, &seen.nodes);
    page.0
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// A count of parts of a second, of which there are 10 to the power of `digits`: exactly.
fn seconds_of(parts: u64, digits: usize) -> String {
    let text = format!("{parts:0>width$}", width = digits + 1);
    let (whole, rest) = text.split_at(text.len() - digits);
    format!("{whole}.{rest}")
}

fn daemon(page: &mut Page, counts: &Counts) {
    page.one(
        "passes_total",
        "Times that the daemon compared what is with the topology.",
        counts.passes,
    );
    let causes = Cause::ALL.iter().map(|cause| {
        let labels = format!("cause=\"{}\"", cause.label());
        (labels, counts.causes.get(cause).copied().unwrap_or(0))
    });
    page.family(
        "passes_by_cause_total",
        "Passes, by what made them come.",
        causes,
    );
    page.one(
        "failed_passes_total",
        "Passes that could not look at the kernel, or some of whose steps failed.",
        counts.failed_passes,
    );
    page.one(
        "looking_seconds_total",
        "What all looks and plans took.",
        seconds(counts.looking),
    );
    page.one(
        "steps_total",
        "Steps taken about devices and settings; links are made beside them.",
        counts.steps,
    );
    page.one(
        "failed_steps_total",
        "Steps that failed.",
        counts.failed_steps,
    );
    page.one(
        "refused_changes",
        "Changes that are refused now; dstd plan shows them.",
        counts.refusals,
    );
    page.one(
        "wanting_nodes",
        "Nodes that lack links or have not answered.",
        counts.wanting,
    );
    page.one(
        "missed_events_total",
        "Times that events of the kernel were missed.",
        counts.missed,
    );
}

/// Of every node, also while it is 0: else the first loss would show no increase.
fn losses(page: &mut Page, nodes: &[ObservedNode], counts: &Counts) {
    let mut lost: BTreeMap<_, _> = nodes.iter().map(|node| (&node.name, 0)).collect();
    lost.extend(counts.data_lost.iter().map(|(node, times)| (node, *times)));
    let lost = lost.into_iter();
    page.family(
        "data_lost_total",
        "Times that a server came back without acknowledged writes.",
        lost.map(|(node, times)| (format!("node=\"{node}\""), times)),
    );
}

type Device = (ObservedDevice, Option<DeviceIo>);

/// Name, help, and what of the kernel's counts it is.
type Count = (&'static str, &'static str, fn(&DeviceIo) -> u64);

const COUNTS: [Count; 7] = [
    ("device_reads_total", "Reads that ended.", |io| io.reads),
    ("device_read_bytes_total", "Bytes read.", |io| io.read.0),
    (
        "device_writes_total",
        "Writes and flushes that ended.",
        |io| io.writes,
    ),
    ("device_written_bytes_total", "Bytes written.", |io| {
        io.written.0
    }),
    ("device_discards_total", "Discards that ended.", |io| {
        io.discards
    }),
    ("device_discarded_bytes_total", "Bytes discarded.", |io| {
        io.discarded.0
    }),
    (
        "device_in_flight",
        "Requests that are not answered yet.",
        |io| io.in_flight,
    ),
];

/// Of milliseconds, told as seconds.
const TIMES: [Count; 3] = [
    (
        "device_read_seconds_total",
        "What all reads took together.",
        |io| io.read_ms,
    ),
    (
        "device_write_seconds_total",
        "What all writes and flushes took together.",
        |io| io.write_ms,
    ),
    (
        "device_discard_seconds_total",
        "What all discards took together.",
        |io| io.discard_ms,
    ),
];

/// A label's value. Names of nodes need none of this; that of a device may have been changed by others to what they like.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n")
}

fn devices(page: &mut Page, devices: &[Device]) {
    let label = |device: &ObservedDevice| format!("device=\"{}\"", escaped(&device.name));
    let each = |value: fn(&ObservedDevice) -> u64| {
        let samples = devices.iter();
        samples.map(move |(device, _)| (label(device), value(device)))
    };
    let size = |d: &ObservedDevice| {
        let end = d.lines.last().and_then(Line::end);
        end.and_then(|end| end.bytes()).unwrap_or_default().0
    };
    let suspended = |d: &ObservedDevice| u64::from(d.suspended);
    let opened = |d: &ObservedDevice| u64::from(d.open_count);
    page.family("device_size_bytes", "Size of the live table.", each(size));
    page.family("device_suspended", "1: its I/O waits.", each(suspended));
    page.family("device_opened", "How many have it open.", each(opened));
    let io = |value: fn(&DeviceIo) -> u64| {
        let counted = devices.iter().filter_map(|(d, io)| Some((d, io.as_ref()?)));
        counted.map(move |(device, io)| (label(device), value(io)))
    };
    for (name, help, value) in COUNTS {
        page.family(name, help, io(value));
    }
    for (name, help, value) in TIMES {
        let time = |ms| seconds(Duration::from_millis(ms));
        let samples = io(value).map(|(label, ms)| (label, time(ms)));
        page.family(name, help, samples);
    }
}

fn nodes(page: &mut Page, nodes: &[ObservedNode]) {
    let each = |value: fn(&ObservedNode) -> u64| {
        let samples = nodes
            .iter()
            .map(move |node| (format!("node=\"{}\"", node.name), value(node)));
        samples.collect::<Vec<_>>()
    };
    page.family(
        "node_links_live",
        "Links that take requests.",
        each(|n| n.live.into()),
    );
    page.family(
        "node_links_wanted",
        "Links that it should have.",
        each(|n| n.wanted.into()),
    );
    page.family(
        "node_in_flight",
        "Requests on its links.",
        each(|n| n.in_flight.into()),
    );
    page.family(
        "node_queued",
        "Requests that wait for a link.",
        each(|n| n.queued.into()),
    );
    page.family(
        "node_barred",
        "Requests that wait for a fence.",
        each(|n| n.barred.into()),
    );
    page.family(
        "node_ambiguous_ranges",
        "Ranges that lost links may still write.",
        each(|n| n.ambiguous.into()),
    );
    page.family(
        "node_unfenced_links",
        "Lost links that are not fenced.",
        each(|n| n.unfenced.len() as u64),
    );
    page.family(
        "node_unflushed_writes",
        "Writes acknowledged and not yet known durable.",
        each(|n| n.writes),
    );
    page.family(
        "node_errors_total",
        "Requests that ended in an error.",
        each(|n| n.errors),
    );
    page.family(
        "node_reconnects_total",
        "Links that came after the first loss.",
        each(|n| n.reconnects),
    );
    let merged = nodes.iter().filter_map(|n| Some((n, n.merged?)));
    page.family(
        "node_merged_requests_total",
        "Requests that were sent as part of another's wire request.",
        merged.map(|(n, merged)| (format!("node=\"{}\"", n.name), merged)),
    );
    let queues = || nodes.iter().filter_map(|n| Some((n, n.queue_time?)));
    page.family(
        "node_queue_waits_total",
        "Times that a request had to wait for a link, a fence or its pages.",
        queues().map(|(n, queue)| (format!("node=\"{}\"", n.name), queue.count)),
    );
    page.family(
        "node_queue_seconds_total",
        "What all those waits took together, those that go on included.",
        queues().map(|(n, queue)| (format!("node=\"{}\"", n.name), seconds_of(queue.sum_ns, 9))),
    );
}

fn states(page: &mut Page, nodes: &[ObservedNode], counts: &Counts) {
    let states = nodes.iter().flat_map(|node| {
        STATES.iter().map(move |(state, word)| {
            let labels = format!("node=\"{}\",state=\"{word}\"", node.name);
            (labels, u64::from(node.state == *state))
        })
    });
    page.family("node_state", "1 for the state that it is in.", states);
    let since = counts.since.iter().map(|(node, (_, since))| {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        (format!("node=\"{node}\""), seconds(since))
    });
    page.family(
        "node_state_since_timestamp_seconds",
        "Unix time since when it is in its state, as far as this dstd has seen.",
        since,
    );
}

fn latencies(page: &mut Page, nodes: &[ObservedNode]) {
    let counted = nodes.iter().filter_map(|n| Some((n, n.latency.as_ref()?)));
    let samples = counted.flat_map(|(node, latency)| {
        let label = |op| format!("node=\"{}\",op=\"{op}\"", node.name);
        [
            (label("read"), &latency.read),
            (label("write"), &latency.write),
        ]
    });
    page.histograms(
        "node_latency_seconds",
        "From when a request is gathered to be sent until it is answered.",
        samples,
    );
}

/// A slot's counters begin anew with each link that comes into it. A link that drains has left its slot.
fn links(page: &mut Page, nodes: &[ObservedNode]) {
    let each = |value: fn(&crate::kernel::ObservedLink) -> u64| {
        let links = nodes
            .iter()
            .flat_map(|node| node.links.iter().map(move |link| (node, link)));
        let live = links.filter(|(_, link)| link.state == LinkState::Live);
        let samples = live.map(move |(node, link)| {
            let labels = format!("node=\"{}\",slot=\"{}\"", node.name, link.slot);
            (labels, value(link))
        });
        samples.collect::<Vec<_>>()
    };
    page.family(
        "link_in_flight",
        "Requests on the link.",
        each(|l| l.in_flight.into()),
    );
    page.family(
        "link_sent_bytes_total",
        "Bytes sent on the link.",
        each(|l| l.sent.0),
    );
    page.family(
        "link_received_bytes_total",
        "Bytes received on the link.",
        each(|l| l.received.0),
    );
}
