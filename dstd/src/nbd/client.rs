//! The client's side of the NBD handshake: fixed newstyle, simple replies only.
//!
//! Owns what is said to a server until the transmission phase. Called by the connector and
//! by `dstd probe`. Reads exactly the bytes the protocol names, never ahead: whatever comes
//! after the handshake belongs to the kernel. Every read and write has the same deadline.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::error::NbdError;
use super::limits::{BlockLimits, check_export};
use super::proto::{self, Info, ReplyHeader};
use super::socket::{Liveness, Stream};
use super::uri::NbdUri;
use crate::export::wire::{self, FenceRequest, SessionReply, SessionRequest};
use crate::kernel::{Attach, Connection, Fence, NbdFlags, Negotiated, Probed, Writer};
use crate::units::{Bytes, Id, Session};

/// From resolving the name to the end of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// No honest reply is longer: a name, a description or an error text of 4096 bytes each.
const REPLY_MAX: u32 = 16 * 1024;
/// No honest GO or INFO has more replies.
const INFO_REPLIES_MAX: usize = 64;
/// Names read for the hint in "no such export".
const LIST_REPLIES_MAX: usize = 1000;
const WANTED: [u16; 2] = [proto::INFO_DESCRIPTION, proto::INFO_BLOCK_SIZE];

/// One connection in transmission phase, as a link of a session where the server knows sessions.
pub async fn connect(
    uri: &NbdUri,
    attach: &Attach,
    limit: Duration,
) -> Result<Connection, NbdError> {
    let deadline = Deadline::new(limit);
    let mut stream = open(uri, deadline).await?;
    stream.set_liveness(Liveness::of(attach.timeout))?;
    let export = &uri.export;
    let negotiated = match &mut stream {
        Stream::Tcp(tcp) => Handshake::new(tcp, deadline).attach(export, attach).await?,
        Stream::Unix(unix) => {
            let handshake = Handshake::new(unix, deadline);
            handshake.attach(export, attach).await?
        }
    };
    let same_host = stream.same_host();
    let socket = stream.into_fd().map_err(|error| NbdError::Broken {
        what: "taking the socket over".to_owned(),
        error,
    })?;
    Ok(Connection {
        negotiated,
        socket,
        same_host,
    })
}

/// Has the server end old links for good; returns when it has said so.
pub async fn fence(uri: &NbdUri, fence: &Fence, limit: Duration) -> Result<(), NbdError> {
    let deadline = Deadline::new(limit);
    let export = &uri.export;
    match &mut open(uri, deadline).await? {
        Stream::Tcp(tcp) => Handshake::new(tcp, deadline).fence(export, fence).await,
        Stream::Unix(unix) => Handshake::new(unix, deadline).fence(export, fence).await,
    }
}

/// What the export is, and who may write to it; never enters the transmission phase where the server can tell without.
pub async fn probe(uri: &NbdUri, client: Id, limit: Duration) -> Result<Probed, NbdError> {
    let deadline = Deadline::new(limit);
    let export = &uri.export;
    match &mut open(uri, deadline).await? {
        Stream::Tcp(tcp) => Handshake::new(tcp, deadline).probe(export, client).await,
        Stream::Unix(unix) => Handshake::new(unix, deadline).probe(export, client).await,
    }
}

async fn open(uri: &NbdUri, deadline: Deadline) -> Result<Stream, NbdError> {
    let connecting = timeout_at(deadline.at, Stream::connect(&uri.address)).await;
    connecting.unwrap_or_else(|_| Err(deadline.missed(&format!("connecting to {}", uri.address))))
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn new(limit: Duration) -> Self {
        Deadline {
            at: Instant::now() + limit,
            limit,
        }
    }

    fn missed(self, what: &str) -> NbdError {
        NbdError::Timeout {
            what: what.to_owned(),
            after: self.limit,
        }
    }
}

