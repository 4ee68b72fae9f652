//! Replies as bytes: simple, structured and extended (NBD doc/proto.md, transmission phase).
//!
//! Owns the framing of each reply and the translation of the system's errors into the protocol's.
//! Called by a link with room in an output block. Pure: writes into the slice it is given, nothing else.

use std::io;

use nix::errno::Errno;

use super::super::backend::Run;
use super::super::link::ReplyMode;
use super::request::{EINVAL, EIO, ENOMEM, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, ESHUTDOWN, Refusal};

pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
pub const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

pub const FLAG_DONE: u16 = 1;

pub const TYPE_NONE: u16 = 0;
pub const TYPE_OFFSET_DATA: u16 = 1;
pub const TYPE_BLOCK_STATUS: u16 = 5;
pub const TYPE_BLOCK_STATUS_EXT: u16 = 6;
pub const TYPE_ERROR: u16 = 1 << 15 | 1;

pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 2;

/// No reply without data is longer than this, runs of a block status apart.
pub const SHORT_REPLY: usize = 192;

/// Which request is answered, and how.
#[derive(Debug, Clone, Copy)]
pub struct To {
    pub mode: ReplyMode,
    pub cookie: u64,
    /// The request's own; extended replies repeat it.
    pub offset: u64,
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn chunk(&mut self, to: To, flags: u16, kind: u16, payload: u64) {
        let extended = to.mode == ReplyMode::Extended;
        let magic = if extended {
            EXTENDED_MAGIC
        } else {
            STRUCTURED_MAGIC
        };
        self.put(&magic.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&to.cookie.to_be_bytes());
        if extended {
            self.put(&to.offset.to_be_bytes());
            self.put(&payload.to_be_bytes());
        } else {
            // The largest payload is max_payload + 8, far below 4 GiB.
            self.put(&(payload as u32).to_be_bytes());
        }
    }

    fn simple(&mut self, errno: u32, cookie: u64) {
        self.put(&SIMPLE_MAGIC.to_be_bytes());
        self.put(&errno.to_be_bytes());
        self.put(&cookie.to_be_bytes());
    }
}

/// How long the header before a read's data is.
pub fn read_head_len(mode: ReplyMode) -> usize {
    match mode {
        ReplyMode::Simple => 16,
        ReplyMode::Structured => 20 + 8,
        ReplyMode::Extended => 32 + 8,
    }
}

/// The header of `length` bytes of data from `at`; fills exactly [`read_head_len`].
pub fn read_head(out: &mut [u8], to: To, at: u64, length: usize, done: bool) -> usize {
    let mut writer = Writer { out, at: 0 };
    if to.mode == ReplyMode::Simple {
        writer.simple(0, to.cookie);
    } else {
        let flags = if done { FLAG_DONE } else { 0 };
        writer.chunk(to, flags, TYPE_OFFSET_DATA, length as u64 + 8);
        writer.put(&at.to_be_bytes());
    }
    writer.at
}

/// Success without data.
pub fn done(out: &mut [u8], to: To) -> usize {
    let mut writer = Writer { out, at: 0 };
    match to.mode {
        // A structured reply may be simple where it has no data; it is the shorter one.
        ReplyMode::Simple | ReplyMode::Structured => writer.simple(0, to.cookie),
        ReplyMode::Extended => writer.chunk(to, FLAG_DONE, TYPE_NONE, 0),
    }
    writer.at
}

pub fn error(out: &mut [u8], to: To, refusal: Refusal) -> usize {
    let mut writer = Writer { out, at: 0 };
    if to.mode == ReplyMode::Simple {
        writer.simple(refusal.errno, to.cookie);
        return writer.at;
    }
    let text = &refusal.text.as_bytes()[..refusal.text.len().min(128)];
    writer.chunk(to, FLAG_DONE, TYPE_ERROR, 6 + text.len() as u64);
    writer.put(&refusal.errno.to_be_bytes());
    writer.put(&(text.len() as u16).to_be_bytes());
    writer.put(text);
    writer.at
}

pub fn block_status_len(mode: ReplyMode, runs: usize) -> usize {
    match mode {
        ReplyMode::Extended => 32 + 8 + 16 * runs,
        _ => 20 + 4 + 8 * runs,
    }
}

/// Fills exactly [`block_status_len`]; no run is longer than the request, so compact lengths fit 32 bits.
pub fn block_status(out: &mut [u8], to: To, context: u32, runs: &[Run]) -> usize {
    let mut writer = Writer { out, at: 0 };
    let hole = |run: &Run| if run.hole { STATE_HOLE } else { 0 };
    let zero = |run: &Run| if run.zero { STATE_ZERO } else { 0 };
    let state = |run: &Run| hole(run) | zero(run);
    if to.mode == ReplyMode::Extended {
        let payload = 8 + 16 * runs.len() as u64;
        writer.chunk(to, FLAG_DONE, TYPE_BLOCK_STATUS_EXT, payload);
        writer.put(&context.to_be_bytes());
        writer.put(&(runs.len() as u32).to_be_bytes());
        for run in runs {
            writer.put(&run.length.to_be_bytes());
            writer.put(&u64::from(state(run)).to_be_bytes());
        }
    } else {
        let payload = 4 + 8 * runs.len() as u64;
        writer.chunk(to, FLAG_DONE, TYPE_BLOCK_STATUS, payload);
        writer.put(&context.to_be_bytes());
        for run in runs {
            writer.put(&(run.length as u32).to_be_bytes());
            writer.put(&state(run).to_be_bytes());
        }
    }
    writer.at
}

/// The protocol's error for the system's.
pub fn refusal_of(error: &io::Error) -> Refusal {
    let Some(errno) = error.raw_os_error() else {
        return Refusal::new(EIO, "the storage failed");
    };
    match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES | Errno::EROFS => {
            Refusal::new(EPERM, "the storage can't be written")
        }
        Errno::ENOMEM => Refusal::new(ENOMEM, "the server lacks memory"),
        Errno::EINVAL => Refusal::new(EINVAL, "the storage refused the request"),
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Refusal::new(ENOSPC, "the storage is full"),
        Errno::EOVERFLOW => Refusal::new(EOVERFLOW, "the request is too large"),
        Errno::EOPNOTSUPP => Refusal::new(ENOTSUP, "the storage can't do that"),
        Errno::ESHUTDOWN => Refusal::new(ESHUTDOWN, "the server is shutting down"),
        _ => Refusal::new(EIO, "the storage failed"),
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
