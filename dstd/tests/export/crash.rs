//! kill -9 under load: what was acknowledged is there after a restart, and the server says that it is the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdpeer::{Mode, Peer, Request, Session};

use crate::support::{Process, Setup, within};

const BLOCK: u64 = 4096;
const WRITERS: u64 = 4;
const BLOCKS: u64 = 256;
const DEPTH: usize = 16;

/// What one writer knows of its blocks: the last number acknowledged, and the one under way.
#[derive(Debug, Default)]
struct Known {
    acknowledged: HashMap<u64, u64>,
    under_way: HashMap<u64, u64>,
}

fn block(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat((BLOCK / 8) as usize)
}

/// Writes numbers until the server is gone; never two at once to one block.
fn write_on(mut peer: Peer, writer: u64, total: &AtomicU64) -> Known {
    let mut known = Known::default();
    let mut cookies = HashMap::new();
    let mut number = 0;
    loop {
        while cookies.len() < DEPTH {
            number += 1;
            // A step that shares no factor with the count visits all blocks before any again.
            let place = number * 37 % BLOCKS;
            let at = (writer * BLOCKS + place) * BLOCK;
            let Ok(cookie) = peer.submit(Request::write(at, block(number))) else {
                return known;
            };
            known.under_way.insert(place, number);
            cookies.insert(cookie, place);
        }
        let Ok(answer) = peer.answer() else {
            return known;
        };
        assert_eq!(answer.error, 0);
        let place = cookies.remove(&answer.cookie).unwrap();
        let number = known.under_way.remove(&place).unwrap();
        known.acknowledged.insert(place, number);
        total.fetch_add(1, Ordering::Relaxed);
    }
}

fn verify(image: &[u8], writer: u64, known: &Known) {
    for place in 0..BLOCKS {
        let at = ((writer * BLOCKS + place) * BLOCK) as usize;
        let acknowledged = known.acknowledged.get(&place).copied().unwrap_or(0);
        let under_way = known.under_way.get(&place).copied();
        for word in image[at..at + BLOCK as usize].chunks(8) {
            let found = word.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            assert!(
                found == acknowledged || Some(found) == under_way,
                "block {place} of writer {writer} holds {found}: acknowledged {acknowledged}, under way {under_way:?}"
            );
        }
    }
}

#[test]
fn acknowledged_writes_survive_kill_9_under_load() {
    let size = WRITERS * BLOCKS * BLOCK;
    let mut server = Process::start(Setup::new().sparse("disk", size));
    let ask = Session {
        identify_only: true,
        export: "disk".to_owned(),
        ..Session::default()
    };
    let before = server.hello().session(&ask).unwrap();
    for round in 0..3 {
        let total = AtomicU64::new(0);
        server.fill("disk", &vec![0; size as usize]);
        let known: Vec<Known> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let mode = Mode::ALL[writer as usize % 3];
                    let peer = match writer % 2 {
                        0 => server.link("disk", mode),
                        _ => server.link_at(&server.tcp(), "disk", mode),
                    };
                    let total = &total;
                    scope.spawn(move || write_on(peer, writer, total))
                })
                .collect();
            within("some thousand writes", || {
                total.load(Ordering::Relaxed) > 5000 * (round + 1)
            });
            server.kill();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        server = server.restart();
        let image = server.link("disk", Mode::Simple).read(0, size).unwrap();
        for (writer, known) in known.iter().enumerate() {
            verify(&image, writer as u64, known);
        }
        assert!(server.contents("disk") == image);
        let after = server.hello().session(&ask).unwrap();
        assert_eq!(after.identity, before.identity);
        // The page cache is the kernel's: a killed process loses nothing, so clients need not be told of a loss.
        assert_eq!(after.incarnation, before.incarnation);
        server.link("disk", Mode::Simple).flush().unwrap();
    }
}
