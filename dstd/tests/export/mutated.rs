//! Thousands of random sessions, most of them damaged: the server survives each, forgets it, and stays in its bounds.
//!
//! The seed is printed; DST_SEED=N repeats a run. (`fuzz/` has the coverage-guided one.)

use std::time::{Duration, Instant};

use nbdpeer::handshake::{encode_option, info_data, meta_data};
use nbdpeer::{Mode, PeerError, Request, Session, proto::*};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Process, Setup, pattern};

const SIZE: u64 = 4 << 20;
const SESSIONS: u64 = 1500;
const THREADS: u64 = 2;
const TIME: Duration = Duration::from_secs(20);
const IN_FLIGHT: u64 = 128 << 20;

fn pick<T: Clone>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())].clone()
}

/// Numbers near those where something changes.
fn number(rng: &mut StdRng) -> u64 {
    let base = pick(
        rng,
        &[0, 1, 512, 4096, SIZE, 32 << 20, 1 << 32, 1 << 63, u64::MAX],
    );
    match rng.random_range(0..3) {
        0 => base,
        1 => base.wrapping_add(rng.random_range(0..3)).wrapping_sub(1),
        _ => rng.random_range(0..SIZE),
    }
}

fn option(rng: &mut StdRng, mode: &mut Mode) -> Vec<u8> {
    let name = pick(
        rng,
        &["disk", "disk", "disk", "kept", "", "nodisk", "../disk"],
    );
    let session = Session {
        steal: rng.random_bool(0.3),
        identify_only: rng.random_bool(0.3),
        slot: rng.random_range(0..3),
        generation: rng.random_range(0..3),
        client: [rng.random_range(1..3); 16],
        nonce: [rng.random_range(1..3); 16],
        export: name.to_owned(),
    };
    match rng.random_range(0..9) {
        0 => encode_option(OPT_LIST, b""),
        1 => encode_option(OPT_INFO, &info_data(name.as_bytes(), &[INFO_BLOCK_SIZE])),
        2 => {
            *mode = Mode::Structured;
            encode_option(OPT_STRUCTURED_REPLY, b"")
        }
        3 => {
            *mode = Mode::Extended;
            encode_option(OPT_EXTENDED_HEADERS, b"")
        }
        4 => encode_option(
            OPT_SET_META,
            &meta_data(name.as_bytes(), &["base:allocation"]),
        ),
        5 => encode_option(
            OPT_LIST_META,
            &meta_data(name.as_bytes(), &["base:", "x:y"]),
        ),
        6 => encode_option(OPT_SESSION, &session.encode()),
        7 => encode_option(OPT_FENCE, &session.fence().encode()),
        _ => encode_option(rng.random(), &vec![0; rng.random_range(0..100)]),
    }
}

fn request(rng: &mut StdRng, mode: Mode) -> Vec<u8> {
    let kind = if rng.random_bool(0.95) {
        rng.random_range(0..8)
    } else {
        rng.random()
    };
    // Far fewer ends than requests.
    let kind = if kind == DISC && rng.random_bool(0.9) {
        READ
    } else {
        kind
    };
    let (offset, length) = match rng.random_bool(0.6) {
        true => (rng.random_range(0..SIZE), rng.random_range(1..65536)),
        false => (number(rng), number(rng)),
    };
    let flags = if rng.random_bool(0.5) {
        0
    } else {
        rng.random_range(0..64)
    };
    let mut request = Request::new(kind, offset, length)
        .flags(flags)
        .cookie(rng.random());
    if kind == WRITE || flags & PAYLOAD_LEN != 0 {
        request.payload = vec![rng.random(); length.min(70_000) as usize];
    }
    match rng.random_bool(0.9) {
        true => request.encode(mode),
        false => request.encode_as_is(mode),
    }
}

