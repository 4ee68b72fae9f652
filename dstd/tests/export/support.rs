//! Servers for these tests, and what all of them need: images with a known pattern, links, waiting for a state.
//!
//! `Server` runs in this process and can have faults in its storage; `Process` is `dstd export` and can be killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nbdpeer::{Address, Mode, Peer};
use tempfile::TempDir;

use dstd::export::backend::{Backend, FaultScript, OpenOptionsOf};
use dstd::export::catalog::Open;
use dstd::export::config::{Config, ExportConfig, Listen};
use dstd::export::limits::Limits;
use dstd::export::listen;
use dstd::export::server::Server as NodeServer;
use dstd::export::worker::{Engine, Workers};

/// Longer than any honest step of a test takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// Bytes that tell their place.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let word = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        word.to_be_bytes()[(at % 8) as usize]
    };
    (0..length as u64)
        .map(|n| byte(offset.wrapping_add(n)))
        .collect()
}

/// Looks again and again until it is so, and fails after a while.
pub fn within(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// After SIGSTOP, which takes its time.
pub fn wait_stopped(pid: u32) {
    let stat = format!("/proc/{pid}/stat");
    within("the process is stopped", || {
        fs::read_to_string(&stat).unwrap().contains(") T ")
    });
}

/// What a server should serve.
pub struct Setup {
    dir: TempDir,
    config: Config,
    faulty: bool,
}

impl Setup {
    pub fn new() -> Setup {
        let mut config = Config::new(BTreeMap::new());
        config.limits = Limits {
            connections: 4096,
            connections_per_peer: 4096,
            handshakes: 4096,
            handshakes_per_peer: 4096,
            ..Limits::default()
        };
        config.drain_timeout = Duration::from_millis(100);
        config.workers = Some(2);
        Setup {
            dir: tempfile::tempdir().unwrap(),
            config,
            faulty: false,
        }
    }

    /// An export filled with [`pattern`].
    pub fn image(self, name: &str, size: u64) -> Setup {
        let setup = self.sparse(name, size);
        let file = File::options()
            .write(true)
            .open(setup.dir.path().join(name));
        file.unwrap().write_all(&pattern(0, size as usize)).unwrap();
        setup
    }

    /// An export that is one hole.
    pub fn sparse(mut self, name: &str, size: u64) -> Setup {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        self.config
            .exports
            .insert(name.to_owned(), ExportConfig::new(path));
        self
    }

    fn each(mut self, change: impl Fn(&mut ExportConfig)) -> Setup {
        self.config.exports.values_mut().for_each(change);
        self
    }

    pub fn read_only(self) -> Setup {
        self.each(|export| export.read_only = true)
    }

    pub fn read_only_export(mut self, name: &str) -> Setup {
        self.config.exports.get_mut(name).unwrap().read_only = true;
        self
    }

    pub fn shared(self) -> Setup {
        self.each(|export| export.shared = true)
    }

    pub fn holder_timeout(self, timeout: Duration) -> Setup {
        self.each(|export| export.holder_timeout = timeout)
    }

    pub fn allow(mut self, name: &str, prefix: &str) -> Setup {
        let export = self.config.exports.get_mut(name).unwrap();
        export.access.allow = Some(vec![prefix.parse().unwrap()]);
        self
    }

    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Setup {
        change(&mut self.config.limits);
        self
    }

    /// [`Server::faults`] can be put into the storage.
    pub fn faulty(mut self) -> Setup {
        self.faulty = true;
        self
    }

    /// All of it, leaving an empty one behind.
    fn take(&mut self) -> Setup {
        std::mem::replace(self, Setup::new())
    }

    /// The configuration as a file; the values are those of `config`.
    fn yaml(&self, unix: &Listen) -> String {
        let mut text = format!("version: 1\nlisten: [\"{unix}\", \"127.0.0.1:0\"]\n");
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        text += &format!(
            "workers: 2\ndrain_timeout: {}\n",
            milliseconds(self.config.drain_timeout)
        );
        let limits = &self.config.limits;
        text += "limits:\n";
        for (key, value) in [
            ("connections", limits.connections.to_string()),
            (
                "connections_per_peer",
                limits.connections_per_peer.to_string(),
            ),
            ("handshakes", limits.handshakes.to_string()),
            (
                "handshakes_per_peer",
                limits.handshakes_per_peer.to_string(),
            ),
            (
                "in_flight_per_link",
                format!("{}KiB", limits.in_flight_per_link >> 10),
            ),
            ("in_flight", format!("{}KiB", limits.in_flight >> 10)),
        ] {
            text += &format!("  {key}: {value}\n");
        }
        text += "exports:\n";
        for (name, export) in &self.config.exports {
            text += &format!("  {name}:\n    path: {}\n", export.path.display());
            text += &format!(
                "    holder_timeout: {}\n",
                milliseconds(export.holder_timeout)
            );
            text += &format!(
                "    read_only: {}\n",
                if export.read_only { "yes" } else { "no" }
            );
        }
        text
    }
}

/// A running server's addresses and images.
pub struct Place {
    setup: Setup,
    unix: PathBuf,
    tcp: SocketAddr,
}

impl Place {
    /// Its Unix socket.
    pub fn address(&self) -> Address {
        Address::Unix(self.unix.clone())
    }

    pub fn tcp(&self) -> Address {
        Address::Tcp(self.tcp.to_string())
    }

    pub fn connect(&self) -> Peer {
        Peer::connect(&self.address()).unwrap()
    }

    pub fn connect_tcp(&self) -> Peer {
        Peer::connect(&self.tcp()).unwrap()
    }

    pub fn hello(&self) -> Peer {
        Peer::hello(&self.address()).unwrap()
    }

    pub fn link(&self, export: &str, mode: Mode) -> Peer {
        self.link_at(&self.address(), export, mode)
    }

    pub fn link_at(&self, address: &Address, export: &str, mode: Mode) -> Peer {
        let mut peer = Peer::hello(address).unwrap();
        peer.negotiate(mode).unwrap();
        peer.go(export).unwrap();
        peer
    }

    /// With base:allocation, where there can be one.
    pub fn mapping_link(&self, export: &str, mode: Mode) -> Peer {
        let mut peer = self.hello();
        peer.negotiate(mode).unwrap();
        if mode != Mode::Simple {
            peer.allocation(export).unwrap();
        }
        peer.go(export).unwrap();
        peer
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.setup.dir.path().join(name)
    }

    pub fn contents(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    /// How much of the disk the image takes, in units of 512 bytes.
    pub fn blocks(&self, name: &str) -> u64 {
        fs::metadata(self.file(name)).unwrap().blocks()
    }

    /// Puts [`pattern`] into these ranges, past the server.
    pub fn write_file(&self, name: &str, ranges: &[(u64, u64)]) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        for (offset, length) in ranges {
            file.write_all_at(&pattern(*offset, *length as usize), *offset)
                .unwrap();
        }
    }

    pub fn fill(&self, name: &str, contents: &[u8]) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        file.write_all_at(contents, 0).unwrap();
    }
}

