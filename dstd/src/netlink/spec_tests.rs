//! Holds equal: the C header, docs/netlink/dm-dst.yaml and `netlink::numbers`, number by number;
//! and checks that the YAML says something of each operation's attributes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_yaml::Value;

use super::numbers;

type Numbers = BTreeMap<String, u32>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn spec() -> Value {
    serde_yaml::from_str(&read("docs/netlink/dm-dst.yaml")).unwrap()
}

/// The header without comments.
fn header() -> String {
    let text = read("dm-target/include/uapi/linux/dm-dst.h");
    let mut code = String::new();
    for (i, part) in text.split("/*").enumerate() {
        let part = if i == 0 {
            part
        } else {
            part.split_once("*/").unwrap().1
        };
        code.push_str(part);
    }
    code
}

/// The numbers of one C enum by name without `prefix`; `_UNSPEC`, `_MAX` and the like left out.
fn c_enum(name: &str, prefix: &str) -> Numbers {
    let header = header();
    let body = header.split_once(&format!("enum {name} {{")).unwrap().1;
    let body = body.split_once('}').unwrap().0;
    let mut found = Numbers::new();
    let entries = body.split(',').map(str::trim).filter(|e| !e.is_empty());
    for (entry, number) in entries.zip(0..) {
        assert!(
            !entry.contains('=') || entry.contains("MAX"),
            "a number of its own: {entry}"
        );
        if !entry.starts_with("__") && !entry.contains('=') {
            let short = entry
                .strip_prefix(prefix)
                .unwrap_or_else(|| panic!("{entry}"));
            if short != "UNSPEC" {
                found.insert(short.to_owned(), number);
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn c_define(name: &str) -> String {
    let header = header();
    let line = header
        .lines()
        .find_map(|l| l.strip_prefix(&format!("#define {name}\t")));
    line.unwrap_or_else(|| panic!("{name}"))
        .trim()
        .trim_matches('"')
        .to_owned()
}

fn rust(all: &[(&str, u32)]) -> Numbers {
    all.iter()
        .map(|(name, number)| ((*name).to_owned(), *number))
        .collect()
}

fn text(value: &Value, key: &str) -> String {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} of {value:?}"))
        .to_owned()
}

fn c_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// A YAML list of named things, numbered from `first` unless a `value` says otherwise.
fn numbered(list: &Value, first: u32) -> Numbers {
    let mut next = first;
    let mut found = Numbers::new();
    for entry in list.as_sequence().unwrap() {
        next = entry["value"].as_u64().map_or(next, |n| n as u32);
        assert!(found.insert(c_name(&text(entry, "name")), next).is_none());
        next += 1;
    }
    found
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let all = list.as_sequence().unwrap();
    all.iter()
        .find(|e| e["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn commands_are_equal() {
    let c = c_enum("dmdst_cmd", "DMDST_CMD_");
    assert_eq!(rust(numbers::cmd::ALL), c);
    let spec = spec();
    assert_eq!(numbered(&spec["operations"]["list"], 1), c);
    assert_eq!(
        c_name(&text(&spec["operations"], "name-prefix")),
        "DMDST_CMD_"
    );
}

#[test]
fn states_are_equal() {
    let spec = spec();
    let of_spec = |name: &str| numbered(&named(&spec["definitions"], name)["entries"], 0);
    let c = c_enum("dmdst_node_state", "DMDST_NODE_");
    assert_eq!(rust(numbers::node::ALL), c);
    assert_eq!(of_spec("node-state"), c);
    let c = c_enum("dmdst_link_state", "DMDST_LINK_");
    assert_eq!(rust(numbers::link::ALL), c);
    assert_eq!(of_spec("link-state"), c);
}

#[test]
fn settings_are_equal() {
    let spec = spec();
    let of_spec = |name: &str| numbered(&named(&spec["definitions"], name)["entries"], 0);
    let c = c_enum("dmdst_policy", "DMDST_POLICY_");
    assert_eq!(rust(numbers::policy::ALL), c);
    assert_eq!(of_spec("policy"), c);
    let c = c_enum("dmdst_restart", "DMDST_RESTART_");
    assert_eq!(rust(numbers::restart::ALL), c);
    assert_eq!(of_spec("restart"), c);
    let never = named(&spec["definitions"], "never")["value"].as_u64();
    assert_eq!(never, Some(u64::from(numbers::NEVER)));
    assert_eq!(c_define("DMDST_NEVER"), format!("{:#x}U", numbers::NEVER));
}

/// What dstd takes as a new node's settings are the module's.
#[test]
fn the_modules_defaults_are_ours() {
    let code = read("dm-target/node.c");
    let body = code.split_once("dmdst_conduct_default = {").unwrap().1;
    let body = body.split_once("};").unwrap().0;
    let mut of_module: Vec<String> = body
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect();
    of_module.sort();
    let ours = crate::kernel::Conduct::default();
    let seconds = |time: Option<crate::units::Millis>| time.unwrap().0 / 1000;
    assert_eq!(
        of_module,
        [
            ".policy = DMDST_POLICY_QUEUE,".to_owned(),
            format!(".quiesce = {} * MSEC_PER_SEC,", seconds(ours.quiesce)),
            format!(".timeout = {} * MSEC_PER_SEC,", seconds(ours.timeout)),
            ".unknown_restart = DMDST_RESTART_TRUST,".to_owned(),
        ]
    );
    assert_eq!(ours.policy, crate::kernel::Policy::Queue);
    assert_eq!(ours.unknown_restart, crate::kernel::UnknownRestart::Trust);
    assert!(!ours.eof_fences);
}

#[test]
fn attributes_are_equal() {
    let spec = spec();
    let of_spec = |name: &str| numbered(&named(&spec["attribute-sets"], name)["attributes"], 1);
    let c = c_enum("dmdst_attr", "DMDST_A_");
    assert_eq!(rust(numbers::attr::ALL), c);
    assert_eq!(of_spec("node"), c);
    let c = c_enum("dmdst_link_attr", "DMDST_LA_");
    assert_eq!(rust(numbers::link_attr::ALL), c);
    assert_eq!(of_spec("link"), c);
    let c = c_enum("dmdst_latency_attr", "DMDST_LAT_");
    assert_eq!(rust(numbers::latency_attr::ALL), c);
    assert_eq!(of_spec("latency"), c);
}

#[test]
fn constants_are_equal() {
    let spec = spec();
    assert_eq!(text(&spec, "name"), numbers::FAMILY_NAME);
    assert_eq!(c_define("DMDST_FAMILY_NAME"), numbers::FAMILY_NAME);
    assert_eq!(
        c_define("DMDST_FAMILY_VERSION"),
        numbers::FAMILY_VERSION.to_string()
    );
    assert_eq!(c_define("DMDST_MCGRP_EVENTS"), numbers::MCGRP_EVENTS);
    named(&spec["mcast-groups"]["list"], numbers::MCGRP_EVENTS);
    let constants = [
        ("name-max", numbers::NAME_MAX),
        ("session-len", numbers::SESSION_LEN),
        ("slots-max", numbers::SLOTS_MAX),
        ("incarnation-max", numbers::INCARNATION_MAX),
        ("latency-buckets", numbers::LATENCY_BUCKETS as u32),
    ];
    for (name, number) in constants {
        assert_eq!(
            named(&spec["definitions"], name)["value"],
            u64::from(number),
            "{name}"
        );
        assert_eq!(
            c_define(&format!("DMDST_{}", c_name(name))),
            number.to_string()
        );
    }
    assert_eq!(numbers::NAME_MAX as usize, crate::units::NAME_MAX);
    assert_eq!(numbers::SLOTS_MAX, crate::units::SLOTS_MAX);
}

/// Types as the header's comments give them.
#[test]
fn attribute_types_match_the_headers_comments() {
    let header = read("dm-target/include/uapi/linux/dm-dst.h");
    let spec = spec();
    for (set, prefix) in [
        ("node", "DMDST_A_"),
        ("link", "DMDST_LA_"),
        ("latency", "DMDST_LAT_"),
    ] {
        for attribute in named(&spec["attribute-sets"], set)["attributes"]
            .as_sequence()
            .unwrap()
        {
            let name = format!("{prefix}{},", c_name(&text(attribute, "name")));
            let line = header
                .lines()
                .find(|l| l.trim().starts_with(&name))
                .unwrap();
            if let Some((_, comment)) = line.split_once("/* ") {
                let kind = text(attribute, "type");
                assert!(comment.starts_with(&kind), "{name} {comment} but {kind}");
            }
        }
    }
}

#[test]
fn operations_use_attributes_that_exist() {
    let spec = spec();
    let known = numbered(&named(&spec["attribute-sets"], "node")["attributes"], 1);
    let check = |list: &Value| {
        for name in list["attributes"].as_sequence().into_iter().flatten() {
            assert!(
                known.contains_key(&c_name(name.as_str().unwrap())),
                "{name:?}"
            );
        }
    };
    for operation in spec["operations"]["list"].as_sequence().unwrap() {
        assert!(!text(operation, "doc").is_empty());
        for part in ["do", "dump"] {
            check(&operation[part]["request"]);
            check(&operation[part]["reply"]);
        }
        check(&operation["event"]);
        let told = operation["event"].is_mapping();
        assert_eq!(
            operation["mcgrp"] == numbers::MCGRP_EVENTS,
            told,
            "{operation:?}"
        );
    }
}
