//! The family's messages as values of `kernel`: what is asked, what is answered, events.
//!
//! Owns which attribute carries what. Used by `client` and `events`. Pure: never touches a
//! socket. Attributes of newer modules are skipped; missing ones are an error, but for those that
//! older modules don't have.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::codec::{self, Attribute, Writer};
use super::error::NetlinkError;
use super::numbers::{self, attr, cmd, latency_attr, link, link_attr, node, policy, restart};
use crate::kernel::{
    Conduct, Fenced, KernelEvent, Latencies, Latency, LinkState, LinksSet, NbdFlags, Negotiated,
    NodeState, ObservedLink, ObservedNode, OldLink, Policy, QueueTime, UnknownRestart,
};
use crate::units::{Bytes, Generation, Id, Millis, NodeName, Session, Slot};

/// The request that names a node and nothing else.
pub fn node(name: &NodeName) -> Result<Writer, NetlinkError> {
    let mut writer = Writer::new();
    writer.put_str(attr::NODE, name.as_str())?;
    Ok(writer)
}

pub fn set_wanted(name: &NodeName, wanted: u32) -> Result<Vec<u8>, NetlinkError> {
    let mut writer = node(name)?;
    writer.put_u32(attr::WANTED, wanted)?;
    Ok(writer.into_bytes())
}

/// All of them: none is left as it was.
pub fn set_conduct(name: &NodeName, conduct: &Conduct) -> Result<Vec<u8>, NetlinkError> {
    let time = |time: Option<Millis>| time.map_or(numbers::NEVER, |time| time.0);
    let mut writer = node(name)?;
    let (policy, queue_for) = match conduct.policy {
        Policy::Queue => (policy::QUEUE, 0),
        Policy::QueueFor(time) => (policy::QUEUE_FOR, time.0),
        Policy::Error => (policy::ERROR, 0),
    };
    let restart = match conduct.unknown_restart {
        UnknownRestart::Trust => restart::TRUST,
        UnknownRestart::Eio => restart::EIO,
    };
    writer.put_u32(attr::POLICY, policy)?;
    writer.put_u32(attr::POLICY_MS, queue_for)?;
    writer.put_u32(attr::QUIESCE, time(conduct.quiesce))?;
    writer.put_u8(attr::EOF_FENCES, conduct.eof_fences.into())?;
    writer.put_u32(attr::UNKNOWN_RESTART, restart)?;
    writer.put_u32(attr::TIMEOUT, time(conduct.timeout))?;
    Ok(writer.into_bytes())
}

/// One link a message.
pub fn fenced(name: &NodeName, fenced: Fenced) -> Result<Vec<u8>, NetlinkError> {
    let mut writer = node(name)?;
    match fenced {
        Fenced::Link {
            session,
            slot,
            generation,
        } => {
            writer.put(attr::SESSION, &session.to_bytes())?;
            let mut nest = Writer::new();
            nest.put_u32(link_attr::SLOT, slot.0)?;
            nest.put_u32(link_attr::GENERATION, generation.0)?;
            writer.put_nest(attr::LINK, nest)?;
        }
        Fenced::All => writer.put(attr::FORCE, &[])?,
    }
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
    if let (Some(incarnation), Some(identity)) = (negotiated.incarnation, negotiated.identity) {
        writer.put(attr::INCARNATION, &[incarnation.0, identity.0].concat())?;
    }
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
    let mut unfenced = Vec::new();
    for attribute in all.0.iter().filter(|a| a.kind == attr::UNFENCED) {
        unfenced.push(old_link(attribute)?);
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
        conduct: conduct(&all)?,
        ambiguous: all.u32(attr::AMBIGUOUS, "AMBIGUOUS")?,
        barred: all.u32(attr::BARRED, "BARRED")?,
        latency: latencies(&all)?,
        merged: all.find(attr::MERGED).map(|a| a.u64()).transpose()?,
        queue_time: queue_time(&all)?,
        unfenced,
    })
}

