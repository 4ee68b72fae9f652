//! What status shows of a device and its nodes, as text and as JSON.

use serde_json::Value;

use super::*;
use crate::cli::report::Rates;
use crate::kernel::sim::export;
use crate::kernel::{
    Conduct, DmUuid, Latencies, NbdFlags, Negotiated, ObservedLink, OldLink, Policy, QueueTime,
};
use crate::units::{DeviceNumber, Generation, Id, Millis, Slot};

pub fn device(name: &str, uuid: &str, lines: &[&str]) -> ObservedDevice {
    ObservedDevice {
        name: name.into(),
        uuid: DmUuid(uuid.into()),
        number: DeviceNumber {
            major: 254,
            minor: 3,
        },
        suspended: false,
        access: Access::ReadWrite,
        open_count: 1,
        lines: lines.iter().map(|line| line.parse().unwrap()).collect(),
        inactive: None,
    }
}

fn link(slot: u32, state: LinkState) -> ObservedLink {
    ObservedLink {
        slot: Slot(slot),
        generation: Generation(slot + 1),
        state,
        in_flight: 2,
        sent: Bytes(4096),
        received: Bytes(16),
    }
}

/// As this kernel module tells it: so many in these buckets.
fn latency(counts: &[(usize, u64)]) -> Latency {
    let mut buckets = vec![0; 26];
    for (bucket, count) in counts {
        buckets[*bucket] = *count;
    }
    Latency::of(5_000_000, buckets)
}

pub fn node() -> ObservedNode {
    ObservedNode {
        name: "alpha".parse().unwrap(),
        state: NodeState::Degraded,
        reason: Some("link 1: connection reset".into()),
        session: None,
        negotiated: Some(Negotiated {
            identity: Some(Id([1; 16])),
            incarnation: Some(Id([2; 16])),
            ..export(3000, NbdFlags::SEND_FLUSH)
        }),
        zero_copy: Some(true),
        wanted: 2,
        live: 1,
        in_flight: 4,
        queued: 5,
        errors: 6,
        reconnects: 7,
        generation: Generation(2),
        need_size: Bytes(3000 * 512),
        need_block: 512,
        need_write: true,
        writes: 9,
        links: vec![link(0, LinkState::Live), link(1, LinkState::Draining)],
        conduct: Conduct {
            policy: Policy::QueueFor(Millis::seconds(300)),
            timeout: None,
            ..Conduct::default()
        },
        ambiguous: 3,
        barred: 8,
        latency: Some(Latencies {
            read: latency(&[(8, 60), (10, 38), (16, 1), (25, 1)]),
            write: latency(&[(25, 3)]),
        }),
        merged: Some(21),
        queue_time: Some(QueueTime {
            count: 9,
            sum_ns: 2_500_000_000,
        }),
        unfenced: vec![
            OldLink {
                slot: Slot(1),
                generation: Generation(2),
                ambiguous: 2,
                merged: 0,
                quiet_in: Some(Millis(4200)),
            },
            OldLink {
                slot: Slot(0),
                generation: Generation(1),
                ambiguous: 1,
                merged: 4,
                quiet_in: None,
            },
        ],
    }
}

fn some_io(_: DeviceNumber) -> Option<crate::kernel::DeviceIo> {
    Some(crate::kernel::DeviceIo {
        reads: 3,
        ..Default::default()
    })
}

fn report() -> Report {
    let devices = [
        device(
            "archive",
            "DST-archive",
            &[
                "0 3000 dst 2 alpha 8 1000 alpha 1008 2000",
                "3000 8 linear 8:16 0",
            ],
        ),
        device("by-hand", "", &["0 8 dst 1 alpha 0 8"]),
        device("of-others", "LVM-x", &["0 8 linear 8:0 0"]),
    ];
    Report::of(&devices, vec![node()], |_| None)
}

