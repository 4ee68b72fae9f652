//! `dstd fence`: the operator's word that a node's lost links can't write any more.
//! Called by cli. Asks before it does it: nobody can check that word, and a wrong one lets old data overwrite new.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;

use super::{Exit, Stop, known_node, print, system};
use crate::kernel::{Fenced, Kernel, ObservedNode, OldLink};
use crate::units::NodeName;

/// Take the lost links of a node as fenced, on your word
///
/// What a lost link carried may still be applied by the server process that had it, and what overlaps it waits until
/// that is out of the question. Node servers of dstd (`dstd export`) say so by themselves. Of others only you can know,
/// where `quiesce: never` says that no time is long enough: end the old server process, or its machine, first.
#[derive(Debug, Args)]
pub struct Fence {
    #[arg(value_name = "NODE")]
    node: NodeName,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
}

impl Fence {
    pub fn run(self) -> Result<Exit, Stop> {
        let kernel = system::kernel()?;
        let node = known_node(&kernel.nodes()?, &self.node)?;
        if node.unfenced.is_empty() {
            print(format!(
                "Nothing to do: no lost link of {} is unfenced.\n",
                node.name
            ))?;
            return Ok(Exit::Done);
        }
        print(question(&node))?;
        if !self.yes {
            ask(&node.name)?;
            let now = known_node(&kernel.nodes()?, &self.node)?;
            if let Some(new) = newcomer(&node, &now) {
                let text = format!(
                    "the link of slot {}, generation {}, was lost meanwhile, too: look again",
                    new.slot, new.generation
                );
                return Err(Stop::new(Exit::Refused, text));
            }
        }
        let after = kernel.fenced(&self.node, Fenced::All)?;
        print(format!(
            "Fenced: {} ranges are free, {} requests go on.\n",
            node.ambiguous.saturating_sub(after.ambiguous),
            node.barred
        ))?;
        Ok(Exit::Done)
    }
}

fn question(node: &ObservedNode) -> String {
    let name = &node.name;
    let mut text = format!("Lost links of node {name} that may still write:\n");
    for old in &node.unfenced {
        let others = match old.merged {
            0 => String::new(),
            more => format!(", and {more} older links"),
        };
        text += &format!(
            "  slot {}, generation {}{others}: {} ranges\n",
            old.slot, old.generation, old.ambiguous
        );
    }
    text + "If a server process that had one of them still runs, or is only stopped, its old writes\n\
            can overwrite newer data.\n"
}

/// One that the operator hasn't seen.
fn newcomer<'a>(seen: &ObservedNode, now: &'a ObservedNode) -> Option<&'a OldLink> {
    let known = |new: &OldLink| {
        seen.unfenced.iter().any(|old| {
            (old.slot, old.generation, old.merged) == (new.slot, new.generation, new.merged)
        })
    };
    now.unfenced.iter().find(|new| !known(new))
}

fn ask(node: &NodeName) -> Result<(), Stop> {
    let refused = |text: &str| Err(Stop::new(Exit::Refused, text));
    if !std::io::stdin().is_terminal() {
        return refused("nothing was done: say --yes where nobody can be asked");
    }
    print("Type the node's name to say that none does: ")?;
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == node.as_str() => Ok(()),
        _ => refused("nothing was done"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::node;
    use crate::units::{Generation, Slot};

    #[test]
    fn the_question_names_each_link_and_the_danger() {
        let text = question(&node());
        assert!(text.contains("Lost links of node alpha"), "{text}");
        assert!(
            text.contains("  slot 1, generation 2: 2 ranges\n"),
            "{text}"
        );
        assert!(
            text.contains("  slot 0, generation 1, and 4 older links: 1 ranges\n"),
            "{text}"
        );
        assert!(text.contains("can overwrite newer data"), "{text}");
    }

    #[test]
    fn the_word_is_for_the_links_that_were_seen() {
        let seen = node();
        let mut now = node();
        assert_eq!(newcomer(&seen, &now), None);
        now.unfenced.remove(0);
        assert_eq!(newcomer(&seen, &now), None, "one was fenced meanwhile");
        now.unfenced[0].merged += 1;
        assert_eq!(newcomer(&seen, &now).unwrap().slot, Slot(0));
        let mut later = seen.unfenced[0].clone();
        later.generation = Generation(9);
        now.unfenced = vec![later];
        assert_eq!(newcomer(&seen, &now).unwrap().generation, Generation(9));
    }
}