fn session(rng: &mut StdRng) -> Vec<u8> {
    let mut mode = Mode::Simple;
    let mut bytes = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    for _ in 0..rng.random_range(0..8) {
        bytes.extend(option(rng, &mut mode));
    }
    match rng.random_range(0..4) {
        0 => bytes.extend(encode_option(OPT_EXPORT_NAME, b"disk")),
        1 => bytes.extend(encode_option(OPT_GO, &info_data(b"kept", &[]))),
        _ => bytes.extend(encode_option(OPT_GO, &info_data(b"disk", &[]))),
    }
    for _ in 0..rng.random_range(0..40) {
        bytes.extend(request(rng, mode));
    }
    mutate(rng, bytes)
}

fn mutate(rng: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    if rng.random_bool(0.3) {
        return bytes;
    }
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            return bytes;
        }
        // Half of them at the beginning, where the handshake is.
        let end = if rng.random_bool(0.5) {
            bytes.len()
        } else {
            bytes.len().min(400)
        };
        let at = rng.random_range(0..end);
        let to = (at + rng.random_range(1..40)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at..to].fill(pick(rng, &[0, 0xff])),
            3 => drop(bytes.drain(at..to)),
            4 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn converse(server: &Process, rng: &mut StdRng, number: u64) {
    let bytes = session(rng);
    let mut peer = match rng.random_bool(0.5) {
        true => server.connect(),
        false => server.connect_tcp(),
    };
    let segment = pick(rng, &[1, 2, 7, 28, 33, 1000, usize::MAX]);
    peer.time_limit(Duration::from_millis(50)).unwrap();
    // A server that has hung up, or one whose replies fill the socket as nobody reads them, takes no more.
    let few = if segment < 7 {
        bytes.len().min(2000)
    } else {
        bytes.len()
    };
    for part in bytes[..few].chunks(segment) {
        if peer.send_until_full(part) < part.len() {
            break;
        }
    }
    match rng.random_range(0..4) {
        0 => drop(peer),
        1 => peer.reset(),
        _ => {
            peer.time_limit(Duration::from_secs(20)).unwrap();
            if peer.half_close().is_ok() {
                let end = peer.receive_to_end();
                assert!(
                    !matches!(end, Err(PeerError::Silent)),
                    "session {number} never ended: {bytes:x?}"
                );
            }
        }
    }
}

#[test]
fn random_sessions_leave_the_server_whole() {
    let seed = std::env::var("DST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().random());
    println!("DST_SEED={seed}");
    let setup = Setup::new()
        .image("disk", SIZE)
        .image("kept", SIZE)
        .read_only_export("kept")
        .holder_timeout(Duration::ZERO)
        .limits(|limits| {
            limits.in_flight = IN_FLIGHT;
            limits.in_flight_per_link = 33 << 20;
        });
    let server = Process::start(setup);
    drop(server.link("disk", Mode::Simple));
    let before = server.settled_fds();
    let deadline = Instant::now() + TIME;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let server = &server;
            scope.spawn(move || {
                for number in 0..SESSIONS {
                    if Instant::now() > deadline {
                        println!("{number} sessions in thread {thread}");
                        return;
                    }
                    let own = seed.wrapping_add(number * THREADS + thread);
                    converse(server, &mut StdRng::seed_from_u64(own), number);
                }
            });
        }
    });
    assert_eq!(server.settled_fds(), before, "descriptors were left open");
    let peak = server.peak_memory();
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak < IN_FLIGHT + (64 << 20), "{} MiB", peak >> 20);
    for mode in Mode::ALL {
        let mut peer = server.link("disk", mode);
        peer.write(0, &pattern(0, 65536)).unwrap();
        assert!(peer.read(0, 65536).unwrap() == pattern(0, 65536));
        peer.flush().unwrap();
        peer.disconnect().unwrap();
        let mut kept = server.link("kept", mode);
        assert!(
            kept.read(0, SIZE).unwrap() == pattern(0, SIZE as usize),
            "a read-only export was changed"
        );
    }
    assert_eq!(server.complaints(), "", "the server's log");
}
