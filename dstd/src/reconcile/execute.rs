//! Carries out steps in order, and takes back what a failed device had half-made.
//! Called by apply and run. Never reorders or invents steps; what it takes back is only what it did itself, and nothing of
//! a device that a call hangs on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::errno::Errno;
use tracing::{info, warn};

use super::calls::Calls;
use super::interrupt::Interrupt;
use super::links::{LinkError, connect};
use super::{blocking, blocking_dm};
use crate::kernel::{Access, Connector, Flush, Kernel, KernelError, ObservedDevice};
use crate::plan::{Action, Step, second_writers};
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
    pub interrupt: &'a Interrupt,
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
        let mut refused: Option<BTreeMap<DeviceName, LinkError>> = None;
        let _busy = self.interrupt.busy();
        for step in steps {
            let device = step.action.device();
            if device.is_some_and(|d| failed.contains(d)) {
                continue;
            }
            if self.interrupt.is_asked() {
                self.take_all_back(&pending).await;
                failures.push(Failure {
                    step: step.clone(),
                    error: LinkError::Interrupted,
                });
                return failures;
            }
            progress(step);
            info!("{}: {}", step.action, step.why);
            if refused.is_none() && goes_live(&step.action) {
                refused = Some(self.too_late(steps).await);
            }
            let refused = device.and_then(|d| refused.as_mut()?.remove(d));
            let done = match refused {
                Some(error) => Err(error),
                None => self.act(&step.action).await,
            };
            let Err(error) = done else {
                note(&step.action, &mut pending);
                continue;
            };
            warn!("failed: {}: {error}", step.action);
            doubt(&step.action, &mut pending);
            failures.push(Failure {
                step: step.clone(),
                error,
            });
            if self.mode == Mode::Strict {
                self.take_all_back(&pending).await;
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

    /// Devices whose new tables may not go live after all: the kernel was looked at before they were loaded, and another dstd
    /// may have acted since then. Each looks when its tables lie there for the other to see, so one of them sees it.
    async fn too_late(&self, steps: &[Step]) -> BTreeMap<DeviceName, LinkError> {
        let switched = switched(steps);
        let refused = match blocking_dm(self.kernel, K::devices).await {
            Ok(devices) => {
                let mut refused = second_writers(&devices, &switched);
                refused.extend(changed(&devices, steps));
                refused
            }
            Err(error) => {
                let why = |device| (device, error.to_string());
                switched.into_keys().map(why).collect()
            }
        };
        let error =
            |device, why| KernelError::new(format!("switch the tables of {device}"), None, why);
        let refused = refused.into_iter();
        refused
            .map(|(device, why)| (device.clone(), error(device, why).into()))
            .collect()
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

    async fn take_all_back(&self, pending: &BTreeMap<DeviceName, Pending>) {
        for (device, done) in pending {
            self.take_back(device, *done).await;
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
            // Whatever lies there: a resume would put it in the live one's place.
            if done.loaded || done.suspended {
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

/// Devices that get another table, and its access where it is known.
fn switched(steps: &[Step]) -> BTreeMap<DeviceName, Option<Access>> {
    let mut switched = BTreeMap::new();
    for step in steps {
        match &step.action {
            Action::Load { device, access, .. } => {
                switched.insert(device.clone(), Some(*access));
            }
            Action::Resume { device } => drop(switched.entry(device.clone()).or_default()),
            _ => {}
        }
    }
    for step in steps {
        if let Action::Clear { device } = &step.action {
            switched.remove(device);
        }
    }
    switched
}

/// Devices that have another live table than the one that their new tables were judged against.
fn changed(devices: &[ObservedDevice], steps: &[Step]) -> Vec<(DeviceName, String)> {
    let other = |step: &Step| {
        let Action::Load {
            device,
            live,
            lines,
            ..
        } = &step.action
        else {
            return None;
        };
        let now = devices.iter().find(|d| d.name == device.as_str())?;
        let why = "it has got another table since it was looked at";
        (now.lines != *live && now.lines != *lines).then(|| (device.clone(), why.to_owned()))
    };
    steps.iter().filter_map(other).collect()
}

fn goes_live(action: &Action) -> bool {
    matches!(action, Action::Suspend { .. } | Action::Resume { .. })
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

/// What failed may have been done all the same (udev was too slow to say so, say), and is taken back, too. But nothing that is
/// there is taken for made: a create that failed leaves what it may have made to the next look.
fn doubt(action: &Action, pending: &mut BTreeMap<DeviceName, Pending>) {
    match action {
        Action::Load { .. } | Action::Suspend { .. } => note(action, pending),
        _ => {}
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
            ..
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