/// What a GO, INFO or EXPORT_NAME has told so far.
#[derive(Debug, Default)]
struct Told {
    export: Option<(u64, NbdFlags)>,
    block_sizes: Option<(u32, u32, u32)>,
    description: Option<String>,
}

impl Told {
    fn take(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => self.export = Some((size, flags)),
            Info::BlockSize {
                minimum,
                preferred,
                maximum,
            } => {
                self.block_sizes = Some((minimum, preferred, maximum));
            }
            Info::Description(text) => self.description = Some(text),
            Info::Name(_) | Info::Other(_) => {}
        }
    }

    /// nbd-server (3.24) answers INFO with size 0, as it opens the export at GO only.
    fn is_trustworthy(&self) -> bool {
        self.export.is_some_and(|(size, _)| size > 0)
    }

    fn finish(self, option: u32) -> Result<Negotiated, NbdError> {
        let (size, flags) = self.export.ok_or_else(|| NbdError::BadReply {
            option: proto::option_name(option),
            why: "it doesn't tell the export's size (NBD_INFO_EXPORT)".to_owned(),
        })?;
        check_export(size, flags)?;
        let limits = match self.block_sizes {
            Some((a, b, c)) => BlockLimits::check(a, b, c, size)?,
            None => BlockLimits::default(),
        };
        Ok(Negotiated {
            size: Bytes(size),
            flags,
            min_block: limits.minimum,
            pref_block: limits.preferred,
            max_payload: limits.maximum,
            description: self.description.filter(|text| !text.is_empty()),
            identity: None,
            incarnation: None,
        })
    }
}

/// How the server answered a GO or INFO.
enum Answer {
    Told(Told),
    /// It doesn't know the option.
    Unsupported,
}

