//! A server process that is stopped while a link is cut: when it goes on, one of the link's writes is in its storage
//! and others are in its socket. The fence is answered when none of them can be applied any more.
//!
//! The server is this test program once more, so that its storage can stall (`serve_with_faults`).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nbdpeer::handshake::encode_option;
use nbdpeer::{Address, Mode, Peer, PeerError, Request, Session, proto::*};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use dstd::export::backend::FaultKind;

use crate::support::{LIMIT, Server, Setup, wait_stopped};

const SIZE: u64 = 8 << 20;
const HELD: u64 = 50 * 4096;
const CHILD: &str = "DST_TEST_SERVE_WITH_FAULTS";

/// Does what it is told on standard input, and says when it is done.
#[test]
#[ignore = "the server of the test below"]
fn serve_with_faults() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Server::start(Setup::new().image("disk", SIZE).faulty());
    let Address::Tcp(tcp) = server.tcp() else {
        unreachable!()
    };
    println!("\ntcp={tcp}");
    let mut hold = None;
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "hold" => hold = Some(server.faults("disk").hold(FaultKind::Write, 0..HELD)),
            "reached" => assert!(hold.as_ref().unwrap().wait_reached(1, LIMIT)),
            "release" => drop(hold.take()),
            other => panic!("{other}"),
        }
        println!("\ndone");
    }
}

struct Stopped {
    child: Child,
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
    tcp: Address,
}

impl Stopped {
    fn start() -> Stopped {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "stopped::serve_with_faults",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let tcp = wait_for(&mut said, "tcp=");
        Stopped {
            child,
            orders,
            said,
            tcp: Address::Tcp(tcp),
        }
    }

    fn order(&mut self, what: &str) {
        writeln!(self.orders, "{what}").unwrap();
        wait_for(&mut self.said, "done");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn link(&self, session: &Session) -> Peer {
        let mut peer = Peer::hello(&self.tcp).unwrap();
        peer.session(session).unwrap();
        peer.go("disk").unwrap();
        peer
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What follows the words in the first line that begins with them.
fn wait_for(said: &mut impl BufRead, words: &str) -> String {
    for line in said.lines() {
        if let Some(rest) = line.unwrap().strip_prefix(words) {
            return rest.to_owned();
        }
    }
    panic!("the server ended before it said {words}");
}

fn session(slot: u32, generation: u64) -> Session {
    Session {
        slot,
        generation,
        client: [0xc1; 16],
        nonce: [1; 16],
        export: "disk".to_owned(),
        ..Session::default()
    }
}

#[test]
fn writes_that_a_stopped_server_still_has_never_appear_after_the_fence() {
    let mut server = Stopped::start();
    let mut other = server.link(&session(1, 1));
    for round in 1..=6u64 {
        let mut old = server.link(&session(0, round));
        server.order("hold");
        let stalled = Request::write(0, vec![0x0d; 4096]).cookie(1);
        old.send(&stalled.encode(Mode::Simple)).unwrap();
        server.order("reached");
        server.signal(Signal::SIGSTOP);
        wait_stopped(server.child.id());
        let mut bytes = Vec::new();
        for n in 0..200 {
            let write = Request::write(n % 50 * 4096, vec![0x0d; 4096]).cookie(n);
            bytes.extend(write.encode(Mode::Simple));
        }
        old.time_limit(Duration::from_millis(100)).unwrap();
        assert!(
            old.send_until_full(&bytes) >= 4096,
            "nothing waits in the socket"
        );
        let kept = match round % 3 {
            0 => {
                old.reset();
                None
            }
            1 => {
                drop(old);
                None
            }
            _ => {
                old.half_close().unwrap();
                Some(old)
            }
        };
        // The kernel makes the connection; the server finds it, and the fence in it, when it goes on.
        let mut fresh = Peer::connect(&server.tcp).unwrap();
        let mut hello = (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
        hello.extend(encode_option(
            OPT_FENCE,
            &session(0, round).fence().encode(),
        ));
        fresh.send(&hello).unwrap();
        server.signal(Signal::SIGCONT);
        fresh.receive(18).unwrap();
        other.write(HELD, &[1; 4096]).unwrap();
        fresh.time_limit(Duration::from_millis(300)).unwrap();
        let early = fresh.receive(1);
        assert!(
            matches!(early, Err(PeerError::Silent)),
            "round {round}: the fence was answered while the write ran"
        );
        fresh.time_limit(LIMIT).unwrap();
        server.order("release");
        fresh.replies(OPT_FENCE).unwrap();
        let new = vec![round as u8; HELD as usize];
        other.write(0, &new).unwrap();
        for _ in 0..20 {
            assert!(
                other.read(0, HELD).unwrap() == new,
                "round {round}: an old write appeared"
            );
        }
        drop(kept);
    }
}
