//! Words of the command line as attributes, in the order given, nothing checked and nothing added.
//! NAME=VALUE: node, session (that many bytes), size, flags, min, pref, max, wanted, zero, policy, policy_ms,
//! quiesce, eof_fences, unknown_restart, timeout (all numbers), incarnation (text); `force`;
//! export=SIZE (a good set of the six); link=SLOT:GENERATION:SOCKET (an empty part is left out).
//! Called by main; `sockets` opens what a link names. Never sends anything.

use anyhow::{Context, Result, bail};
use dstd::netlink::codec::Writer;
use dstd::netlink::numbers::{attr, cmd, link_attr};

use crate::sockets::Sockets;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const GOOD_FLAGS: u32 = 0x16d;

#[derive(Debug)]
pub struct Request {
    pub command: u8,
    pub dump: bool,
    pub sockets: Sockets,
    words: Vec<Word>,
}

#[derive(Debug)]
enum Word {
    Bytes(u16, Vec<u8>),
    Link {
        slot: Option<u32>,
        generation: Option<u32>,
        fd: Option<i32>,
    },
}

impl Request {
    pub fn new(command: &str, words: &[String]) -> Result<Self> {
        let code = match command {
            "get" | "dump" => cmd::NODE_GET,
            "set" => cmd::NODE_SET,
            "links" => cmd::LINKS_SET,
            "drop" => cmd::LINKS_DROP,
            "fail" => cmd::FAIL_PENDING,
            "fenced" => cmd::FENCED,
            number => number.parse().context("no such command")?,
        };
        let mut request = Request {
            command: code,
            dump: command == "dump",
            sockets: Sockets::default(),
            words: Vec::new(),
        };
        for word in words {
            request
                .take(word)
                .with_context(|| format!("the word `{word}`"))?;
        }
        Ok(request)
    }

    fn take(&mut self, word: &str) -> Result<()> {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || -> Result<u32> { Ok(value.parse()?) };
        let attribute = match name {
            "node" => Word::Bytes(attr::NODE, [value.as_bytes(), b"\0"].concat()),
            "session" => Word::Bytes(attr::SESSION, vec![7; value.parse()?]),
            "size" => Word::Bytes(attr::SIZE, value.parse::<u64>()?.to_ne_bytes().into()),
            "flags" => Word::Bytes(attr::FLAGS, number()?.to_ne_bytes().into()),
            "min" => Word::Bytes(attr::MIN_BLOCK, number()?.to_ne_bytes().into()),
            "pref" => Word::Bytes(attr::PREF_BLOCK, number()?.to_ne_bytes().into()),
            "max" => Word::Bytes(attr::MAX_PAYLOAD, number()?.to_ne_bytes().into()),
            "wanted" => Word::Bytes(attr::WANTED, number()?.to_ne_bytes().into()),
            "zero" => Word::Bytes(attr::ZERO_COPY, vec![value.parse()?]),
            "policy" => Word::Bytes(attr::POLICY, number()?.to_ne_bytes().into()),
            "policy_ms" => Word::Bytes(attr::POLICY_MS, number()?.to_ne_bytes().into()),
            "quiesce" => Word::Bytes(attr::QUIESCE, number()?.to_ne_bytes().into()),
            "eof_fences" => Word::Bytes(attr::EOF_FENCES, vec![value.parse()?]),
            "unknown_restart" => Word::Bytes(attr::UNKNOWN_RESTART, number()?.to_ne_bytes().into()),
            "timeout" => Word::Bytes(attr::TIMEOUT, number()?.to_ne_bytes().into()),
            "incarnation" => Word::Bytes(attr::INCARNATION, value.as_bytes().into()),
            "force" => Word::Bytes(attr::FORCE, Vec::new()),
            "export" => return self.good_export(value),
            "link" => self.link(value)?,
            _ => bail!("no such attribute"),
        };
        self.words.push(attribute);
        Ok(())
    }

    fn good_export(&mut self, size: &str) -> Result<()> {
        self.take(&format!("size={size}"))?;
        self.take(&format!("flags={GOOD_FLAGS}"))?;
        for word in ["min=1", "pref=4096", "max=33554432", "zero=0"] {
            self.take(word)?;
        }
        Ok(())
    }

    fn link(&mut self, value: &str) -> Result<Word> {
        let mut parts = value.splitn(3, ':');
        let mut part = || parts.next().filter(|p| !p.is_empty());
        let (slot, generation, socket) = (part(), part(), part());
        Ok(Word::Link {
            slot: slot.map(str::parse).transpose()?,
            generation: generation.map(str::parse).transpose()?,
            fd: socket.map(|kind| self.sockets.open(kind)).transpose()?,
        })
    }

    /// For the second of two requests: wrong in nothing but that the sockets are taken.
    pub fn raise_generations(&mut self) {
        for word in &mut self.words {
            if let Word::Link {
                generation: Some(generation),
                ..
            } = word
            {
                *generation += 1000;
            }
        }
    }

    pub fn attributes(&self) -> Result<Vec<u8>, dstd::netlink::NetlinkError> {
        let mut writer = Writer::new();
        for word in &self.words {
            match word {
                Word::Bytes(kind, value) => writer.put(*kind, value)?,
                Word::Link {
                    slot,
                    generation,
                    fd,
                } => {
                    let mut nest = Writer::new();
                    if let Some(slot) = slot {
                        nest.put_u32(link_attr::SLOT, *slot)?;
                    }
                    if let Some(fd) = fd {
                        nest.put_i32(link_attr::FD, *fd)?;
                    }
                    if let Some(generation) = generation {
                        nest.put_u32(link_attr::GENERATION, *generation)?;
                    }
                    writer.put_nest(attr::LINK, nest)?;
                }
            }
        }
        Ok(writer.into_bytes())
    }
}
