//! `dstd export` as a process: its arguments, signals, reload, systemd's sockets and messages.
//! Clients are `dstd probe` of the same build; what connections do is tested elsewhere.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const DSTD: &str = env!("CARGO_BIN_EXE_dstd");

/// A server that ends with the test.
struct Server {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command) -> Server {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Server { child, log }
    }

    /// The log's next line that says so; its end is a failure.
    fn says(&mut self, words: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.log.read_line(&mut line).unwrap(),
                0,
                "no `{words}` in\n{seen}"
            );
            if line.contains(words) {
                return line;
            }
            seen += &line;
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn ends(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("a", 1 << 20), ("b", 2 << 20)] {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(size).unwrap();
    }
    dir
}

/// Status and what was said.
fn dstd(args: &[&str]) -> (Option<i32>, String) {
    let ran = Command::new(DSTD).args(args).output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.code(), String::from_utf8(said).unwrap())
}

fn probe(export: &str, socket: &Path) -> (Option<i32>, String) {
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    dstd(&["probe", &uri])
}

fn yaml(dir: &Path, exports: &str) -> String {
    let (dir, file) = (dir.display(), dir.join("e.yaml"));
    let text = format!("version: 1\nlisten: ['unix:{dir}/s']\nexports:\n{exports}");
    fs::write(&file, text.replace("DIR", &dir.to_string())).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_server_of_the_command_line_serves_and_ends_when_told() {
    let dir = directory();
    let socket = dir.path().join("s");
    let (export, listen) = (dir.path().join("a"), format!("unix:{}", socket.display()));
    let export = format!("a={}", export.display());
    let mut server =
        Server::start(Command::new(DSTD).args(["export", &export, "--listen", &listen]));
    server.says("listening on unix:");
    let (status, said) = probe("a", &socket);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("1048576 bytes"), "{said}");
    server.signal(Signal::SIGHUP);
    server.says("SIGHUP changes nothing");
    server.signal(Signal::SIGTERM);
    server.says("stopping");
    assert_eq!(server.ends(), Some(0));
    assert!(!socket.exists(), "the socket's path stayed behind");
}

#[test]
fn sighup_reads_the_file_again_and_a_wrong_file_changes_nothing() {
    let dir = directory();
    let socket = dir.path().join("s");
    let file = yaml(dir.path(), "  a: {path: DIR/a}\n");
    let mut server = Server::start(Command::new(DSTD).args(["export", "--config", &file]));
    server.says("listening on unix:");
    yaml(
        dir.path(),
        "  a: {path: DIR/a}\n  b: {path: DIR/b, raed_only: yes}\n",
    );
    server.signal(Signal::SIGHUP);
    server.says("nothing changes");
    server.says("e.yaml:5:");
    assert_eq!(probe("b", &socket).0, Some(1));
    assert_eq!(probe("a", &socket).0, Some(0));
    yaml(dir.path(), "  b: {path: DIR/b, read_only: yes}\n");
    server.signal(Signal::SIGHUP);
    server.says("is reloaded");
    let (status, said) = probe("b", &socket);
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("2097152 bytes") && said.contains("read_only"),
        "{said}"
    );
    assert_eq!(probe("a", &socket).0, Some(1));
    server.signal(Signal::SIGINT);
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn systemd_is_told_what_happens() {
    let dir = directory();
    let messages = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    messages
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let next = || {
        let mut bytes = [0; 4096];
        let n = messages.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    };
    let file = yaml(dir.path(), "  a: {path: DIR/a}\n  c: {path: DIR/missing}\n");
    let mut command = Command::new(DSTD);
    command.args(["export", "--config", &file]);
    let server = Server::start(command.env("NOTIFY_SOCKET", dir.path().join("notify")));
    let ready = next();
    assert!(ready.contains("READY=1"), "{ready}");
    // One export of two can't be opened: the other is served, and the status names it.
    assert!(ready.contains("serving 1 of 2 exports"), "{ready}");
    assert!(ready.contains("not to be had: c"), "{ready}");
    server.signal(Signal::SIGHUP);
    let reloading = next();
    assert!(
        reloading.contains("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(next().contains("READY=1"));
    server.signal(Signal::SIGTERM);
    assert!(next().contains("STOPPING=1"));
}

#[test]
fn sockets_of_systemd_are_served_and_those_asked_for_left_alone() {
    let dir = directory();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" export a={}/a --listen unix:{}/s 3<&{}",
        dir.path().display(),
        dir.path().display(),
        listener.as_raw_fd()
    );
    let mut server = Server::start(Command::new("bash").args(["-c", &script, DSTD]));
    let line = server.says("listening on");
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
    drop(listener);
    let (status, said) = dstd(&["probe", &format!("nbd://127.0.0.1:{port}/a")]);
    assert_eq!(status, Some(0), "{said}");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn what_cant_be_served_is_told_before_anything_starts() {
    let dir = directory();
    let file = dir.path().join("a");
    let file = file.to_str().unwrap();
    let usage = [
        (vec!["export"], "NAME=PATH"),
        (vec!["export", "a"], "write NAME=PATH"),
        (vec!["export", "a="], "write NAME=PATH"),
        (
            vec!["export", "a=/x", "--listen", "nowhere"],
            "no address to listen on",
        ),
        (vec!["export", "a=/x", "--allow", "host"], "is no address"),
        (vec!["export", "a=/x", "a=/y"], "two exports `a`"),
        (
            vec!["export", "a=/x", "--config", "e.yaml"],
            "cannot be used with",
        ),
    ];
    for (args, says) in usage {
        let (status, said) = dstd(&args);
        assert_eq!(status, Some(64), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    let (status, said) = dstd(&["export", "a=/nowhere/a", "--listen", "127.0.0.1:0"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("export `a`") && said.contains("/nowhere/a"),
        "{said}"
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = dstd(&["export", &format!("a={file}"), "--listen", &address]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains(&format!("can't listen on {address}")),
        "{said}"
    );
}

#[test]
fn the_example_is_right() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/export.yaml");
    let (status, said) = dstd(&["export", "--check", "--config", example.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("export `disk0`"), "{said}");
    let dir = directory();
    let wrong = yaml(dir.path(), "  a: {path: a, allow: [x]}\n");
    let (status, said) = dstd(&["export", "--check", "--config", &wrong]);
    assert_eq!(status, Some(4), "{said}");
    assert!(
        said.contains("e.yaml:4:13: ") && said.contains("e.yaml:4:24: "),
        "{said}"
    );
}
