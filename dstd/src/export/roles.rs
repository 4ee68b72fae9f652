//! The writer role of one export: asked by the handshake, told by links when they end (docs/writer-role.md).
//!
//! A thin shell around `machine::Machine`: a mutex that is never held over an await, the cutting of links, the
//! waiting for their ends. Whoever joined a gate must see to it that the gate's `end` is called, also when the
//! handshake fails after the join: a link counts until it has ended. Never decides: the machine does.

mod machine;
mod sessions;
mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::link::{LinkGate, WriterRole};
use super::wire::{FenceRequest, SessionRequest};
use crate::units::Id;
use machine::{Anonymous, LinkId, Machine, Newcomer, Outcome, Ticket};
pub use machine::{Held, RoleConfig};

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;

/// Why a link is refused; each goes to the client as POLICY with this text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RoleError {
    #[error(
        "the export is held by {0}. It is free when that client disconnects or has been gone for the export's \
         holder_timeout; `steal` takes it at once"
    )]
    Held(String),
    #[error(
        "this client (id {0}) has a newer session on this export, which took over. If that isn't this machine, two \
         machines share an id: give one its own in /etc/dst/client-id; if two of its nodes name this export, drop one"
    )]
    Superseded(Id),
    #[error(
        "this session lost the export to {0}, and what it still has to write would overwrite newer data. Remove its \
         devices and make them anew, or `steal` the export to write all the same"
    )]
    Over(String),
    #[error(
        "generation {generation} of the link in slot {slot} is fenced: connect with a newer one"
    )]
    Fenced { slot: u32, generation: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The client must be told that it can't write.
    pub read_only: bool,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    gates: BTreeMap<LinkId, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    gate: Arc<LinkGate>,
    peer: String,
}

/// One for each export; lives as long as the export is open.
#[derive(Debug)]
pub struct Roles {
    me: Weak<Roles>,
    state: Mutex<State>,
    /// Wakes who waits for links to end.
    changes: watch::Sender<()>,
}

impl Roles {
    pub fn new(config: RoleConfig) -> Arc<Roles> {
        Arc::new_cyclic(|me| Roles {
            me: me.clone(),
            state: Mutex::new(State {
                machine: Machine::new(config),
                gates: BTreeMap::new(),
            }),
            changes: watch::Sender::new(()),
        })
    }

    /// Whether another client may write now, and who.
    pub fn identify(&self, request: &SessionRequest) -> Held {
        let state = self.state();
        state.machine.identify(Instant::now(), request.session)
    }

    /// At GO or EXPORT_NAME. Waits until a link that is taken over from has ended; may be dropped at any time.
    /// A request that only identifies is no session.
    pub async fn join(
        &self,
        request: Option<&SessionRequest>,
        gate: Arc<LinkGate>,
        peer: String,
    ) -> Result<Joined, RoleError> {
        match request.filter(|r| !r.identify_only) {
            Some(request) => {
                self.join_session(newcomer(request, peer, false), gate)
                    .await
            }
            None => Ok(self.join_anonymous(gate, peer)),
        }
    }

    /// Instead of `join`, where the export or this address is read-only: takes no role, needs none, and can be
    /// fenced like any other link.
    pub async fn join_read_only(
        &self,
        request: Option<&SessionRequest>,
        gate: Arc<LinkGate>,
        peer: String,
    ) -> Result<Joined, RoleError> {
        if let Some(request) = request.filter(|r| !r.identify_only) {
            self.join_session(newcomer(request, peer, true), gate)
                .await?;
        }
        Ok(Joined { read_only: true })
    }

    async fn join_session(
        &self,
        newcomer: Newcomer,
        gate: Arc<LinkGate>,
    ) -> Result<Joined, RoleError> {
        let joined = Joined {
            read_only: newcomer.read_only,
        };
        let entry = Entry {
            gate,
            peer: newcomer.peer.clone(),
        };
        let mut changes = self.changes.subscribe();
        let (ticket, doomed) = {
            let mut state = self.state();
            match state.machine.join(Instant::now(), newcomer)? {
                Outcome::Joined(link) => {
                    self.enter(&mut state, link, entry);
                    return Ok(joined);
                }
                Outcome::Waits(ticket, doomed) => (ticket, state.entries(&doomed)),
            }
        };
        // From here on this future may be dropped: the ticket then goes with it.
        let mut waiting = Waiting {
            roles: self,
            ticket: Some(ticket),
        };
        cut(&doomed, "another session takes the writer role");
        loop {
            changes.borrow_and_update();
            if waiting.try_enter(&entry)? {
                return Ok(joined);
            }
            // Can't fail: the sender is ours.
            let _ = changes.changed().await;
        }
    }

