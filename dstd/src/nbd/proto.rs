//! The NBD handshake's numbers and messages (doc/proto.md of the NBD project).
//!
//! Owns encoding and decoding of greetings, options and option replies, as pure functions.
//! Called by the client (`nbd::client`) and by the node server's handshake (`export`). Never does I/O.

use crate::export::wire;
use crate::kernel::NbdFlags;

/// First eight bytes of every server: "NBDMAGIC".
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and the start of each option: "IHAVEOPT".
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Second eight bytes of an oldstyle server.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The start of each option reply.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The start of each request in transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const REP_ERROR_BIT: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
pub const REP_ERR_POLICY: u32 = REP_ERROR_BIT | 2;
pub const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
pub const REP_ERR_PLATFORM: u32 = REP_ERROR_BIT | 4;
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR_BIT | 8;
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT | 9;
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR_BIT | 10;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const CMD_DISC: u16 = 2;

/// Zeroes after an EXPORT_NAME answer, unless both sides agreed to leave them out.
pub const EXPORT_NAME_ZEROES: usize = 124;
pub const REPLY_HEADER_LEN: usize = 20;
pub const OPTION_HEADER_LEN: usize = 16;
/// No string of the protocol is longer, in bytes.
pub const STRING_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    pub magic: u64,
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl ReplyHeader {
    pub fn decode(bytes: &[u8; REPLY_HEADER_LEN]) -> Self {
        ReplyHeader {
            magic: u64_at(bytes, 0),
            option: u32_at(bytes, 8),
            kind: u32_at(bytes, 12),
            length: u32_at(bytes, 16),
        }
    }

    pub fn encode(self) -> [u8; REPLY_HEADER_LEN] {
        let mut out = [0; REPLY_HEADER_LEN];
        out[..8].copy_from_slice(&self.magic.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.kind.to_be_bytes());
        out[16..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    pub fn is_error(self) -> bool {
        self.kind & REP_ERROR_BIT != 0
    }
}

/// What begins each option, after its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    pub length: u32,
}

impl OptionHeader {
    /// `None`: that isn't the start of an option.
    pub fn decode(bytes: &[u8; OPTION_HEADER_LEN]) -> Option<Self> {
        (u64_at(bytes, 0) == IHAVEOPT).then(|| OptionHeader {
            option: u32_at(bytes, 8),
            length: u32_at(bytes, 12),
        })
    }
}

/// One INFO reply; `Other` is what this client didn't ask for and ignores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    Export {
        size: u64,
        flags: NbdFlags,
    },
    Name(String),
    Description(String),
    BlockSize {
        minimum: u32,
        preferred: u32,
        maximum: u32,
    },
    Other(u16),
}

impl Info {
    /// `None`: the length doesn't fit the type.
    pub fn decode(data: &[u8]) -> Option<Info> {
        if data.len() < 2 {
            return None;
        }
        let body = &data[2..];
        match u16_at(data, 0) {
            INFO_EXPORT if body.len() == 10 => Some(Info::Export {
                size: u64_at(body, 0),
                flags: NbdFlags(u16_at(body, 8)),
            }),
            INFO_BLOCK_SIZE if body.len() == 12 => Some(Info::BlockSize {
                minimum: u32_at(body, 0),
                preferred: u32_at(body, 4),
                maximum: u32_at(body, 8),
            }),
            INFO_EXPORT | INFO_BLOCK_SIZE => None,
            INFO_NAME => Some(Info::Name(printable(body))),
            INFO_DESCRIPTION => Some(Info::Description(printable(body))),
            other => Some(Info::Other(other)),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Info::Export { size, flags } => {
                out.extend(INFO_EXPORT.to_be_bytes());
                out.extend(size.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
            }
            Info::Name(name) => {
                out.extend(INFO_NAME.to_be_bytes());
                out.extend(name.as_bytes());
            }
            Info::Description(text) => {
                out.extend(INFO_DESCRIPTION.to_be_bytes());
                out.extend(text.as_bytes());
            }
            Info::BlockSize {
                minimum,
                preferred,
                maximum,
            } => {
                out.extend(INFO_BLOCK_SIZE.to_be_bytes());
                for n in [minimum, preferred, maximum] {
                    out.extend(n.to_be_bytes());
                }
            }
            Info::Other(kind) => out.extend(kind.to_be_bytes()),
        }
        out
    }
}

/// `data` is far below 4 GiB: an export name and a few numbers.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + data.len());
    out.extend(IHAVEOPT.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// The data of OPT_GO and OPT_INFO.
pub fn encode_info_request(export: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + export.len() + 2 * wanted.len());
    out.extend((export.len() as u32).to_be_bytes());
    out.extend(export.as_bytes());
    out.extend((wanted.len() as u16).to_be_bytes());
    for kind in wanted {
        out.extend(kind.to_be_bytes());
    }
    out
}

/// The data of OPT_GO and OPT_INFO, as the server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    pub name: String,
    pub wanted: Vec<u16>,
}

