//! What each NBD option does on this server, and what it answers.
//!
//! Owns the answers: the standard's options and the two private ones. Called by the handshake, which reads and
//! writes. Does no I/O of its own; may wait for the writer role or for a fence.

use super::catalog::{Export, transmission_flags};
use super::handshake::{Agreed, Handshake, Next};
use super::link::ReplyMode;
use super::roles::RoleError;
use super::wire::{self, FenceRequest, SessionReply, SessionRequest};
use crate::nbd::proto::{self, Info, InfoRequest, MetaRequest, encode_reply};
use crate::units::Id;

/// The one metadata context there is, and its number in transmission phase.
pub const ALLOCATION: &str = "base:allocation";
pub const ALLOCATION_ID: u32 = 1;
/// Clients that negotiate no block sizes keep to this one, by the protocol's advice.
const SECTOR: u32 = 512;

/// An error reply.
#[derive(Debug)]
pub(super) struct Refusal {
    pub kind: u32,
    pub text: String,
}

impl Refusal {
    fn new(kind: u32, text: impl Into<String>) -> Self {
        Refusal {
            kind,
            text: text.into(),
        }
    }

    fn invalid(text: impl Into<String>) -> Self {
        Refusal::new(proto::REP_ERR_INVALID, text)
    }

    /// The same for what isn't there and what this peer may not know of.
    fn unknown(name: &str) -> Self {
        let name = proto::printable(name.as_bytes());
        Refusal::new(
            proto::REP_ERR_UNKNOWN,
            format!("there is no export `{name}` here"),
        )
    }

    fn gone(name: &str) -> Self {
        let text = format!("export `{name}` is going away; it may be back soon");
        Refusal::new(proto::REP_ERR_SHUTDOWN, text)
    }
}

impl From<RoleError> for Refusal {
    fn from(error: RoleError) -> Self {
        Refusal::new(proto::REP_ERR_POLICY, error.to_string())
    }
}

/// The replies of an option that succeeded, without the last ACK.
type Replies = Vec<u8>;

