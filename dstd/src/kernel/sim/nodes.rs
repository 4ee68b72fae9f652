//! Simulated nodes: exports by their URI, and what was asked of them.
//! Used by the same tests as the simulated kernel. Sends no byte; time passes only where a node doesn't answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::*;
use crate::units::{Bytes, Generation, Id, Slot};

/// After this a node that doesn't answer is given up, as the real client does.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// One that isn't among the exports can't be reached.
#[derive(Clone, Debug, Default)]
pub struct SimNodes {
    exports: Arc<Mutex<BTreeMap<String, Negotiated>>>,
    /// What connections were asked to become.
    attached: Arc<Mutex<Vec<Attach>>>,
    /// Every fence that was asked for.
    fences: Arc<Mutex<Vec<Fence>>>,
    /// Those that a server said yes to.
    granted: Arc<Mutex<Vec<Fence>>>,
    /// URIs that never answer.
    silent: Arc<Mutex<BTreeSet<String>>>,
    /// URIs that whoever asks them panics at, once.
    broken: Arc<Mutex<BTreeSet<String>>>,
    /// Slots whose connections are refused.
    refused: Arc<Mutex<BTreeSet<Slot>>>,
    /// Slots whose old links still have requests under way: their fences aren't answered.
    busy: Arc<Mutex<BTreeSet<Slot>>>,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimNodes {
    pub fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Negotiated>> {
        lock(&self.exports)
    }

    pub fn attached(&self) -> MutexGuard<'_, Vec<Attach>> {
        lock(&self.attached)
    }

    pub fn fences(&self) -> MutexGuard<'_, Vec<Fence>> {
        lock(&self.fences)
    }

    pub fn granted(&self) -> MutexGuard<'_, Vec<Fence>> {
        lock(&self.granted)
    }

    pub fn silent(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.silent)
    }

    pub fn broken(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.broken)
    }

    pub fn refused(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        lock(&self.refused)
    }

    pub fn busy(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        lock(&self.busy)
    }

    async fn export(&self, uri: &NbdUri) -> Result<Negotiated, ConnectError> {
        let name = uri.to_string();
        let broken = self.broken().remove(&name);
        assert!(
            !broken,
            "a fault in whoever asks {name}, as a test wants it"
        );
        if self.silent().contains(&name) {
            return self.no_answer(uri).await;
        }
        let found = self.exports().get(&name).cloned();
        found.ok_or_else(|| failed(uri, "connection refused"))
    }

    async fn no_answer<T>(&self, uri: &NbdUri) -> Result<T, ConnectError> {
        tokio::time::sleep(HANDSHAKE).await;
        Err(failed(uri, "no answer"))
    }
}

fn failed(uri: &NbdUri, why: &str) -> ConnectError {
    let message = format!("{uri}: {why}");
    ConnectError { message }
}

impl Connector for SimNodes {
    fn new_session(&self, uri: &NbdUri, first: Generation) -> Result<Session, ConnectError> {
        Ok(Session::begin(Id([1; 16]), uri.mark(), first))
    }

    async fn probe(&self, uri: &NbdUri) -> Result<Probed, ConnectError> {
        Ok(Probed {
            negotiated: self.export(uri).await?,
            writer: None,
        })
    }

    async fn fence(&self, uri: &NbdUri, fence: &Fence) -> Result<(), ConnectError> {
        self.fences().push(*fence);
        let export = self.export(uri).await?;
        match export.identity {
            None => return Err(failed(uri, "the server knows no fences")),
            Some(identity) if identity != fence.identity => {
                return Err(failed(uri, "another export"));
            }
            Some(_) if export.incarnation != Some(fence.incarnation) => {
                return Err(failed(uri, "another incarnation"));
            }
            Some(_) => {}
        }
        if self.busy().contains(&fence.slot) {
            return self.no_answer(uri).await;
        }
        self.granted().push(*fence);
        Ok(())
    }

    async fn connect(&self, uri: &NbdUri, attach: &Attach) -> Result<Connection, ConnectError> {
        let negotiated = self.export(uri).await?;
        if self.refused().contains(&attach.slot) {
            return Err(failed(uri, "too many connections"));
        }
        self.attached().push(*attach);
        let file = std::fs::File::open("/dev/null").map_err(|error| ConnectError {
            message: error.to_string(),
        })?;
        Ok(Connection {
            negotiated,
            socket: file.into(),
            same_host: false,
        })
    }
}

/// An export for tests.
pub fn export(sectors: u64, flags: u16) -> Negotiated {
    Negotiated {
        size: Bytes(sectors * 512),
        flags: NbdFlags(NbdFlags::HAS_FLAGS | flags),
        min_block: 1,
        pref_block: 4096,
        max_payload: 32 << 20,
        description: None,
        identity: None,
        incarnation: None,
    }
}
