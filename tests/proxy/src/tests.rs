//! The proxy between two ends that the test plays itself, byte by byte: what arrives, in which order, and how it ends.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbdpeer::handshake::encode_option;
use nbdpeer::{Mode, Request, proto};
use tempfile::TempDir;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for bytes that come, in a wait for bytes that must not.
const QUIET: Duration = Duration::from_millis(60);
const GO_DATA: &[u8] = b"what GO says";

trait End: Read + Write {
    fn limit(&self, limit: Duration);
}

impl End for TcpStream {
    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).expect("a time limit");
    }
}

impl End for UnixStream {
    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).expect("a time limit");
    }
}

struct Bench {
    dir: TempDir,
    backend: TcpListener,
    proxy: Option<std::thread::JoinHandle<()>>,
    address: String,
}

/// A connection through the proxy, its handshake done.
struct Wire {
    client: Box<dyn End>,
    server: Box<dyn End>,
}

impl Bench {
    fn new() -> Self {
        Self::listening("127.0.0.1:0")
    }

    /// `{dir}` in the address: the bench's directory.
    fn listening(listen: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let backend = TcpListener::bind("127.0.0.1:0").expect("a backend");
        let to = Address::Tcp(backend.local_addr().expect("its address").to_string());
        let control = dir.path().join("control");
        let listen = listen.replace("{dir}", &dir.path().display().to_string());
        let path = listen.clone();
        let (told, tell) = std::sync::mpsc::channel();
        let proxy = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async move {
                let orders = UnixListener::bind(&control).expect("a control socket");
                let listen = path.parse().expect("an address");
                let listener = Listener::bind(&listen).await.expect("a listener");
                told.send(listener.address()).expect("a test that waits");
                let shared = Arc::new(Shared::new(to, |_| {}));
                tokio::select! {
                    end = control::serve(shared.clone(), orders) => end.expect("no error"),
                    end = take_clients(shared, listener) => end.expect("no error"),
                }
            });
        });
        let told = tell.recv().expect("the proxy's address");
        let address = if listen.contains('/') { listen } else { told };
        Self {
            dir,
            backend,
            proxy: Some(proxy),
            address,
        }
    }

    fn try_ctl(&self, line: &str) -> Result<String, String> {
        let mut socket =
            UnixStream::connect(self.dir.path().join("control")).expect("the control socket");
        socket.limit(LIMIT);
        socket
            .write_all(format!("{line}\n").as_bytes())
            .expect("sent");
        socket.shutdown(std::net::Shutdown::Write).expect("shut");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        let answer = answer.trim_end();
        match answer.strip_prefix("ok") {
            Some(text) => Ok(text.trim_start().to_owned()),
            None => Err(answer.to_owned()),
        }
    }

    fn ctl(&self, line: &str) -> String {
        self.try_ctl(line)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn connect(&self) -> Box<dyn End> {
        let end: Box<dyn End> = match self.address.contains('/') {
            true => Box::new(UnixStream::connect(&self.address).expect("connected")),
            false => Box::new(TcpStream::connect(&self.address).expect("connected")),
        };
        end.limit(LIMIT);
        end
    }

    fn wire(&self) -> Wire {
        let client = self.connect();
        let (server, _) = self.backend.accept().expect("accepted");
        server.limit(LIMIT);
        let mut wire = Wire {
            client,
            server: Box::new(server),
        };
        let mut greeting = [proto::NBDMAGIC.to_be_bytes(), proto::IHAVEOPT.to_be_bytes()].concat();
        greeting.extend(3u16.to_be_bytes());
        wire.down(&greeting);
        wire.up(&[
            &3u32.to_be_bytes()[..],
            &encode_option(proto::OPT_GO, GO_DATA),
        ]
        .concat());
        let mut ack = proto::REPLY_MAGIC.to_be_bytes().to_vec();
        ack.extend(
            [
                proto::OPT_GO.to_be_bytes(),
                proto::REP_ACK.to_be_bytes(),
                [0; 4],
            ]
            .concat(),
        );
        wire.down(&ack);
        wire
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ctl("quit");
            let ended = self.proxy.take().map(|proxy| proxy.join());
            assert!(ended.is_some_and(|end| end.is_ok()), "the proxy panicked");
        }
    }
}

