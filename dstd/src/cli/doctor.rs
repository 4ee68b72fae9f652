//! `dstd doctor`: what is wrong with this machine and its nodes, and what to do.
//! Called by cli. Changes nothing.

use clap::Args;

use super::args::TopologyArgs;
use super::{Exit, Stop, print, system};
use crate::doctor::{self, Finding, Level, Machine};
use crate::kernel::real::RealKernel;
use crate::netlink::client::find_family;

/// Look for what is wrong with this machine and the topology's nodes, and say what to do
///
/// Ends with status 1 where something is bad.
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    topology: TopologyArgs,
}

impl Doctor {
    pub fn run(self) -> Result<Exit, Stop> {
        let machine = Machine::this();
        let mut worst = Level::Good;
        let mut tell = |findings: Vec<Finding>| {
            for finding in findings {
                worst = worst.max(finding.level);
                print(format!("{finding}\n"))?;
            }
            Ok::<(), Stop>(())
        };
        tell(about_kernel(&machine))?;
        tell(vec![machine.udev()])?;
        tell(machine.lvm().into_iter().collect())?;
        tell(vec![machine.daemon()])?;
        match self.topology.load() {
            Err(stop) => tell(vec![Finding::bad(
                format!("the topology can't be used:\n{}", stop.text),
                "mend it; docs/topology.md says what may stand there",
            )])?,
            Ok(topology) => {
                let nodes = system::block_on(doctor::ask(&system::connector(), &topology))?;
                tell(nodes)?;
            }
        }
        Ok(match worst {
            Level::Bad => Exit::Failed,
            Level::Good | Level::Note => Exit::Done,
        })
    }
}

fn about_kernel(machine: &Machine) -> Vec<Finding> {
    let kernel = RealKernel::open();
    let family = find_family().map(drop);
    let mut findings = vec![
        doctor::device_mapper(kernel.as_ref().map(drop)),
        doctor::module(&family, machine),
    ];
    if let Ok(kernel) = kernel {
        findings.extend(doctor::seen(&kernel));
    }
    findings
}
