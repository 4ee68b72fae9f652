//! Each command × what can be wrong with it × each reply mode: the answer, and that the link goes on after it
//! (or doesn't, where the stream can't be followed any more).

use nbdpeer::{Chunk, Mode, Peer, Request, proto::*};

use crate::support::{Server, Setup, pattern};

const SIZE: u64 = 1 << 20;
const MAX_PAYLOAD: u64 = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Ok,
    /// One of these.
    Error(&'static [u32]),
    Closed,
}
use Expect::{Closed, Error};

struct Case {
    what: &'static str,
    request: Request,
    expect: Expect,
}

fn case(what: &'static str, request: Request, expect: Expect) -> Case {
    Case {
        what,
        request,
        expect,
    }
}

fn of(kind: u16, offset: u64, length: u64) -> Request {
    match kind {
        WRITE => Request::write(offset, pattern(offset, length as usize)),
        _ => Request::new(kind, offset, length),
    }
}

const EINVAL_ONLY: Expect = Error(&[EINVAL]);
const RANGED: [u16; 6] = [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS];

/// BLOCK_STATUS is never served without structured replies.
fn served(kind: u16, mode: Mode) -> bool {
    kind != BLOCK_STATUS || mode != Mode::Simple
}

/// The link still talks: a write and a read of it, and the cookie counts on.
fn goes_on(peer: &mut Peer, context: &str) {
    peer.write(SIZE - 4096, &pattern(SIZE - 4096, 4096))
        .unwrap_or_else(|error| panic!("{context}: then a write: {error}"));
    let back = peer
        .read(SIZE - 4096, 4096)
        .unwrap_or_else(|error| panic!("{context}: then a read: {error}"));
    assert!(back == pattern(SIZE - 4096, 4096), "{context}: wrong data");
}

fn run(server: &Server, mode: Mode, cases: impl IntoIterator<Item = Case>) {
    let mut peer = server.mapping_link("disk", mode);
    for Case {
        what,
        request,
        expect,
    } in cases
    {
        let context = format!("{what} ({}, {mode:?})", request.kind);
        let outcome = peer.call(request.clone());
        let got = match &outcome {
            Ok(answer) if answer.error == 0 => Expect::Ok,
            Ok(_) => Error(&[]),
            Err(error) if error.is_closed() => Closed,
            Err(error) => panic!("{context}: {error}"),
        };
        let errno = outcome.as_ref().map_or(0, |answer| answer.error);
        let fits = match expect {
            Error(errnos) => errnos.contains(&errno),
            other => got == other,
        };
        assert!(fits, "{context}: {outcome:?}");
        if expect == Expect::Ok && request.kind == READ && request.length > 0 {
            let right = pattern(request.offset, request.length as usize);
            assert!(outcome.unwrap().data == right, "{context}: wrong data");
        }
        if got == Closed {
            peer = server.mapping_link("disk", mode);
        }
        goes_on(&mut peer, &context);
    }
}

/// All that reads as a pattern before and after, so that each case can check the contents.
fn server() -> Server {
    Server::start(Setup::new().image("disk", SIZE))
}

#[test]
fn every_command_serves_what_it_should() {
    let server = server();
    for mode in Mode::ALL {
        let mut cases = vec![
            case("all", of(READ, 0, SIZE), Expect::Ok),
            case("one byte", of(READ, 12345, 1), Expect::Ok),
            case("unaligned", of(READ, 511, 1025), Expect::Ok),
            case("the last byte", of(READ, SIZE - 1, 1), Expect::Ok),
            case("FUA means nothing", of(READ, 0, 512).flags(FUA), Expect::Ok),
            case("all", of(WRITE, 0, SIZE), Expect::Ok),
            case("unaligned", of(WRITE, 4095, 3), Expect::Ok),
            case("FUA", of(WRITE, 4096, 512).flags(FUA), Expect::Ok),
            case("plain", of(FLUSH, 0, 0), Expect::Ok),
            case("plain", of(CACHE, 0, SIZE), Expect::Ok),
        ];
        if mode != Mode::Simple {
            cases.push(case("whole", of(READ, 1, 65536).flags(DF), Expect::Ok));
            cases.push(case("all", of(BLOCK_STATUS, 0, SIZE), Expect::Ok));
            let one = of(BLOCK_STATUS, 5, SIZE - 5).flags(REQ_ONE);
            cases.push(case("one", one, Expect::Ok));
        }
        run(&server, mode, cases);
    }
}

