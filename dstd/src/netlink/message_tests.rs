//! Tests of `netlink::message`: any node survives the wire, requests carry what the header
//! names, and answers that lack something say what. Also encodes nodes as the kernel does.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::kernel::{NewLink, QueueTime};
use crate::units::Id;

/// A node as the kernel answers NODE_GET, with an attribute of a newer module among them.
pub fn encode_node(observed: &ObservedNode) -> Vec<u8> {
    let mut w = Writer::new();
    let mut put = || -> Result<(), NetlinkError> {
        w.put_str(attr::NODE, observed.name.as_str())?;
        w.put_u32(attr::STATE, observed.state as u32)?;
        if let Some(reason) = &observed.reason {
            w.put_str(attr::REASON, reason)?;
        }
        w.put(4242, b"from a newer module")?;
        if let Some(session) = &observed.session {
            w.put(attr::SESSION, &session.to_bytes())?;
        }
        if let Some(negotiated) = &observed.negotiated {
            w.put(attr::PAD, b"")?;
            w.put_u64(attr::SIZE, negotiated.size.0)?;
            w.put_u32(attr::FLAGS, negotiated.flags.0.into())?;
            w.put_u32(attr::MIN_BLOCK, negotiated.min_block)?;
            w.put_u32(attr::PREF_BLOCK, negotiated.pref_block)?;
            w.put_u32(attr::MAX_PAYLOAD, negotiated.max_payload)?;
            if let (Some(incarnation), Some(identity)) =
                (negotiated.incarnation, negotiated.identity)
            {
                let both = [incarnation.0, identity.0].concat();
                w.put(attr::INCARNATION, &both)?;
            }
        }
        if let Some(zero_copy) = observed.zero_copy {
            w.put_u8(attr::ZERO_COPY, zero_copy.into())?;
        }
        w.put_u32(attr::WANTED, observed.wanted)?;
        w.put_u32(attr::LIVE, observed.live)?;
        w.put_u32(attr::IN_FLIGHT, observed.in_flight)?;
        w.put_u32(attr::QUEUED, observed.queued)?;
        w.put_u64(attr::ERRORS, observed.errors)?;
        w.put_u64(attr::RECONNECTS, observed.reconnects)?;
        w.put_u32(attr::GENERATION, observed.generation.0)?;
        w.put_u64(attr::NEED_SIZE, observed.need_size.0)?;
        w.put_u32(attr::NEED_BLOCK, observed.need_block)?;
        w.put_u8(attr::NEED_WRITE, observed.need_write.into())?;
        w.put_u64(attr::WRITES, observed.writes)?;
        for link in &observed.links {
            w.put_nest(attr::LINK, encode_link(link)?)?;
        }
        // As the kernel, which doesn't know `Conduct`: the request's attributes.
        for attribute in codec::read(&set_conduct(&observed.name, &observed.conduct)?)? {
            if attribute.kind != attr::NODE {
                w.put(attribute.kind, attribute.bytes())?;
            }
        }
        w.put_u32(attr::AMBIGUOUS, observed.ambiguous)?;
        w.put_u32(attr::BARRED, observed.barred)?;
        if let Some(latency) = &observed.latency {
            w.put_nest(attr::READ_LATENCY, encode_latency(&latency.read)?)?;
            w.put_nest(attr::WRITE_LATENCY, encode_latency(&latency.write)?)?;
        }
        if let Some(merged) = observed.merged {
            w.put_u64(attr::MERGED, merged)?;
        }
        if let Some(queue) = observed.queue_time {
            w.put_u64(attr::QUEUE_WAITS, queue.count)?;
            w.put_u64(attr::QUEUE_NS, queue.sum_ns)?;
        }
        for old in &observed.unfenced {
            w.put_nest(attr::UNFENCED, encode_old_link(old)?)?;
        }
        Ok(())
    };
    put().unwrap();
    w.into_bytes()
}

fn encode_link(link: &ObservedLink) -> Result<Writer, NetlinkError> {
    let mut w = Writer::new();
    w.put_u32(link_attr::SLOT, link.slot.0)?;
    w.put_u32(link_attr::GENERATION, link.generation.0)?;
    w.put_u32(link_attr::STATE, link.state as u32)?;
    w.put_u32(link_attr::IN_FLIGHT, link.in_flight)?;
    w.put_u64(link_attr::SENT, link.sent.0)?;
    w.put_u64(link_attr::RECEIVED, link.received.0)?;
    Ok(w)
}

