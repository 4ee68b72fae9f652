//! Connects a node and hands its links to the kernel.
//! Called by execute (one shot) and worker (daemon). Looks at the node afresh first, so that a link which came
//! in the meantime isn't replaced; never replaces a live link unless it is told to.

use std::sync::Arc;

use nix::errno::Errno;
use thiserror::Error;
use tracing::{debug, info, warn};

use super::blocking;
use crate::kernel::{
    Attach, ConnectError, Connection, Connector, FenceAnswer, Kernel, KernelError, LinkState,
    LinksSet, NewLink, ObservedLink, ObservedNode,
};
use crate::nbd::uri::NbdUri;
use crate::plan::{Connect, missing_slots};
use crate::units::{Generation, NodeName, Session, Slot};

#[derive(Clone, Debug, Error)]
pub enum LinkError {
    #[error("node {node}: {error}")]
    Connect { node: NodeName, error: ConnectError },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("node {0}: no table names it any more")]
    Gone(NodeName),
    #[error(
        "node {0}: two connections to it agreed on different sizes, flags or identities: are they served by different servers?"
    )]
    Disagree(NodeName),
    #[error("node {0}: its link generations are used up: remove its devices and make them anew")]
    Generations(NodeName),
}

/// Times that another dstd's links may come first before it is told as an error.
const ATTEMPTS: usize = 3;

/// Gives a node the links it lacks. Answers with the node as the kernel then has it.
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
    let slots = missing_slots(Some(&node), want.wanted, want.replace);
    if slots.is_empty() {
        return Ok(node);
    }
    let failed = |error| LinkError::Connect {
        node: want.node.clone(),
        error,
    };
    let session = match node.session {
        Some(session) => session,
        None => connector.new_session().map_err(failed)?,
    };
    let mut links: Vec<(Attach, Connection)> = Vec::new();
    let mut wanted = want.wanted;
    for attach in attaches(&node, want, session, &slots)? {
        let connection = connector.connect(uri, &attach).await.map_err(failed)?;
        say_fence(&want.node, &attach, &connection.fenced);
        let negotiated = &connection.negotiated;
        if links
            .first()
            .is_some_and(|(_, first)| first.negotiated != *negotiated)
        {
            return Err(LinkError::Disagree(want.node.clone()));
        }
        let single = !negotiated.flags.multi_conn();
        if single && attach.slot != Slot(0) {
            // It has the one link it may have.
            return Ok(node);
        }
        links.push((attach, connection));
        if single {
            wanted = 1;
            break;
        }
    }
    let request = request(want, wanted, session, links)?;
    Ok(blocking(kernel, |kernel| kernel.links_set(request)).await?)
}

/// What each slot's connection is to become. Slots without a link that still works are fenced up to the node's
/// newest generation: that covers whatever link they had.
fn attaches(
    node: &ObservedNode,
    want: &Connect,
    session: Session,
    slots: &[Slot],
) -> Result<Vec<Attach>, LinkError> {
    let works = |slot| {
        let working = |l: &ObservedLink| matches!(l.state, LinkState::Live | LinkState::Draining);
        node.links.iter().any(|l| l.slot == slot && working(l))
    };
    let mut generation = node.generation;
    let mut all = Vec::new();
    for slot in slots {
        let used_up = || LinkError::Generations(want.node.clone());
        generation = generation.next().ok_or_else(used_up)?;
        let had_links = node.session.is_some() && node.generation > Generation(0);
        all.push(Attach {
            session,
            slot: *slot,
            generation,
            fence: (had_links && !works(*slot)).then_some(node.generation),
            steal: want.steal,
        });
    }
    Ok(all)
}

/// The kernel has no ear for it yet: until it has, its own fences apply.
fn say_fence(node: &NodeName, attach: &Attach, answer: &FenceAnswer) {
    let slot = attach.slot;
    match answer {
        FenceAnswer::NotAsked => {}
        FenceAnswer::Fenced(generation) => {
            info!(%node, "node {node}: links of slot {slot} up to generation {generation} are fenced by the server");
        }
        FenceAnswer::Unsupported => {
            debug!(%node, "node {node}: its server knows no fences");
        }
        FenceAnswer::Refused(why) => {
            warn!(%node, "node {node}: the server didn't fence the lost link of slot {slot}: {why}");
        }
    }
}

async fn look<K: Kernel + 'static>(
    kernel: &Arc<K>,
    name: &NodeName,
) -> Result<ObservedNode, LinkError> {
    let nodes = blocking(kernel, K::nodes).await?;
    let node = nodes.into_iter().find(|n| n.name == *name);
    node.ok_or_else(|| LinkError::Gone(name.clone()))
}

fn request(
    want: &Connect,
    wanted: u32,
    session: Session,
    connections: Vec<(Attach, Connection)>,
) -> Result<LinksSet, LinkError> {
    let Some((_, first)) = connections.first() else {
        return Err(LinkError::Gone(want.node.clone()));
    };
    let zero_copy = want.zero_copy.unwrap_or(!first.same_host);
    let negotiated = first.negotiated.clone();
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
