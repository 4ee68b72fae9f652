//! The server's side of the NBD handshake: fixed newstyle, up to the export that a client chooses.
//!
//! Owns one connection's haggling and its time. Called by the server for each newcomer. Reads exactly what the
//! protocol names, never ahead: what comes after the chosen export belongs to a worker. The options themselves
//! are in `options`. Trusts no byte.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::access::Peer;
use super::catalog::{Catalog, Export, Open, Registered};
use super::limits::Limits;
use super::link::{LinkGate, ReplyMode};
use super::wire::SessionRequest;
use crate::kernel::NbdFlags;
use crate::nbd::proto::{self, OptionHeader};

/// No honest option has more data.
pub const OPTION_DATA_MAX: u32 = 64 * 1024;
/// No honest client needs more options.
pub const OPTIONS_MAX: usize = 4096;
const HANDSHAKE_FLAGS: u16 = proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES;

/// Where the exports of the moment are found; a reload replaces them.
pub trait Exports: Send + Sync {
    fn catalog(&self) -> Arc<Catalog>;
}

/// What a client agreed on.
#[derive(Debug)]
pub struct Agreed {
    pub export: Export,
    pub open: Arc<Open>,
    pub mode: ReplyMode,
    pub flags: NbdFlags,
    pub allocation: Option<u32>,
    pub read_only: bool,
    pub registered: Registered,
}

/// How a handshake ended.
#[derive(Debug)]
pub enum Outcome {
    /// The client was told, and may be sending requests already.
    Serve(Box<Agreed>),
    /// It said goodbye.
    Left,
}

/// Why a handshake ended without an export. For the log: a client that can be told was told.
#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error("it went away in the middle of the handshake")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("it set handshake flags {0:#x}; this server knows 0x3 only")]
    ClientFlags(u32),
    #[error("what it sent is no NBD option")]
    NoOption,
    #[error("its option {option} has {length} bytes of data; {OPTION_DATA_MAX} is the most")]
    TooBig { option: u32, length: u32 },
    #[error("it sent more than {OPTIONS_MAX} options")]
    TooMany,
    #[error("nothing came for {0:?} (limits: handshake_idle)")]
    Idle(Duration),
    #[error("the handshake took longer than {0:?} (limits: handshake_timeout)")]
    Late(Duration),
    /// EXPORT_NAME has no other way to say no.
    #[error("refused export `{name}`: {why}")]
    Refused { name: String, why: String },
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => HandshakeError::Closed,
            _ => HandshakeError::Broken(error),
        }
    }
}

/// One connection until it has an export.
pub struct Handshake<'a, S> {
    stream: &'a mut S,
    pub(super) exports: &'a dyn Exports,
    pub(super) peer: &'a Peer,
    pub(super) gate: &'a Arc<LinkGate>,
    limits: &'a Limits,
    no_zeroes: bool,
    pub(super) mode: ReplyMode,
    /// The export's name for which `base:allocation` was chosen.
    pub(super) allocation: Option<String>,
    /// Whose link the next GO makes.
    pub(super) session: Option<SessionRequest>,
}

/// What an option leads to.
pub(super) enum Next {
    /// These replies, then the next option.
    Reply(Vec<u8>),
    /// These replies, and no more options.
    Serve(Vec<u8>, Box<Agreed>),
    Leave(Vec<u8>),
}

