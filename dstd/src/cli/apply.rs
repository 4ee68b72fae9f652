//! `dstd apply`: makes what the topology says, once.
//! Called by cli. Changes nothing but settings where a change is refused or a node doesn't answer.

use clap::Args;

use super::args::TopologyArgs;
use super::plan::AllowArgs;
use super::{Exit, Stop, print, system};
use crate::plan::Step;
use crate::reconcile::apply;

/// Bring the kernel to what a topology says, once
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    topology: TopologyArgs,
    #[command(flatten)]
    allow: AllowArgs,
    /// Say nothing of the steps
    #[arg(long, short)]
    quiet: bool,
}

impl Apply {
    pub fn run(self) -> Result<Exit, Stop> {
        let topology = self.topology.load()?;
        let allowed = self.allow.allowed(&topology)?;
        let (kernel, connector) = (system::kernel()?, system::connector());
        let progress = |step: &Step| {
            if !self.quiet {
                // A lost standard output is no reason to stop half-way.
                let _ = print(format!("  {step}\n"));
            }
        };
        let applied = system::block_on(apply(&kernel, &connector, &topology, &allowed, progress))??;
        if !self.quiet {
            for note in &applied.notes {
                print(format!("  # {note}\n"))?;
            }
            print(match applied.steps {
                0 => "Nothing to do.\n".to_owned(),
                1 => "Done: 1 step.\n".to_owned(),
                n => format!("Done: {n} steps.\n"),
            })?;
        }
        Ok(Exit::Done)
    }
}
