//! The server as a process: signals, systemd, its configuration file.
//!
//! Owns the order of things from start to end. Called by `cli::export`. Decides nothing about a connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::config::{Config, Listen};
use super::config_file;
use super::listen::{self, ListenError, Listener};
use super::reload::reload;
use super::server::{DataPlane, Server};
use crate::signals::Ending;

#[derive(Debug, Error)]
pub enum ServiceError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{}", .0.join("\n"))]
    Exports(Vec<String>),
    #[error("signals can't be watched: {0}")]
    Signal(io::Error),
}

/// Serves until SIGTERM or SIGINT. `file`: where the configuration came from; read again on SIGHUP.
pub async fn run(
    config: Config,
    file: Option<PathBuf>,
    plane: Arc<dyn DataPlane>,
) -> Result<(), ServiceError> {
    let mut signals = Signals::watch().map_err(ServiceError::Signal)?;
    raise_descriptor_limit();
    let wanted = config.listen.clone();
    let opening = tokio::task::spawn_blocking(move || Server::open(config, plane));
    let server = opening
        .await
        .map_err(|failed| ServiceError::Exports(vec![failed.to_string()]))?;
    report_failed(&server, file.is_some())?;
    let mut places = Vec::new();
    let mut listeners = JoinSet::new();
    for listener in listen::open(&wanted)? {
        places.push(announce(&server, &listener));
        listeners.spawn(server.clone().listen(listener));
    }
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&status(&server, &places)),
    ]);
    loop {
        if !signals.reload().await {
            break;
        }
        tokio::select! {
            biased;
            () = signals.ending.comes() => break,
            () = reread(&server, file.as_deref(), &places) => {}
        }
    }
    info!("stopping");
    tell(&[NotifyState::Stopping]);
    server.stop().await;
    // They have heard of it; what they still have to do is to take their sockets' paths away.
    while listeners.join_next().await.is_some() {}
    Ok(())
}

struct Signals {
    ending: Ending,
    hup: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Signals {
            ending: Ending::watch()?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// False: the end is wanted.
    async fn reload(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.ending.comes() => false,
            _ = self.hup.recv() => true,
        }
    }
}

/// A dead disk must not keep the others of a machine from being served; a wrong command line is to be mended.
fn report_failed(server: &Server, from_file: bool) -> Result<(), ServiceError> {
    let failed: Vec<String> = failed(server)
        .map(|(name, why)| format!("export `{name}`: {why}"))
        .collect();
    let all = failed.len() == server.state().catalog.exports().len();
    if !failed.is_empty() && (all || !from_file) {
        return Err(ServiceError::Exports(failed));
    }
    for why in failed {
        error!("{why}; the others are served, and SIGHUP tries it again");
    }
    Ok(())
}

fn failed(server: &Server) -> impl Iterator<Item = (String, String)> + use<> {
    let state = server.state();
    let failed = state.catalog.exports().values().filter_map(|export| {
        let why = export.open.as_ref().err()?;
        Some((export.name.clone(), why.clone()))
    });
    failed.collect::<Vec<_>>().into_iter()
}

/// Says where clients come in, and loudly where anybody may.
fn announce(server: &Server, listener: &Listener) -> String {
    let place = match listener.place() {
        Ok(place) => place,
        Err(error) => return format!("a socket without a name ({error})"),
    };
    info!("listening on {place}");
    let open = open_to_all(server);
    if place.is_public() && !open.is_empty() {
        warn!(
            "whoever reaches {place} may use {}: there is no TLS and no password, so say `allow` (--allow) or listen \
             on an address that only friends reach",
            open.join(", ")
        );
    }
    if place == Listen::defaults()[0] {
        info!("only this machine is served; other machines need `listen` (--listen)");
    }
    place.to_string()
}

fn open_to_all(server: &Server) -> Vec<String> {
    let state = server.state();
    let open = state.config.exports.iter();
    let open = open.filter(|(_, export)| export.access.allow.is_none());
    open.map(|(name, _)| format!("export `{name}`")).collect()
}

async fn reread(server: &Server, file: Option<&Path>, places: &[String]) {
    let Some(file) = file else {
        return warn!(
            "SIGHUP changes nothing: the exports came from the command line, not from a file"
        );
    };
    let config = match config_file::load(file) {
        Ok(config) => config,
        Err(errors) => {
            return error!("the new configuration is wrong, so nothing changes:\n{errors}");
        }
    };
    let mut reloading = vec![NotifyState::Reloading];
    reloading.extend(NotifyState::monotonic_usec_now());
    tell(&reloading);
    reload(server, config).await;
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&status(server, places)),
    ]);
}

fn status(server: &Server, places: &[String]) -> String {
    let exports = server.state().catalog.exports().len();
    let failed: Vec<String> = failed(server).map(|(name, _)| name).collect();
    let mut text = format!(
        "serving {} of {exports} exports on {}",
        exports - failed.len(),
        places.join(", ")
    );
    if !failed.is_empty() {
        text += &format!("; not to be had: {}", failed.join(", "));
    }
    text
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        warn!("systemd can't be told: {error}");
    }
}

/// Each connection is a descriptor, and the soft limit is 1024 almost everywhere.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("the limit of open descriptors can't be raised: {error}");
    }
}