#[test]
fn a_range_beyond_the_end_is_refused_whole() {
    let server = server();
    for mode in Mode::ALL {
        let ranges = [
            ("one byte over", SIZE - 511, 512),
            ("just behind", SIZE, 1),
            ("far behind", 1 << 40, 4096),
            ("around the end of numbers", u64::MAX - 511, 512),
            ("over the end of numbers", u64::MAX, 512),
        ];
        let kinds = RANGED.into_iter().filter(|kind| served(*kind, mode));
        run(
            &server,
            mode,
            kinds.flat_map(|kind| {
                let expect = match kind {
                    WRITE | WRITE_ZEROES => Error(&[ENOSPC]),
                    _ => EINVAL_ONLY,
                };
                ranges.map(|(what, offset, length)| case(what, of(kind, offset, length), expect))
            }),
        );
    }
    assert!(
        server.contents("disk") == pattern(0, SIZE as usize),
        "a refused request changed the export"
    );
}

#[test]
fn a_length_of_zero_never_ends_the_link() {
    let server = server();
    for mode in Mode::ALL {
        let kinds = RANGED.into_iter().filter(|kind| served(*kind, mode));
        let cases = kinds.flat_map(|kind| {
            [0, SIZE - 512, SIZE].map(|offset| case("nothing", of(kind, offset, 0), EINVAL_ONLY))
        });
        run(&server, mode, cases);
    }
    assert!(server.contents("disk") == pattern(0, SIZE as usize));
}

#[test]
fn flags_that_are_unknown_or_of_another_command_are_refused() {
    let server = server();
    let foreign = [
        (READ, NO_HOLE | REQ_ONE | FAST_ZERO),
        (WRITE, NO_HOLE | DF | REQ_ONE | FAST_ZERO),
        (FLUSH, NO_HOLE | DF | REQ_ONE | FAST_ZERO),
        (TRIM, NO_HOLE | DF | REQ_ONE | FAST_ZERO),
        (CACHE, NO_HOLE | DF | REQ_ONE | FAST_ZERO),
        (WRITE_ZEROES, DF | REQ_ONE),
        (BLOCK_STATUS, NO_HOLE | DF | FAST_ZERO),
    ];
    for mode in Mode::ALL {
        let mut cases = Vec::new();
        for (kind, foreign) in foreign.into_iter().filter(|(kind, _)| served(*kind, mode)) {
            let length = if kind == FLUSH { 0 } else { 4096 };
            for bit in (0..16).map(|n| 1 << n) {
                let known_or_payload = bit == PAYLOAD_LEN && mode == Mode::Extended;
                if (foreign & bit != 0 || bit > FAST_ZERO) && !known_or_payload {
                    let request = of(kind, 0, length).flags(bit);
                    cases.push(case("a wrong flag", request, EINVAL_ONLY));
                }
            }
        }
        if mode == Mode::Simple {
            let request = of(READ, 0, 512).flags(DF);
            cases.push(case("DF without structured replies", request, EINVAL_ONLY));
        }
        run(&server, mode, cases);
    }
    assert!(server.contents("disk") == pattern(0, SIZE as usize));
}

