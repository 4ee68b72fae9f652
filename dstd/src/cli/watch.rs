//! `dstd status --watch`: looks again and again, and tells what went on between two looks.
//! Called by status. Changes nothing; ends when it is interrupted, or nobody reads any more.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::report::{Rates, Report};
use super::status::{Looker, latency_cells, state_word, table};
use super::{Exit, Stop};
use crate::kernel::{Kernel, NodeState, ObservedNode};
use crate::units::{Bytes, Millis};

/// To the upper left corner, and nothing on the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub fn watch<K: Kernel + 'static>(
    looker: &mut Looker<K>,
    seconds: u64,
    json: bool,
    all: bool,
) -> Result<Exit, Stop> {
    let mut watch = Watch::default();
    let clear = io::stdout().is_terminal() && !json;
    loop {
        let report = watch.next(looker.look()?, Instant::now());
        let text = if json {
            let line = serde_json::to_string(report).map_err(Stop::failed)?;
            format!("{line}\n")
        } else {
            let text = format!("{}{}\n", report.text(all), watch.text(Instant::now()));
            if clear {
                format!("{CLEAR}{text}")
            } else {
                text
            }
        };
        let mut out = io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(error) => {
                let text = format!("standard output can't be written: {error}");
                return Err(Stop::failed(text));
            }
        }
        sleep(Duration::from_secs(seconds));
    }
}

/// A node's state and its reason.
type Trouble = (NodeState, Option<String>);

/// What is remembered from look to look.
#[derive(Default)]
struct Watch {
    last: Option<(Instant, Report)>,
    /// Since when a node is as it is, and whether it was so when the watch began.
    since: BTreeMap<String, (Trouble, Instant, bool)>,
}

impl Watch {
    fn next(&mut self, mut report: Report, now: Instant) -> &Report {
        let first = self.last.is_none();
        if let Some((then, before)) = &self.last {
            report.rates = Some(Rates::between(before, &report, now - *then));
        }
        self.since.retain(|name, _| {
            let mut nodes = report.nodes.iter();
            nodes.any(|node| node.name.as_str() == name)
        });
        for node in &report.nodes {
            let trouble = (node.state, node.reason.clone());
            let known = self.since.get(node.name.as_str());
            if known.is_none_or(|(was, ..)| *was != trouble) {
                let entry = (trouble, now, first);
                self.since.insert(node.name.to_string(), entry);
            }
        }
        &self.last.insert((now, report)).1
    }

    /// What went on, and for how long each node is as it is.
    fn text(&self, now: Instant) -> String {
        let Some((_, report)) = &self.last else {
            return String::new();
        };
        let mut text = String::new();
        if let Some(rates) = &report.rates {
            text += &format!("\nPer second, of the last {}:\n", millis(rates.interval_ms));
            text += &device_rates(rates);
            text += "\n";
            text += &node_rates(rates);
        }
        text + "\n" + &self.since_table(&report.nodes, now)
    }

    fn since_table(&self, nodes: &[ObservedNode], now: Instant) -> String {
        let rows = nodes.iter().filter_map(|node| {
            let (_, since, from_the_start) = self.since.get(node.name.as_str())?;
            let more = if *from_the_start { "more than " } else { "" };
            let seconds = (now - *since).as_secs() * 1000;
            Some(vec![
                node.name.to_string(),
                state_word(node.state).to_owned(),
                format!("{more}{}", millis(seconds)),
                node.reason.clone().unwrap_or_else(|| "-".to_owned()),
            ])
        });
        table(&["NODE", "STATE", "FOR", "LAST REASON"], rows)
    }
}

fn millis(time: u64) -> String {
    Millis(u32::try_from(time).unwrap_or(u32::MAX - 1)).to_string()
}

fn device_rates(rates: &Rates) -> String {
    let time = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us}us"));
    let rows = rates.devices.iter().map(|(name, rate)| {
        vec![
            name.clone(),
            rate.reads.to_string(),
            rate.read.to_string(),
            time(rate.read_us),
            rate.writes.to_string(),
            rate.written.to_string(),
            time(rate.write_us),
        ]
    });
    let header = [
        "DEVICE", "READS", "READ", "LATENCY", "WRITES", "WRITTEN", "LATENCY",
    ];
    table(&header, rows)
}

