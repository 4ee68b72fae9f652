//! Who may write: every pair of holder and newcomer over real links, as docs/writer-role.md has them in its table.

use std::time::Duration;

use nbdpeer::{Peer, PeerError, Session, proto::*};

use crate::support::{Server, Setup, within};

const SIZE: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Session,
    SessionLost,
    SessionLostLongAgo,
    SessionDisconnected,
    Anonymous,
    AnonymousLost,
    AnonymousDisconnected,
    AnonymousIdle,
    Nobody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newcomer {
    SameSession,
    SameClient,
    Other,
    OtherStealing,
    Anonymous,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Writes,
    /// As `Writes`, and the holder's link is cut.
    TakesOver,
    Refused,
    ReadOnly,
}
use Outcome::{ReadOnly, Refused, TakesOver, Writes};

#[rustfmt::skip]
const TABLE: [(Holder, [Outcome; 5]); 9] = [
    (Holder::Session,               [Writes,  TakesOver, Refused, TakesOver, ReadOnly]),
    (Holder::SessionLost,           [Writes,  Writes,    Refused, Writes,    ReadOnly]),
    (Holder::SessionLostLongAgo,    [Writes,  Writes,    Writes,  Writes,    Writes]),
    (Holder::SessionDisconnected,   [Writes,  Writes,    Writes,  Writes,    Writes]),
    (Holder::Anonymous,             [Refused, Refused,   Refused, TakesOver, Writes]),
    (Holder::AnonymousLost,         [Writes,  Writes,    Writes,  Writes,    Writes]),
    (Holder::AnonymousDisconnected, [Writes,  Writes,    Writes,  Writes,    Writes]),
    (Holder::AnonymousIdle,         [Writes,  Writes,    Writes,  Writes,    Writes]),
    (Holder::Nobody,                [Writes,  Writes,    Writes,  Writes,    Writes]),
];
const NEWCOMERS: [Newcomer; 5] = [
    Newcomer::SameSession,
    Newcomer::SameClient,
    Newcomer::Other,
    Newcomer::OtherStealing,
    Newcomer::Anonymous,
];

fn session(client: u8, nonce: u8, slot: u32, generation: u64) -> Session {
    Session {
        slot,
        generation,
        client: [client; 16],
        nonce: [nonce; 16],
        export: "disk".to_owned(),
        ..Session::default()
    }
}

fn enter(server: &Server, session: Option<&Session>) -> nbdpeer::Result<(Peer, bool)> {
    let mut peer = Peer::hello(&server.tcp())?;
    peer.structured()?;
    if let Some(session) = session {
        peer.session(session)?;
    }
    let told = peer.go("disk")?;
    Ok((peer, told.has(READ_ONLY)))
}

/// The holder's link, where it still has one.
fn hold(server: &Server, holder: Holder) -> Option<Peer> {
    use Holder::*;
    let named = session(1, 1, 0, 1);
    let named = matches!(
        holder,
        Session | SessionLost | SessionLostLongAgo | SessionDisconnected
    )
    .then_some(&named);
    let (mut peer, read_only) = match holder {
        Nobody => return None,
        _ => enter(server, named).unwrap(),
    };
    assert!(!read_only);
    match holder {
        AnonymousIdle => drop(peer.read(0, 512).unwrap()),
        _ => peer.write(0, &[1; 512]).unwrap(),
    }
    match holder {
        SessionLost | SessionLostLongAgo | AnonymousLost => peer.reset(),
        SessionDisconnected | AnonymousDisconnected => peer.disconnect().unwrap(),
        _ => return Some(peer),
    }
    server.wait_connections(0);
    if holder != SessionLost {
        wait_free(server);
    }
    None
}

/// A client sees the end of its link a moment before the server's books do.
fn wait_free(server: &Server) {
    let ask = Session {
        identify_only: true,
        ..session(9, 9, 0, 1)
    };
    within("nobody holds the export", || {
        !server.hello().session(&ask).unwrap().held_by_other
    });
}

/// Asks in every way that must not change anything.
fn probe(server: &Server) {
    let mut peer = server.hello();
    peer.list().unwrap();
    peer.info("disk").unwrap();
    peer.structured().unwrap();
    peer.allocation("disk").unwrap();
    let ask = Session {
        identify_only: true,
        ..session(3, 3, 0, 1)
    };
    peer.session(&ask).unwrap();
    peer.go("disk").unwrap();
    peer.read(0, 512).unwrap();
    peer.flush().unwrap();
    peer.disconnect().unwrap();
    // What is asked by a session that never enters takes nothing either.
    let mut peer = server.hello();
    peer.session(&session(3, 3, 0, 1)).unwrap();
    peer.info("disk").unwrap_or_default();
    peer.abort().unwrap();
}

fn meet(server: &Server, newcomer: Newcomer) -> (Outcome, Option<Peer>) {
    let named = match newcomer {
        Newcomer::SameSession => Some(session(1, 1, 1, 2)),
        Newcomer::SameClient => Some(session(1, 2, 0, 1)),
        Newcomer::Other => Some(session(2, 1, 0, 1)),
        Newcomer::OtherStealing => Some(Session {
            steal: true,
            ..session(2, 1, 0, 1)
        }),
        Newcomer::Anonymous => None,
    };
    match enter(server, named.as_ref()) {
        Err(PeerError::Refused { kind, text, .. }) => {
            assert_eq!(kind, ERR_POLICY, "{text}");
            assert!(!text.is_empty(), "a refusal says why");
            (Refused, None)
        }
        Err(other) => panic!("{other}"),
        Ok((mut peer, read_only)) => {
            let wrote = peer.write(512, &[2; 512]);
            let outcome = match wrote {
                Ok(()) if !read_only => Writes,
                Err(PeerError::Nbd(EPERM)) if read_only => ReadOnly,
                other => panic!("read-only: {read_only}, and the write: {other:?}"),
            };
            (outcome, Some(peer))
        }
    }
}