fn encode_latency(latency: &Latency) -> Result<Writer, NetlinkError> {
    let mut w = Writer::new();
    w.put(latency_attr::PAD, b"")?;
    w.put_u64(latency_attr::SUM, latency.sum_ns)?;
    let counts = latency.buckets.iter().map(|n| n.to_ne_bytes());
    w.put(latency_attr::COUNTS, &counts.collect::<Vec<_>>().concat())?;
    Ok(w)
}

fn encode_old_link(old: &OldLink) -> Result<Writer, NetlinkError> {
    let mut w = Writer::new();
    w.put_u32(link_attr::SLOT, old.slot.0)?;
    w.put_u32(link_attr::GENERATION, old.generation.0)?;
    w.put_u32(link_attr::AMBIGUOUS, old.ambiguous)?;
    w.put_u32(link_attr::MERGED, old.merged)?;
    if let Some(time) = old.quiet_in {
        w.put_u32(link_attr::QUIET_IN, time.0)?;
    }
    Ok(w)
}

/// An event's attributes.
pub fn encode_event(event: &KernelEvent) -> Vec<u8> {
    let mut w = Writer::new();
    match event {
        KernelEvent::Node {
            node,
            state,
            reason,
        } => {
            w.put_str(attr::NODE, node.as_str()).unwrap();
            w.put_u32(attr::STATE, *state as u32).unwrap();
            if let Some(reason) = reason {
                w.put_str(attr::REASON, reason).unwrap();
            }
        }
        KernelEvent::Link {
            node,
            slot,
            generation,
            state,
            errno,
            reason,
        } => {
            let mut nest = Writer::new();
            nest.put_u32(link_attr::SLOT, slot.0).unwrap();
            nest.put_u32(link_attr::GENERATION, generation.0).unwrap();
            nest.put_u32(link_attr::STATE, *state as u32).unwrap();
            nest.put_u32(link_attr::ERRNO, errno.map_or(0, |e| e as u32))
                .unwrap();
            nest.put_str(link_attr::REASON, reason.as_deref().unwrap_or(""))
                .unwrap();
            w.put_str(attr::NODE, node.as_str()).unwrap();
            w.put_nest(attr::LINK, nest).unwrap();
        }
        KernelEvent::Fence {
            node,
            slot,
            generation,
            ambiguous,
            reason,
        } => {
            let mut nest = Writer::new();
            nest.put_u32(link_attr::SLOT, slot.0).unwrap();
            nest.put_u32(link_attr::GENERATION, generation.0).unwrap();
            nest.put_u32(link_attr::AMBIGUOUS, *ambiguous).unwrap();
            nest.put_str(link_attr::REASON, reason.as_deref().unwrap_or(""))
                .unwrap();
            w.put_str(attr::NODE, node.as_str()).unwrap();
            w.put_nest(attr::UNFENCED, nest).unwrap();
        }
        KernelEvent::DataLost { node, writes } => {
            w.put_str(attr::NODE, node.as_str()).unwrap();
            w.put_u64(attr::WRITES, *writes).unwrap();
        }
        KernelEvent::Overflow => {}
    }
    w.into_bytes()
}

pub fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

prop_compose! {
    fn any_link()(
        slot in 0u32..32, generation: u32, state in 0usize..4, in_flight: u32, sent: u64, received: u64,
    ) -> ObservedLink {
        use LinkState::*;
        ObservedLink {
            slot: Slot(slot),
            generation: Generation(generation),
            state: [Live, Draining, Lost, Gone][state],
            in_flight,
            sent: Bytes(sent),
            received: Bytes(received),
        }
    }
}

prop_compose! {
    fn any_negotiated()(
        size: u64, flags: u16, sizes: [u32; 3], ids in proptest::option::of(any::<[[u8; 16]; 2]>()),
    ) -> Negotiated {
        Negotiated {
            size: Bytes(size),
            flags: NbdFlags(flags),
            min_block: sizes[0],
            pref_block: sizes[1],
            max_payload: sizes[2],
            description: None,
            identity: ids.map(|[_, identity]| Id(identity)),
            incarnation: ids.map(|[incarnation, _]| Id(incarnation)),
        }
    }
}

fn any_time() -> impl Strategy<Value = Option<Millis>> {
    proptest::option::of((0..u32::MAX).prop_map(Millis))
}

