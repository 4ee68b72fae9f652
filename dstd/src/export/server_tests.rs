//! Tests of the server over real sockets, with a recorder as data plane: what is counted and given back, limits,
//! the end, and what a reload does to links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::access::Peer;
use super::config::ExportConfig;
use super::handshake::Exports;
use super::link::{End, LinkGate, Transmission};
use super::reload::{Plan, plan, reload};
use super::server::Server;
use super::testing::*;
use super::wire::{self, SessionRequest};
use crate::nbd::proto;
use crate::units::{Id, Session};

const TWO: &str = "version: 1\nexports: {a: {path: DIR/a}, b: {path: DIR/b}}\n";
/// Long for a test, and never waited for where all is well.
const SOON: Duration = Duration::from_secs(15);

struct Running {
    server: Arc<Server>,
    plane: Arc<Recorder>,
    dir: TempDir,
}

impl Running {
    fn new(yaml: &str) -> Running {
        let dir = files();
        let plane = Arc::new(Recorder::default());
        let config = config(&dir, yaml);
        let exports = opened(&config);
        let server = Server::new(config, exports, plane.clone());
        Running { server, plane, dir }
    }

    fn connect(&self) -> Client<UnixStream> {
        self.connect_as(peer("10.0.0.1"))
    }

    fn connect_as(&self, peer: Peer) -> Client<UnixStream> {
        let (socket, client) = pair();
        self.server.newcomer(socket, peer);
        client
    }

    /// A link in transmission phase.
    async fn link(&self, name: &str) -> (Client<UnixStream>, Transmission) {
        let mut client = self.connect();
        client.greet(3).await;
        client.go(name).await;
        while self.plane.count() == 0 {
            tokio::task::yield_now().await;
        }
        (client, self.plane.take())
    }

    async fn nothing_is_left(&self) {
        let gone = async {
            while self.server.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, gone).await.unwrap();
        for export in self.server.catalog().exports().values() {
            assert_eq!(
                export.open.as_ref().unwrap().link_count(),
                0,
                "{}",
                export.name
            );
        }
    }

    async fn reload(&self, yaml: &str) {
        timeout(SOON, reload(&self.server, config(&self.dir, yaml)))
            .await
            .unwrap();
    }
}

/// Plays a worker: the socket is gone, then the end is told.
fn end(link: Transmission, why: End) {
    let gate = link.gate.clone();
    drop(link);
    gate.end(why);
}

fn session() -> SessionRequest {
    SessionRequest {
        steal: false,
        identify_only: false,
        slot: 0,
        generation: 1,
        session: Session {
            client: Id([1; 16]),
            nonce: Id([2; 16]),
        },
        export: "a".into(),
    }
}

/// All that an honest client of DST sends before its requests.
fn conversation() -> Vec<u8> {
    let meta = proto::MetaRequest {
        name: "a".into(),
        queries: vec!["base:allocation".into()],
    };
    [
        3u32.to_be_bytes().to_vec(),
        proto::encode_option(proto::OPT_LIST, b""),
        proto::encode_option(proto::OPT_STRUCTURED_REPLY, b""),
        proto::encode_option(proto::OPT_SET_META_CONTEXT, &meta.encode()),
        proto::encode_option(wire::OPT_SESSION, &session().encode()),
        proto::encode_option(wire::OPT_FENCE, &{
            let mut fence = session();
            fence.generation = 0;
            fence.encode()
        }),
        proto::encode_option(proto::OPT_GO, &info_data("a")),
    ]
    .concat()
}

#[tokio::test]
async fn a_client_that_leaves_at_any_byte_leaves_nothing_behind() {
    let running = Running::new(TWO);
    let whole = conversation();
    for cut in 0..=whole.len() {
        let mut client = running.connect();
        client.send(&whole[..cut]).await;
        if cut == whole.len() {
            // The whole of it makes a link; the worker sees its end.
            while running.plane.count() == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(running.server.connections(), 1);
            end(running.plane.take(), End::Lost);
        }
        drop(client);
        running.nothing_is_left().await;
        assert_eq!(running.plane.count(), 0, "{cut} of {} bytes", whole.len());
    }
}

#[tokio::test]
async fn a_go_that_cant_be_answered_frees_the_writer_role() {
    let running = Running::new(TWO);
    let mut client = running.connect();
    client.greet(3).await;
    client.option(wire::OPT_SESSION, &session().encode()).await;
    // It joins, and the answer finds a broken pipe.
    let go = proto::encode_option(proto::OPT_GO, &info_data("a"));
    client.send(&go).await;
    drop(client);
    running.nothing_is_left().await;
    let open = running.server.catalog().exports()["a"]
        .open
        .clone()
        .unwrap();
    let mut other = session();
    other.session.client = Id([9; 16]);
    other.steal = true;
    let joined = timeout(SOON, open.roles.join(Some(&other), gate(), "x".into())).await;
    assert!(
        joined.is_ok_and(|joined| joined.is_ok()),
        "its link is waited for"
    );
    assert_eq!(running.plane.count(), 0);
}

