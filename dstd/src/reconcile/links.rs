//! Connects a node and hands its links to the kernel.
//! Called by execute (one shot) and worker (daemon). Looks at the node afresh first, so that a link which came
//! in the meantime isn't replaced; never replaces a live link unless it is told to.

use std::sync::Arc;

use thiserror::Error;

use super::blocking;
use crate::kernel::{
    ConnectError, Connection, Connector, Kernel, KernelError, LinksSet, NewLink, ObservedNode,
};
use crate::nbd::uri::NbdUri;
use crate::plan::{Connect, missing_slots};
use crate::units::{Generation, NodeName, Slot};

#[derive(Clone, Debug, Error)]
pub enum LinkError {
    #[error("node {node}: {error}")]
    Connect { node: NodeName, error: ConnectError },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("node {0}: no table names it any more")]
    Gone(NodeName),
    #[error(
        "node {0}: two connections to it agreed on different sizes or flags: are they served by different servers?"
    )]
    Disagree(NodeName),
    #[error("node {0}: its link generations are used up: remove its devices and make them anew")]
    Generations(NodeName),
}

/// Gives a node the links it lacks. Answers with the node as the kernel then has it.
pub async fn connect<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &C,
    uri: &NbdUri,
    want: &Connect,
) -> Result<ObservedNode, LinkError> {
    let node = look(kernel, &want.node).await?;
    let mut slots = missing_slots(Some(&node), want.wanted, want.replace);
    if slots.is_empty() {
        return Ok(node);
    }
    let open = || async {
        let connection = connector.connect(uri).await;
        connection.map_err(|error| LinkError::Connect {
            node: want.node.clone(),
            error,
        })
    };
    let mut connections = vec![open().await?];
    let mut wanted = want.wanted;
    if !connections[0].negotiated.flags.multi_conn() {
        wanted = 1;
        slots.retain(|slot| *slot == Slot(0));
        if slots.is_empty() {
            return Ok(node);
        }
    }
    while connections.len() < slots.len() {
        let next = open().await?;
        if next.negotiated != connections[0].negotiated {
            return Err(LinkError::Disagree(want.node.clone()));
        }
        connections.push(next);
    }
    // The kernel may have taken links from someone else while we connected.
    let node = look(kernel, &want.node).await?;
    let request = request(want, wanted, &slots, connections, node.generation)?;
    Ok(blocking(kernel, |kernel| kernel.links_set(request)).await?)
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
    slots: &[Slot],
    connections: Vec<Connection>,
    newest: Generation,
) -> Result<LinksSet, LinkError> {
    let used_up = || LinkError::Generations(want.node.clone());
    let first = &connections[0];
    let zero_copy = want.zero_copy.unwrap_or(!first.same_host);
    let negotiated = first.negotiated.clone();
    let mut generation = newest;
    let mut links = Vec::new();
    for (slot, connection) in slots.iter().zip(connections) {
        generation = generation.next().ok_or_else(used_up)?;
        links.push(NewLink {
            slot: *slot,
            generation,
            socket: connection.socket,
        });
    }
    Ok(LinksSet {
        node: want.node.clone(),
        negotiated,
        wanted,
        zero_copy,
        links,
    })
}