pub(super) struct Handshake<'a, S> {
    stream: &'a mut S,
    deadline: Deadline,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Handshake<'a, S> {
    pub(super) fn new(stream: &'a mut S, deadline: Deadline) -> Self {
        Handshake { stream, deadline }
    }

    pub(super) async fn attach(
        mut self,
        export: &str,
        attach: &Attach,
    ) -> Result<Negotiated, NbdError> {
        let flags = self.greet().await?;
        let mut answer = None;
        if flags & proto::FLAG_FIXED_NEWSTYLE != 0 {
            let request = SessionRequest {
                steal: attach.steal,
                identify_only: false,
                slot: attach.slot.0,
                generation: attach.generation.0.into(),
                session: attach.session,
                export: export.to_owned(),
            };
            answer = self.introduce(&request).await?;
        }
        let negotiated = match (self.enter(export, flags).await, &answer) {
            // Whether it is the writer role that stands in the way, or an allow list.
            (Err(NbdError::Policy { export, text }), Some(told)) if told.held_by_other => {
                return Err(NbdError::Held { export, text });
            }
            (entered, _) => entered?,
        };
        Ok(identified(negotiated, answer.as_ref()))
    }

    pub(super) async fn probe(mut self, export: &str, client: Id) -> Result<Probed, NbdError> {
        let flags = self.greet().await?;
        let mut answer = None;
        if flags & proto::FLAG_FIXED_NEWSTYLE != 0 {
            let nonce = Id::default();
            answer = self.identify(export, Session { client, nonce }).await?;
            // A server that knows sessions opens its exports before it listens: it knows their size.
            if let Answer::Told(told) = self.ask(proto::OPT_INFO, export).await?
                && (answer.is_some() || told.is_trustworthy())
            {
                let negotiated = told.finish(proto::OPT_INFO)?;
                // The server may close without answering; the facts are already here.
                let _ = self
                    .send(&proto::encode_option(proto::OPT_ABORT, b""), "leaving")
                    .await;
                return Ok(probed(negotiated, answer));
            }
        }
        let negotiated = self.enter(export, flags).await?;
        let _ = self.send(&proto::encode_disconnect(), "leaving").await;
        Ok(probed(negotiated, answer))
    }

    /// SESSION; `None`: the server doesn't know it.
    async fn introduce(
        &mut self,
        request: &SessionRequest,
    ) -> Result<Option<SessionReply>, NbdError> {
        let option = wire::OPT_SESSION;
        let name = proto::option_name(option);
        let bytes = proto::encode_option(option, &request.encode());
        self.send(&bytes, &format!("sending {name}")).await?;
        let bad = |why: String| NbdError::BadReply { option: name, why };
        let mut told = None;
        for _ in 0..INFO_REPLIES_MAX {
            let (kind, data) = self.reply(option).await?;
            match kind {
                proto::REP_ACK => {
                    let silent = || bad("it doesn't tell what the export is".to_owned());
                    return told.ok_or_else(silent).map(Some);
                }
                wire::REP_SESSION => {
                    told = Some(SessionReply::decode(&data).map_err(|e| bad(e.to_string()))?);
                }
                proto::REP_ERR_UNSUP => return Ok(None),
                kind if kind & proto::REP_ERROR_BIT != 0 => {
                    return Err(self.refused(option, kind, &data, &request.export).await);
                }
                kind => return Err(bad(format!("reply type {kind} doesn't belong to it"))),
            }
        }
        Err(bad(format!(
            "more than {INFO_REPLIES_MAX} replies without an end"
        )))
    }

    /// Asks who the export is, and takes nothing.
    async fn identify(
        &mut self,
        export: &str,
        session: Session,
    ) -> Result<Option<SessionReply>, NbdError> {
        let request = SessionRequest {
            steal: false,
            identify_only: true,
            slot: 0,
            generation: 0,
            session,
            export: export.to_owned(),
        };
        self.introduce(&request).await
    }

    /// Only the export that the links led to can tell that they are ended, and only in the incarnation that had them: any
    /// other would say so of links that it never had.
    pub(super) async fn fence(mut self, export: &str, fence: &Fence) -> Result<(), NbdError> {
        if self.greet().await? & proto::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::NoFences);
        }
        let told = self.identify(export, fence.session).await?;
        let told = told.ok_or(NbdError::NoFences)?;
        if told.identity != fence.identity {
            return Err(NbdError::OtherExport {
                expected: fence.identity,
                found: told.identity,
            });
        }
        if told.incarnation != fence.incarnation {
            return Err(NbdError::OtherIncarnation {
                expected: fence.incarnation,
                found: told.incarnation,
            });
        }
        self.ask_fence(export, fence).await?;
        let abort = proto::encode_option(proto::OPT_ABORT, b"");
        let _ = self.send(&abort, "leaving").await;
        Ok(())
    }

    async fn ask_fence(&mut self, export: &str, fence: &Fence) -> Result<(), NbdError> {
        let option = wire::OPT_FENCE;
        let request = FenceRequest {
            slot: fence.slot.0,
            generation: fence.generation.0.into(),
            session: fence.session,
            export: export.to_owned(),
        };
        let bytes = proto::encode_option(option, &request.encode());
        let name = proto::option_name(option);
        self.send(&bytes, &format!("sending {name}")).await?;
        match self.reply(option).await {
            Ok((proto::REP_ACK, _)) => Ok(()),
            Ok((proto::REP_ERR_UNSUP, _)) => Err(NbdError::NoFences),
            Ok((kind, data)) if kind & proto::REP_ERROR_BIT != 0 => {
                let text = proto::printable(&data);
                Err(NbdError::from_reply(option, kind, text, export))
            }
            Ok((kind, _)) => Err(NbdError::BadReply {
                option: name,
                why: format!("reply type {kind} doesn't belong to it"),
            }),
            Err(NbdError::Timeout { after, .. }) => Err(NbdError::FenceUnanswered {
                slot: fence.slot,
                after,
            }),
            Err(error) => Err(error),
        }
    }

    /// Reads the greeting, answers with the client's flags, returns the server's.
    async fn greet(&mut self) -> Result<u16, NbdError> {
        let mut magic = [0; 8];
        self.receive_greeting(&mut magic).await?;
        if u64::from_be_bytes(magic) != proto::NBDMAGIC {
            return Err(NbdError::NotNbd(seen(&magic)));
        }
        let what = "waiting for the rest of the greeting";
        self.receive(&mut magic, what).await?;
        match u64::from_be_bytes(magic) {
            proto::IHAVEOPT => {}
            proto::OLDSTYLE_MAGIC => return Err(NbdError::Oldstyle),
            _ => {
                return Err(NbdError::NotNbd(format!(
                    "NBDMAGIC and then {}",
                    seen(&magic)
                )));
            }
        }
        let mut flags = [0; 2];
        self.receive(&mut flags, what).await?;
        let flags = u16::from_be_bytes(flags);
        let known = flags & (proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES);
        self.send(&u32::from(known).to_be_bytes(), "answering the greeting")
            .await?;
        Ok(flags)
    }

    /// Enters the transmission phase: with GO, or as servers without GO want it.
    async fn enter(&mut self, export: &str, flags: u16) -> Result<Negotiated, NbdError> {
        if flags & proto::FLAG_FIXED_NEWSTYLE != 0
            && let Answer::Told(told) = self.ask(proto::OPT_GO, export).await?
        {
            return told.finish(proto::OPT_GO);
        }
        let option = proto::encode_option(proto::OPT_EXPORT_NAME, export.as_bytes());
        self.send(&option, "sending NBD_OPT_EXPORT_NAME").await?;
        let mut answer = [0; 10];
        let what = "waiting for the answer to NBD_OPT_EXPORT_NAME";
        self.receive(&mut answer, what)
            .await
            .map_err(|error| match error {
                // The option's only way to say no is to hang up.
                NbdError::Closed(_) | NbdError::Broken { .. } => {
                    NbdError::ExportNameRefused(export.to_owned())
                }
                other => other,
            })?;
        if flags & proto::FLAG_NO_ZEROES == 0 {
            self.receive(&mut [0; proto::EXPORT_NAME_ZEROES], what)
                .await?;
        }
        let flags = NbdFlags(proto::u16_at(&answer, 8));
        let export = Some((proto::u64_at(&answer, 0), flags));
        Told {
            export,
            ..Told::default()
        }
        .finish(proto::OPT_EXPORT_NAME)
    }

    /// GO or INFO up to its final reply.
    async fn ask(&mut self, option: u32, export: &str) -> Result<Answer, NbdError> {
        let name = proto::option_name(option);
        let request = proto::encode_info_request(export, &WANTED);
        let request = proto::encode_option(option, &request);
        self.send(&request, &format!("sending {name}")).await?;
        let mut told = Told::default();
        for _ in 0..INFO_REPLIES_MAX {
            let (kind, data) = self.reply(option).await?;
            match kind {
                proto::REP_ACK => return Ok(Answer::Told(told)),
                proto::REP_INFO => told.take(Info::decode(&data).ok_or_else(|| {
                    let why = format!(
                        "an information of {} bytes doesn't fit its type",
                        data.len()
                    );
                    NbdError::BadReply { option: name, why }
                })?),
                proto::REP_ERR_UNSUP => return Ok(Answer::Unsupported),
                kind if kind & proto::REP_ERROR_BIT != 0 => {
                    return Err(self.refused(option, kind, &data, export).await);
                }
                kind => {
                    let why = format!("reply type {kind} doesn't belong to it");
                    return Err(NbdError::BadReply { option: name, why });
                }
            }
        }
        let why = format!("more than {INFO_REPLIES_MAX} replies without an end");
        Err(NbdError::BadReply { option: name, why })
    }

    async fn refused(&mut self, option: u32, kind: u32, data: &[u8], export: &str) -> NbdError {
        let mut error = NbdError::from_reply(option, kind, proto::printable(data), export);
        if let NbdError::UnknownExport { known, .. } = &mut error {
            *known = self.list().await;
        }
        let _ = self
            .send(&proto::encode_option(proto::OPT_ABORT, b""), "leaving")
            .await;
        error
    }

    /// The server's exports, for a hint only: whatever goes wrong, there is less of a hint.
    async fn list(&mut self) -> Vec<String> {
        let mut known = Vec::new();
        let request = proto::encode_option(proto::OPT_LIST, b"");
        if self.send(&request, "sending NBD_OPT_LIST").await.is_ok() {
            while known.len() < LIST_REPLIES_MAX {
                match self.reply(proto::OPT_LIST).await {
                    Ok((proto::REP_SERVER, data)) => {
                        known.extend(proto::decode_server_reply(&data))
                    }
                    _ => break,
                }
            }
        }
        known
    }

    /// One option reply: its type and data.
    async fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
        let name = proto::option_name(option);
        let what = format!("waiting for the answer to {name}");
        let bad = |why| Err(NbdError::BadReply { option: name, why });
        let mut bytes = [0; proto::REPLY_HEADER_LEN];
        self.receive(&mut bytes, &what).await?;
        let header = ReplyHeader::decode(&bytes);
        if header.magic != proto::REPLY_MAGIC {
            return bad(format!("it begins with {}", seen(&bytes[..8])));
        }
        if header.option != option {
            return bad(format!("it answers option {} instead", header.option));
        }
        if header.length > REPLY_MAX {
            return bad(format!(
                "it announces {} bytes; {REPLY_MAX} is the most",
                header.length
            ));
        }
        let mut data = vec![0; header.length as usize];
        self.receive(&mut data, &what).await?;
        Ok((header.kind, data))
    }

    async fn send(&mut self, bytes: &[u8], what: &str) -> Result<(), NbdError> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout_at(self.deadline.at, sending).await {
            Err(_) => Err(self.deadline.missed(what)),
            Ok(done) => done.map_err(|error| broken(error, what)),
        }
    }

    async fn receive(&mut self, bytes: &mut [u8], what: &str) -> Result<(), NbdError> {
        match timeout_at(self.deadline.at, self.stream.read_exact(bytes)).await {
            Err(_) => Err(self.deadline.missed(what)),
            Ok(done) => done.map(drop).map_err(|error| broken(error, what)),
        }
    }

    /// Like `receive`, but what came so far tells what is at the other end.
    async fn receive_greeting(&mut self, magic: &mut [u8; 8]) -> Result<(), NbdError> {
        let mut got = 0;
        while got < magic.len() {
            let what = "waiting for the server's greeting";
            let read = timeout_at(self.deadline.at, self.stream.read(&mut magic[got..])).await;
            match read {
                Ok(Ok(n)) if n > 0 => got += n,
                Ok(Err(error)) => return Err(broken(error, what)),
                _ if got > 0 => {
                    return Err(NbdError::NotNbd(format!("only {}", seen(&magic[..got]))));
                }
                Ok(_) => return Err(NbdError::Closed(what.to_owned())),
                Err(_) => {
                    return Err(self
                        .deadline
                        .missed(&format!("{what}; is it an NBD server?")));
                }
            }
        }
        Ok(())
    }
}

fn identified(negotiated: Negotiated, answer: Option<&SessionReply>) -> Negotiated {
    Negotiated {
        identity: answer.map(|told| told.identity),
        incarnation: answer.map(|told| told.incarnation),
        ..negotiated
    }
}

fn probed(negotiated: Negotiated, answer: Option<SessionReply>) -> Probed {
    Probed {
        negotiated: identified(negotiated, answer.as_ref()),
        writer: answer.map(|told| Writer {
            other: told.held_by_other,
            text: told.holder,
        }),
    }
}

fn broken(error: std::io::Error, what: &str) -> NbdError {
    let what = what.to_owned();
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => NbdError::Closed(what),
        _ => NbdError::Broken { what, error },
    }
}

/// Bytes for people: as text and in hexadecimal.
fn seen(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("\"{}\" ({})", bytes.escape_ascii(), hex.join(" "))
}