prop_compose! {
    fn any_conduct()(
        policy in prop_oneof![
            Just(Policy::Queue),
            (0..u32::MAX).prop_map(|ms| Policy::QueueFor(Millis(ms))),
            Just(Policy::Error),
        ],
        quiesce in any_time(), timeout in any_time(), eof_fences: bool, eio: bool,
    ) -> Conduct {
        let unknown_restart = if eio { UnknownRestart::Eio } else { UnknownRestart::Trust };
        Conduct { policy, quiesce, eof_fences, unknown_restart, timeout }
    }
}

prop_compose! {
    fn any_old_link()(numbers: [u32; 4], quiet_in in any_time()) -> OldLink {
        OldLink {
            slot: Slot(numbers[0]),
            generation: Generation(numbers[1]),
            ambiguous: numbers[2],
            merged: numbers[3],
            quiet_in,
        }
    }
}

prop_compose! {
    fn any_latency()(sum: u64, counts in proptest::collection::vec(any::<u64>(), 1..66)) -> Latency {
        Latency::of(sum, counts)
    }
}

prop_compose! {
    pub fn any_node()(
        name in "[A-Za-z0-9_-]{1,63}",
        state in 0usize..6,
        reason in proptest::option::of("[a-z ]{1,40}"),
        session in proptest::option::of(any::<[[u8; 16]; 2]>()),
        negotiated in proptest::option::of(any_negotiated()),
        zero_copy: Option<bool>,
        numbers: [u32; 6],
        counts: [u64; 4],
        need_write: bool,
        links in proptest::collection::vec(any_link(), 0..33),
        conduct in any_conduct(),
        guards: [u32; 2],
        latency in proptest::option::of([any_latency(), any_latency()]),
        merged: Option<u64>,
        queue_time: Option<[u64; 2]>,
        unfenced in proptest::collection::vec(any_old_link(), 0..65),
    ) -> ObservedNode {
        use NodeState::*;
        ObservedNode {
            name: name.parse().unwrap(),
            state: [Waiting, Live, Degraded, Lost, Failed, Mismatch][state],
            reason,
            session: session.map(|[client, nonce]| Session { client: Id(client), nonce: Id(nonce) }),
            negotiated,
            zero_copy,
            wanted: numbers[0],
            live: numbers[1],
            in_flight: numbers[2],
            queued: numbers[3],
            errors: counts[0],
            reconnects: counts[1],
            generation: Generation(numbers[4]),
            need_size: Bytes(counts[2]),
            need_block: numbers[5],
            need_write,
            writes: counts[3],
            links,
            conduct,
            ambiguous: guards[0],
            barred: guards[1],
            latency: latency.map(|[read, write]| Latencies { read, write }),
            merged,
            queue_time: queue_time.map(|[count, sum_ns]| QueueTime { count, sum_ns }),
            unfenced,
        }
    }
}

proptest! {
    #[test]
    fn any_node_survives_the_wire(node in any_node()) {
        prop_assert_eq!(observed_node(&encode_node(&node)).unwrap(), node);
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes: Vec<u8>, command: u8) {
        let _ = observed_node(&bytes);
        let _ = event(command, &bytes);
    }
}

/// The request's attributes as (kind, value), nests opened.
fn opened(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    codec::read(bytes)
        .unwrap()
        .iter()
        .map(|a| (a.kind, a.bytes().to_vec()))
        .collect()
}

