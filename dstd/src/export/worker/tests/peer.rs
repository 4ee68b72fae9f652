//! The harness: a server of one file and a client that speaks raw bytes.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::super::pace::Way;
use super::super::request::{CMD_DISC, CMD_READ, CMD_WRITE, FLAG_PAYLOAD_LEN};
use super::super::request::{EXTENDED_REQUEST_MAGIC, SEND_CACHE, SEND_DF, SEND_FAST_ZERO};
use super::super::{Engine, Workers, reply};
use crate::export::backend::{Backend, OpenOptionsOf};
use crate::export::link::{End, LinkGate, LinkLimits, ReplyMode, Transmission, WriterRole};
use crate::kernel::NbdFlags;
use crate::nbd::proto::{REQUEST_MAGIC, u16_at, u32_at, u64_at};

pub const ENGINES: [Engine; 2] = [Engine::Uring, Engine::Plain];
pub const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];
pub const CONTEXT: u32 = 9;
/// Long enough for a busy machine; reached only by a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const ALL_FLAGS: u16 = NbdFlags::HAS_FLAGS
    | NbdFlags::SEND_FLUSH
    | NbdFlags::SEND_FUA
    | NbdFlags::SEND_TRIM
    | NbdFlags::SEND_WRITE_ZEROES
    | NbdFlags::CAN_MULTI_CONN
    | SEND_DF
    | SEND_CACHE
    | SEND_FAST_ZERO;

pub struct Server {
    pub workers: Workers,
    pub backend: Arc<Backend>,
    pub path: PathBuf,
    memory: Option<OwnedFd>,
    _dir: Option<tempfile::TempDir>,
}

pub struct Terms {
    pub mode: ReplyMode,
    pub read_only: bool,
    pub flags: u16,
    pub in_flight: usize,
    pub role: Option<Box<dyn WriterRole>>,
}

impl Terms {
    pub fn of(mode: ReplyMode) -> Terms {
        Terms {
            mode,
            read_only: false,
            flags: ALL_FLAGS,
            in_flight: 64 << 20,
            role: None,
        }
    }
}

thread_local! {
    /// How the workers of this thread's servers wait; `None`: as they find best.
    pub static WAY: Cell<Option<Way>> = const { Cell::new(None) };
}

/// Bytes that differ at every place.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

impl Server {
    pub fn new(engine: Engine, content: &[u8]) -> Server {
        Server::with(engine, content, |backend| backend)
    }

    /// In memory, where every read and write is done at once.
    pub fn in_memory(engine: Engine, content: &[u8]) -> Server {
        let file = memfd_create(c"disk", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::write(&path, content).unwrap();
        let mut server = Server::open(engine, path.into(), |backend| backend);
        server.memory = Some(file);
        server
    }

    /// From now on the storage refuses writes.
    pub fn seal(&self) {
        let seals = SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_WRITE;
        fcntl(self.memory.as_ref().unwrap(), FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }

    pub fn with(engine: Engine, content: &[u8], wrap: impl FnOnce(Backend) -> Backend) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, content).unwrap();
        let mut server = Server::open(engine, path, wrap);
        server._dir = Some(dir);
        server
    }

    fn open(engine: Engine, path: PathBuf, wrap: impl FnOnce(Backend) -> Backend) -> Server {
        let run = tempfile::tempdir().unwrap();
        let mut options = OpenOptionsOf::new(&path, false);
        options.runtime_dir = run.path().to_owned();
        let backend = Arc::new(wrap(Backend::open(&options).unwrap()));
        Server {
            workers: Workers::start_paced(1, engine, WAY.get()).unwrap(),
            backend,
            path,
            memory: None,
            _dir: None,
        }
    }

    pub fn link(&self, mode: ReplyMode) -> Peer {
        self.link_on(Terms::of(mode))
    }

