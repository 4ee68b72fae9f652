//! How bytes come and go: thousands at once, one at a time, ends in the middle.

use std::collections::BTreeMap;

use nbdpeer::{Mode, Peer, Request, proto::*};

use crate::support::{Server, Setup, pattern};

const SIZE: u64 = 8 << 20;

fn server() -> Server {
    Server::start(Setup::new().image("disk", SIZE))
}

/// Reads `count` answers; each cookie exactly once.
fn answers(peer: &mut Peer, count: usize) -> BTreeMap<u64, nbdpeer::Answer> {
    let mut all = BTreeMap::new();
    for _ in 0..count {
        let answer = peer.answer().unwrap();
        let twice = all.insert(answer.cookie, answer);
        assert!(twice.is_none(), "{twice:?} was answered twice");
    }
    all
}

#[test]
fn a_thousand_requests_in_one_segment_are_each_answered_once() {
    let server = server();
    for mode in Mode::ALL {
        for address in [server.address(), server.tcp()] {
            let mut peer = server.link_at(&address, "disk", mode);
            let mut bytes = Vec::new();
            for n in 0..1000 {
                let at = n * 4096;
                let request = match n % 4 {
                    0 => Request::write(at, vec![n as u8 ^ 0x5a; 512]),
                    1 => Request::new(FLUSH, 0, 0),
                    2 => Request::new(READ, at, 4096),
                    _ => Request::new(READ, SIZE, 4096),
                };
                let request = request.cookie(n << 32 | 7);
                peer.expect(&request);
                bytes.extend(request.encode(mode));
            }
            peer.send(&bytes).unwrap();
            for (cookie, answer) in answers(&mut peer, 1000) {
                let n = cookie >> 32;
                let error = if n % 4 == 3 { EINVAL } else { 0 };
                assert_eq!(answer.error, error, "{mode:?} request {n}");
                if n % 4 == 2 {
                    assert!(answer.data == pattern(n * 4096, 4096), "{mode:?} read {n}");
                }
            }
            for n in (0..1000).step_by(4) {
                assert!(peer.read(n * 4096, 512).unwrap() == vec![n as u8 ^ 0x5a; 512]);
            }
            peer.disconnect().unwrap();
        }
    }
}

#[test]
fn replies_that_nobody_reads_yet_stop_nobody() {
    let server = server();
    for mode in Mode::ALL {
        // 64 MiB of answers, far more than any socket buffer and than one link may hold.
        let mut greedy = server.link("disk", mode);
        let requests =
            (0..512u64).map(|n| Request::new(READ, n % 64 * 131_072, 131_072).cookie(n + 1));
        let requests: Vec<_> = requests.collect();
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| request.encode(mode))
            .collect();
        requests.iter().for_each(|request| greedy.expect(request));
        greedy.send(&bytes).unwrap();
        let mut other = server.link("disk", mode);
        for n in 0..100 {
            assert!(other.read(n * 4096, 4096).unwrap() == pattern(n * 4096, 4096));
        }
        for (cookie, answer) in answers(&mut greedy, 512) {
            let at = (cookie - 1) % 64 * 131_072;
            assert!(answer.data == pattern(at, 131_072), "{mode:?} {cookie}");
        }
    }
}

#[test]
fn one_byte_a_segment_is_the_same_conversation() {
    let server = server();
    for mode in Mode::ALL {
        let mut peer = server.connect_tcp();
        let option = nbdpeer::handshake::encode_option;
        let go = nbdpeer::handshake::info_data(b"disk", &[]);
        assert_eq!(peer.receive(18).unwrap().len(), 18);
        let mut bytes = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
        match mode {
            Mode::Simple => {}
            Mode::Structured => bytes.extend(option(OPT_STRUCTURED_REPLY, b"")),
            Mode::Extended => bytes.extend(option(OPT_EXTENDED_HEADERS, b"")),
        }
        bytes.extend(option(OPT_GO, &go));
        let write = Request::write(100, vec![0xab; 100]).cookie(1);
        let read = Request::new(READ, 0, 300).cookie(2);
        peer.send_in_segments(&bytes, 1).unwrap();
        match mode {
            Mode::Simple => {}
            Mode::Structured => drop(peer.replies(OPT_STRUCTURED_REPLY).unwrap()),
            Mode::Extended => drop(peer.replies(OPT_EXTENDED_HEADERS).unwrap()),
        }
        peer.mode = mode;
        assert_eq!(peer.told(OPT_GO).unwrap().size, SIZE);
        peer.send_in_segments(&write.encode(mode), 1).unwrap();
        assert_eq!(peer.answer().unwrap().cookie, 1);
        peer.expect(&read);
        peer.send_in_segments(&read.encode(mode), 1).unwrap();
        let mut right = pattern(0, 300);
        right[100..200].fill(0xab);
        assert!(peer.answer().unwrap().data == right);
        peer.write(0, &pattern(0, 4096)).unwrap();
    }
}