#[test]
fn the_text_tells_an_operator_what_there_is() {
    assert_eq!(
        report().text(false),
        "\
DEVICE   SIZE     STATE   ACCESS  OPEN  NUMBER  MADE BY  NODES
archive  1.46MiB  active  rw      1     254:3   dstd     alpha
by-hand  4KiB     active  rw      1     254:3   hand     alpha

archive
  START  SECTORS  SIZE     LIES ON
  0      1000     500KiB   node alpha at 8
  1000   2000     1000KiB  node alpha at 1008
  3000   8        4KiB     linear 8:16 0

by-hand
  START  SECTORS  SIZE  LIES ON
  0      8        4KiB  node alpha at 0

NODE   STATE     LINKS              SIZE     IN FLIGHT  QUEUED  BARRED  ERRORS  RECONNECTS  CACHE  REASON
alpha  degraded  1/2 (+1 draining)  1.46MiB  4          5       8       6       7           dirty  link 1: connection reset

NODE   POLICY        QUIESCE  EOF FENCES  RESTART  TIMEOUT  INCARNATION
alpha  queue_for 5m  10s      no          trust    never    02020202020202020202020202020202

NODE   READS  TYPICAL      P99           WRITES  TYPICAL     P99
alpha  100    up to 256us  up to 65.5ms  3       over 16.8s  over 16.8s

UNFENCED LINK OF  SLOT  GENERATION  AMBIGUOUS RANGES  AND OLDER LINKS  QUIET IN
alpha             1     2           2                 0                4s 200ms
alpha             0     1           1                 4                10s after the node has answered
"
    );
}

#[test]
fn the_json_keeps_its_names() {
    let json = serde_json::to_value(report()).unwrap();
    let device = &json["devices"][0];
    assert_eq!(device["sectors"], 3008);
    assert_eq!(device["ours"], true);
    assert_eq!(device["table"][1]["node"], "alpha");
    assert_eq!(device["table"][1]["offset"], 1008);
    assert_eq!(device["table"][2]["args"], "8:16 0");
    let node = &json["nodes"][0];
    assert_eq!(
        (&node["state"], &node["live"]),
        (&"degraded".into(), &1.into())
    );
    assert_eq!(node["links"][1]["state"], "draining");
    assert_eq!(node["negotiated"]["size"], 3000 * 512);
    assert_eq!(node["negotiated"]["incarnation"], "02".repeat(16));
    assert_eq!(node["policy"]["queue_for_ms"], 300_000);
    assert_eq!(
        (&node["quiesce_ms"], &node["timeout_ms"]),
        (&10_000.into(), &Value::Null)
    );
    assert_eq!(
        (&node["ambiguous"], &node["barred"]),
        (&3.into(), &8.into())
    );
    assert_eq!(
        node["unfenced"][0],
        serde_json::json!({"slot": 1, "generation": 2, "ambiguous": 2, "merged": 0, "quiet_in_ms": 4200})
    );
    assert_eq!(node["unfenced"][1]["quiet_in_ms"], Value::Null);
    let (read, write) = (&node["latency"]["read"], &node["latency"]["write"]);
    assert_eq!(
        (&read["count"], &read["sum_ns"]),
        (&100.into(), &5_000_000.into())
    );
    assert_eq!(
        (&read["typical_us"], &read["p99_us"]),
        (&256.into(), &65_536.into())
    );
    assert_eq!(
        (&read["buckets"][8], &write["p99_us"]),
        (&60.into(), &Value::Null)
    );
}

#[test]
fn what_the_kernel_counts_of_a_devices_io_is_in_the_json() {
    let devices = [device("dev", "DST-dev", &["0 8 dst 1 alpha 0 8"])];
    let json = serde_json::to_value(Report::of(&devices, vec![], some_io)).unwrap();
    assert_eq!(json["devices"][0]["io"]["reads"], 3);
    let json = serde_json::to_value(report()).unwrap();
    assert!(json["devices"][0].get("io").is_none());
}

