//! Netlink messages around the attributes: headers, acknowledgements, the kernel's own words.
//!
//! Owns framing and the reading of acks (extack), which netlink-packet-core leaves out.
//! Used by `client`, `family` and `events`. Pure: never touches a socket.

use netlink_packet_core::{Emitable, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use nix::errno::Errno;

use super::codec;
use super::error::NetlinkError;
use super::numbers;

pub const NLMSG_NOOP: u16 = 1;
pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
pub const NLMSG_OVERRUN: u16 = 4;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP_INTR: u16 = 0x10;
pub const NLM_F_DUMP: u16 = 0x300;
/// On an ack: the request isn't repeated in it beyond its header.
const NLM_F_CAPPED: u16 = 0x100;
/// On an ack or a DONE: attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

const HEADER: usize = 16;
const GENL_HEADER: usize = 4;

/// What the generic netlink library frames: a command and its attributes, already encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Request {
    fn family_name() -> &'static str {
        numbers::FAMILY_NAME
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.attributes.len()].copy_from_slice(&self.attributes);
    }
}

/// A request of a generic netlink family, ready to send.
pub fn request(
    family: u16,
    flags: u16,
    sequence: u32,
    command: u8,
    attributes: &[u8],
) -> Result<Vec<u8>, NetlinkError> {
    let length = HEADER + GENL_HEADER + attributes.len();
    u32::try_from(length).map_err(|_| NetlinkError::TooLong("the request"))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut generic = GenlMessage::from_payload(Request {
        command,
        attributes: attributes.to_vec(),
    });
    generic.set_resolved_family_id(family);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(generic));
    message.finalize();
    let mut out = vec![0; message.buffer_len()];
    message.serialize(&mut out);
    Ok(out)
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    payload: &'a [u8],
}

/// The messages of one datagram.
pub fn split(mut datagram: &[u8]) -> Result<Vec<Message<'_>>, NetlinkError> {
    let mut messages = Vec::new();
    while !datagram.is_empty() {
        let buffer = NetlinkBuffer::new_checked(datagram)
            .map_err(|e| NetlinkError::BadAnswer(e.to_string()))?;
        messages.push(Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            payload: buffer.payload(),
        });
        let length = (buffer.length() as usize).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or(&[]);
    }
    Ok(messages)
}

impl<'a> Message<'a> {
    /// Command and attributes of a generic netlink message.
    pub fn generic(&self) -> Result<(u8, &'a [u8]), NetlinkError> {
        let header =
            GenlHeader::parse(self.payload).map_err(|e| NetlinkError::BadAnswer(e.to_string()))?;
        Ok((header.cmd, &self.payload[GENL_HEADER..]))
    }

    /// What an ERROR (ack) or DONE message says: nothing wrong, or why not.
    pub fn verdict(&self, sent: &[u8]) -> Result<(), NetlinkError> {
        let Some(code) = self.payload.first_chunk::<4>() else {
            return match self.kind {
                NLMSG_DONE => Ok(()),
                _ => Err(NetlinkError::BadAnswer("an ack without a code".to_owned())),
            };
        };
        let code = i32::from_ne_bytes(*code);
        if code == 0 {
            return Ok(());
        }
        let errno = Errno::from_raw(code.saturating_neg());
        Err(NetlinkError::Refused {
            errno,
            text: self.explanation(errno, sent),
        })
    }

    /// The extack text, with the attribute it is about where the kernel says so.
    fn explanation(&self, errno: Errno, sent: &[u8]) -> String {
        let (mut text, mut offset) = (None, None);
        for attribute in self.extack().unwrap_or_default() {
            match attribute.kind {
                NLMSGERR_ATTR_MSG => text = Some(attribute.text()),
                NLMSGERR_ATTR_OFFS => offset = attribute.u32().ok(),
                _ => {}
            }
        }
        let text = text.filter(|t| !t.is_empty());
        let text = text.unwrap_or_else(|| errno.desc().to_owned());
        match offset.and_then(|o| attribute_at(sent, o)) {
            Some(kind) => format!("{text} (attribute {kind} of the request)"),
            None => text,
        }
    }

    fn extack(&self) -> Result<Vec<codec::Attribute<'a>>, NetlinkError> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return Ok(Vec::new());
        }
        let start = match self.kind {
            NLMSG_DONE => 4,
            _ => 4 + self.repeated_request(),
        };
        codec::read(self.payload.get(start..).unwrap_or(&[]))
    }

    /// Bytes of the request that an ack repeats.
    fn repeated_request(&self) -> usize {
        let length = self.payload.get(4..8).and_then(|b| b.try_into().ok());
        match length.map(u32::from_ne_bytes) {
            Some(length) if self.flags & NLM_F_CAPPED == 0 => (length as usize).next_multiple_of(4),
            _ => HEADER,
        }
    }
}