#[test]
fn requests_cut_at_any_place_by_segments_are_whole() {
    let server = server();
    for mode in Mode::ALL {
        for segment in [3, 27, 28, 29, 31, 33, 100, 511, 513, 4095, 65537] {
            let mut peer = server.link_at(&server.tcp(), "disk", mode);
            let mut bytes = Vec::new();
            for n in 0..40u64 {
                bytes.extend(
                    Request::write(n * 1000, pattern(n * 1000, 1000))
                        .cookie(n)
                        .encode(mode),
                );
            }
            let read = Request::new(READ, 0, 40_000).cookie(40);
            peer.send_in_segments(&bytes, segment).unwrap();
            let all = answers(&mut peer, 40);
            assert!(
                all.values().all(|answer| answer.error == 0),
                "{mode:?} {segment}"
            );
            peer.expect(&read);
            peer.send_in_segments(&read.encode(mode), segment).unwrap();
            assert!(
                peer.answer().unwrap().data == pattern(0, 40_000),
                "{mode:?} {segment}"
            );
        }
    }
}

#[test]
fn what_came_before_a_half_close_is_answered() {
    let server = server();
    for mode in Mode::ALL {
        for address in [server.address(), server.tcp()] {
            let mut peer = server.link_at(&address, "disk", mode);
            for n in 0..50 {
                peer.submit(Request::write(n * 512, vec![0x77; 512]))
                    .unwrap();
                peer.submit(Request::new(READ, 1 << 20, 65536)).unwrap();
            }
            peer.half_close().unwrap();
            let all = answers(&mut peer, 100);
            assert!(all.values().all(|answer| answer.error == 0));
            assert_eq!(peer.receive_to_end().unwrap(), b"");
            let mut peer = server.link("disk", mode);
            assert!(peer.read(0, 50 * 512).unwrap() == vec![0x77; 50 * 512]);
        }
    }
}

#[test]
fn disc_answers_all_that_came_before_it_and_nothing_after() {
    let server = server();
    for mode in Mode::ALL {
        let mut peer = server.link("disk", mode);
        let mut bytes = Vec::new();
        for n in 0..50u64 {
            bytes.extend(
                Request::write(n * 512, vec![0x33; 512])
                    .cookie(n)
                    .encode(mode),
            );
        }
        bytes.extend(Request::new(DISC, 0, 0).cookie(50).encode(mode));
        bytes.extend(
            Request::write(1 << 20, vec![0x99; 512])
                .cookie(51)
                .encode(mode),
        );
        peer.send(&bytes).unwrap();
        assert_eq!(answers(&mut peer, 50).len(), 50);
        assert!(peer.is_closed_by_server());
        let mut peer = server.link("disk", mode);
        assert!(peer.read(0, 50 * 512).unwrap() == vec![0x33; 50 * 512]);
        assert!(
            peer.read(1 << 20, 512).unwrap() == pattern(1 << 20, 512),
            "written after DISC"
        );
    }
}

#[test]
fn a_write_cut_off_in_its_payload_is_never_applied() {
    let server = server();
    for mode in Mode::ALL {
        let whole = Request::write(4096, vec![0xdd; 65536]).encode(mode);
        let head = whole.len() - 65536;
        for cut in [head - 1, head, head + 1, head + 4096, whole.len() - 1] {
            for end in 0..3 {
                let mut peer = server.link_at(&server.tcp(), "disk", mode);
                peer.send(&whole[..cut]).unwrap();
                match end {
                    0 => peer.half_close().unwrap(),
                    1 => peer.reset(),
                    _ => drop(peer),
                }
            }
        }
        server.wait_connections(0);
        assert!(
            server.contents("disk") == pattern(0, SIZE as usize),
            "{mode:?}"
        );
    }
}

#[test]
fn a_client_that_goes_before_its_answer_comes_leaves_nothing_behind() {
    let server = server();
    for mode in Mode::ALL {
        for request in [
            Request::new(READ, 0, 4096),
            Request::new(READ, 0, 1 << 20),
            Request::new(READ, SIZE, 1),
            Request::write(0, pattern(0, 4096)),
            Request::new(FLUSH, 0, 0),
            Request::new(WRITE, 0, 0),
        ] {
            for n in 0..20 {
                let address = if n % 2 == 0 {
                    server.address()
                } else {
                    server.tcp()
                };
                let mut peer = server.link_at(&address, "disk", mode);
                peer.send(&request.encode(mode)).unwrap();
                if n % 4 < 2 { drop(peer) } else { peer.reset() }
            }
        }
    }
    server.wait_connections(0);
}
