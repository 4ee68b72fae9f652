//! Every command, its success and its errors, in all reply modes.

use std::io::Write;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::super::request::*;
use super::peer::*;
use crate::export::link::{End, ReplyMode, WriterRole};

const MIB: usize = 1 << 20;

/// Runs a test for each engine and mode.
fn each(test: impl Fn(&Server, Peer)) {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(4 * MIB, 0));
            test(&server, server.link(mode));
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn reads_of_all_sizes_are_the_files_bytes() {
    each(|server, mut peer| {
        let content = server.content();
        for (offset, len) in [
            (0, 1),
            (4095, 2),
            (512, 4096),
            (7, 65_536),
            (1, 262_144),
            (3, 262_145),
            (0, 4 * MIB),
        ] {
            let data = peer.read(offset as u64, len as u64);
            assert!(
                data == content[offset..offset + len],
                "{offset}+{len} in {:?}",
                peer.mode
            );
        }
    });
}

/// What `requests` are answered when they come in one piece.
fn at_once(peer: &mut Peer, requests: &[(u16, u64, u64)]) -> Vec<Reply> {
    let mut bytes = Vec::new();
    for (command, offset, len) in requests {
        bytes.extend(peer.encode(*command, 0, *offset, *len).1);
        if *command == CMD_WRITE {
            bytes.extend(vec![7; *len as usize]);
        }
    }
    peer.stream.write_all(&bytes).unwrap();
    requests.iter().map(|_| peer.reply()).collect()
}

fn runs_are_right(peer: &mut Peer, content: &[u8]) {
    // 20 of one run, of which 16 are the most; then none that goes on; then one that does, and one that is too long.
    let mut requests: Vec<_> = (0..20).map(|n| (CMD_READ, 4096 * n, 4096)).collect();
    requests.extend([(CMD_READ, 5, 3), (CMD_READ, 7, 1), (CMD_READ, 8, 2)]);
    requests.extend([(CMD_READ, 0, 40_000), (CMD_READ, 40_000, 40_000)]);
    let mut replies = at_once(peer, &requests);
    replies.sort_by_key(|reply| reply.cookie);
    for ((_, offset, len), reply) in requests.iter().zip(replies) {
        let expected = &content[*offset as usize..][..*len as usize];
        assert_eq!(reply.errno, 0, "{offset}+{len}");
        assert!(reply.data == expected, "{offset}+{len} in {:?}", peer.mode);
    }
}

