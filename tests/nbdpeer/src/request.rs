//! The transmission phase: requests in all three modes, whole replies put together and checked against their requests.

use std::collections::HashMap;

use crate::proto::{self, Reader};
use crate::{Peer, PeerError, Result};

/// No test asks for more in one reply.
const CHUNK_MAX: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Simple,
    Structured,
    Extended,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];
}

/// One request; `flags` and `length` are sent as they stand, whatever the payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub payload: Vec<u8>,
}

impl Request {
    pub fn new(kind: u16, offset: u64, length: u64) -> Request {
        Request {
            kind,
            offset,
            length,
            ..Request::default()
        }
    }

    pub fn write(offset: u64, payload: Vec<u8>) -> Request {
        Request {
            length: payload.len() as u64,
            payload,
            ..Request::new(proto::WRITE, offset, 0)
        }
    }

    pub fn flags(self, flags: u16) -> Request {
        Request { flags, ..self }
    }

    pub fn cookie(self, cookie: u64) -> Request {
        Request { cookie, ..self }
    }

    /// An extended WRITE must say PAYLOAD_LEN, so it does here; [`Request::encode_as_is`] leaves that out.
    pub fn encode(&self, mode: Mode) -> Vec<u8> {
        let needed = mode == Mode::Extended && self.kind == proto::WRITE;
        let flags = self.flags | if needed { proto::PAYLOAD_LEN } else { 0 };
        self.clone().flags(flags).encode_as_is(mode)
    }

    pub fn encode_as_is(&self, mode: Mode) -> Vec<u8> {
        let extended = mode == Mode::Extended;
        let magic = match extended {
            true => proto::REQUEST_MAGIC_EXT,
            false => proto::REQUEST_MAGIC,
        };
        let mut out = magic.to_be_bytes().to_vec();
        out.extend(self.flags.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match extended {
            true => out.extend(self.length.to_be_bytes()),
            false => out.extend((self.length as u32).to_be_bytes()),
        }
        out.extend(&self.payload);
        out
    }
}

/// Lengths of the READs not yet answered (a simple reply doesn't say its own), replies of which chunks are missing,
/// and the last cookie given out.
#[derive(Debug, Default)]
pub struct Outstanding {
    reads: HashMap<u64, (u64, u64)>,
    partial: HashMap<u64, Answer>,
    cookie: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    /// Context, then length and flags of each run.
    Status(u32, Vec<(u64, u64)>),
    Error(u32, String),
}

/// A whole reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// 0: success.
    pub error: u32,
    /// A READ's data, whatever chunks it came in.
    pub data: Vec<u8>,
    pub chunks: Vec<Chunk>,
}

impl Answer {
    pub fn ok(self) -> Result<Answer> {
        match self.error {
            0 => Ok(self),
            errno => Err(PeerError::Nbd(errno)),
        }
    }
}

impl Peer {
    /// Sends a request under a cookie of its own, which is returned.
    pub fn submit(&mut self, request: Request) -> Result<u64> {
        self.outstanding.cookie += 1;
        let cookie = self.outstanding.cookie;
        let request = request.cookie(cookie);
        self.expect(&request);
        let bytes = request.encode(self.mode);
        self.send(&bytes)?;
        Ok(cookie)
    }

    /// A request that the test itself sends: how long its simple reply will be.
    pub fn expect(&mut self, request: &Request) {
        if request.kind == proto::READ {
            self.outstanding
                .reads
                .insert(request.cookie, (request.offset, request.length));
        }
    }

    /// Sends one request and reads its reply; nothing else may be outstanding.
    pub fn call(&mut self, request: Request) -> Result<Answer> {
        let cookie = self.submit(request)?;
        let answer = self.answer()?;
        if answer.cookie != cookie {
            return Err(broken(format!(
                "cookie {:#x} for request {cookie:#x}",
                answer.cookie
            )));
        }
        Ok(answer)
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let answer = self.call(Request::new(proto::READ, offset, length))?.ok()?;
        Ok(answer.data)
    }

    pub fn write(&mut self, offset: u64, payload: &[u8]) -> Result<()> {
        let request = Request::write(offset, payload.to_vec());
        self.call(request)?.ok().map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.call(Request::new(proto::FLUSH, 0, 0))?.ok().map(drop)
    }

    /// Says DISC and reads to the end of file.
    pub fn disconnect(mut self) -> Result<()> {
        let disc = Request::new(proto::DISC, 0, 0).encode(self.mode);
        self.send(&disc)?;
        match self.receive_to_end()?.len() {
            0 => Ok(()),
            left => Err(broken(format!("{left} bytes after DISC"))),
        }
    }

    /// The next reply that is whole, of whichever request; chunks of several may come mixed.
    pub fn answer(&mut self) -> Result<Answer> {
        loop {
            let magic = Reader(&self.receive(4)?).u32()?;
            let whole = match magic {
                proto::SIMPLE_MAGIC => Some(self.simple_answer()?),
                proto::CHUNK_MAGIC if self.mode == Mode::Structured => self.chunk()?,
                proto::CHUNK_MAGIC_EXT if self.mode == Mode::Extended => self.chunk()?,
                other => return Err(broken(format!("reply magic {other:#x} in {:?}", self.mode))),
            };
            if let Some(answer) = whole {
                return Ok(answer);
            }
        }
    }