fn node_rates(rates: &Rates) -> String {
    let bytes = |bytes: Bytes| bytes.to_string();
    let rows = rates.nodes.iter();
    let rows = rows.map(|(name, rate)| {
        let mut row = vec![name.clone(), bytes(rate.sent), bytes(rate.received)];
        let latency = rate.latency.as_ref();
        for one in [latency.map(|l| &l.read), latency.map(|l| &l.write)] {
            let [_, typical, p99] = one.map_or_else(|| ["-"; 3].map(str::to_owned), latency_cells);
            row.extend([typical, p99]);
        }
        row
    });
    let header = [
        "NODE", "SENT", "RECEIVED", "A READ", "P99", "A WRITE", "P99",
    ];
    table(&header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::{device, node};
    use crate::kernel::{DeviceIo, Latency};

    fn io(reads: u64, writes: u64, write_ms: u64) -> DeviceIo {
        DeviceIo {
            reads,
            read: Bytes(reads * 4096),
            writes,
            written: Bytes(writes << 20),
            write_ms,
            ..DeviceIo::default()
        }
    }

    fn look(io: DeviceIo, node: ObservedNode) -> Report {
        let device = device("dev", "DST-dev", &["0 8 dst 1 alpha 0 8"]);
        Report::of(&[device], vec![node], |_| Some(io))
    }

    #[test]
    fn two_looks_tell_what_went_on_and_since_when_a_node_is_as_it_is() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        watch.next(look(io(10, 5, 100), node()), at(0));
        assert_eq!(
            watch.text(at(0)),
            "\nNODE   STATE     FOR           LAST REASON\nalpha  degraded  more than 0s  link 1: connection reset\n"
        );
        let mut later = node();
        later.links[0].sent = Bytes(4096 + 2048);
        later.links[1].received = Bytes(16 + 32);
        // A link that was made meanwhile counts from nothing.
        let mut new = later.links[0].clone();
        (new.generation, new.sent) = (new.generation.next().unwrap().next().unwrap(), Bytes(1024));
        later.links.push(new);
        let latency = later.latency.as_mut().unwrap();
        let mut reads = latency.read.buckets.clone();
        reads[9] += 3;
        latency.read = Latency::of(latency.read.sum_ns + 1000, reads);
        watch.next(look(io(210, 25, 150), later.clone()), at(2));
        let expected = "
Per second, of the last 2s:
DEVICE  READS  READ    LATENCY  WRITES  WRITTEN  LATENCY
dev     100    400KiB  0us      10      10MiB    2500us

NODE   SENT     RECEIVED  A READ       P99          A WRITE  P99
alpha  1.50KiB  24B       up to 512us  up to 512us  -        -

NODE   STATE     FOR           LAST REASON
alpha  degraded  more than 2s  link 1: connection reset
";
        assert_eq!(watch.text(at(2)), expected);
        (later.state, later.reason) = (NodeState::Lost, Some("gone".to_owned()));
        watch.next(look(io(210, 25, 150), later.clone()), at(4));
        watch.next(look(io(210, 25, 150), later), at(9));
        let text = watch.text(at(9));
        assert!(
            text.contains("dev     0      0B    -        0       0B       -\n"),
            "{text}"
        );
        assert!(text.ends_with("alpha  lost   5s   gone\n"), "{text}");
    }

    #[test]
    fn a_device_that_was_made_anew_counts_from_nothing() {
        let before = look(io(1000, 1000, 1000), node());
        let mut now = look(io(10, 10, 10), node());
        now.devices[0].number = "254:9".to_owned();
        let rates = Rates::between(&before, &now, Duration::from_secs(1));
        assert_eq!(rates.devices["dev"].reads, 10);
    }

    #[test]
    fn a_device_that_was_renamed_goes_on() {
        let before = look(io(1000, 1000, 1000), node());
        let mut now = look(io(1010, 1000, 1000), node());
        now.devices[0].name = "other".to_owned();
        let rates = Rates::between(&before, &now, Duration::from_secs(1));
        assert_eq!(rates.devices["other"].reads, 10);
    }
}