impl<S> Handshake<'_, S> {
    /// Everything but EXPORT_NAME.
    pub(super) async fn option(&mut self, option: u32, data: &[u8]) -> Next {
        let answer = match option {
            proto::OPT_GO => return self.go(data).await,
            // The protocol has nothing to say about data here, and an answer hurts nobody.
            proto::OPT_ABORT => return Next::Leave(encode_reply(option, proto::REP_ACK, b"")),
            proto::OPT_LIST => empty(data).map(|()| self.list()),
            proto::OPT_INFO => self.info(data),
            proto::OPT_STARTTLS => empty(data).and_then(|()| {
                let text = "this server has no TLS yet";
                Err(Refusal::new(proto::REP_ERR_UNSUP, text))
            }),
            proto::OPT_STRUCTURED_REPLY => empty(data).and_then(|()| self.structured()),
            proto::OPT_EXTENDED_HEADERS => empty(data).and_then(|()| self.extended()),
            proto::OPT_LIST_META_CONTEXT => self.list_contexts(data),
            proto::OPT_SET_META_CONTEXT => self.set_contexts(data),
            wire::OPT_SESSION => self.session(data),
            wire::OPT_FENCE => self.fence(data).await,
            _ => Err(Refusal::new(proto::REP_ERR_UNSUP, "")),
        };
        let (mut bytes, last) = match answer {
            Ok(replies) => (replies, encode_reply(option, proto::REP_ACK, b"")),
            Err(refusal) => (Vec::new(), refused(option, &refusal)),
        };
        bytes.extend(last);
        Next::Reply(bytes)
    }

    fn list(&self) -> Replies {
        let catalog = self.exports.catalog();
        let servers = catalog.visible(self.peer).flat_map(|export| {
            let data = proto::encode_server_reply(&export.name, &export.config.description);
            encode_reply(proto::OPT_LIST, proto::REP_SERVER, &data)
        });
        servers.collect()
    }

    fn structured(&mut self) -> Result<Replies, Refusal> {
        match self.mode {
            ReplyMode::Simple => {
                self.mode = ReplyMode::Structured;
                Ok(Vec::new())
            }
            ReplyMode::Structured => {
                Err(Refusal::invalid("structured replies are agreed on already"))
            }
            ReplyMode::Extended => Err(Refusal::new(
                proto::REP_ERR_EXT_HEADER_REQD,
                "extended headers are agreed on already",
            )),
        }
    }

    fn extended(&mut self) -> Result<Replies, Refusal> {
        if self.mode == ReplyMode::Extended {
            return Err(Refusal::invalid("extended headers are agreed on already"));
        }
        self.mode = ReplyMode::Extended;
        Ok(Vec::new())
    }

    fn list_contexts(&mut self, data: &[u8]) -> Result<Replies, Refusal> {
        let request = self.meta_request(data)?;
        let told = request.queries.is_empty()
            || request
                .queries
                .iter()
                .any(|query| query == ALLOCATION || query == "base:");
        Ok(context(proto::OPT_LIST_META_CONTEXT, 0, told))
    }

    /// Replaces what was chosen before, also by nothing.
    fn set_contexts(&mut self, data: &[u8]) -> Result<Replies, Refusal> {
        self.allocation = None;
        let request = self.meta_request(data)?;
        let chosen = request.queries.iter().any(|query| query == ALLOCATION);
        if chosen {
            self.allocation = Some(request.name);
        }
        Ok(context(proto::OPT_SET_META_CONTEXT, ALLOCATION_ID, chosen))
    }

    fn meta_request(&self, data: &[u8]) -> Result<MetaRequest, Refusal> {
        if self.mode < ReplyMode::Structured {
            let text = "agree on structured replies or extended headers first";
            return Err(Refusal::invalid(text));
        }
        let request = MetaRequest::decode(data)
            .ok_or_else(|| Refusal::invalid("the lengths in the option don't add up"))?;
        match self.exports.catalog().find(&request.name, self.peer) {
            Some(_) => Ok(request),
            None => Err(Refusal::unknown(&request.name)),
        }
    }

    fn info(&mut self, data: &[u8]) -> Result<Replies, Refusal> {
        let request = info_request(data)?;
        let catalog = self.exports.catalog();
        let export = catalog
            .find(&request.name, self.peer)
            .ok_or_else(|| Refusal::unknown(&request.name))?;
        let open = available(export)?;
        let read_only = export.read_only_for(&open, self.peer);
        let structured = self.mode >= ReplyMode::Structured;
        let flags = transmission_flags(&open.backend, read_only, structured);
        Ok(infos(proto::OPT_INFO, export, &open, flags, &request))
    }

    async fn go(&mut self, data: &[u8]) -> Next {
        let option = proto::OPT_GO;
        let request = match info_request(data) {
            Ok(request) => request,
            Err(refusal) => return Next::Reply(refused(option, &refusal)),
        };
        match self.choose(&request.name, Some(&request)).await {
            Ok(agreed) => {
                let Agreed { export, open, .. } = &*agreed;
                let mut bytes = infos(option, export, open, agreed.flags, &request);
                bytes.extend(encode_reply(option, proto::REP_ACK, b""));
                Next::Serve(bytes, agreed)
            }
            Err(refusal) => Next::Reply(refused(option, &refusal)),
        }
    }

    /// Takes a place at an export; `None` for a client that can't ask for its block sizes.
    pub(super) async fn choose(
        &mut self,
        name: &str,
        request: Option<&InfoRequest>,
    ) -> Result<Box<Agreed>, Refusal> {
        // A copy: the catalog would keep storage open that a reload wants closed, and a join can take long.
        let export = self.exports.catalog().find(name, self.peer).cloned();
        let export = export.ok_or_else(|| Refusal::unknown(name))?;
        let open = available(&export)?;
        check_blocks(open.backend.traits().min_block, request)?;
        // In the list before it joins: a reload that looks from here on sees it.
        let registered = open
            .register(self.gate)
            .ok_or_else(|| Refusal::gone(&export.name))?;
        let session = self.session.as_ref().filter(|s| s.export == name);
        let (gate, peer) = (self.gate.clone(), self.peer.to_string());
        let joined = if export.read_only_for(&open, self.peer) {
            open.roles.join_read_only(session, gate, peer).await?
        } else {
            open.roles.join(session, gate, peer).await?
        };
        let structured = self.mode >= ReplyMode::Structured;
        let allocation = self.allocation.take().filter(|chosen| chosen == name);
        Ok(Box::new(Agreed {
            flags: transmission_flags(&open.backend, joined.read_only, structured),
            mode: self.mode,
            allocation: allocation.map(|_| ALLOCATION_ID),
            read_only: joined.read_only,
            registered,
            open,
            export,
        }))
    }

    fn session(&mut self, data: &[u8]) -> Result<Replies, Refusal> {
        self.session = None;
        let request = SessionRequest::decode(data).map_err(|e| Refusal::invalid(e.to_string()))?;
        let catalog = self.exports.catalog();
        let export = catalog
            .find(&request.export, self.peer)
            .ok_or_else(|| Refusal::unknown(&request.export))?;
        let open = available(export)?;
        let held = open.roles.identify(&request);
        let reply = SessionReply {
            held_by_other: held.by_other,
            identity: Id(open.backend.identity()),
            incarnation: Id(open.backend.incarnation()),
            holder: held.text,
        };
        // One that only identifies is told to the roles as well, and counts as none there.
        self.session = Some(request);
        Ok(encode_reply(
            wire::OPT_SESSION,
            wire::REP_SESSION,
            &reply.encode(),
        ))
    }

    async fn fence(&mut self, data: &[u8]) -> Result<Replies, Refusal> {
        let request = FenceRequest::decode(data).map_err(|e| Refusal::invalid(e.to_string()))?;
        let open = {
            let catalog = self.exports.catalog();
            let export = catalog
                .find(&request.export, self.peer)
                .ok_or_else(|| Refusal::unknown(&request.export))?;
            available(export)?
        };
        open.roles.fence(&request).await;
        Ok(Vec::new())
    }
}

