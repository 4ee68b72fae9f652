//! Random events for the state machine, against what must hold whatever happens: one writing party at a time,
//! no fenced link ever again, no fence or join that waits when all links have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::machine::{Anonymous, LinkId, Machine, Newcomer, Outcome, RoleConfig, Ticket};
use super::table_tests::{newcomer, session};
use crate::export::link::End;
use crate::units::Session;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Event {
    Join {
        who: (u8, u8),
        slot: u32,
        generation: u64,
        steal: bool,
        read_only: bool,
    },
    JoinAnonymous,
    /// The numbers below choose among what there is.
    Claim(usize),
    Ended(usize, End),
    Poll(usize),
    Withdraw(usize),
    Fence {
        who: (u8, u8),
        slot: u32,
        generation: u64,
    },
    Later(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let who = || (0u8..3, 0u8..3);
    let end = prop_oneof![Just(End::Disconnected), Just(End::Lost)];
    prop_oneof![
        5 => (who(), 0u32..2, 0u64..6, prop::bool::weighted(0.2), prop::bool::weighted(0.1)).prop_map(
            |(who, slot, generation, steal, read_only)| Event::Join { who, slot, generation, steal, read_only }
        ),
        2 => Just(Event::JoinAnonymous),
        3 => any::<usize>().prop_map(Event::Claim),
        6 => (any::<usize>(), end).prop_map(|(which, why)| Event::Ended(which, why)),
        4 => any::<usize>().prop_map(Event::Poll),
        1 => any::<usize>().prop_map(Event::Withdraw),
        1 => (who(), 0u32..2, 0u64..3).prop_map(
            |(who, slot, generation)| Event::Fence { who, slot, generation }
        ),
        2 => (0u64..40).prop_map(Event::Later),
    ]
}

/// A link as this model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    /// `None`: anonymous.
    party: Option<Session>,
    slot: u32,
    generation: u64,
    writes: bool,
    cut: bool,
}

struct Model {
    machine: Machine,
    now: Instant,
    links: BTreeMap<LinkId, Link>,
    tickets: BTreeMap<Ticket, Newcomer>,
    fenced: BTreeSet<(Session, u32, u64)>,
}

fn choose<K: Copy, V>(map: &BTreeMap<K, V>, which: usize) -> Option<K> {
    let nth = which.checked_rem(map.len())?;
    map.keys().nth(nth).copied()
}

impl Model {
    fn new() -> Self {
        Model {
            machine: Machine::new(RoleConfig {
                shared: false,
                holder_timeout: TIMEOUT,
            }),
            now: Instant::now(),
            links: BTreeMap::new(),
            tickets: BTreeMap::new(),
            fenced: BTreeSet::new(),
        }
    }

    fn cut(&mut self, links: &[LinkId]) {
        for link in links {
            let link = self
                .links
                .get_mut(link)
                .expect("only links that are there are cut");
            assert!(!link.cut, "twice");
            link.cut = true;
        }
    }

    fn joined(&mut self, id: LinkId, newcomer: &Newcomer) {
        let Newcomer {
            session,
            slot,
            generation,
            read_only,
            ..
        } = *newcomer;
        let fenced = self
            .fenced
            .iter()
            .any(|(s, l, g)| *s == session && *l == slot && generation <= *g);
        assert!(!fenced, "a fenced link came back: {newcomer:?}");
        let link = Link {
            party: Some(session),
            slot,
            generation,
            writes: !read_only,
            cut: false,
        };
        assert_eq!(self.links.insert(id, link), None);
    }

    fn poll(&mut self, ticket: Ticket) {
        match self.machine.poll(self.now, ticket) {
            Ok(None) => {
                let newcomer = &self.tickets[&ticket];
                let waited_for: Vec<_> = self
                    .links
                    .values()
                    .filter(|l| l.writes && l.party != Some(newcomer.session))
                    .collect();
                assert!(!waited_for.is_empty(), "it waits for nobody");
                assert!(
                    waited_for.iter().all(|l| l.cut),
                    "it waits for one that isn't cut"
                );
            }
            Ok(Some(link)) => {
                let newcomer = self.tickets.remove(&ticket).expect("it was ours");
                self.joined(link, &newcomer);
            }
            Err(_) => drop(self.tickets.remove(&ticket)),
        }
    }