#[test]
fn unknown_commands_are_refused_and_skipped() {
    let server = server();
    for mode in Mode::ALL {
        let kinds = [8, 9, 0x7fff, 0x8000, 0xffff];
        let mut cases = Vec::from(kinds.map(|kind| case("unknown", of(kind, 0, 512), EINVAL_ONLY)));
        if mode == Mode::Simple {
            cases.push(case("no status", of(BLOCK_STATUS, 0, 512), EINVAL_ONLY));
        }
        if mode == Mode::Extended {
            // Here every command can carry a payload, so it can be skipped and the stream followed.
            for kind in [READ, TRIM, CACHE, WRITE_ZEROES, FLUSH, 9] {
                let request = Request {
                    payload: vec![0x25; 512],
                    ..of(kind, 0, 512).flags(PAYLOAD_LEN)
                };
                cases.push(case("a payload that isn't its own", request, EINVAL_ONLY));
            }
        }
        run(&server, mode, cases);
    }
    assert!(server.contents("disk") == pattern(0, SIZE as usize));
}

/// As qemu 10.0 sends them.
#[test]
fn an_extended_write_without_the_payload_flag_has_one_all_the_same() {
    let server = server();
    let mut peer = server.mapping_link("disk", Mode::Extended);
    let bytes = Request::write(0, vec![0x77; 512])
        .cookie(77)
        .encode_as_is(Mode::Extended);
    peer.send(&bytes).unwrap();
    let answer = peer.answer().unwrap();
    assert_eq!((answer.cookie, answer.error), (77, 0));
    assert!(peer.read(0, 512).unwrap() == [0x77; 512]);
    goes_on(&mut peer, "no payload flag");
}

#[test]
fn more_than_the_largest_payload_is_refused() {
    let server = Server::start(Setup::new().sparse("disk", 256 << 20));
    for mode in Mode::ALL {
        let mut peer = server.link("disk", mode);
        let answer = peer.call(Request::new(READ, 0, MAX_PAYLOAD + 1)).unwrap();
        assert!([EINVAL, EOVERFLOW].contains(&answer.error), "{answer:?}");
        peer.write(0, &vec![0x11; MAX_PAYLOAD as usize]).unwrap();
        assert!(peer.read(0, MAX_PAYLOAD).unwrap() == vec![0x11; MAX_PAYLOAD as usize]);
        let over = Request::write(0, vec![0xee; MAX_PAYLOAD as usize + 1]);
        match peer.call(over) {
            Ok(answer) => assert_eq!(answer.error, EINVAL, "{mode:?}"),
            Err(error) => assert!(error.is_closed(), "{mode:?}: {error}"),
        }
        let mut peer = server.link("disk", mode);
        assert!(
            peer.read(0, 4096).unwrap() == [0x11; 4096],
            "{mode:?}: it was written"
        );
        // Says gigabytes and sends none: nothing may be kept ready for them.
        for length in [u64::from(u32::MAX), 1 << 40, u64::MAX] {
            let mut peer = server.link("disk", mode);
            let request = Request {
                length,
                ..Request::new(WRITE, 0, 0)
            };
            peer.send(&request.encode(mode)).unwrap();
            if mode == Mode::Extended || length == u64::from(u32::MAX) {
                assert!(peer.is_closed_by_server(), "{mode:?}, {length}");
            }
        }
    }
}

#[test]
fn a_wrong_magic_number_ends_the_link_and_only_that() {
    let server = server();
    for mode in Mode::ALL {
        let mut other = server.link("disk", mode);
        let right = of(READ, 0, 512).encode(mode);
        let foreign = match mode {
            Mode::Extended => of(READ, 0, 512).encode(Mode::Simple),
            _ => of(READ, 0, 512).encode(Mode::Extended),
        };
        let mut wrong = vec![
            foreign,
            vec![0; 32],
            vec![0xff; 32],
            b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n.....".to_vec(),
        ];
        for bit in 0..32 {
            let mut bytes = right.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            wrong.push(bytes);
        }
        for bytes in wrong {
            let mut peer = server.link("disk", mode);
            // What was right before is answered first.
            peer.expect(&of(READ, 512, 512).cookie(5));
            let before = of(READ, 512, 512).cookie(5).encode(mode);
            peer.send(&[before, bytes.clone()].concat()).unwrap();
            match peer.answer() {
                Ok(answer) => {
                    assert!(answer.data == pattern(512, 512), "{bytes:x?}");
                    assert!(peer.is_closed_by_server(), "{mode:?}: {bytes:x?}");
                }
                Err(error) => assert!(error.is_closed(), "{mode:?}: {bytes:x?}: {error}"),
            }
        }
        goes_on(&mut other, "another link's wrong magic");
    }
}

