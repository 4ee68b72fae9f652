//! What each mistake in a topology says, and where; and that everything that is right is read.

use proptest::prelude::*;

use super::*;
use crate::kernel::{self, Conduct};
use crate::plan::{Observed, desire};
use crate::units::Millis;

fn errors(text: &str) -> String {
    Topology::parse_one("t.yaml", text).unwrap_err().to_string()
}

/// Each text (below `version: 1`) with the place and words of its error.
fn all_wrong(cases: &[(&str, &str, &str)]) {
    for (text, place, says) in cases {
        let found = errors(&format!("version: 1\n{text}"));
        assert!(
            found.starts_with(&format!("t.yaml:{place}: ")),
            "{text}\n=> {found}"
        );
        assert!(
            found.contains(says),
            "{text}\n=> {found}\nshould say {says}"
        );
    }
}

const NODE_A: &str = "nodes: {a: {uri: 'nbd://h/'}}\n";

/// Text, place, words.
type Wrong = (&'static str, &'static str, &'static str);

const WRONG_NODES: &[Wrong] = &[
    ("nodes: {a: {}}", "2:12", "missing key `uri`"),
    ("nodes: {a: {uri: 'http://h/'}}", "2:18", "http"),
    ("nodes: {a: {uri: 'nbds://h/'}}", "2:18", "later step"),
    (
        "nodes: {'a b': {uri: 'nbd://h/'}}",
        "2:9",
        "` ` is not allowed",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', links: 0}}",
        "2:37",
        "write 1 to 32",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', links: many}}",
        "2:37",
        "`many` is no number of links",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', zero_copy: maybe}}",
        "2:41",
        "auto or on or off",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: drop}}",
        "2:38",
        "`drop` is no policy",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: {queue_for: soon}}}",
        "2:50",
        "`soon` is no length of time",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: {queue_for: 0s}}}",
        "2:50",
        "`0s` can't be had: write whole milliseconds, at least `1ms`",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: {queue_for: 50d}}}",
        "2:50",
        "at most 49 days",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: {wait: 5m}}}",
        "2:39",
        "unknown key `wait`, expected `queue_for`",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', policy: {}}}",
        "2:38",
        "missing key `queue_for`",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', quiesce: 1500us}}",
        "2:39",
        "whole milliseconds",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', quiesce: no}}",
        "2:39",
        "`no` is no length of time",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', eof_fences: perhaps}}",
        "2:42",
        "`perhaps` is no answer: write yes or no",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', unknown_restart: panic}}",
        "2:47",
        "`panic` is no unknown_restart setting: write trust or eio",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', timeout: 999ms}}",
        "2:39",
        "a timeout of 999ms is too short: write at least `1s`",
    ),
    (
        "nodes: {a: {uri: 'nbd://h/', timeout: never}}",
        "2:39",
        "`never` is no length of time",
    ),
    (
        "nodes:\n  a: {uri: 'nbd://h/'}\n  a: {uri: 'nbd://i/'}",
        "4:3",
        "`a` stands here a second time",
    ),
    ("nodes: [a]", "2:8", "expected a map"),
];

/// Below a node `a`.
const WRONG_DEVICES: &[Wrong] = &[
    ("devices: {d: {}}", "3:14", "missing key `table`"),
    (
        "devices: {d: {table: []}}",
        "3:22",
        "the table of d is empty",
    ),
    (
        "devices: {d: {table: [dst: {node: b}]}}",
        "3:35",
        "there is no node `b`: the nodes are a",
    ),
    (
        "devices: {d: {table: [dst: {node: gamma}]}}",
        "3:35",
        "there is no node `gamma`: the nodes are a",
    ),
    (
        "devices: {d: {table: [dst: a]}}",
        "3:28",
        "{node: NAME, offset: SIZE, length: SIZE}",
    ),
    (
        "devices: {d: {table: [dst: {}]}}",
        "3:28",
        "missing key `node`",
    ),
    (
        "devices: {d: {table: [dts: {node: a}]}}",
        "3:23",
        "`dts` is no kind of item",
    ),
    ("devices: {d: {table: [{}]}}", "3:23", "the item is empty"),
    (
        "devices: {d: {table: [{dst: {node: a}, linear: {device: /dev/x}}]}}",
        "3:40",
        "`linear` is a second",
    ),
    (
        "devices: {d: {table: [dst: {node: a, length: 1GB}]}}",
        "3:46",
        "uses the unit `GB`",
    ),
    (
        "devices: {d: {table: [dst: {node: a, length: 4096}]}}",
        "3:46",
        "write `4096s` for sectors",
    ),
    (
        "devices: {d: {table: [dst: {node: a, length: 0s}]}}",
        "3:46",
        "the length is 0",
    ),
    (
        "devices: {d: {table: [dst: {node: a, offset: 15TiB, length: 99999999TiB}]}}",
        "3:61",
        "larger than",
    ),
    (
        "devices: {d: {block_size: 513, table: [dst: {node: a}]}}",
        "3:27",
        "`513` is no block size",
    ),
    (
        "devices: {d: {block_size: 4096, table: [dst: {node: a, offset: 1s}]}}",
        "3:64",
        "no multiple of the device's block_size 4096",
    ),
    (
        "devices: {d: {table: [linear: {device: vdb}]}}",
        "3:40",
        "`vdb` is no absolute path",
    ),
    (
        "devices: {d: {read_only: maybe, table: [dst: {node: a}]}}",
        "3:26",
        "expected a boolean",
    ),
    (
        "devices: {d: {table: ['zero']}}",
        "3:23",
        "`zero` is no table line",
    ),
    (
        "devices: {d: {table: ['0 x zero']}}",
        "3:23",
        "`x` is no length in sectors",
    ),
    (
        "devices: {d: {table: ['0 0 zero']}}",
        "3:23",
        "the length is 0",
    ),
    (
        "devices: {d: {table: ['0 8 zero', '9 8 zero']}}",
        "3:35",
        "starts at 9, the item before it ends at 8",
    ),
    (
        "devices: {d: {table: ['0 8 dst 1 b 0 8']}}",
        "3:23",
        "there is no node `b`",
    ),
    (
        "devices: {d: {table: ['0 9 dst 1 a 0 8']}}",
        "3:23",
        "the extents add up to 8 sectors, the line has 9",
    ),
    (
        "devices: {d: {table: ['0 8 dst 1 a 0 8 1 x']}}",
        "3:23",
        "`x` is no feature",
    ),
];

