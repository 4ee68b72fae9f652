//! A write that stalls in the storage while its link is cut: the fence isn't answered before it is over, and what is
//! written after the fence stays. Each test fails when FENCE answers at once or a cut link's end isn't waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbdpeer::{Mode, Peer, Request, Session, proto::*};

use dstd::export::backend::FaultKind;
use dstd::export::backend::fault::Hold;

use crate::support::{LIMIT, Server, Setup, pattern, within};

const SIZE: u64 = 8 << 20;
const OLD: [u8; 4096] = [0x0d; 4096];
const NEW: [u8; 4096] = [0xee; 4096];

fn server() -> Server {
    Server::start(Setup::new().image("disk", SIZE).faulty())
}

fn session(nonce: u8, slot: u32, generation: u64) -> Session {
    Session {
        slot,
        generation,
        client: [0xc1; 16],
        nonce: [nonce; 16],
        export: "disk".to_owned(),
        ..Session::default()
    }
}

/// A link of a session, over TCP (where a reset is one).
fn link(server: &Server, session: &Session) -> Peer {
    try_link(server, session).unwrap()
}

fn try_link(server: &Server, session: &Session) -> nbdpeer::Result<Peer> {
    let mut peer = Peer::hello(&server.tcp())?;
    peer.structured()?;
    peer.session(session)?;
    peer.go("disk")?;
    Ok(peer)
}

/// A write of `OLD` at 0 that has come to the storage and stays there.
fn stalled(server: &Server, peer: &mut Peer) -> Hold {
    let hold = server.faults("disk").hold(FaultKind::Write, 0..4096);
    peer.submit(Request::write(0, OLD.to_vec())).unwrap();
    assert!(
        hold.wait_reached(1, LIMIT),
        "the write never came to the storage"
    );
    hold
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Nothing to read, not even an end, for longer than an answer takes.
fn is_silent(peer: &mut Peer) -> bool {
    peer.time_limit(Duration::from_millis(300)).unwrap();
    let silent = matches!(peer.receive(1), Err(nbdpeer::PeerError::Silent));
    peer.time_limit(LIMIT).unwrap();
    silent
}

/// Writes and reads that check each other, at a place of its own for each link.
fn busy(peer: &mut Peer, slot: u64, rounds: u64) {
    for round in 0..rounds {
        let at = (1 << 20) * slot + round % 64 * 4096;
        let data = [(slot * 16 + round % 16) as u8; 4096];
        peer.write(at, &data).unwrap();
        assert!(peer.read(at, 4096).unwrap() == data, "slot {slot}");
    }
}

#[test]
fn one_of_four_links_is_fenced_and_the_others_never_pause() {
    let server = server();
    let mut first = link(&server, &session(1, 0, 1));
    let mut others: Vec<_> = (1..4)
        .map(|slot| link(&server, &session(1, slot, 1)))
        .collect();
    let hold = stalled(&server, &mut first);
    let released = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    let (fencing, stands_open) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Also when an assertion fails, else the test would never end.
        let finish = SetOnDrop(&done);
        for (n, peer) in others.iter_mut().enumerate() {
            let done = &done;
            scope.spawn(move || {
                // Each round trip has the peer's time limit: one that pauses fails.
                while !done.load(Ordering::SeqCst) {
                    busy(peer, n as u64 + 1, 8);
                }
            });
        }
        first.reset();
        let (server, released) = (&server, &released);
        let fenced = scope.spawn(move || {
            let mut fresh = Peer::hello(&server.tcp()).unwrap();
            fresh
                .send_option(OPT_FENCE, &session(1, 0, 1).fence().encode())
                .unwrap();
            assert!(
                is_silent(&mut fresh),
                "the fence was answered while the write ran"
            );
            fencing.send(()).unwrap();
            fresh.replies(OPT_FENCE).unwrap();
            assert!(
                released.load(Ordering::SeqCst),
                "the fence was answered before the write ended"
            );
            // The same connection goes on as the new link of the slot.
            fresh.session(&session(1, 0, 2)).unwrap();
            fresh.go("disk").unwrap();
            fresh.write(0, &NEW).unwrap();
            assert!(fresh.read(0, 4096).unwrap() == NEW);
            fresh
        });
        stands_open.recv().expect("the fence stands open");
        // The fence stands open; the others' links work all the same.
        let mut probe = link(server, &session(1, 7, 1));
        busy(&mut probe, 7, 200);
        released.store(true, Ordering::SeqCst);
        hold.release();
        let mut fresh = fenced.join().unwrap();
        for slot in 1..4 {
            busy(&mut probe, 7, 50);
            assert!(
                fresh.read(0, 4096).unwrap() == NEW,
                "the old write appeared (slot {slot})"
            );
        }
        drop(finish);
    });
    for (n, peer) in others.iter_mut().enumerate() {
        busy(peer, n as u64 + 1, 8);
    }
    assert!(server.contents("disk")[..4096] == NEW);
}

