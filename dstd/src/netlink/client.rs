//! Requests to dm-dst.ko: one call, one answer.
//!
//! Owns the talk on a request socket: sequence numbers, acks, dumps, time limits. Called by
//! `kernel::real`. Each talk has a socket of its own, so that calls from many threads and
//! late answers never mix. Blocks; the kernel answers without waiting for I/O.

use std::io;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::error::NetlinkError;
use super::family::{self, Family};
use super::message;
use super::numbers::{self, cmd};
use super::wire;
use crate::kernel::{Conduct, Fenced, LinksSet, ObservedNode};
use crate::units::{NodeName, Slot};

/// The kernel answers in microseconds; this long only if it is stuck.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A dump that is disturbed each time is given up.
const DUMP_ATTEMPTS: usize = 20;
/// Room for a burst of a dump; the kernel doubles it.
const RECEIVE_BUFFER: i32 = 256 * 1024;

/// What carries datagrams to and from the kernel; tests have one of their own.
trait Transport {
    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError>;
    fn receive(&mut self) -> Result<Vec<u8>, NetlinkError>;
}

/// Gives a fresh socket its address, extended acks and room to receive.
pub(super) fn prepare(socket: &mut Socket) -> io::Result<()> {
    socket.bind_auto()?;
    // Only old kernels lack these: then errors have no words, as everything else still works.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
    Ok(())
}

impl Transport for Socket {
    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = SocketAddr::new(0, 0);
        self.send_to(bytes, &kernel, 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>, NetlinkError> {
        loop {
            match self.recv_from_full() {
                // Only the kernel is believed.
                Ok((bytes, sender)) if sender.port_number() == 0 => return Ok(bytes),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NetlinkError::Timeout(ANSWER_TIMEOUT));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The family on the running kernel, found anew for each talk as the module may be reloaded.
pub fn find_family() -> Result<Family, NetlinkError> {
    Talk::open().map(|talk| talk.family)
}

/// Every node that some table names.
pub fn nodes() -> Result<Vec<ObservedNode>, NetlinkError> {
    Talk::open()?.nodes()
}

pub fn node(name: &NodeName) -> Result<ObservedNode, NetlinkError> {
    let request = message::node(name)?.into_bytes();
    Talk::open()?.ask_node(cmd::NODE_GET, &request)
}

pub fn set_wanted(name: &NodeName, wanted: u32) -> Result<(), NetlinkError> {
    let request = message::set_wanted(name, wanted)?;
    Talk::open()?.order(cmd::NODE_SET, &request)
}

pub fn set_conduct(name: &NodeName, conduct: &Conduct) -> Result<(), NetlinkError> {
    let request = message::set_conduct(name, conduct)?;
    Talk::open()?.order(cmd::NODE_SET, &request)
}

pub fn fenced(name: &NodeName, fenced: Fenced) -> Result<ObservedNode, NetlinkError> {
    let request = message::fenced(name, fenced)?;
    Talk::open()?.ask_node(cmd::FENCED, &request)
}

pub fn links_set(links: &LinksSet) -> Result<ObservedNode, NetlinkError> {
    let request = message::links_set(links)?;
    Talk::open()?.ask_node(cmd::LINKS_SET, &request)
}

pub fn links_drop(name: &NodeName, slots: &[Slot], force: bool) -> Result<(), NetlinkError> {
    let request = message::links_drop(name, slots, force)?;
    Talk::open()?.order(cmd::LINKS_DROP, &request)
}

pub fn fail_pending(name: &NodeName) -> Result<(), NetlinkError> {
    let request = message::node(name)?.into_bytes();
    Talk::open()?.order(cmd::FAIL_PENDING, &request)
}

/// A socket whose other end is known to be our family.
struct Talk<T> {
    transport: T,
    sequence: u32,
    family: Family,
}

impl Talk<Socket> {
    fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        prepare(&mut socket)?;
        let limit = TimeVal::new(ANSWER_TIMEOUT.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(io::Error::from)?;
        Talk::over(socket)
    }
}

impl<T: Transport> Talk<T> {
    fn over(transport: T) -> Result<Self, NetlinkError> {
        let nobody = Family {
            id: family::GENL_ID_CTRL,
            events: 0,
        };
        let mut talk = Talk {
            transport,
            sequence: 0,
            family: nobody,
        };
        let question = family::question(numbers::FAMILY_NAME)?;
        let answers = talk.call(family::CTRL_CMD_GETFAMILY, 0, &question);
        let answers = answers.map_err(family::absent)?;
        let first = answers.first().ok_or_else(no_answer)?;
        talk.family = family::answer(first)?;
        Ok(talk)
    }

    fn order(&mut self, command: u8, attributes: &[u8]) -> Result<(), NetlinkError> {
        self.call(command, 0, attributes).map(drop)
    }

    fn ask_node(&mut self, command: u8, attributes: &[u8]) -> Result<ObservedNode, NetlinkError> {
        let answers = self.call(command, 0, attributes)?;
        message::observed_node(answers.first().ok_or_else(no_answer)?)
    }

    fn nodes(&mut self) -> Result<Vec<ObservedNode>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.call(cmd::NODE_GET, wire::NLM_F_DUMP, &[]) {
                Ok(answers) => return answers.iter().map(|a| message::observed_node(a)).collect(),
                Err(NetlinkError::Refused {
                    errno: Errno::EINTR,
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::BadAnswer(format!(
            "the list of nodes changed during each of {DUMP_ATTEMPTS} readings"
        )))
    }

    /// Sends one request and reads up to its ack (or a dump's end): the attributes of each
    /// answer. A dump that was disturbed is EINTR, after its last message.
    fn call(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &[u8],
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let dump = flags & wire::NLM_F_DUMP == wire::NLM_F_DUMP;
        let flags = if dump { flags } else { flags | wire::NLM_F_ACK };
        let sent = wire::request(self.family.id, flags, self.sequence, command, attributes)?;
        self.transport.send(&sent)?;
        let mut answers = Vec::new();
        let mut disturbed = false;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while Instant::now() < deadline {
            let datagram = self.transport.receive()?;
            for message in wire::split(&datagram)? {
                if message.sequence != self.sequence {
                    continue;
                }
                disturbed |= message.flags & wire::NLM_F_DUMP_INTR != 0;
                match message.kind {
                    wire::NLMSG_ERROR | wire::NLMSG_DONE => {
                        message.verdict(&sent).map_err(not_permitted)?;
                        return if disturbed {
                            Err(interrupted())
                        } else {
                            Ok(answers)
                        };
                    }
                    wire::NLMSG_NOOP | wire::NLMSG_OVERRUN => {}
                    _ => answers.push(message.generic()?.1.to_vec()),
                }
            }
        }
        Err(NetlinkError::Timeout(ANSWER_TIMEOUT))
    }
}

fn no_answer() -> NetlinkError {
    NetlinkError::BadAnswer("it acknowledges, but tells nothing".to_owned())
}

fn interrupted() -> NetlinkError {
    let errno = Errno::EINTR;
    NetlinkError::Refused {
        errno,
        text: errno.desc().to_owned(),
    }
}

fn not_permitted(error: NetlinkError) -> NetlinkError {
    match error {
        NetlinkError::Refused {
            errno: Errno::EPERM,
            ..
        } => NetlinkError::NotPermitted,
        other => other,
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
