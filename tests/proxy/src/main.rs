//! dst-proxy: stands between an NBD client and its server and does at a named byte of a named message what a test
//! wants: cuts in each way, stalls, swallows, holds a request back and lets it go later, spoils bytes.
//!
//! `dst-proxy serve` runs until it is told to quit and prints an event a line; `dst-proxy ctl SOCKET WORD…` gives it
//! orders (see `control`, `rules`). Run by the guest tests. Understands NBD only so far as `framing` says.

mod conn;
mod control;
mod framing;
mod pump;
mod rules;
mod shared;
mod sock;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::net::UnixListener;

use crate::shared::{Accept, Shared};
use crate::sock::{Address, Listener};

#[derive(Parser)]
#[command(
    name = "dst-proxy",
    about = "Cut, hold and spoil NBD at a named byte of a named message"
)]
enum Cli {
    /// Take clients and connect each to the server
    Serve {
        /// HOST:PORT or the path of a Unix socket
        #[arg(long)]
        listen: Address,
        #[arg(long)]
        to: Address,
        /// Path of the Unix socket for orders
        #[arg(long)]
        control: PathBuf,
    },
    /// Give an order and print what it says
    Ctl {
        socket: PathBuf,
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Serve {
            listen,
            to,
            control,
        } => serve(&listen, to, &control).await.map(|()| true),
        Cli::Ctl { socket, words } => {
            control::say(&socket, &words.join(" "))
                .await
                .map(|(done, text)| {
                    println!("{text}");
                    done
                })
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dst-proxy: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn serve(listen: &Address, to: Address, control: &PathBuf) -> Result<()> {
    let orders =
        UnixListener::bind(control).with_context(|| format!("binding {}", control.display()))?;
    let listener = Listener::bind(listen)
        .await
        .with_context(|| format!("listening at {listen:?}"))?;
    let shared = Arc::new(Shared::new(to, print));
    shared.say(&format!("listening at {}", listener.address()));
    tokio::select! {
        end = control::serve(shared.clone(), orders) => end,
        end = take_clients(shared, listener) => end,
    }
}

/// A closed pipe is nobody's problem.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

async fn take_clients(shared: Arc<Shared>, listener: Listener) -> Result<()> {
    let mut stalled = Vec::new();
    loop {
        let client = listener.accept().await.context("accepting")?;
        match shared.accept() {
            Accept::Yes => drop(tokio::spawn(conn::serve(shared.clone(), client))),
            Accept::No => client.reset(),
            Accept::Stall => stalled.push(client),
        }
    }
}

#[cfg(test)]
mod tests;