#[test]
fn reads_that_follow_each_other_are_done_together_and_answered_each() {
    for engine in ENGINES {
        for mode in MODES {
            let content = pattern(MIB, 0);
            let server = Server::in_memory(engine, &content);
            let mut peer = server.link(mode);
            runs_are_right(&mut peer, &content);
            assert_eq!(server.workers.gathered(), 15 + 3 + 1);
            server.assert_no_memory_held();
            // From a disk, where some of a run may be cached and some not.
            let server = Server::new(engine, &content);
            let file = std::fs::File::open(&server.path).unwrap();
            file.sync_all().unwrap();
            for (offset, length) in [(0, 0), (0, 32 << 10), (20 << 10, 0)] {
                let forget = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                posix_fadvise(&file, offset, length, forget).unwrap();
                runs_are_right(&mut server.link(mode), &content);
            }
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn a_run_of_reads_ends_at_whatever_is_no_such_read() {
    for engine in ENGINES {
        for mode in MODES {
            let content = pattern(MIB, 0);
            let server = Server::in_memory(engine, &content);
            let mut peer = server.link(mode);
            let end = MIB as u64;
            let requests = [
                (CMD_READ, end - 8, 4),
                (CMD_READ, end - 4, 4),
                (CMD_READ, end, 4),
                (CMD_READ, 0, 4),
                (CMD_WRITE, 4, 4),
                (CMD_READ, 4, 4),
                (CMD_TRIM, 8, 4),
            ];
            let mut replies = at_once(&mut peer, &requests);
            replies.sort_by_key(|reply| reply.cookie);
            let errors: Vec<_> = replies.iter().map(|reply| reply.errno).collect();
            assert_eq!(errors, [0, 0, EINVAL, 0, 0, 0, 0]);
            assert!(replies[0].data == content[MIB - 8..MIB - 4]);
            assert!(replies[1].data == content[MIB - 4..]);
            assert!(replies[3].data == content[..4]);
            assert_eq!(replies[5].data, [7; 4]);
            assert_eq!(server.workers.gathered(), 1);
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn df_gives_one_chunk_and_without_it_long_reads_come_in_several() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(4 * MIB, 0));
        for mode in [ReplyMode::Structured, ReplyMode::Extended] {
            let mut peer = server.link(mode);
            let whole = peer.ask(CMD_READ, FLAG_DF, 5, 2 * MIB as u64);
            assert_eq!((whole.errno, whole.chunks), (0, 1));
            assert!(whole.data == server.content()[5..5 + 2 * MIB]);
            let parts = peer.ask(CMD_READ, 0, 5, 2 * MIB as u64);
            assert_eq!((parts.errno, parts.chunks), (0, 8));
            assert!(parts.data == whole.data);
        }
    }
}

#[test]
fn writes_of_all_sizes_reach_the_file() {
    each(|server, mut peer| {
        let mut expected = server.content();
        for (n, (offset, len)) in [
            (0, 1),
            (4095, 2),
            (512, 4096),
            (7, 65_536),
            (9, 65_537),
            (1, 262_144),
            (3, 300_000),
            (4096, 3 * MIB),
            (1, 4 * MIB - 1),
        ]
        .into_iter()
        .enumerate()
        {
            let data = pattern(len, n as u64 + 100);
            let reply = peer.write(if n % 2 == 0 { FLAG_FUA } else { 0 }, offset as u64, &data);
            assert_eq!(reply.errno, 0, "{offset}+{len}: {}", reply.text);
            expected[offset..offset + len].copy_from_slice(&data);
            assert!(
                server.content() == expected,
                "{offset}+{len} in {:?}",
                peer.mode
            );
        }
    });
}

#[test]
fn trim_zeroes_and_cache_do_what_they_say() {
    each(|server, mut peer| {
        let mut expected = server.content();
        for (flags, offset) in [(0, 0), (FLAG_NO_HOLE, 8192), (FLAG_FUA, 20_000)] {
            let reply = peer.ask(CMD_WRITE_ZEROES, flags, offset, 4097);
            assert_eq!(reply.errno, 0, "{}", reply.text);
            expected[offset as usize..offset as usize + 4097].fill(0);
            assert!(server.content() == expected, "flags {flags}");
        }
        assert_eq!(peer.ask(CMD_TRIM, FLAG_FUA, 65_536, 8192).errno, 0);
        let after = server.content();
        assert!(after[..65_536] == expected[..65_536] && after[73_728..] == expected[73_728..]);
        assert_eq!(peer.ask(CMD_CACHE, 0, 0, 65_536).errno, 0);
        assert_eq!(peer.ask(CMD_FLUSH, 0, 0, 0).errno, 0);
        assert_eq!(peer.ask(CMD_FLUSH, FLAG_FUA, 0, 0).errno, 0);
    });
}

#[test]
fn block_status_covers_the_request() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        for mode in [ReplyMode::Structured, ReplyMode::Extended] {
            let mut peer = server.link(mode);
            for flags in [0, FLAG_REQ_ONE] {
                let reply = peer.ask(CMD_BLOCK_STATUS, flags, 4096, 65_536);
                assert_eq!(reply.errno, 0, "{}", reply.text);
                assert_eq!(reply.runs, [(65_536, 0)], "all of it is allocated");
            }
        }
    }
}

#[test]
fn runs_are_the_files_holes() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        let file = std::fs::File::options()
            .write(true)
            .open(&server.path)
            .unwrap();
        file.set_len(0).unwrap();
        file.set_len(MIB as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(65_536, 1), 131_072).unwrap();
        for mode in [ReplyMode::Structured, ReplyMode::Extended] {
            let mut peer = server.link(mode);
            let reply = peer.ask(CMD_BLOCK_STATUS, 0, 0, MIB as u64);
            let hole = |len| (len, 3);
            assert_eq!(reply.runs, [hole(131_072), (65_536, 0), hole(851_968)]);
            let reply = peer.ask(CMD_BLOCK_STATUS, FLAG_REQ_ONE, 4096, MIB as u64 - 4096);
            assert_eq!(reply.runs, [hole(126_976)]);
        }
    }
}

#[test]
fn errors_leave_the_link_and_the_file_as_they_were() {
    each(|server, mut peer| {
        let content = server.content();
        let size = content.len() as u64;
        assert_eq!(peer.ask(CMD_READ, 0, size - 1, 2).errno, EINVAL);
        assert_eq!(peer.ask(CMD_READ, 0, 0, 0).errno, EINVAL);
        assert_eq!(peer.ask(CMD_READ, FLAG_NO_HOLE, 0, 512).errno, EINVAL);
        assert_eq!(
            peer.ask(CMD_READ, 0, 0, 33 << 20).errno,
            EINVAL,
            "beyond the end first"
        );
        assert_eq!(peer.write(0, size - 1, &[1, 2]).errno, ENOSPC);
        assert_eq!(peer.write(FLAG_DF, 0, &[1; 100_000]).errno, EINVAL);
        assert_eq!(peer.ask(CMD_WRITE_ZEROES, 0, size, 1).errno, ENOSPC);
        assert_eq!(peer.ask(CMD_TRIM, 0, size, 1).errno, EINVAL);
        assert_eq!(peer.ask(CMD_FLUSH, 0, 1, 0).errno, EINVAL);
        assert_eq!(peer.ask(8, 0, 0, 512).errno, EINVAL);
        assert_eq!(peer.ask(999, 1 << 15, 0, 512).errno, EINVAL);
        if peer.mode != ReplyMode::Simple {
            let reply = peer.ask(CMD_READ, 0, size, 1);
            assert_eq!(reply.text, "the range ends beyond the export");
        }
        assert!(server.content() == content);
        assert_eq!(
            peer.read(0, 512),
            content[..512],
            "the stream is still in step"
        );
    });
}