/// Many writes of the cut link wait for a place in the storage's queue when it is cut.
#[test]
fn requests_that_hadnt_begun_are_dropped() {
    let server = server();
    let mut first = link(&server, &session(1, 0, 1));
    let hold = server.faults("disk").hold(FaultKind::Write, 0..4 << 20);
    const COUNT: u64 = 500;
    for n in 0..COUNT {
        first
            .submit(Request::write(n * 4096, OLD.to_vec()))
            .unwrap();
    }
    assert!(hold.wait_reached(1, LIMIT));
    let mut other = link(&server, &session(1, 1, 1));
    busy(&mut other, 5, 50);
    let mut fresh = ask_fence(&server);
    assert!(is_silent(&mut fresh));
    // The link is cut now, whatever has begun by then may end.
    let begun = u64::from(hold.reached());
    hold.release();
    fresh.replies(OPT_FENCE).unwrap();
    let image = server.contents("disk");
    let applied = (0..COUNT).filter(|n| image[(n * 4096) as usize..][..4096] == OLD);
    assert_eq!(
        applied.count() as u64,
        begun,
        "requests of a cut link began"
    );
    assert!(begun < COUNT, "the test stalled nothing in the queue");
    fresh.session(&session(1, 0, 2)).unwrap();
    fresh.go("disk").unwrap();
    for n in 0..COUNT {
        fresh.write(n * 4096, &NEW).unwrap();
    }
    busy(&mut other, 5, 50);
    let image = server.contents("disk");
    assert!((0..COUNT).all(|n| image[(n * 4096) as usize..][..4096] == NEW));
    drop(first);
}

#[test]
fn a_new_session_of_the_client_waits_for_the_last_write_of_the_old_one() {
    let server = server();
    let mut old = link(&server, &session(1, 0, 1));
    let mut idle = link(&server, &session(1, 1, 1));
    let hold = stalled(&server, &mut old);
    let mut new = Peer::hello(&server.tcp()).unwrap();
    new.session(&session(2, 0, 1)).unwrap();
    let go = nbdpeer::handshake::info_data(b"disk", &[]);
    new.send_option(OPT_GO, &go).unwrap();
    assert!(
        is_silent(&mut new),
        "GO was answered while the old session's write ran"
    );
    assert!(
        idle.is_closed_by_server(),
        "the old session's other link is cut too"
    );
    // Nothing that it sends now is served.
    let _ = old.send(&Request::write(4096, OLD.to_vec()).encode(Mode::Structured));
    hold.release();
    assert!(!new.told(OPT_GO).unwrap().has(READ_ONLY));
    new.write(0, &NEW).unwrap();
    busy(&mut new, 3, 100);
    assert!(
        new.read(0, 4096).unwrap() == NEW,
        "the old session's write appeared"
    );
    assert!(new.read(4096, 4096).unwrap() == pattern(4096, 4096));
    assert!(
        try_link(&server, &session(1, 0, 9)).is_err(),
        "the old session came back"
    );
}

#[test]
fn steal_waits_for_the_last_write_of_the_holder() {
    let server = server();
    let mut old = link(&server, &session(1, 0, 1));
    let hold = stalled(&server, &mut old);
    let thief = Session {
        client: [0xc2; 16],
        steal: true,
        ..session(1, 0, 1)
    };
    let mut new = Peer::hello(&server.tcp()).unwrap();
    new.session(&thief).unwrap();
    let go = nbdpeer::handshake::info_data(b"disk", &[]);
    new.send_option(OPT_GO, &go).unwrap();
    assert!(
        is_silent(&mut new),
        "GO was answered while the holder's write ran"
    );
    hold.release();
    new.told(OPT_GO).unwrap();
    new.write(0, &NEW).unwrap();
    busy(&mut new, 3, 50);
    assert!(new.read(0, 4096).unwrap() == NEW);
}

/// Asks for the fence of the first link on a fresh connection, whose answer is still to come.
fn ask_fence(server: &Server) -> Peer {
    let mut fresh = Peer::hello(&server.tcp()).unwrap();
    fresh
        .send_option(OPT_FENCE, &session(1, 0, 1).fence().encode())
        .unwrap();
    fresh
}

/// End of file reaches the server at once, so it is tempting to take the link for ended.
#[test]
fn a_half_closed_link_is_fenced_when_its_write_has_ended() {
    let server = server();
    let mut first = link(&server, &session(1, 0, 1));
    let hold = stalled(&server, &mut first);
    first.half_close().unwrap();
    let mut other = link(&server, &session(1, 1, 1));
    busy(&mut other, 2, 50);
    let mut fresh = ask_fence(&server);
    assert!(
        is_silent(&mut fresh),
        "the fence was answered while the write ran"
    );
    hold.release();
    fresh.replies(OPT_FENCE).unwrap();
    other.write(0, &NEW).unwrap();
    busy(&mut other, 2, 50);
    assert!(other.read(0, 4096).unwrap() == NEW);
    drop(first);
}

