//! What each mistake in the node server's YAML says, and where; that all are told at once; and what is right is read.

use std::time::Duration;

use super::access::Prefix;
use super::config::{Config, ExportConfig, Listen};
use super::config_file::parse;
use super::limits::Limits;
use crate::units::Id;

fn errors(text: &str) -> Vec<String> {
    let errors = parse("e.yaml", text).unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

/// Text below `version: 1`, place, words.
const WRONG: &[(&str, &str, &str)] = &[
    ("exports: {a: {}}", "2:14", "missing key `path`"),
    ("exports: {}", "2:10", "there is no export"),
    ("listen: []", "1:1", "missing key `exports`"),
    ("exports: {a: {path: x}}", "2:21", "doesn't begin with `/`"),
    (
        "exports: {a: {path: /x, readonly: yes}}",
        "2:25",
        "did you mean `read_only`?",
    ),
    (
        "exports: {a: {path: /x, read_only: maybe}}",
        "2:36",
        "write yes or no",
    ),
    (
        "exports: {a: {path: /x, shared: 1}}",
        "2:33",
        "write yes or no",
    ),
    (
        "exports: {a: {path: /x, allow: []}}",
        "2:32",
        "nobody could come",
    ),
    (
        "exports: {a: {path: /x, allow: [10.0.0.0/8, host]}}",
        "2:45",
        "`host` is no address",
    ),
    (
        "exports: {a: {path: /x, allow: 10.0.0.0/8}}",
        "2:32",
        "invalid type",
    ),
    (
        "exports: {a: {path: /x, read_only_for: [10.0.0.1/8]}}",
        "2:41",
        "write `10.0.0.0/8` for the net",
    ),
    (
        "exports: {a: {path: /x, identity: 12}}",
        "2:35",
        "write a UUID",
    ),
    (
        "exports: {a: {path: /x, identity: 00000000000000000000000000000000}}",
        "2:35",
        "aren't all 0",
    ),
    (
        "exports: {a: {path: /x, holder_timeout: 30}}",
        "2:41",
        "no length of time",
    ),
    (
        "exports: {a: {path: /x, reopen: -1}}",
        "2:33",
        "no whole number",
    ),
    (
        "exports: {a: {path: /x}, a: {path: /y}}",
        "2:26",
        "`a` stands here a second time",
    ),
    (
        "exports: {a: {path: /x}, b: {path: /x}}",
        "2:36",
        "`a` serves the same file",
    ),
    (
        "exports: {a: {path: /x, read_only: yes}, b: {path: /x}}",
        "2:52",
        "`a` serves the same file",
    ),
    (
        "exports: {a: {path: /x, default: yes}, b: {path: /y, default: yes}}",
        "2:63",
        "`a` is the default export already",
    ),
    (
        "exports: {'': {path: /x}, b: {path: /y, default: yes}}",
        "2:50",
        "`` is the default export already",
    ),
    (
        "exports: {\"a\\tb\": {path: /x}}",
        "2:11",
        "has control characters",
    ),
    (
        "exports: {a: {path: /x}}\nlisten: ['*:1']",
        "3:10",
        "no address to listen on",
    ),
    (
        "exports: {a: {path: /x}}\nlisten: ['[::1]:1', '[::1]:1']",
        "3:21",
        "a second time",
    ),
    (
        "exports: {a: {path: /x}}\nlimits: {connection: 1}",
        "3:10",
        "did you mean `connections`?",
    ),
    (
        "exports: {a: {path: /x}}\nlimits: {connections: 0}",
        "3:23",
        "no number from 1 up",
    ),
    (
        "exports: {a: {path: /x}}\nlimits: {in_flight: 1000}",
        "3:21",
        "has no unit",
    ),
    (
        "exports: {a: {path: /x}}\nlimits: {handshake_idle: soon}",
        "3:26",
        "no length of time",
    ),
    (
        "exports: {a: {path: /x}}\ndrain_timeout: x",
        "3:16",
        "no length of time",
    ),
    (
        "exports: {a: {path: /x}}\nworkers: 0",
        "3:10",
        "no number from 1 up",
    ),
    (
        "exports: {a: {path: /x}}\nexport: {}",
        "3:1",
        "did you mean `exports`?",
    ),
    ("exports: [a]", "2:10", "invalid type"),
    ("exports: {a: /x}", "2:14", "a mapping like {path: /PATH}"),
];

#[test]
fn each_mistake_is_told_with_its_place() {
    for (text, place, says) in WRONG {
        let found = errors(&format!("version: 1\n{text}\n"));
        assert_eq!(found.len(), 1, "{text}\n=> {found:?}");
        let found = &found[0];
        assert!(
            found.starts_with(&format!("e.yaml:{place}: ")),
            "{text}\n=> {found}"
        );
        assert!(
            found.contains(says),
            "{text}\n=> {found}\nshould say {says}"
        );
    }
    for (text, says) in [
        ("", "the file is empty"),
        ("# nothing\n", "then exports"),
        ("exports: {a: {path: /x}}\n", "missing key `version`"),
        (
            "version: 2\nexports: {a: {path: /x}}\n",
            "this dstd reads `version: 1`",
        ),
        ("version: 1\nexports: {a: {path: /x}\n", "e.yaml:"),
        (
            "version: 1\nexports: {a: {path: /x}}\n---\n{}\n",
            "a second document",
        ),
    ] {
        let found = errors(text).join("\n");
        assert!(found.contains(says), "{text}\n=> {found}");
    }
}

#[test]
fn several_mistakes_are_told_at_once() {
    let values = "version: 1
listen: [nowhere]
exports:
  a: {path: x, allow: [host], identity: 1}
  b: {path: /y, holder_timeout: x}
limits: {handshakes: none}
";
    let found = errors(values);
    let places: Vec<_> = found
        .iter()
        .map(|e| e.split(": ").next().unwrap())
        .collect();
    let expected = [2, 4, 4, 4, 5, 6].map(|line| format!("e.yaml:{line}:"));
    assert_eq!(places.len(), expected.len(), "{found:?}");
    for (place, line) in places.iter().zip(expected) {
        assert!(place.starts_with(&line), "{found:?}");
    }
    // Also where the form is wrong: one for each export, and one for the limits.
    let forms = "version: 1
exports:
  a: {paht: /x}
  b: {path: /y}
  c: {path: /z, allow: {}}
limits: {connectons: 1}
";
    let found = errors(forms);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("e.yaml:3:"), "{found:?}");
    assert!(found[1].starts_with("e.yaml:5:"), "{found:?}");
    assert!(found[2].starts_with("e.yaml:6:"), "{found:?}");
}

