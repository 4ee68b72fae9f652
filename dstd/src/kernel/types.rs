//! The values that pass between dstd and the kernel or a node.
//! Shared by real and simulated kernels, the planner and status. Plain data: no effects.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use super::{Conduct, Latencies, QueueTime};
use crate::table::Line;
use crate::units::{
    Bytes, DeviceName, DeviceNumber, Generation, Id, Millis, NodeName, Sectors, Session, Slot,
};

/// NBD transmission flags, as the server sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct NbdFlags(pub u16);

impl NbdFlags {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const ROTATIONAL: u16 = 1 << 4;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;

    pub fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub fn read_only(self) -> bool {
        self.has(Self::READ_ONLY)
    }

    pub fn multi_conn(self) -> bool {
        self.has(Self::CAN_MULTI_CONN)
    }
}

/// What the handshake with a node agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Negotiated {
    pub size: Bytes,
    pub flags: NbdFlags,
    /// Bytes; 1 where the server states none.
    pub min_block: u32,
    pub pref_block: u32,
    pub max_payload: u32,
    /// The server's own words about the export.
    pub description: Option<String>,
    /// What the export is, wherever it is served; only our own node server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub identity: Option<Id>,
    /// Another one when writes that weren't flushed can have been lost; only our own node server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub incarnation: Option<Id>,
}

/// What a probe finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    #[serde(flatten)]
    pub negotiated: Negotiated,
    /// `None`: the server doesn't tell who may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<Writer>,
}

/// Who may write to an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Writer {
    /// It is another client than this machine.
    pub other: bool,
    /// The server's words; empty: nobody.
    pub text: String,
}

/// What a connection is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    pub session: Session,
    pub slot: Slot,
    pub generation: Generation,
    /// Take the writer role from whoever has it.
    pub steal: bool,
    /// The node's `timeout`, for the socket's own; `None`: never.
    pub timeout: Option<Millis>,
}

/// A session's links in a slot, up to a generation, that the server is to end for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    pub session: Session,
    /// What export the links led to; another one can't tell anything of them.
    pub identity: Id,
    /// Whose word counts: of another machine that serves the same storage it says nothing of requests that the first one has.
    pub incarnation: Id,
    pub slot: Slot,
    pub generation: Generation,
}

/// One connection after the handshake.
#[derive(Debug)]
pub struct Connection {
    pub negotiated: Negotiated,
    pub socket: OwnedFd,
    /// A Unix socket or an address of this host: `zero_copy: auto` is off there.
    pub same_host: bool,
}

/// Why a node can't be reached or used. The text stands alone: what happened, where, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ConnectError {
    pub message: String,
}

/// Why the kernel refused. `reason` carries the extack text where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}: {reason}")]
pub struct KernelError {
    /// The operation and its object: "load the table of archive".
    pub what: String,
    pub errno: Option<Errno>,
    pub reason: String,
}

impl KernelError {
    pub fn new(what: impl Into<String>, errno: Option<Errno>, reason: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            errno,
            reason: reason.into(),
        }
    }

    pub fn is(&self, errno: Errno) -> bool {
        self.errno == Some(errno)
    }
}

/// A dm UUID; ours begin with `DST-`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DmUuid(pub String);

impl DmUuid {
    pub const PREFIX: &'static str = "DST-";

    /// The UUID that dstd gives a device.
    pub fn of(device: &DeviceName) -> Self {
        Self(format!("{}{device}", Self::PREFIX))
    }

    /// The same where a device that was renamed still has that one: `DST-name.2`, and so on.
    pub fn free<'a>(device: &DeviceName, taken: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let first = Self::of(device);
        let is_free = |uuid: &Self| !taken.clone().any(|other| other == uuid);
        let others = (2_u32..).map(|n| Self(format!("{}.{n}", first.0)));
        let mut all = std::iter::once(first.clone()).chain(others);
        all.find(is_free).unwrap_or(first)
    }

    pub fn is_ours(&self) -> bool {
        self.0.starts_with(Self::PREFIX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// Whether a suspend waits for I/O that is under way, or pushes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    Wait,
    NoFlush,
}

/// A dm device as the kernel shows it. `name` is text: devices of others needn't hold to our rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDevice {
    pub name: String,
    pub uuid: DmUuid,
    pub number: DeviceNumber,
    pub suspended: bool,
    pub access: Access,
    pub open_count: u32,
    /// The live table (STATUSTYPE_TABLE) of a device of ours; empty where there is none.
    pub lines: Vec<Line>,
    /// The inactive table's lines, where one is loaded.
    pub inactive: Option<Vec<Line>>,
}

