//! dst-nlpoke COMMAND [WORD...]: one request to dm-dst.ko, as wrong as the words make it.
//! COMMAND: get, dump, set, links, drop, fail, fenced (the words are attributes, see `request`), listen, refusals NODE
//! (see `script`), flap NODE SIZE FIRST COUNT (see `flap`), or keep NODE URI SIZE LINKS FILE (see `keep`).
//! Prints each answered node as a line of JSON, or "refused: ERRNO: text" with status 1. After a
//! refusal it talks through its own sockets: one that no longer works is status 2.
//! Used by the guest tests; what it must find is theirs to say.

mod flap;
mod keep;
mod request;
mod script;
mod sockets;
mod talk;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dstd::kernel::KernelEvent;
use dstd::netlink::{NetlinkError, events, message};

use request::Request;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dst-nlpoke: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        bail!("which command?");
    }
    let command = words.remove(0);
    if command == "listen" {
        return listen();
    }
    if command == "refusals" {
        script::refusals(words.first().context("of which node?")?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if command == "keep" {
        keep::keep(&words)?;
        return Ok(ExitCode::SUCCESS);
    }
    if command == "flap" {
        flap::flap(&words)?;
        return Ok(ExitCode::SUCCESS);
    }
    let again = words.first().is_some_and(|word| word == "again");
    if again {
        words.remove(0);
    }
    let mut request = Request::new(&command, &words)?;
    if again {
        talk::ask(&request).context("the first of the two requests")?;
        request.raise_generations();
    }
    let answers = talk::ask(&request);
    report(&request, answers)
}

/// What the kernel said; after a refusal, whether our sockets are still ours.
fn report(request: &Request, answers: Result<Vec<Vec<u8>>, NetlinkError>) -> Result<ExitCode> {
    match answers {
        Ok(answers) => {
            for answer in &answers {
                println!(
                    "{}",
                    serde_json::to_string(&message::observed_node(answer)?)?
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(NetlinkError::Refused { errno, text }) => {
            println!("refused: {errno:?}: {text}");
            if let Err(error) = request.sockets.still_work() {
                println!("a refused socket doesn't work any more: {error:#}");
                return Ok(ExitCode::from(2));
            }
            Ok(ExitCode::from(1))
        }
        Err(other) => Err(other.into()),
    }
}

/// Prints events, one a line, until it is ended.
fn listen() -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut events = events::listen()?;
        println!("listening");
        while let Some(event) = events.recv().await {
            println!("{}", text(&event));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn text(event: &KernelEvent) -> String {
    let or_dash = |reason: &Option<String>| reason.clone().unwrap_or_else(|| "-".to_owned());
    match event {
        KernelEvent::Node {
            node,
            state,
            reason,
        } => {
            format!("node {node} {state:?}: {}", or_dash(reason))
        }
        KernelEvent::Link {
            node,
            slot,
            generation,
            state,
            errno,
            reason,
        } => {
            let errno = errno.map_or_else(|| "-".to_owned(), |e| format!("{e:?}"));
            let reason = or_dash(reason);
            format!(
                "link {node} {} {} {state:?} {errno}: {reason}",
                slot.0, generation.0
            )
        }
        KernelEvent::Fence {
            node,
            slot,
            generation,
            ambiguous,
            reason,
        } => {
            let reason = or_dash(reason);
            format!(
                "fence {node} {} {} ambiguous {ambiguous}: {reason}",
                slot.0, generation.0
            )
        }
        KernelEvent::DataLost { node, writes } => format!("data lost {node} {writes}"),
        KernelEvent::Overflow => "overflow".to_owned(),
    }
}
