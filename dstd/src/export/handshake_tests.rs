//! Tests of `handshake` and `options` against a client in the same process: each option with right and wrong data in
//! each mode, what is never told to whom, and time. No sockets but those of the gates.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::access::Peer;
use super::config::Config;
use super::handshake::{Agreed, Handshake, HandshakeError, OPTION_DATA_MAX, OPTIONS_MAX, Outcome};
use super::limits::Limits;
use super::link::{End, LinkGate, ReplyMode};
use super::testing::*;
use super::wire::{self, FenceRequest, SessionReply, SessionRequest};
use crate::kernel::NbdFlags;
use crate::nbd::proto::{self, Info, MetaRequest};
use crate::units::{Id, Session};

const TWO: &str = "version: 1\nexports: {a: {path: DIR/a, description: first}, b: {path: DIR/b}}\n";

/// Of a file that may be written to, without structured replies; ROTATIONAL depends on the machine.
const FLAGS: u16 = 0b1101_0110_1101;

/// A handshake under way.
struct Talk {
    client: Client<DuplexStream>,
    gate: Arc<LinkGate>,
    task: JoinHandle<(Result<Outcome, HandshakeError>, DuplexStream)>,
}

impl Talk {
    async fn ended(self) -> Result<Outcome, HandshakeError> {
        drop(self.client);
        self.task.await.unwrap().0
    }

    async fn agreed(self) -> Agreed {
        match self.task.await.unwrap().0 {
            Ok(Outcome::Serve(agreed)) => *agreed,
            other => panic!("{other:?}"),
        }
    }

    async fn error(self) -> HandshakeError {
        self.task.await.unwrap().0.unwrap_err()
    }
}

struct Place {
    exports: Arc<Fixed>,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new(yaml: &str) -> Place {
        let dir = files();
        let config: Config = config(&dir, yaml);
        Place {
            exports: Arc::new(Fixed::new(&config)),
            _dir: dir,
        }
    }

    /// A client that was greeted and agreed on everything.
    async fn talk(&self) -> Talk {
        self.talk_as(peer("127.0.0.1")).await
    }

    async fn talk_as(&self, peer: Peer) -> Talk {
        let mut talk = self.raw(peer);
        talk.client.greet(3).await;
        talk
    }

    fn raw(&self, peer: Peer) -> Talk {
        let (client, mut server) = duplex(1 << 20);
        let gate = gate();
        let (exports, held) = (self.exports.clone(), gate.clone());
        let task = tokio::spawn(async move {
            let limits = Limits::default();
            let handshake = Handshake::new(&mut server, &*exports, &peer, &held, &limits);
            (handshake.run().await, server)
        });
        Talk {
            client: Client(client),
            gate,
            task,
        }
    }
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| (*query).to_owned()).collect();
    let name = name.to_owned();
    MetaRequest { name, queries }.encode()
}

fn session(client: u8, nonce: u8, generation: u64, name: &str) -> SessionRequest {
    SessionRequest {
        steal: false,
        identify_only: false,
        slot: 0,
        generation,
        session: Session {
            client: Id([client; 16]),
            nonce: Id([nonce; 16]),
        },
        export: name.to_owned(),
    }
}

#[tokio::test]
async fn only_known_client_flags_are_taken() {
    let place = Place::new(TWO);
    for flags in [0, 1, 2, 3] {
        let mut talk = place.raw(peer("::1"));
        talk.client.greet(flags).await;
        let (kind, _) = talk.client.ending(proto::OPT_ABORT, b"").await;
        assert_eq!(kind, proto::REP_ACK);
        assert!(matches!(talk.ended().await, Ok(Outcome::Left)));
    }
    for flags in [4, 7, 0x8000_0001] {
        let mut talk = place.raw(peer("::1"));
        talk.client.greet(flags).await;
        let error = talk.error().await;
        assert!(
            matches!(error, HandshakeError::ClientFlags(f) if f == flags),
            "{error}"
        );
    }
}

