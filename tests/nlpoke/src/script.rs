//! Many refusals in one process: each line of standard input is ERRNO | TEXT | COMMAND WORD...
//! Each must be refused with that errno and that text, leave the node as it was, and every connected
//! socket usable. Called by main.

use std::io::BufRead;

use anyhow::{Context, Result, bail, ensure};
use dstd::netlink::NetlinkError;

use crate::request::Request;
use crate::talk;

/// Stops at the first line that isn't as it says.
pub fn refusals(node: &str) -> Result<()> {
    let mut count = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        refusal(node, &line).with_context(|| format!("the line `{line}`"))?;
        count += 1;
    }
    ensure!(count > 0, "no lines");
    println!("{count} refusals as they should be");
    Ok(())
}

fn refusal(node: &str, line: &str) -> Result<()> {
    let mut parts = line.splitn(3, " | ");
    let (Some(errno), Some(text), Some(words)) = (parts.next(), parts.next(), parts.next()) else {
        bail!("not ERRNO | TEXT | COMMAND WORD...");
    };
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    let (command, words) = words.split_first().context("which command?")?;
    let before = look(node)?;
    let request = Request::new(command, words)?;
    match talk::ask(&request) {
        Err(NetlinkError::Refused {
            errno: said,
            text: words,
        }) => {
            println!("{line} -> {said:?}: {words}");
            ensure!(
                format!("{said:?}") == errno,
                "refused with {said:?}: {words}"
            );
            ensure!(words.contains(text), "refused with other words: {words}");
        }
        Err(other) => bail!("not refused, but: {other}"),
        Ok(_) => bail!("it was taken"),
    }
    ensure!(
        look(node)? == before,
        "it was refused, but changed the node"
    );
    request
        .sockets
        .still_work()
        .context("a refused socket doesn't work any more")
}

/// All that the kernel tells of the node, as bytes.
fn look(node: &str) -> Result<Vec<Vec<u8>>> {
    let request = Request::new("get", &[format!("node={node}")])?;
    Ok(talk::ask(&request)?)
}
