//! One shot: brings the kernel to the topology, or says why not.
//! Called by `dstd plan` (survey only) and `dstd apply`. Changes nothing but settings of nodes where a node can't be reached or a
//! change is refused.

use std::sync::Arc;

use thiserror::Error;

use super::calls::Calls;
use super::execute::{Executor, Failure, Mode};
use super::fence::{addresses, fence_once};
use super::links::connect;
use super::observe::{Probes, Survey, observe, probe_nodes};
use crate::kernel::{Connector, Kernel, KernelError};
use crate::plan::{Action, Allowed, Plan, Step, Undecided, plan};
use crate::topology::Topology;

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
    #[error("nothing was changed{}:\n{}", but(.settings), .nodes.join("\n"))]
    Unreachable { nodes: Vec<String>, settings: usize },
    #[error("nothing was changed{}, because part of it is refused:\n{plan}", but(.settings))]
    Refused { plan: Plan, settings: usize },
    #[error("{}", failed(.0))]
    Failed(Vec<Failure>),
    #[error(
        "all steps were done, and the kernel still doesn't show what was asked for; write raw table lines as `dmsetup table` prints them. Left to do:\n{0}"
    )]
    NoEnd(Plan),
}

fn but(settings: &usize) -> String {
    match settings {
        0 => String::new(),
        1 => " but the settings of one node".to_owned(),
        n => format!(" but the settings of {n} nodes"),
    }
}

fn failed(failures: &[Failure]) -> String {
    let lines: Vec<_> = failures
        .iter()
        .map(|f| format!("{}\n  in the step: {}", f.error, f.step))
        .collect();
    format!(
        "{}\nWhat this step had begun was taken back.",
        lines.join("\n")
    )
}

/// What should be and what is, nodes asked.
pub async fn survey<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
) -> Result<(Survey, Probes), KernelError> {
    let observed = observe(kernel).await?;
    let probes = probe_nodes(connector, topology, &observed).await;
    let survey = Survey::take(kernel, topology, &probes).await?;
    Ok((survey, probes))
}

/// Carries out plans until one is empty.
pub async fn apply<K: Kernel + 'static, C: Connector>(
    kernel: &Arc<K>,
    connector: &Arc<C>,
    topology: &Topology,
    allowed: &Allowed,
    mut progress: impl FnMut(&Step),
) -> Result<Applied, ApplyError> {
    // Before any node is asked: one that is dead doesn't answer, and that is when its settings matter.
    let known = Survey::take(kernel, topology, &Probes::new()).await?;
    let settings = plan(&known.desired, &known.observed, allowed).settings(&known.observed);
    let executor = Executor {
        kernel,
        connector,
        topology,
        mode: Mode::Strict,
        calls: &Calls::default(),
    };
    let failures = executor.execute(&settings, &mut progress).await;
    if !failures.is_empty() {
        return Err(ApplyError::Failed(failures));
    }
    let settings = settings.len();
    let (mut survey, probes) = survey(kernel, connector, topology).await?;
    let mut applied = Applied {
        steps: settings,
        ..Applied::default()
    };
    for pass in 0..=PASSES {
        let plan = plan(&survey.desired, &survey.observed, allowed);
        if !plan.refusals.is_empty() {
            offer_misfits(kernel, connector, topology, &plan).await;
            return Err(match pass {
                0 => ApplyError::Refused { plan, settings },
                _ => ApplyError::NoEnd(plan),
            });
        }
        let nodes = unreachable(&plan, &survey);
        if !nodes.is_empty() {
            return Err(ApplyError::Unreachable { nodes, settings });
        }
        if plan.steps.is_empty() {
            fence_once(kernel, connector, &addresses(topology)).await?;
            applied.notes = plan.notes;
            return Ok(applied);
        }
        if pass == PASSES {
            return Err(ApplyError::NoEnd(plan));
        }
        let failures = executor.execute(&plan.steps, &mut progress).await;
        if !failures.is_empty() {
            return Err(ApplyError::Failed(failures));
        }
        applied.steps += plan.steps.len();
        survey = Survey::take(kernel, topology, &probes).await?;
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

/// What the plan needs of nodes that didn't answer; apply does nothing while there is any.
pub fn unreachable(plan: &Plan, survey: &Survey) -> Vec<String> {
    let mut texts = Vec::new();
    for step in &plan.steps {
        if let Action::Connect(want) = &step.action
            && let Some(Err(why)) = survey.observed.probes.get(&want.node)
        {
            texts.push(format!("node {}: {why}", want.node));
        }
    }
    for (device, table) in &survey.desired.devices {
        if let Err(Undecided::Waits { reason, .. }) = table {
            texts.push(format!("device {device}: {reason}"));
        }
    }
    texts
}