/// Option, data, mode, the last reply's type and a part of its text.
type Case = (u32, Vec<u8>, ReplyMode, u32, &'static str);

fn cases() -> Vec<Case> {
    use ReplyMode::{Extended, Simple, Structured};
    use proto::*;
    let mut cases = Vec::new();
    let mut each = |option, data: &[u8], kinds: [u32; 3], says| {
        for (mode, kind) in [Simple, Structured, Extended].into_iter().zip(kinds) {
            cases.push((option, data.to_vec(), mode, kind, says));
        }
    };
    each(OPT_ABORT, b"", [REP_ACK; 3], "");
    each(OPT_ABORT, b"x", [REP_ACK; 3], "");
    each(OPT_LIST, b"", [REP_ACK; 3], "");
    each(OPT_LIST, b"x", [REP_ERR_INVALID; 3], "has no data");
    each(OPT_STARTTLS, b"", [REP_ERR_UNSUP; 3], "no TLS");
    each(OPT_STARTTLS, b"x", [REP_ERR_INVALID; 3], "has no data");
    let [ack, invalid, ext] = [REP_ACK, REP_ERR_INVALID, REP_ERR_EXT_HEADER_REQD];
    each(OPT_STRUCTURED_REPLY, b"", [ack, invalid, ext], "");
    each(OPT_STRUCTURED_REPLY, b"x", [invalid; 3], "has no data");
    each(OPT_EXTENDED_HEADERS, b"", [ack, ack, invalid], "");
    each(OPT_EXTENDED_HEADERS, b"x", [invalid; 3], "has no data");
    for option in [OPT_INFO, OPT_GO] {
        each(option, &info_data("a"), [ack; 3], "");
        each(
            option,
            &info_data("z"),
            [REP_ERR_UNKNOWN; 3],
            "no export `z`",
        );
        // Two exports, none of them the default.
        each(option, &info_data(""), [REP_ERR_UNKNOWN; 3], "no export");
        each(
            option,
            &info_data("/etc/passwd"),
            [REP_ERR_UNKNOWN; 3],
            "no export",
        );
        each(
            option,
            &info_data("../a"),
            [REP_ERR_UNKNOWN; 3],
            "no export",
        );
        each(option, b"", [invalid; 3], "don't add up");
        each(option, &info_data("a")[..6], [invalid; 3], "don't add up");
    }
    for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        each(
            option,
            &meta("a", &["base:allocation"]),
            [invalid, ack, ack],
            "",
        );
        each(
            option,
            &meta("a", &["x:y", "qemu:"]),
            [invalid, ack, ack],
            "",
        );
        each(
            option,
            &meta("z", &[]),
            [invalid, REP_ERR_UNKNOWN, REP_ERR_UNKNOWN],
            "",
        );
        each(option, &meta("a", &["b"])[..9], [invalid; 3], "");
    }
    each(
        wire::OPT_SESSION,
        &session(1, 1, 1, "a").encode(),
        [ack; 3],
        "",
    );
    let (none, short) = (
        session(1, 1, 1, "z").encode(),
        session(1, 1, 1, "a").encode(),
    );
    each(wire::OPT_SESSION, &none, [REP_ERR_UNKNOWN; 3], "no export");
    each(wire::OPT_SESSION, &short[..9], [invalid; 3], "has 9 bytes");
    each(wire::OPT_FENCE, &short, [ack; 3], "");
    each(wire::OPT_FENCE, &none, [REP_ERR_UNKNOWN; 3], "no export");
    each(wire::OPT_FENCE, b"", [invalid; 3], "has 0 bytes");
    for unknown in [0, 4, 12, 0x4453_5403, u32::MAX] {
        each(unknown, b"", [REP_ERR_UNSUP; 3], "");
        each(unknown, &[7; 4000], [REP_ERR_UNSUP; 3], "");
    }
    cases
}