#[test]
fn links_set_carries_every_field() {
    let socket: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let fd = socket.as_raw_fd();
    let request = LinksSet {
        node: name("alpha"),
        session: Session {
            client: Id([1; 16]),
            nonce: Id([2; 16]),
        },
        negotiated: Negotiated {
            size: Bytes(1 << 40),
            flags: NbdFlags(0x10d),
            min_block: 512,
            pref_block: 4096,
            max_payload: 1 << 25,
            description: Some("not for the kernel".into()),
            identity: Some(Id([4; 16])),
            incarnation: Some(Id([3; 16])),
        },
        wanted: 4,
        zero_copy: true,
        links: vec![NewLink {
            slot: Slot(3),
            generation: Generation(9),
            socket,
        }],
    };
    let all = opened(&links_set(&request).unwrap());
    let (nest, flat) = all.split_last().unwrap();
    let n = |n: u32| n.to_ne_bytes().to_vec();
    assert_eq!(
        flat,
        [
            (attr::NODE, b"alpha\0".to_vec()),
            (attr::SESSION, [[1; 16], [2; 16]].concat()),
            (attr::SIZE, (1u64 << 40).to_ne_bytes().to_vec()),
            (attr::FLAGS, n(0x10d)),
            (attr::MIN_BLOCK, n(512)),
            (attr::PREF_BLOCK, n(4096)),
            (attr::MAX_PAYLOAD, n(1 << 25)),
            (attr::WANTED, n(4)),
            (attr::ZERO_COPY, vec![1]),
            (attr::INCARNATION, [[3; 16], [4; 16]].concat()),
        ]
    );
    assert_eq!(nest.0, attr::LINK);
    let link = [
        (link_attr::SLOT, n(3)),
        (link_attr::FD, n(fd as u32)),
        (link_attr::GENERATION, n(9)),
    ];
    assert_eq!(opened(&nest.1), link);
}

#[test]
fn links_to_a_server_that_does_not_say_who_it_is_name_no_incarnation() {
    let request = LinksSet {
        node: name("alpha"),
        session: Session::default(),
        negotiated: crate::kernel::sim::export(8, 0),
        wanted: 1,
        zero_copy: false,
        links: Vec::new(),
    };
    let all = opened(&links_set(&request).unwrap());
    assert!(all.iter().all(|(kind, _)| *kind != attr::INCARNATION));
}

#[test]
fn an_incarnation_that_is_not_ours_says_nothing() {
    let mut node = node(&name("a")).unwrap();
    for length in [0, 1, 16, 31, 33, 64] {
        node.put(attr::INCARNATION, &vec![7; length]).unwrap();
        let bytes = std::mem::replace(&mut node, Writer::new()).into_bytes();
        let all = Message(codec::read(&bytes).unwrap());
        assert_eq!(incarnation(&all), None, "{length} bytes");
    }
}

#[test]
fn settings_go_as_numbers_all_of_them() {
    let n = |n: u32| n.to_ne_bytes().to_vec();
    let conduct = Conduct {
        policy: Policy::QueueFor(Millis::seconds(300)),
        quiesce: None,
        eof_fences: true,
        unknown_restart: UnknownRestart::Eio,
        timeout: Some(Millis::seconds(7)),
    };
    assert_eq!(
        opened(&set_conduct(&name("a"), &conduct).unwrap()),
        [
            (attr::NODE, b"a\0".to_vec()),
            (attr::POLICY, n(1)),
            (attr::POLICY_MS, n(300_000)),
            (attr::QUIESCE, n(u32::MAX)),
            (attr::EOF_FENCES, vec![1]),
            (attr::UNKNOWN_RESTART, n(1)),
            (attr::TIMEOUT, n(7000)),
        ]
    );
}

#[test]
fn a_fence_names_one_link_of_a_session_and_the_operators_none() {
    let n = |n: u32| n.to_ne_bytes().to_vec();
    let session = Session {
        client: Id([1; 16]),
        nonce: Id([2; 16]),
    };
    let link = Fenced::Link {
        session,
        slot: Slot(3),
        generation: Generation(9),
    };
    let all = opened(&fenced(&name("a"), link).unwrap());
    assert_eq!(all[0], (attr::NODE, b"a\0".to_vec()));
    assert_eq!(all[1], (attr::SESSION, [[1; 16], [2; 16]].concat()));
    let expected = [(link_attr::SLOT, n(3)), (link_attr::GENERATION, n(9))];
    assert_eq!((all[2].0, opened(&all[2].1)), (attr::LINK, expected.into()));
    assert_eq!(all.len(), 3);
    let all = opened(&fenced(&name("a"), Fenced::All).unwrap());
    assert_eq!(all[1..], [(attr::FORCE, Vec::new())]);
}

#[test]
fn links_drop_names_slots_and_force() {
    let n = |n: u32| n.to_ne_bytes().to_vec();
    let all = opened(&links_drop(&name("a"), &[Slot(1), Slot(2)], true).unwrap());
    assert_eq!(
        all.iter().map(|a| a.0).collect::<Vec<_>>(),
        [attr::NODE, attr::LINK, attr::LINK, attr::FORCE]
    );
    assert_eq!(opened(&all[2].1), [(link_attr::SLOT, n(2))]);
    assert!(all[3].1.is_empty(), "a flag has no value");
    let all = opened(&links_drop(&name("a"), &[], false).unwrap());
    assert_eq!(all, [(attr::NODE, b"a\0".to_vec())]);
    let all = opened(&set_wanted(&name("a"), 7).unwrap());
    assert_eq!(all[1], (attr::WANTED, n(7)));
}

