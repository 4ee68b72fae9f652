//! One request: its bytes, and whether it may be served (NBD doc/proto.md, transmission phase).
//!
//! Owns decoding and every rule that needs no I/O: flags, bounds, alignment, read-only, sizes.
//! Called by a link for each header. Pure: never touches a socket, a buffer or the storage.

use super::super::link::ReplyMode;
use crate::kernel::NbdFlags;
use crate::nbd::proto::{REQUEST_MAGIC, u16_at, u32_at, u64_at};

pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub const COMPACT_LEN: usize = 28;
pub const EXTENDED_LEN: usize = 32;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const FLAG_FUA: u16 = 1 << 0;
pub const FLAG_NO_HOLE: u16 = 1 << 1;
pub const FLAG_DF: u16 = 1 << 2;
pub const FLAG_REQ_ONE: u16 = 1 << 3;
pub const FLAG_FAST_ZERO: u16 = 1 << 4;
pub const FLAG_PAYLOAD_LEN: u16 = 1 << 5;

// Transmission flags that `NbdFlags` has no name for: the kernel target doesn't use them.
pub const SEND_DF: u16 = 1 << 7;
pub const SEND_CACHE: u16 = 1 << 10;
pub const SEND_FAST_ZERO: u16 = 1 << 11;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const ENOMEM: u32 = 12;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// A refused WRITE whose payload is at most this many times the largest one is read and dropped;
/// a larger one ends the link.
const DRAIN_FACTOR: u64 = 2;

pub fn header_len(mode: ReplyMode) -> usize {
    match mode {
        ReplyMode::Simple | ReplyMode::Structured => COMPACT_LEN,
        ReplyMode::Extended => EXTENDED_LEN,
    }
}

/// A request's header as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

impl Header {
    /// `bytes` holds at least [`header_len`]; `None`: the magic number is wrong, the stream can't be followed.
    pub fn decode(bytes: &[u8], mode: ReplyMode) -> Option<Header> {
        let (magic, length) = match mode {
            ReplyMode::Extended => (EXTENDED_REQUEST_MAGIC, u64_at(bytes, 24)),
            _ => (REQUEST_MAGIC, u64::from(u32_at(bytes, 24))),
        };
        (u32_at(bytes, 0) == magic).then(|| Header {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length,
        })
    }

    /// Of a header that isn't all there yet: it can still become one. Else a client that mistakes the mode would be
    /// waited for in vain.
    pub fn may_begin(bytes: &[u8], mode: ReplyMode) -> bool {
        let magic = match mode {
            ReplyMode::Extended => EXTENDED_REQUEST_MAGIC,
            _ => REQUEST_MAGIC,
        };
        let mut pairs = bytes.iter().zip(magic.to_be_bytes());
        pairs.all(|(found, right)| *found == right)
    }

    /// How many bytes of data follow it.
    pub fn payload(&self, mode: ReplyMode) -> u64 {
        // The flag says it in extended mode; but qemu (10.0) sends a WRITE's payload without it.
        let said = mode == ReplyMode::Extended && self.flags & FLAG_PAYLOAD_LEN != 0;
        if said || self.command == CMD_WRITE {
            self.length
        } else {
            0
        }
    }
}

/// An error as the client is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub errno: u32,
    pub text: &'static str,
}

impl Refusal {
    pub const fn new(errno: u32, text: &'static str) -> Refusal {
        Refusal { errno, text }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read { whole: bool },
    Write,
    Flush,
    Trim,
    Zero { keep: bool, fast: bool },
    Cache,
    Status { one: bool },
}

impl Command {
    /// Needs the writer role.
    pub fn modifies(self) -> bool {
        matches!(self, Command::Write | Command::Trim | Command::Zero { .. })
    }
}

/// A request that may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub fua: bool,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Serve(Request),
    /// Answered with an error after `payload` bytes were read and dropped.
    Refuse {
        refusal: Refusal,
        payload: u64,
    },
    Disconnect,
    /// So far from the protocol that the link ends.
    Fatal(&'static str),
}

/// What holds for all requests of a link.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub mode: ReplyMode,
    pub size: u64,
    pub min_block: u32,
    pub max_payload: u32,
    pub read_only: bool,
    pub flags: NbdFlags,
    pub block_status: bool,
}

impl Rules {
    pub fn judge(&self, header: &Header) -> Verdict {
        if header.command == CMD_DISC {
            return Verdict::Disconnect;
        }
        let payload = header.payload(self.mode);
        if payload > u64::from(self.max_payload) {
            return self.oversize(payload);
        }
        match self.check(header) {
            Ok(command) => Verdict::Serve(Request {
                command,
                fua: header.flags & FLAG_FUA != 0 && command.modifies(),
                cookie: header.cookie,
                offset: header.offset,
                length: header.length,
            }),
            Err(refusal) => Verdict::Refuse { refusal, payload },
        }
    }

