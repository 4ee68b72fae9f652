//! A TCP or Unix stream that several may read and write at once, and that can end in each way a socket can.
//! Used by main, conn and pump. Never waits for anything but readiness.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::os::fd::AsRawFd;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

#[derive(Debug, Clone)]
pub enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = std::convert::Infallible;

    /// What has a slash is a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.contains('/') {
            true => Address::Unix(text.into()),
            false => Address::Tcp(text.to_owned()),
        })
    }
}

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp(at) => Listener::Tcp(TcpListener::bind(at).await?),
            Address::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
        })
    }

    pub async fn accept(&self) -> io::Result<Sock> {
        Ok(match self {
            Listener::Tcp(tcp) => Sock::tcp(tcp.accept().await?.0)?,
            Listener::Unix(unix) => Sock::Unix(unix.accept().await?.0),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(tcp) => tcp
                .local_addr()
                .map(|at| at.to_string())
                .unwrap_or_default(),
            Listener::Unix(unix) => format!("{:?}", unix.local_addr()),
        }
    }
}

#[derive(Debug)]
pub enum Sock {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Sock {
    fn tcp(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        Ok(Sock::Tcp(tcp))
    }

    pub async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(at) => Self::tcp(TcpStream::connect(at).await?),
            Address::Unix(path) => Ok(Sock::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// 0: the end of the stream.
    pub async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = match self {
                Sock::Tcp(tcp) => {
                    tcp.readable().await?;
                    tcp.try_read(bytes)
                }
                Sock::Unix(unix) => {
                    unix.readable().await?;
                    unix.try_read(bytes)
                }
            };
            match got {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let put = match self {
                Sock::Tcp(tcp) => {
                    tcp.writable().await?;
                    tcp.try_write(bytes)
                }
                Sock::Unix(unix) => {
                    unix.writable().await?;
                    unix.try_write(bytes)
                }
            };
            match put {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// FIN; reading goes on. It may be gone already.
    pub fn end_writing(&self) {
        let fd = match self {
            Sock::Tcp(tcp) => tcp.as_raw_fd(),
            Sock::Unix(unix) => unix.as_raw_fd(),
        };
        let _ = shutdown(fd, Shutdown::Write);
    }

    /// RST; on a Unix socket a close.
    pub fn reset(self) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if let Sock::Tcp(tcp) = &self {
            let _ = setsockopt(&tcp.as_fd(), sockopt::Linger, &linger);
        }
    }
}