#[tokio::test]
async fn each_option_is_answered_as_the_protocol_has_it() {
    let place = Place::new(TWO);
    for (option, data, mode, kind, says) in cases() {
        let mut talk = place.talk().await;
        let client = &mut talk.client;
        let agree = match mode {
            ReplyMode::Simple => None,
            ReplyMode::Structured => Some(proto::OPT_STRUCTURED_REPLY),
            ReplyMode::Extended => Some(proto::OPT_EXTENDED_HEADERS),
        };
        if let Some(agree) = agree {
            assert_eq!(client.ending(agree, b"").await.0, proto::REP_ACK);
        }
        let (found, text) = client.ending(option, &data).await;
        let case = format!(
            "option {option} in {mode:?} mode, {} bytes: {text}",
            data.len()
        );
        assert_eq!(found, kind, "{case}");
        assert!(text.contains(says), "{case}");
        // The next option is understood, unless there is none.
        match option {
            proto::OPT_ABORT => assert!(matches!(talk.ended().await, Ok(Outcome::Left)), "{case}"),
            proto::OPT_GO if kind == proto::REP_ACK => {
                assert_eq!(talk.agreed().await.mode, mode, "{case}");
            }
            _ => assert_eq!(
                client.ending(99, b"").await.0,
                proto::REP_ERR_UNSUP,
                "{case}"
            ),
        }
    }
}

#[tokio::test]
async fn info_tells_everything_that_is_asked_for() {
    let place = Place::new(TWO);
    let mut talk = place.talk().await;
    let all = proto::encode_info_request("a", &[3, 2, 1, 0, 77]);
    let told = infos(&talk.client.option(proto::OPT_INFO, &all).await);
    let (size, flags) = size_and_flags(&told);
    assert_eq!((size, flags.0 & !NbdFlags::ROTATIONAL), (size_of(0), FLAGS));
    assert_eq!(
        told,
        [
            Info::Export { size, flags },
            Info::BlockSize {
                minimum: 1,
                preferred: 4096,
                maximum: 32 << 20,
            },
            Info::Name("a".into()),
            Info::Description("first".into()),
        ]
    );
    // Structured replies add DF.
    talk.client.option(proto::OPT_STRUCTURED_REPLY, b"").await;
    let told = infos(&talk.client.option(proto::OPT_INFO, &info_data("a")).await);
    assert_eq!(
        size_and_flags(&told),
        (size, NbdFlags(flags.0 | NbdFlags::SEND_DF))
    );
    assert_eq!(told.len(), 2, "nobody asked for name and description");
}

#[tokio::test]
async fn go_hands_over_and_takes_no_byte_of_what_follows() {
    let place = Place::new(TWO);
    let mut talk = place.talk().await;
    let go = proto::encode_option(proto::OPT_GO, &info_data("b"));
    talk.client.send(&[&go[..], b"REQUEST"].concat()).await;
    let told = infos(&talk.client.replies(proto::OPT_GO).await);
    let (outcome, mut stream) = talk.task.await.unwrap();
    let Ok(Outcome::Serve(agreed)) = outcome else {
        panic!("{outcome:?}");
    };
    let mut rest = [0; 7];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"REQUEST");
    assert_eq!(agreed.export.name, "b");
    assert_eq!(agreed.open.backend.traits().size, size_of(1));
    assert_eq!(size_and_flags(&told), (size_of(1), agreed.flags));
    assert!(!agreed.read_only);
    assert_eq!(agreed.open.link_count(), 1);
}

#[tokio::test]
async fn export_name_is_answered_with_zeroes_unless_agreed_otherwise() {
    let place = Place::new(TWO);
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        let mut talk = place.raw(peer("::1"));
        talk.client.greet(flags).await;
        let choose = proto::encode_option(proto::OPT_EXPORT_NAME, b"b");
        talk.client.send(&choose).await;
        let mut answer = vec![0; 10 + zeroes];
        talk.client.0.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..8], size_of(1).to_be_bytes());
        let flags = NbdFlags(u16::from_be_bytes([answer[8], answer[9]]));
        assert_eq!(flags.0 & !NbdFlags::ROTATIONAL, FLAGS);
        assert_eq!(answer[10..], vec![0; zeroes]);
        assert_eq!(talk.agreed().await.mode, ReplyMode::Simple);
    }
}

