//! The private options SESSION and FENCE as bytes (docs/writer-role.md describes them).
//!
//! Owns their numbers, their layout and what is malformed. Called by the server's handshake and by the
//! client in `nbd`. Pure: never does I/O, never decides who may write, never panics on what a peer sent.

use thiserror::Error;

use crate::nbd::proto::{printable, u16_at, u32_at, u64_at};
use crate::units::{Id, Session};

pub const OPT_SESSION: u32 = 0x4453_5401;
pub const OPT_FENCE: u32 = 0x4453_5402;
/// The reply that carries [`SessionReply`].
pub const REP_SESSION: u32 = 0x4453_5401;

pub const VERSION: u16 = 1;
pub const FLAG_STEAL: u16 = 1 << 0;
pub const FLAG_IDENTIFY_ONLY: u16 = 1 << 1;
pub const FLAG_HELD_BY_OTHER: u16 = 1 << 0;

/// The protocol's longest string.
pub const NAME_MAX: usize = 4096;
/// A server remembers a number for each slot, so there must be an end to them.
pub const SLOTS_MAX: u32 = 256;

/// Up to the name's length, inclusive; both requests begin alike.
const REQUEST_HEAD: usize = 2 + 2 + 4 + 8 + 16 + 16 + 4;
const REPLY_HEAD: usize = 2 + 2 + 16 + 16 + 4;

/// Why bytes aren't what they should be. The server answers with this text and INVALID.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("{what} has {found} bytes, it should have {expected}")]
    Length {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("{what} is of version {found}; this side knows version {VERSION} only")]
    Version { what: &'static str, found: u16 },
    #[error("{what} has flags {found:#06x}; this side knows {known:#06x} only")]
    Flags {
        what: &'static str,
        found: u16,
        known: u16,
    },
    #[error("slot {0}: there are slots 0 to {last} only", last = SLOTS_MAX - 1)]
    Slot(u32),
    #[error("the export's name is longer than {NAME_MAX} bytes, or isn't UTF-8")]
    Name,
}

/// Says whose link this connection is about to become, or only asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRequest {
    /// Take the writer role from whoever has it.
    pub steal: bool,
    /// Take nothing: tell who the export is and who holds it.
    pub identify_only: bool,
    pub slot: u32,
    pub generation: u64,
    pub session: Session,
    pub export: String,
}

impl SessionRequest {
    /// The option's data.
    pub fn encode(&self) -> Vec<u8> {
        let steal = if self.steal { FLAG_STEAL } else { 0 };
        let ask = if self.identify_only {
            FLAG_IDENTIFY_ONLY
        } else {
            0
        };
        encode_request(
            steal | ask,
            self.slot,
            self.generation,
            self.session,
            &self.export,
        )
    }

    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let known = FLAG_STEAL | FLAG_IDENTIFY_ONLY;
        let request = Request::decode("the SESSION option", data, known)?;
        Ok(SessionRequest {
            steal: request.flags & FLAG_STEAL != 0,
            identify_only: request.flags & FLAG_IDENTIFY_ONLY != 0,
            slot: request.slot,
            generation: request.generation,
            session: request.session,
            export: request.export,
        })
    }
}

/// Asks that the session's links in this slot, up to this generation, be ended for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceRequest {
    pub slot: u32,
    pub generation: u64,
    pub session: Session,
    pub export: String,
}

impl FenceRequest {
    /// The option's data.
    pub fn encode(&self) -> Vec<u8> {
        encode_request(0, self.slot, self.generation, self.session, &self.export)
    }

    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let request = Request::decode("the FENCE option", data, 0)?;
        Ok(FenceRequest {
            slot: request.slot,
            generation: request.generation,
            session: request.session,
            export: request.export,
        })
    }
}

/// What a server says to SESSION before its ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReply {
    /// Another client may write to the export now.
    pub held_by_other: bool,
    pub identity: Id,
    pub incarnation: Id,
    /// Who may write, for people; empty: nobody.
    pub holder: String,
}