impl<S> std::fmt::Debug for Handshake<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("peer", self.peer)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Handshake<'a, S> {
    pub fn new(
        stream: &'a mut S,
        exports: &'a dyn Exports,
        peer: &'a Peer,
        gate: &'a Arc<LinkGate>,
        limits: &'a Limits,
    ) -> Self {
        Handshake {
            stream,
            exports,
            peer,
            gate,
            limits,
            no_zeroes: false,
            mode: ReplyMode::Simple,
            allocation: None,
            session: None,
        }
    }

    /// All of it. Whoever gave the gate ends it if this fails or is dropped: it may have joined the roles.
    pub async fn run(mut self) -> Result<Outcome, HandshakeError> {
        let whole = self.limits.handshake_timeout;
        match timeout(whole, self.haggle()).await {
            Ok(ended) => ended,
            Err(_) => Err(HandshakeError::Late(whole)),
        }
    }

    async fn haggle(&mut self) -> Result<Outcome, HandshakeError> {
        self.greet().await?;
        for _ in 0..OPTIONS_MAX {
            let idle = self.limits.handshake_idle;
            let read = timeout(idle, self.read_option()).await;
            let Some((option, data)) = read.map_err(|_| HandshakeError::Idle(idle))?? else {
                // Many clients leave so, also after a refusal.
                return Ok(Outcome::Left);
            };
            let next = match option {
                proto::OPT_EXPORT_NAME => self.export_name(&data).await?,
                _ => self.option(option, &data).await,
            };
            match next {
                Next::Reply(bytes) => self.stream.write_all(&bytes).await?,
                Next::Serve(bytes, agreed) => {
                    self.stream.write_all(&bytes).await?;
                    return Ok(Outcome::Serve(agreed));
                }
                Next::Leave(bytes) => {
                    // It may be gone already, and that is no error.
                    let _ = self.stream.write_all(&bytes).await;
                    return Ok(Outcome::Left);
                }
            }
        }
        Err(HandshakeError::TooMany)
    }

    async fn greet(&mut self) -> Result<(), HandshakeError> {
        let mut greeting = Vec::with_capacity(18);
        greeting.extend(proto::NBDMAGIC.to_be_bytes());
        greeting.extend(proto::IHAVEOPT.to_be_bytes());
        greeting.extend(HANDSHAKE_FLAGS.to_be_bytes());
        self.stream.write_all(&greeting).await?;
        let idle = self.limits.handshake_idle;
        let read = timeout(idle, self.stream.read_u32()).await;
        let flags = read.map_err(|_| HandshakeError::Idle(idle))??;
        if flags & !u32::from(HANDSHAKE_FLAGS) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(proto::FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// `None`: the client left between two options.
    async fn read_option(&mut self) -> Result<Option<(u32, Vec<u8>)>, HandshakeError> {
        let mut bytes = [0; proto::OPTION_HEADER_LEN];
        if self.stream.read(&mut bytes[..1]).await? == 0 {
            return Ok(None);
        }
        self.stream.read_exact(&mut bytes[1..]).await?;
        let header = OptionHeader::decode(&bytes).ok_or(HandshakeError::NoOption)?;
        let OptionHeader { option, length } = header;
        if length > OPTION_DATA_MAX {
            if option != proto::OPT_EXPORT_NAME {
                let text = format!("{OPTION_DATA_MAX} bytes is the most");
                let bytes = proto::encode_reply(option, proto::REP_ERR_TOO_BIG, text.as_bytes());
                self.stream.write_all(&bytes).await?;
            }
            return Err(HandshakeError::TooBig { option, length });
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).await?;
        Ok(Some((option, data)))
    }

    /// The oldest way to choose: no error can be told, so whatever is wrong ends the connection.
    async fn export_name(&mut self, data: &[u8]) -> Result<Next, HandshakeError> {
        let name = String::from_utf8_lossy(data).into_owned();
        let shown = proto::printable(name.as_bytes());
        let refused = |why: String| HandshakeError::Refused { name: shown, why };
        if std::str::from_utf8(data).is_err() || data.len() > proto::STRING_MAX {
            return Err(refused("that is no name".to_owned()));
        }
        if self.mode == ReplyMode::Extended {
            return Err(refused(
                "it asked for extended headers, and those need NBD_OPT_GO".to_owned(),
            ));
        }
        let agreed = match self.choose(&name, None).await {
            Ok(agreed) => agreed,
            Err(refusal) => return Err(refused(refusal.text)),
        };
        let mut bytes = Vec::with_capacity(10 + proto::EXPORT_NAME_ZEROES);
        bytes.extend(agreed.open.backend.traits().size.to_be_bytes());
        bytes.extend(agreed.flags.0.to_be_bytes());
        if !self.no_zeroes {
            bytes.extend([0; proto::EXPORT_NAME_ZEROES]);
        }
        Ok(Next::Serve(bytes, agreed))
    }
}
