//! Tests of `netlink::client` against a kernel that a script plays, and against the real one
//! for what it answers without the module.

use std::collections::VecDeque;

use super::super::codec::Writer;
use super::super::message::tests::{encode_node, name};
use super::super::wire::tests::{ack, message};
use super::*;
use crate::kernel::NodeState;
use crate::units::{Bytes, Generation};

const FAMILY: u16 = 0x21;

/// Plays the kernel: each request is shown to `script`, which gives the datagrams of the answer.
struct Played<F> {
    script: F,
    datagrams: VecDeque<Vec<u8>>,
}

impl<F: FnMut(&wire::Message<'_>, &[u8]) -> Vec<Vec<u8>>> Transport for Played<F> {
    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let request = wire::split(bytes)?[0];
        if request.kind == family::GENL_ID_CTRL {
            let answer = message(request.kind, 0, request.sequence, &described());
            let ack = ack(bytes, request.sequence, 0, "", true);
            self.datagrams.extend([answer, ack]);
        } else {
            self.datagrams.extend((self.script)(&request, bytes));
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>, NetlinkError> {
        self.datagrams
            .pop_front()
            .ok_or(NetlinkError::Timeout(ANSWER_TIMEOUT))
    }
}

/// What "nlctrl" says of our family.
fn described() -> Vec<u8> {
    let (mut group, mut groups, mut all) = (Writer::new(), Writer::new(), Writer::new());
    group.put_str(1, "events").unwrap();
    group.put_u32(2, 9).unwrap();
    groups.put_nest(1, group).unwrap();
    all.put(1, &FAMILY.to_ne_bytes()).unwrap();
    all.put_u32(3, 1).unwrap();
    all.put_nest(7, groups).unwrap();
    [vec![1, 2, 0, 0], all.into_bytes()].concat()
}

fn talk<F>(script: F) -> Talk<Played<F>>
where
    F: FnMut(&wire::Message<'_>, &[u8]) -> Vec<Vec<u8>>,
{
    let played = Played {
        script,
        datagrams: VecDeque::new(),
    };
    let talk = Talk::over(played).unwrap();
    assert_eq!(
        talk.family,
        Family {
            id: FAMILY,
            events: 9
        }
    );
    talk
}

fn observed(text: &str) -> ObservedNode {
    ObservedNode {
        name: name(text),
        state: NodeState::Waiting,
        reason: None,
        session: None,
        negotiated: None,
        zero_copy: None,
        wanted: 1,
        live: 0,
        in_flight: 0,
        queued: 3,
        errors: 0,
        reconnects: 0,
        generation: Generation(0),
        need_size: Bytes(4096),
        need_block: 512,
        need_write: true,
        writes: 0,
        links: Vec::new(),
        conduct: Conduct::default(),
        ambiguous: 0,
        barred: 0,
        latency: None,
        merged: None,
        queue_time: None,
        unfenced: Vec::new(),
    }
}

fn answer(sequence: u32, flags: u16, node: &ObservedNode) -> Vec<u8> {
    let payload = [vec![cmd::NODE_GET, 1, 0, 0], encode_node(node)].concat();
    message(FAMILY, flags, sequence, &payload)
}

fn done(sequence: u32) -> Vec<u8> {
    message(wire::NLMSG_DONE, 2, sequence, &0i32.to_ne_bytes())
}

#[test]
fn an_answer_is_read_up_to_its_ack_and_late_ones_are_skipped() {
    let mut talk = talk(|request, sent| {
        let late = answer(request.sequence.wrapping_sub(1), 0, &observed("late"));
        let both = [
            answer(request.sequence, 0, &observed("alpha")),
            ack(sent, request.sequence, 0, "", true),
        ];
        vec![late, both.concat()]
    });
    let request = message::node(&name("alpha")).unwrap().into_bytes();
    for _ in 0..2 {
        assert_eq!(
            talk.ask_node(cmd::NODE_GET, &request).unwrap(),
            observed("alpha")
        );
    }
    assert!(talk.transport.datagrams.is_empty());
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    let mut talk = talk(|request, sent| {
        assert_eq!(request.generic().unwrap().0, cmd::FAIL_PENDING);
        vec![ack(
            sent,
            request.sequence,
            2,
            "no table names this node",
            true,
        )]
    });
    let request = message::node(&name("ghost")).unwrap().into_bytes();
    let error = talk.order(cmd::FAIL_PENDING, &request).unwrap_err();
    assert!(
        error.to_string().starts_with("no table names this node"),
        "{error}"
    );
    assert_eq!(error.errno(), Some(Errno::ENOENT));
}

#[test]
fn missing_privilege_says_what_to_do() {
    let mut talk = talk(|request, sent| vec![ack(sent, request.sequence, 1, "", true)]);
    let error = talk.nodes().unwrap_err();
    assert!(matches!(error, NetlinkError::NotPermitted), "{error}");
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
}

#[test]
fn a_dump_is_read_whole_and_again_when_it_was_disturbed() {
    let mut round = 0;
    let mut talk = talk(move |request, _| {
        round += 1;
        assert_eq!(request.flags & wire::NLM_F_DUMP, wire::NLM_F_DUMP);
        let disturbed = if round < 3 { wire::NLM_F_DUMP_INTR } else { 0 };
        let first = answer(request.sequence, 2, &observed("alpha"));
        let second = answer(request.sequence, 2 | disturbed, &observed("beta"));
        let third = answer(request.sequence, 2, &observed(&format!("round{round}")));
        vec![[first, second].concat(), third, done(request.sequence)]
    });
    let names: Vec<String> = talk
        .nodes()
        .unwrap()
        .iter()
        .map(|n| n.name.to_string())
        .collect();
    assert_eq!(names, ["alpha", "beta", "round3"]);
}

#[test]
fn a_dump_that_never_settles_is_given_up() {
    let mut talk = talk(|request, _| {
        let disturbed = answer(request.sequence, 2 | wire::NLM_F_DUMP_INTR, &observed("a"));
        vec![disturbed, done(request.sequence)]
    });
    let error = talk.nodes().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("changed during each of 20 readings"),
        "{error}"
    );
}

#[test]
fn silence_is_a_timeout() {
    let mut talk = talk(|_, _| Vec::new());
    let error = talk.nodes().unwrap_err();
    assert_eq!(error.to_string(), "the kernel hasn't answered within 10 s");
}

#[test]
fn the_real_kernel_without_the_module_says_what_to_do() {
    match nodes() {
        Err(NetlinkError::FamilyAbsent) => {}
        Err(NetlinkError::NotPermitted) | Ok(_) => println!("not shown: the module is loaded here"),
        Err(other) => panic!("{other}"),
    }
    let text = NetlinkError::FamilyAbsent.to_string();
    assert_eq!(text, "dm-dst module isn't loaded: modprobe dm-dst");
}

#[test]
fn the_real_control_family_is_understood() {
    let mut socket = Socket::new(NETLINK_GENERIC).unwrap();
    prepare(&mut socket).unwrap();
    let nobody = Family {
        id: family::GENL_ID_CTRL,
        events: 0,
    };
    let mut talk = Talk {
        transport: socket,
        sequence: 41,
        family: nobody,
    };
    let question = family::question("nlctrl").unwrap();
    let answers = talk.call(family::CTRL_CMD_GETFAMILY, 0, &question).unwrap();
    let error = family::answer(&answers[0]).unwrap_err();
    assert!(
        matches!(error, NetlinkError::Version { found: 2, .. }),
        "{error}"
    );
}
