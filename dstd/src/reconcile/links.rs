//! Connects a node and hands its links to the kernel.
//! Called by execute (one shot) and worker (daemon). Looks at the node afresh first, so that a link which came
//! in the meantime isn't replaced; never replaces a live link unless it is told to, or its server has become another.
//! Fences nothing: `fence` does, beside it.

use std::sync::Arc;

use nix::errno::Errno;
use thiserror::Error;
use tracing::info;

use super::blocking;
use crate::kernel::{
    Attach, ConnectError, Connection, Connector, Kernel, KernelError, LinkState, LinksSet,
    Negotiated, NewLink, ObservedLink, ObservedNode,
};
use crate::nbd::uri::NbdUri;
use crate::plan::{Connect, missing_slots, other_address, other_identity};
use crate::units::{DeviceName, Generation, NodeName, Session, Slot};

#[derive(Clone, Debug, Error)]
pub enum LinkError {
    #[error("node {node}: {error}")]
    Connect { node: NodeName, error: ConnectError },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("interrupted: neither this step nor any after it was begun")]
    Interrupted,
    #[error("node {0}: no table names it any more")]
    Gone(NodeName),
    #[error(
        "device {0}: an earlier call about it hasn't returned; nothing is done to it until it has"
    )]
    Hangs(DeviceName),
    #[error("node {node} has {live} of {wanted} links, and the next one fails: {error}")]
    Fewer {
        node: NodeName,
        live: u32,
        wanted: u32,
        error: ConnectError,
    },
    #[error(
        "node {0}: two connections to it agreed on different sizes, flags or identities: are they served by different servers?"
    )]
    Disagree(NodeName),
    #[error("node {node}: {why}: `dstd apply --same-data {node}`")]
    Stranger { node: NodeName, why: String },
    #[error("node {0}: its link generations are used up: remove its devices and make them anew")]
    Generations(NodeName),
}

/// Times that another dstd's links may come first before it is told as an error.
const ATTEMPTS: usize = 3;
/// Times that its server may turn out to be another one: session, other links, and then it must fit.
const VERDICTS: usize = 3;