impl InfoRequest {
    /// `None`: lengths that don't add up, or a name that is no UTF-8.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (name, rest) = take_string(data)?;
        let (count, kinds) = rest.split_at_checked(2)?;
        if kinds.len() != 2 * usize::from(u16_at(count, 0)) {
            return None;
        }
        let wanted = kinds.chunks_exact(2).map(|kind| u16_at(kind, 0)).collect();
        Some(InfoRequest { name, wanted })
    }

    pub fn wants(&self, kind: u16) -> bool {
        self.wanted.contains(&kind)
    }
}

/// The data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaRequest {
    pub name: String,
    pub queries: Vec<String>,
}

impl MetaRequest {
    /// `None`: lengths that don't add up, or a text that is no UTF-8.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (name, rest) = take_string(data)?;
        let (count, mut rest) = rest.split_at_checked(4)?;
        let mut queries = Vec::new();
        // Each query takes four bytes at least, so a count that lies ends at the end of the data.
        for _ in 0..u32_at(count, 0) {
            let (query, after) = take_string(rest)?;
            queries.push(query);
            rest = after;
        }
        rest.is_empty().then_some(MetaRequest { name, queries })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = string(&self.name);
        out.extend((self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            out.extend(string(query));
        }
        out
    }
}

/// One option reply, whole. `data` is far below 4 GiB.
pub fn encode_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let header = ReplyHeader {
        magic: REPLY_MAGIC,
        option,
        kind,
        length: data.len() as u32,
    };
    [&header.encode()[..], data].concat()
}

/// The data of a REP_SERVER reply: a name, and words about it for people.
pub fn encode_server_reply(name: &str, words: &str) -> Vec<u8> {
    let mut out = string(name);
    out.extend(words.as_bytes());
    out
}

/// The data of a REP_META_CONTEXT reply.
pub fn encode_meta_context(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// A text and its length before it.
fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// A text with its length before it, and what follows; `None`: it doesn't fit, is too long, or is no UTF-8.
fn take_string(data: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = data.split_at_checked(4)?;
    let length = u32_at(length, 0) as usize;
    if length > STRING_MAX {
        return None;
    }
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?.to_owned(), rest))
}

/// The export name in a REP_SERVER reply; `None`: its lengths don't fit.
pub fn decode_server_reply(data: &[u8]) -> Option<String> {
    if data.len() < 4 {
        return None;
    }
    let name = data[4..].get(..u32_at(data, 0) as usize)?;
    Some(printable(name))
}

/// The request that ends the transmission phase.
pub fn encode_disconnect() -> [u8; 28] {
    let mut out = [0; 28];
    out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out[6..8].copy_from_slice(&CMD_DISC.to_be_bytes());
    out
}

/// A server's text is shown to people: no control characters reach a terminal or a log.
pub fn printable(bytes: &[u8]) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = String::from_utf8_lossy(bytes).chars().map(clean).collect();
    text.trim().to_owned()
}

