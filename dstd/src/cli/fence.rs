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
        }
        let after = fence_shown(kernel.as_ref(), &node)?;
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

/// Each link by its own name, so that the word is for those that were shown and no other. What has no name of its own (it
/// stands for several, or its session is forgotten) goes with all, if all were shown.
fn fence_shown<K: Kernel>(kernel: &K, shown: &ObservedNode) -> Result<ObservedNode, Stop> {
    let mut nameless = false;
    for old in &shown.unfenced {
        let Some(session) = shown.session.filter(|_| old.merged == 0) else {
            nameless = true;
            continue;
        };
        let link = Fenced::Link {
            session,
            slot: old.slot,
            generation: old.generation,
        };
        kernel.fenced(&shown.name, link)?;
    }
    let now = known_node(&kernel.nodes()?, &shown.name)?;
    if !nameless {
        return Ok(now);
    }
    if let Some(new) = newcomer(shown, &now) {
        let text = format!(
            "the link of slot {}, generation {}, was lost meanwhile, too: look again",
            new.slot, new.generation
        );
        return Err(Stop::new(Exit::Refused, text));
    }
    Ok(kernel.fenced(&shown.name, Fenced::All)?)
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
    use crate::kernel::sim::SimKernel;
    use crate::kernel::{Access, DmUuid};
    use crate::units::{Generation, Session, Slot};

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

    /// Node a with two lost links of slots 0 and 1, as the simulated kernel has it.
    fn lost() -> (SimKernel, ObservedNode) {
        let kernel = SimKernel::default();
        let device = "d".parse().unwrap();
        let line = "0 8 dst 1 alpha 0 8".parse().unwrap();
        let access = Access::ReadWrite;
        kernel.create(&device, &DmUuid::default(), access).unwrap();
        kernel.load(&device, &[line], access).unwrap();
        let old = node().unfenced;
        let mut state = kernel.state();
        let alpha = state.nodes.get_mut(&node().name).unwrap();
        alpha.session = Some(Session::default());
        alpha.generation = Generation(9);
        alpha.unfenced = old;
        alpha.unfenced.iter_mut().for_each(|old| old.merged = 0);
        let alpha = alpha.clone();
        drop(state);
        (kernel, alpha)
    }

    fn lose_another(kernel: &SimKernel) {
        let mut state = kernel.state();
        let alpha = state.nodes.get_mut(&node().name).unwrap();
        let mut later = alpha.unfenced[0].clone();
        (later.slot, later.generation) = (Slot(0), Generation(7));
        alpha.unfenced.push(later);
    }

    #[test]
    fn a_link_that_is_lost_after_the_question_stays_unfenced() {
        let (kernel, shown) = lost();
        lose_another(&kernel);
        let after = fence_shown(&kernel, &shown).unwrap();
        let left: Vec<_> = after.unfenced.iter().map(|o| o.generation.0).collect();
        assert_eq!(left, [7]);
    }

    #[test]
    fn what_stands_for_several_links_goes_with_all_or_not_at_all() {
        let (kernel, mut shown) = lost();
        let merge = |shown: &mut ObservedNode| {
            let mut state = kernel.state();
            let alpha = state.nodes.get_mut(&shown.name).unwrap();
            alpha.unfenced[0].merged = 4;
            *shown = alpha.clone();
        };
        merge(&mut shown);
        lose_another(&kernel);
        let refused = fence_shown(&kernel, &shown).unwrap_err();
        assert!(refused.text.contains("generation 7"), "{}", refused.text);
        let shown = kernel.node(&shown.name).unwrap().unwrap();
        assert!(!shown.unfenced.is_empty());
        assert_eq!(fence_shown(&kernel, &shown).unwrap().unfenced, []);
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
