//! `dstd plan`: what `apply` would do, like a diff.
//! Called by cli. Looks at the kernel and asks nodes; changes nothing.

use std::collections::BTreeSet;

use clap::Args;

use super::args::{TopologyArgs, check_device, check_node};
use super::color::Color;
use super::{Exit, Stop, print, system};
use crate::plan::{Allowed, plan};
use crate::reconcile::{survey, unreachable};
use crate::topology::Topology;
use crate::units::{DeviceName, NodeName};

/// Show what apply would change, and why
///
/// Ends with status 0 when nothing is to do, 2 when there are changes, 3 when a change is refused.
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    topology: TopologyArgs,
    #[command(flatten)]
    allow: AllowArgs,
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// What would lose data is refused unless it is allowed here by name.
#[derive(Debug, Default, Args)]
pub struct AllowArgs {
    /// Let this device become smaller; what lies beyond its new end is lost to it
    #[arg(long, value_name = "DEVICE")]
    allow_shrink: Vec<DeviceName>,
    /// Let this device show other data where it now shows some (extents reordered or replaced)
    #[arg(long, value_name = "DEVICE")]
    allow_other_data: Vec<DeviceName>,
    /// Take this node's export from another client that may write to it now; what that one hasn't written yet is refused
    #[arg(long, value_name = "NODE")]
    steal: Vec<NodeName>,
    /// Take the export that this node's address leads to now, although it isn't the one before: it holds the same data,
    /// and the old server can't write to it any more
    #[arg(long, value_name = "NODE")]
    same_data: Vec<NodeName>,
    /// Remove devices of dstd's that are in no topology and not in use
    #[arg(long)]
    prune: bool,
}

impl AllowArgs {
    pub fn allowed(&self, topology: &Topology) -> Result<Allowed, Stop> {
        for name in self.allow_shrink.iter().chain(&self.allow_other_data) {
            check_device(topology, name)?;
        }
        for name in self.steal.iter().chain(&self.same_data) {
            check_node(topology, name)?;
        }
        let set = |names: &[DeviceName]| names.iter().cloned().collect::<BTreeSet<_>>();
        Ok(Allowed {
            shrink: set(&self.allow_shrink),
            other_data: set(&self.allow_other_data),
            prune: self.prune,
            steal: self.steal.iter().cloned().collect(),
            same_data: self.same_data.iter().cloned().collect(),
        })
    }
}

impl Plan {
    pub fn run(self) -> Result<Exit, Stop> {
        let topology = self.topology.load()?;
        let allowed = self.allow.allowed(&topology)?;
        let (kernel, connector) = (system::kernel()?, system::connector());
        let (survey, _) = system::block_on(survey(&kernel, &connector, &topology))??;
        let plan = plan(&survey.desired, &survey.observed, &allowed);
        let mut text = plan.to_string();
        for reason in unreachable(&plan, &survey) {
            text += &format!("apply would stop before it changes anything: {reason}\n");
        }
        print(self.color.paint(&text))?;
        Ok(match (plan.refusals.is_empty(), plan.steps.is_empty()) {
            (false, _) => Exit::Refused,
            (true, false) => Exit::Changes,
            (true, true) => Exit::Done,
        })
    }
}