#[tokio::test]
async fn a_wrong_export_name_ends_the_connection_without_a_word() {
    let place = Place::new(TWO);
    let long = "n".repeat(4097);
    for (name, says) in [
        (&b"z"[..], "there is no export `z`"),
        (b"", "there is no export ``"),
        (b"\xff", "that is no name"),
        (long.as_bytes(), "that is no name"),
    ] {
        let mut talk = place.talk().await;
        let choose = proto::encode_option(proto::OPT_EXPORT_NAME, name);
        talk.client.send(&choose).await;
        let (result, stream) = talk.task.await.unwrap();
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        drop(stream);
        assert!(talk.client.is_closed().await);
    }
    let mut talk = place.talk().await;
    talk.client.option(proto::OPT_EXTENDED_HEADERS, b"").await;
    let choose = proto::encode_option(proto::OPT_EXPORT_NAME, b"a");
    talk.client.send(&choose).await;
    let error = talk.error().await.to_string();
    assert!(error.contains("need NBD_OPT_GO"), "{error}");
}

#[tokio::test]
async fn the_default_export_is_the_only_one_or_the_marked_one() {
    for (yaml, size) in [
        ("exports: {b: {path: DIR/b}}", size_of(1)),
        (
            "exports: {a: {path: DIR/a}, c: {path: DIR/c, default: yes}}",
            size_of(2),
        ),
        ("exports: {a: {path: DIR/a}, '': {path: DIR/b}}", size_of(1)),
    ] {
        let place = Place::new(&format!("version: 1\n{yaml}\n"));
        let mut talk = place.talk().await;
        assert_eq!(size_and_flags(&talk.client.go("").await).0, size, "{yaml}");
    }
}

#[tokio::test]
async fn contexts_belong_to_the_export_they_were_chosen_for() {
    let place = Place::new(TWO);
    let all = meta("a", &["base:allocation"]);
    let chosen = (
        proto::REP_META_CONTEXT,
        b"\0\0\0\x01base:allocation".to_vec(),
    );
    let listed = (proto::REP_META_CONTEXT, b"\0\0\0\0base:allocation".to_vec());
    // What is set, in turn; what each is answered; the export that is chosen; whether the context is there then.
    for (sets, last, go, there) in [
        (vec![all.clone()], Some(&chosen), "a", true),
        (
            vec![meta("a", &["x:y", "base:allocation"])],
            Some(&chosen),
            "a",
            true,
        ),
        (vec![all.clone()], Some(&chosen), "b", false),
        (vec![all.clone(), meta("a", &[])], None, "a", false),
        (
            vec![all.clone(), meta("b", &["base:allocation"])],
            Some(&chosen),
            "a",
            false,
        ),
        (vec![all.clone(), meta("a", &["other:"])], None, "a", false),
        (vec![meta("a", &["base:"])], None, "a", false),
        (vec![], None, "a", false),
    ] {
        let mut talk = place.talk().await;
        talk.client.option(proto::OPT_STRUCTURED_REPLY, b"").await;
        let mut found = None;
        for set in &sets {
            let mut replies = talk.client.option(proto::OPT_SET_META_CONTEXT, set).await;
            assert_eq!(replies.pop().unwrap().0, proto::REP_ACK);
            found = replies.pop();
        }
        assert_eq!(found.as_ref(), last, "{sets:?}");
        talk.client.go(go).await;
        let allocation = talk.agreed().await.allocation;
        assert_eq!(allocation, there.then_some(1), "{sets:?} then {go}");
    }
    // A choice that fails leaves none.
    let mut talk = place.talk().await;
    talk.client.option(proto::OPT_STRUCTURED_REPLY, b"").await;
    talk.client.option(proto::OPT_SET_META_CONTEXT, &all).await;
    let failed = talk.client.ending(proto::OPT_SET_META_CONTEXT, b"?").await;
    assert_eq!(failed.0, proto::REP_ERR_INVALID);
    talk.client.go("a").await;
    assert_eq!(talk.agreed().await.allocation, None);
    // Listing: everything, the namespace, the name; never a number.
    let mut talk = place.talk().await;
    talk.client.option(proto::OPT_STRUCTURED_REPLY, b"").await;
    for (queries, there) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["base:alloc"], false),
        (&["qemu:dirty-bitmap:x"], false),
    ] {
        let data = meta("a", queries);
        let replies = talk
            .client
            .option(proto::OPT_LIST_META_CONTEXT, &data)
            .await;
        assert_eq!(replies.len(), 1 + usize::from(there), "{queries:?}");
        assert!(!there || replies[0] == listed, "{queries:?}");
    }
}