    pub fn link_on(&self, terms: Terms) -> Peer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        // As the control plane's sockets are.
        theirs.set_nonblocking(true).unwrap();
        let socket = Arc::new(OwnedFd::from(theirs));
        let gate = LinkGate::new(Arc::clone(&socket));
        if let Some(role) = terms.role {
            gate.set_role(role);
        }
        self.workers.serve(Transmission {
            socket,
            export: Arc::clone(&self.backend),
            mode: terms.mode,
            flags: NbdFlags(terms.flags),
            allocation: Some(CONTEXT),
            read_only: terms.read_only,
            limits: LinkLimits {
                in_flight: terms.in_flight,
                of_all: 1 << 30,
            },
            gate: Arc::clone(&gate),
        });
        Peer {
            stream: ours,
            gate,
            mode: terms.mode,
            next: 1,
            reads: HashMap::new(),
            unfinished: HashMap::new(),
        }
    }

    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// The worker publishes it after each round, so a moment after the last link's end it is nothing.
    pub fn assert_no_memory_held(&self) {
        self.workers.stop();
        assert_eq!((self.workers.links(), self.workers.memory()), (0, 0));
    }
}

pub struct Peer {
    pub stream: UnixStream,
    pub gate: Arc<LinkGate>,
    pub mode: ReplyMode,
    next: u64,
    /// Cookies of READs and their lengths: simple replies don't tell.
    reads: HashMap<u64, usize>,
    /// Replies in chunks whose last hasn't come, by their cookies.
    unfinished: HashMap<u64, Parts>,
}

/// Of a reply in chunks: what is known of it, and its data by offset.
type Parts = (Reply, Vec<(u64, Vec<u8>)>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    pub cookie: u64,
    pub errno: u32,
    pub data: Vec<u8>,
    pub chunks: usize,
    pub runs: Vec<(u64, u32)>,
    pub text: String,
}

