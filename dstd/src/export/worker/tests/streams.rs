//! Requests as streams deliver them: together, in pieces, cut short.

use std::io::Write;

use super::super::request::*;
use super::peer::*;
use crate::export::link::{End, ReplyMode};

const MIB: usize = 1 << 20;

#[test]
fn a_thousand_requests_in_one_segment_are_all_answered() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(4 * MIB, 0));
            let mut peer = server.link(mode);
            let mut expected = server.content();
            let mut bytes = Vec::new();
            let mut reads = std::collections::HashMap::new();
            let mut cookies = std::collections::HashSet::new();
            for n in 0..1000u64 {
                let (cookie, head) = match n % 3 {
                    0 => peer.encode(CMD_READ, 0, 2 * MIB as u64 + n * 512, 512),
                    1 => peer.encode(CMD_WRITE, 0, n * 512, 512),
                    _ => peer.encode(CMD_FLUSH, 0, 0, 0),
                };
                bytes.extend(head);
                cookies.insert(cookie);
                if n % 3 == 0 {
                    reads.insert(cookie, 2 * MIB + n as usize * 512);
                }
                if n % 3 == 1 {
                    let data = pattern(512, n);
                    expected[n as usize * 512..][..512].copy_from_slice(&data);
                    bytes.extend(data);
                }
            }
            let mut writer = peer.stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || writer.write_all(&bytes).unwrap());
                for _ in 0..1000 {
                    let reply = peer.reply();
                    assert_eq!(reply.errno, 0, "{}", reply.text);
                    assert!(cookies.remove(&reply.cookie), "answered twice");
                    if let Some(at) = reads.remove(&reply.cookie) {
                        assert_eq!(reply.data, expected[at..at + 512]);
                    }
                }
            });
            assert!(server.content() == expected);
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn one_byte_at_a_time_is_as_good() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(MIB, 0));
            let mut peer = server.link(mode);
            let (first, mut bytes) = peer.encode(CMD_WRITE, FLAG_FUA, 3, 50);
            bytes.extend(pattern(50, 7));
            let (second, head) = peer.encode(CMD_READ, 0, 1000, 64);
            bytes.extend(head);
            let (third, head) = peer.encode(CMD_WRITE, FLAG_DF, 0, 40);
            bytes.extend(head);
            bytes.extend([9; 40]);
            for byte in bytes {
                peer.stream.write_all(&[byte]).unwrap();
            }
            let mut replies = [peer.reply(), peer.reply(), peer.reply()];
            replies.sort_by_key(|reply| reply.cookie);
            let [a, b, c] = replies;
            assert_eq!((a.cookie, a.errno), (first, 0));
            assert_eq!((b.cookie, b.errno), (second, 0));
            assert_eq!((c.cookie, c.errno), (third, EINVAL));
            assert_eq!(server.content()[3..53], pattern(50, 7));
            assert_eq!(b.data, pattern(64, 1000));
        }
    }
}

#[test]
fn long_writes_in_odd_pieces_arrive_whole() {
    for engine in ENGINES {
        let server = Server::new(engine, &vec![0; 4 * MIB]);
        let mut peer = server.link(ReplyMode::Simple);
        let mut bytes = Vec::new();
        let mut expected = vec![0; 4 * MIB];
        for (n, (offset, len)) in [(1, 100_000), (200_001, 65_537), (300_000, 3_000_000)]
            .into_iter()
            .enumerate()
        {
            let (_, head) = peer.encode(CMD_WRITE, 0, offset as u64, len as u64);
            let data = pattern(len, n as u64);
            expected[offset..offset + len].copy_from_slice(&data);
            bytes.extend(head);
            bytes.extend(data);
        }
        let mut at = 0;
        for step in [1, 27, 5, 4097, 70_000, 13].into_iter().cycle() {
            let end = (at + step).min(bytes.len());
            peer.stream.write_all(&bytes[at..end]).unwrap();
            at = end;
            if at == bytes.len() {
                break;
            }
        }
        for _ in 0..3 {
            assert_eq!(peer.reply().errno, 0);
        }
        assert!(server.content() == expected);
    }
}

#[test]
fn what_came_before_a_half_close_is_answered() {
    for engine in ENGINES {
        for mode in MODES {
            let server = Server::new(engine, &pattern(4 * MIB, 0));
            let mut peer = server.link(mode);
            let a = peer.send(CMD_READ, 0, 0, 3 * MIB as u64);
            let b = peer.send_write(FLAG_FUA, 5, &[1; 1000]);
            let c = peer.send(CMD_FLUSH, 0, 0, 0);
            // The beginning of one more, which is none.
            let (_, head) = peer.encode(CMD_WRITE, 0, 0, 3 * MIB as u64);
            peer.stream.write_all(&head).unwrap();
            peer.stream.write_all(&[2; 300]).unwrap();
            peer.half_close();
            let mut cookies = Vec::new();
            while let Some(reply) = peer.try_reply() {
                assert_eq!(reply.errno, 0, "{}", reply.text);
                cookies.push(reply.cookie);
            }
            cookies.sort_unstable();
            assert_eq!(cookies, [a, b, c]);
            assert_eq!(peer.end(), End::Lost);
            assert_eq!(server.content()[5..1005], [1; 1000]);
            server.assert_no_memory_held();
        }
    }
}

#[test]
fn a_vanished_client_ends_its_link_only() {
    for engine in ENGINES {
        let server = Server::new(engine, &pattern(4 * MIB, 0));
        let mut other = server.link(ReplyMode::Simple);
        for _ in 0..50 {
            let mut peer = server.link(ReplyMode::Structured);
            for n in 0..8 {
                peer.send(CMD_READ, 0, n * 4096, MIB as u64);
            }
            assert_eq!(peer.vanish(), End::Lost);
        }
        assert_eq!(other.read(0, 4096), pattern(4096, 0));
        server.assert_no_memory_held();
    }
}
