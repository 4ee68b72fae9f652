//! `dstd apply`: makes what the topology says, once.
//! Called by cli. Changes nothing but settings where a change is refused or a node doesn't answer.

use std::future::Future;
use std::pin::pin;

use clap::Args;

use super::args::TopologyArgs;
use super::color::Color;
use super::plan::AllowArgs;
use super::status::brief;
use super::{Exit, Stop, print, system};
use crate::kernel::Kernel;
use crate::plan::Step;
use crate::reconcile::{Asked, Interrupt, apply};
use crate::signals::Ending;
use crate::topology::Topology;

/// Bring the kernel to what a topology says, once
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    topology: TopologyArgs,
    #[command(flatten)]
    allow: AllowArgs,
    /// Say nothing of the steps, nor of what is so in the end
    #[arg(long, short)]
    quiet: bool,
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

impl Apply {
    pub fn run(self) -> Result<Exit, Stop> {
        let topology = self.topology.load()?;
        let allowed = self.allow.allowed(&topology)?;
        let (kernel, connector) = (system::kernel()?, system::connector());
        let progress = |step: &Step| {
            if !self.quiet {
                // A lost standard output is no reason to stop half-way.
                let _ = print(self.color.paint(&format!("  {step}\n")));
            }
        };
        let interrupt = Interrupt::default();
        let work = apply(
            &interrupt, &kernel, &connector, &topology, &allowed, progress,
        );
        let applied = system::block_on(unless_interrupted(&interrupt, work))???;
        if !self.quiet {
            for note in &applied.notes {
                print(self.color.paint(&format!("  # {note}\n")))?;
            }
            print(match applied.steps {
                0 => "Nothing to do.\n".to_owned(),
                1 => "Done: 1 step. Now:\n\n".to_owned(),
                n => format!("Done: {n} steps. Now:\n\n"),
            })?;
            if applied.steps > 0 {
                print(now(kernel.as_ref(), &topology)?)?;
            }
        }
        Ok(Exit::Done)
    }
}

/// An apply that is told to end takes back what isn't complete: a device whose I/O pauses must not be left behind.
async fn unless_interrupted<T>(
    interrupt: &Interrupt,
    work: impl Future<Output = T>,
) -> Result<T, Stop> {
    let unwatched = |error| Stop::failed(format!("signals can't be watched: {error}"));
    let mut ending = Ending::watch().map_err(unwatched)?;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = ending.comes() => {}
        }
        match interrupt.ask() {
            Asked::AtOnce => return Err(Stop::failed("interrupted; no step was under way")),
            Asked::Soon => eprintln!(
                "dstd: interrupted; what isn't complete is taken back (a second signal ends it at once)"
            ),
            Asked::Again => {
                return Err(Stop::failed(
                    "interrupted twice; what wasn't complete stays as it is until `dstd apply` or the daemon mends it",
                ));
            }
        }
    }
}

/// The topology's devices and nodes as the kernel has them.
fn now<K: Kernel>(kernel: &K, topology: &Topology) -> Result<String, Stop> {
    let (mut devices, mut nodes) = (kernel.devices()?, kernel.nodes()?);
    let named = |name: &str| topology.devices.keys().any(|d| d.as_str() == name);
    devices.retain(|device| named(&device.name));
    nodes.retain(|node| topology.nodes.contains_key(&node.name));
    Ok(brief(&devices, nodes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::sim::{SimKernel, SimNodes, export};
    use crate::plan::Allowed;

    #[tokio::test]
    async fn the_end_shows_what_is_so_now() {
        let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
        let uri = "nbd://a/".to_owned();
        nodes.exports().insert(uri, export(2048, 0));
        let text =
            "version: 1\nnodes: {a: {uri: 'nbd://a/'}}\ndevices: {d: {table: [dst: {node: a}]}}\n";
        let topology = Topology::parse_one("t.yaml", text).unwrap();
        let allowed = Allowed::default();
        let interrupt = Interrupt::default();
        let applied = apply(&interrupt, &kernel, &nodes, &topology, &allowed, |_| {});
        assert_eq!(applied.await.unwrap().steps, 4);
        kernel.stranger("other", true);
        let expected = "\
DEVICE  SIZE  STATE   ACCESS  OPEN  NUMBER  MADE BY  NODES
d       1MiB  active  rw      0     254:0   dstd     a

NODE  STATE  LINKS  SIZE  IN FLIGHT  QUEUED  BARRED  ERRORS  RECONNECTS  CACHE          REASON
a     live   1/1    1MiB  0          0       0       0       0           write-through  -
";
        assert_eq!(now(kernel.as_ref(), &topology).unwrap(), expected);
    }
}