/// Gives a node the links it lacks. Answers with the node as the kernel then has it. Links that could be made are the
/// kernel's also where a later one couldn't: a node that was lost is degraded then.
///
/// A link's generation is told to the server before the kernel hears of it, so it is chosen from the node's newest.
/// Another dstd may choose the same: the kernel takes one, and the other looks again.
pub async fn connect<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &C,
    uri: &NbdUri,
    want: &Connect,
) -> Result<ObservedNode, LinkError> {
    let mut attempt = 1;
    loop {
        match connect_once(kernel, connector, uri, want).await {
            Err(LinkError::Kernel(error)) if error.is(Errno::ESTALE) && attempt < ATTEMPTS => {
                info!(node = %want.node, "node {}: another dstd connected it meanwhile", want.node);
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn connect_once<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &C,
    uri: &NbdUri,
    want: &Connect,
) -> Result<ObservedNode, LinkError> {
    let node = look(kernel, &want.node).await?;
    // A node that was made anew since has lost its settings; its first link must not be under others than it should.
    if node.conduct != want.conduct {
        let (name, conduct) = (want.node.clone(), want.conduct);
        blocking(kernel, move |kernel| kernel.set_conduct(&name, &conduct)).await?;
    }
    let mut attempt = Attempt {
        session: match node.session {
            Some(session) => session,
            None => new_session(connector, uri, &node)?,
        },
        replace: want.replace,
    };
    for _ in 0..VERDICTS {
        let Some(made) = make(connector, uri, want, &node, attempt).await? else {
            return Ok(node);
        };
        match judge(&node, uri, want, attempt, &made.links) {
            Verdict::Fits if made.surplus => return Ok(node),
            Verdict::Fits => {
                let request = request(want, attempt.session, made.links)?;
                let node = blocking(kernel, |kernel| kernel.links_set(request)).await?;
                return made
                    .failed
                    .map_or(Ok(node.clone()), |error| Err(fewer(node, error)));
            }
            Verdict::OtherSession => attempt.session = new_session(connector, uri, &node)?,
            Verdict::OtherAddress => {
                attempt.session = new_session(connector, uri, &node)?;
                attempt.replace = Some(node.generation);
            }
            Verdict::OtherServer => attempt.replace = Some(node.generation),
            Verdict::Stranger(why) => {
                let node = want.node.clone();
                return Err(LinkError::Stranger { node, why });
            }
        }
    }
    Err(LinkError::Disagree(want.node.clone()))
}

/// What changes when a server turns out to be another one than thought.
#[derive(Clone, Copy)]
struct Attempt {
    session: Session,
    replace: Option<Generation>,
}

type Links = Vec<(Attach, Connection)>;

/// One link at least, and why there isn't one for each slot.
struct Made {
    links: Links,
    failed: Option<ConnectError>,
    /// Its server takes no more links than the node has. It can be another server than theirs all the same.
    surplus: bool,
}

fn fewer(node: ObservedNode, error: ConnectError) -> LinkError {
    LinkError::Fewer {
        node: node.name,
        live: node.live,
        wanted: node.wanted,
        error,
    }
}

fn new_session<C: Connector>(
    connector: &C,
    uri: &NbdUri,
    node: &ObservedNode,
) -> Result<Session, LinkError> {
    let name = || node.name.clone();
    let first = node.generation.next();
    let first = first.ok_or_else(|| LinkError::Generations(name()))?;
    let begun = connector.new_session(uri, first);
    begun.map_err(|error| LinkError::Connect {
        node: name(),
        error,
    })
}

/// Connections for the slots that lack one; `None`: there is nothing to make.
async fn make<C: Connector>(
    connector: &C,
    uri: &NbdUri,
    want: &Connect,
    node: &ObservedNode,
    attempt: Attempt,
) -> Result<Option<Made>, LinkError> {
    let slots = missing_slots(Some(node), want.wanted, attempt.replace);
    let mut links: Links = Vec::new();
    let mut failed = None;
    for attach in attaches(node, want, attempt.session, &slots)? {
        let connection = match connector.connect(uri, &attach).await {
            Ok(connection) => connection,
            // Where links are replaced, all are or none: the others would stay with what is to go.
            Err(error) if links.is_empty() || attempt.replace.is_some() => {
                let node = want.node.clone();
                return Err(LinkError::Connect { node, error });
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        let negotiated = &connection.negotiated;
        if links
            .first()
            .is_some_and(|(_, first)| first.negotiated != *negotiated)
        {
            return Err(LinkError::Disagree(want.node.clone()));
        }
        let single = !negotiated.flags.multi_conn();
        links.push((attach, connection));
        if single {
            break;
        }
    }
    let surplus = links.first().is_some_and(|(attach, first)| {
        !first.negotiated.flags.multi_conn() && attach.slot != Slot(0)
    });
    Ok((!links.is_empty()).then_some(Made {
        links,
        failed,
        surplus,
    }))
}

/// What a server that answered is to the node.
enum Verdict {
    Fits,
    /// Old links of the node's session are unknown to it, so it may not be asked about them: they count as another
    /// session's. It is a `dstd export` in a stock server's place, or the other way round, or another incarnation: perhaps
    /// another machine with the same storage, while the first one still works on what it was sent.
    OtherSession,
    /// The live links lead to another address, and the operator says that the same data is here: all of them go with it.
    OtherAddress,
    /// The live links agreed on something else, so they must go, too.
    OtherServer,
    Stranger(String),
}

fn judge(
    node: &ObservedNode,
    uri: &NbdUri,
    want: &Connect,
    attempt: Attempt,
    links: &Links,
) -> Verdict {
    let (Some(was), Some((attach, first))) = (&node.negotiated, links.first()) else {
        return Verdict::Fits;
    };
    let now = &first.negotiated;
    let stranger = other_identity(was, now);
    if let Some(why) = stranger
        && !want.same_data
    {
        return Verdict::Stranger(why);
    }
    let same_export = was.identity.is_some() && was.identity == now.identity;
    if attempt.session.address().differs(uri.mark()) {
        match (node.live > 0, same_export, want.same_data) {
            (true, _, true) => return Verdict::OtherAddress,
            (true, false, false) => return Verdict::Stranger(other_address()),
            (false, false, _) => return Verdict::OtherSession,
            (_, true, _) => {}
        }
    }
    let source = |n: &Negotiated| (n.identity, n.incarnation);
    if source(was) != source(now) && node.session == Some(attach.session) {
        return Verdict::OtherSession;
    }
    let kept = |link: &&ObservedLink| {
        link.state == LinkState::Live && attempt.replace.is_none_or(|old| link.generation > old)
    };
    let terms = |n: &Negotiated| (n.flags, n.min_block, n.max_payload, n.incarnation);
    if terms(was) != terms(now) && node.links.iter().any(|link| kept(&link)) {
        return Verdict::OtherServer;
    }
    Verdict::Fits
}

/// What each slot's connection is to become.
fn attaches(
    node: &ObservedNode,
    want: &Connect,
    session: Session,
    slots: &[Slot],
) -> Result<Vec<Attach>, LinkError> {
    let mut generation = node.generation;
    let mut all = Vec::new();
    for slot in slots {
        let used_up = || LinkError::Generations(want.node.clone());
        generation = generation.next().ok_or_else(used_up)?;
        all.push(Attach {
            session,
            slot: *slot,
            generation,
            steal: want.steal,
            timeout: want.conduct.timeout,
        });
    }
    Ok(all)
}

async fn look<K: Kernel + 'static>(
    kernel: &Arc<K>,
    name: &NodeName,
) -> Result<ObservedNode, LinkError> {
    let wanted = name.clone();
    let node = blocking(kernel, move |kernel| kernel.node(&wanted)).await?;
    node.ok_or_else(|| LinkError::Gone(name.clone()))
}

fn request(want: &Connect, session: Session, connections: Links) -> Result<LinksSet, LinkError> {
    let Some((_, first)) = connections.first() else {
        return Err(LinkError::Gone(want.node.clone()));
    };
    let zero_copy = want.zero_copy.unwrap_or(!first.same_host);
    let negotiated = first.negotiated.clone();
    let wanted = if negotiated.flags.multi_conn() {
        want.wanted
    } else {
        1
    };
    let links = connections.into_iter().map(|(attach, connection)| NewLink {
        slot: attach.slot,
        generation: attach.generation,
        socket: connection.socket,
    });
    Ok(LinksSet {
        node: want.node.clone(),
        session,
        negotiated,
        wanted,
        zero_copy,
        links: links.collect(),
    })
}