#[test]
fn what_an_answer_lacks_is_named() {
    let error = observed_node(&node(&name("a")).unwrap().into_bytes()).unwrap_err();
    assert!(error.to_string().contains("it lacks STATE"), "{error}");
    let mut w = node(&name("a")).unwrap();
    w.put_u32(attr::STATE, 17).unwrap();
    let error = event(cmd::NODE_EVENT, &w.into_bytes()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("node state 17; the module is newer"),
        "{error}"
    );
    let mut w = Writer::new();
    w.put_str(attr::NODE, "a/b").unwrap();
    w.put_u32(attr::STATE, 1).unwrap();
    let error = event(cmd::NODE_EVENT, &w.into_bytes()).unwrap_err();
    assert!(error.to_string().contains("`a/b`"), "{error}");
}

/// A node as an older module tells it.
fn without_latency() -> Vec<u8> {
    encode_node(&ObservedNode {
        latency: None,
        merged: None,
        queue_time: None,
        ..crate::cli::status_tests::node()
    })
}

/// The same with latencies of that many bytes of counts, and the sum if it shall be there.
fn with_counts(bytes: usize, sum: bool) -> Result<ObservedNode, NetlinkError> {
    let mut latencies = Writer::new();
    for kind in [attr::READ_LATENCY, attr::WRITE_LATENCY] {
        let mut nest = Writer::new();
        nest.put(latency_attr::COUNTS, &vec![1; bytes])?;
        if sum {
            nest.put_u64(latency_attr::SUM, 7)?;
        }
        latencies.put_nest(kind, nest)?;
    }
    observed_node(&[without_latency(), latencies.into_bytes()].concat())
}

#[test]
fn an_older_module_tells_no_latency_and_a_wrong_one_is_named() {
    let old = observed_node(&without_latency()).unwrap();
    assert_eq!(
        (old.latency, old.merged, old.queue_time),
        (None, None, None)
    );
    let newer = with_counts(8 * 40, true).unwrap().latency.unwrap();
    assert_eq!((newer.read.buckets.len(), newer.write.sum_ns), (40, 7));
    for (bytes, sum, says) in [
        (12, true, "12 bytes, which are no whole numbers"),
        (0, true, "a latency has 0 buckets"),
        (8 * 66, true, "a latency has 66 buckets"),
        (8 * 26, false, "it lacks SUM of a latency"),
    ] {
        let error = with_counts(bytes, sum).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn events_survive_the_wire() {
    let events = [
        KernelEvent::Node {
            node: name("a"),
            state: NodeState::Lost,
            reason: None,
        },
        KernelEvent::Node {
            node: name("a"),
            state: NodeState::Mismatch,
            reason: Some("too small".into()),
        },
        KernelEvent::Link {
            node: name("b"),
            slot: Slot(2),
            generation: Generation(8),
            state: LinkState::Lost,
            errno: Some(Errno::ECONNRESET),
            reason: Some("reset by the peer".into()),
        },
        KernelEvent::Link {
            node: name("b"),
            slot: Slot(0),
            generation: Generation(1),
            state: LinkState::Live,
            errno: None,
            reason: None,
        },
        KernelEvent::Fence {
            node: name("b"),
            slot: Slot(2),
            generation: Generation(8),
            ambiguous: 5,
            reason: Some("reset by the peer".into()),
        },
        KernelEvent::DataLost {
            node: name("b"),
            writes: 1 << 40,
        },
    ];
    for expected in events {
        let command = match expected {
            KernelEvent::Link { .. } => cmd::LINK_EVENT,
            KernelEvent::Fence { .. } => cmd::FENCE_EVENT,
            KernelEvent::DataLost { .. } => cmd::DATA_LOST_EVENT,
            _ => cmd::NODE_EVENT,
        };
        assert_eq!(
            event(command, &encode_event(&expected)).unwrap(),
            Some(expected)
        );
    }
    assert_eq!(
        event(99, b"").unwrap(),
        None,
        "a newer module's event is no error"
    );
}