#[test]
fn zeroes_are_written_with_and_without_holes() {
    let server = server();
    for mode in Mode::ALL {
        for flags in [
            0,
            NO_HOLE,
            FUA,
            FAST_ZERO,
            NO_HOLE | FAST_ZERO,
            NO_HOLE | FUA,
        ] {
            let mut peer = server.link("disk", mode);
            peer.write(0, &pattern(0, 65536)).unwrap();
            let (offset, length) = (4097, 20_001);
            let request = Request::new(WRITE_ZEROES, offset, length).flags(flags);
            let answer = peer.call(request).unwrap();
            let mut right = pattern(0, 65536);
            match answer.error {
                0 => right[offset as usize..][..length as usize].fill(0),
                ENOTSUP => assert!(flags & FAST_ZERO != 0, "only a fast one may be refused"),
                other => panic!("{flags:#x}: {}", errno_name(other)),
            }
            assert!(peer.read(0, 65536).unwrap() == right, "{mode:?} {flags:#x}");
        }
    }
}

#[test]
fn trim_makes_real_holes_and_no_hole_fills_them() {
    let server = server();
    let mut peer = server.mapping_link("disk", Mode::Structured);
    peer.write(0, &pattern(0, SIZE as usize)).unwrap();
    peer.flush().unwrap();
    let full = server.blocks("disk");
    let trimmed = Request::new(TRIM, 65536, 4 * 65536);
    peer.call(trimmed).unwrap().ok().unwrap();
    assert!(
        server.blocks("disk") <= full - 4 * 65536 / 512,
        "no hole was made"
    );
    assert_eq!(status(&mut peer, 65536, 4 * 65536), [(4 * 65536, 3)]);
    assert!(
        peer.read(65536, 4 * 65536)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );

    let kept = Request::new(WRITE_ZEROES, 65536, 4 * 65536).flags(NO_HOLE);
    peer.call(kept).unwrap().ok().unwrap();
    assert!(server.blocks("disk") >= full, "the hole wasn't filled");
    // Space that is reserved and not written yet looks like a hole from outside; that it is zero is certain.
    let runs = status(&mut peer, 65536, 4 * 65536);
    assert!(
        runs.iter().all(|(_, flags)| [0, 2, 3].contains(flags)),
        "{runs:?}"
    );
    assert!(
        peer.read(65536, 4 * 65536)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

/// The runs of base:allocation, cut at the end of the request.
fn status(peer: &mut Peer, offset: u64, length: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = offset;
    while at < offset + length {
        let answer = peer.call(Request::new(BLOCK_STATUS, at, offset + length - at));
        let answer = answer.unwrap().ok().unwrap();
        let [Chunk::Status(_, some)] = &answer.chunks[..] else {
            panic!("{answer:?}");
        };
        assert!(!some.is_empty());
        for (run, flags) in some {
            assert!(*run > 0);
            let run = (*run).min(offset + length - at);
            at += run;
            match runs.last_mut() {
                Some((before, same)) if same == flags => *before += run,
                _ => runs.push((run, *flags)),
            }
        }
    }
    runs
}

#[test]
fn block_status_tells_the_files_real_holes() {
    const MIB: u64 = 1 << 20;
    // Longer than 32 bits, so that extended lengths are needed.
    let size = 6 << 30;
    let data = [(MIB, 64 << 10), (5 * MIB, 4096), (size - MIB, MIB)];
    let server = Server::start(Setup::new().sparse("disk", size));
    server.write_file("disk", &data);
    let mut right = Vec::new();
    let mut at = 0;
    for (offset, length) in data {
        right.extend([(offset - at, 3), (length, 0)]);
        at = offset + length;
    }
    let mut peer = server.mapping_link("disk", Mode::Extended);
    assert_eq!(status(&mut peer, 0, size), right);
    let one = Request::new(BLOCK_STATUS, 0, size).flags(REQ_ONE);
    let answer = peer.call(one).unwrap().ok().unwrap();
    let [Chunk::Status(_, runs)] = &answer.chunks[..] else {
        panic!("{answer:?}");
    };
    assert_eq!(runs[..], [(MIB, 3)], "one run, and no longer than asked");

    let mut peer = server.mapping_link("disk", Mode::Structured);
    assert_eq!(status(&mut peer, 0, 2 << 30)[..4], right[..4]);
    let inside = Request::new(BLOCK_STATUS, MIB + 100, 1000).flags(REQ_ONE);
    let answer = peer.call(inside).unwrap().ok().unwrap();
    assert!(
        matches!(&answer.chunks[..], [Chunk::Status(_, runs)] if runs[..] == [(1000, 0)]),
        "{answer:?}"
    );
}

#[test]
fn lengths_over_four_gibibytes_are_whole_in_extended_mode() {
    let size = 6 << 30;
    let server = Server::start(Setup::new().sparse("disk", size));
    server.write_file("disk", &[(1 << 20, 4096), (5 << 30, 4096)]);
    let mut peer = server.link("disk", Mode::Extended);
    for kind in [CACHE, TRIM] {
        peer.call(Request::new(kind, 0, size))
            .unwrap()
            .ok()
            .unwrap();
    }
    assert!(
        peer.read(5 << 30, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    server.write_file("disk", &[(1 << 20, 4096), (5 << 30, 4096)]);
    peer.call(Request::new(WRITE_ZEROES, 0, size))
        .unwrap()
        .ok()
        .unwrap();
    assert!(
        peer.read(1 << 20, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    assert!(
        peer.read(5 << 30, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn df_is_answered_in_one_piece() {
    let server = Server::start(Setup::new().sparse("disk", 1 << 20));
    server.write_file("disk", &[(65536, 4096)]);
    for mode in [Mode::Structured, Mode::Extended] {
        let mut peer = server.link("disk", mode);
        let answer = peer.call(Request::new(READ, 0, 1 << 20).flags(DF)).unwrap();
        let content = answer
            .chunks
            .iter()
            .filter(|chunk| matches!(chunk, Chunk::Data(..) | Chunk::Hole(..)));
        assert_eq!(content.count(), 1, "{mode:?}");
        assert!(answer.data[65536..69632] == pattern(65536, 4096));
        assert!(answer.data[..65536].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_read_only_export_refuses_whatever_changes_it() {
    let server = Server::start(Setup::new().image("disk", SIZE).read_only());
    for mode in Mode::ALL {
        let mut peer = server.link("disk", mode);
        for kind in [WRITE, TRIM, WRITE_ZEROES] {
            for flags in [0, FUA] {
                let answer = peer.call(of(kind, 0, 4096).flags(flags)).unwrap();
                assert_eq!(answer.error, EPERM, "{kind} {mode:?}");
            }
        }
        assert!(peer.read(0, 4096).unwrap() == pattern(0, 4096));
        peer.call(of(FLUSH, 0, 0)).unwrap();
    }
    let told = server.hello().go("disk").unwrap();
    assert!(told.has(READ_ONLY));
    assert!(server.contents("disk") == pattern(0, SIZE as usize));
}
