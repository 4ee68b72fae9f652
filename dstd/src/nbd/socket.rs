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
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::JoinSet;

use super::error::NbdError;
use super::uri::{Address, Host};

/// An idle link is probed after this many seconds, so that a peer that went away without a
/// word is noticed although nothing is asked of it ...
pub const KEEPALIVE_IDLE: u32 = 10;
/// ... then every this many seconds ...
pub const KEEPALIVE_INTERVAL: u32 = 5;
/// ... and given up after this many probes without an answer.
pub const KEEPALIVE_COUNT: u32 = 3;
/// A link with unacknowledged data is given up after this time; it outlasts a short outage
/// of the network, but not one that an operator would notice first.
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);
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
                set_options(&tcp)?;
                Ok(Stream::Tcp(tcp))
            }
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
    let found = lookup_host((name.as_str(), port)).await.map_err(failed)?;
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

pub fn set_options(tcp: &impl AsFd) -> Result<(), NbdError> {
    let fd = tcp.as_fd();
    let user_timeout = USER_TIMEOUT.as_millis() as u32;
    let steps = [
        ("TCP_NODELAY", setsockopt(&fd, sockopt::TcpNoDelay, &true)),
        ("SO_KEEPALIVE", setsockopt(&fd, sockopt::KeepAlive, &true)),
        (
            "TCP_KEEPIDLE",
            setsockopt(&fd, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE),
        ),
        (
            "TCP_KEEPINTVL",
            setsockopt(&fd, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL),
        ),
        (
            "TCP_KEEPCNT",
            setsockopt(&fd, sockopt::TcpKeepCount, &KEEPALIVE_COUNT),
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
        assert!(stream.same_host());
        let fd = stream.into_fd().unwrap();
        assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&fd, sockopt::KeepAlive).unwrap());
        assert_eq!(
            getsockopt(&fd, sockopt::TcpKeepIdle).unwrap(),
            KEEPALIVE_IDLE
        );
        assert_eq!(
            getsockopt(&fd, sockopt::TcpKeepInterval).unwrap(),
            KEEPALIVE_INTERVAL
        );
        assert_eq!(
            getsockopt(&fd, sockopt::TcpKeepCount).unwrap(),
            KEEPALIVE_COUNT
        );
        assert_eq!(getsockopt(&fd, sockopt::TcpUserTimeout).unwrap(), 30_000);
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
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