impl SessionReply {
    /// The data of a reply of type [`REP_SESSION`].
    pub fn encode(&self) -> Vec<u8> {
        let flags = if self.held_by_other {
            FLAG_HELD_BY_OTHER
        } else {
            0
        };
        let mut out = Vec::with_capacity(REPLY_HEAD + self.holder.len());
        out.extend(VERSION.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend(self.identity.0);
        out.extend(self.incarnation.0);
        out.extend((self.holder.len() as u32).to_be_bytes());
        out.extend(self.holder.as_bytes());
        out
    }

    /// Flags of a newer server are no obstacle: they may only add to what is told.
    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let what = "the answer to the SESSION option";
        if data.len() >= 2 && u16_at(data, 0) != VERSION {
            let found = u16_at(data, 0);
            return Err(WireError::Version { what, found });
        }
        let text = tail(what, data, REPLY_HEAD)?;
        Ok(SessionReply {
            held_by_other: u16_at(data, 2) & FLAG_HELD_BY_OTHER != 0,
            identity: id_at(data, 4),
            incarnation: id_at(data, 20),
            holder: printable(text),
        })
    }
}

/// What both requests hold.
struct Request {
    flags: u16,
    slot: u32,
    generation: u64,
    session: Session,
    export: String,
}

impl Request {
    fn decode(what: &'static str, data: &[u8], known: u16) -> Result<Self, WireError> {
        // First of all, as a newer version's length may differ.
        if data.len() >= 2 && u16_at(data, 0) != VERSION {
            let found = u16_at(data, 0);
            return Err(WireError::Version { what, found });
        }
        let name = tail(what, data, REQUEST_HEAD)?;
        let found = u16_at(data, 2);
        if found & !known != 0 {
            return Err(WireError::Flags { what, found, known });
        }
        let slot = u32_at(data, 4);
        if slot >= SLOTS_MAX {
            return Err(WireError::Slot(slot));
        }
        if name.len() > NAME_MAX {
            return Err(WireError::Name);
        }
        let export = std::str::from_utf8(name).map_err(|_| WireError::Name)?;
        Ok(Request {
            flags: found,
            slot,
            generation: u64_at(data, 8),
            session: Session {
                client: id_at(data, 16),
                nonce: id_at(data, 32),
            },
            export: export.to_owned(),
        })
    }
}

