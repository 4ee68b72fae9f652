//! Where NBD's messages begin and end, in both directions, from the greeting on: so far as it takes to count requests
//! and replies and to know how long they are. What it doesn't know makes a direction *raw*, without messages.
//! Pure; called by the pumps. Never changes a byte.

use std::collections::HashMap;

use nbdpeer::proto;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Handshake,
    Request,
    /// Whole, or a chunk of a structured one.
    Reply,
}

/// One message whose head is there. A reply has the command, offset and length of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub what: What,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub error: u32,
    pub head: usize,
    pub payload: u64,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    command: u16,
    offset: u64,
    length: u64,
}

/// What both directions of a connection must know of each other.
#[derive(Debug, Default)]
pub struct Dialogue {
    server_flags: u16,
    client_flags: u32,
    /// The next thing the server says is the answer to EXPORT_NAME, which has no magic.
    export_name: bool,
    asked: HashMap<u64, Asked>,
    greeted: [bool; 2],
}

const GREETING: usize = 18;
const CLIENT_FLAGS: usize = 4;
const OPTION: usize = 16;
const OPTION_REPLY: usize = 20;
const REQUEST: usize = 28;
const REQUEST_EXT: usize = 32;
const SIMPLE: usize = 16;
const CHUNK: usize = 20;
const CHUNK_EXT: usize = 32;
const IHAVEOPT: u32 = (proto::IHAVEOPT >> 32) as u32;
const REPLY_MAGIC: u32 = (proto::REPLY_MAGIC >> 32) as u32;

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Dialogue {
    /// How many bytes the head has of which `head` is the begin; more may be needed later. `None`: unknown.
    pub fn need(&self, direction: Direction, head: &[u8]) -> Option<usize> {
        if !self.greeted[direction as usize] {
            return Some(match direction {
                Direction::Up => CLIENT_FLAGS,
                Direction::Down => GREETING,
            });
        }
        if direction == Direction::Down && self.export_name {
            let no_zeroes = self.client_flags & proto::NO_ZEROES != 0 && self.server_flags & 2 != 0;
            return Some(if no_zeroes { 10 } else { 134 });
        }
        if head.len() < 4 {
            return Some(4);
        }
        match (direction, number(&head[..4]) as u32) {
            (Direction::Up, IHAVEOPT) => Some(OPTION),
            (Direction::Up, proto::REQUEST_MAGIC) => Some(REQUEST),
            (Direction::Up, proto::REQUEST_MAGIC_EXT) => Some(REQUEST_EXT),
            (Direction::Down, REPLY_MAGIC) => Some(OPTION_REPLY),
            (Direction::Down, proto::SIMPLE_MAGIC) => Some(SIMPLE),
            (Direction::Down, proto::CHUNK_MAGIC) => Some(CHUNK),
            (Direction::Down, proto::CHUNK_MAGIC_EXT) => Some(CHUNK_EXT),
            _ => None,
        }
    }

    /// The message of a whole head.
    pub fn interpret(&mut self, direction: Direction, head: &[u8]) -> Message {
        let first = !std::mem::replace(&mut self.greeted[direction as usize], true);
        match direction {
            Direction::Up if first => {
                self.client_flags = number(head) as u32;
                handshake(head, 0)
            }
            Direction::Up if head.len() == OPTION => {
                self.export_name = number(&head[8..12]) as u32 == proto::OPT_EXPORT_NAME;
                handshake(head, number(&head[12..16]))
            }
            Direction::Up => self.request(head),
            Direction::Down if first => {
                self.server_flags = number(&head[16..18]) as u16;
                handshake(head, 0)
            }
            Direction::Down if std::mem::take(&mut self.export_name) => handshake(head, 0),
            Direction::Down if number(&head[..4]) as u32 == REPLY_MAGIC => {
                handshake(head, number(&head[16..20]))
            }
            Direction::Down => self.reply(head),
        }
    }

    fn request(&mut self, head: &[u8]) -> Message {
        let flags = number(&head[4..6]) as u16;
        let asked = Asked {
            command: number(&head[6..8]) as u16,
            offset: number(&head[16..24]),
            length: number(&head[24..]),
        };
        let extended = head.len() == REQUEST_EXT;
        let has_payload = match extended {
            true => flags & proto::PAYLOAD_LEN != 0,
            false => asked.command == proto::WRITE,
        };
        let cookie = number(&head[8..16]);
        if asked.command != proto::DISC {
            self.asked.insert(cookie, asked);
        }
        Message {
            what: What::Request,
            payload: if has_payload { asked.length } else { 0 },
            ..message(asked, cookie, head)
        }
    }

    fn reply(&mut self, head: &[u8]) -> Message {
        let cookie = number(&head[8..16]);
        let unasked = Asked {
            command: u16::MAX,
            offset: 0,
            length: 0,
        };
        let asked = self.asked.get(&cookie).copied().unwrap_or(unasked);
        let simple = number(&head[..4]) as u32 == proto::SIMPLE_MAGIC;
        let (error, payload, last) = match simple {
            true => {
                let error = number(&head[4..8]) as u32;
                let data = asked.command == proto::READ && error == 0;
                (error, if data { asked.length } else { 0 }, true)
            }
            false => {
                let payload = &head[if head.len() == CHUNK { 16 } else { 24 }..];
                let last = number(&head[4..6]) as u16 & proto::CHUNK_DONE != 0;
                (0, number(payload), last)
            }
        };
        if last {
            self.asked.remove(&cookie);
        }
        Message {
            what: What::Reply,
            error,
            payload,
            ..message(asked, cookie, head)
        }
    }
}