/// The kind of the attribute at an offset of the request.
fn attribute_at(sent: &[u8], offset: u32) -> Option<u16> {
    let offset = offset as usize;
    let kind = sent.get(offset + 2..offset + 4)?;
    let kind = u16::from_ne_bytes(kind.try_into().ok()?);
    (offset >= HEADER + GENL_HEADER).then_some(kind & netlink_packet_core::NLA_TYPE_MASK)
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::super::codec::Writer;
    use super::*;

    /// A message as the kernel sends it.
    pub fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(payload);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    /// An ack of `sent` with the kernel's words.
    pub fn ack(sent: &[u8], sequence: u32, errno: i32, words: &str, capped: bool) -> Vec<u8> {
        let mut payload = (-errno).to_ne_bytes().to_vec();
        let repeated = if capped { &sent[..HEADER] } else { sent };
        payload.extend(repeated);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let mut tlvs = Writer::new();
        if !words.is_empty() {
            tlvs.put_str(NLMSGERR_ATTR_MSG, words).unwrap();
            tlvs.put_u32(NLMSGERR_ATTR_OFFS, 20).unwrap();
        }
        payload.extend(tlvs.into_bytes());
        let capped = if capped { NLM_F_CAPPED } else { 0 };
        let with_words = if words.is_empty() { 0 } else { NLM_F_ACK_TLVS };
        message(NLMSG_ERROR, capped | with_words, sequence, &payload)
    }

    fn a_request() -> Vec<u8> {
        let mut attributes = Writer::new();
        attributes.put_str(2, "alpha").unwrap();
        request(0x1f, NLM_F_ACK, 7, 3, &attributes.into_bytes()).unwrap()
    }

    #[test]
    fn a_request_is_what_the_kernel_reads() {
        let sent = a_request();
        let messages = split(&sent).unwrap();
        assert_eq!(messages.len(), 1);
        let found = (messages[0].kind, messages[0].flags, messages[0].sequence);
        assert_eq!(found, (0x1f, NLM_F_REQUEST | NLM_F_ACK, 7));
        let (command, attributes) = messages[0].generic().unwrap();
        assert_eq!(command, 3);
        assert_eq!(codec::read(attributes).unwrap()[0].text(), "alpha");
    }

    #[test]
    fn the_kernels_words_are_shown_capped_or_not() {
        let sent = a_request();
        for capped in [true, false] {
            let bytes = ack(&sent, 7, 2, "no table names node alpha", capped);
            let error = split(&bytes).unwrap()[0].verdict(&sent).unwrap_err();
            let expected = "no table names node alpha (attribute 2 of the request)";
            assert_eq!(error.to_string(), expected, "capped: {capped}");
            assert_eq!(error.errno(), Some(Errno::ENOENT));
            assert!(
                split(&ack(&sent, 7, 0, "", capped)).unwrap()[0]
                    .verdict(&sent)
                    .is_ok()
            );
        }
    }

    #[test]
    fn without_words_errno_has_its_own() {
        let sent = a_request();
        let bytes = ack(&sent, 7, 34, "", true);
        let error = split(&bytes).unwrap()[0].verdict(&sent).unwrap_err();
        assert_eq!(error.to_string(), Errno::ERANGE.desc());
    }

    #[test]
    fn a_dump_can_fail_in_its_last_message() {
        let mut payload = (-1i32).to_ne_bytes().to_vec();
        let mut tlvs = Writer::new();
        tlvs.put_str(NLMSGERR_ATTR_MSG, "not you").unwrap();
        payload.extend(tlvs.into_bytes());
        let bytes = message(NLMSG_DONE, NLM_F_ACK_TLVS, 1, &payload);
        let error = split(&bytes).unwrap()[0].verdict(&[]).unwrap_err();
        assert_eq!(error.to_string(), "not you");
        let bytes = message(NLMSG_DONE, 0, 1, &0i32.to_ne_bytes());
        assert!(split(&bytes).unwrap()[0].verdict(&[]).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, kind in 1u16..5, flags: u16) {
            let framed = message(kind, flags, 1, &bytes);
            for datagram in [&bytes, &framed] {
                for message in split(datagram).unwrap_or_default() {
                    let _ = message.generic();
                    let _ = message.verdict(&bytes);
                }
            }
        }
    }
}