#[test]
fn a_payload_too_large_is_dropped_and_refused() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(MIB, 0));
        let mut peer = server.link(ReplyMode::Simple);
        let reply = peer.write(0, 0, &vec![1; (32 << 20) + 1]);
        assert_eq!(reply.errno, EINVAL);
        assert!(server.content() == pattern(MIB, 0));
        assert_eq!(peer.read(0, 16), pattern(16, 0));
        let mut peer = server.link(ReplyMode::Extended);
        peer.send(CMD_WRITE, 0, 0, (32 << 20) + 1);
        assert_eq!(peer.try_reply(), None);
        assert_eq!(peer.end(), End::Lost);
        let mut peer = server.link(ReplyMode::Extended);
        let (cookie, mut bytes) = peer.encode(CMD_BLOCK_STATUS, FLAG_PAYLOAD_LEN, 0, 24);
        bytes.extend([0; 24]);
        peer.stream.write_all(&bytes).unwrap();
        let reply = peer.reply();
        assert_eq!((reply.cookie, reply.errno), (cookie, EINVAL));
        assert_eq!(peer.read(0, 16), pattern(16, 0), "its payload was dropped");
    }
}

#[test]
fn a_read_only_link_changes_nothing() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(MIB, 0));
            let mut peer = server.link_on(Terms {
                read_only: true,
                ..Terms::of(mode)
            });
            assert_eq!(peer.write(0, 0, &[1; 300_000]).errno, EPERM);
            assert_eq!(peer.write(0, 0, &[1; 100]).errno, EPERM);
            assert_eq!(peer.ask(CMD_TRIM, 0, 0, 4096).errno, EPERM);
            assert_eq!(peer.ask(CMD_WRITE_ZEROES, 0, 0, 4096).errno, EPERM);
            assert_eq!(peer.ask(CMD_FLUSH, 0, 0, 0).errno, 0);
            assert_eq!(peer.read(0, 100), pattern(100, 0));
            assert!(server.content() == pattern(MIB, 0));
        }
    }
}

struct Role {
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    answer: bool,
}

impl WriterRole for Role {
    fn claim(&self) -> bool {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.answer
    }
}

#[test]
fn the_writer_role_is_asked_for_once_and_only_by_writers() {
    for engine in ENGINES {
        for answer in [true, false] {
            let server = Server::new(engine, &pattern(MIB, 0));
            let asked = std::sync::Arc::default();
            let role = Role {
                asked: std::sync::Arc::clone(&asked),
                answer,
            };
            let mut peer = server.link_on(Terms {
                role: Some(Box::new(role)),
                ..Terms::of(ReplyMode::Structured)
            });
            let count = || asked.load(std::sync::atomic::Ordering::SeqCst);
            peer.read(0, 100);
            assert_eq!(peer.ask(CMD_FLUSH, 0, 0, 0).errno, 0);
            assert_eq!(peer.write(0, MIB as u64, &[1]).errno, ENOSPC);
            assert_eq!(count(), 0, "nothing was modified yet");
            let expected = if answer { 0 } else { EPERM };
            assert_eq!(peer.ask(CMD_WRITE_ZEROES, 0, 0, 4096).errno, expected);
            assert_eq!(peer.write(0, 0, &[1; 100]).errno, expected);
            assert_eq!(peer.write(0, 0, &[1; 300_000]).errno, expected);
            assert_eq!(count(), 1);
            assert_eq!(server.content()[0] == 1, answer);
        }
    }
}

#[test]
fn disc_is_answered_by_the_end_and_wrong_magic_too() {
    each(|server, mut peer| {
        let content = server.content();
        let cookie = peer.send(CMD_READ, 0, 0, 4096);
        peer.disconnect();
        let reply = peer.reply();
        assert_eq!(reply.cookie, cookie);
        assert!(reply.data == content[..4096]);
        assert_eq!(peer.try_reply(), None);
        assert_eq!(peer.end(), End::Disconnected);
        let mut peer = server.link(peer.mode);
        let cookie = peer.send(CMD_FLUSH, 0, 0, 0);
        let (_, mut bytes) = peer.encode(CMD_READ, 0, 0, 512);
        bytes[3] ^= 1;
        peer.stream.write_all(&bytes).unwrap();
        assert_eq!(
            peer.reply().cookie,
            cookie,
            "what came before it is answered"
        );
        assert_eq!(peer.try_reply(), None);
        assert_eq!(peer.end(), End::Lost);
    });
}