const LISTS: &str = "version: 1
exports:
  a: {path: DIR/a, allow: [10.0.0.0/8]}
  b: {path: DIR/b, allow: [10.0.0.0/8, '::1', unix], read_only_for: ['::1', 10.9.0.0/16], default: yes}
  c: {path: DIR/c, read_only: yes}
";

#[tokio::test]
async fn nobody_hears_of_an_export_that_is_not_for_him() {
    let place = Place::new(LISTS);
    let unix = Peer::Unix { uid: 0, pid: 1 };
    // Who; what is listed; what can be written to, read only, or isn't there.
    for (who, listed, modes) in [
        (peer("10.1.1.1"), "abc", "wwr"),
        (peer("::ffff:10.1.1.1"), "abc", "wwr"),
        (peer("10.9.1.1"), "abc", "wrr"),
        (peer("::1"), "bc", "-rr"),
        (peer("192.0.2.1"), "c", "--r"),
        (unix, "bc", "-wr"),
    ] {
        let mut talk = place.talk_as(who.clone()).await;
        let replies = talk.client.option(proto::OPT_LIST, b"").await;
        let names = replies
            .iter()
            .filter(|(kind, _)| *kind == proto::REP_SERVER);
        let names: String = names
            .map(|(_, data)| proto::decode_server_reply(data).unwrap())
            .collect();
        assert_eq!(names, listed, "{who}");
        talk.client.option(proto::OPT_STRUCTURED_REPLY, b"").await;
        for (name, mode) in ["a", "b", "c"].iter().zip(modes.chars()) {
            let expected = if mode == '-' {
                proto::REP_ERR_UNKNOWN
            } else {
                proto::REP_ACK
            };
            for (option, data) in [
                (proto::OPT_INFO, info_data(name)),
                (proto::OPT_SET_META_CONTEXT, meta(name, &[])),
                (wire::OPT_SESSION, session(1, 1, 1, name).encode()),
                (wire::OPT_FENCE, session(1, 1, 1, name).encode()),
            ] {
                let (kind, text) = talk.client.ending(option, &data).await;
                assert_eq!(kind, expected, "{who}: {option} of {name}: {text}");
            }
            let mut talk = place.talk_as(who.clone()).await;
            if mode == '-' {
                let refused = talk.client.ending(proto::OPT_GO, &info_data(name)).await;
                let missing = talk.client.ending(proto::OPT_GO, &info_data("zz")).await;
                // Nothing tells it from one that isn't there.
                assert_eq!(refused.0, missing.0, "{who}: {name}");
                assert_eq!(refused.1.replace(name, "zz"), missing.1.replace(name, "zz"));
                continue;
            }
            let (_, flags) = size_and_flags(&talk.client.go(name).await);
            let agreed = talk.agreed().await;
            assert_eq!(agreed.read_only, mode == 'r', "{who}: {name}");
            let write = NbdFlags::SEND_TRIM | NbdFlags::SEND_WRITE_ZEROES;
            assert_eq!(flags.read_only(), mode == 'r', "{who}: {name}");
            assert_eq!(flags.0 & write == 0, mode == 'r', "{who}: {name}");
        }
        // The default export is no way around the list.
        let (kind, _) = talk.client.ending(proto::OPT_INFO, &info_data("")).await;
        assert_eq!(kind == proto::REP_ACK, listed.contains('b'), "{who}");
    }
}

#[tokio::test]
async fn an_export_whose_storage_is_gone_says_so_without_its_path() {
    let dir = files();
    let config = config(&dir, TWO);
    std::fs::remove_file(dir.path().join("a")).unwrap();
    let place = Place {
        exports: Arc::new(Fixed::new(&config)),
        _dir: dir,
    };
    let mut talk = place.talk().await;
    for option in [proto::OPT_INFO, proto::OPT_GO] {
        let (kind, text) = talk.client.ending(option, &info_data("a")).await;
        assert_eq!(kind, proto::REP_ERR_UNKNOWN);
        assert_eq!(text, "export `a` isn't available now");
    }
    assert_eq!(size_and_flags(&talk.client.go("b").await).0, size_of(1));
}

