//! Descriptors of every kind, right and wrong, and whether the connected ones still work.
//! Kinds: closed, file, pipe, listening, unconnected, udp, datagram (Unix), ktls, pair (TCP), unix,
//! shut (a pair whose other end is closed), same (the one before), nbd@URI (after a handshake).
//! Called by `request` and main. Owns what it opened until the process ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dstd::kernel::Attach;
use dstd::units::{Generation, Session, Slot};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

/// No process of a test has as many descriptors open.
const CLOSED: i32 = 999;
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Sockets {
    last: Option<i32>,
    kept: Vec<OwnedFd>,
    tcp: Vec<(TcpStream, TcpStream)>,
    unix: Vec<(UnixStream, UnixStream)>,
}

impl Sockets {
    pub fn open(&mut self, kind: &str) -> Result<i32> {
        let fd = match kind {
            "closed" => CLOSED,
            "same" => self.last.context("same as what?")?,
            "file" => self.keep(std::fs::File::open("/dev/zero")?.into()),
            "pipe" => self.keep(std::io::pipe()?.0.into()),
            "listening" => self.keep(TcpListener::bind("127.0.0.1:0")?.into()),
            "udp" => self.connected_udp()?,
            "datagram" => self.keep(UnixDatagram::pair()?.0.into()),
            "unconnected" => {
                let flags = SockFlag::SOCK_CLOEXEC;
                self.keep(socket(AddressFamily::Inet, SockType::Stream, flags, None)?)
            }
            "ktls" => self.ktls()?,
            "shut" => self.keep(tcp_pair()?.0.into()),
            "pair" => self.tcp_pair()?,
            "unix" => {
                let pair = UnixStream::pair()?;
                pair.0.set_read_timeout(Some(LIMIT))?;
                pair.1.set_read_timeout(Some(LIMIT))?;
                let fd = pair.0.as_raw_fd();
                self.unix.push(pair);
                fd
            }
            _ => match kind.strip_prefix("nbd@") {
                Some(uri) => self.nbd(uri)?,
                None => bail!("no such kind of descriptor"),
            },
        };
        self.last = Some(fd);
        Ok(fd)
    }

    fn keep(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.kept.push(fd);
        number
    }

    fn connected_udp(&mut self) -> Result<i32> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(socket.local_addr()?)?;
        Ok(self.keep(socket.into()))
    }

    fn tcp_pair(&mut self) -> Result<i32> {
        let pair = tcp_pair()?;
        let fd = pair.0.as_raw_fd();
        self.tcp.push(pair);
        Ok(fd)
    }

    fn ktls(&mut self) -> Result<i32> {
        let pair = tcp_pair()?;
        setsockopt(&pair.0, sockopt::TcpUlp::default(), b"tls").context("TCP_ULP tls")?;
        let fd = pair.0.as_raw_fd();
        self.tcp.push(pair);
        Ok(fd)
    }

    fn nbd(&mut self, uri: &str) -> Result<i32> {
        let uri = uri.parse()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let attach = Attach {
            session: Session::default(),
            slot: Slot(0),
            generation: Generation(1),
            steal: false,
            timeout: None,
        };
        let connection = runtime.block_on(dstd::nbd::connect(&uri, &attach, LIMIT))?;
        Ok(self.keep(connection.socket))
    }

    /// The other end of the last Unix pair.
    pub fn peer(&self) -> Option<&UnixStream> {
        self.unix.last().map(|pair| &pair.1)
    }

    /// Bytes go through every connected pair, both ways.
    pub fn still_work(&self) -> Result<()> {
        for (ours, peer) in &self.tcp {
            echo(ours, peer)
                .and_then(|()| echo(peer, ours))
                .context("TCP")?;
        }
        for (ours, peer) in &self.unix {
            echo(ours, peer)
                .and_then(|()| echo(peer, ours))
                .context("Unix")?;
        }
        Ok(())
    }
}

fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    for stream in [&ours, &peer] {
        stream.set_read_timeout(Some(LIMIT))?;
    }
    Ok((ours, peer))
}

fn echo(mut from: impl Write, mut to: impl Read) -> Result<()> {
    let mut got = [0; 5];
    from.write_all(b"still").context("writing")?;
    to.read_exact(&mut got).context("reading")?;
    ensure!(&got == b"still", "other bytes came out: {got:?}");
    Ok(())
}
