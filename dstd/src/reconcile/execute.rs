//! Carries out steps in order, and takes back what a failed device had half-made.
//! Called by apply and run. Never reorders or invents steps; what it takes back is only what it did itself, and nothing of
//! a device that a call hangs on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::errno::Errno;
use tracing::{info, warn};

use super::blocking;
use super::calls::Calls;
use super::links::{LinkError, connect};
use crate::kernel::{Connector, Flush, Kernel, KernelError};
use crate::plan::{Action, Step};
use crate::topology::Topology;
use crate::units::DeviceName;

/// What a failure means for the steps after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The first failure ends it, and everything not yet live is taken back.
    Strict,
    /// A failure ends its own device's steps; the others go on.
    Lenient,
}

/// A step that could not be done.
#[derive(Clone, Debug)]
pub struct Failure {
    pub step: Step,
    pub error: LinkError,
}

/// How far a device's change has come.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    created: bool,
    loaded: bool,
    suspended: bool,
}

pub struct Executor<'a, K, C> {
    pub kernel: &'a Arc<K>,
    pub connector: &'a Arc<C>,
    pub topology: &'a Topology,
    pub mode: Mode,
    pub calls: &'a Calls,
}

impl<K, C> std::fmt::Debug for Executor<'_, K, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl<K: Kernel + 'static, C: Connector> Executor<'_, K, C> {
    /// Tells `progress` of each step before it is done.
    pub async fn execute(&self, steps: &[Step], mut progress: impl FnMut(&Step)) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut pending: BTreeMap<DeviceName, Pending> = BTreeMap::new();
        let mut failed: BTreeSet<DeviceName> = BTreeSet::new();
        for step in steps {
            let device = step.action.device();
            if device.is_some_and(|d| failed.contains(d)) {
                continue;
            }
            progress(step);
            info!("{}: {}", step.action, step.why);
            let Err(error) = self.act(&step.action).await else {
                note(&step.action, &mut pending);
                continue;
            };
            warn!("failed: {}: {error}", step.action);
            failures.push(Failure {
                step: step.clone(),
                error,
            });
            if self.mode == Mode::Strict {
                for (device, done) in &pending {
                    self.take_back(device, *done).await;
                }
                return failures;
            }
            if let Some(device) = device {
                let done = pending.remove(device).unwrap_or_default();
                self.take_back(device, done).await;
                failed.insert(device.clone());
            }
        }
        failures
    }

    async fn act(&self, action: &Action) -> Result<(), LinkError> {
        if let Action::Connect(want) = action {
            let Some(node) = self.topology.nodes.get(&want.node) else {
                return Err(LinkError::Gone(want.node.clone()));
            };
            let node = connect(self.kernel, self.connector.as_ref(), &node.spec.uri, want).await?;
            info!(node = %node.name, "connected node {}: {} of {} links", node.name, node.live, node.wanted);
            return Ok(());
        }
        let action = action.clone();
        match action.device().cloned() {
            Some(device) => {
                let call = move |kernel: &K| call(kernel, &action);
                self.calls.about(&device, self.kernel, call).await
            }
            None => Ok(blocking(self.kernel, move |kernel| call(kernel, &action)).await?),
        }
    }

    /// A device that was created goes; one that was there keeps its live table and its I/O.
    async fn take_back(&self, device: &DeviceName, done: Pending) {
        if self.calls.hangs(device) {
            warn!(
                "device {device} is left as it is: a call about it hasn't returned; what it made is seen when it has"
            );
            return;
        }
        let name = device.clone();
        let result = self.calls.about(device, self.kernel, move |kernel| {
            if done.created {
                return kernel.remove(&name);
            }
            if done.loaded {
                kernel.clear(&name)?;
            }
            if done.suspended {
                kernel.resume(&name)?;
            }
            Ok(())
        });
        if let Err(error) = result.await {
            warn!("could not take back a half-made change: {error}");
        }
    }
}

fn note(action: &Action, pending: &mut BTreeMap<DeviceName, Pending>) {
    let Some(device) = action.device() else {
        return;
    };
    let done = pending.entry(device.clone()).or_default();
    match action {
        Action::Create { .. } => done.created = true,
        Action::Load { .. } => done.loaded = true,
        Action::Suspend { .. } => done.suspended = true,
        // From here on the change is complete.
        Action::Resume { .. } | Action::Remove { .. } => drop(pending.remove(device)),
        Action::Clear { .. }
        | Action::Connect(_)
        | Action::SetWanted { .. }
        | Action::SetConduct { .. } => {}
    }
}

fn call<K: Kernel>(kernel: &K, action: &Action) -> Result<(), KernelError> {
    match action {
        Action::Create {
            device,
            uuid,
            access,
        } => kernel.create(device, uuid, *access),
        Action::Load {
            device,
            lines,
            access,
        } => kernel.load(device, lines, *access),
        Action::Clear { device } => kernel.clear(device),
        Action::Suspend { device } => kernel.suspend(device, Flush::NoFlush),
        Action::Resume { device } => kernel.resume(device),
        Action::Remove { device } => kernel.remove(device),
        Action::SetWanted { node, wanted } => kernel.set_wanted(node, *wanted),
        Action::SetConduct { node, to, .. } => match kernel.set_conduct(node, to) {
            // No table names it now; it is told when one does.
            Err(error) if error.is(Errno::ENOENT) => Ok(()),
            other => other,
        },
        Action::Connect(_) => Ok(()),
    }
}
