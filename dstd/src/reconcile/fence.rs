//! Fences old links: has their server end them for good, and tells the kernel so.
//! Started by run for the daemon's life, and called by apply once. Independent of the reconnecting: neither waits for
//! the other, and no slot for another. Never fences in the name of a session that the link wasn't of, nor at another
//! export, or another incarnation of it, than the link led to: such a server would say yes to anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::blocking;
use crate::kernel::{
    ConnectError, Connector, Fence, Fenced, Kernel, KernelError, KernelEvent, LinkState,
    ObservedNode,
};
use crate::nbd::uri::NbdUri;
use crate::topology::Topology;
use crate::units::{Generation, NodeName, Slot};

/// How often the kernel is looked at although it says nothing: an event can get lost without a word.
const LOOK: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
enum FenceError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Server(#[from] ConnectError),
    #[error("the kernel still lists it as unfenced")]
    NotTaken,
}

pub type Addresses = BTreeMap<NodeName, NbdUri>;

pub fn addresses(topology: &Topology) -> Addresses {
    let nodes = topology.nodes.iter();
    nodes
        .map(|(name, node)| (name.clone(), node.spec.uri.clone()))
        .collect()
}

/// The old links of each slot that their server can be asked about, as one fence: it covers all up to the newest. A session
/// is of one incarnation (`links` sees to it), so the node's is that of all links since the session began.
pub fn askable(node: &ObservedNode) -> BTreeMap<Slot, Fence> {
    let mut fences = BTreeMap::new();
    let server = node.negotiated.as_ref();
    let (Some(session), Some(identity), Some(incarnation)) = (
        node.session,
        server.and_then(|n| n.identity),
        server.and_then(|n| n.incarnation),
    ) else {
        return fences;
    };
    for old in &node.unfenced {
        // One that stands for others, too, isn't fenced by this proof.
        if old.merged > 0 || old.generation < session.first() {
            continue;
        }
        let fence = fences.entry(old.slot).or_insert(Fence {
            session,
            identity,
            incarnation,
            slot: old.slot,
            generation: old.generation,
        });
        fence.generation = fence.generation.max(old.generation);
    }
    fences
}

/// The task that watches; it and all that it started end when this is dropped.
#[derive(Debug)]
pub struct Fencer {
    addresses: watch::Sender<Addresses>,
    task: JoinHandle<()>,
}

impl Fencer {
    pub fn start<K: Kernel + 'static, C: Connector>(
        kernel: Arc<K>,
        connector: Arc<C>,
        addresses: Addresses,
    ) -> Self {
        let (addresses, known) = watch::channel(addresses);
        let watcher = Watcher {
            kernel,
            connector,
            known,
            asking: BTreeMap::new(),
        };
        let task = tokio::spawn(watcher.serve());
        Self { addresses, task }
    }

    /// It doesn't end by itself: something in it panicked.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    pub fn tell(&self, addresses: Addresses) {
        self.addresses.send_replace(addresses);
    }
}

impl Drop for Fencer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher<K, C> {
    kernel: Arc<K>,
    connector: Arc<C>,
    known: watch::Receiver<Addresses>,
    asking: BTreeMap<(NodeName, Slot), Asking>,
}

/// A task that asks until there is nothing left to ask about.
struct Asking {
    uri: NbdUri,
    /// Told when the node has answered: pauses begin anew.
    answered: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Kernel + 'static, C: Connector> Watcher<K, C> {
    async fn serve(mut self) {
        let mut events = None;
        loop {
            if events.is_none() {
                events = self.kernel.events().ok();
            }
            if let Err(error) = self.look().await {
                debug!(%error, "the kernel can't be asked for old links");
            }
            tokio::select! {
                changed = self.known.changed() => if changed.is_err() {
                    return;
                },
                node = something(&mut events) => {
                    let asked = self.asking.iter().filter(|((name, _), _)| Some(name) == node.as_ref());
                    asked.for_each(|(_, asking)| asking.answered.notify_one());
                }
                () = sleep(LOOK) => {}
            }
        }
    }

    async fn look(&mut self) -> Result<(), KernelError> {
        self.asking.retain(|_, asking| !asking.task.is_finished());
        let nodes = blocking(&self.kernel, K::nodes).await?;
        let known = self.known.borrow_and_update().clone();
        for node in nodes {
            let Some(uri) = known.get(&node.name) else {
                continue;
            };
            for slot in askable(&node).into_keys() {
                self.ask(&node.name, slot, uri);
            }
        }
        Ok(())
    }

