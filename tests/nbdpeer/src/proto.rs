//! The numbers of the NBD protocol (doc/proto.md of the NBD project) and of DST's two private options.
//!
//! Written down a second time on purpose: a number that is wrong in dstd must not be wrong in its tests, too.

pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const REQUEST_MAGIC_EXT: u32 = 0x21e4_1c71;
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
pub const CHUNK_MAGIC_EXT: u32 = 0x6e8a_278c;

pub const FIXED_NEWSTYLE: u32 = 1;
pub const NO_ZEROES: u32 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META: u32 = 9;
pub const OPT_SET_META: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;
pub const OPT_SESSION: u32 = 0x4453_5401;
pub const OPT_FENCE: u32 = 0x4453_5402;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META: u32 = 4;
pub const REP_SESSION: u32 = 0x4453_5401;
pub const ERROR_BIT: u32 = 1 << 31;
pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
pub const ERR_POLICY: u32 = ERROR_BIT | 2;
pub const ERR_INVALID: u32 = ERROR_BIT | 3;
pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const HAS_FLAGS: u16 = 1;
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
pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

pub const CHUNK_DONE: u16 = 1;
pub const CHUNK_NONE: u16 = 0;
pub const CHUNK_DATA: u16 = 1;
pub const CHUNK_HOLE: u16 = 2;
pub const CHUNK_STATUS: u16 = 5;
pub const CHUNK_STATUS_EXT: u16 = 6;
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const ENOMEM: u32 = 12;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

pub fn errno_name(errno: u32) -> String {
    let name = match errno {
        EPERM => "EPERM",
        EIO => "EIO",
        ENOMEM => "ENOMEM",
        EINVAL => "EINVAL",
        ENOSPC => "ENOSPC",
        EOVERFLOW => "EOVERFLOW",
        ENOTSUP => "ENOTSUP",
        ESHUTDOWN => "ESHUTDOWN",
        other => return format!("errno {other}, which NBD doesn't know"),
    };
    name.to_owned()
}

pub fn reply_name(kind: u32) -> String {
    let name = match kind {
        REP_ACK => "ACK",
        ERR_UNSUP => "UNSUP",
        ERR_POLICY => "POLICY",
        ERR_INVALID => "INVALID",
        ERR_UNKNOWN => "UNKNOWN",
        ERR_SHUTDOWN => "SHUTDOWN",
        ERR_TOO_BIG => "TOO_BIG",
        other => return format!("reply type {other:#x}"),
    };
    name.to_owned()
}

/// Reads big-endian numbers off a message; what isn't there is a broken protocol.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> crate::Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            crate::PeerError::Protocol(format!("a message lacks {} bytes", count - self.0.len()))
        })?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> crate::Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn id(&mut self) -> crate::Result<[u8; 16]> {
        self.array()
    }

    pub fn u16(&mut self) -> crate::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> crate::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> crate::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
