//! Sockets to a node, made ready for the kernel.
//!
//! Owns connecting (every address of a name gets its chance) and the socket options.
//! Called by the client; the node server gives its links the same options. Never speaks NBD.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::error::NbdError;
use super::lookup::lookup;
use super::uri::{Address, Host};
use crate::units::Millis;

/// When TCP gives up a connection whose peer has gone without a word.
///
/// An idle one is probed after `idle` seconds, then every `interval` seconds, and given up after `count` probes without an
/// answer. `user_timeout` bounds data that isn't acknowledged; it also replaces `count`, and ends a connection whose
/// peer lives and doesn't read (a zero window).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    pub idle: u32,
    pub interval: u32,
    pub count: u32,
    pub user_timeout: Option<Millis>,
}

impl Liveness {
    /// For the links of the node server: a client that doesn't read for so long is gone for it, too.
    pub const SERVER: Self = Self {
        idle: 10,
        interval: 5,
        count: 3,
        user_timeout: Some(Millis::seconds(30)),
    };

    /// For a node's links. An idle one is found dead within `timeout`, where that allows it: seconds are the unit.
    /// There is no `user_timeout`: a server that works in order doesn't read while a long TRIM runs, and that is no
    /// death; the module ends a link with requests when `timeout` has passed without a byte, and knows of TRIMs.
    pub fn of(timeout: Option<Millis>) -> Self {
        let seconds = timeout.map_or(u32::MAX, |timeout| timeout.0 / 1000);
        Self {
            idle: (seconds / 3).clamp(1, Self::SERVER.idle),
            interval: (seconds / 6).clamp(1, Self::SERVER.interval),
            count: Self::SERVER.count,
            user_timeout: None,
        }
    }
}

/// A further address is tried when the one before hasn't answered for this long (RFC 8305).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// A connected stream socket of either kind.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub async fn connect(address: &Address) -> Result<Stream, NbdError> {
        match address {
            Address::Unix { path } => connect_unix(path, address).await,
            Address::Tcp { host, port } => {
                let addresses = resolve(host, *port).await?;
                let tcp = connect_first(&addresses, address).await?;
                Ok(Stream::Tcp(tcp))
            }
        }
    }

    /// What the kernel's links need; a Unix socket needs nothing.
    pub fn set_liveness(&self, liveness: Liveness) -> Result<(), NbdError> {
        match self {
            Stream::Tcp(tcp) => set_options(tcp, liveness),
            Stream::Unix(_) => Ok(()),
        }
    }

    /// Whether the peer is this very host, as far as its address tells: then pages handed
    /// to the socket can sit in the peer's queue. Other network namespaces aren't seen.
    pub fn same_host(&self) -> bool {
        match self {
            Stream::Unix(_) => true,
            Stream::Tcp(tcp) => match (tcp.local_addr(), tcp.peer_addr()) {
                (Ok(local), Ok(peer)) => {
                    let ip = peer.ip().to_canonical();
                    ip.is_loopback() || ip == local.ip().to_canonical()
                }
                _ => true,
            },
        }
    }

    /// The bare socket, blocking, with nothing read ahead.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Stream::Tcp(tcp) => {
                let tcp = tcp.into_std()?;
                tcp.set_nonblocking(false)?;
                Ok(tcp.into())
            }
            Stream::Unix(unix) => {
                let unix = unix.into_std()?;
                unix.set_nonblocking(false)?;
                Ok(unix.into())
            }
        }
    }
}

async fn connect_unix(path: &Path, address: &Address) -> Result<Stream, NbdError> {
    match UnixStream::connect(path).await {
        Ok(unix) => Ok(Stream::Unix(unix)),
        Err(error) => Err(NbdError::Connect {
            address: address.to_string(),
            tried: vec![error.to_string()],
        }),
    }
}

async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, NbdError> {
    let name = match host {
        Host::Name(name) => name.clone(),
        Host::V4(address) => return Ok(vec![(*address, port).into()]),
        Host::V6(address, None) => return Ok(vec![(*address, port).into()]),
        Host::V6(address, Some(zone)) => format!("{address}%{zone}"),
    };
    let failed = |error| NbdError::Resolve {
        host: name.clone(),
        error,
    };
    let found = lookup(&name, port).await.map_err(failed)?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(failed(io::Error::other("the name has no address")));
    }
    Ok(addresses)
}

