//! No client takes more than its share: connections, handshakes, time, memory.

use std::time::Duration;

use nbdpeer::{Mode, Peer, Request, proto::*};

use dstd::export::limits::Limits;

use crate::support::{Process, Server, Setup, pattern};

const SIZE: u64 = 8 << 20;

fn refused(peer: nbdpeer::Result<Peer>) -> bool {
    peer.and_then(|mut peer| peer.go("disk"))
        .is_err_and(|error| error.is_closed())
}

#[test]
fn connections_beyond_the_limit_are_turned_away_and_the_others_work() {
    let setup = Setup::new()
        .image("disk", SIZE)
        .limits(|limits| limits.connections = 10);
    let server = Server::start(setup);
    let mut links: Vec<_> = (0..10).map(|_| server.link("disk", Mode::Simple)).collect();
    assert!(refused(Peer::hello(&server.address())));
    assert!(refused(Peer::hello(&server.tcp())));
    for link in &mut links {
        assert!(link.read(0, 512).unwrap() == pattern(0, 512));
    }
    links.pop().unwrap().disconnect().unwrap();
    server.wait_connections(9);
    server.link("disk", Mode::Simple);
}

#[test]
fn stalled_handshakes_end_and_keep_nobody_out_for_ever() {
    let setup = Setup::new().image("disk", SIZE).limits(|limits| {
        limits.handshakes = 1000;
        limits.handshakes_per_peer = 1000;
        limits.connections_per_peer = 1000;
        limits.handshake_timeout = Duration::from_secs(2);
        limits.handshake_idle = Duration::from_secs(1);
    });
    let server = Server::start(setup);
    let mut stalled: Vec<_> = (0..500).map(|_| server.connect()).collect();
    for peer in &mut stalled {
        peer.send(&[0, 0]).unwrap();
    }
    server
        .link("disk", Mode::Simple)
        .write(0, &[1; 512])
        .unwrap();
    for peer in &mut stalled {
        peer.receive(18).unwrap();
        assert!(peer.is_closed_by_server());
    }
    server.wait_connections(0);
    // A byte now and then doesn't stretch it for ever.
    let mut slow = server.connect();
    let mut bytes = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    bytes.extend((0..1000).flat_map(|_| nbdpeer::handshake::encode_option(OPT_LIST, b"")));
    let mut sent = 0;
    for byte in bytes.chunks(1).take(200) {
        if slow.send(byte).is_err() {
            break;
        }
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sent < 200, "the handshake was stretched");
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let server = Process::start(Setup::new().image("disk", SIZE));
    drop(server.link("disk", Mode::Simple));
    let before = server.settled_fds();
    for n in 0..10_000 {
        let mut peer = server.connect();
        match n % 4 {
            0 => drop(peer),
            1 => peer.reset(),
            2 => {
                peer.greet(FIXED_NEWSTYLE | NO_ZEROES).unwrap();
                drop(peer);
            }
            _ => {
                peer.greet(FIXED_NEWSTYLE | NO_ZEROES).unwrap();
                peer.go("disk").unwrap();
                peer.read(0, 512).unwrap();
            }
        }
    }
    assert_eq!(server.settled_fds(), before, "descriptors were left open");
    assert!(server.link("disk", Mode::Simple).read(0, 512).unwrap() == pattern(0, 512));
}

/// Blocks are a little larger than the data in them, and the program itself grows a little.
fn with_overhead(bytes: u64) -> u64 {
    bytes + bytes / 4 + (8 << 20)
}

/// Replies that nobody fetches fill the sockets, then the link's share, then nothing more.
#[test]
fn slow_readers_cost_their_own_share_and_no_more() {
    let limits = |limits: &mut Limits| limits.in_flight_per_link = 4 << 20;
    let grown = memory_of_slow_readers(8, Mode::Structured, limits);
    assert!(grown < with_overhead(8 * (4 << 20)), "{} MiB", grown >> 20);
}

#[test]
fn slow_readers_share_what_all_may_have() {
    let limits = |limits: &mut Limits| limits.in_flight = 64 << 20;
    let grown = memory_of_slow_readers(32, Mode::Extended, limits);
    assert!(grown < with_overhead(64 << 20), "{} MiB", grown >> 20);
}

/// A reply that can't leave in parts may be longer than all that its link may have; then it is alone.
#[test]
fn a_long_simple_read_is_served_with_the_smallest_limit() {
    let setup = Setup::new().image("disk", SIZE).limits(|limits| {
        limits.in_flight_per_link = 1 << 20;
        limits.in_flight = 1 << 20;
    });
    let server = Process::start(setup);
    let mut peer = server.link("disk", Mode::Simple);
    assert!(peer.read(0, 512).unwrap() == pattern(0, 512));
    let before = server.memory();
    for _ in 0..8 {
        assert!(peer.read(0, SIZE).unwrap() == pattern(0, SIZE as usize));
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < with_overhead(SIZE), "{} MiB", grown >> 20);
}

fn memory_of_slow_readers(count: usize, mode: Mode, limits: impl FnOnce(&mut Limits)) -> u64 {
    let setup = Setup::new().image("disk", SIZE).limits(limits);
    let server = Process::start(setup);
    assert!(server.link("disk", Mode::Simple).read(0, 512).unwrap() == pattern(0, 512));
    let before = server.memory();
    let links: Vec<_> = (0..count)
        .map(|_| {
            let mut peer = server.link("disk", mode);
            peer.time_limit(Duration::from_millis(300)).unwrap();
            let one = Request::new(READ, 0, 1 << 20).encode(mode);
            peer.send_until_full(&one.repeat(20_000));
            peer
        })
        .collect();
    // Cutting such a link is what frees its memory, so the fence of all things must get through.
    let nobody = nbdpeer::Fence {
        export: "disk".to_owned(),
        ..nbdpeer::Fence::default()
    };
    server.hello().fence(&nobody).expect("a fence gets through");
    assert!(server.link("disk", Mode::Simple).read(512, 512).unwrap() == pattern(512, 512));
    let grown = server.memory().saturating_sub(before);
    println!(
        "memory: {} MiB before, {} MiB for {count} slow readers",
        before >> 20,
        grown >> 20
    );
    drop(links);
    assert!(server.link("disk", Mode::Simple).read(0, 512).unwrap() == pattern(0, 512));
    grown
}

/// A payload that never comes keeps its buffers, but not everybody's.
#[test]
fn writes_that_never_come_starve_nobody() {
    let server = Process::start(Setup::new().image("disk", SIZE));
    server
        .link("disk", Mode::Simple)
        .write(0, &pattern(0, 512))
        .unwrap();
    let before = server.memory();
    let links: Vec<_> = (0..100)
        .map(|_| {
            let mut peer = server.link("disk", Mode::Simple);
            let announced = Request {
                length: 32 << 20,
                ..Request::write(0, vec![1; 1000])
            };
            peer.send(&announced.encode(Mode::Simple)).unwrap();
            peer
        })
        .collect();
    let mut honest = server.link("disk", Mode::Simple);
    for n in 0..100 {
        honest.write(n * 4096, &pattern(n * 4096, 4096)).unwrap();
        assert!(honest.read(n * 4096, 4096).unwrap() == pattern(n * 4096, 4096));
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 1200 << 20, "{} MiB", grown >> 20);
    drop(links);
    honest.flush().unwrap();
}