fn send(end: &mut dyn End, bytes: &[u8]) {
    end.write_all(bytes).expect("sent");
}

fn receive(end: &mut dyn End, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    end.read_exact(&mut bytes).expect("as many bytes");
    bytes
}

/// All that comes, and how it ends.
fn rest(end: &mut dyn End) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let error = end.read_to_end(&mut bytes).err().map(|error| error.kind());
    (bytes, error)
}

fn is_quiet(end: &mut dyn End) -> bool {
    end.limit(QUIET);
    let got = end.read(&mut [0]);
    end.limit(LIMIT);
    matches!(got, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

impl Wire {
    fn up(&mut self, bytes: &[u8]) {
        send(&mut *self.client, bytes);
        assert!(
            receive(&mut *self.server, bytes.len()) == bytes,
            "other bytes came to the server"
        );
    }

    fn down(&mut self, bytes: &[u8]) {
        send(&mut *self.server, bytes);
        assert!(
            receive(&mut *self.client, bytes.len()) == bytes,
            "other bytes came to the client"
        );
    }
}

fn write(cookie: u64, offset: u64, length: usize) -> Vec<u8> {
    Request::write(offset, vec![cookie as u8; length])
        .cookie(cookie)
        .encode(Mode::Simple)
}

fn read(cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    Request::new(proto::READ, offset, length)
        .cookie(cookie)
        .encode(Mode::Simple)
}

fn reply(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    let mut out = proto::SIMPLE_MAGIC.to_be_bytes().to_vec();
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(data);
    out
}

#[test]
fn without_rules_everything_passes() {
    for listen in ["127.0.0.1:0", "{dir}/socket"] {
        let bench = Bench::listening(listen);
        let mut wire = bench.wire();
        wire.up(&[write(1, 0, 100_000), read(2, 4096, 512), write(3, 512, 1)].concat());
        wire.down(&[reply(0, 2, &[9; 512]), reply(5, 1, b""), reply(0, 3, b"")].concat());
        assert_eq!(bench.ctl("list"), "conn 1 requests 3 replies 3");
        // What isn't NBD passes, too.
        wire.up(b"no such magic");
        wire.down(b"nor this one");
        drop(wire.client);
        assert_eq!(rest(&mut *wire.server), (Vec::new(), None));
    }
}

/// How much of a message of 28 + 1000 or 16 + 1000 bytes comes through before each place.
#[test]
fn links_are_reset_at_a_byte_in_both_directions() {
    let bench = Bench::new();
    for (when, up, down) in [
        ("before", 0, 0),
        ("header", 14, 8),
        ("header 1", 1, 1),
        ("header 99", 28, 16),
        ("payload", 528, 516),
        ("payload 999", 1027, 1015),
        ("after", 1028, 1016),
    ] {
        let mut wire = bench.wire();
        let id = bench.ctl(&format!(
            "arm request write at 4096 4096 when {when} do rst"
        ));
        wire.up(&write(1, 0, 512));
        send(&mut *wire.client, &write(2, 4000, 1000));
        assert_eq!(
            rest(&mut *wire.server),
            (
                write(2, 4000, 1000)[..up].to_vec(),
                Some(ErrorKind::ConnectionReset)
            ),
            "{when}"
        );
        assert_eq!(
            rest(&mut *wire.client),
            (Vec::new(), Some(ErrorKind::ConnectionReset)),
            "{when}"
        );
        assert!(
            bench
                .ctl(&format!("wait {id} fired"))
                .ends_with("request write 4000 1000")
        );

        let mut wire = bench.wire();
        bench.ctl(&format!("arm reply read nth 2 when {when} do rst"));
        wire.up(&[read(1, 0, 10), read(2, 4096, 1000), write(3, 0, 1)].concat());
        wire.down(&[reply(0, 1, &[1; 10]), reply(0, 3, b"")].concat());
        send(&mut *wire.server, &reply(0, 2, &[2; 1000]));
        assert_eq!(
            rest(&mut *wire.client),
            (
                reply(0, 2, &[2; 1000])[..down].to_vec(),
                Some(ErrorKind::ConnectionReset)
            ),
            "{when}"
        );
        assert_eq!(
            rest(&mut *wire.server),
            (Vec::new(), Some(ErrorKind::ConnectionReset)),
            "{when}"
        );
    }
}

#[test]
fn one_side_is_reset_and_the_other_hears_nothing() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    bench.ctl("arm request write when payload do rst client");
    send(&mut *wire.client, &write(1, 0, 1000));
    assert_eq!(
        rest(&mut *wire.client),
        (Vec::new(), Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(receive(&mut *wire.server, 528), write(1, 0, 1000)[..528]);
    assert!(is_quiet(&mut *wire.server));
    assert_eq!(bench.ctl("list"), "conn 1 requests 1 replies 0");
    bench.ctl("on 1 rst server");
    assert_eq!(
        rest(&mut *wire.server),
        (Vec::new(), Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(bench.ctl("list"), "");
}

#[test]
fn fin_ends_both_ways_and_half_only_one() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    bench.ctl("arm reply when header do fin client");
    wire.up(&read(1, 0, 100));
    send(&mut *wire.server, &reply(0, 1, &[1; 100]));
    assert_eq!(
        rest(&mut *wire.client),
        (reply(0, 1, b"")[..8].to_vec(), None)
    );
    send(&mut *wire.client, &write(2, 0, 10));
    assert!(
        is_quiet(&mut *wire.server),
        "what the client sends after a FIN goes on"
    );

    let mut wire = bench.wire();
    bench.ctl("on 2 half client");
    assert_eq!(rest(&mut *wire.client), (Vec::new(), None));
    wire.up(&write(2, 0, 10));
    send(&mut *wire.server, &reply(0, 2, b""));
    drop(wire.client);
    assert_eq!(rest(&mut *wire.server), (Vec::new(), None));
}

#[test]
fn a_stall_is_one_way_and_heals() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    bench.ctl("on all stall up");
    send(&mut *wire.client, &write(1, 0, 10));
    wire.down(&reply(0, 9, b""));
    assert!(is_quiet(&mut *wire.server));
    bench.ctl("heal all");
    assert_eq!(receive(&mut *wire.server, 38), write(1, 0, 10));
}

#[test]
fn a_hole_swallows() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    bench.ctl("arm reply nth 2 when header 3 do hole down");
    wire.up(&[write(1, 0, 10), write(2, 0, 10)].concat());
    send(
        &mut *wire.server,
        &[reply(0, 1, b""), reply(0, 2, b"")].concat(),
    );
    let came = [reply(0, 1, b""), reply(0, 2, b"")[..3].to_vec()].concat();
    assert_eq!(receive(&mut *wire.client, 19), came);
    assert!(is_quiet(&mut *wire.client));
    wire.up(&write(3, 0, 10));
}

/// The stale write: kept back while its link is lost for the client, and let go later.
#[test]
fn a_held_write_comes_after_its_link_is_gone() {
    for cut in ["rst client", "fin client"] {
        let bench = Bench::new();
        let mut wire = bench.wire();
        let id = bench.ctl(&format!("arm request write at 4096 4607 do hold and {cut}"));
        wire.up(&write(1, 0, 10));
        send(
            &mut *wire.client,
            &[write(2, 4096, 512), write(3, 8192, 512)].concat(),
        );
        bench.ctl(&format!("wait {id} fired"));
        drop(wire.client);
        assert!(is_quiet(&mut *wire.server), "it came at once");
        // The replay over a new link is answered meanwhile.
        let mut other = bench.wire();
        other.up(&write(2, 4096, 512));
        other.down(&reply(0, 2, b""));
        bench.ctl(&format!("release {id}"));
        assert_eq!(receive(&mut *wire.server, 540), write(2, 4096, 512));
        assert!(bench.try_ctl(&format!("wait {id} answered 0")).is_err());
        send(&mut *wire.server, &reply(5, 2, b""));
        assert_eq!(bench.ctl(&format!("wait {id} answered")), "5");
        assert!(
            bench
                .try_ctl(&format!("release {id}"))
                .is_err_and(|e| e.contains("holds nothing"))
        );
    }
}

#[test]
fn a_held_request_is_overtaken() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    let id = bench.ctl("arm request read do hold");
    send(&mut *wire.client, &read(1, 0, 10));
    wire.up(&write(2, 0, 10));
    wire.down(&reply(0, 2, b""));
    bench.ctl(&format!("release {id}"));
    assert_eq!(receive(&mut *wire.server, 28), read(1, 0, 10));
    wire.down(&reply(0, 1, &[1; 10]));
}

#[test]
fn what_can_not_follow_half_a_message_is_refused() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    let id = bench.ctl("arm request read do hold");
    bench.ctl("arm request write when payload do rst client");
    send(
        &mut *wire.client,
        &[read(1, 0, 10), write(2, 0, 100)].concat(),
    );
    assert_eq!(receive(&mut *wire.server, 78), write(2, 0, 100)[..78]);
    bench.ctl("wait 2 fired");
    assert!(
        bench
            .try_ctl(&format!("release {id}"))
            .is_err_and(|e| e.contains("part of another message"))
    );
}

