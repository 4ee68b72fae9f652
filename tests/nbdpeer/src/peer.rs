//! The socket: sends any bytes in any segments, ends in each way a client can end, reads with a time limit.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::request::{Mode, Outstanding};
use crate::{Address, Result};

/// Longer than any honest server takes, shorter than a test's patience.
const TIME_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection to a server, in handshake or transmission.
#[derive(Debug)]
pub struct Peer {
    stream: Stream,
    pub mode: Mode,
    /// Agreed on in [`Peer::greet`]: EXPORT_NAME's answer ends without 124 zeroes.
    pub no_zeroes: bool,
    pub(crate) outstanding: Outstanding,
}

impl Peer {
    /// Connects and says nothing.
    pub fn connect(address: &Address) -> Result<Peer> {
        let stream = match address {
            Address::Tcp(at) => {
                let tcp = TcpStream::connect(at)?;
                tcp.set_nodelay(true)?;
                Stream::Tcp(tcp)
            }
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        Peer::over(stream)
    }

    pub fn over(stream: Stream) -> Result<Peer> {
        let peer = Peer {
            stream,
            mode: Mode::Simple,
            no_zeroes: false,
            outstanding: Outstanding::default(),
        };
        peer.time_limit(TIME_LIMIT)?;
        Ok(peer)
    }

    pub fn time_limit(&self, limit: Duration) -> Result<()> {
        match &self.stream {
            Stream::Tcp(tcp) => {
                tcp.set_read_timeout(Some(limit))?;
                tcp.set_write_timeout(Some(limit))?;
            }
            Stream::Unix(unix) => {
                unix.set_read_timeout(Some(limit))?;
                unix.set_write_timeout(Some(limit))?;
            }
        }
        Ok(())
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.write_all(bytes)?,
            Stream::Unix(unix) => unix.write_all(bytes)?,
        }
        Ok(())
    }

    /// `size` bytes in each send.
    pub fn send_in_segments(&mut self, bytes: &[u8], size: usize) -> Result<()> {
        bytes.chunks(size).try_for_each(|part| self.send(part))
    }

    /// What fits into the socket's buffers within the time limit; the rest is never sent.
    pub fn send_until_full(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            let result = match &mut self.stream {
                Stream::Tcp(tcp) => tcp.write(&bytes[sent..]),
                Stream::Unix(unix) => unix.write(&bytes[sent..]),
            };
            match result {
                Ok(n) if n > 0 => sent += n,
                _ => break,
            }
        }
        sent
    }

    pub fn receive(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.read_exact(&mut bytes)?,
            Stream::Unix(unix) => unix.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    /// All that comes until the server closes.
    pub fn receive_to_end(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match &mut self.stream {
            Stream::Tcp(tcp) => tcp.read_to_end(&mut bytes)?,
            Stream::Unix(unix) => unix.read_to_end(&mut bytes)?,
        };
        Ok(bytes)
    }

    /// True once the server has closed or reset: there was nothing more to read.
    pub fn is_closed_by_server(&mut self) -> bool {
        match self.receive(1) {
            Ok(_) => false,
            Err(error) => error.is_closed(),
        }
    }

    /// Nothing more will be sent; replies can still be read.
    pub fn half_close(&self) -> Result<()> {
        match &self.stream {
            Stream::Tcp(tcp) => tcp.shutdown(Shutdown::Write)?,
            Stream::Unix(unix) => unix.shutdown(Shutdown::Write)?,
        }
        Ok(())
    }

    /// Ends at once: RST on TCP; on a Unix socket a plain close.
    pub fn reset(self) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.as_fd(), sockopt::Linger, &linger);
    }

    /// A small window, so that a server's replies fill it soon.
    pub fn receive_buffer(&self, bytes: usize) -> Result<()> {
        setsockopt(&self.as_fd(), sockopt::RcvBuf, &bytes).map_err(std::io::Error::from)?;
        Ok(())
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(tcp) => tcp.as_fd(),
            Stream::Unix(unix) => unix.as_fd(),
        }
    }
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
