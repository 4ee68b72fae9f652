//! The family's messages as values of `kernel`: what is asked, what is answered, events.
//!
//! Owns which attribute carries what. Used by `client` and `events`. Pure: never touches a
//! socket. Attributes of newer modules are skipped; missing ones are an error.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::codec::{self, Attribute, Writer};
use super::error::NetlinkError;
use super::numbers::{attr, cmd, link, link_attr, node};
use crate::kernel::{
    KernelEvent, LinkState, LinksSet, NbdFlags, Negotiated, NodeState, ObservedLink, ObservedNode,
};
use crate::units::{Bytes, Generation, NodeName, Session, Slot};

/// The request that names a node and nothing else.
pub fn node(name: &NodeName) -> Result<Writer, NetlinkError> {
    let mut writer = Writer::new();
    writer.put_str(attr::NODE, name.as_str())?;
    Ok(writer)
}

pub fn node_set(name: &NodeName, wanted: u32) -> Result<Vec<u8>, NetlinkError> {
    let mut writer = node(name)?;
    writer.put_u32(attr::WANTED, wanted)?;
    Ok(writer.into_bytes())
}

/// The sockets stay the caller's; the kernel takes its own reference.
pub fn links_set(links: &LinksSet) -> Result<Vec<u8>, NetlinkError> {
    let negotiated = &links.negotiated;
    let mut writer = node(&links.node)?;
    writer.put(attr::SESSION, &links.session.to_bytes())?;
    writer.put_u64(attr::SIZE, negotiated.size.0)?;
    writer.put_u32(attr::FLAGS, u32::from(negotiated.flags.0))?;
    writer.put_u32(attr::MIN_BLOCK, negotiated.min_block)?;
    writer.put_u32(attr::PREF_BLOCK, negotiated.pref_block)?;
    writer.put_u32(attr::MAX_PAYLOAD, negotiated.max_payload)?;
    writer.put_u32(attr::WANTED, links.wanted)?;
    writer.put_u8(attr::ZERO_COPY, u8::from(links.zero_copy))?;
    for link in &links.links {
        let fd: RawFd = link.socket.as_raw_fd();
        let mut nest = Writer::new();
        nest.put_u32(link_attr::SLOT, link.slot.0)?;
        nest.put_i32(link_attr::FD, fd)?;
        nest.put_u32(link_attr::GENERATION, link.generation.0)?;
        writer.put_nest(attr::LINK, nest)?;
    }
    Ok(writer.into_bytes())
}

pub fn links_drop(name: &NodeName, slots: &[Slot], force: bool) -> Result<Vec<u8>, NetlinkError> {
    let mut writer = node(name)?;
    for slot in slots {
        let mut nest = Writer::new();
        nest.put_u32(link_attr::SLOT, slot.0)?;
        writer.put_nest(attr::LINK, nest)?;
    }
    if force {
        writer.put(attr::FORCE, &[])?;
    }
    Ok(writer.into_bytes())
}

/// The answer to NODE_GET and LINKS_SET.
pub fn observed_node(attributes: &[u8]) -> Result<ObservedNode, NetlinkError> {
    let all = Message(codec::read(attributes)?);
    let mut links = Vec::new();
    for attribute in all.0.iter().filter(|a| a.kind == attr::LINK) {
        links.push(observed_link(attribute)?);
    }
    Ok(ObservedNode {
        name: all.node()?,
        state: node_state(all.u32(attr::STATE, "STATE")?)?,
        reason: all.text(attr::REASON),
        session: session(&all)?,
        negotiated: negotiated(&all)?,
        zero_copy: all
            .find(attr::ZERO_COPY)
            .map(|a| a.u8())
            .transpose()?
            .map(|n| n != 0),
        wanted: all.u32(attr::WANTED, "WANTED")?,
        live: all.u32(attr::LIVE, "LIVE")?,
        in_flight: all.u32(attr::IN_FLIGHT, "IN_FLIGHT")?,
        queued: all.u32(attr::QUEUED, "QUEUED")?,
        errors: all.u64(attr::ERRORS, "ERRORS")?,
        reconnects: all.u64(attr::RECONNECTS, "RECONNECTS")?,
        generation: Generation(all.u32(attr::GENERATION, "GENERATION")?),
        need_size: Bytes(all.u64(attr::NEED_SIZE, "NEED_SIZE")?),
        need_block: all.u32(attr::NEED_BLOCK, "NEED_BLOCK")?,
        need_write: all.need(attr::NEED_WRITE, "NEED_WRITE")?.u8()? != 0,
        writes: all.u64(attr::WRITES, "WRITES")?,
        links,
    })
}

fn session(all: &Message<'_>) -> Result<Option<Session>, NetlinkError> {
    let Some(session) = all.find(attr::SESSION) else {
        return Ok(None);
    };
    let bytes = session.bytes().try_into().map_err(|_| {
        let length = session.bytes().len();
        NetlinkError::BadAnswer(format!("its session has {length} bytes"))
    })?;
    Ok(Some(Session::from_bytes(bytes)))
}

