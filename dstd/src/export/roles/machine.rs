//! Who may write to an export: the rules of docs/writer-role.md, pure. Owned by `Roles`, which feeds it events and
//! cuts the links that it names. Never does I/O, never waits, has no clock of its own.
//! ```text
//!     free ──join──► held ⇄ lost: no link left;    held: other clients refused, anonymous ones read-only
//!      │ ▲             │     after holder_timeout
//!      │ └──last DISC──┘     anyone may have it    same client, steal or lost for long: the older links are
//!      ▼ claim                                     cut; the newcomer is *taking*: its tickets wait till they
//!     anonymous ──last writer ended──► free        have ended, all others are refused meanwhile
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::RoleError;
use super::sessions::{Sessions, Verdict};
use super::text;
use crate::export::link::End;
use crate::units::{Id, Session};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleConfig {
    /// No rules at all: whoever may connect may write. Fences work all the same.
    pub shared: bool,
    /// How long a session keeps the role after its last link was lost.
    pub holder_timeout: Duration,
}

/// A joined link, for as long as it hasn't ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u64);

#[cfg(test)]
impl LinkId {
    pub fn for_tests(number: u64) -> Self {
        LinkId(number)
    }
}

/// A join that waits for the links of others to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A link that asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    pub session: Session,
    pub slot: u32,
    pub generation: u64,
    pub steal: bool,
    /// It can't write anyway: it takes no role and needs none.
    pub read_only: bool,
    /// Its address, for people.
    pub peer: String,
}

/// What a join came to. `cut`: these links must be cut now.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Joined(LinkId),
    Waits(Ticket, Vec<LinkId>),
}

/// Who may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// It is somebody else than the client that asks.
    pub by_other: bool,
    /// For people; empty: nobody.
    pub text: String,
}

