//! A connection's socket: reads what there is without losing a byte to a time limit, writes, ends by FIN or RST.
//! Used by handshake and serve.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

/// A client that reads nothing for so long is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Debug)]
pub struct Input {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Input {
    pub fn new(stream: Stream) -> io::Result<Self> {
        match &stream {
            Stream::Tcp(tcp) => {
                tcp.set_nodelay(true)?;
                tcp.set_write_timeout(Some(WRITE_LIMIT))?;
            }
            Stream::Unix(unix) => unix.set_write_timeout(Some(WRITE_LIMIT))?,
        }
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// One read. False: nothing came within the limit.
    fn fill(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let mut bytes = [0; 64 * 1024];
        let got = match &mut self.stream {
            Stream::Tcp(tcp) => {
                tcp.set_read_timeout(limit)?;
                tcp.read(&mut bytes)
            }
            Stream::Unix(unix) => {
                unix.set_read_timeout(limit)?;
                unix.read(&mut bytes)
            }
        };
        match got {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                self.buffer.extend(&bytes[..got]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there are `count` bytes, now or within the limit.
    pub fn has(&mut self, count: usize, limit: Duration) -> io::Result<bool> {
        while self.buffer.len() < count {
            if !self.fill(Some(limit))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn peek(&self, count: usize) -> &[u8] {
        &self.buffer[..count.min(self.buffer.len())]
    }

    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill(None)?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.write_all(bytes),
            Stream::Unix(unix) => unix.write_all(bytes),
        }
    }

    /// A byte beside the stream, where the socket has such.
    pub fn send_urgent(&mut self, byte: u8) -> io::Result<()> {
        if let Stream::Tcp(tcp) = &self.stream {
            send(tcp.as_raw_fd(), &[byte], MsgFlags::MSG_OOB)?;
        }
        Ok(())
    }

    /// RST; on a Unix socket a close.
    pub fn reset(self) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if let Stream::Tcp(tcp) = &self.stream {
            let _ = setsockopt(&tcp.as_fd(), sockopt::Linger, &linger);
        }
    }
}