fn conduct(all: &Message<'_>) -> Result<Conduct, NetlinkError> {
    let time = |number: u32| (number != numbers::NEVER).then_some(Millis(number));
    let policy = match all.u32(attr::POLICY, "POLICY")? {
        policy::QUEUE => Policy::Queue,
        policy::QUEUE_FOR => Policy::QueueFor(Millis(all.u32(attr::POLICY_MS, "POLICY_MS")?)),
        policy::ERROR => Policy::Error,
        other => return Err(unknown("policy", other)),
    };
    let unknown_restart = match all.u32(attr::UNKNOWN_RESTART, "UNKNOWN_RESTART")? {
        restart::TRUST => UnknownRestart::Trust,
        restart::EIO => UnknownRestart::Eio,
        other => return Err(unknown("restart setting", other)),
    };
    Ok(Conduct {
        policy,
        quiesce: time(all.u32(attr::QUIESCE, "QUIESCE")?),
        eof_fences: all.need(attr::EOF_FENCES, "EOF_FENCES")?.u8()? != 0,
        unknown_restart,
        timeout: time(all.u32(attr::TIMEOUT, "TIMEOUT")?),
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
    let (incarnation, identity) = incarnation(all).unzip();
    Ok(Some(Negotiated {
        size: Bytes(size.u64()?),
        // The protocol's field has 16 bits; the kernel keeps what it was given.
        flags: NbdFlags(all.u32(attr::FLAGS, "FLAGS")? as u16),
        min_block: all.u32(attr::MIN_BLOCK, "MIN_BLOCK")?,
        pref_block: all.u32(attr::PREF_BLOCK, "PREF_BLOCK")?,
        max_payload: all.u32(attr::MAX_PAYLOAD, "MAX_PAYLOAD")?,
        description: None,
        identity,
        incarnation,
    }))
}

/// Incarnation and identity, as `links_set` gives them. What others gave says nothing to us.
fn incarnation(all: &Message<'_>) -> Option<(Id, Id)> {
    let found = all.find(attr::INCARNATION)?;
    let (incarnation, identity) = found.bytes().split_at_checked(16)?;
    Some((
        Id(incarnation.try_into().ok()?),
        Id(identity.try_into().ok()?),
    ))
}

fn old_link(attribute: &Attribute<'_>) -> Result<OldLink, NetlinkError> {
    let all = Message(attribute.nest()?);
    let quiet_in = all.find(link_attr::QUIET_IN).map(|a| a.u32()).transpose()?;
    Ok(OldLink {
        slot: Slot(all.u32(link_attr::SLOT, "SLOT of an old link")?),
        generation: Generation(all.u32(link_attr::GENERATION, "GENERATION of an old link")?),
        ambiguous: all.u32(link_attr::AMBIGUOUS, "AMBIGUOUS of an old link")?,
        merged: all.u32(link_attr::MERGED, "MERGED of an old link")?,
        quiet_in: quiet_in.map(Millis),
    })
}

/// Buckets that a number of microseconds can be sorted into.
const MOST_BUCKETS: usize = 65;

/// Newer modules tell them.
fn latencies(all: &Message<'_>) -> Result<Option<Latencies>, NetlinkError> {
    let (Some(read), Some(write)) = (all.find(attr::READ_LATENCY), all.find(attr::WRITE_LATENCY))
    else {
        return Ok(None);
    };
    Ok(Some(Latencies {
        read: latency(&read)?,
        write: latency(&write)?,
    }))
}

fn queue_time(all: &Message<'_>) -> Result<Option<QueueTime>, NetlinkError> {
    let (Some(count), Some(sum_ns)) = (all.find(attr::QUEUE_WAITS), all.find(attr::QUEUE_NS))
    else {
        return Ok(None);
    };
    Ok(Some(QueueTime {
        count: count.u64()?,
        sum_ns: sum_ns.u64()?,
    }))
}

fn latency(attribute: &Attribute<'_>) -> Result<Latency, NetlinkError> {
    let all = Message(attribute.nest()?);
    let counts = all
        .need(latency_attr::COUNTS, "COUNTS of a latency")?
        .u64s()?;
    if counts.is_empty() || counts.len() > MOST_BUCKETS {
        let error = format!("a latency has {} buckets", counts.len());
        return Err(NetlinkError::BadAnswer(error));
    }
    let sum = all.u64(latency_attr::SUM, "SUM of a latency")?;
    Ok(Latency::of(sum, counts))
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
        cmd::FENCE_EVENT => {
            let nest = Message(all.need(attr::UNFENCED, "UNFENCED")?.nest()?);
            Ok(Some(KernelEvent::Fence {
                node: all.node()?,
                slot: Slot(nest.u32(link_attr::SLOT, "SLOT")?),
                generation: Generation(nest.u32(link_attr::GENERATION, "GENERATION")?),
                ambiguous: nest.u32(link_attr::AMBIGUOUS, "AMBIGUOUS")?,
                reason: nest.text(link_attr::REASON),
            }))
        }
        cmd::DATA_LOST_EVENT => Ok(Some(KernelEvent::DataLost {
            node: all.node()?,
            writes: all.u64(attr::WRITES, "WRITES")?,
        })),
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
        other => return Err(unknown("node state", other)),
    })
}

fn link_state(number: u32) -> Result<LinkState, NetlinkError> {
    Ok(match number {
        link::LIVE => LinkState::Live,
        link::DRAINING => LinkState::Draining,
        link::LOST => LinkState::Lost,
        link::GONE => LinkState::Gone,
        other => return Err(unknown("link state", other)),
    })
}

fn unknown(what: &str, number: u32) -> NetlinkError {
    NetlinkError::BadAnswer(format!("{what} {number}; the module is newer than dstd"))
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
