//! What can go wrong between an address and a negotiated socket, in words for people.
//!
//! Owns `NbdError`. Made by `client`, `limits` and `socket`; shown by the CLI, the log and
//! `status`. Texts of a server are cleaned before they get here.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::proto;
use crate::units::{Id, Slot};

#[derive(Debug, Error)]
pub enum NbdError {
    #[error("can't resolve host `{host}`: {error}")]
    Resolve { host: String, error: io::Error },
    #[error("can't connect to {address}: {}", .tried.join("; "))]
    Connect { address: String, tried: Vec<String> },
    #[error("can't set {option} on the socket: {error}")]
    SocketOption {
        option: &'static str,
        error: io::Error,
    },
    #[error("no answer within {}: {what}", humane(*.after))]
    Timeout { what: String, after: Duration },
    #[error("the server closed the connection while {0}")]
    Closed(String),
    #[error("the connection broke while {what}: {error}")]
    Broken { what: String, error: io::Error },
    #[error("this isn't an NBD server: it greeted with {0}; check host and port")]
    NotNbd(String),
    #[error(
        "the server speaks oldstyle NBD, which the protocol has dropped; start it in newstyle \
         (nbdkit without -o, nbd-server 3.10 or later)"
    )]
    Oldstyle,
    #[error("the server's answer to {option} is no NBD: {why}")]
    BadReply { option: &'static str, why: String },
    #[error(
        "the server has no export `{export}`{}{}", quoted(.text), hint(.known)
    )]
    UnknownExport {
        export: String,
        text: String,
        known: Vec<String>,
    },
    #[error(
        "the server closed the connection when asked for export `{0}`; it can't say why, \
         most likely it has no such export or wants TLS, which is not supported yet"
    )]
    ExportNameRefused(String),
    #[error("the server wants TLS, which is not supported yet (a later step){}", quoted(.0))]
    TlsRequired(String),
    #[error("the server's policy forbids export `{export}`{}", quoted(.text))]
    Policy { export: String, text: String },
    #[error(
        "export `{export}` has one writer at a time, and it isn't this machine{}; `dstd apply --steal NODE` \
         takes it from the holder", quoted(.text)
    )]
    Held { export: String, text: String },
    #[error(
        "no answer within {}: the server still works on requests of the lost link in slot {slot}; what \
         overlaps them waits until it has finished", humane(*.after)
    )]
    FenceUnanswered { slot: Slot, after: Duration },
    #[error("the server knows no fences: it isn't a `dstd export`")]
    NoFences,
    #[error("the address leads to another export (identity {found}) than before ({expected})")]
    OtherExport { expected: Id, found: Id },
    #[error(
        "the server isn't the one that had the link: its machine was started anew, or it is another one with the same storage (incarnation {found} instead of {expected})"
    )]
    OtherIncarnation { expected: Id, found: Id },
    #[error("the server is shutting down{}", quoted(.0))]
    ShuttingDown(String),
    #[error("the server refused {option}: {kind}{}", quoted(.text))]
    Refused {
        option: &'static str,
        kind: String,
        text: String,
    },
    #[error(
        "the server's block sizes (minimum {minimum}, preferred {preferred}, maximum {maximum}) \
         break the NBD protocol: {why}"
    )]
    BadBlockSizes {
        minimum: u32,
        preferred: u32,
        maximum: u32,
        why: String,
    },
    #[error("the server says the export has {0} bytes; more than 2^63 - 1 isn't addressable")]
    ImpossibleSize(u64),
    #[error("the server's transmission flags are {0:#06x}; bit 0 (NBD_FLAG_HAS_FLAGS) must be set")]
    NoFlags(u16),
}

impl NbdError {
    /// An error reply of the server, in words.
    pub fn from_reply(option: u32, kind: u32, text: String, export: &str) -> NbdError {
        let export = export.to_owned();
        let option = proto::option_name(option);
        let refused = |kind: &str, text| NbdError::Refused {
            option,
            kind: kind.to_owned(),
            text,
        };
        match kind {
            proto::REP_ERR_UNKNOWN => NbdError::UnknownExport {
                export,
                text,
                known: Vec::new(),
            },
            proto::REP_ERR_POLICY => NbdError::Policy { export, text },
            proto::REP_ERR_TLS_REQD => NbdError::TlsRequired(text),
            proto::REP_ERR_SHUTDOWN => NbdError::ShuttingDown(text),
            proto::REP_ERR_UNSUP => refused("it doesn't know this option", text),
            proto::REP_ERR_INVALID => refused("it says the request is malformed", text),
            proto::REP_ERR_PLATFORM => refused("not possible on its platform", text),
            proto::REP_ERR_BLOCK_SIZE_REQD => refused("it wants block sizes negotiated", text),
            proto::REP_ERR_TOO_BIG => refused("the request or its answer is too big", text),
            other => refused(&format!("error {other:#010x}"), text),
        }
    }
}

/// The server's own words, as an appendix.
fn quoted(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("; the server says: {text}")
    }
}

fn hint(known: &[String]) -> String {
    const SHOWN: usize = 10;
    if known.is_empty() {
        return String::new();
    }
    let names: Vec<String> = known.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    let more = known.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("; exports: {}{more}", names.join(", "))
}

/// Seconds with at most one decimal: 10 s, 0.5 s.
fn humane(time: Duration) -> String {
    let tenths = time.as_millis().div_ceil(100);
    match tenths % 10 {
        0 => format!("{} s", tenths / 10),
        part => format!("{}.{part} s", tenths / 10),
    }
}
