//! `dstd apply`: makes what the topology says, once.
//! Called by cli. Changes nothing but settings where a change is refused or a node doesn't answer.

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::pin::pin;

use clap::Args;

use super::args::TopologyArgs;
use super::bar::Bar;
use super::color::Color;
use super::plan::AllowArgs;
use super::status::brief;
use super::{Exit, Stop, print, system};
use crate::kernel::Kernel;
use crate::reconcile::{Asked, Interrupt, Progress, apply};
use crate::signals::Ending;
use crate::topology::Topology;
use crate::units::NodeName;

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
        let bar = RefCell::new(Bar::on_stdout(self.quiet));
        let progress = |told: Progress<'_>| self.tell(&mut bar.borrow_mut(), told);
        let interrupt = Interrupt::default();
        let work = apply(
            &interrupt, &kernel, &connector, &topology, &allowed, progress,
        );
        let applied = system::block_on(unless_interrupted(&interrupt, &bar, work));
        bar.borrow_mut().clear();
        let applied = applied???;
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

    /// Steps are lines, on terminals with a bar below them; that nodes are asked is only told there.
    fn tell<W: Write>(&self, bar: &mut Bar<W>, told: Progress<'_>) {
        if self.quiet {
            return;
        }
        match told {
            Progress::Asking { silent, of } => {
                let names: Vec<_> = silent.iter().take(3).map(NodeName::as_str).collect();
                let more = if silent.len() > 3 { ", ..." } else { "" };
                let what = match names.as_slice() {
                    [] => "nodes have answered".to_owned(),
                    _ => format!(
                        "nodes have answered; waiting for {}{more}",
                        names.join(", ")
                    ),
                };
                bar.show(of - silent.len(), of, &what);
            }
            Progress::Step { step, nth, of } => {
                bar.line(&self.color.paint(&format!("  {step}\n")));
                bar.show(nth - 1, of, "steps are done");
            }
        }
    }
}

/// An apply that is told to end takes back what isn't complete: a device whose I/O pauses must not be left behind.
async fn unless_interrupted<T, W: Write>(
    interrupt: &Interrupt,
    bar: &RefCell<Bar<W>>,
    work: impl Future<Output = T>,
) -> Result<T, Stop> {
    let unwatched = |error| Stop::failed(format!("signals can't be watched: {error}"));
    let mut ending = Ending::watch().map_err(unwatched)?;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = ending.comes() => bar.borrow_mut().clear(),
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
    use crate::topology::Topology;

    async fn shown(bar: &mut Bar<Vec<u8>>) {
        let command = Apply {
            topology: TopologyArgs::default(),
            allow: AllowArgs::default(),
            quiet: false,
            color: Color::Never,
        };
        let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
        for node in ["a", "b"] {
            let uri = format!("nbd://{node}/");
            nodes.exports().insert(uri, export(2048, 0));
        }
        let text = "version: 1\nnodes: {a: {uri: 'nbd://a/'}, b: {uri: 'nbd://b/'}}\n\
            devices: {d: {table: [dst: {node: a}, dst: {node: b}]}}\n";
        let topology = Topology::parse_one("t.yaml", text).unwrap();
        let (interrupt, allowed) = (Interrupt::default(), Allowed::default());
        let tell = |told: Progress<'_>| command.tell(bar, told);
        apply(&interrupt, &kernel, &nodes, &topology, &allowed, tell)
            .await
            .unwrap();
        bar.clear();
    }

    const STEPS: &str = "  + create device d (UUID DST-d): the topology has it, the kernel doesn't
  ~ load a table for device d: the new device has no table yet
      0 4096 dst 2 a 0 2048 b 0 2048 2 block_size 512
  + connect node a, slot 0: a new table names it
  + connect node b, slot 0: a new table names it
  ~ resume device d: the table is complete
";

    #[tokio::test]
    async fn where_there_is_no_terminal_steps_are_lines_and_nothing_else_is_written() {
        let mut bar = Bar::new(Vec::new(), None);
        shown(&mut bar).await;
        let text = String::from_utf8(bar.into_inner()).unwrap();
        assert_eq!(text, STEPS);
    }

    #[tokio::test]
    async fn on_a_terminal_there_is_a_bar_below_the_same_lines_which_goes_in_the_end() {
        let mut bar = Bar::new(Vec::new(), Some(60));
        shown(&mut bar).await;
        let text = String::from_utf8(bar.into_inner()).unwrap();
        for part in [
            "[                    ] 0 of 2 nodes have answered; waiting",
            "[====================] 2 of 2 nodes have answered",
            "[                    ] 0 of 5 steps are done",
            "[================    ] 4 of 5 steps are done",
        ] {
            assert!(text.contains(part), "{part} isn't in {text:?}");
        }
        assert_eq!(screen(&text), STEPS);
    }

    /// What is left of it on a terminal: each bar is erased from its begin.
    fn screen(text: &str) -> String {
        let mut lines = vec![String::new()];
        for piece in text.split_inclusive(['\n', '\r']) {
            let piece = piece.strip_prefix("\x1b[K").unwrap_or(piece);
            let line = lines.last_mut().unwrap();
            if let Some(ended) = piece.strip_suffix('\n') {
                line.push_str(ended);
                lines.push(String::new());
            } else if piece.ends_with('\r') {
                line.clear();
            } else {
                line.push_str(piece);
            }
        }
        lines.join("\n")
    }

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
