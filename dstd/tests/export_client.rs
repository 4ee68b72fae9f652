//! dstd as a client of `dstd export`: sessions, fences and the one writer, over real sockets, from handshake to
//! storage. What is said on the wire, byte by byte, is tested in nbd/session_tests.rs.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dstd::kernel::{Attach, Connection, Fence};
use dstd::nbd::{NbdError, NbdUri, connect, fence, probe, proto};
use dstd::units::{Generation, Id, Session, Slot};
use tempfile::TempDir;

const DSTD: &str = env!("CARGO_BIN_EXE_dstd");
const LIMIT: Duration = Duration::from_secs(20);
const CMD_WRITE: u16 = 1;

/// A server of one export of 1 MiB, on a Unix socket; it ends with the test.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let mut child = Command::new(DSTD)
            .arg("export")
            .arg(format!("disk={}", disk.display()))
            .arg("--listen")
            .arg(format!("unix:{}", dir.path().join("s").display()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("listen") {
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "{seen}");
        }
        // The server must not wait for a reader of its log.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Server { child, dir }
    }

    fn uri(&self) -> NbdUri {
        let socket = self.dir.path().join("s");
        format!("nbd+unix:///disk?socket={}", socket.display())
            .parse()
            .unwrap()
    }

    async fn link(&self, attach: Attach) -> Result<Link, NbdError> {
        let connection = connect(&self.uri(), &attach, LIMIT).await?;
        Ok(Link::new(connection))
    }

    fn byte(&self, at: usize) -> u8 {
        fs::read(self.dir.path().join("disk")).unwrap()[at]
    }
}

fn attach(client: u8, slot: u32, generation: u32) -> Attach {
    Attach {
        session: Session {
            client: Id([client; 16]),
            nonce: Id([client; 16]),
        },
        slot: Slot(slot),
        generation: Generation(generation),
        steal: false,
        timeout: None,
    }
}

/// The kernel's part.
struct Link {
    socket: UnixStream,
    connection: (Option<Id>, Option<Id>),
}

impl Link {
    fn new(connection: Connection) -> Link {
        let facts = connection.negotiated;
        assert_eq!(facts.size.0, 1 << 20);
        assert!(facts.flags.multi_conn() && !facts.flags.read_only());
        let socket = UnixStream::from(connection.socket);
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Link {
            socket,
            connection: (facts.identity, facts.incarnation),
        }
    }

    /// Writes 512 bytes of `byte`; false: the link has ended.
    fn write(&mut self, offset: u64, byte: u8) -> bool {
        let mut request = proto::encode_disconnect().to_vec();
        request[6..8].copy_from_slice(&CMD_WRITE.to_be_bytes());
        request[16..24].copy_from_slice(&offset.to_be_bytes());
        request[24..].copy_from_slice(&512u32.to_be_bytes());
        request.extend([byte; 512]);
        let mut reply = [0; 16];
        let sent = self.socket.write_all(&request);
        if sent.is_err() || self.socket.read_exact(&mut reply).is_err() {
            return false;
        }
        assert_eq!(reply[4..8], [0; 4], "the server's error");
        true
    }

    fn disconnect(mut self) {
        self.socket.write_all(&proto::encode_disconnect()).unwrap();
        assert_eq!(self.socket.read(&mut [0]).unwrap(), 0, "it closes");
    }
}

