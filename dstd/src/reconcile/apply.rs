//! One shot: brings the kernel to the topology, or says why not.
//! Called by `dstd plan` (survey only) and `dstd apply`. Where a node can't be reached or a change is refused it changes nothing
//! but settings of nodes, and ends pauses of I/O that somebody who died has left.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::calls::Calls;
use super::execute::{Executor, Failure, Mode};
use super::fence::{addresses, fence_once};
use super::interrupt::Interrupt;
use super::links::{LinkError, connect};
use super::observe::{Probes, Survey, observe, probe_nodes};
use crate::kernel::{Connector, Kernel, KernelError};
use crate::plan::{Action, Allowed, Plan, Step, Undecided, extents_of, nodes_in, plan};
use crate::topology::Topology;
use crate::units::NodeName;

/// Passes after which a kernel that never shows what was asked for is given up.
const PASSES: usize = 4;

/// What was done.
#[derive(Debug, Default)]
pub struct Applied {
    pub steps: usize,
    pub notes: Vec<String>,
}

#[derive(Debug, Error)]
pub enum ApplyError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{before}:\n{}", .nodes.join("\n"))]
    Unreachable { nodes: Vec<String>, before: Before },
    #[error("{before}, because part of it is refused:\n{plan}")]
    Refused { plan: Plan, before: Before },
    #[error("{}", failed(.0))]
    Failed(Vec<Failure>),
    #[error(
        "all steps were done, and the kernel still doesn't show what was asked for; write raw table lines as `dmsetup table` prints them. Left to do:\n{0}"
    )]
    NoEnd(Plan),
}

/// What was done before it stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Before any node was asked: settings, whatever came of the rest.
    settings: usize,
    /// Devices that somebody who died had left suspended.
    resumed: usize,
    /// In earlier passes, where it stopped in a later one; what came before included.
    steps: usize,
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.steps {
            0 => f.write_str("nothing was changed")?,
            1 => return f.write_str("one step was done, and then no more"),
            n => return write!(f, "{n} steps were done, and then no more"),
        }
        match self.settings {
            0 => {}
            1 => f.write_str(" but the settings of one node")?,
            n => write!(f, " but the settings of {n} nodes")?,
        }
        match self.resumed {
            0 => Ok(()),
            1 => f.write_str(" but that one device, which was left suspended, goes on"),
            n => write!(f, " but that {n} devices, which were left suspended, go on"),
        }
    }
}

fn failed(failures: &[Failure]) -> String {
    let lines: Vec<_> = failures
        .iter()
        .map(|f| format!("{}\n  in the step: {}", f.error, f.step))
        .collect();
    let begun = match failures {
        [
            Failure {
                error: LinkError::Interrupted,
                ..
            },
        ] => "What wasn't complete was taken back.",
        _ => "What this step had begun was taken back.",
    };
    format!("{}\n{begun}", lines.join("\n"))
}

/// What is told of an apply while it is under way.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many nodes are asked what they offer, and these haven't answered yet.
    Asking {
        silent: &'a BTreeSet<NodeName>,
        of: usize,
    },
    /// Before it is done: the how manyeth of a plan's.
    Step {
        step: &'a Step,
        nth: usize,
        of: usize,
    },
}

/// What should be and what is, nodes asked.
pub async fn survey<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
) -> Result<(Survey, Probes), KernelError> {
    let mut probes = Probes::new();
    let survey = survey_more(kernel, connector, topology, &mut probes, |_| {}).await?;
    Ok((survey, probes))
}

/// The same where some were asked already. After steps, nodes that have gone with a table, and what the kernel knew of
/// them, are asked now.
async fn survey_more<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
    probes: &mut Probes,
    progress: impl FnMut(Progress<'_>),
) -> Result<Survey, KernelError> {
    let observed = observe(kernel).await?;
    let new = probe_nodes(connector, topology, &observed, probes, progress).await;
    probes.extend(new);
    Survey::take(kernel, topology, probes).await
}