#[test]
fn bytes_and_messages_are_spoilt() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    wire.up(&read(1, 0, 10));
    wire.up(&read(2, 0, 10));
    wire.up(&read(3, 0, 10));
    let data = [7; 10];
    bench.ctl("arm reply when payload 4 do garble");
    bench.ctl("arm reply nth 2 when header 2 do dup");
    bench.ctl("arm reply nth 3 do twice");
    let all = [reply(0, 1, &data), reply(0, 2, &data), reply(0, 3, &data)].concat();
    send(&mut *wire.server, &all);
    let mut want = [&all[..54], &all[53..], &all[52..]].concat();
    want[20] ^= 0xff;
    let got = receive(&mut *wire.client, want.len());
    assert_eq!(got[..26], want[..26], "garbled");
    let second = reply(0, 2, &data);
    assert_eq!(
        got[26..53],
        [&second[..2], &second[2..3], &second[2..]].concat(),
        "dup"
    );
    assert_eq!(
        got[53..],
        [reply(0, 3, &data), reply(0, 3, &data)].concat(),
        "twice"
    );
    assert!(is_quiet(&mut *wire.client));
}

/// Every rule counts every message; two whose turn it is at the same one fire one after the other.
#[test]
fn rules_take_turns() {
    let bench = Bench::new();
    let mut wire = bench.wire();
    bench.ctl("arm request nth 2 do hold");
    bench.ctl("arm request nth 2 do hold");
    send(
        &mut *wire.client,
        &[
            write(1, 0, 10),
            write(2, 0, 10),
            write(3, 0, 10),
            write(4, 0, 10),
        ]
        .concat(),
    );
    assert_eq!(
        receive(&mut *wire.server, 76),
        [write(1, 0, 10), write(4, 0, 10)].concat()
    );
    bench.ctl("release 2");
    assert_eq!(receive(&mut *wire.server, 38), write(3, 0, 10));
    bench.ctl("release 1");
    assert_eq!(receive(&mut *wire.server, 38), write(2, 0, 10));
}