#[tokio::test]
async fn a_link_is_counted_until_its_worker_says_that_it_ended() {
    let running = Running::new(TWO);
    let (client, link) = running.link("b").await;
    assert_eq!(link.export.traits().size, size_of(1));
    assert_eq!(
        (link.limits.in_flight, link.limits.of_all),
        (64 << 20, 1 << 30)
    );
    drop(client);
    assert_eq!(running.server.connections(), 1);
    end(link, End::Disconnected);
    running.nothing_is_left().await;
}

#[tokio::test]
async fn the_newcomer_goes_when_all_is_full_and_nobody_else() {
    let limits = "limits: {connections: 3, connections_per_peer: 2, handshakes: 2, handshakes_per_peer: 1}\n";
    let running = Running::new(&format!("{TWO}{limits}"));
    let (_client, one) = running.link("a").await;
    let mut shaking = running.connect();
    // The same peer has a handshake under way, and one link: two connections.
    assert!(running.connect().is_closed().await);
    shaking.greet(3).await;
    let mut other = running.connect_as(peer("10.0.0.2"));
    other.greet(3).await;
    // Three connections.
    assert!(running.connect_as(peer("10.0.0.3")).is_closed().await);
    assert_eq!(running.server.connections(), 3);
    assert!(!one.gate.is_cut() && one.gate.ended().is_none());
    // Those that are in go on.
    assert!(!shaking.go("a").await.is_empty());
    assert!(!other.go("b").await.is_empty());
    drop((shaking, other));
    while running.plane.count() < 2 {
        tokio::task::yield_now().await;
    }
    end(running.plane.take(), End::Lost);
    end(running.plane.take(), End::Lost);
    while running.server.connections() > 1 {
        tokio::task::yield_now().await;
    }
    // Room again.
    let mut next = running.connect_as(peer("10.0.0.3"));
    next.greet(3).await;
    end(one, End::Lost);
}

#[tokio::test]
async fn stopping_drains_first_and_waits_for_the_last_answer() {
    let running = Running::new(TWO);
    let (mut client, link) = running.link("a").await;
    let mut shaking = running.connect();
    shaking.greet(3).await;
    let server = running.server.clone();
    let stopped = tokio::spawn(async move { server.stop().await });
    // A handshake under way ends at once, a link is told to come to its end.
    assert!(shaking.is_closed().await);
    let mut socket = std::fs::File::from(std::os::fd::OwnedFd::try_clone(&link.socket).unwrap());
    let mut byte = [0];
    let read = loop {
        match std::io::Read::read(&mut socket, &mut byte) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::task::yield_now().await;
            }
            read => break read,
        }
    };
    assert_eq!(
        read.unwrap(),
        0,
        "the server hasn't stopped listening to it"
    );
    assert!(!link.gate.is_cut());
    assert!(!stopped.is_finished());
    // What it had asked for can still be answered.
    std::io::Write::write_all(&mut socket, b"answer").unwrap();
    drop(socket);
    end(link, End::Lost);
    timeout(SOON, stopped).await.unwrap().unwrap();
    let mut answer = [0; 6];
    tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"answer");
    // Whoever had its export chosen already comes too late.
    assert!(
        running.server.catalog().exports()["a"]
            .open
            .as_ref()
            .unwrap()
            .register(&gate())
            .is_none()
    );
}

#[tokio::test]
async fn a_link_that_doesnt_come_to_its_end_is_cut() {
    let running = Running::new(&format!("{TWO}drain_timeout: 50ms\n"));
    let (_client, link) = running.link("a").await;
    let server = running.server.clone();
    let stopped = tokio::spawn(async move { server.stop().await });
    wait_cut(&link.gate).await;
    assert!(!stopped.is_finished());
    end(link, End::Lost);
    timeout(SOON, stopped).await.unwrap().unwrap();
}

async fn wait_cut(gate: &Arc<LinkGate>) {
    let cut = async {
        while !gate.is_cut() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, cut).await.unwrap();
}

fn export(path: &str) -> ExportConfig {
    ExportConfig::new(path.into())
}

fn names(names: &str) -> BTreeSet<String> {
    names.chars().map(String::from).collect()
}

#[test]
fn a_reload_closes_only_what_changed() {
    let with = |change: fn(&mut ExportConfig)| {
        let mut export = export("/a");
        change(&mut export);
        export
    };
    let kept = |export: ExportConfig| (export, "a", "", "", "");
    let anew = |export: ExportConfig| (export, "", "a", "", "a");
    for (wanted, keep, close, open, reopen) in [
        kept(export("/a")),
        kept(with(|e| e.description = "new".into())),
        kept(with(|e| e.default = true)),
        kept(with(|e| e.access.allow = Some(vec![]))),
        kept(with(|e| {
            e.access.read_only_for = vec![super::access::Prefix::Unix]
        })),
        anew(export("/b")),
        anew(with(|e| e.read_only = true)),
        anew(with(|e| e.shared = true)),
        anew(with(|e| e.identity = Some(Id([1; 16])))),
        anew(with(|e| e.holder_timeout = Duration::from_secs(1))),
        anew(with(|e| e.reopen = 1)),
    ] {
        let running = BTreeMap::from([("a".to_owned(), (export("/a"), true))]);
        let new = BTreeMap::from([("a".to_owned(), wanted.clone())]);
        let expected = Plan {
            keep: names(keep),
            close: names(close),
            open: names(open),
            reopen: names(reopen),
        };
        assert_eq!(plan(&running, &new), expected, "{wanted:?}");
    }
}