/// Before any node is asked: one that is dead doesn't answer, and that is when its settings matter.
async fn first_of_all<K: Kernel + 'static>(
    kernel: &Arc<K>,
    topology: &Topology,
    allowed: &Allowed,
) -> Result<(Before, Vec<Step>), KernelError> {
    let known = Survey::take(kernel, topology, &Probes::new()).await?;
    let plan = plan(&known.desired, &known.observed, allowed);
    let settings = plan.settings(&known.observed);
    let mends = plan.mends(&known.observed);
    let resumes = |step: &&Step| matches!(step.action, Action::Resume { .. });
    let before = Before {
        settings: settings.len(),
        resumed: mends.iter().filter(resumes).count(),
        steps: 0,
    };
    Ok((before, [settings, mends].concat()))
}

/// Counts the steps that are told of.
fn of_steps(steps: &[Step], mut progress: impl FnMut(Progress<'_>)) -> impl FnMut(&Step) {
    let (mut nth, of) = (0, steps.len());
    move |step| {
        nth += 1;
        progress(Progress::Step { step, nth, of });
    }
}

/// Carries out plans until one is empty, or it is interrupted.
pub async fn apply<K: Kernel + 'static, C: Connector>(
    interrupt: &Interrupt,
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
    allowed: &Allowed,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Applied, ApplyError> {
    let (mut before, steps) = first_of_all(kernel, topology, allowed).await?;
    let executor = Executor {
        kernel,
        connector,
        topology,
        mode: Mode::Strict,
        calls: &Calls::default(),
        interrupt,
    };
    let failures = executor.execute(&steps, of_steps(&steps, &mut progress));
    let failures = failures.await;
    if !failures.is_empty() {
        return Err(ApplyError::Failed(failures));
    }
    let mut probes = Probes::new();
    let mut survey = survey_more(kernel, connector, topology, &mut probes, &mut progress).await?;
    let mut applied = Applied {
        steps: steps.len(),
        ..Applied::default()
    };
    for pass in 0..=PASSES {
        let plan = plan(&survey.desired, &survey.observed, allowed);
        if !plan.refusals.is_empty() {
            offer_misfits(kernel, connector, topology, &plan).await;
            return Err(match pass {
                0 => ApplyError::Refused { plan, before },
                _ => ApplyError::NoEnd(plan),
            });
        }
        let nodes = unreachable(&plan, &survey);
        if !nodes.is_empty() {
            return Err(ApplyError::Unreachable { nodes, before });
        }
        if plan.steps.is_empty() {
            fence_once(kernel, connector, &addresses(topology)).await?;
            applied.notes = plan.notes;
            return Ok(applied);
        }
        if pass == PASSES {
            return Err(ApplyError::NoEnd(plan));
        }
        let failures = executor.execute(&plan.steps, of_steps(&plan.steps, &mut progress));
        let failures = failures.await;
        if !failures.is_empty() {
            return Err(ApplyError::Failed(failures));
        }
        applied.steps += plan.steps.len();
        before.steps = applied.steps;
        survey = survey_more(kernel, connector, topology, &mut probes, &mut progress).await?;
    }
    Ok(applied)
}

/// So that the state of such a node says why it has no link. The kernel refuses each; the plan has told already.
async fn offer_misfits<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
    plan: &Plan,
) {
    for want in &plan.misfits {
        if let Some(node) = topology.nodes.get(&want.node) {
            let _ = connect(kernel, connector.as_ref(), &node.spec.uri, want).await;
        }
    }
}

/// What the topology needs of nodes that didn't answer; apply does nothing while there is any.
pub fn unreachable(plan: &Plan, survey: &Survey) -> Vec<String> {
    let mut nodes = BTreeSet::new();
    for step in &plan.steps {
        if let Action::Connect(want) = &step.action {
            nodes.insert(want.node.clone());
        }
    }
    let mut texts = Vec::new();
    let known = &survey.observed.nodes;
    for (device, table) in &survey.desired.devices {
        match table {
            // Those that wait for another device included: that one isn't changed in vain.
            Ok(table) => {
                let all = nodes_in(&extents_of(&table.lines)).into_iter();
                nodes.extend(all.filter(|node| !known.contains_key(node)));
            }
            Err(Undecided::Waits { reason, .. }) => {
                texts.push(format!("device {device}: {reason}"));
            }
            Err(Undecided::Refused(_)) => {}
        }
    }
    let silent = nodes.iter().filter_map(|node| {
        let answer = survey.observed.probes.get(node)?;
        Some(format!("node {node}: {}", answer.as_ref().err()?))
    });
    silent.chain(texts).collect()
}
