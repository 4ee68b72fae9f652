//! The handshake, one message at a time: each can be sent whole, in part, or with data that no client would send.

use crate::proto::{self, Reader};
use crate::{Mode, Peer, PeerError, Result};

/// One reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// What GO, INFO or EXPORT_NAME told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    pub name: Option<String>,
    pub description: Option<String>,
    /// Minimum, preferred, largest payload.
    pub block: Option<(u32, u32, u32)>,
}

impl Export {
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The private option SESSION.
#[derive(Debug, Clone, Default)]
pub struct Session {
    pub steal: bool,
    pub identify_only: bool,
    pub slot: u32,
    pub generation: u64,
    pub client: [u8; 16],
    pub nonce: [u8; 16],
    pub export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionAnswer {
    pub held_by_other: bool,
    pub identity: [u8; 16],
    pub incarnation: [u8; 16],
    pub text: String,
}

/// The private option FENCE.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    pub slot: u32,
    pub generation: u64,
    pub client: [u8; 16],
    pub nonce: [u8; 16],
    pub export: String,
}

impl Session {
    pub fn encode(&self) -> Vec<u8> {
        let flags = u16::from(self.steal) | u16::from(self.identify_only) << 1;
        let link = (self.slot, self.generation);
        private(flags, link, &self.client, &self.nonce, &self.export)
    }

    pub fn fence(&self) -> Fence {
        Fence {
            slot: self.slot,
            generation: self.generation,
            client: self.client,
            nonce: self.nonce,
            export: self.export.clone(),
        }
    }
}

impl Fence {
    pub fn encode(&self) -> Vec<u8> {
        let link = (self.slot, self.generation);
        private(0, link, &self.client, &self.nonce, &self.export)
    }
}

fn private(
    flags: u16,
    link: (u32, u64),
    client: &[u8; 16],
    nonce: &[u8; 16],
    name: &str,
) -> Vec<u8> {
    let mut out = 1u16.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(link.0.to_be_bytes());
    out.extend(link.1.to_be_bytes());
    out.extend(client);
    out.extend(nonce);
    out.extend(string(name.as_bytes()));
    out
}

/// A length and the bytes.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = proto::IHAVEOPT.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(string(data));
    out
}

/// The data of GO and INFO.
pub fn info_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((wanted.len() as u16).to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| out.extend(kind.to_be_bytes()));
    out
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_data(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries
        .iter()
        .for_each(|query| out.extend(string(query.as_bytes())));
    out
}

/// Asked for by [`Peer::go`].
const ALL_INFOS: [u16; 3] = [
    proto::INFO_NAME,
    proto::INFO_DESCRIPTION,
    proto::INFO_BLOCK_SIZE,
];

impl Peer {
    /// Reads the greeting, sends these client flags; returns the server's.
    pub fn greet(&mut self, flags: u32) -> Result<u16> {
        let bytes = self.receive(18)?;
        let mut greeting = Reader(&bytes);
        let magic = (greeting.u64()?, greeting.u64()?);
        if magic != (proto::NBDMAGIC, proto::IHAVEOPT) {
            return Err(PeerError::Protocol(format!("greeting {magic:x?}")));
        }
        self.send(&flags.to_be_bytes())?;
        let offered = greeting.u16()?;
        self.no_zeroes = flags & proto::NO_ZEROES != 0 && offered & 2 != 0;
        Ok(offered)
    }

    /// Connected and greeted as every modern client does it.
    pub fn hello(address: &crate::Address) -> Result<Peer> {
        let mut peer = Peer::connect(address)?;
        peer.greet(proto::FIXED_NEWSTYLE | proto::NO_ZEROES)?;
        Ok(peer)
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        self.send(&encode_option(option, data))
    }

    pub fn read_reply(&mut self) -> Result<Reply> {
        let bytes = self.receive(20)?;
        let mut header = Reader(&bytes);
        let magic = header.u64()?;
        let (option, kind, length) = (header.u32()?, header.u32()?, header.u32()?);
        if magic != proto::REPLY_MAGIC || length > 1 << 20 {
            return Err(PeerError::Protocol(format!(
                "option reply with magic {magic:#x} and {length} bytes"
            )));
        }
        let data = self.receive(length as usize)?;
        Ok(Reply { option, kind, data })
    }

    /// The replies before ACK; an error reply is `Refused`.
    pub fn replies(&mut self, to: u32) -> Result<Vec<Reply>> {
        let mut all = Vec::new();
        loop {
            let reply = self.read_reply()?;
            if reply.option != to {
                return Err(PeerError::Protocol(format!(
                    "a reply to option {:#x} instead of {to:#x}",
                    reply.option
                )));
            }
            if reply.kind & proto::ERROR_BIT != 0 {
                return Err(PeerError::Refused {
                    option: to,
                    kind: reply.kind,
                    text: String::from_utf8_lossy(&reply.data).into_owned(),
                });
            }
            if reply.kind == proto::REP_ACK {
                return Ok(all);
            }
            all.push(reply);
        }
    }