/// The same for a link that said DISC, where no FENCE follows: its end may be seen only after its writes.
#[test]
fn a_link_that_said_disc_ends_after_its_write() {
    let server = server();
    let mut first = link(&server, &session(1, 0, 1));
    let hold = stalled(&server, &mut first);
    first
        .send(&Request::new(DISC, 0, 0).encode(Mode::Structured))
        .unwrap();
    assert!(is_silent(&mut first), "the link ended while the write ran");
    let mut fresh = ask_fence(&server);
    assert!(
        is_silent(&mut fresh),
        "the fence was answered while the write ran"
    );
    hold.release();
    fresh.replies(OPT_FENCE).unwrap();
    let mut other = link(&server, &session(1, 1, 1));
    other.write(0, &NEW).unwrap();
    assert!(other.read(0, 4096).unwrap() == NEW);
}

/// The server can't get rid of the link's replies; a fence doesn't wait for a client that doesn't read.
#[test]
fn a_link_with_a_full_socket_is_fenced() {
    for stall in [false, true] {
        let server = server();
        let mut first = link(&server, &session(1, 0, 1));
        first.receive_buffer(4096).unwrap();
        first.time_limit(Duration::from_millis(300)).unwrap();
        let hold = stall.then(|| stalled(&server, &mut first));
        let one = Request::new(READ, 1 << 20, 131_072).encode(Mode::Structured);
        first.send_until_full(&one.repeat(20_000));
        let mut other = link(&server, &session(1, 1, 1));
        busy(&mut other, 2, 50);
        let mut fresh = ask_fence(&server);
        if let Some(hold) = hold {
            assert!(
                is_silent(&mut fresh),
                "the fence was answered while the write ran"
            );
            hold.release();
        }
        fresh.replies(OPT_FENCE).unwrap();
        other.write(0, &NEW).unwrap();
        busy(&mut other, 2, 50);
        assert!(other.read(0, 4096).unwrap() == NEW);
        drop(first);
    }
}

#[test]
fn a_fence_cuts_its_slot_up_to_its_generation_and_nothing_else() {
    let server = server();
    let mut peers: Vec<_> = [(0, 1), (0, 3), (0, 5), (1, 1)]
        .map(|(slot, generation)| link(&server, &session(1, slot, generation)))
        .into();
    let mut fresh = Peer::hello(&server.tcp()).unwrap();
    fresh.fence(&session(1, 0, 3).fence()).unwrap();
    // Cut means cut: the fence's answer comes after the end of both.
    assert!(peers[0].is_closed_by_server());
    assert!(peers[1].is_closed_by_server());
    busy(&mut peers[2], 2, 10);
    busy(&mut peers[3], 3, 10);
    for generation in 0..4 {
        let refused = try_link(&server, &session(1, 0, generation)).unwrap_err();
        let kind = refused.refusal();
        assert!(
            [Some(ERR_POLICY), Some(ERR_SHUTDOWN)].contains(&kind),
            "{generation}: {refused}"
        );
    }
    link(&server, &session(1, 0, 4));
    link(&server, &session(1, 1, 1));
    // Another session's slot 0 has nothing to do with it; neither has a session that nobody knows.
    fresh.fence(&session(9, 0, u64::MAX).fence()).unwrap();
    busy(&mut peers[2], 2, 10);
    // All of them, by the highest number there is.
    fresh.fence(&session(1, 0, u64::MAX).fence()).unwrap();
    assert!(peers[2].is_closed_by_server());
    busy(&mut peers[3], 3, 10);
}

/// A fence that comes before its link: the one whose GO is still under way must not get in.
#[test]
fn a_link_that_was_fenced_in_its_handshake_never_begins() {
    let server = server();
    let mut late = Peer::hello(&server.tcp()).unwrap();
    late.session(&session(1, 0, 1)).unwrap();
    Peer::hello(&server.tcp())
        .unwrap()
        .fence(&session(1, 0, 1).fence())
        .unwrap();
    let kind = late.go("disk").unwrap_err().refusal();
    assert!([Some(ERR_POLICY), Some(ERR_SHUTDOWN)].contains(&kind));
}

/// Storage that never answers: the fence waits as long, and whoever asked may give up.
#[test]
fn a_fence_that_was_given_up_can_be_asked_again() {
    let server = server();
    let mut first = link(&server, &session(1, 0, 1));
    let hold = stalled(&server, &mut first);
    first.reset();
    for _ in 0..20 {
        let fresh = ask_fence(&server);
        fresh.reset();
    }
    let mut fresh = ask_fence(&server);
    assert!(is_silent(&mut fresh));
    hold.release();
    fresh.replies(OPT_FENCE).unwrap();
    drop(fresh);
    within("all connections gone", || server.connections() == 0);
}