#[test]
fn every_pair_of_holder_and_newcomer() {
    for (holder, row) in TABLE {
        for (newcomer, expected) in NEWCOMERS.into_iter().zip(row) {
            let context = format!("{holder:?}, then {newcomer:?}");
            let patience = match holder {
                Holder::SessionLostLongAgo => Duration::ZERO,
                _ => Duration::from_secs(3600),
            };
            let server = Server::start(Setup::new().image("disk", SIZE).holder_timeout(patience));
            let mut held = hold(&server, holder);
            probe(&server);
            let (outcome, newcomers) = meet(&server, newcomer);
            let cut = match &mut held {
                // Also a link of a holder that stays answers this; one that was cut can't.
                Some(peer) => peer.read(0, 512).is_err(),
                None => false,
            };
            let got = if outcome == Writes && cut {
                TakesOver
            } else {
                outcome
            };
            assert_eq!(got, expected, "{context}");
            drop(newcomers);
        }
    }
}

#[test]
fn an_anonymous_client_that_hadnt_written_yet_is_refused_at_its_first_write() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let (mut early, read_only) = enter(&server, None).unwrap();
    assert!(!read_only);
    let (mut holder, _) = enter(&server, Some(&session(1, 1, 0, 1))).unwrap();
    for _ in 0..3 {
        assert!(matches!(
            early.write(0, &[1; 512]),
            Err(PeerError::Nbd(EPERM))
        ));
        early.read(0, 512).unwrap();
        holder.write(0, &[2; 512]).unwrap();
    }
    assert_eq!(early.read(0, 512).unwrap(), [2; 512]);
    holder.disconnect().unwrap();
    // This link was told no, and a no stays; whoever comes anew may write.
    assert!(matches!(
        early.write(0, &[1; 512]),
        Err(PeerError::Nbd(EPERM))
    ));
    wait_free(&server);
    let (mut late, read_only) = enter(&server, None).unwrap();
    assert!(!read_only);
    late.write(0, &[1; 512]).unwrap();
}

#[test]
fn anonymous_clients_write_together_from_any_number_of_connections() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let mut peers: Vec<_> = (0..8).map(|_| enter(&server, None).unwrap().0).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        peer.write(n as u64 * 512, &[n as u8; 512]).unwrap();
    }
    let refused = enter(&server, Some(&session(1, 1, 0, 1))).unwrap_err();
    assert_eq!(refused.refusal(), Some(ERR_POLICY));
    // The last of those that wrote keeps it.
    let last = peers.pop().unwrap();
    drop(peers);
    server.wait_connections(1);
    let refused = enter(&server, Some(&session(1, 1, 0, 1))).unwrap_err();
    assert_eq!(refused.refusal(), Some(ERR_POLICY));
    last.disconnect().unwrap();
    wait_free(&server);
    assert!(!enter(&server, Some(&session(1, 1, 0, 1))).unwrap().1);
}

#[test]
fn a_probe_learns_who_holds_the_export() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let ask = |client| {
        let ask = Session {
            identify_only: true,
            ..session(client, 7, 0, 1)
        };
        server.hello().session(&ask).unwrap()
    };
    assert!(!ask(1).held_by_other && ask(1).text.is_empty());
    let (_holder, _) = enter(&server, Some(&session(1, 1, 0, 1))).unwrap();
    assert!(!ask(1).held_by_other, "its own client isn't another");
    let other = ask(2);
    assert!(other.held_by_other && !other.text.is_empty());
}

#[test]
fn a_lost_holders_role_is_free_when_its_time_is_up_and_it_may_not_come_back() {
    let setup = Setup::new()
        .image("disk", SIZE)
        .holder_timeout(Duration::from_millis(300));
    let server = Server::start(setup);
    let (mut holder, _) = enter(&server, Some(&session(1, 1, 0, 1))).unwrap();
    holder.write(0, &[1; 512]).unwrap();
    assert!(enter(&server, Some(&session(2, 1, 0, 1))).is_err());
    holder.reset();
    let mut taken = None;
    within("another client may write", || {
        taken = enter(&server, Some(&session(2, 1, 0, 1))).ok();
        taken.is_some()
    });
    let refused = enter(&server, Some(&session(1, 1, 0, 2))).unwrap_err();
    assert_eq!(refused.refusal(), Some(ERR_POLICY));
    taken.unwrap().0.disconnect().unwrap();
    wait_free(&server);
    // What it still has to write is older than what its successor wrote.
    let refused = enter(&server, Some(&session(1, 1, 0, 3))).unwrap_err();
    assert_eq!(refused.refusal(), Some(ERR_POLICY));
    assert!(
        !enter(&server, Some(&session(1, 2, 0, 1))).unwrap().1,
        "a new session begins anew"
    );
}

#[test]
fn a_shared_export_has_no_rules_and_fences_all_the_same() {
    let server = Server::start(Setup::new().image("disk", SIZE).shared());
    let (mut one, _) = enter(&server, Some(&session(1, 1, 0, 1))).unwrap();
    let (mut two, read_only) = enter(&server, Some(&session(2, 1, 0, 1))).unwrap();
    assert!(!read_only);
    let (mut stock, read_only) = enter(&server, None).unwrap();
    assert!(!read_only);
    for peer in [&mut one, &mut two, &mut stock] {
        peer.write(0, &[1; 512]).unwrap();
    }
    server.hello().fence(&session(1, 1, 0, 1).fence()).unwrap();
    assert!(one.is_closed_by_server());
    two.write(0, &[2; 512]).unwrap();
    stock.write(0, &[3; 512]).unwrap();
}