/// What of the schema language is used here: references, types, properties, required ones, alternatives.
fn fits(schema: &Value, root: &Value, value: &Value) -> Result<(), String> {
    if let Some(path) = schema["$ref"].as_str() {
        return fits(root.pointer(&path[1..]).unwrap(), root, value);
    }
    if let Some(all) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        let fits = |one: &Value| fits(one, root, value).is_ok();
        return match all.iter().any(fits) {
            true => Ok(()),
            false => Err(format!("{value} fits no alternative of {schema}")),
        };
    }
    let is = |name: &str| match name {
        "integer" => value.is_u64(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("the type {other}"),
    };
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        Value::Null => return Err(format!("no type in {schema}")),
        one => vec![one.clone()],
    };
    if !types.iter().any(|t| is(t.as_str().unwrap())) {
        return Err(format!("{value} isn't of {types:?}"));
    }
    let words = |v: &Value| v.as_array().cloned().unwrap_or_default();
    if schema
        .get("enum")
        .is_some_and(|all| !words(all).contains(value))
    {
        return Err(format!("{value} isn't in {schema}"));
    }
    for item in words(value) {
        fits(&schema["items"], root, &item)?;
    }
    let Some(fields) = value.as_object() else {
        return Ok(());
    };
    for name in words(&schema["required"]) {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{name} is missing"));
        }
    }
    for (name, field) in fields {
        let known = schema["properties"].get(name);
        let known = known.or(schema.get("additionalProperties").filter(|a| a.is_object()));
        let known = known.ok_or_else(|| format!("{name} isn't in the schema"))?;
        fits(known, root, field).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

#[test]
fn the_json_fits_its_schema() {
    let schema: Value = serde_json::from_str(&crate::cli::report::json_schema()).unwrap();
    let devices = [device(
        "dev",
        "DST-dev",
        &["0 8 dst 1 alpha 0 8", "8 8 zero "],
    )];
    let mut full = Report::of(&devices, vec![node()], some_io);
    full.rates = Some(Rates::between(&report(), &full, Duration::from_secs(1)));
    let mut bare = node();
    (bare.negotiated, bare.reason, bare.zero_copy) = (None, None, None);
    (bare.conduct, bare.latency) = (Conduct::default(), None);
    bare.links.clear();
    let bare = Report::of(&[device("d", "DST-d", &[])], vec![bare], |_| None);
    for shown in [full, report(), bare] {
        let json = serde_json::to_value(shown).unwrap();
        assert_eq!(fits(&schema, &schema, &json), Ok(()));
    }
    // The checker has teeth.
    let mut json = serde_json::to_value(report()).unwrap();
    json["nodes"][0]["state"] = "asleep".into();
    assert!(fits(&schema, &schema, &json).is_err());
    let mut json = serde_json::to_value(report()).unwrap();
    json["devices"][0]["sectors"] = "8".into();
    assert!(fits(&schema, &schema, &json).is_err());
}

#[test]
fn long_devices_are_cut_short() {
    let extents = "alpha 0 1 ".repeat(30);
    let line = format!("0 30 dst 30 {extents}");
    let text = Report::of(&[device("long", "DST-long", &[&line])], vec![], |_| None).text(false);
    assert!(text.contains("... 6 more; --all shows them"), "{text}");
}

#[test]
fn a_node_without_old_links_has_no_table_of_them() {
    let mut node = node();
    node.unfenced.clear();
    let text = Report::of(&[], vec![node], |_| None).text(false);
    assert!(
        text.contains("POLICY") && !text.contains("UNFENCED"),
        "{text}"
    );
}

#[test]
fn a_node_that_was_asked_nothing_has_no_latency_and_an_older_module_no_table_of_it() {
    let mut node = node();
    let none = latency(&[]);
    node.latency = Some(Latencies {
        read: none.clone(),
        write: none,
    });
    let text = Report::of(&[], vec![node.clone()], |_| None).text(false);
    assert!(
        text.contains("alpha  0      -        -    0       -        -\n"),
        "{text}"
    );
    node.latency = None;
    let text = Report::of(&[], vec![node], |_| None).text(false);
    assert!(!text.contains("TYPICAL"), "{text}");
}

#[test]
fn times_are_told_in_the_unit_that_fits() {
    let told = [1, 512, 1024, 65_536, 524_288, 1_048_576, 1 << 24].map(micros);
    assert_eq!(
        told,
        [
            "1us", "512us", "1.0ms", "65.5ms", "524.3ms", "1.0s", "16.8s"
        ]
    );
}

#[test]
fn an_old_link_that_waits_for_the_operator_says_so() {
    let mut node = node();
    node.conduct.quiesce = None;
    let text = Report::of(&[], vec![node], |_| None).text(false);
    assert!(text.contains("4                never\n"), "{text}");
}

#[test]
fn a_device_of_others_that_does_not_answer_is_left_out_and_named() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let names = ["pool".to_owned(), "other".to_owned()];
    let ask = move |name: &str| {
        if name == "pool" {
            let _ = held.lock().unwrap().recv();
        }
        name.len()
    };
    let limit = Duration::from_secs(5);
    let found = answers(limit, &names, ask);
    assert_eq!(found, BTreeMap::from([("other".to_owned(), 5)]));
    drop(release);
}