pub fn option_name(option: u32) -> &'static str {
    match option {
        OPT_EXPORT_NAME => "NBD_OPT_EXPORT_NAME",
        OPT_ABORT => "NBD_OPT_ABORT",
        OPT_LIST => "NBD_OPT_LIST",
        OPT_STARTTLS => "NBD_OPT_STARTTLS",
        OPT_INFO => "NBD_OPT_INFO",
        OPT_GO => "NBD_OPT_GO",
        OPT_STRUCTURED_REPLY => "NBD_OPT_STRUCTURED_REPLY",
        OPT_LIST_META_CONTEXT => "NBD_OPT_LIST_META_CONTEXT",
        OPT_SET_META_CONTEXT => "NBD_OPT_SET_META_CONTEXT",
        OPT_EXTENDED_HEADERS => "NBD_OPT_EXTENDED_HEADERS",
        wire::OPT_SESSION => "the SESSION option",
        wire::OPT_FENCE => "the FENCE option",
        _ => "an unknown option",
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..at + 2]
        .iter()
        .fold(0, |n, b| n << 8 | u16::from(*b))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, b| n << 8 | u32::from(*b))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_the_standards_bytes() {
        assert_eq!(&NBDMAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&IHAVEOPT.to_be_bytes(), b"IHAVEOPT");
        let go = encode_option(OPT_GO, &encode_info_request("ab", &[INFO_BLOCK_SIZE]));
        assert_eq!(go, b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02ab\0\x01\0\x03");
        let disc = encode_disconnect();
        assert_eq!(&disc[..8], b"\x25\x60\x95\x13\0\0\0\x02");
        assert_eq!(disc[8..], [0; 20]);
    }

    #[test]
    fn control_characters_of_a_server_never_get_through() {
        assert_eq!(printable(b" no\x1b[2J\nway\xff "), "no [2J way\u{fffd}");
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(Info::decode(&[0]), None);
        assert_eq!(Info::decode(&[0, 0, 1]), None);
        assert_eq!(Info::decode(&[0, 3, 1, 2, 3]), None);
        assert_eq!(decode_server_reply(&[0, 0, 0, 5, b'a']), None);
        assert_eq!(decode_server_reply(b"\0\0\0\x01ab"), Some("a".into()));
    }

    fn any_info() -> impl Strategy<Value = Info> {
        prop_oneof![
            (any::<u64>(), any::<u16>()).prop_map(|(size, f)| Info::Export {
                size,
                flags: NbdFlags(f)
            }),
            "[a-z]{0,30}".prop_map(Info::Name),
            "[a-z]{0,30}".prop_map(Info::Description),
            any::<[u32; 3]>().prop_map(|[minimum, preferred, maximum]| Info::BlockSize {
                minimum,
                preferred,
                maximum
            }),
            (4u16..).prop_map(Info::Other),
        ]
    }

    #[test]
    fn requests_whose_lengths_lie_are_refused() {
        let request = encode_info_request("ab", &[3, 0]);
        let told = InfoRequest {
            name: "ab".into(),
            wanted: vec![3, 0],
        };
        assert_eq!(InfoRequest::decode(&request), Some(told));
        for cut in 0..request.len() {
            assert_eq!(InfoRequest::decode(&request[..cut]), None, "{cut}");
        }
        assert_eq!(InfoRequest::decode(&[&request[..], &[0]].concat()), None);
        assert_eq!(InfoRequest::decode(b"\0\0\0\x01\xff\0\0"), None);
        let meta = MetaRequest {
            name: "ab".into(),
            queries: vec!["base:".into(), "x".into()],
        };
        let request = meta.encode();
        assert_eq!(MetaRequest::decode(&request), Some(meta));
        for cut in 0..request.len() {
            assert_eq!(MetaRequest::decode(&request[..cut]), None, "{cut}");
        }
        assert_eq!(MetaRequest::decode(&[&request[..], &[0]].concat()), None);
        assert_eq!(MetaRequest::decode(b"\0\0\0\0\xff\xff\xff\xff"), None);
    }

    #[test]
    fn no_string_is_longer_than_the_protocol_has_it() {
        let name = "n".repeat(STRING_MAX);
        let taken = take_string(&string(&name)).map(|(name, _)| name.len());
        assert_eq!(taken, Some(STRING_MAX));
        assert_eq!(take_string(&string(&format!("{name}n"))), None);
    }

    proptest! {
        #[test]
        fn infos_survive_the_wire(info in any_info()) {
            prop_assert_eq!(Info::decode(&info.encode()), Some(info));
        }

        #[test]
        fn headers_survive_the_wire(option: u32, kind: u32, length: u32) {
            let header = ReplyHeader { magic: REPLY_MAGIC, option, kind, length };
            prop_assert_eq!(ReplyHeader::decode(&header.encode()), header);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(data: Vec<u8>) {
            let _ = Info::decode(&data);
            let _ = InfoRequest::decode(&data);
            let _ = MetaRequest::decode(&data);
            let _ = decode_server_reply(&data);
        }
    }
}