    fn join(&mut self, newcomer: Newcomer) {
        match self.machine.join(self.now, newcomer.clone()) {
            Ok(Outcome::Joined(link)) => self.joined(link, &newcomer),
            Ok(Outcome::Waits(ticket, cut)) => {
                self.cut(&cut);
                self.tickets.insert(ticket, newcomer);
            }
            Err(_) => {}
        }
    }

    fn claim(&mut self, id: LinkId) {
        let link = self.links.get_mut(&id).expect("chosen among them");
        if link.party.is_none() {
            let may = self.machine.claim(self.now, id);
            assert!(may || !link.writes, "taken back");
            link.writes = may;
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Join {
                who: (client, nonce),
                slot,
                generation,
                steal,
                read_only,
            } => {
                self.join(Newcomer {
                    steal,
                    read_only,
                    ..newcomer(session(client, nonce), slot, generation)
                });
            }
            Event::JoinAnonymous => {
                if let Anonymous::Lazy(link) = self.machine.join_anonymous(self.now, "x".to_owned())
                {
                    let new = Link {
                        party: None,
                        slot: 0,
                        generation: 0,
                        writes: false,
                        cut: false,
                    };
                    assert_eq!(self.links.insert(link, new), None);
                }
            }
            Event::Claim(which) => {
                if let Some(id) = choose(&self.links, which) {
                    self.claim(id);
                }
            }
            Event::Ended(which, why) => {
                if let Some(id) = choose(&self.links, which) {
                    let link = self.links.remove(&id).expect("chosen among them");
                    let why = if link.cut { End::Cut } else { why };
                    self.machine.ended(self.now, id, why);
                }
            }
            Event::Poll(which) => {
                if let Some(ticket) = choose(&self.tickets, which) {
                    self.poll(ticket);
                }
            }
            Event::Withdraw(which) => {
                if let Some(ticket) = choose(&self.tickets, which) {
                    self.machine.withdraw(ticket);
                    self.tickets.remove(&ticket);
                }
            }
            Event::Fence {
                who: (client, nonce),
                slot,
                generation,
            } => {
                let session = session(client, nonce);
                let cut = self.machine.fence(session, slot, generation);
                self.cut(&cut);
                self.fenced.insert((session, slot, generation));
            }
            Event::Later(seconds) => self.now += Duration::from_secs(seconds),
        }
    }

    /// At most one party's requests can touch the storage: a cut link's still can, until it has ended.
    fn check(&self) {
        let writers: BTreeSet<_> = self
            .links
            .values()
            .filter(|l| l.writes)
            .map(|l| l.party)
            .collect();
        assert!(writers.len() <= 1, "two writers: {writers:?}");
        for (session, slot, generation) in &self.fenced {
            let left = self.links.values().filter(|l| {
                l.party == Some(*session) && l.slot == *slot && l.generation <= *generation
            });
            let left: Vec<_> = left.collect();
            assert!(left.iter().all(|l| l.cut), "a fenced link isn't cut");
            let done = self.machine.is_fenced(*session, *slot, *generation);
            assert_eq!(
                done,
                left.is_empty(),
                "a fence is answered exactly when its links have ended"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_happens_one_party_writes_and_nothing_waits_for_ever(
        events in proptest::collection::vec(any_event(), 0..60),
    ) {
        let mut model = Model::new();
        for event in &events {
            model.step(event);
            model.check();
        }
        while let Some(id) = choose(&model.links, 0) {
            model.links.remove(&id);
            model.machine.ended(model.now, id, End::Cut);
            model.check();
        }
        // Each waiting join gets an answer now, in any order.
        while let Some(ticket) = choose(&model.tickets, 0) {
            let left = model.tickets.len();
            model.poll(ticket);
            prop_assert!(model.tickets.len() < left);
            model.check();
            while let Some(id) = choose(&model.links, 0) {
                model.links.remove(&id);
                model.machine.ended(model.now, id, End::Disconnected);
            }
        }
        prop_assert!(model.machine.is_idle());
        // And the export can be had by a client that nobody knows, at the latest after the timeout.
        let stranger = newcomer(session(9, 9), 0, 1);
        let outcome = model.machine.join(model.now + TIMEOUT, stranger);
        prop_assert!(matches!(outcome, Ok(Outcome::Joined(_))), "{outcome:?}");
    }
}
