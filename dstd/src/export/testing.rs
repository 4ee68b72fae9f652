//! What the tests of the control plane share: exports on temporary files, a client that speaks byte by byte.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::access::Peer;
use super::catalog::{Catalog, Export, Open};
use super::config::{Config, ExportConfig};
use super::config_file;
use super::handshake::Exports;
use super::link::{LinkGate, Transmission};
use super::server::{DataPlane, Server};
use crate::nbd::proto::{self, Info, ReplyHeader};

/// Bytes of the file behind export number `i`: sizes differ, so that exports can't be taken for one another.
pub fn size_of(i: usize) -> u64 {
    (i as u64 + 1) << 20
}

pub fn peer(address: &str) -> Peer {
    Peer::tcp(std::net::SocketAddr::new(address.parse().unwrap(), 7))
}

/// A configuration whose paths lie in a directory of its own: `DIR` stands for it.
pub fn config(dir: &TempDir, yaml: &str) -> Config {
    let text = yaml.replace("DIR", dir.path().to_str().unwrap());
    match config_file::parse("t.yaml", &text) {
        Ok(config) => config,
        Err(errors) => panic!("{errors}"),
    }
}

/// Files `a`, `b` and `c`.
pub fn files() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(size_of(i)).unwrap();
    }
    dir
}

pub fn opened(config: &Config) -> BTreeMap<String, Export> {
    let entry = |(name, export): (&String, &ExportConfig)| {
        let open = Open::storage(export);
        (name.clone(), Server::entry(name, export, open))
    };
    config.exports.iter().map(entry).collect()
}

pub struct Fixed(pub Arc<Catalog>);

impl Fixed {
    pub fn new(config: &Config) -> Fixed {
        Fixed(Arc::new(Catalog::new(config, opened(config))))
    }
}

impl Exports for Fixed {
    fn catalog(&self) -> Arc<Catalog> {
        self.0.clone()
    }
}

/// A gate over a socket that nobody uses.
pub fn gate() -> Arc<LinkGate> {
    let (socket, _) = UnixStream::pair().unwrap();
    LinkGate::new(Arc::new(socket.into()))
}

/// Keeps what it is given; a test plays the worker.
#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<Transmission>>);

impl DataPlane for Recorder {
    fn serve(&self, link: Transmission) {
        self.0.lock().unwrap().push(link);
    }

    fn memory(&self) -> usize {
        0
    }
}

impl Recorder {
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn take(&self) -> Transmission {
        self.0.lock().unwrap().remove(0)
    }
}

/// A connected pair: the server's end, and the client.
pub fn pair() -> (Arc<OwnedFd>, Client<tokio::net::UnixStream>) {
    let (server, client) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let client = tokio::net::UnixStream::from_std(client).unwrap();
    (Arc::new(server.into()), Client(client))
}

/// One option reply: its type and data.
pub type Reply = (u32, Vec<u8>);

pub struct Client<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn greet(&mut self, flags: u32) {
        let mut greeting = [0; 18];
        self.0.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// All replies, up to the one that ends the option.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> Vec<Reply> {
        self.send(&proto::encode_option(option, data)).await;
        self.replies(option).await
    }

    pub async fn replies(&mut self, option: u32) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let mut header = [0; proto::REPLY_HEADER_LEN];
            self.0.read_exact(&mut header).await.unwrap();
            let header = ReplyHeader::decode(&header);
            assert_eq!((header.magic, header.option), (proto::REPLY_MAGIC, option));
            let mut data = vec![0; header.length as usize];
            self.0.read_exact(&mut data).await.unwrap();
            replies.push((header.kind, data));
            if header.kind == proto::REP_ACK || header.is_error() {
                return replies;
            }
        }
    }

    /// GO, which must succeed: what was told.
    pub async fn go(&mut self, name: &str) -> Vec<Info> {
        let replies = self.option(proto::OPT_GO, &info_data(name)).await;
        infos(&replies)
    }

    /// How an option ended: the last reply's type, and its text.
    pub async fn ending(&mut self, option: u32, data: &[u8]) -> (u32, String) {
        let (kind, data) = self.option(option, data).await.pop().unwrap();
        (kind, String::from_utf8(data).unwrap())
    }

    /// The server has closed, and sent nothing before.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.0.read(&mut byte).await, Ok(0) | Err(_))
    }
}

pub fn info_data(name: &str) -> Vec<u8> {
    proto::encode_info_request(name, &[proto::INFO_BLOCK_SIZE])
}

pub fn infos(replies: &[Reply]) -> Vec<Info> {
    let (last, infos) = replies.split_last().unwrap();
    assert_eq!(last, &(proto::REP_ACK, Vec::new()));
    let info = |(kind, data): &Reply| {
        assert_eq!(*kind, proto::REP_INFO);
        Info::decode(data).unwrap()
    };
    infos.iter().map(info).collect()
}

/// Size and flags of an INFO or GO answer.
pub fn size_and_flags(infos: &[Info]) -> (u64, crate::kernel::NbdFlags) {
    let export = infos.iter().find_map(|info| match info {
        Info::Export { size, flags } => Some((*size, *flags)),
        _ => None,
    });
    export.unwrap()
}