#[tokio::test]
async fn a_session_is_told_who_the_export_is_and_takes_the_role_at_go() {
    let identity = "00112233-4455-6677-8899-aabbccddeeff";
    let yaml = format!(
        "version: 1\nexports: {{a: {{path: DIR/a, identity: {identity}}}, b: {{path: DIR/b}}}}\n"
    );
    let place = Place::new(&yaml);
    let told = |replies: Vec<Reply>| {
        assert_eq!(replies.len(), 2);
        assert_eq!(replies[0].0, wire::REP_SESSION);
        SessionReply::decode(&replies[0].1).unwrap()
    };
    let one = session(1, 1, 5, "a");
    let mut talk = place.talk().await;
    let reply = told(talk.client.option(wire::OPT_SESSION, &one.encode()).await);
    assert_eq!(reply.identity.to_string(), identity.replace('-', ""));
    assert!(!reply.held_by_other, "{}", reply.holder);
    assert!(!talk.client.go("a").await.is_empty());
    let gate = talk.gate.clone();
    let holder = talk.agreed().await;
    assert!(!holder.read_only);
    // Another client is told who holds it, and refused; asking alone takes nothing.
    let mut other = place.talk().await;
    let mut two = session(2, 2, 1, "a");
    let reply = told(other.client.option(wire::OPT_SESSION, &two.encode()).await);
    assert!(
        reply.held_by_other && reply.holder.contains("127.0.0.1"),
        "{}",
        reply.holder
    );
    let (kind, text) = other.client.ending(proto::OPT_GO, &info_data("a")).await;
    assert_eq!(kind, proto::REP_ERR_POLICY, "{text}");
    assert!(text.contains("held by"), "{text}");
    // The same connection without a session of that export: read-only.
    two.identify_only = true;
    told(other.client.option(wire::OPT_SESSION, &two.encode()).await);
    assert!(size_and_flags(&other.client.go("a").await).1.read_only());
    assert!(other.agreed().await.read_only);
    // The older session's link has ended: its client's next session gets in.
    gate.end(End::Disconnected);
    let mut next = place.talk().await;
    next.client
        .option(wire::OPT_SESSION, &session(1, 2, 6, "a").encode())
        .await;
    assert!(!size_and_flags(&next.client.go("a").await).1.read_only());
}

#[tokio::test]
async fn a_session_counts_for_the_export_it_named() {
    let place = Place::new(TWO);
    let mut talk = place.talk().await;
    talk.client
        .option(wire::OPT_SESSION, &session(1, 1, 1, "a").encode())
        .await;
    talk.client.go("b").await;
    let agreed = talk.agreed().await;
    let held = agreed.open.roles.identify(&session(2, 2, 1, "b"));
    assert_eq!(held.text, "", "the session of `a` took the role of `b`");
}

#[tokio::test]
async fn a_fence_is_answered_when_the_link_has_ended_and_keeps_it_out() {
    let place = Place::new(TWO);
    let one = session(1, 1, 5, "a");
    let mut talk = place.talk().await;
    talk.client.option(wire::OPT_SESSION, &one.encode()).await;
    talk.client.go("a").await;
    let gate = talk.gate.clone();
    let _agreed = talk.agreed().await;
    let fence = FenceRequest {
        slot: 0,
        generation: 5,
        session: one.session,
        export: "a".into(),
    };
    let mut other = place.talk().await;
    let option = proto::encode_option(wire::OPT_FENCE, &fence.encode());
    other.client.send(&option).await;
    // Its requests are still running: cut, and no answer.
    let mut byte = [0];
    let early = other.client.0.read(&mut byte);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), early)
            .await
            .is_err()
    );
    assert!(gate.is_cut());
    gate.end(End::Lost);
    assert_eq!(
        other.client.replies(wire::OPT_FENCE).await,
        [(proto::REP_ACK, vec![])]
    );
    // The fenced generation can't come back, the next one can.
    other.client.option(wire::OPT_SESSION, &one.encode()).await;
    let (kind, text) = other.client.ending(proto::OPT_GO, &info_data("a")).await;
    assert_eq!(kind, proto::REP_ERR_POLICY);
    assert!(text.contains("fenced"), "{text}");
    other
        .client
        .option(wire::OPT_SESSION, &session(1, 1, 6, "a").encode())
        .await;
    assert!(!other.client.go("a").await.is_empty());
}

