//! Tests of `netlink::events`: what datagrams become, and a subscription without the module.

use super::super::message::tests::{encode_event, name};
use super::super::numbers::cmd;
use super::super::wire::tests::message;
use super::*;
use crate::kernel::NodeState;

const FAMILY: Family = Family {
    id: 0x21,
    events: 9,
};

fn node_event(text: &str) -> KernelEvent {
    KernelEvent::Node {
        node: name(text),
        state: NodeState::Live,
        reason: None,
    }
}

fn datagram(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    message(kind, 0, 0, &[&[command, 1, 0, 0], attributes].concat())
}

#[test]
fn events_come_in_order_and_strangers_are_skipped() {
    let all = [
        datagram(FAMILY.id, cmd::NODE_EVENT, &encode_event(&node_event("a"))),
        datagram(0x33, cmd::NODE_EVENT, b""),
        datagram(FAMILY.id, 99, b""),
        datagram(FAMILY.id, cmd::NODE_EVENT, &encode_event(&node_event("b"))),
    ];
    let heard = hear(&all.concat(), FAMILY);
    assert_eq!(
        heard,
        Heard {
            events: vec![node_event("a"), node_event("b")],
            end: false
        }
    );
}

#[test]
fn what_is_not_understood_counts_as_lost() {
    let lost = Heard {
        events: vec![KernelEvent::Overflow],
        end: false,
    };
    assert_eq!(
        hear(&datagram(FAMILY.id, cmd::NODE_EVENT, b""), FAMILY),
        lost
    );
    assert_eq!(hear(&[1, 2, 3], FAMILY), lost);
}

#[test]
fn the_end_of_the_family_is_heard() {
    let id = |n: u16| [&[6, 0, 1, 0], &n.to_ne_bytes()[..], &[0, 0]].concat();
    let gone = |n| datagram(family::GENL_ID_CTRL, family::CTRL_CMD_DELFAMILY, &id(n));
    assert!(hear(&gone(FAMILY.id), FAMILY).end);
    assert!(!hear(&gone(FAMILY.id + 1), FAMILY).end);
}

#[tokio::test]
async fn a_subscription_without_the_module_is_refused_clearly() {
    match listen() {
        Err(NetlinkError::FamilyAbsent | NetlinkError::NotPermitted) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => println!("not shown: the module is loaded here"),
    }
}