#[test]
fn a_reload_waits_only_for_storage_that_is_in_use() {
    // `a` stays, `b` goes, `c` couldn't be opened, `d` is new, `e` is `b` under another name.
    let running = BTreeMap::from([
        ("a".to_owned(), (export("/a"), true)),
        ("b".to_owned(), (export("/b"), true)),
        ("c".to_owned(), (export("/c"), false)),
    ]);
    let wanted = BTreeMap::from([
        ("a".to_owned(), export("/a")),
        ("c".to_owned(), export("/c")),
        ("d".to_owned(), export("/d")),
        ("e".to_owned(), export("/b")),
    ]);
    let expected = Plan {
        keep: names("a"),
        close: names("b"),
        open: names("cd"),
        reopen: names("e"),
    };
    assert_eq!(plan(&running, &wanted), expected);
}

#[tokio::test]
async fn exports_that_stay_keep_their_links_over_a_reload() {
    let running = Running::new(TWO);
    let (_client, link) = running.link("a").await;
    let new = "version: 1\nexports: {a: {path: DIR/a, allow: [10.0.0.2]}, c: {path: DIR/c}}\n";
    running.reload(new).await;
    assert!(!link.gate.is_cut() && link.gate.ended().is_none());
    let socket = link.socket.clone();
    let mut byte = [0];
    let read = nix::unistd::read(&*socket, &mut byte);
    assert_eq!(read, Err(nix::errno::Errno::EAGAIN), "the link was drained");
    // The new list is for newcomers; the export that went is gone, the new one is there.
    let mut client = running.connect();
    client.greet(3).await;
    for (name, kind) in [
        ("a", proto::REP_ERR_UNKNOWN),
        ("b", proto::REP_ERR_UNKNOWN),
        ("c", proto::REP_ACK),
    ] {
        assert_eq!(
            client.ending(proto::OPT_INFO, &info_data(name)).await.0,
            kind,
            "{name}"
        );
    }
    drop(socket);
    end(link, End::Lost);
}

#[tokio::test]
async fn an_export_that_changed_is_closed_before_it_is_opened_anew() {
    let running = Running::new(TWO);
    let (_client, link) = running.link("a").await;
    let old = Arc::downgrade(&link.export);
    let new = "version: 1\nexports: {a: {path: DIR/a, reopen: 1}, b: {path: DIR/b}}\ndrain_timeout: 1ms\n";
    let (server, wanted) = (running.server.clone(), config(&running.dir, new));
    let reloading = tokio::spawn(async move { reload(&server, wanted).await });
    wait_cut(&link.gate).await;
    // Meanwhile it isn't there, and the others are.
    let mut client = running.connect();
    client.greet(3).await;
    let (kind, text) = client.ending(proto::OPT_GO, &info_data("a")).await;
    assert_eq!(
        (kind, text.as_str()),
        (proto::REP_ERR_UNKNOWN, "export `a` isn't available now")
    );
    let (kind, _) = client.ending(proto::OPT_INFO, &info_data("b")).await;
    assert_eq!(kind, proto::REP_ACK);
    assert!(!reloading.is_finished() && old.strong_count() > 0);
    end(link, End::Lost);
    timeout(SOON, reloading).await.unwrap().unwrap();
    assert_eq!(old.strong_count(), 0, "the old storage is still open");
    assert_eq!(size_and_flags(&client.go("a").await).0, size_of(0));
}

#[tokio::test]
async fn an_export_that_cant_be_opened_leaves_the_others_alone_and_is_tried_again() {
    let running = Running::new(TWO);
    let (_client, link) = running.link("b").await;
    let new = TWO.replace("DIR/a", "DIR/missing");
    running.reload(&new).await;
    let mut client = running.connect();
    client.greet(3).await;
    let (kind, _) = client.ending(proto::OPT_GO, &info_data("a")).await;
    assert_eq!(kind, proto::REP_ERR_UNKNOWN);
    std::fs::rename(
        running.dir.path().join("c"),
        running.dir.path().join("missing"),
    )
    .unwrap();
    running.reload(&new).await;
    assert_eq!(size_and_flags(&client.go("a").await).0, size_of(2));
    assert!(!link.gate.is_cut());
    end(link, End::Lost);
}

#[tokio::test]
async fn new_limits_are_for_newcomers() {
    let running = Running::new(TWO);
    let (_client, link) = running.link("a").await;
    running
        .reload(&format!("{TWO}limits: {{connections: 1}}\n"))
        .await;
    assert!(running.connect().is_closed().await);
    assert!(!link.gate.is_cut() && link.gate.ended().is_none());
    end(link, End::Lost);
}
