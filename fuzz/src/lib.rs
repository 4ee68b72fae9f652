//! The node server in this process, for the fuzz targets: the real control plane and data plane over socket pairs.
//!
//! Started once; holds small files in memory. Every conversation must end: a server that goes on waiting after the
//! client's half-close is a finding, as are a panic, a lost link and a wrong byte.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dstd::export::access::Peer as Who;
use dstd::export::backend::{Backend, OpenOptionsOf};
use dstd::export::catalog::Open;
use dstd::export::config::{Config, ExportConfig};
use dstd::export::server::Server;
use dstd::export::worker::{Engine, Workers};
use nbdpeer::Peer;
use nbdpeer::peer::Stream;

/// Above the size at which a READ is served in parts.
pub const SIZE: u64 = 400 << 10;
/// A conversation takes microseconds; one that takes this long never ends.
const LIMIT: Duration = Duration::from_secs(10);

struct Fuzzed {
    server: Arc<Server>,
    runtime: tokio::runtime::Runtime,
    dir: PathBuf,
}

fn fuzzed() -> &'static Fuzzed {
    static FUZZED: OnceLock<Fuzzed> = OnceLock::new();
    FUZZED.get_or_init(|| {
        let dir = PathBuf::from(format!("/dev/shm/dst-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory in memory");
        let mut config = Config::new(BTreeMap::new());
        for (name, read_only) in [("disk", false), ("kept", true)] {
            let path = dir.join(name);
            std::fs::write(&path, vec![0x5a; SIZE as usize]).expect("an image");
            let mut export = ExportConfig::new(path);
            export.read_only = read_only;
            export.holder_timeout = Duration::ZERO;
            config.exports.insert(name.to_owned(), export);
        }
        let engine = match std::env::var("DST_TEST_ENGINE").as_deref() {
            Ok("epoll") => Engine::Plain,
            _ => Engine::Auto,
        };
        let plane = Arc::new(Workers::start(1, engine).expect("workers"));
        let exports = config.exports.iter().map(|(name, export)| {
            let mut options = OpenOptionsOf::new(&export.path, export.read_only);
            options.runtime_dir = dir.join("run");
            let backend = Backend::open(&options).expect("an image that opens");
            let open = Open::new(Arc::new(backend), export);
            (name.clone(), Server::entry(name, export, Ok(open)))
        });
        let exports = exports.collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let guard = runtime.enter();
        let server = Server::new(config, exports, plane);
        drop(guard);
        Fuzzed {
            server,
            runtime,
            dir,
        }
    })
}

/// A fresh connection, nothing said yet.
pub fn connect() -> Peer {
    let fuzzed = fuzzed();
    let (client, server) = UnixStream::pair().expect("a socket pair");
    server.set_nonblocking(true).expect("non-blocking");
    let _guard = fuzzed.runtime.enter();
    let socket: Arc<OwnedFd> = Arc::new(server.into());
    fuzzed.server.newcomer(socket, Who::Unix { uid: 0, pid: 1 });
    let peer = Peer::over(Stream::Unix(client)).expect("a peer");
    peer.time_limit(LIMIT).expect("a time limit");
    peer
}

/// Everything is over, on the server's side too; the read-only export is as it was.
pub fn settle() {
    let fuzzed = fuzzed();
    let begin = Instant::now();
    while fuzzed.server.connections() > 0 {
        assert!(begin.elapsed() < LIMIT, "a link never ended");
        std::thread::yield_now();
    }
}

pub fn kept_is_kept() -> bool {
    std::fs::read(fuzzed().dir.join("kept")).is_ok_and(|kept| kept == vec![0x5a; SIZE as usize])
}