    pub fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<Reply>> {
        self.send_option(option, data)?;
        self.replies(option)
    }

    pub fn structured(&mut self) -> Result<()> {
        self.option(proto::OPT_STRUCTURED_REPLY, b"")?;
        self.mode = Mode::Structured;
        Ok(())
    }

    pub fn extended(&mut self) -> Result<()> {
        self.option(proto::OPT_EXTENDED_HEADERS, b"")?;
        self.mode = Mode::Extended;
        Ok(())
    }

    pub fn negotiate(&mut self, mode: Mode) -> Result<()> {
        match mode {
            Mode::Simple => Ok(()),
            Mode::Structured => self.structured(),
            Mode::Extended => self.extended(),
        }
    }

    pub fn list(&mut self) -> Result<Vec<String>> {
        let replies = self.option(proto::OPT_LIST, b"")?;
        let name = |reply: &Reply| {
            let mut data = Reader(&reply.data);
            let length = data.u32()? as usize;
            Ok(String::from_utf8_lossy(data.take(length)?).into_owned())
        };
        replies.iter().map(name).collect()
    }

    /// LIST_META_CONTEXT or SET_META_CONTEXT: ids and names.
    pub fn meta(
        &mut self,
        option: u32,
        export: &str,
        queries: &[&str],
    ) -> Result<Vec<(u32, String)>> {
        let replies = self.option(option, &meta_data(export.as_bytes(), queries))?;
        let context = |reply: &Reply| {
            let mut data = Reader(&reply.data);
            Ok((data.u32()?, String::from_utf8_lossy(data.0).into_owned()))
        };
        replies.iter().map(context).collect()
    }

    /// The id of base:allocation, chosen.
    pub fn allocation(&mut self, export: &str) -> Result<u32> {
        let contexts = self.meta(proto::OPT_SET_META, export, &["base:allocation"])?;
        let first = contexts
            .into_iter()
            .find(|(_, name)| name == "base:allocation");
        first
            .map(|(id, _)| id)
            .ok_or_else(|| PeerError::Protocol("no base:allocation".to_owned()))
    }

    pub fn info(&mut self, export: &str) -> Result<Export> {
        self.ask(proto::OPT_INFO, export.as_bytes())
    }

    pub fn go(&mut self, export: &str) -> Result<Export> {
        self.ask(proto::OPT_GO, export.as_bytes())
    }

    /// GO or INFO with any name.
    pub fn ask(&mut self, option: u32, name: &[u8]) -> Result<Export> {
        self.send_option(option, &info_data(name, &ALL_INFOS))?;
        self.told(option)
    }

    /// The answer to a GO or INFO that was sent.
    pub fn told(&mut self, option: u32) -> Result<Export> {
        let mut export = Export::default();
        for reply in self.replies(option)? {
            let mut info = Reader(&reply.data);
            match info.u16()? {
                proto::INFO_EXPORT => (export.size, export.flags) = (info.u64()?, info.u16()?),
                proto::INFO_NAME => export.name = Some(text(info.0)),
                proto::INFO_DESCRIPTION => export.description = Some(text(info.0)),
                proto::INFO_BLOCK_SIZE => {
                    export.block = Some((info.u32()?, info.u32()?, info.u32()?));
                }
                _ => {}
            }
        }
        Ok(export)
    }

    pub fn export_name(&mut self, name: &[u8]) -> Result<Export> {
        self.send_option(proto::OPT_EXPORT_NAME, name)?;
        let bytes = self.receive(if self.no_zeroes { 10 } else { 134 })?;
        let mut answer = Reader(&bytes);
        let (size, flags) = (answer.u64()?, answer.u16()?);
        if answer.0.iter().any(|byte| *byte != 0) {
            return Err(PeerError::Protocol("the zeroes aren't".to_owned()));
        }
        Ok(Export {
            size,
            flags,
            ..Export::default()
        })
    }

    pub fn session(&mut self, session: &Session) -> Result<SessionAnswer> {
        let replies = self.option(proto::OPT_SESSION, &session.encode())?;
        let [reply] = &replies[..] else {
            return Err(PeerError::Protocol(format!("{} replies", replies.len())));
        };
        let mut data = Reader(&reply.data);
        let (version, flags) = (data.u16()?, data.u16()?);
        let (identity, incarnation, length) = (data.id()?, data.id()?, data.u32()?);
        if reply.kind != proto::REP_SESSION || version != 1 || data.0.len() != length as usize {
            return Err(PeerError::Protocol(format!("session reply {reply:x?}")));
        }
        Ok(SessionAnswer {
            held_by_other: flags & 1 != 0,
            identity,
            incarnation,
            text: text(data.0),
        })
    }

    pub fn fence(&mut self, fence: &Fence) -> Result<()> {
        self.option(proto::OPT_FENCE, &fence.encode()).map(drop)
    }

    pub fn abort(mut self) -> Result<()> {
        self.option(proto::OPT_ABORT, b"").map(drop)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
