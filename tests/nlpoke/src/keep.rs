//! Keeps a node's links as dstd would, without a thought: each that is lost is made again at once, in this process, for
//! tests that lose thousands. Called by main. Fences nothing; ends when it is told to by a file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dstd::kernel::{LinkState, ObservedNode};
use dstd::netlink::message;

use crate::request::Request;
use crate::talk;

/// Between two looks at links that all live.
const POLL: Duration = Duration::from_millis(5);
/// A server may be busy with its lies.
const TRIES: u32 = 100;

/// NODE URI SIZE LINKS FILE: until FILE exists; then, when all links live, says how many it has made.
pub fn keep(words: &[String]) -> Result<()> {
    let [node, uri, size, links, file] = words else {
        bail!("keep NODE URI SIZE LINKS FILE");
    };
    let wanted: u32 = links.parse().context("LINKS")?;
    let (mut made, mut failed) = (0, 0);
    loop {
        let seen = look(node)?;
        let lost = lost(&seen, wanted);
        if lost.is_empty() && Path::new(file).exists() {
            println!("made {made} links");
            return Ok(());
        }
        if lost.is_empty() {
            std::thread::sleep(POLL);
            continue;
        }
        match connect(&seen, uri, size, wanted, &lost) {
            Ok(()) => {
                made += lost.len();
                failed = 0;
            }
            Err(error) => {
                failed += 1;
                ensure!(failed < TRIES, "{failed} tries in vain: {error:#}");
                std::thread::sleep(POLL);
            }
        }
    }
}

fn look(node: &str) -> Result<ObservedNode> {
    let answers = talk::ask(&Request::new("get", &[format!("node={node}")])?)?;
    let answer = answers.first().context("no answer")?;
    Ok(message::observed_node(answer)?)
}

fn lost(seen: &ObservedNode, wanted: u32) -> Vec<u32> {
    let lives = |slot: &u32| {
        seen.links
            .iter()
            .any(|link| link.slot.0 == *slot && link.state == LinkState::Live)
    };
    (0..wanted).filter(|slot| !lives(slot)).collect()
}

fn connect(seen: &ObservedNode, uri: &str, size: &str, wanted: u32, lost: &[u32]) -> Result<()> {
    let mut words = vec![
        format!("node={}", seen.name),
        format!("export={size}"),
        format!("wanted={wanted}"),
    ];
    let newer = (seen.generation.0 + 1..).zip(lost);
    words.extend(newer.map(|(generation, slot)| format!("link={slot}:{generation}:nbd@{uri}")));
    talk::ask(&Request::new("links", &words)?)?;
    Ok(())
}