#[tokio::test]
async fn one_client_writes_and_another_hears_who_and_how_to_take_the_role() {
    let server = Server::start();
    let mut first = server.link(attach(1, 0, 1)).await.unwrap();
    let (identity, incarnation) = first.connection;
    assert!(identity.is_some() && incarnation.is_some());
    assert!(first.write(0, 0x11));

    let probed = probe(&server.uri(), Id([2; 16]), LIMIT).await.unwrap();
    assert_eq!(
        (probed.negotiated.identity, probed.negotiated.incarnation),
        (identity, incarnation)
    );
    let writer = probed.writer.unwrap();
    assert!(
        writer.other && writer.text.contains(&"01".repeat(16)),
        "{writer:?}"
    );
    let writer = probe(&server.uri(), Id([1; 16]), LIMIT)
        .await
        .unwrap()
        .writer;
    assert!(!writer.unwrap().other, "it is this client");

    let error = server.link(attach(2, 0, 1)).await.map(drop).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, NbdError::Held { .. }), "{text}");
    assert!(
        text.contains(&"01".repeat(16)) && text.contains("`dstd apply --steal NODE`"),
        "{text}"
    );
    assert!(
        first.write(512, 0x12),
        "neither probe nor refusal touched it"
    );

    let steal = Attach {
        steal: true,
        ..attach(2, 0, 1)
    };
    let mut thief = server.link(steal).await.unwrap();
    assert!(!first.write(0, 0x13));
    assert!(thief.write(0, 0x21));
    let text = server
        .link(attach(1, 0, 2))
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(text.contains("has one writer at a time"), "{text}");
    thief.disconnect();
    let text = server
        .link(attach(1, 0, 2))
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(text.contains("would overwrite newer data"), "{text}");
    assert_eq!((server.byte(0), server.byte(512)), (0x21, 0x12));
}

#[tokio::test]
async fn disc_frees_the_role_at_once() {
    let server = Server::start();
    let mut first = server.link(attach(1, 0, 1)).await.unwrap();
    assert!(first.write(0, 0x11));
    first.disconnect();
    let mut second = freed(&server, attach(2, 0, 1)).await;
    assert!(second.write(0, 0x22));
    second.disconnect();
    freed(&server, attach(1, 0, 2)).await;
}

/// As soon as the server has seen the DISC, which nothing tells; long before a holder_timeout.
async fn freed(server: &Server, attach: Attach) -> Link {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match server.link(attach).await {
            Ok(link) => return link,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn a_lost_link_is_fenced_while_its_successor_and_the_other_slots_go_on() {
    let server = Server::start();
    let mut old = server.link(attach(1, 0, 1)).await.unwrap();
    let mut other = server.link(attach(1, 1, 2)).await.unwrap();
    assert!(old.write(0, 0x11) && other.write(512, 0x12));
    let mut new = server.link(attach(1, 0, 3)).await.unwrap();
    let asked = Fence {
        session: attach(1, 0, 0).session,
        identity: old.connection.0.unwrap(),
        incarnation: old.connection.1.unwrap(),
        slot: Slot(0),
        generation: Generation(2),
    };
    let stranger = Fence {
        identity: Id([9; 16]),
        ..asked
    };
    let error = fence(&server.uri(), &stranger, LIMIT).await.unwrap_err();
    assert!(matches!(error, NbdError::OtherExport { .. }), "{error}");
    assert!(old.write(0, 0x10), "nothing was fenced by that");
    fence(&server.uri(), &asked, LIMIT).await.unwrap();
    assert!(!old.write(0, 0x13));
    assert!(new.write(0, 0x14) && other.write(512, 0x15));
    assert_eq!((server.byte(0), server.byte(512)), (0x14, 0x15));
    let late = server.link(attach(1, 0, 2)).await.map(drop);
    let text = late.unwrap_err().to_string();
    assert!(
        text.contains("generation 2 of the link in slot 0 is fenced"),
        "{text}"
    );
    // Asking again is as good.
    fence(&server.uri(), &asked, LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_client_that_begins_anew_takes_over_at_once() {
    let server = Server::start();
    let mut old = server.link(attach(1, 0, 5)).await.unwrap();
    let mut again = attach(1, 0, 1);
    again.session.nonce = Id([9; 16]);
    let mut new = server.link(again).await.unwrap();
    assert!(!old.write(0, 0x11));
    assert!(new.write(0, 0x12));
    assert_eq!(server.byte(0), 0x12);
}