/// Present once a LINKS_SET was accepted.
fn negotiated(all: &Message<'_>) -> Result<Option<Negotiated>, NetlinkError> {
    let Some(size) = all.find(attr::SIZE) else {
        return Ok(None);
    };
    Ok(Some(Negotiated {
        size: Bytes(size.u64()?),
        // The protocol's field has 16 bits; the kernel keeps what it was given.
        flags: NbdFlags(all.u32(attr::FLAGS, "FLAGS")? as u16),
        min_block: all.u32(attr::MIN_BLOCK, "MIN_BLOCK")?,
        pref_block: all.u32(attr::PREF_BLOCK, "PREF_BLOCK")?,
        max_payload: all.u32(attr::MAX_PAYLOAD, "MAX_PAYLOAD")?,
        description: None,
        // The family has no attributes for these.
        identity: None,
        incarnation: None,
    }))
}

fn observed_link(attribute: &Attribute<'_>) -> Result<ObservedLink, NetlinkError> {
    let all = Message(attribute.nest()?);
    Ok(ObservedLink {
        slot: Slot(all.u32(link_attr::SLOT, "SLOT")?),
        generation: Generation(all.u32(link_attr::GENERATION, "GENERATION of a link")?),
        state: link_state(all.u32(link_attr::STATE, "STATE of a link")?)?,
        in_flight: all.u32(link_attr::IN_FLIGHT, "IN_FLIGHT of a link")?,
        sent: Bytes(all.u64(link_attr::SENT, "SENT")?),
        received: Bytes(all.u64(link_attr::RECEIVED, "RECEIVED")?),
    })
}

/// `None`: an event of a newer module.
pub fn event(command: u8, attributes: &[u8]) -> Result<Option<KernelEvent>, NetlinkError> {
    let all = Message(codec::read(attributes)?);
    match command {
        cmd::NODE_EVENT => Ok(Some(KernelEvent::Node {
            node: all.node()?,
            state: node_state(all.u32(attr::STATE, "STATE")?)?,
            reason: all.text(attr::REASON),
        })),
        cmd::LINK_EVENT => {
            let nest = Message(all.need(attr::LINK, "LINK")?.nest()?);
            let errno = nest.find(link_attr::ERRNO).map(|a| a.u32()).transpose()?;
            let errno = errno.and_then(|n| i32::try_from(n).ok());
            Ok(Some(KernelEvent::Link {
                node: all.node()?,
                slot: Slot(nest.u32(link_attr::SLOT, "SLOT")?),
                generation: Generation(nest.u32(link_attr::GENERATION, "GENERATION")?),
                state: link_state(nest.u32(link_attr::STATE, "STATE")?)?,
                errno: errno.filter(|n| *n > 0).map(Errno::from_raw),
                reason: nest.text(link_attr::REASON),
            }))
        }
        _ => Ok(None),
    }
}

fn node_state(number: u32) -> Result<NodeState, NetlinkError> {
    Ok(match number {
        node::WAITING => NodeState::Waiting,
        node::LIVE => NodeState::Live,
        node::DEGRADED => NodeState::Degraded,
        node::LOST => NodeState::Lost,
        node::FAILED => NodeState::Failed,
        node::MISMATCH => NodeState::Mismatch,
        other => return Err(unknown("node", other)),
    })
}

fn link_state(number: u32) -> Result<LinkState, NetlinkError> {
    Ok(match number {
        link::LIVE => LinkState::Live,
        link::DRAINING => LinkState::Draining,
        link::LOST => LinkState::Lost,
        link::GONE => LinkState::Gone,
        other => return Err(unknown("link", other)),
    })
}

fn unknown(what: &str, number: u32) -> NetlinkError {
    NetlinkError::BadAnswer(format!(
        "{what} state {number}; the module is newer than dstd"
    ))
}

/// A message's attributes by kind; names are the header's, for errors.
struct Message<'a>(Vec<Attribute<'a>>);

impl<'a> Message<'a> {
    fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        self.0.iter().find(|a| a.kind == kind).copied()
    }

    fn need(&self, kind: u16, name: &str) -> Result<Attribute<'a>, NetlinkError> {
        self.find(kind)
            .ok_or_else(|| NetlinkError::BadAnswer(format!("it lacks {name}")))
    }

    fn u32(&self, kind: u16, name: &str) -> Result<u32, NetlinkError> {
        self.need(kind, name)?.u32()
    }

    fn u64(&self, kind: u16, name: &str) -> Result<u64, NetlinkError> {
        self.need(kind, name)?.u64()
    }

    /// Text that says something.
    fn text(&self, kind: u16) -> Option<String> {
        self.find(kind).map(|a| a.text()).filter(|t| !t.is_empty())
    }

    fn node(&self) -> Result<NodeName, NetlinkError> {
        let name = self.need(attr::NODE, "NODE")?.text();
        name.parse()
            .map_err(|e| NetlinkError::BadAnswer(format!("{e}")))
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub mod tests;