    fn oversize(&self, payload: u64) -> Verdict {
        let drained = u64::from(self.max_payload) * DRAIN_FACTOR;
        if self.mode == ReplyMode::Extended || payload > drained {
            return Verdict::Fatal("a payload is larger than the server's limit");
        }
        let refusal = Refusal::new(EINVAL, "the payload is larger than the server's limit");
        Verdict::Refuse { refusal, payload }
    }

    fn check(&self, header: &Header) -> Result<Command, Refusal> {
        let command = self.command(header)?;
        if command.modifies() && self.read_only {
            return Err(Refusal::new(EPERM, "the export is read-only"));
        }
        if !self.flags.has(advertised_by(header.command)) && !self.always_served(command) {
            return Err(Refusal::new(EINVAL, "the command wasn't offered"));
        }
        if command == Command::Flush {
            return match (header.offset, header.length) {
                (0, 0) => Ok(command),
                _ => Err(Refusal::new(EINVAL, "FLUSH has no offset and no length")),
            };
        }
        self.check_range(header, command)?;
        Ok(command)
    }

    fn always_served(&self, command: Command) -> bool {
        match command {
            Command::Read { .. } | Command::Write => true,
            Command::Status { .. } => self.block_status,
            _ => false,
        }
    }

    fn command(&self, header: &Header) -> Result<Command, Refusal> {
        let flags = header.flags;
        let has = |flag| flags & flag != 0;
        let (command, own) = match header.command {
            CMD_READ => (
                Command::Read {
                    whole: has(FLAG_DF),
                },
                FLAG_DF,
            ),
            CMD_WRITE if self.mode == ReplyMode::Extended => (Command::Write, FLAG_PAYLOAD_LEN),
            CMD_WRITE => (Command::Write, 0),
            CMD_FLUSH => (Command::Flush, 0),
            CMD_TRIM => (Command::Trim, 0),
            CMD_CACHE => (Command::Cache, 0),
            CMD_WRITE_ZEROES => {
                let (keep, fast) = (has(FLAG_NO_HOLE), has(FLAG_FAST_ZERO));
                (Command::Zero { keep, fast }, FLAG_NO_HOLE | FLAG_FAST_ZERO)
            }
            CMD_BLOCK_STATUS => (
                Command::Status {
                    one: has(FLAG_REQ_ONE),
                },
                FLAG_REQ_ONE,
            ),
            _ => return Err(Refusal::new(EINVAL, "the command is unknown")),
        };
        // Where FUA was offered it must be taken with every command, also where it means nothing.
        let offered = [
            (NbdFlags::SEND_FUA, FLAG_FUA),
            (SEND_DF, FLAG_DF),
            (SEND_FAST_ZERO, FLAG_FAST_ZERO),
        ];
        let refused = offered
            .iter()
            .any(|(offer, flag)| has(*flag) && !self.flags.has(*offer));
        if refused || flags & !(own | FLAG_FUA) != 0 {
            return Err(Refusal::new(
                EINVAL,
                "a command flag is unknown or wasn't offered",
            ));
        }
        Ok(command)
    }

    fn check_range(&self, header: &Header, command: Command) -> Result<(), Refusal> {
        let Header { offset, length, .. } = *header;
        if length == 0 {
            return Err(Refusal::new(EINVAL, "the length is zero"));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            // Only what needs space can lack it; a TRIM or READ beyond the end is a mistake.
            let errno = match command {
                Command::Write | Command::Zero { .. } => ENOSPC,
                _ => EINVAL,
            };
            return Err(Refusal::new(errno, "the range ends beyond the export"));
        }
        let block = u64::from(self.min_block.max(1));
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(Refusal::new(
                EINVAL,
                "the range isn't aligned to the minimum block size",
            ));
        }
        if matches!(command, Command::Read { .. }) && length > u64::from(self.max_payload) {
            return Err(Refusal::new(
                EOVERFLOW,
                "the READ is larger than the server's limit",
            ));
        }
        Ok(())
    }
}

/// The transmission flag that offers a command; 0 matches none.
fn advertised_by(command: u16) -> u16 {
    match command {
        CMD_FLUSH => NbdFlags::SEND_FLUSH,
        CMD_TRIM => NbdFlags::SEND_TRIM,
        CMD_WRITE_ZEROES => NbdFlags::SEND_WRITE_ZEROES,
        CMD_CACHE => SEND_CACHE,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