/// What an anonymous client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// The export is shared: nothing to claim.
    Free,
    ReadOnly,
    /// It may write as soon as it claims the role.
    Lazy(LinkId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Party {
    Named {
        session: Session,
        slot: u32,
        generation: u64,
    },
    Anonymous,
}

#[derive(Debug)]
struct Link {
    party: Party,
    /// Its requests may change the storage: granted, or claimed by an anonymous one.
    writes: bool,
    cut: bool,
    peer: String,
}

impl Link {
    fn is_of(&self, session: Session) -> bool {
        matches!(self.party, Party::Named { session: s, .. } if s == session)
    }
}

/// A session that has or takes the role, or that lost its links and still has it.
#[derive(Debug, Clone)]
pub struct Holder {
    pub session: Session,
    pub since: Instant,
    /// Where its first link came from.
    pub peer: String,
    /// Its last link ended then, and not with DISC.
    pub lost: Option<Instant>,
}

#[derive(Debug)]
pub struct Machine {
    config: RoleConfig,
    links: BTreeMap<LinkId, Link>,
    tickets: BTreeMap<Ticket, Newcomer>,
    held: Option<Holder>,
    /// There is one while a ticket of its session waits.
    taking: Option<Holder>,
    sessions: Sessions,
    next: u64,
}

impl Machine {
    pub fn new(config: RoleConfig) -> Self {
        Machine {
            config,
            links: BTreeMap::new(),
            tickets: BTreeMap::new(),
            held: None,
            taking: None,
            sessions: Sessions::default(),
            next: 0,
        }
    }

    /// A link with a session, at GO.
    pub fn join(&mut self, now: Instant, newcomer: Newcomer) -> Result<Outcome, RoleError> {
        let session = newcomer.session;
        let fenced = |s: &Sessions| s.is_fenced(session, newcomer.slot, newcomer.generation);
        if fenced(&self.sessions) {
            return Err(RoleError::Fenced {
                slot: newcomer.slot,
                generation: newcomer.generation,
            });
        }
        if self.config.shared || newcomer.read_only {
            let writes = !newcomer.read_only;
            return Ok(Outcome::Joined(self.add(&newcomer, writes)));
        }
        self.admit(now, &newcomer)?;
        let in_already = self.taking.is_none() && self.holds(session);
        if !in_already {
            self.begin_taking(now, &newcomer);
        }
        let cut = self.cut_obstacles(session);
        let ticket = Ticket(self.number());
        self.tickets.insert(ticket, newcomer);
        match self.poll(now, ticket)? {
            Some(link) => Ok(Outcome::Joined(link)),
            None => Ok(Outcome::Waits(ticket, cut)),
        }
    }

    /// Whether a newcomer with a session may have the role, now or once others' links have ended.
    fn admit(&self, now: Instant, newcomer: &Newcomer) -> Result<(), RoleError> {
        let Newcomer { session, steal, .. } = *newcomer;
        match self.sessions.verdict(session) {
            Verdict::Superseded(by) if self.is_present(by) => {
                return Err(RoleError::Superseded(session.client));
            }
            Verdict::LostTo(taker) if !steal => return Err(RoleError::Over(taker.to_owned())),
            _ => {}
        }
        if steal {
            return Ok(());
        }
        let other = |h: &&Holder| h.session.client != session.client;
        if let Some(taking) = &self.taking {
            if other(&taking) {
                return Err(self.is_held(now));
            }
            return Ok(());
        }
        let blocked = match &self.held {
            Some(held) => other(&held) && !self.is_free(now, held),
            None => self
                .links
                .values()
                .any(|l| l.writes && !l.cut && l.party == Party::Anonymous),
        };
        if blocked {
            return Err(self.is_held(now));
        }
        Ok(())
    }

    /// Reserves the role: from here on nobody else gets in, and nobody who waited before.
    fn begin_taking(&mut self, now: Instant, newcomer: &Newcomer) {
        let session = newcomer.session;
        let rivals: Vec<_> = [&self.held, &self.taking]
            .into_iter()
            .flatten()
            .map(|holder| holder.session)
            .filter(|rival| *rival != session && rival.client == session.client)
            .collect();
        for rival in rivals {
            self.sessions.supersede(rival, session);
        }
        if self.taking.as_ref().is_none_or(|t| t.session != session) {
            self.taking = Some(Holder {
                session,
                since: now,
                peer: newcomer.peer.clone(),
                lost: None,
            });
        }
    }

    /// Links of others that may write: they must end before `session` gets in.
    fn cut_obstacles(&mut self, session: Session) -> Vec<LinkId> {
        let mut cut = Vec::new();
        for (id, link) in &mut self.links {
            if link.writes && !link.is_of(session) && !link.cut {
                link.cut = true;
                cut.push(*id);
            }
        }
        cut
    }

    /// Looks at a waiting join again: `None`, it waits on. After an error or a link the ticket is no more.
    pub fn poll(&mut self, now: Instant, ticket: Ticket) -> Result<Option<LinkId>, RoleError> {
        let Some(newcomer) = self.tickets.get(&ticket).cloned() else {
            return Err(self.is_held(now));
        };
        let session = newcomer.session;
        let (slot, generation) = (newcomer.slot, newcomer.generation);
        if self.sessions.is_fenced(session, slot, generation) {
            self.withdraw(ticket);
            return Err(RoleError::Fenced { slot, generation });
        }
        let ours = match &self.taking {
            Some(taking) => taking.session == session,
            None => self.holds(session),
        };
        if !ours {
            self.withdraw(ticket);
            return Err(self.is_held(now));
        }
        if self.links.values().any(|l| l.writes && !l.is_of(session)) {
            return Ok(None);
        }
        self.tickets.remove(&ticket);
        self.grant(&newcomer);
        Ok(Some(self.add(&newcomer, true)))
    }

    /// The newcomer's session has the role from here on; whoever lost it thereby is told so when it comes back.
    fn grant(&mut self, newcomer: &Newcomer) {
        let session = newcomer.session;
        if let Some(taking) = self.taking.take() {
            if let Some(before) = self.held.take().filter(|h| h.session != session) {
                self.dispossess(before.session, &text::client(&taking));
            }
            self.held = Some(taking);
        }
        if let Some(held) = &mut self.held {
            held.lost = None;
        }
        self.sessions.revive(session);
        self.forget_idle();
    }

    /// A session that didn't say DISC: what it still has to write would overwrite its successor's data.
    fn dispossess(&mut self, session: Session, taker: &str) {
        if !matches!(self.sessions.verdict(session), Verdict::Superseded(_)) {
            self.sessions.lose(session, taker);
        }
    }

    /// The joiner went away; nothing of it stays.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.tickets.remove(&ticket);
        let waits = |s: Session| self.tickets.values().any(|t| t.session == s);
        if self.taking.as_ref().is_some_and(|t| !waits(t.session)) {
            self.taking = None;
        }
    }

    /// A link without a session, at GO or EXPORT_NAME.
    pub fn join_anonymous(&mut self, now: Instant, peer: String) -> Anonymous {
        if self.config.shared {
            return Anonymous::Free;
        }
        let held = self.held.as_ref().is_some_and(|h| !self.is_free(now, h));
        if held || self.taking.is_some() {
            return Anonymous::ReadOnly;
        }
        let id = LinkId(self.number());
        let link = Link {
            party: Party::Anonymous,
            writes: false,
            cut: false,
            peer,
        };
        self.links.insert(id, link);
        Anonymous::Lazy(id)
    }

    /// An anonymous link's first modifying request. Answers the same again once it was true.
    pub fn claim(&mut self, now: Instant, id: LinkId) -> bool {
        let blocked = self.taking.is_some()
            || self.held.as_ref().is_some_and(|h| !self.is_free(now, h))
            || self
                .links
                .values()
                .any(|l| l.writes && l.party != Party::Anonymous);
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        if link.writes || blocked {
            return link.writes;
        }
        link.writes = true;
        let taker = text::anonymous(&[link.peer.as_str()]);
        if let Some(lost) = self.held.take() {
            self.dispossess(lost.session, &taker);
        }
        true
    }

    /// Nothing of this link can touch the storage any more.
    pub fn ended(&mut self, now: Instant, id: LinkId, why: End) {
        let Some(link) = self.links.remove(&id) else {
            return;
        };
        let Party::Named { session, .. } = link.party else {
            return;
        };
        let Some(held) = self.held.as_mut().filter(|h| h.session == session) else {
            return;
        };
        if !link.writes || self.links.values().any(|l| l.writes && l.is_of(session)) {
            return;
        }
        let waits = self.tickets.values().any(|t| t.session == session);
        if why == End::Disconnected && !waits {
            self.held = None;
        } else {
            held.lost = Some(now);
        }
    }

    /// Names the links that must be cut; the fence is done when [`Machine::is_fenced`].
    pub fn fence(&mut self, session: Session, slot: u32, generation: u64) -> Vec<LinkId> {
        self.sessions.fence(session, slot, generation);
        let mut cut = Vec::new();
        for (id, link) in &mut self.links {
            if covers(session, slot, generation, &link.party) && !link.cut {
                link.cut = true;
                cut.push(*id);
            }
        }
        self.forget_idle();
        cut
    }

    /// No link that such a fence covers is left.
    pub fn is_fenced(&self, session: Session, slot: u32, generation: u64) -> bool {
        let covered = |l: &Link| covers(session, slot, generation, &l.party);
        !self.links.values().any(covered)
    }

    /// Who may write, in words; and whether that is somebody else than this client.
    pub fn identify(&self, now: Instant, session: Session) -> Held {
        let (by, text) = self.describe(now).unwrap_or_default();
        Held {
            by_other: !text.is_empty() && by != Some(session.client),
            text,
        }
    }

    /// Who has the role: the client's id, where it has one, and words.
    fn describe(&self, now: Instant) -> Option<(Option<Id>, String)> {
        if let Some(taking) = &self.taking {
            return Some((Some(taking.session.client), text::taking(now, taking)));
        }
        if let Some(held) = self.held.as_ref().filter(|h| !self.is_free(now, h)) {
            let text = text::holder(now, held, self.config.holder_timeout);
            return Some((Some(held.session.client), text));
        }
        if self.config.shared {
            return None;
        }
        let writers = self.links.values().filter(|l| l.writes);
        let peers: Vec<_> = writers.map(|l| l.peer.as_str()).collect();
        (!peers.is_empty()).then(|| (None, text::anonymous(&peers)))
    }

    fn is_held(&self, now: Instant) -> RoleError {
        let said = self.describe(now).map(|(_, text)| text);
        RoleError::Held(said.unwrap_or_else(text::nobody))
    }

    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.sessions.len()
    }

    /// Nobody is connected, nobody waits.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.links.is_empty() && self.tickets.is_empty() && self.taking.is_none()
    }

    fn add(&mut self, newcomer: &Newcomer, writes: bool) -> LinkId {
        let Newcomer {
            session,
            slot,
            generation,
            ..
        } = *newcomer;
        let id = LinkId(self.number());
        let link = Link {
            party: Party::Named {
                session,
                slot,
                generation,
            },
            writes,
            cut: false,
            peer: newcomer.peer.clone(),
        };
        self.links.insert(id, link);
        id
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn holds(&self, session: Session) -> bool {
        self.held.as_ref().is_some_and(|h| h.session == session)
    }

    /// Lost for so long that anyone may have the role.
    fn is_free(&self, now: Instant, holder: &Holder) -> bool {
        holder
            .lost
            .is_some_and(|lost| now.duration_since(lost) >= self.config.holder_timeout)
    }

    /// It has a link, or waits for one.
    fn is_present(&self, session: Session) -> bool {
        self.links.values().any(|l| l.is_of(session))
            || self.tickets.values().any(|t| t.session == session)
    }

    /// A server remembers much of the sessions that it may still hear of, and little of all others.
    fn forget_idle(&mut self) {
        if self.sessions.is_full() {
            let busy = self.busy();
            self.sessions.forget_idle(&busy);
        }
    }

    fn busy(&self) -> BTreeSet<Session> {
        let linked = self.links.values().filter_map(|l| match l.party {
            Party::Named { session, .. } => Some(session),
            Party::Anonymous => None,
        });
        let waiting = self.tickets.values().map(|t| t.session);
        let holders = [&self.held, &self.taking].into_iter().flatten();
        linked
            .chain(waiting)
            .chain(holders.map(|h| h.session))
            .collect()
    }
}

fn covers(session: Session, slot: u32, generation: u64, party: &Party) -> bool {
    matches!(party, Party::Named { session: s, slot: l, generation: g }
        if *s == session && *l == slot && *g <= generation)
}
