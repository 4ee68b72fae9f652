//! Links that are lost one after the other, each with a request under way: a Unix socket whose other end, here, takes
//! the begin of a request and closes. Called by main; needs a node with something to send, and no server.

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};

use crate::request::Request;
use crate::talk;

/// Magic, flags, type, cookie, offset, length.
const HEADER: usize = 28;

/// NODE SIZE FIRST COUNT: so many links, of generations from FIRST on.
pub fn flap(words: &[String]) -> Result<()> {
    let [node, size, first, count] = words else {
        bail!("flap NODE SIZE FIRST COUNT");
    };
    let first: u32 = first.parse().context("FIRST")?;
    let count: u32 = count.parse().context("COUNT")?;
    for generation in first..first + count {
        let words = [
            format!("node={node}"),
            format!("export={size}"),
            "wanted=1".to_owned(),
            format!("link=0:{generation}:unix"),
        ];
        let request = Request::new("links", &words)?;
        talk::ask(&request).map_err(|error| anyhow!("generation {generation}: {error}"))?;
        let mut header = [0; HEADER];
        request
            .sockets
            .peer()
            .context("no socket")?
            .read_exact(&mut header)
            .with_context(|| format!("a request on generation {generation}"))?;
    }
    Ok(())
}