fn encode_request(
    flags: u16,
    slot: u32,
    generation: u64,
    session: Session,
    export: &str,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(REQUEST_HEAD + export.len());
    out.extend(VERSION.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(slot.to_be_bytes());
    out.extend(generation.to_be_bytes());
    out.extend(session.to_bytes());
    out.extend((export.len() as u32).to_be_bytes());
    out.extend(export.as_bytes());
    out
}

/// The text after `head` bytes, whose last four tell its length: no byte less, none more.
fn tail<'a>(what: &'static str, data: &'a [u8], head: usize) -> Result<&'a [u8], WireError> {
    let wrong = |expected| WireError::Length {
        what,
        found: data.len(),
        expected,
    };
    let text = data.get(head..).ok_or_else(|| wrong(head))?;
    let length = u32_at(data, head - 4) as usize;
    if text.len() != length {
        return Err(wrong(head.saturating_add(length)));
    }
    Ok(text)
}

fn id_at(data: &[u8], at: usize) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&data[at..at + 16]);
    Id(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(byte: u8) -> Id {
        Id([byte; 16])
    }

    fn request() -> SessionRequest {
        SessionRequest {
            steal: true,
            identify_only: false,
            slot: 3,
            generation: 0x0102_0304_0506_0708,
            session: Session {
                client: id(0xaa),
                nonce: id(0xbb),
            },
            export: "disk".to_owned(),
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let head = b"\0\x01\0\x01\0\0\0\x03\x01\x02\x03\x04\x05\x06\x07\x08";
        let expected = [&head[..], &[0xaa; 16], &[0xbb; 16], b"\0\0\0\x04disk"].concat();
        assert_eq!(request().encode(), expected);
        let ask = SessionRequest {
            steal: false,
            identify_only: true,
            ..request()
        };
        assert_eq!(ask.encode()[2..4], [0, 2]);
        let reply = SessionReply {
            held_by_other: true,
            identity: id(1),
            incarnation: id(2),
            holder: "x".to_owned(),
        };
        let expected = [&b"\0\x01\0\x01"[..], &[1; 16], &[2; 16], b"\0\0\0\x01x"].concat();
        assert_eq!(reply.encode(), expected);
        assert_eq!((OPT_SESSION, OPT_FENCE), (0x44535401, 0x44535402));
    }

    #[test]
    fn each_lie_is_named() {
        let good = request().encode();
        let lie = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            SessionRequest::decode(&bytes).unwrap_err().to_string()
        };
        assert!(lie(1, 2).contains("is of version 2"));
        assert!(lie(3, 4).contains("has flags 0x0004"));
        assert!(lie(6, 1).contains("slot 259"), "{}", lie(6, 1));
        assert!(lie(51, 5).contains("has 56 bytes, it should have 57"));
        assert!(lie(52, 0xff).contains("isn't UTF-8"));
        // FENCE has no flags.
        let error = FenceRequest::decode(&good).unwrap_err().to_string();
        assert!(error.contains("has flags 0x0001"), "{error}");
        // A length near the end of the address space doesn't wrap around.
        assert!(lie(48, 0xff).contains("it should have"));
        let long = SessionRequest {
            export: "x".repeat(NAME_MAX + 1),
            ..request()
        };
        let error = SessionRequest::decode(&long.encode()).unwrap_err();
        assert_eq!(error, WireError::Name);
    }

    #[test]
    fn a_newer_servers_flags_are_no_obstacle_and_its_text_is_cleaned() {
        let reply = SessionReply {
            held_by_other: false,
            identity: id(1),
            incarnation: id(2),
            holder: "a\x1b[2Jb".to_owned(),
        };
        let mut bytes = reply.encode();
        bytes[2] = 0x80;
        let decoded = SessionReply::decode(&bytes).unwrap();
        assert!(!decoded.held_by_other);
        assert_eq!(decoded.holder, "a [2Jb");
    }

    prop_compose! {
        fn any_session()(client: [u8; 16], nonce: [u8; 16]) -> Session {
            Session { client: Id(client), nonce: Id(nonce) }
        }
    }

    prop_compose! {
        fn any_request()(
            steal: bool, identify_only: bool, slot in 0..SLOTS_MAX, generation: u64,
            session in any_session(), export in "\\PC{0,40}",
        ) -> SessionRequest {
            SessionRequest { steal, identify_only, slot, generation, session, export }
        }
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire_and_no_part_of_one_is_taken(request in any_request()) {
            let bytes = request.encode();
            prop_assert_eq!(SessionRequest::decode(&bytes), Ok(request.clone()));
            let fence = FenceRequest {
                slot: request.slot,
                generation: request.generation,
                session: request.session,
                export: request.export,
            };
            let fenced = fence.encode();
            prop_assert_eq!(FenceRequest::decode(&fenced), Ok(fence));
            for cut in 0..bytes.len() {
                prop_assert!(SessionRequest::decode(&bytes[..cut]).is_err());
                prop_assert!(FenceRequest::decode(&fenced[..cut]).is_err());
            }
            let more = [&bytes[..], b"x"].concat();
            prop_assert!(SessionRequest::decode(&more).is_err());
        }

        #[test]
        fn replies_survive_the_wire_and_no_part_of_one_is_taken(
            held_by_other: bool, identity: [u8; 16], incarnation: [u8; 16],
            holder in "[a-z0-9]{0,5}( [a-z0-9]{1,5}){0,5}[a-z]",
        ) {
            let reply = SessionReply {
                held_by_other, identity: Id(identity), incarnation: Id(incarnation), holder,
            };
            let bytes = reply.encode();
            for cut in 0..bytes.len() {
                prop_assert!(SessionReply::decode(&bytes[..cut]).is_err());
            }
            prop_assert!(SessionReply::decode(&[&bytes[..], b"x"].concat()).is_err());
            let decoded = SessionReply::decode(&bytes).unwrap();
            prop_assert_eq!(decoded.holder.trim(), reply.holder.trim());
            prop_assert_eq!(decoded.identity, reply.identity);
            prop_assert_eq!(decoded.incarnation, reply.incarnation);
            prop_assert_eq!(decoded.held_by_other, reply.held_by_other);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(data: Vec<u8>) {
            let _ = SessionRequest::decode(&data);
            let _ = FenceRequest::decode(&data);
            let _ = SessionReply::decode(&data);
        }
    }
}