impl Peer {
    /// The bytes of a request; notes what its reply will carry.
    pub fn encode(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> (u64, Vec<u8>) {
        let cookie = self.next;
        self.next += 1;
        if command == CMD_READ {
            self.reads.insert(cookie, len as usize);
        }
        let extended = self.mode == ReplyMode::Extended;
        let flags = match command {
            CMD_WRITE if extended => flags | FLAG_PAYLOAD_LEN,
            _ => flags,
        };
        let magic = if extended {
            EXTENDED_REQUEST_MAGIC
        } else {
            REQUEST_MAGIC
        };
        let mut out = Vec::new();
        out.extend(magic.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        if extended {
            out.extend(len.to_be_bytes());
        } else {
            out.extend(u32::try_from(len).unwrap().to_be_bytes());
        }
        (cookie, out)
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> u64 {
        let (cookie, bytes) = self.encode(command, flags, offset, len);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    pub fn send_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let (cookie, mut bytes) = self.encode(CMD_WRITE, flags, offset, data.len() as u64);
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Sends and waits for the one reply.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> Reply {
        let cookie = self.send(command, flags, offset, len);
        self.reply_to(cookie)
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Reply {
        let cookie = self.send_write(flags, offset, data);
        self.reply_to(cookie)
    }

    pub fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let reply = self.ask(CMD_READ, 0, offset, len);
        assert_eq!(reply.errno, 0, "READ {offset}+{len}: {}", reply.text);
        reply.data
    }

    fn reply_to(&mut self, cookie: u64) -> Reply {
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        reply
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply()
            .expect("a reply, not the end of the stream")
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut out = [0; N];
        let mut at = 0;
        while at < N {
            match self.stream.read(&mut out[at..]) {
                Ok(0) => {
                    assert_eq!(at, 0, "the stream ends in the middle of a reply");
                    return None;
                }
                Ok(got) => at += got,
                Err(error) if error.raw_os_error() == Some(104) => return None,
                Err(error) => panic!("no reply: {error}"),
            }
        }
        Some(out)
    }

    fn vec(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.stream.read_exact(&mut out).unwrap();
        out
    }

    /// One whole reply; `None`: the stream has ended.
    pub fn try_reply(&mut self) -> Option<Reply> {
        let done = loop {
            let magic = u32::from_be_bytes(self.bytes::<4>()?);
            match (magic, self.mode) {
                (reply::SIMPLE_MAGIC, ReplyMode::Simple | ReplyMode::Structured) => {
                    return Some(self.simple());
                }
                (reply::STRUCTURED_MAGIC, ReplyMode::Structured) => {
                    let head = self.vec(16);
                    let len = u32_at(&head, 12) as usize;
                    if let Some(done) = self.chunk(&head, len) {
                        break done;
                    }
                }
                (reply::EXTENDED_MAGIC, ReplyMode::Extended) => {
                    let head = self.vec(28);
                    let len = u64_at(&head, 20) as usize;
                    if let Some(done) = self.chunk(&head, len) {
                        break done;
                    }
                }
                (magic, mode) => panic!("magic {magic:#x} in mode {mode:?}"),
            }
        };
        Some(assemble(done.0, done.1, &mut self.reads))
    }

    fn simple(&mut self) -> Reply {
        let rest = self.vec(12);
        let (errno, cookie) = (u32_at(&rest, 0), u64_at(&rest, 4));
        let data = match self.reads.remove(&cookie) {
            Some(len) => {
                assert_eq!(
                    self.mode,
                    ReplyMode::Simple,
                    "READ answered by a simple reply"
                );
                if errno == 0 {
                    self.vec(len)
                } else {
                    Vec::new()
                }
            }
            None => Vec::new(),
        };
        Reply {
            cookie,
            errno,
            data,
            ..Reply::default()
        }
    }

    /// Chunks of several replies may come in turn, as each is read (proto.md, "Structured reply chunk message"). One whose last it
    /// was is given out.
    fn chunk(&mut self, head: &[u8], len: usize) -> Option<Parts> {
        let (flags, kind, cookie) = (u16_at(head, 0), u16_at(head, 2), u64_at(head, 4));
        let body = self.vec(len);
        let (reply, offsets) = self.unfinished.entry(cookie).or_default();
        reply.cookie = cookie;
        match kind {
            reply::TYPE_NONE => assert_eq!(len, 0),
            reply::TYPE_OFFSET_DATA => {
                reply.chunks += 1;
                offsets.push((u64_at(&body, 0), body[8..].to_vec()));
            }
            reply::TYPE_ERROR => {
                reply.errno = u32_at(&body, 0);
                let text = body[6..6 + u16_at(&body, 4) as usize].to_vec();
                reply.text = String::from_utf8(text).unwrap();
            }
            reply::TYPE_BLOCK_STATUS => {
                assert_eq!(u32_at(&body, 0), CONTEXT);
                let runs = body[4..].chunks(8);
                reply.runs = runs.map(|r| (u32_at(r, 0).into(), u32_at(r, 4))).collect();
            }
            reply::TYPE_BLOCK_STATUS_EXT => {
                assert_eq!(u32_at(&body, 0), CONTEXT);
                let runs = body[8..].chunks(16);
                reply.runs = runs.map(|r| (u64_at(r, 0), u32_at(r, 12))).collect();
                assert_eq!(u32_at(&body, 4) as usize, reply.runs.len());
            }
            kind => panic!("chunk type {kind}"),
        }
        let done = flags & reply::FLAG_DONE != 0;
        done.then(|| self.unfinished.remove(&cookie)).flatten()
    }

    pub fn disconnect(&mut self) {
        self.send(CMD_DISC, 0, 0, 0);
    }

    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes the socket with whatever is unread, and waits for the link's end.
    pub fn vanish(self) -> End {
        let Peer { stream, gate, .. } = self;
        drop(stream);
        wait_end(&gate)
    }

    pub fn end(&self) -> End {
        wait_end(&self.gate)
    }
}

pub fn wait_end(gate: &LinkGate) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, gate.wait_end()).await })
        .expect("the link ends")
}

/// Chunks in the order of the export; they must cover the READ without holes or overlaps.
fn assemble(
    mut reply: Reply,
    mut offsets: Vec<(u64, Vec<u8>)>,
    reads: &mut HashMap<u64, usize>,
) -> Reply {
    let wanted = reads.remove(&reply.cookie);
    offsets.sort();
    for pair in offsets.windows(2).filter(|_| reply.errno == 0) {
        assert_eq!(
            pair[0].0 + pair[0].1.len() as u64,
            pair[1].0,
            "chunks don't meet"
        );
    }
    reply.data = offsets.into_iter().flat_map(|(_, data)| data).collect();
    if let Some(wanted) = wanted
        && reply.errno == 0
    {
        assert_eq!(reply.data.len(), wanted, "the READ isn't covered");
    }
    reply
}