/// The first address that answers; a slow or failing one only delays the next.
async fn connect_first(addresses: &[SocketAddr], target: &Address) -> Result<TcpStream, NbdError> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut tried = Vec::new();
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            attempts.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        while !attempts.is_empty() {
            let wait = if waiting.len() > 0 {
                NEXT_ADDRESS_AFTER
            } else {
                Duration::MAX
            };
            let Ok(done) = tokio::time::timeout(wait, attempts.join_next()).await else {
                break;
            };
            match done {
                Some(Ok((_, Ok(tcp)))) => return Ok(tcp),
                Some(Ok((address, Err(error)))) => tried.push(format!("{address}: {error}")),
                Some(Err(error)) => tried.push(error.to_string()),
                None => break,
            }
            if waiting.len() > 0 {
                break;
            }
        }
        if next.is_none() && attempts.is_empty() {
            return Err(NbdError::Connect {
                address: target.to_string(),
                tried,
            });
        }
    }
}

pub fn set_options(tcp: &impl AsFd, liveness: Liveness) -> Result<(), NbdError> {
    let fd = tcp.as_fd();
    // 0 is the system's own: data is sent again for a quarter of an hour.
    let user_timeout = liveness.user_timeout.map_or(0, |time| time.0);
    let steps = [
        ("TCP_NODELAY", setsockopt(&fd, sockopt::TcpNoDelay, &true)),
        ("SO_KEEPALIVE", setsockopt(&fd, sockopt::KeepAlive, &true)),
        (
            "TCP_KEEPIDLE",
            setsockopt(&fd, sockopt::TcpKeepIdle, &liveness.idle),
        ),
        (
            "TCP_KEEPINTVL",
            setsockopt(&fd, sockopt::TcpKeepInterval, &liveness.interval),
        ),
        (
            "TCP_KEEPCNT",
            setsockopt(&fd, sockopt::TcpKeepCount, &liveness.count),
        ),
        (
            "TCP_USER_TIMEOUT",
            setsockopt(&fd, sockopt::TcpUserTimeout, &user_timeout),
        ),
    ];
    for (option, result) in steps {
        result.map_err(|errno| NbdError::SocketOption {
            option,
            error: errno.into(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn target(address: SocketAddr) -> Address {
        Address::Tcp {
            host: Host::Name("localhost".into()),
            port: address.port(),
        }
    }

    #[tokio::test]
    async fn a_link_gets_its_socket_options() {
        let (_listener, address) = listener().await;
        let stream = Stream::connect(&target(address)).await.unwrap();
        stream
            .set_liveness(Liveness::of(Some(Millis::seconds(12))))
            .unwrap();
        assert!(stream.same_host());
        let fd = stream.into_fd().unwrap();
        assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&fd, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&fd, sockopt::TcpKeepIdle).unwrap(), 4);
        assert_eq!(getsockopt(&fd, sockopt::TcpKeepInterval).unwrap(), 2);
        assert_eq!(getsockopt(&fd, sockopt::TcpKeepCount).unwrap(), 3);
        // A server that lives and doesn't read isn't dead.
        assert_eq!(getsockopt(&fd, sockopt::TcpUserTimeout).unwrap(), 0);
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn an_idle_link_is_found_dead_within_its_timeout() {
        for seconds in 4..=600 {
            let found = Liveness::of(Some(Millis::seconds(seconds)));
            assert!(
                found.idle + found.interval * found.count <= seconds,
                "{found:?}"
            );
        }
        let default = Liveness::of(Some(Millis::seconds(30)));
        assert_eq!((default.idle, default.interval, default.count), (10, 5, 3));
        assert_eq!(Liveness::of(None), default);
        // As soon as TCP can.
        let shortest = Liveness::of(Some(Millis::seconds(1)));
        assert_eq!((shortest.idle, shortest.interval), (1, 1));
    }

    #[tokio::test]
    async fn every_address_gets_its_chance() {
        let (_listener, good) = listener().await;
        // Bound and not listening: refused at once.
        let closed = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
        let bad: SocketAddr = closed.local_addr().unwrap();
        let tcp = connect_first(&[bad, bad, good], &target(good))
            .await
            .unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), good);
    }

    #[tokio::test]
    async fn all_failures_are_told() {
        let closed = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
        let bad = closed.local_addr().unwrap();
        let other = SocketAddr::new([127, 0, 0, 3].into(), bad.port());
        let error = connect_first(&[bad, other], &target(bad))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&bad.to_string()), "{text}");
        assert!(text.contains(&other.to_string()), "{text}");
        assert!(text.contains("refused"), "{text}");
    }

    #[tokio::test]
    async fn an_unknown_name_says_so() {
        let address = Address::Tcp {
            host: Host::Name("no-such-host.invalid".into()),
            port: 1,
        };
        let error = Stream::connect(&address).await.unwrap_err();
        assert!(
            error.to_string().contains("no-such-host.invalid"),
            "{error}"
        );
    }
}