#[test]
fn a_file_that_cant_be_read_says_which() {
    let errors = super::config_file::load("/nowhere/e.yaml".as_ref()).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.starts_with("/nowhere/e.yaml: can't be read: "),
        "{text}"
    );
}

#[test]
fn everything_that_can_be_said_is_read() {
    let text = "version: 1
listen: ['[::]:10809', 'unix:/run/x.sock']
exports:
  007:
    path: /dev/vdb
    read_only: yes
    shared: true
    description: no colons here
    default: yes
    allow: [10.0.0.0/8, unix]
    read_only_for: ['::1']
    identity: 00112233-4455-6677-8899-aabbccddeeff
    holder_timeout: 1m 30s
    reopen: 3
limits:
  connections: 1
  connections_per_peer: 2
  handshakes: 3
  handshakes_per_peer: 4
  handshake_timeout: 5s
  handshake_idle: 6s
  in_flight_per_link: 7MiB
  in_flight: 8GiB
drain_timeout: 9s
workers: 10
";
    let seconds = Duration::from_secs;
    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let mut export = ExportConfig::new("/dev/vdb".into());
    export.read_only = true;
    export.shared = true;
    export.description = "no colons here".into();
    export.default = true;
    export.access.allow = Some(vec![prefix("10.0.0.0/8"), Prefix::Unix]);
    export.access.read_only_for = vec![prefix("::1")];
    export.identity = Some(Id(
        0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes()
    ));
    export.holder_timeout = seconds(90);
    export.reopen = 3;
    let expected = Config {
        exports: [("007".to_owned(), export)].into(),
        listen: ["[::]:10809", "unix:/run/x.sock"]
            .map(|text| text.parse::<Listen>().unwrap())
            .to_vec(),
        limits: Limits {
            connections: 1,
            connections_per_peer: 2,
            handshakes: 3,
            handshakes_per_peer: 4,
            handshake_timeout: seconds(5),
            handshake_idle: seconds(6),
            in_flight_per_link: 7 << 20,
            in_flight: 8 << 30,
        },
        drain_timeout: seconds(9),
        workers: Some(10),
    };
    assert_eq!(parse("e.yaml", text), Ok(expected));
}

#[test]
fn what_isnt_said_has_its_default() {
    let twice =
        "version: 1\nexports: {a: {path: /x, read_only: yes}, b: {path: /x, read_only: yes}}\n";
    assert!(parse("e.yaml", twice).is_ok());
    let config = parse("e.yaml", "version: 1\nexports: {a: {path: /x}}\n").unwrap();
    let export = ExportConfig::new("/x".into());
    assert_eq!(config, Config::new([("a".to_owned(), export)].into()));
}
