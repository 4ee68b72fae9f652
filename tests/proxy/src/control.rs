//! The control socket: a line is a command, and is answered by one line, `ok …` or `error: …`, when it is done.
//!
//!   list | arm RULE (see rules) | disarm ID|all | on N|all ACTION… | heal N|all [up|down] | release ID
//!   wait ID fired|released|answered [SECONDS] | accept yes|no|stall | quit
//!
//! Called by main. Never touches a connection's sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::conn::Deed;
use crate::rules::{Rule, Words, directions, parse_actions};
use crate::shared::{Accept, Shared, Stage};

const PATIENCE: u64 = 30;

/// Until `quit`.
pub async fn serve(shared: Arc<Shared>, listener: UnixListener) -> Result<()> {
    let quit = Arc::new(tokio::sync::Notify::new());
    loop {
        tokio::select! {
            client = listener.accept() => {
                let (stream, _) = client.context("accepting on the control socket")?;
                let (shared, quit) = (shared.clone(), quit.clone());
                tokio::spawn(async move {
                    if talk(&shared, stream).await.unwrap_or(false) {
                        quit.notify_one();
                    }
                });
            }
            () = quit.notified() => return Ok(()),
        }
    }
}

/// True: it said quit.
async fn talk(shared: &Shared, stream: UnixStream) -> Result<bool> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match obey(shared, &line).await {
            Ok(text) => format!("ok {text}").trim_end().to_owned(),
            Err(error) => format!("error: {error:#}"),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
        if line.trim() == "quit" {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn obey(shared: &Shared, line: &str) -> Result<String> {
    let mut words = Words::new(line);
    match words.word("the command")? {
        "list" => Ok(shared.list()),
        "arm" => Ok(shared.arm(|id| Rule::parse(id, &mut words))?.to_string()),
        "disarm" => {
            shared.disarm(one_or_all(&mut words)?);
            Ok(String::new())
        }
        "on" => {
            let conn = one_or_all(&mut words)?;
            let actions = parse_actions(&mut words)?;
            let count = shared.order(conn, || Deed::Act(actions.clone())).await?;
            Ok(count.to_string())
        }
        "heal" => {
            let conn = one_or_all(&mut words)?;
            let directions = directions(&mut words);
            words.end()?;
            let heal = || Deed::Heal(directions.clone());
            Ok(shared.order(conn, heal).await?.to_string())
        }
        "release" => {
            let id = words.number("ID")?;
            let conn = shared.holder(id)?;
            shared.order(Some(conn), || Deed::Release(id)).await?;
            Ok(String::new())
        }
        "wait" => wait(shared, &mut words).await,
        "accept" => {
            shared.set_accept(match words.word("yes, no or stall")? {
                "yes" => Accept::Yes,
                "no" => Accept::No,
                "stall" => Accept::Stall,
                other => bail!("`{other}` is neither yes, no nor stall"),
            });
            Ok(String::new())
        }
        "quit" => Ok(String::new()),
        other => bail!("`{other}` is no command"),
    }
}

fn one_or_all(words: &mut Words) -> Result<Option<u64>> {
    match words.maybe_number() {
        Some(number) => Ok(Some(number)),
        None => match words.word("a number or all")? {
            "all" => Ok(None),
            other => bail!("`{other}` is neither a number nor all"),
        },
    }
}

async fn wait(shared: &Shared, words: &mut Words<'_>) -> Result<String> {
    let id = words.number("ID")?;
    let stage = match words.word("fired, released or answered")? {
        "fired" => Stage::Fired,
        "released" => Stage::Released,
        "answered" => Stage::Answered,
        other => bail!("`{other}` is no stage of a rule"),
    };
    let seconds = words.maybe_number().unwrap_or(PATIENCE);
    words.end()?;
    let waiting = tokio::time::timeout(Duration::from_secs(seconds), shared.wait(id, stage));
    waiting
        .await
        .with_context(|| format!("not {stage:?} within {seconds} s").to_lowercase())?
}

/// One command, from the command line. True: it was done.
pub async fn say(socket: &Path, line: &str) -> Result<(bool, String)> {
    let stream = UnixStream::connect(socket).await;
    let mut stream = stream.with_context(|| format!("connecting to {}", socket.display()))?;
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let answer = answer.trim_end();
    let text = answer.strip_prefix("ok").map(str::trim_start);
    Ok((text.is_some(), text.unwrap_or(answer).to_owned()))
}