#[tokio::test]
async fn what_is_no_option_or_too_much_of_one_ends_the_connection() {
    let place = Place::new(TWO);
    let header = |option: u32, length: u32| {
        let mut bytes = proto::encode_option(option, b"");
        bytes[12..].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let mut talk = place.talk().await;
    talk.client.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0").await;
    assert!(matches!(talk.error().await, HandshakeError::NoOption));
    for length in [OPTION_DATA_MAX + 1, u32::MAX] {
        let mut talk = place.talk().await;
        talk.client.send(&header(proto::OPT_GO, length)).await;
        let reply = talk.client.replies(proto::OPT_GO).await;
        assert_eq!(reply[0].0, proto::REP_ERR_TOO_BIG);
        let error = talk.error().await;
        assert!(matches!(error, HandshakeError::TooBig { .. }), "{error}");
        // EXPORT_NAME knows no error replies.
        let mut talk = place.talk().await;
        talk.client
            .send(&header(proto::OPT_EXPORT_NAME, length))
            .await;
        let (result, stream) = talk.task.await.unwrap();
        assert!(matches!(result, Err(HandshakeError::TooBig { .. })));
        drop(stream);
        assert!(talk.client.is_closed().await);
    }
    // The most that is allowed is read, and the option after it understood.
    let mut talk = place.talk().await;
    let data = vec![7; OPTION_DATA_MAX as usize];
    assert_eq!(talk.client.ending(50, &data).await.0, proto::REP_ERR_UNSUP);
    assert_eq!(
        talk.client.ending(proto::OPT_LIST, b"").await.0,
        proto::REP_ACK
    );
    let mut talk = place.talk().await;
    for _ in 0..OPTIONS_MAX {
        assert_eq!(talk.client.ending(50, b"").await.0, proto::REP_ERR_UNSUP);
    }
    assert!(matches!(talk.error().await, HandshakeError::TooMany));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let place = Place::new(TWO);
    let start = Instant::now();
    let talk = place.raw(peer("::1"));
    assert!(matches!(talk.error().await, HandshakeError::Idle(_)));
    assert_eq!(start.elapsed().as_secs(), 10);
    let start = Instant::now();
    let mut talk = place.talk().await;
    talk.client.send(b"IHAVEO").await;
    assert!(matches!(talk.error().await, HandshakeError::Idle(_)));
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_decides_is_let_go() {
    let place = Place::new(TWO);
    let start = Instant::now();
    let mut talk = place.talk().await;
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(9)).await;
            let unknown = proto::encode_option(50, b"");
            if tokio::io::AsyncWriteExt::write_all(&mut talk.client.0, &unknown)
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let error = talk.task.await.unwrap().0.unwrap_err();
    assert!(matches!(error, HandshakeError::Late(_)), "{error}");
    assert_eq!(start.elapsed().as_secs(), 30);
    task.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Options with any data, as a client that lies would send them: an answer or an end, never a panic.
    #[test]
    fn no_bytes_hurt_the_handshake(
        options in proptest::collection::vec((0u32..16, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
        junk in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let place = Place::new(TWO);
            let talk = place.talk().await;
            let mut bytes = Vec::new();
            for (option, data) in &options {
                let option = match option { 14 => wire::OPT_SESSION, 15 => wire::OPT_FENCE, n => *n };
                bytes.extend(proto::encode_option(option, data));
            }
            bytes.extend(&junk);
            let (mut read, mut write) = tokio::io::split(talk.client.0);
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            let mut answers = Vec::new();
            let task = tokio::spawn(async move { read.read_to_end(&mut answers).await });
            let (_, stream) = talk.task.await.unwrap();
            drop((stream, write));
            let _ = task.await.unwrap();
        });
    }
}