    fn simple_answer(&mut self) -> Result<Answer> {
        let bytes = self.receive(12)?;
        let mut header = Reader(&bytes);
        let (error, cookie) = (header.u32()?, header.u64()?);
        let read = self.outstanding.reads.remove(&cookie);
        if self.mode == Mode::Extended || (self.mode == Mode::Structured && read.is_some()) {
            return Err(broken(format!("a simple reply in {:?} mode", self.mode)));
        }
        let length = read.filter(|_| error == 0).map_or(0, |(_, length)| length);
        Ok(Answer {
            cookie,
            error,
            data: self.receive(length as usize)?,
            chunks: Vec::new(),
        })
    }

    /// One chunk; `Some`: it was the last of its reply.
    fn chunk(&mut self) -> Result<Option<Answer>> {
        let extended = self.mode == Mode::Extended;
        let bytes = self.receive(if extended { 28 } else { 16 })?;
        let mut header = Reader(&bytes);
        let (flags, kind, cookie) = (header.u16()?, header.u16()?, header.u64()?);
        let length = if extended {
            header.u64()?; // the request's offset
            header.u64()?
        } else {
            u64::from(header.u32()?)
        };
        if length > CHUNK_MAX {
            return Err(broken(format!("a chunk of {length} bytes")));
        }
        let payload = self.receive(length as usize)?;
        let chunk = decode_chunk(kind, &payload)?;
        let answer = self.outstanding.partial.entry(cookie).or_default();
        answer.cookie = cookie;
        if let Some(Chunk::Error(errno, _)) = &chunk {
            answer.error = *errno;
        }
        answer.chunks.extend(chunk);
        if flags & proto::CHUNK_DONE == 0 {
            return Ok(None);
        }
        let answer = self.outstanding.partial.remove(&cookie);
        self.assembled(answer.unwrap_or_default()).map(Some)
    }

    /// Each byte of a READ exactly once, or the server lied.
    fn assembled(&mut self, mut answer: Answer) -> Result<Answer> {
        let Some((offset, length)) = self.outstanding.reads.remove(&answer.cookie) else {
            return Ok(answer);
        };
        let mut places = Vec::new();
        answer.data = vec![0; length as usize];
        for chunk in &answer.chunks {
            let (at, size, data) = match chunk {
                Chunk::Data(at, data) => (*at, data.len() as u64, Some(data)),
                Chunk::Hole(at, size) => (*at, *size, None),
                _ => continue,
            };
            if at < offset || at + size > offset + length || size == 0 {
                return Err(broken(format!("chunk {at}+{size} of {offset}+{length}")));
            }
            places.push((at, size));
            let from = (at - offset) as usize;
            if let Some(data) = data {
                answer.data[from..from + data.len()].copy_from_slice(data);
            }
        }
        places.sort_unstable();
        if places.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0) {
            return Err(broken(format!("chunks overlap: {places:?}")));
        }
        let covered: u64 = places.iter().map(|(_, size)| size).sum();
        if answer.error == 0 && covered != length {
            return Err(broken("a successful READ lacks data".to_owned()));
        }
        Ok(answer)
    }
}

fn decode_chunk(kind: u16, payload: &[u8]) -> Result<Option<Chunk>> {
    let mut data = Reader(payload);
    Ok(Some(match kind {
        proto::CHUNK_NONE if payload.is_empty() => return Ok(None),
        proto::CHUNK_DATA => Chunk::Data(data.u64()?, data.0.to_vec()),
        proto::CHUNK_HOLE => Chunk::Hole(data.u64()?, u64::from(data.u32()?)),
        proto::CHUNK_STATUS => {
            let context = data.u32()?;
            let mut runs = Vec::new();
            while !data.0.is_empty() {
                runs.push((u64::from(data.u32()?), u64::from(data.u32()?)));
            }
            Chunk::Status(context, runs)
        }
        proto::CHUNK_STATUS_EXT => {
            let (context, count) = (data.u32()?, data.u32()?);
            let mut runs = Vec::new();
            while !data.0.is_empty() {
                runs.push((data.u64()?, data.u64()?));
            }
            if runs.len() != count as usize {
                return Err(broken(format!("{count} runs said, {} sent", runs.len())));
            }
            Chunk::Status(context, runs)
        }
        kind if kind & proto::CHUNK_ERROR_BIT != 0 => {
            let (errno, length) = (data.u32()?, data.u16()?);
            let text = String::from_utf8_lossy(data.take(length.into())?).into_owned();
            if errno == 0 {
                return Err(broken("an error chunk without an error".to_owned()));
            }
            Chunk::Error(errno, text)
        }
        kind => return Err(broken(format!("chunk type {kind}"))),
    }))
}

fn broken(what: String) -> PeerError {
    PeerError::Protocol(what)
}
