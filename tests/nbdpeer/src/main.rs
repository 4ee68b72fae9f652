//! dst-nbd URI [--client HEX --nonce HEX --slot N --generation N] -- COMMAND...: one NBD client, step by step.
//!
//! Prints a line for each step when it has happened, so that a VM test can wait for it; the first step that fails
//! ends it with status 1 and a line with NBD's own name of the error (`refused: POLICY …`, `failed: write …: EIO`).
//! Connects and enters the export at the first command that needs it. Run by the guest tests.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use nbdpeer::{Address, Answer, Export, Fence, Mode, Peer, PeerError, Request, Session, proto};

#[derive(Parser)]
#[command(
    name = "dst-nbd",
    about = "An NBD client that does what it is told, step by step"
)]
struct Args {
    /// nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    uri: String,
    /// Client id, up to 32 hex digits; with it, SESSION goes before GO
    #[arg(long, value_parser = hex)]
    client: Option<[u8; 16]>,
    #[arg(long, value_parser = hex, default_value = "1")]
    nonce: [u8; 16],
    #[arg(long, default_value_t = 0)]
    slot: u32,
    #[arg(long, default_value_t = 1)]
    generation: u64,
    /// Take the export although another client holds it
    #[arg(long)]
    steal: bool,
    #[arg(long, value_enum, default_value_t = Replies::Structured)]
    replies: Replies,
    /// Seconds without an answer after which a step fails
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    #[arg(last = true, required = true, help = COMMANDS)]
    commands: Vec<String>,
}

const COMMANDS: &str = "One after the other: info | identify | go | write OFFSET LENGTH BYTE | \
    send-write OFFSET LENGTH BYTE | send-read OFFSET LENGTH | answer | read OFFSET LENGTH | zero OFFSET LENGTH | \
    trim OFFSET LENGTH | flush | map OFFSET LENGTH | fence SLOT GENERATION | hold SECONDS | hold eof | \
    half-close | disconnect | reset";

#[derive(Clone, Copy, ValueEnum)]
enum Replies {
    Simple,
    Structured,
    Extended,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let commands = args.commands.clone();
    let mut client = Client { args, peer: None };
    match client.run(&mut commands.iter()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&match error.downcast_ref() {
                Some(PeerError::Refused { kind, text, .. }) => {
                    format!("refused: {} {text}", proto::reply_name(*kind))
                }
                _ => format!("failed: {error:#}"),
            });
            ExitCode::FAILURE
        }
    }
}

struct Client {
    args: Args,
    peer: Option<Peer>,
}

type Words<'a> = std::slice::Iter<'a, String>;

impl Client {
    fn run(&mut self, words: &mut Words) -> Result<()> {
        while let Some(word) = words.next() {
            match word.as_str() {
                "info" => self.info()?,
                "identify" => self.identify()?,
                "go" => drop(self.peer()?),
                "fence" => self.fence(number(words)?, number(words)?)?,
                "hold" => hold(words.next().context("hold how long?")?)?,
                "answer" => {
                    let answer = self.peer()?.answer()?;
                    say(&format!("answer {}: {}", answer.cookie, outcome(&answer)));
                }
                "half-close" => {
                    self.peer()?.half_close()?;
                    say("half-closed");
                }
                "disconnect" => {
                    self.peer()?;
                    self.peer.take().map_or(Ok(()), Peer::disconnect)?;
                    say("disconnected");
                }
                "reset" => {
                    self.peer()?;
                    if let Some(peer) = self.peer.take() {
                        peer.reset();
                    }
                    say("reset");
                }
                other => self.request(other, words)?,
            }
        }
        Ok(())
    }

    fn request(&mut self, word: &str, words: &mut Words) -> Result<()> {
        let name = word.strip_prefix("send-").unwrap_or(word);
        let kind = match name {
            "read" => proto::READ,
            "write" => proto::WRITE,
            "zero" => proto::WRITE_ZEROES,
            "trim" => proto::TRIM,
            "flush" => proto::FLUSH,
            "map" => proto::BLOCK_STATUS,
            _ => bail!("there is no command `{word}`"),
        };
        let (offset, length) = match kind {
            proto::FLUSH => (0, 0),
            _ => (number(words)?, number(words)?),
        };
        let mut request = Request::new(kind, offset, length);
        if kind == proto::WRITE {
            let byte = u8::try_from(number(words)?).context("BYTE is 0 to 255")?;
            request.payload = vec![byte; length as usize];
        }
        let peer = self.peer()?;
        let what = format!("{name} {offset} {length}");
        if word != name {
            let cookie = peer.submit(request)?;
            say(&format!("sent {cookie}: {what}"));
            return Ok(());
        }
        let answer = peer.call(request).with_context(|| what.clone())?;
        if answer.error != 0 {
            return Err(PeerError::Nbd(answer.error)).context(what);
        }
        say(&format!("{what}: {}", outcome(&answer)));
        Ok(())
    }

