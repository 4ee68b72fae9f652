//! The server: takes connections, has them choose an export, hands them to the data plane, and ends.
//!
//! Owns what all connections share. Called by `cli::export`. Never reads or writes an export.
//!
//! ```text
//! accept ──limits──► handshake ──Transmission──► data plane ──gate.end()──► counted off, logged
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::access::Peer;
use super::catalog::{Catalog, Export, Open};
use super::config::{Config, ExportConfig};
use super::handshake::{Agreed, Exports, Handshake, HandshakeError, Outcome};
use super::limits::{Admission, LogGate, Ticket};
use super::link::{End, LinkGate, LinkLimits, Transmission};
use super::listen::{Listener, pause_after};
use super::socket::Socket;
use super::worker::Workers;

/// A cut link is gone when its last storage operation is. A disk that hangs longer is left behind.
pub const CUT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where negotiated connections go: the worker threads, or a test.
pub trait DataPlane: Send + Sync {
    /// Never blocks. Sees to it that the link's gate is told its end, exactly once.
    fn serve(&self, link: Transmission);

    /// Bytes that all links' requests take now.
    fn memory(&self) -> usize;
}

impl DataPlane for Workers {
    fn serve(&self, link: Transmission) {
        Workers::serve(self, link);
    }

    fn memory(&self) -> usize {
        Workers::memory(self)
    }
}

/// What should be served, and what is.
#[derive(Debug)]
pub struct State {
    pub config: Config,
    pub catalog: Arc<Catalog>,
}

pub struct Server {
    state: RwLock<Arc<State>>,
    admission: Arc<Admission>,
    plane: Arc<dyn DataPlane>,
    stopping: watch::Sender<bool>,
    /// Everything that was opened and isn't closed yet, also what no name leads to any more.
    opened: Mutex<Vec<Weak<Open>>>,
    refusals: LogGate,
    accepts: LogGate,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.admission.connections())
            .finish_non_exhaustive()
    }
}

impl Exports for Server {
    fn catalog(&self) -> Arc<Catalog> {
        self.state().catalog.clone()
    }
}

/// Ends the gate of a link that no worker got: whoever waits for its end must not wait for ever.
struct Unserved(Option<Arc<LinkGate>>);

impl Drop for Unserved {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.end(End::Lost);
        }
    }
}

impl Server {
    /// Opens every export that can be opened; the others are in the catalog with their reasons. May block.
    pub fn open(config: Config, plane: Arc<dyn DataPlane>) -> Arc<Server> {
        let exports = config.exports.iter().map(|(name, export)| {
            let open = Open::storage(export);
            (name.clone(), Server::entry(name, export, open))
        });
        let exports: BTreeMap<_, _> = exports.collect();
        Server::new(config, exports, plane)
    }

    pub fn new(
        config: Config,
        exports: BTreeMap<String, Export>,
        plane: Arc<dyn DataPlane>,
    ) -> Arc<Server> {
        let catalog = Arc::new(Catalog::new(&config, exports));
        let server = Server {
            state: RwLock::new(Arc::new(State {
                config,
                catalog: Arc::default(),
            })),
            admission: Arc::default(),
            plane,
            stopping: watch::Sender::new(false),
            opened: Mutex::default(),
            refusals: LogGate::new(),
            accepts: LogGate::new(),
        };
        let config = server.state().config.clone();
        server.install(config, catalog);
        Arc::new(server)
    }

    pub fn entry(name: &str, config: &ExportConfig, open: Result<Arc<Open>, String>) -> Export {
        Export {
            name: name.to_owned(),
            config: config.clone(),
            open,
        }
    }

