//! How much of the server clients may take: connections, handshakes, time, memory.
//!
//! Owns the counts. Called by the accept loop, which asks before it does anything for a newcomer. Never touches
//! an established connection: whoever comes when all is full is the one that goes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::access::{Peer, Source};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    pub connections_per_peer: usize,
    /// Connections that haven't chosen an export yet.
    pub handshakes: usize,
    pub handshakes_per_peer: usize,
    /// From the first byte to the chosen export.
    pub handshake_timeout: Duration,
    /// For one option to come.
    pub handshake_idle: Duration,
    /// Bytes of one link's requests, and of all links': see [`super::link::LinkLimits`].
    pub in_flight_per_link: u64,
    pub in_flight: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            connections_per_peer: 256,
            handshakes: 256,
            handshakes_per_peer: 64,
            handshake_timeout: Duration::from_secs(30),
            handshake_idle: Duration::from_secs(10),
            in_flight_per_link: 64 << 20,
            in_flight: 1 << 30,
        }
    }
}

/// Why a newcomer isn't served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Connections(usize),
    ConnectionsPerPeer(usize),
    Handshakes(usize),
    HandshakesPerPeer(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, what, key) = match self {
            Full::Connections(n) => (n, "connections are open", "connections"),
            Full::ConnectionsPerPeer(n) => (
                n,
                "connections of this peer are open",
                "connections_per_peer",
            ),
            Full::Handshakes(n) => (n, "connections are in their handshake", "handshakes"),
            Full::HandshakesPerPeer(n) => (
                n,
                "connections of this peer are in their handshake",
                "handshakes_per_peer",
            ),
        };
        write!(f, "{count} {what} (limits: {key})")
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    connections: usize,
    handshakes: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    peers: HashMap<Source, Count>,
}

/// The counts of all connections.
#[derive(Debug)]
pub struct Admission {
    counts: Mutex<Counts>,
    /// Connections that are open; for whoever waits until there is none.
    open: watch::Sender<usize>,
}

impl Default for Admission {
    fn default() -> Self {
        Admission {
            counts: Mutex::default(),
            open: watch::Sender::new(0),
        }
    }
}

impl Admission {
    pub fn admit(self: &Arc<Self>, peer: &Peer, limits: &Limits) -> Result<Ticket, Full> {
        let source = peer.source();
        let mut counts = self.lock();
        let theirs = counts.peers.get(&source).copied().unwrap_or_default();
        let Counts { all, .. } = &*counts;
        if all.connections >= limits.connections {
            return Err(Full::Connections(limits.connections));
        }
        if theirs.connections >= limits.connections_per_peer {
            return Err(Full::ConnectionsPerPeer(limits.connections_per_peer));
        }
        if all.handshakes >= limits.handshakes {
            return Err(Full::Handshakes(limits.handshakes));
        }
        if theirs.handshakes >= limits.handshakes_per_peer {
            return Err(Full::HandshakesPerPeer(limits.handshakes_per_peer));
        }
        counts.change(source, |count| {
            count.connections += 1;
            count.handshakes += 1;
        });
        self.open.send_replace(counts.all.connections);
        Ok(Ticket {
            admission: self.clone(),
            source,
            shaking: true,
        })
    }

    pub fn connections(&self) -> usize {
        self.lock().all.connections
    }

    pub async fn all_gone(&self) {
        // An error would mean that the counter itself is gone.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn change(&mut self, source: Source, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let theirs = self.peers.entry(source).or_default();
        change(theirs);
        if *theirs == Count::default() {
            self.peers.remove(&source);
        }
    }
}

/// A place among the connections; given back when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    source: Source,
    shaking: bool,
}

impl Ticket {
    /// The handshake is over, the connection stays.
    pub fn handshake_done(&mut self) {
        if std::mem::take(&mut self.shaking) {
            let mut counts = self.admission.lock();
            counts.change(self.source, |count| count.handshakes -= 1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.handshake_done();
        let mut counts = self.admission.lock();
        counts.change(self.source, |count| count.connections -= 1);
        let open = counts.all.connections;
        self.admission.open.send_replace(open);
    }
}

/// Lets a few log lines a second through, and counts the others: a flood of refusals must not become one of logs.
#[derive(Debug)]
pub struct LogGate {
    state: Mutex<(Option<Instant>, u32, u64)>,
}

impl LogGate {
    const PER_SECOND: u32 = 5;

    pub const fn new() -> Self {
        LogGate {
            state: Mutex::new((None, 0, 0)),
        }
    }

    /// `Some(n)`: write the line, and say that `n` others were left out before it.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, written, left_out) = &mut *state;
        let fresh = since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1));
        if fresh {
            (*since, *written) = (Some(now), 0);
        }
        if *written >= Self::PER_SECOND {
            *left_out += 1;
            return None;
        }
        *written += 1;
        Some(std::mem::take(left_out))
    }
}

impl Default for LogGate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::tcp(([10, 0, 0, last], 1).into())
    }

    fn small() -> Limits {
        Limits {
            connections: 5,
            connections_per_peer: 3,
            handshakes: 3,
            handshakes_per_peer: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn each_limit_turns_the_newcomer_away_and_says_which() {
        let admission = Arc::new(Admission::default());
        let admit = |last| admission.admit(&peer(last), &small());
        let mut a1 = admit(1).unwrap();
        let mut a2 = admit(1).unwrap();
        assert_eq!(admit(1).unwrap_err(), Full::HandshakesPerPeer(2));
        let mut b1 = admit(2).unwrap();
        assert_eq!(admit(2).unwrap_err(), Full::Handshakes(3));
        a1.handshake_done();
        a2.handshake_done();
        let a3 = admit(1).unwrap();
        assert_eq!(admit(1).unwrap_err(), Full::ConnectionsPerPeer(3));
        b1.handshake_done();
        let b2 = admit(2).unwrap();
        assert_eq!(admit(3).unwrap_err(), Full::Connections(5));
        assert_eq!(admission.connections(), 5);
        drop((a1, a2, a3, b1, b2));
        assert_eq!(admission.lock().all, Count::default());
        assert!(admission.lock().peers.is_empty());
    }

    #[test]
    fn a_place_is_given_back_once() {
        let admission = Arc::new(Admission::default());
        let mut ticket = admission.admit(&peer(1), &small()).unwrap();
        ticket.handshake_done();
        ticket.handshake_done();
        let other = admission.admit(&peer(1), &small()).unwrap();
        drop(ticket);
        assert_eq!(
            admission.lock().all,
            Count {
                connections: 1,
                handshakes: 1
            }
        );
        drop(other);
    }

    #[test]
    fn a_flood_of_refusals_writes_few_lines_and_tells_how_many_it_kept_back() {
        let gate = LogGate::new();
        let start = Instant::now();
        let passed = (0..100).filter(|_| gate.pass(start).is_some()).count();
        assert_eq!(passed, 5);
        let later = start + Duration::from_secs(1);
        assert_eq!(gate.pass(later), Some(95));
        assert_eq!(gate.pass(later), Some(0));
    }
}