    fn ask(&mut self, node: &NodeName, slot: Slot, uri: &NbdUri) {
        let key = (node.clone(), slot);
        if self.asking.get(&key).is_some_and(|a| a.uri == *uri) {
            return;
        }
        let asker = Asker {
            kernel: Arc::clone(&self.kernel),
            connector: Arc::clone(&self.connector),
            node: node.clone(),
            uri: uri.clone(),
            slot,
        };
        let answered = Arc::new(Notify::new());
        let asking = Asking {
            uri: uri.clone(),
            answered: Arc::clone(&answered),
            task: tokio::spawn(asker.serve(answered)),
        };
        self.asking.insert(key, asking);
    }
}

/// Returns when the kernel has said something that is a reason to look: old links, or a node that has a new one.
async fn something(events: &mut Option<mpsc::Receiver<KernelEvent>>) -> Option<NodeName> {
    let Some(receiver) = events else {
        return std::future::pending().await;
    };
    loop {
        match receiver.recv().await {
            Some(KernelEvent::Fence { ambiguous, .. }) if ambiguous > 0 => return None,
            Some(KernelEvent::Overflow) => return None,
            Some(KernelEvent::Link {
                node,
                state: LinkState::Live,
                ..
            }) => return Some(node),
            Some(_) => {}
            // It is subscribed to again at the next look, which isn't now: the module may be gone.
            None => {
                *events = None;
                sleep(LOOK).await;
                return None;
            }
        }
    }
}

/// Asks about one slot of a node.
struct Asker<K, C> {
    kernel: Arc<K>,
    connector: Arc<C>,
    node: NodeName,
    uri: NbdUri,
    slot: Slot,
}

impl<K: Kernel + 'static, C: Connector> Asker<K, C> {
    async fn serve(self, answered: Arc<Notify>) {
        let mut backoff = Backoff::default();
        let mut said = String::new();
        let mut fenced = None;
        loop {
            let error = match self.once(fenced).await {
                Ok(None) => return,
                Ok(newest) => {
                    fenced = newest;
                    continue;
                }
                // What the server said then isn't believed for ever: it is asked anew.
                Err(error) => {
                    fenced = None;
                    error.to_string()
                }
            };
            if error != said {
                warn!(node = %self.node, "node {}: the lost link of slot {} isn't fenced, will be tried again: {error}", self.node, self.slot);
                said = error;
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                // Its server is back: the pauses had grown while it was away.
                () = answered.notified() => backoff.reset(),
            }
        }
    }

    /// The newest generation that is fenced now; `None`: there is none to fence.
    async fn once(&self, fenced: Option<Generation>) -> Result<Option<Generation>, FenceError> {
        let name = self.node.clone();
        let Some(node) = blocking(&self.kernel, move |kernel| kernel.node(&name)).await? else {
            return Ok(None);
        };
        let Some(fence) = askable(&node).remove(&self.slot) else {
            return Ok(None);
        };
        if fenced.is_some_and(|newest| fence.generation <= newest) {
            return Err(FenceError::NotTaken);
        }
        self.connector.fence(&self.uri, &fence).await?;
        let session = fence.session;
        let covered = node.unfenced.iter().filter(|old| {
            old.slot == self.slot && (session.first()..=fence.generation).contains(&old.generation)
        });
        for old in covered {
            let (name, slot, generation) = (self.node.clone(), old.slot, old.generation);
            let what = Fenced::Link {
                session,
                slot,
                generation,
            };
            blocking(&self.kernel, move |kernel| kernel.fenced(&name, what)).await?;
            info!(node = %self.node, "node {}: the lost link of slot {slot}, generation {generation}, is fenced by its server", self.node);
        }
        Ok(Some(fence.generation))
    }
}

/// For apply: asks once about every old link. What fails is told; the kernel's own fences are left.
pub async fn fence_once<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    addresses: &Addresses,
) -> Result<(), KernelError> {
    let mut running = JoinSet::new();
    for node in blocking(kernel, K::nodes).await? {
        let Some(uri) = addresses.get(&node.name) else {
            continue;
        };
        for slot in askable(&node).into_keys() {
            let asker = Asker {
                kernel: Arc::clone(kernel),
                connector: Arc::clone(connector),
                node: node.name.clone(),
                uri: uri.clone(),
                slot,
            };
            running.spawn(async move {
                if let Err(error) = asker.once(None).await {
                    warn!(node = %asker.node, "node {}: the lost link of slot {slot} isn't fenced: {error}", asker.node);
                }
            });
        }
    }
    running.join_all().await;
    Ok(())
}