    pub fn state(&self) -> Arc<State> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }

    /// From here on newcomers meet these exports.
    pub fn install(&self, config: Config, catalog: Arc<Catalog>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|open| open.strong_count() > 0);
        for export in catalog.exports().values() {
            if let Ok(open) = &export.open {
                let new = Arc::downgrade(open);
                if !opened.iter().any(|known| known.ptr_eq(&new)) {
                    opened.push(new);
                }
            }
        }
        drop(opened);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = Arc::new(State { config, catalog });
    }

    pub fn connections(&self) -> usize {
        self.admission.connections()
    }

    /// Takes connections until the server stops.
    pub async fn listen(self: Arc<Self>, listener: Listener) {
        let mut stopping = self.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.newcomer(socket, peer),
                Err(error) => {
                    if let Some(left_out) = self.accepts.pass(Instant::now()) {
                        warn!(left_out, "a connection can't be accepted: {error}");
                    }
                    if let Some(pause) = pause_after(&error) {
                        sleep(pause).await;
                    }
                }
            }
        }
    }

    /// Serves it, or closes it at once where there is no room.
    pub fn newcomer(self: &Arc<Self>, socket: Arc<OwnedFd>, peer: Peer) {
        let limits = &self.state().config.limits;
        match self.admission.admit(&peer, limits) {
            Ok(ticket) => {
                let server = self.clone();
                tokio::spawn(async move { server.connection(socket, peer, ticket).await });
            }
            Err(full) => self.refuse(&peer, &full.to_string()),
        }
    }

    fn refuse(&self, peer: &Peer, why: &str) {
        if let Some(left_out) = self.refusals.pass(Instant::now()) {
            warn!(left_out, "connection from {peer} ended: {why}");
        }
    }

    /// One connection from its first byte to its end.
    async fn connection(self: Arc<Self>, socket: Arc<OwnedFd>, peer: Peer, mut ticket: Ticket) {
        let gate = LinkGate::new(socket.clone());
        let mut unserved = Unserved(Some(gate.clone()));
        // Boxed: an established link waits here for its end, and needs none of the handshake's memory for that.
        let agreed = match Box::pin(self.handshake(&socket, &peer, &gate)).await {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return debug!("{peer} left without choosing an export"),
            Err(error) => return self.refuse(&peer, &error.to_string()),
        };
        ticket.handshake_done();
        let Agreed {
            export,
            open,
            mode,
            flags,
            allocation,
            read_only,
            registered,
        } = *agreed;
        let name = export.name;
        let may = if read_only { "read" } else { "read and write" };
        info!(
            export = name,
            "{peer} is connected to export `{name}`, to {may}"
        );
        let limits = self.link_limits();
        let backend = open.backend.clone();
        drop((export.open, open));
        self.plane.serve(Transmission {
            socket,
            export: backend,
            mode,
            flags,
            allocation,
            read_only,
            limits,
            gate: gate.clone(),
        });
        unserved.0 = None;
        match gate.wait_end().await {
            End::Disconnected => info!(export = name, "{peer} disconnected from export `{name}`"),
            End::Lost if registered.is_closing() => {
                info!(
                    export = name,
                    "the link of {peer} to export `{name}` is drained"
                );
            }
            End::Lost => warn!(
                export = name,
                "the link of {peer} to export `{name}` was lost"
            ),
            End::Cut => warn!(
                export = name,
                "the link of {peer} to export `{name}` was cut"
            ),
        }
        drop(registered);
    }

    /// `None`: it left, or the server stops.
    async fn handshake(
        &self,
        socket: &Arc<OwnedFd>,
        peer: &Peer,
        gate: &Arc<LinkGate>,
    ) -> Result<Option<Box<Agreed>>, HandshakeError> {
        let limits = self.state().config.limits.clone();
        let mut stream = Socket::new(socket.clone()).map_err(HandshakeError::Broken)?;
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => Ok(None),
            ended = Handshake::new(&mut stream, self, peer, gate, &limits).run() => match ended? {
                Outcome::Serve(agreed) => Ok(Some(agreed)),
                Outcome::Left => Ok(None),
            },
        }
    }

    fn link_limits(&self) -> LinkLimits {
        let limits = &self.state().config.limits;
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        LinkLimits {
            in_flight: bytes(limits.in_flight_per_link),
            of_all: bytes(limits.in_flight),
        }
    }

    /// No newcomers; what clients sent is answered, for as long as `drain_timeout` lets them; then they are cut.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        let gates = self.close_all();
        for gate in &gates {
            gate.drain();
        }
        let patience = self.state().config.drain_timeout;
        if timeout(patience, self.admission.all_gone()).await.is_ok() {
            return;
        }
        let left = self.admission.connections();
        warn!("{left} links still had something to do after {patience:?}; cutting them");
        for gate in self.close_all() {
            gate.cut();
        }
        if timeout(CUT_TIMEOUT, self.admission.all_gone())
            .await
            .is_err()
        {
            let left = self.admission.connections();
            warn!("{left} links wait for a storage that doesn't answer; leaving them behind");
        }
    }

    fn close_all(&self) -> Vec<Arc<LinkGate>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = opened.iter().filter_map(Weak::upgrade);
        alive.flat_map(|open| open.close()).collect()
    }
}