/// The server in this process.
pub struct Server {
    place: Place,
    server: Arc<NodeServer>,
    faults: BTreeMap<String, Arc<FaultScript>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Deref for Server {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// DST_TEST_ENGINE=epoll runs these tests without io_uring.
fn engine() -> Engine {
    match std::env::var("DST_TEST_ENGINE").as_deref() {
        Ok("epoll") => Engine::Plain,
        Ok("io_uring") => Engine::Uring,
        _ => Engine::Auto,
    }
}

impl Server {
    pub fn start(setup: Setup) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.enter();
        let plane = Arc::new(Workers::start(2, engine()).unwrap());
        let mut faults = BTreeMap::new();
        let mut exports = BTreeMap::new();
        for (name, config) in &setup.config.exports {
            let options = OpenOptionsOf {
                runtime_dir: setup.dir.path().join("run"),
                ..OpenOptionsOf::new(&config.path, config.read_only)
            };
            let mut backend = Backend::open(&options).unwrap();
            if setup.faulty {
                let script = FaultScript::new();
                backend = backend.with_faults(script.clone());
                faults.insert(name.clone(), script);
            }
            let open = Open::new(Arc::new(backend), config);
            exports.insert(name.clone(), NodeServer::entry(name, config, Ok(open)));
        }
        let server = NodeServer::new(setup.config.clone(), exports, plane);
        let unix = setup.dir.path().join("socket");
        let wanted = [
            Listen::Unix(unix.clone()),
            Listen::Tcp(([127, 0, 0, 1], 0).into()),
        ];
        let mut tcp = None;
        for listener in listen::open(&wanted).unwrap() {
            if let Listen::Tcp(address) = listener.place().unwrap() {
                tcp = Some(address);
            }
            runtime.spawn(server.clone().listen(listener));
        }
        drop(guard);
        let tcp = tcp.unwrap();
        Server {
            place: Place { setup, unix, tcp },
            server,
            faults,
            runtime: Some(runtime),
        }
    }

    /// The same images and configuration served anew.
    pub fn restart(mut self) -> Server {
        let setup = self.place.setup.take();
        drop(self);
        Server::start(setup)
    }

    pub fn faults(&self, export: &str) -> Arc<FaultScript> {
        self.faults[export].clone()
    }

    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    pub fn wait_connections(&self, count: usize) {
        within(&format!("{count} connections"), || {
            self.connections() == count
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(self.server.stop());
            runtime.shutdown_timeout(LIMIT);
        }
    }
}

/// `dstd export`.
pub struct Process {
    place: Place,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Deref for Process {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Process {
    /// Returns when the server says to systemd's socket that it is ready, and where.
    pub fn start(setup: Setup) -> Process {
        let dir = setup.dir.path().to_owned();
        let unix = dir.join("socket");
        let config = dir.join("config.yaml");
        fs::write(&config, setup.yaml(&Listen::Unix(unix.clone()))).unwrap();
        let notify = dir.join("notify");
        let _ = fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready.set_read_timeout(Some(LIMIT)).unwrap();
        let log = dir.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_dstd"))
            .args(["export", "--log", "warn", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("JOURNAL_STREAM")
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(&log)
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        let mut message = [0; 4096];
        let said = match ready.recv(&mut message) {
            Ok(length) => String::from_utf8_lossy(&message[..length]).into_owned(),
            Err(error) => panic!(
                "never ready ({error}): {}",
                fs::read_to_string(&log).unwrap()
            ),
        };
        let words = said.split([' ', ',', '\n']);
        let tcp = words.filter_map(|word| word.parse().ok()).next();
        let tcp = tcp.unwrap_or_else(|| panic!("no address in {said}"));
        Process {
            place: Place { setup, unix, tcp },
            child: Mutex::new(child),
            log,
        }
    }

    fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The same images and configuration again, after [`Process::kill`].
    pub fn restart(mut self) -> Process {
        let setup = self.place.setup.take();
        drop(self);
        Process::start(setup)
    }

    /// Open descriptors, when their number no longer changes.
    pub fn settled_fds(&self) -> usize {
        let fds = format!("/proc/{}/fd", self.pid());
        let mut last = (0, 0);
        within("the number of descriptors settles", || {
            let count = fs::read_dir(&fds).unwrap().count();
            last = if count == last.0 {
                (count, last.1 + 1)
            } else {
                (count, 0)
            };
            last.1 == 40
        });
        last.0
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.unwrap().trim().parse::<u64>().unwrap() << 10
    }

    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Lines of its log that a client can't be the reason of.
    pub fn complaints(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap();
        let bad = |line: &&str| line.contains("panicked") || line.contains("ERROR");
        log.lines().filter(bad).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!(
                "the server's log ends with:\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}