#[test]
fn tables_made_by_hand_are_shown_and_those_of_others_not_asked_for_by_the_daemon() {
    let kernel = Arc::new(crate::kernel::sim::SimKernel::default());
    for (name, uuid, line) in [
        ("hand", "", "0 8 dst 1 alpha 0 8"),
        ("others", "LVM-x", "0 8 linear 8:0 0"),
        ("ours", "DST-ours", "0 8 dst 1 alpha 8 8"),
    ] {
        let device = name.parse().unwrap();
        let uuid = DmUuid(uuid.to_owned());
        kernel.create(&device, &uuid, Access::ReadWrite).unwrap();
        let line = line.parse().unwrap();
        kernel.load(&device, &[line], Access::ReadWrite).unwrap();
        kernel.resume(&device).unwrap();
    }
    let mut devices = kernel.devices().unwrap();
    let lines = |devices: &[ObservedDevice]| {
        let lines = devices.iter().map(|d| (d.name.clone(), d.lines.len()));
        lines.collect::<BTreeMap<_, _>>()
    };
    let of = |n: [(&str, usize); 3]| n.map(|(name, n)| (name.to_owned(), n)).into();
    assert_eq!(
        lines(&devices),
        of([("hand", 0), ("others", 0), ("ours", 1)])
    );
    assert!(add_tables_by_hand(&kernel, &mut devices).is_empty());
    assert_eq!(
        lines(&devices),
        of([("hand", 1), ("others", 0), ("ours", 1)])
    );
}

#[test]
fn a_device_of_ours_is_shown_also_under_the_name_of_one_that_did_not_answer() {
    let kernel = Arc::new(crate::kernel::sim::SimKernel::default());
    let device = "dev".parse().unwrap();
    let access = Access::ReadWrite;
    kernel
        .create(&device, &DmUuid::of(&device), access)
        .unwrap();
    let silent = vec!["dev".to_owned()];
    let report = Looker { kernel, silent }.look().unwrap();
    assert_eq!(report.devices.len(), 1);
}

#[test]
fn names_of_others_do_not_steer_the_terminal() {
    let line = "0 8 dst 1 alpha 0 8";
    let devices = [device("a\x1b[2J\nb", "", &[line])];
    let text = Report::of(&devices, vec![], |_| None).text(false);
    assert!(
        !text.contains('\x1b') && text.contains("\na?[2J?b  4KiB"),
        "{text}"
    );
    assert!(text.contains("\n\na?[2J?b\n  START"), "{text}");
}