    fn fresh(&self) -> Result<(Peer, String)> {
        let (address, export) = Address::parse_uri(&self.args.uri)?;
        let peer = Peer::hello(&address)?;
        peer.time_limit(Duration::from_secs(self.args.timeout.max(1)))?;
        Ok((peer, export))
    }

    fn info(&self) -> Result<()> {
        let (mut peer, export) = self.fresh()?;
        let told = peer.info(&export)?;
        say(&format!("info {}", describe(&told)));
        Ok(peer.abort()?)
    }

    fn identify(&self) -> Result<()> {
        let (mut peer, export) = self.fresh()?;
        let mut session = self.session(export);
        session.identify_only = true;
        tell(&mut peer, &session)?;
        Ok(peer.abort()?)
    }

    fn session(&self, export: String) -> Session {
        Session {
            steal: self.args.steal,
            identify_only: false,
            slot: self.args.slot,
            generation: self.args.generation,
            client: self.args.client.unwrap_or_default(),
            nonce: self.args.nonce,
            export,
        }
    }

    fn fence(&self, slot: u64, generation: u64) -> Result<()> {
        let (mut peer, export) = self.fresh()?;
        let fence = Fence {
            slot: u32::try_from(slot)?,
            generation,
            ..self.session(export).fence()
        };
        peer.fence(&fence)?;
        say(&format!("fenced {slot} {generation}"));
        Ok(peer.abort()?)
    }

    fn peer(&mut self) -> Result<&mut Peer> {
        if self.peer.is_none() {
            let peer = self.enter()?;
            self.peer = Some(peer);
        }
        self.peer.as_mut().context("no connection")
    }

    fn enter(&self) -> Result<Peer> {
        let (mut peer, export) = self.fresh()?;
        peer.negotiate(match self.args.replies {
            Replies::Simple => Mode::Simple,
            Replies::Structured => Mode::Structured,
            Replies::Extended => Mode::Extended,
        })?;
        if peer.mode != Mode::Simple {
            // Servers without it say so; then `map` is refused by them.
            let _ = peer.allocation(&export);
        }
        if self.args.client.is_some() {
            tell(&mut peer, &self.session(export.clone()))?;
        }
        let told = peer.go(&export)?;
        say(&format!("go {}", describe(&told)));
        Ok(peer)
    }
}

fn tell(peer: &mut Peer, session: &Session) -> Result<()> {
    let answer = peer.session(session)?;
    say(&format!(
        "session identity={:032x} incarnation={:032x} held_by_other={} {}",
        u128::from_be_bytes(answer.identity),
        u128::from_be_bytes(answer.incarnation),
        answer.held_by_other,
        answer.text
    ));
    Ok(())
}

fn describe(export: &Export) -> String {
    let access = match export.has(proto::READ_ONLY) {
        true => "ro",
        false => "rw",
    };
    let (minimum, preferred, payload) = export.block.unwrap_or_default();
    format!(
        "size={} {access} flags={:#x} block={minimum}/{preferred}/{payload}",
        export.size, export.flags
    )
}

/// An answer in one line: what was read as runs of equal bytes, what was mapped as runs of equal kind.
fn outcome(answer: &Answer) -> String {
    if answer.error != 0 {
        return proto::errno_name(answer.error);
    }
    let mut parts = Vec::new();
    for run in answer.data.chunk_by(|a, b| a == b).take(17) {
        parts.push(format!("{:02x}*{}", run[0], run.len()));
    }
    for chunk in &answer.chunks {
        if let nbdpeer::Chunk::Status(_, runs) = chunk {
            parts.extend(
                runs.iter()
                    .map(|(length, flags)| format!("{length}:{flags}")),
            );
        }
    }
    if parts.len() > 16 {
        parts.truncate(16);
        parts.push("…".to_owned());
    }
    match parts.is_empty() {
        true => "ok".to_owned(),
        false => parts.join(" "),
    }
}

fn hold(how_long: &str) -> Result<()> {
    say("holding");
    match how_long {
        "eof" => std::io::stdin()
            .lock()
            .lines()
            .map_while(|line| line.ok())
            .for_each(drop),
        seconds => std::thread::sleep(Duration::from_secs_f64(seconds.parse()?)),
    }
    Ok(())
}

/// A closed pipe is the test's business, not a reason to panic.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn number(words: &mut Words) -> Result<u64> {
    let word = words.next().context("a number is missing")?;
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.with_context(|| format!("`{word}` isn't a number"))
}

fn hex(text: &str) -> Result<[u8; 16], std::num::ParseIntError> {
    u128::from_str_radix(text, 16).map(u128::to_be_bytes)
}
