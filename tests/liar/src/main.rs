//! dst-liar: an NBD server that keeps its data rightly and, from a seed, answers wrongly in every way a client must
//! survive. Prints what it has told as lines of JSON; `"done":true` when all lies are told, and is honest then.
//!
//! The handshake is honest, and so is every answer that a client may believe: contents can be verified all the while.
//! Run by the guest tests.

mod handshake;
mod input;
mod lies;
mod serve;
mod store;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::input::Stream;
use crate::lies::Lie;
use crate::store::{Manner, Store};

const POLL: Duration = Duration::from_millis(50);

#[derive(Parser)]
#[command(
    name = "dst-liar",
    about = "An NBD server that answers wrongly, from a seed"
)]
struct Args {
    /// HOST:PORT or the path of a Unix socket
    #[arg(long)]
    listen: String,
    /// Bytes of the export
    #[arg(long, default_value_t = 16 << 20)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Wrong exchanges, after which it is honest
    #[arg(long, default_value_t = u64::MAX)]
    exchanges: u64,
    /// Wrong answers with which the link goes on, of a hundred
    #[arg(long, default_value_t = 50)]
    lies: u32,
    /// Wrong answers that end the link, of a thousand
    #[arg(long, default_value_t = 10)]
    fatal: u32,
    /// Only these kinds, by name
    #[arg(long, value_parser = Lie::parse, value_delimiter = ',')]
    only: Vec<Lie>,
    /// Lie only while this file exists
    #[arg(long)]
    while_file: Option<PathBuf>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn bind(address: &str) -> Result<Self> {
        let listener = match address.contains('/') {
            true => UnixListener::bind(address).map(Listener::Unix),
            false => TcpListener::bind(address).map(Listener::Tcp),
        };
        listener.with_context(|| format!("listening at {address}"))
    }

    fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Listener::Tcp(tcp) => Stream::Tcp(tcp.accept()?.0),
            Listener::Unix(unix) => Stream::Unix(unix.accept()?.0),
        })
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let store = Arc::new(Store::new(args.size, manner(&args)));
    let listener = Listener::bind(&args.listen)?;
    if let Some(file) = args.while_file {
        store.lying.store(file.exists(), Ordering::Relaxed);
        let store = store.clone();
        std::thread::spawn(move || follow(&store, &file));
    }
    let told = store.clone();
    std::thread::spawn(move || {
        told.wait();
        say(&told);
    });
    loop {
        let stream = listener.accept().context("accepting")?;
        let store = store.clone();
        // A link that breaks is what it is for.
        std::thread::spawn(move || drop(serve::serve(&store, stream)));
    }
}

fn manner(args: &Args) -> Manner {
    let all = || Lie::ALL.iter().map(|(lie, _)| *lie).collect();
    Manner {
        seed: args.seed,
        lies: args.lies,
        fatal: args.fatal,
        among: if args.only.is_empty() {
            all()
        } else {
            args.only.clone()
        },
        exchanges: args.exchanges,
    }
}

/// A closed pipe is nobody's problem.
fn say(store: &Store) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", store.report()).and_then(|()| out.flush());
}

/// Lies while the file exists; tells what it has told whenever it stops.
fn follow(store: &Store, file: &Path) {
    loop {
        let lying = file.exists();
        if store.lying.swap(lying, Ordering::Relaxed) && !lying {
            say(store);
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests;