fn refused(option: u32, refusal: &Refusal) -> Vec<u8> {
    // No text of the protocol is longer.
    let mut end = refusal.text.len().min(proto::STRING_MAX);
    while !refusal.text.is_char_boundary(end) {
        end -= 1;
    }
    encode_reply(option, refusal.kind, &refusal.text.as_bytes()[..end])
}

fn empty(data: &[u8]) -> Result<(), Refusal> {
    match data {
        [] => Ok(()),
        _ => Err(Refusal::invalid("this option has no data")),
    }
}

fn info_request(data: &[u8]) -> Result<InfoRequest, Refusal> {
    InfoRequest::decode(data)
        .ok_or_else(|| Refusal::invalid("the lengths in the option don't add up"))
}

/// Why it can't be had is in the server's log, not for clients.
fn available(export: &Export) -> Result<std::sync::Arc<super::catalog::Open>, Refusal> {
    export.open.clone().map_err(|_| {
        let text = format!("export `{}` isn't available now", export.name);
        Refusal::new(proto::REP_ERR_UNKNOWN, text)
    })
}

/// A client that doesn't know the block size would send requests that must fail. Who doesn't ask, as nbd-client, uses
/// sectors.
fn check_blocks(min_block: u32, request: Option<&InfoRequest>) -> Result<(), Refusal> {
    let asks = request.is_some_and(|request| request.wants(proto::INFO_BLOCK_SIZE));
    if asks || min_block <= SECTOR {
        return Ok(());
    }
    let text =
        format!("ask for NBD_INFO_BLOCK_SIZE: requests must be multiples of {min_block} bytes");
    Err(Refusal::new(proto::REP_ERR_BLOCK_SIZE_REQD, text))
}

fn context(option: u32, id: u32, told: bool) -> Replies {
    if !told {
        return Vec::new();
    }
    let data = proto::encode_meta_context(id, ALLOCATION);
    encode_reply(option, proto::REP_META_CONTEXT, &data)
}

/// Size, flags and block sizes always; name and description where they are asked for.
fn infos(
    option: u32,
    export: &Export,
    open: &super::catalog::Open,
    flags: crate::kernel::NbdFlags,
    request: &InfoRequest,
) -> Replies {
    let traits = open.backend.traits();
    let mut infos = vec![
        Info::Export {
            size: traits.size,
            flags,
        },
        Info::BlockSize {
            minimum: traits.min_block,
            preferred: traits.pref_block,
            maximum: traits.max_payload,
        },
    ];
    if request.wants(proto::INFO_NAME) {
        infos.push(Info::Name(export.name.clone()));
    }
    if request.wants(proto::INFO_DESCRIPTION) && !export.config.description.is_empty() {
        infos.push(Info::Description(export.config.description.clone()));
    }
    let replies = infos
        .iter()
        .flat_map(|info| encode_reply(option, proto::REP_INFO, &info.encode()));
    replies.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_no_block_size_gets_sectors_and_nothing_larger() {
        let go = |wanted: &[u16]| InfoRequest {
            name: "a".into(),
            wanted: wanted.into(),
        };
        let (mute, asking) = (go(&[proto::INFO_NAME]), go(&[proto::INFO_BLOCK_SIZE]));
        for (min_block, request, ok) in [
            (1, None, true),
            (512, None, true),
            (4096, None, false),
            (1, Some(&mute), true),
            (512, Some(&mute), true),
            (4096, Some(&mute), false),
            (4096, Some(&asking), true),
        ] {
            let answer = check_blocks(min_block, request).map_err(|refusal| refusal.kind);
            let due = if ok {
                Ok(())
            } else {
                Err(proto::REP_ERR_BLOCK_SIZE_REQD)
            };
            assert_eq!(answer, due, "{min_block} bytes, {request:?}");
        }
    }
}