    fn join_anonymous(&self, gate: Arc<LinkGate>, peer: String) -> Joined {
        let mut state = self.state();
        let read_only = match state.machine.join_anonymous(Instant::now(), peer.clone()) {
            Anonymous::Free => false,
            Anonymous::ReadOnly => true,
            Anonymous::Lazy(link) => {
                gate.set_role(Box::new(Claim {
                    roles: self.me.clone(),
                    link,
                }));
                self.enter(&mut state, link, Entry { gate, peer });
                false
            }
        };
        Joined { read_only }
    }

    /// Ends the links of one slot up to a generation, for good; returns when none of them can touch the storage.
    pub async fn fence(&self, request: &FenceRequest) {
        let FenceRequest {
            session,
            slot,
            generation,
            ..
        } = *request;
        let mut changes = self.changes.subscribe();
        let doomed = {
            let mut state = self.state();
            let doomed = state.machine.fence(session, slot, generation);
            state.entries(&doomed)
        };
        cut(&doomed, "its client fenced it");
        // A join of such a link that waits for its turn must hear of it too.
        self.changes.send_replace(());
        loop {
            changes.borrow_and_update();
            if self.state().machine.is_fenced(session, slot, generation) {
                return;
            }
            let _ = changes.changed().await;
        }
    }

    /// Keeps the gate and waits for its end.
    fn enter(&self, state: &mut State, link: LinkId, entry: Entry) {
        let gate = Arc::clone(&entry.gate);
        state.gates.insert(link, entry);
        let roles = self.me.clone();
        tokio::spawn(async move {
            let why = gate.wait_end().await;
            let Some(roles) = roles.upgrade() else {
                return;
            };
            {
                let mut state = roles.state();
                state.gates.remove(&link);
                state.machine.ended(Instant::now(), link, why);
            }
            roles.changes.send_replace(());
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn entries(&self, links: &[LinkId]) -> Vec<Entry> {
        let found = links.iter().filter_map(|link| self.gates.get(link));
        found.cloned().collect()
    }
}

fn cut(entries: &[Entry], why: &str) {
    for entry in entries {
        info!(peer = entry.peer, "cut a link from {}: {why}", entry.peer);
        entry.gate.cut();
    }
}

fn newcomer(request: &SessionRequest, peer: String, read_only: bool) -> Newcomer {
    Newcomer {
        session: request.session,
        slot: request.slot,
        generation: request.generation,
        steal: request.steal,
        read_only,
        peer,
    }
}

/// A join that waits. Dropped before it got in, it leaves nothing behind.
struct Waiting<'a> {
    roles: &'a Roles,
    ticket: Option<Ticket>,
}

impl Waiting<'_> {
    fn try_enter(&mut self, entry: &Entry) -> Result<bool, RoleError> {
        let Some(ticket) = self.ticket else {
            return Ok(false);
        };
        let mut state = self.roles.state();
        let polled = state.machine.poll(Instant::now(), ticket);
        match polled {
            Ok(None) => Ok(false),
            Ok(Some(link)) => {
                self.ticket = None;
                self.roles.enter(&mut state, link, entry.clone());
                Ok(true)
            }
            Err(error) => {
                self.ticket = None;
                Err(error)
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.roles.state().machine.withdraw(ticket);
            self.roles.changes.send_replace(());
        }
    }
}

/// The writer role of an anonymous link, taken at its first modifying request.
struct Claim {
    roles: Weak<Roles>,
    link: LinkId,
}

impl WriterRole for Claim {
    fn claim(&self) -> bool {
        let Some(roles) = self.roles.upgrade() else {
            return false;
        };
        roles.state().machine.claim(Instant::now(), self.link)
    }
}