/// A local block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalDevice {
    pub number: DeviceNumber,
    pub size: Sectors,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Waiting,
    Live,
    Degraded,
    Lost,
    Failed,
    Mismatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Live,
    Draining,
    Lost,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ObservedLink {
    pub slot: Slot,
    pub generation: Generation,
    pub state: LinkState,
    pub in_flight: u32,
    pub sent: Bytes,
    pub received: Bytes,
}

/// A lost link whose server may still apply what it carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OldLink {
    pub slot: Slot,
    pub generation: Generation,
    /// Ranges that it may still write.
    pub ambiguous: u32,
    /// Older links that this one stands for, too; then only time or the operator fences it.
    pub merged: u32,
    /// Until `quiesce` takes it as fenced; `None`: it isn't counted yet, or never is.
    #[serde(rename = "quiet_in_ms")]
    #[schemars(with = "Option<u32>")]
    pub quiet_in: Option<Millis>,
}

/// Everything NODE_GET tells. `negotiated` is there after the first LINKS_SET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ObservedNode {
    pub name: NodeName,
    pub state: NodeState,
    pub reason: Option<String>,
    /// Whose links these are. Not shown: who knows it can speak for this machine.
    #[serde(skip)]
    pub session: Option<Session>,
    pub negotiated: Option<Negotiated>,
    pub zero_copy: Option<bool>,
    pub wanted: u32,
    pub live: u32,
    pub in_flight: u32,
    pub queued: u32,
    pub errors: u64,
    pub reconnects: u64,
    pub generation: Generation,
    pub need_size: Bytes,
    pub need_block: u32,
    pub need_write: bool,
    /// Acknowledged and not yet known durable; 0: clean.
    pub writes: u64,
    pub links: Vec<ObservedLink>,
    #[serde(flatten)]
    pub conduct: Conduct,
    /// Ranges that old links may still write.
    pub ambiguous: u32,
    /// Requests that wait for a fence.
    pub barred: u32,
    /// Not there where the module is older and doesn't say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
    /// Requests sent as part of another's wire request; not there where the module is older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged: Option<u64>,
    /// Not there where the module is older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_time: Option<QueueTime>,
    pub unfenced: Vec<OldLink>,
}

/// The request FENCED: what can't be applied any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// The server's word, about one link of this session.
    Link {
        session: Session,
        slot: Slot,
        generation: Generation,
    },
    /// The operator's word, about all old links.
    All,
}

/// A socket for a slot.
#[derive(Debug)]
pub struct NewLink {
    pub slot: Slot,
    pub generation: Generation,
    pub socket: OwnedFd,
}

/// The request LINKS_SET.
#[derive(Debug)]
pub struct LinksSet {
    pub node: NodeName,
    pub session: Session,
    pub negotiated: Negotiated,
    pub wanted: u32,
    pub zero_copy: bool,
    pub links: Vec<NewLink>,
}

/// What the kernel tells on its own. Only a reason to look: the loop observes afresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    Node {
        node: NodeName,
        state: NodeState,
        reason: Option<String>,
    },
    Link {
        node: NodeName,
        slot: Slot,
        generation: Generation,
        state: LinkState,
        errno: Option<Errno>,
        reason: Option<String>,
    },
    /// A lost link has left ambiguous ranges, or (0) is fenced.
    Fence {
        node: NodeName,
        slot: Slot,
        generation: Generation,
        ambiguous: u32,
        reason: Option<String>,
    },
    /// Acknowledged writes are lost: the server is another incarnation.
    DataLost { node: NodeName, writes: u64 },
    /// Events were lost.
    Overflow,
}
