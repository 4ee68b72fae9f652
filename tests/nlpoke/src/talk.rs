//! One raw request and its answers, unlike dstd's own client without a thought for what it asks.
//! Called by main. Knows framing and extack through dstd's netlink module; keeps no state.

use std::io;

use dstd::netlink::{NetlinkError, client, wire};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use crate::request::Request;

const SEQUENCE: u32 = 7;

/// The attributes of each answer.
pub fn ask(request: &Request) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let family = client::find_family()?;
    let flags = if request.dump {
        wire::NLM_F_DUMP
    } else {
        wire::NLM_F_ACK
    };
    let sent = wire::request(
        family.id,
        flags,
        SEQUENCE,
        request.command,
        &request.attributes()?,
    )?;
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    socket.send_to(&sent, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in wire::split(&datagram)? {
            match message.kind {
                wire::NLMSG_ERROR | wire::NLMSG_DONE => {
                    message.verdict(&sent)?;
                    return Ok(answers);
                }
                _ => answers.push(message.generic()?.1.to_vec()),
            }
        }
        if datagram.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
