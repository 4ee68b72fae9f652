//! Looks at the kernel, at local disks and, where needed, at nodes.
//! Called by apply and run. Changes nothing; a probe leaves no connection behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Progress, blocking, blocking_dm};
use crate::kernel::{Access, Connector, Kernel, KernelError, Negotiated, ObservedNode};
use crate::nbd::uri::NbdUri;
use crate::plan::{Desired, Observed, desire};
use crate::table::{LocalFacts, locals_of, nodes_of};
use crate::topology::{Item, Topology};
use crate::units::NodeName;

/// Nodes that are probed at the same time.
const PROBES_AT_ONCE: usize = 64;
/// How long a node is asked whose links are live and whose server may allow no other connection.
const OPTIONAL_PROBE: Duration = Duration::from_secs(1);

pub type Probes = BTreeMap<NodeName, Result<Negotiated, String>>;
pub type Locals = BTreeMap<PathBuf, Result<LocalFacts, String>>;

/// What is there, and what should be in its terms.
#[derive(Debug)]
pub struct Survey {
    pub observed: Observed,
    pub desired: Desired,
}

impl Survey {
    pub async fn take<K: Kernel + 'static>(
        kernel: &Arc<K>,
        topology: &Topology,
        probes: &Probes,
    ) -> Result<Self, KernelError> {
        let mut observed = observe(kernel).await?;
        observed.probes = probes.clone();
        let locals = locals(kernel, topology).await?;
        let desired = desire(topology, &observed, &locals);
        Ok(Self { observed, desired })
    }
}

/// What the kernel has. Probes are left empty.
pub async fn observe<K: Kernel + 'static>(kernel: &Arc<K>) -> Result<Observed, KernelError> {
    let nodes = blocking(kernel, K::nodes).await?;
    Ok(Observed {
        devices: blocking_dm(kernel, K::devices).await?,
        nodes: nodes.into_iter().map(|n| (n.name.clone(), n)).collect(),
        probes: Probes::new(),
    })
}

/// The local disks that the topology names.
pub async fn locals<K: Kernel + 'static>(
    kernel: &Arc<K>,
    topology: &Topology,
) -> Result<Locals, KernelError> {
    let paths: Vec<_> = topology
        .devices
        .values()
        .flat_map(|d| locals_of(&d.spec))
        .collect();
    blocking_dm(kernel, move |kernel| {
        let look = |path: PathBuf| {
            let facts = kernel.local_device(&path).map(|local| LocalFacts {
                size: local.size,
                read_only: local.access == Access::ReadOnly,
                number: Some(local.number),
            });
            (path, facts.map_err(|error| error.to_string()))
        };
        Ok(paths.into_iter().map(look).collect())
    })
    .await
}

/// Whether, and how patiently, a node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// The kernel knows all that matters, and the links are there.
    No,
    /// It may have grown; but a server may serve one client only, and that is us already.
    Briefly,
    Fully,
}

fn ask(node: Option<&ObservedNode>, links: u32, whole: bool) -> Ask {
    let Some((node, known)) = node.and_then(|n| Some((n, n.negotiated.as_ref()?))) else {
        return Ask::Fully;
    };
    let wanted = if known.flags.multi_conn() { links } else { 1 };
    match (node.live >= wanted, whole) {
        (false, _) => Ask::Fully,
        (true, true) if known.flags.multi_conn() => Ask::Fully,
        (true, true) => Ask::Briefly,
        (true, false) => Ask::No,
    }
}

/// Asks every node that the topology's devices or the kernel's tables use, where its answer can matter and isn't known.
/// Tells `progress` of how many it asks, and of each that has answered.
pub async fn probe_nodes<C: Connector>(
    connector: &Arc<C>,
    topology: &Topology,
    observed: &Observed,
    known: &Probes,
    mut progress: impl FnMut(Progress<'_>),
) -> Probes {
    let mut waiting = to_ask(topology, observed, known);
    let mut silent: BTreeSet<_> = waiting.iter().map(|(name, ..)| name.clone()).collect();
    let of = silent.len();
    let mut probes = Probes::new();
    let mut running = JoinSet::new();
    loop {
        while running.len() < PROBES_AT_ONCE
            && let Some((name, uri, ask)) = waiting.pop()
        {
            let connector = Arc::clone(connector);
            running.spawn(async move {
                let answer = answer(connector.as_ref(), &uri, ask).await;
                (name, answer)
            });
        }
        if of > 0 {
            progress(Progress::Asking {
                silent: &silent,
                of,
            });
        }
        match running.join_next().await {
            Some(Ok((name, answer))) => {
                silent.remove(&name);
                if let Some(answer) = answer {
                    probes.insert(name, answer);
                }
            }
            Some(Err(_)) => {}
            None => return probes,
        }
    }
}

fn to_ask(
    topology: &Topology,
    observed: &Observed,
    known: &Probes,
) -> Vec<(NodeName, NbdUri, Ask)> {
    let whole: Vec<_> = topology
        .devices
        .values()
        .flat_map(|d| &d.spec.table)
        .filter_map(whole_export)
        .collect();
    let mut used: Vec<_> = topology
        .devices
        .values()
        .flat_map(|d| nodes_of(&d.spec))
        .collect();
    used.extend(observed.nodes.keys().cloned());
    used.sort();
    used.dedup();
    let asked = used.into_iter().filter(|name| !known.contains_key(name));
    let asked = asked.filter_map(|name| {
        let spec = &topology.nodes.get(&name)?.spec;
        let ask = ask(
            observed.nodes.get(&name),
            spec.links.0,
            whole.contains(&&name),
        );
        (ask != Ask::No).then(|| (name, spec.uri.clone(), ask))
    });
    asked.collect()
}

/// `None`: it didn't matter enough to say that it failed.
async fn answer<C: Connector>(
    connector: &C,
    uri: &NbdUri,
    ask: Ask,
) -> Option<Result<Negotiated, String>> {
    let probe = connector.probe(uri);
    if ask == Ask::Briefly {
        let found = timeout(OPTIONAL_PROBE, probe).await.ok()?.ok()?;
        return Some(Ok(found.negotiated));
    }
    let found = probe.await.map_err(|error| error.to_string());
    Some(found.map(|found| found.negotiated))
}

fn whole_export(item: &Item) -> Option<&NodeName> {
    match item {
        Item::Dst(dst) if dst.length.is_none() => Some(&dst.node),
        _ => None,
    }
}
