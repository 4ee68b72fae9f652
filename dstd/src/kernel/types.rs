//! The values that pass between dstd and the kernel or a node.
//! Shared by real and simulated kernels, the planner and status. Plain data: no effects.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde::Serialize;
use thiserror::Error;

use crate::table::Line;
use crate::units::{
    Bytes, DeviceName, DeviceNumber, Generation, Id, NodeName, Sectors, Session, Slot,
};

/// NBD transmission flags, as the server sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    pub identity: Option<Id>,
    /// Another one when writes that weren't flushed can have been lost; only our own node server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// Links that this slot had up to this generation are lost: have the server end them for good first.
    pub fence: Option<Generation>,
    /// Take the writer role from whoever has it.
    pub steal: bool,
}

/// What became of the fence that [`Attach`] asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceAnswer {
    NotAsked,
    /// The server's word: no request of the slot's links up to this generation can be applied any more.
    Fenced(Generation),
    /// A stock server.
    Unsupported,
    /// Our own, with its reason.
    Refused(String),
}

/// One connection after the handshake.
#[derive(Debug)]
pub struct Connection {
    pub negotiated: Negotiated,
    pub fenced: FenceAnswer,
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

    pub fn is_ours(&self) -> bool {
        self.0.starts_with(Self::PREFIX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
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
    /// The live table (STATUSTYPE_TABLE); empty where there is none.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Waiting,
    Live,
    Degraded,
    Lost,
    Failed,
    Mismatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Live,
    Draining,
    Lost,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObservedLink {
    pub slot: Slot,
    pub generation: Generation,
    pub state: LinkState,
    pub in_flight: u32,
    pub sent: Bytes,
    pub received: Bytes,
}

/// Everything NODE_GET tells. `negotiated` is there after the first LINKS_SET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// Events were lost.
    Overflow,
}
