//! Links under stress: stalled storage, cuts, slow readers, failing flushes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::super::request::*;
use super::peer::*;
use crate::export::backend::{FaultKind, FaultPoint, FaultScript, Faults};
use crate::export::link::{End, ReplyMode};

const MIB: usize = 1 << 20;
const ALL: std::ops::Range<u64> = 0..u64::MAX;

fn faulty(engine: super::super::Engine, content: &[u8]) -> (Server, Arc<FaultScript>) {
    let script = FaultScript::new();
    let faults = Arc::clone(&script);
    let server = Server::with(engine, content, |backend| backend.with_faults(faults));
    (server, script)
}

#[test]
fn a_link_ends_only_after_its_stalled_write_whatever_happened_to_it() {
    for engine in ENGINES {
        for how in ["cut", "half-close", "disc", "vanish"] {
            let (server, script) = faulty(engine, &pattern(MIB, 0));
            let mut other = server.link(ReplyMode::Simple);
            let mut peer = server.link(ReplyMode::Simple);
            let hold = script.hold(FaultKind::Write, 0..4096);
            peer.send_write(0, 0, &[1; 4096]);
            assert!(hold.wait_reached(1, PATIENCE));
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            drop(b);
            let gate = Arc::clone(&peer.gate);
            match how {
                "cut" => gate.cut(),
                "half-close" => peer.half_close(),
                "disc" => peer.disconnect(),
                _ => drop(std::mem::replace(&mut peer.stream, a)),
            }
            // The other link is served meanwhile, by the same worker.
            for n in 0..20 {
                assert_eq!(other.read(8192, 4096), pattern(4096, 8192), "{n}");
                assert_eq!(gate.ended(), None, "{how}: a write of it still runs");
            }
            assert_eq!(server.content()[0..4096], pattern(4096, 0));
            hold.release();
            let expected = match how {
                "cut" => End::Cut,
                "disc" => End::Disconnected,
                _ => End::Lost,
            };
            assert_eq!(wait_end(&gate), expected, "{how}");
            assert_eq!(
                server.content()[0..4096],
                [1; 4096],
                "{how}: it was written before"
            );
            if matches!(how, "half-close" | "disc") {
                assert_eq!(peer.reply().errno, 0, "{how}: and answered");
                assert_eq!(peer.try_reply(), None);
            }
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn no_request_starts_after_a_cut() {
    for engine in ENGINES {
        let (server, script) = faulty(engine, &pattern(MIB, 0));
        let mut peer = server.link(ReplyMode::Simple);
        let hold = script.hold(FaultKind::Write, 0..65_536);
        // As many as may run at a time stall; those behind them wait in the server.
        for n in 0..40u64 {
            peer.send_write(0, n * 512, &[1; 512]);
        }
        let running = super::super::link::JOBS;
        assert!(hold.wait_reached(running as u32, PATIENCE));
        peer.gate.cut();
        hold.release();
        assert_eq!(peer.end(), End::Cut);
        let content = server.content();
        let written = (0..40).filter(|n| content[n * 512] == 1).count();
        assert!(written <= running, "{written} writes, {running} had begun");
        server.assert_no_memory_held();
    }
}

#[test]
fn a_slow_reader_keeps_memory_bounded() {
    let limit = 34 * MIB;
    for engine in ENGINES {
        for (mode, len) in [
            (ReplyMode::Simple, 4096),
            (ReplyMode::Simple, MIB as u64),
            (ReplyMode::Structured, MIB as u64),
        ] {
            let server = Server::new(engine, &pattern(MIB, 0));
            let mut peer = server.link_on(Terms {
                in_flight: limit,
                ..Terms::of(mode)
            });
            let count = (limit as u64 + 16 * MIB as u64).div_ceil(len);
            let mut bytes = Vec::new();
            for _ in 0..count {
                bytes.extend(peer.encode(CMD_READ, 0, 0, len).1);
            }
            let mut writer = peer.stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                std::io::Write::write_all(&mut writer, &bytes).unwrap();
            });
            let mut other = server.link(ReplyMode::Simple);
            let expected = pattern(len as usize, 0);
            // What the socket doesn't take stops the link, long before its limit.
            let enough = 65_536;
            let deadline = Instant::now() + PATIENCE;
            while server.workers.memory() < enough {
                assert!(
                    Instant::now() < deadline,
                    "{mode:?}: the limit isn't reached"
                );
                other.read(0, 512);
            }
            // It grows until that stops it: then nothing changes over many rounds of another link.
            let (mut most, mut same) = (0, 0);
            while same < 200 {
                assert_eq!(other.read(0, 512), expected[..512]);
                let now = server.workers.memory();
                same = if now > most { 0 } else { same + 1 };
                most = most.max(now);
            }
            assert!(most < 4 * MIB, "{most} bytes held for one link");
            for _ in 0..count {
                let reply = peer.reply();
                assert!(reply.errno == 0 && reply.data == expected);
            }
            sender.join().unwrap();
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn a_link_that_has_much_to_do_yields_to_others() {
    for engine in ENGINES {
        let server = Server::in_memory(engine, &pattern(MIB, 0));
        let mut peer = server.link(ReplyMode::Simple);
        peer.read(0, 512);
        let before = server.workers.rounds();
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            bytes.extend(peer.encode(CMD_READ, 0, 0, 512).1);
        }
        std::io::Write::write_all(&mut peer.stream, &bytes).unwrap();
        for _ in 0..1000 {
            assert_eq!(peer.reply().errno, 0);
        }
        // All of it fits four receives; between any two turns the others have theirs.
        let rounds = server.workers.rounds() - before;
        assert!(rounds >= 1000 / 64, "{rounds} rounds for 1000 requests");
    }
}

#[test]
fn a_cut_frees_what_a_client_never_reads() {
    for engine in ENGINES {
        for len in [4096, MIB as u64] {
            let server = Server::new(engine, &pattern(MIB, 0));
            let mut peer = server.link(ReplyMode::Simple);
            for _ in 0..200 {
                peer.send(CMD_READ, 0, 0, len);
            }
            // Some of it is in the socket, the rest waits in the server.
            let mut first = [0; 16];
            std::io::Read::read_exact(&mut peer.stream, &mut first).unwrap();
            peer.gate.cut();
            assert_eq!(peer.end(), End::Cut);
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn many_links_are_served_side_by_side() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        let mut peers: Vec<_> = (0..100).map(|n| server.link(MODES[n % 3])).collect();
        for round in 0..3u64 {
            let ask = |peer: &mut Peer| peer.send(CMD_READ, 0, round * 512, 4096);
            let cookies: Vec<u64> = peers.iter_mut().map(ask).collect();
            for (peer, cookie) in peers.iter_mut().zip(cookies) {
                let reply = peer.reply();
                assert_eq!((reply.cookie, reply.errno), (cookie, 0));
                assert!(reply.data == pattern(4096, round * 512));
            }
        }
        assert_eq!(server.workers.links(), 100);
        for mut peer in peers {
            peer.disconnect();
            assert_eq!(peer.end(), End::Disconnected);
        }
        server.assert_no_memory_held();
    }
}

#[test]
fn a_failed_flush_is_never_forgotten() {
    for engine in ENGINES {
        let (server, script) = faulty(engine, &pattern(MIB, 0));
        let mut peer = server.link(ReplyMode::Simple);
        assert_eq!(peer.write(FLAG_FUA, 0, &[1; 512]).errno, 0);
        script.fail(FaultKind::Flush, ALL, 5, 1);
        assert_eq!(peer.write(FLAG_FUA, 0, &[2; 512]).errno, EIO);
        assert_eq!(peer.ask(CMD_FLUSH, 0, 0, 0).errno, EIO);
        let mut other = server.link(ReplyMode::Structured);
        assert_eq!(other.ask(CMD_FLUSH, 0, 0, 0).errno, EIO);
        assert_eq!(other.write(FLAG_FUA, 0, &[3; 300_000]).errno, EIO);
        assert_eq!(
            other.write(0, 0, &[4; 512]).errno,
            0,
            "without a promise it goes on"
        );
        assert_eq!(other.read(0, 512), [4; 512]);
    }
}

/// Counts flushes before it lets the script have them.
#[derive(Debug, Default)]
struct Flushes {
    count: AtomicU32,
    script: Arc<FaultScript>,
}

impl Faults for Flushes {
    fn before(&self, point: &FaultPoint) -> std::io::Result<()> {
        if point.kind == FaultKind::Flush {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        self.script.before(point)
    }
}

#[test]
fn flushes_and_fua_writes_that_wait_share_the_next_flush() {
    for engine in ENGINES {
        let faults = Arc::new(Flushes::default());
        let given = Arc::clone(&faults);
        let server = Server::with(engine, &pattern(MIB, 0), |b| b.with_faults(given));
        let mut peer = server.link(ReplyMode::Simple);
        let hold = faults.script.hold(FaultKind::Flush, ALL);
        peer.send(CMD_FLUSH, 0, 0, 0);
        assert!(hold.wait_reached(1, PATIENCE));
        let mut cookies: Vec<u64> = (0..20).map(|_| peer.send(CMD_FLUSH, 0, 0, 0)).collect();
        cookies.extend((0..8).map(|n| peer.send_write(FLAG_FUA, n * 512, &[1; 512])));
        // A write's answer tells that those before it are done; with FUA they wait for the flush.
        for n in 0..8 {
            let plain = peer.send_write(0, 65_536 + n * 512, &[1; 512]);
            assert_eq!(peer.reply().cookie, plain);
        }
        let settled = |server: &Server| server.content()[..8 * 512] == [1; 8 * 512];
        while !settled(&server) {
            std::thread::yield_now();
        }
        peer.read(0, 512);
        hold.release();
        assert_eq!(peer.reply().cookie, 1, "the first had a flush of its own");
        for _ in 0..28 {
            let reply = peer.reply();
            assert_eq!(reply.errno, 0);
            cookies.retain(|cookie| *cookie != reply.cookie);
        }
        assert!(cookies.is_empty());
        let count = faults.count.load(Ordering::SeqCst);
        assert!((2..=3).contains(&count), "{count} flushes for 29 requests");
    }
}

#[test]
fn fua_leads_to_a_flush_wherever_the_data_went() {
    for engine in ENGINES {
        let servers = [
            Server::in_memory(engine, &pattern(MIB, 0)),
            Server::new(engine, &pattern(MIB, 0)),
        ];
        for server in servers {
            let mut peer = server.link(ReplyMode::Simple);
            let mut expected = 0;
            for (offset, len) in [(0, 4096), (1, 100), (4096, 300_000), (7, 300_000)] {
                assert_eq!(peer.write(0, offset, &pattern(len, 1)).errno, 0);
                assert_eq!(server.workers.flushes(), expected, "without FUA");
                assert_eq!(peer.write(FLAG_FUA, offset, &pattern(len, 1)).errno, 0);
                expected += 1;
                assert_eq!(server.workers.flushes(), expected, "{offset}+{len}");
            }
            let zero = peer.ask(CMD_WRITE_ZEROES, FLAG_FUA, 0, 4096);
            assert_eq!((zero.errno, server.workers.flushes()), (0, expected + 1));
        }
    }
}

#[test]
fn reads_that_are_not_cached_come_from_the_disk() {
    for engine in ENGINES {
        for mode in MODES {
            let content = pattern(2 * MIB, 0);
            let server = Server::new(engine, &content);
            let mut peer = server.link(mode);
            for (offset, len) in [(4096, 4096), (513, 100_000), (1, 2 * MIB - 1)] {
                let file = std::fs::File::open(&server.path).unwrap();
                file.sync_all().unwrap();
                // Where it works (not on tmpfs) the reads below must wait for the disk.
                let all = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&file, 0, 0, all).unwrap();
                let data = peer.read(offset, len as u64);
                assert!(data == content[offset as usize..][..len], "{offset}+{len}");
            }
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn a_write_refused_at_once_is_an_error_also_in_its_middle() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::in_memory(engine, &pattern(MIB, 0));
            let mut peer = server.link(mode);
            assert_eq!(peer.write(0, 0, &[1; 300_000]).errno, 0);
            server.seal();
            assert_eq!(peer.write(0, 0, &[2; 4096]).errno, EPERM);
            assert_eq!(peer.write(FLAG_FUA, 0, &[2; 300_000]).errno, EPERM);
            assert_eq!(peer.read(0, 300_000), [1; 300_000]);
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn errors_of_the_storage_reach_the_client() {
    for engine in ENGINES {
        for mode in MODES {
            let (server, script) = faulty(engine, &pattern(4 * MIB, 0));
            let mut peer = server.link(mode);
            for (errno, expected) in [(5, EIO), (28, ENOSPC), (30, EPERM), (12, ENOMEM)] {
                script.fail(FaultKind::Read, 700_000..700_001, errno, 2);
                assert_eq!(peer.ask(CMD_READ, 0, 699_000, 4096).errno, expected);
                let reply = peer.ask(CMD_READ, 0, 0, 3 * MIB as u64);
                assert_eq!(reply.errno, expected, "in the middle of a long read");
                script.fail(FaultKind::Write, 700_000..700_001, errno, 2);
                assert_eq!(peer.write(0, 699_000, &[1; 4096]).errno, expected);
                let reply = peer.write(FLAG_FUA, 1, &pattern(3 * MIB, 5));
                assert_eq!(reply.errno, expected, "in the middle of a long write");
                script.fail(FaultKind::Zero, ALL, errno, 1);
                let reply = peer.ask(CMD_WRITE_ZEROES, 0, 0, 4096);
                assert_eq!(reply.errno, expected);
            }
            // ENOTSUP only for those who asked for it.
            script.fail(FaultKind::Zero, ALL, 95, 2);
            assert_eq!(
                peer.ask(CMD_WRITE_ZEROES, FLAG_FAST_ZERO, 0, 4096).errno,
                ENOTSUP
            );
            assert_eq!(peer.ask(CMD_WRITE_ZEROES, 0, 0, 4096).errno, EINVAL);
            let content = server.content();
            assert!(peer.read(0, 4 * MIB as u64) == content, "the link lives");
            server.assert_no_memory_held();
        }
    }
}

/// What failed is charged until the request ends; it must end all the same.
#[test]
fn a_long_read_of_which_all_fails_ends_also_with_the_smallest_limit() {
    for engine in ENGINES {
        for mode in MODES {
            let (server, script) = faulty(engine, &pattern(4 * MIB, 0));
            let mut peer = server.link_on(Terms {
                in_flight: 1,
                ..Terms::of(mode)
            });
            script.fail(FaultKind::Read, ALL, 5, 16);
            assert_eq!(peer.ask(CMD_READ, 0, 0, 4 * MIB as u64).errno, EIO);
            script.fail(FaultKind::Read, ALL, 5, 0);
            while peer.ask(CMD_READ, 0, 0, 512).errno != 0 {}
            assert_eq!(peer.read(0, 3 * MIB as u64), pattern(3 * MIB, 0));
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error_not_silence() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(MIB, 0));
            let file = std::fs::File::options()
                .write(true)
                .open(&server.path)
                .unwrap();
            file.set_len(300_000).unwrap();
            let mut peer = server.link(mode);
            assert_eq!(peer.ask(CMD_READ, 0, 299_000, 4096).errno, EIO);
            assert_eq!(peer.ask(CMD_READ, 0, 0, MIB as u64).errno, EIO);
            assert_eq!(peer.read(0, 300_000), pattern(300_000, 0));
        }
    }
}

#[test]
fn stop_cuts_all_and_later_links_end_at_once() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        let peers: Vec<_> = (0..5).map(|_| server.link(ReplyMode::Simple)).collect();
        server.workers.stop();
        for peer in &peers {
            assert_eq!(peer.gate.ended(), Some(End::Cut));
        }
        assert_eq!(server.link(ReplyMode::Simple).end(), End::Cut);
        server.assert_no_memory_held();
    }
}

#[test]
fn an_idle_worker_sleeps() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        let mut peer = server.link(ReplyMode::Simple);
        peer.read(0, 4096);
        // Not a synchronisation: time must pass to see that nothing happens in it. The first rounds belong to
        // the read.
        std::thread::sleep(Duration::from_millis(100));
        let before = server.workers.rounds();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(server.workers.rounds(), before, "{engine}");
    }
}