fn message(asked: Asked, cookie: u64, head: &[u8]) -> Message {
    Message {
        what: What::Handshake,
        command: asked.command,
        cookie,
        offset: asked.offset,
        length: asked.length,
        error: 0,
        head: head.len(),
        payload: 0,
    }
}

fn handshake(head: &[u8], payload: u64) -> Message {
    let asked = Asked {
        command: u16::MAX,
        offset: 0,
        length: 0,
    };
    Message {
        payload,
        ..message(asked, 0, head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdpeer::handshake::encode_option;
    use nbdpeer::{Mode, Request};

    /// The messages of a stream of bytes, and whether all of them were used up.
    fn messages(
        dialogue: &mut Dialogue,
        direction: Direction,
        bytes: &[u8],
    ) -> (Vec<Message>, bool) {
        let (mut found, mut at) = (Vec::new(), 0);
        let mut head = 0;
        while let Some(need) = dialogue.need(direction, &bytes[at..at + head]) {
            if at + need > bytes.len() {
                return (found, at == bytes.len());
            }
            if head < need {
                head = need;
                continue;
            }
            let message = dialogue.interpret(direction, &bytes[at..at + head]);
            at += head + message.payload as usize;
            head = 0;
            found.push(message);
        }
        (found, false)
    }

    fn greeted() -> Dialogue {
        Dialogue {
            greeted: [true; 2],
            ..Dialogue::default()
        }
    }

    fn simple(error: u32, cookie: u64) -> Vec<u8> {
        let mut out = proto::SIMPLE_MAGIC.to_be_bytes().to_vec();
        out.extend(error.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out
    }

    #[test]
    fn a_handshake_goes_by_and_requests_follow() {
        let mut dialogue = Dialogue::default();
        let mut up = 3u32.to_be_bytes().to_vec();
        up.extend(encode_option(proto::OPT_GO, b"data of the option"));
        up.extend(
            Request::write(4096, vec![7; 512])
                .cookie(5)
                .encode(Mode::Simple),
        );
        up.extend(
            Request::new(proto::READ, 8192, 1024)
                .cookie(6)
                .encode(Mode::Simple),
        );
        let (found, whole) = messages(&mut dialogue, Direction::Up, &up);
        assert!(whole);
        let said: Vec<_> = found
            .iter()
            .map(|m| (m.what, m.cookie, m.offset, m.length, m.payload))
            .collect();
        assert_eq!(
            said,
            [
                (What::Handshake, 0, 0, 0, 0),
                (What::Handshake, 0, 0, 0, 18),
                (What::Request, 5, 4096, 512, 512),
                (What::Request, 6, 8192, 1024, 0),
            ]
        );
        let mut down = vec![0; GREETING];
        down.extend(
            [
                &proto::REPLY_MAGIC.to_be_bytes()[..],
                &[0; 8],
                &12u32.to_be_bytes(),
                &[0; 12],
            ]
            .concat(),
        );
        down.extend([simple(0, 6), vec![1; 1024], simple(5, 5)].concat());
        let (found, whole) = messages(&mut dialogue, Direction::Down, &down);
        assert!(whole);
        let said: Vec<_> = found
            .iter()
            .map(|m| (m.what, m.command, m.cookie, m.error, m.payload))
            .collect();
        assert_eq!(
            said[2..],
            [
                (What::Reply, proto::READ, 6, 0, 1024),
                (What::Reply, proto::WRITE, 5, 5, 0)
            ]
        );
        assert_eq!(said[1].4, 12);
    }

    #[test]
    fn an_error_has_no_payload_and_a_cookie_counts_once() {
        let mut dialogue = greeted();
        let read = Request::new(proto::READ, 0, 1024)
            .cookie(6)
            .encode(Mode::Simple);
        messages(&mut dialogue, Direction::Up, &read);
        let (found, whole) = messages(
            &mut dialogue,
            Direction::Down,
            &[simple(5, 6), simple(0, 6)].concat(),
        );
        assert!(whole);
        assert_eq!(found.iter().map(|m| m.payload).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn chunks_are_messages() {
        let mut dialogue = greeted();
        messages(
            &mut dialogue,
            Direction::Up,
            &Request::new(proto::READ, 0, 1024)
                .cookie(6)
                .encode(Mode::Simple),
        );
        let chunk = |flags: u16, length: usize| {
            let mut out = proto::CHUNK_MAGIC.to_be_bytes().to_vec();
            out.extend(flags.to_be_bytes());
            out.extend(proto::CHUNK_DATA.to_be_bytes());
            out.extend(6u64.to_be_bytes());
            out.extend((length as u32).to_be_bytes());
            out.extend(vec![0; length]);
            out
        };
        let (found, whole) = messages(
            &mut dialogue,
            Direction::Down,
            &[chunk(0, 520), chunk(1, 520)].concat(),
        );
        assert!(whole);
        assert_eq!(found.len(), 2);
        assert!(
            found
                .iter()
                .all(|m| m.command == proto::READ && m.payload == 520)
        );
        assert!(dialogue.asked.is_empty());
    }

    #[test]
    fn export_name_is_answered_without_a_magic() {
        for (flags, length) in [(0u32, 134), (proto::NO_ZEROES, 10)] {
            let mut dialogue = Dialogue::default();
            let up = [
                &flags.to_be_bytes()[..],
                &encode_option(proto::OPT_EXPORT_NAME, b"x"),
            ]
            .concat();
            messages(&mut dialogue, Direction::Up, &up);
            let down = [&[0; 17][..], &[3], &vec![0; length], &simple(0, 1)].concat();
            let (found, whole) = messages(&mut dialogue, Direction::Down, &down);
            assert!(whole && found.len() == 3, "{found:?}");
        }
    }

    #[test]
    fn what_is_not_nbd_is_unknown() {
        let dialogue = greeted();
        assert_eq!(dialogue.need(Direction::Up, b"GET "), None);
        assert_eq!(dialogue.need(Direction::Down, b"HTTP"), None);
    }
}
