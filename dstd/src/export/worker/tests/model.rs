//! Random requests against a byte array, in all modes, in whatever pieces the stream delivers.

use std::io::Write;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::pace::Way;
use super::super::request::*;
use super::peer::*;

const SIZE: usize = 1 << 20;

#[derive(Debug, Clone)]
enum Act {
    Read {
        at: usize,
        len: usize,
        df: bool,
    },
    Write {
        at: usize,
        len: usize,
        fua: bool,
        seed: u64,
    },
    Zero {
        at: usize,
        len: usize,
        keep: bool,
    },
    Flush,
    /// Beyond the end: refused, with its payload.
    Wrong {
        len: usize,
    },
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    let len = prop_oneof![1..5000usize, 60_000..70_000usize, 250_000..600_000usize];
    (0..SIZE, len).prop_map(|(at, len)| (at, len.min(SIZE - at)))
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (range(), any::<bool>()).prop_map(|((at, len), df)| Act::Read { at, len, df }),
        3 => (range(), any::<bool>(), any::<u64>())
            .prop_map(|((at, len), fua, seed)| Act::Write { at, len, fua, seed }),
        1 => (range(), any::<bool>()).prop_map(|((at, len), keep)| Act::Zero { at, len, keep }),
        1 => Just(Act::Flush),
        1 => (1..300_000usize).prop_map(|len| Act::Wrong { len }),
    ]
}

/// One request at a time: what it must answer and leave is known exactly.
fn play(server: &Server, peer: &mut Peer, model: &mut [u8], acts: &[Act]) {
    for act in acts {
        let reply = match *act {
            Act::Read { at, len, df } => {
                let simple = peer.mode == crate::export::ReplyMode::Simple;
                let flags = if df && !simple { FLAG_DF } else { 0 };
                let reply = peer.ask(CMD_READ, flags, at as u64, len as u64);
                assert!(reply.data == model[at..at + len], "{act:?}");
                reply
            }
            Act::Write { at, len, fua, seed } => {
                let data = pattern(len, seed);
                model[at..at + len].copy_from_slice(&data);
                peer.write(u16::from(fua), at as u64, &data)
            }
            Act::Zero { at, len, keep } => {
                model[at..at + len].fill(0);
                let flags = if keep { FLAG_NO_HOLE } else { 0 };
                peer.ask(CMD_WRITE_ZEROES, flags, at as u64, len as u64)
            }
            Act::Flush => peer.ask(CMD_FLUSH, 0, 0, 0),
            Act::Wrong { len } => {
                let reply = peer.write(0, (SIZE - len + 1) as u64, &vec![3; len]);
                assert_eq!(reply.errno, ENOSPC);
                continue;
            }
        };
        assert_eq!(reply.errno, 0, "{act:?}: {}", reply.text);
    }
    assert!(server.content() == model);
}

/// All at once: each act has a part of the export for itself, so the order doesn't matter.
fn flood(server: &Server, peer: &mut Peer, acts: &[Act]) {
    let share = SIZE / acts.len().max(1);
    let mut model = server.content();
    let (mut bytes, mut reads) = (Vec::new(), std::collections::HashMap::new());
    for (n, act) in acts.iter().enumerate() {
        let part = n * share;
        let fit = |len: usize| len.min(share);
        match *act {
            Act::Read { len, .. } | Act::Wrong { len } => {
                let len = fit(len);
                let (cookie, head) = peer.encode(CMD_READ, 0, part as u64, len as u64);
                reads.insert(cookie, part..part + len);
                bytes.extend(head);
            }
            Act::Write { len, fua, seed, .. } => {
                let data = pattern(fit(len), seed);
                let (_, head) =
                    peer.encode(CMD_WRITE, u16::from(fua), part as u64, data.len() as u64);
                model[part..part + data.len()].copy_from_slice(&data);
                bytes.extend(head);
                bytes.extend(data);
            }
            Act::Zero { len, .. } => {
                let (_, head) = peer.encode(CMD_WRITE_ZEROES, 0, part as u64, fit(len) as u64);
                model[part..part + fit(len)].fill(0);
                bytes.extend(head);
            }
            Act::Flush => bytes.extend(peer.encode(CMD_FLUSH, 0, 0, 0).1),
        }
    }
    let mut writer = peer.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&bytes).unwrap());
        for _ in acts {
            let reply = peer.reply();
            assert_eq!(reply.errno, 0, "{}", reply.text);
            if let Some(range) = reads.remove(&reply.cookie) {
                assert!(reply.data == model[range.clone()], "read {range:?}");
            }
        }
    });
    assert!(server.content() == model);
}

#[test]
fn random_requests_agree_with_a_byte_array() {
    for engine in ENGINES {
        for (n, mode) in MODES.into_iter().cycle().take(12).enumerate() {
            let way = [None, Some(Way::Spin), Some(Way::Nap), Some(Way::Stay)][n / 3];
            WAY.set(way);
            // A failure prints the acts that led to it, shrunk, and its seed goes to proptest-regressions.
            let config = ProptestConfig {
                cases: 6,
                ..ProptestConfig::default()
            };
            let mut runner = TestRunner::new(config);
            let acts = prop::collection::vec(act(), 1..40);
            let result = runner.run(&acts, |acts| {
                let start = pattern(SIZE, 0);
                let server = match acts.len() % 2 {
                    0 => Server::new(engine, &start),
                    _ => Server::in_memory(engine, &start),
                };
                let mut model = start;
                play(&server, &mut server.link(mode), &mut model, &acts);
                flood(&server, &mut server.link(mode), &acts);
                server.assert_no_memory_held();
                Ok(())
            });
            if let Err(error) = result {
                panic!("{engine} {mode:?} {way:?}: {error}");
            }
        }
    }
}