#[test]
fn a_full_topology_is_read() {
    let topology = Topology::parse_one(
        "t.yaml",
        "version: 1
nodes:
  alpha: {uri: \"nbd://10.0.0.1:10809/disk0\", links: 4}
  beta:
    uri: nbd://storage2.example/archive
    links: 2
    policy: {queue_for: 5m}
    quiesce: never
    eof_fences: yes
    zero_copy: off
    unknown_restart: eio
    timeout: 1m 30s 500ms
devices:
  archive:
    block_size: 4096
    read_only: false
    no_discard: true
    table:
      - dst: {node: alpha}
      - dst: {node: beta, offset: 1GiB, length: 10GiB}
      - linear: {device: /dev/vdb}
      - \"0 2097152 zero\"
",
    )
    .unwrap();
    let beta = &topology.nodes[&"beta".parse().unwrap()].spec;
    assert_eq!((beta.links.0, beta.zero_copy), (2, ZeroCopy::Off));
    assert_eq!(beta.policy, Policy::QueueFor(Millis::seconds(300)));
    assert_eq!(beta.quiesce, Quiesce::Never);
    assert_eq!(beta.eof_fences, YesNo::Yes);
    assert_eq!(beta.unknown_restart, UnknownRestart::Eio);
    assert_eq!(beta.timeout.0, Millis(90_500));
    let archive = &topology.devices[&"archive".parse().unwrap()].spec;
    assert_eq!(archive.table.len(), 4);
    assert_eq!(
        (archive.block_size.bytes(), archive.no_discard),
        (4096, true)
    );
}

#[test]
fn an_error_shows_its_line() {
    let found = errors("version: 1\nnodes: {a: {uri: 'nbd://h/', lnks: 2}}\n");
    assert_eq!(
        found,
        "t.yaml:2:30: nodes.a: unknown key `lnks`, expected one of `uri`, `links`, `policy`, `quiesce`, \
         `eof_fences`, `zero_copy`, `unknown_restart`, `timeout`; did you mean `links`?\n    \
         nodes: {a: {uri: 'nbd://h/', lnks: 2}}\n                                 ^"
    );
}

#[test]
fn the_file_itself_can_be_wrong() {
    for (text, says) in [
        ("", "t.yaml:1:1: the file is empty"),
        ("# only this\n", "the file is empty"),
        ("nodes: {}\n", "missing key `version`"),
        (
            "version: 2\n",
            "t.yaml:1:10: version: version `2` is not known",
        ),
        ("version: 1\n---\nversion: 1\n", "second document"),
        ("version: 1\nnodes: {a: [}\n", "t.yaml:2:"),
        (
            "- version: 1\n",
            "a mapping with version, nodes and devices",
        ),
        (
            "version: 1\nversion: 1\n",
            "t.yaml:2:1: the key `version` stands here a second time",
        ),
        ("version: 1\ndevises: {}\n", "did you mean `devices`?"),
    ] {
        let found = errors(text);
        assert!(found.contains(says), "{text}\n=> {found}");
    }
}

#[test]
fn nodes_can_be_wrong() {
    all_wrong(WRONG_NODES);
}

#[test]
fn devices_can_be_wrong() {
    for (text, place, says) in WRONG_DEVICES {
        all_wrong(&[(&format!("{NODE_A}{text}"), place, says)]);
    }
}

#[test]
fn shared_ranges_are_found_with_both_places() {
    let device = |name: &str, items: &str| format!("  {name}: {{table: [{items}]}}\n");
    let head = format!("version: 1\n{NODE_A}devices:\n");
    let whole = "dst: {node: a}";
    let low = "dst: {node: a, length: 8s}";
    let high = "dst: {node: a, offset: 8s}";
    let twice = errors(&format!(
        "{head}{}",
        device("d", &format!("{whole}, {high}"))
    ));
    assert!(
        twice.starts_with(
            "t.yaml:4:31: d uses sectors 8 and up of node `a` twice, first at t.yaml:4:15"
        ),
        "{twice}"
    );
    let two = errors(&format!("{head}{}{}", device("d", whole), device("e", low)));
    assert!(
        two.starts_with(
            "t.yaml:5:15: d and e both write sectors 0 to 8 of node `a`, the other at t.yaml:4:15"
        ),
        "{two}"
    );
    let raw = errors(&format!(
        "{head}{}{}",
        device("d", high),
        device("e", "'0 8 dst 1 a 1 8'")
    ));
    assert!(raw.contains("d and e both write sectors 8 to 9"), "{raw}");
    let disk = "linear: {device: /dev/vdb}";
    let disks = errors(&format!("{head}{}{}", device("d", disk), device("e", disk)));
    assert!(
        disks.contains("d and e both write sectors 0 and up of disk `/dev/vdb`"),
        "{disks}"
    );
    for right in [
        format!("{head}{}{}", device("d", low), device("e", high)),
        format!("{head}{}", device("d", &format!("{high}, {low}"))),
        format!(
            "{head}{}{}",
            device("d", whole),
            "  e: {read_only: true, table: [dst: {node: a}]}\n"
        ),
    ] {
        Topology::parse_one("t.yaml", right).unwrap();
    }
}

#[test]
fn several_errors_are_told_at_once() {
    let found = errors(&format!(
        "version: 1\n{NODE_A}devices:\n  d: {{table: [dst: {{node: x}}]}}\n  e: {{table: []}}\n"
    ));
    assert_eq!(found.matches("t.yaml:").count(), 2, "{found}");
}

#[test]
fn what_a_place_is_asked_for_is_found() {
    let text = format!(
        "version: 1\n{NODE_A}devices:\n  d:\n    table:\n      - dst: {{node: a}}\n      - 0 8 zero\n"
    );
    let topology = Topology::parse_one("t.yaml", text).unwrap();
    let place = |item| {
        topology
            .item_place(&"d".parse().unwrap(), item)
            .unwrap()
            .to_string()
    };
    assert_eq!(
        (place(0), place(1)),
        ("t.yaml:6:9".into(), "t.yaml:7:9".into())
    );
}

#[test]
fn anchors_work_and_their_errors_have_a_place() {
    let text = "version: 1\nnodes:\n  a: &n {uri: 'nbd://h/', links: 2}\n  b: *n\n";
    let topology = Topology::parse_one("t.yaml", text).unwrap();
    assert_eq!(topology.nodes[&"b".parse().unwrap()].spec.links.0, 2);
}

/// What a topology says, and what is left out, is what the kernel will be told.
#[test]
fn settings_that_are_left_out_are_the_kernels_own() {
    let spelt = "policy: queue, quiesce: 10s, eof_fences: no, unknown_restart: trust, timeout: 30s";
    let text =
        format!("version: 1\nnodes: {{a: {{uri: 'nbd://h/'}}, b: {{uri: 'nbd://h/', {spelt}}}}}\n");
    let topology = Topology::parse_one("t.yaml", text).unwrap();
    for name in ["a", "b"] {
        assert_eq!(conduct(&topology, name), Conduct::default(), "{name}");
    }
}

fn conduct(topology: &Topology, name: &str) -> Conduct {
    let desired = desire(topology, &Observed::default(), &Default::default());
    desired.nodes[&name.parse().unwrap()].conduct
}

/// As an operator writes it.
fn written(conduct: &Conduct) -> String {
    let policy = match conduct.policy {
        kernel::Policy::QueueFor(time) => format!("{{queue_for: {time}}}"),
        other => other.to_string(),
    };
    let others = conduct
        .words()
        .into_iter()
        .filter(|(name, _)| *name != "policy");
    let others = others.map(|(name, word)| format!(", {name}: {word}"));
    format!("policy: {policy}{}", others.collect::<String>())
}

proptest! {
    #[test]
    fn any_settings_survive_being_written(
        kind in 0..3, times: [u32; 3], never: bool, eof_fences: bool, eio: bool,
    ) {
        let time = |n: u32| Millis(n.clamp(1, u32::MAX - 1));
        let written_down = Conduct {
            policy: match kind {
                0 => kernel::Policy::Queue,
                1 => kernel::Policy::Error,
                _ => kernel::Policy::QueueFor(time(times[0])),
            },
            quiesce: (!never).then(|| time(times[1])),
            eof_fences,
            unknown_restart: if eio { kernel::UnknownRestart::Eio } else { kernel::UnknownRestart::Trust },
            timeout: Some(time(times[2].max(1000))),
        };
        let text = format!(
            "version: 1\nnodes: {{a: {{uri: 'nbd://h/', {}}}}}\n", written(&written_down)
        );
        let topology = Topology::parse_one("t.yaml", text.as_str());
        prop_assert!(topology.is_ok(), "{}\n{:?}", text, topology);
        prop_assert_eq!(conduct(&topology.unwrap(), "a"), written_down);
    }
}