#[test]
fn new_clients_are_reset_or_kept_waiting() {
    let bench = Bench::new();
    bench.ctl("accept no");
    assert_eq!(
        rest(&mut *bench.connect()),
        (Vec::new(), Some(ErrorKind::ConnectionReset))
    );
    bench.ctl("accept stall");
    assert!(is_quiet(&mut *bench.connect()));
    bench.ctl("accept yes");
    bench.wire().up(&write(1, 0, 10));
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    for (line, text) in [
        ("", "the command is missing"),
        ("dance", "`dance` is no command"),
        ("on 7 rst", "there is no connection 7"),
        ("on all hold extra", "too much"),
        ("heal some", "neither a number nor all"),
        ("release 3", "there is no such rule"),
        ("wait 3 fired", "there is no such rule"),
        ("accept maybe", "neither yes, no nor stall"),
    ] {
        let error = bench.try_ctl(line).expect_err(line);
        assert!(error.contains(text), "{line}: {error}");
    }
    bench.ctl("arm request do rst");
    assert!(
        bench
            .try_ctl("wait 1 fired 0")
            .is_err_and(|e| e.contains("not fired within 0 s"))
    );
    bench.ctl("disarm all");
    let mut wire = bench.wire();
    wire.up(&write(1, 0, 10));
    assert!(
        bench
            .try_ctl("on 1 garble")
            .is_err_and(|e| e.contains("needs a message"))
    );
}
