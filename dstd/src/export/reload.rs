//! What a new configuration changes on a running server: exports come, stay and go.
//!
//! Owns the comparison (pure) and its execution. Called by `cli::export` at SIGHUP. Exports that stay keep
//! their clients; a storage is closed before it is opened anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::backend::Backend;
use super::catalog::{Catalog, Export, Open};
use super::config::{Config, ExportConfig};
use super::server::{CUT_TIMEOUT, Server};

/// How long a storage whose links have all ended may take to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(5);

/// By name; an export that changes is in `close` and in one of `open` and `reopen`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub keep: BTreeSet<String>,
    pub close: BTreeSet<String>,
    /// New ones that need nothing closed before.
    pub open: BTreeSet<String>,
    /// Those whose name or file is in use until something is closed.
    pub reopen: BTreeSet<String>,
}

/// `running`: what is served, and whether it could be opened.
pub fn plan(
    running: &BTreeMap<String, (ExportConfig, bool)>,
    wanted: &BTreeMap<String, ExportConfig>,
) -> Plan {
    let mut plan = Plan::default();
    for (name, (config, is_open)) in running {
        let stays = wanted.get(name).is_some_and(|new| config.same_storage(new));
        match (stays, is_open) {
            (true, true) => plan.keep.insert(name.clone()),
            (false, true) => plan.close.insert(name.clone()),
            (_, false) => false,
        };
    }
    let closing = |path| plan.close.iter().any(|name| running[name].0.path == path);
    for (name, config) in wanted {
        if plan.keep.contains(name) {
            continue;
        }
        let waits = plan.close.contains(name) || closing(config.path.clone());
        let list = if waits {
            &mut plan.reopen
        } else {
            &mut plan.open
        };
        list.insert(name.clone());
    }
    plan
}

/// Carries it out; returns when everything that could be opened is.
pub async fn reload(server: &Server, config: Config) {
    let before = server.state();
    let patience = config.drain_timeout;
    if before.config.listen != config.listen || before.config.workers != config.workers {
        warn!("`listen` and `workers` change only when the server is started anew");
    }
    let running = before.catalog.exports();
    let plan = plan(&states(running), &config.exports);
    let mut exports = BTreeMap::new();
    for (name, export) in &config.exports {
        let open = match running.get(name) {
            Some(old) if plan.keep.contains(name) => old.open.clone(),
            _ if plan.open.contains(name) => open(name, export).await,
            _ => Err("it is being opened anew".to_owned()),
        };
        exports.insert(name.clone(), Server::entry(name, export, open));
    }
    server.install(
        config.clone(),
        Arc::new(Catalog::new(&config, exports.clone())),
    );
    let closing: Vec<_> = plan
        .close
        .iter()
        .filter_map(|name| running[name].open.clone().ok())
        .collect();
    drop(before);
    close(closing, patience).await;
    for name in &plan.reopen {
        if let Some(export) = exports.get_mut(name) {
            export.open = open(name, &export.config).await;
        }
    }
    let catalog = Arc::new(Catalog::new(&config, exports));
    server.install(config, catalog);
    let Plan {
        keep,
        close,
        open,
        reopen,
    } = plan;
    info!(
        ?keep,
        ?close,
        ?open,
        ?reopen,
        "the configuration is reloaded"
    );
}

fn states(running: &BTreeMap<String, Export>) -> BTreeMap<String, (ExportConfig, bool)> {
    let states = running
        .iter()
        .map(|(name, export)| (name.clone(), (export.config.clone(), export.open.is_ok())));
    states.collect()
}

async fn open(name: &str, config: &ExportConfig) -> Result<Arc<Open>, String> {
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || Open::storage(&config)).await;
    let opened = opened.unwrap_or_else(|failed| Err(failed.to_string()));
    if let Err(why) = &opened {
        error!(export = name, "export `{name}` isn't served: {why}");
    }
    opened
}

/// Ends all links of these exports, and returns when their storage is closed.
async fn close(exports: Vec<Arc<Open>>, patience: Duration) {
    let gates: Vec<_> = exports.iter().flat_map(|open| open.close()).collect();
    for gate in &gates {
        gate.drain();
    }
    let ended = async || {
        for gate in &gates {
            gate.wait_end().await;
        }
    };
    if timeout(patience, ended()).await.is_err() {
        for gate in &gates {
            gate.cut();
        }
        if timeout(CUT_TIMEOUT, ended()).await.is_err() {
            warn!("links of an export that goes wait for a storage that doesn't answer");
        }
    }
    // The last owner is a worker or a connection that is just about to forget it: nothing tells of that moment.
    let backends: Vec<Weak<Backend>> = exports.iter().map(|o| Arc::downgrade(&o.backend)).collect();
    drop(exports);
    let closed = async {
        while backends.iter().any(|backend| backend.strong_count() > 0) {
            sleep(CLOSE_POLL).await;
        }
    };
    if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        warn!("the storage of an export that goes is still in use");
    }
}
