//! Where clients come in: TCP and Unix sockets, opened here or by systemd.
//!
//! Owns binding, accepting and what to do when that fails. Called by the server. Never speaks NBD.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, getsockname, setsockopt, sockopt,
};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::access::Peer;
use super::activation;
use super::config::Listen;
use crate::nbd::socket::{Liveness, set_options};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// No descriptor or no memory left: nothing is gained by asking again at once.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Error)]
pub enum ListenError {
    #[error("can't listen on {place}: {error}")]
    Bind { place: Listen, error: io::Error },
    #[error("can't listen on {}: a server listens there already; stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("can't listen on {}: the file is there and isn't a socket; remove it, or choose another path", .0.display())]
    NoSocket(PathBuf),
    #[error("can't take systemd's sockets over: {0}")]
    Activation(io::Error),
}

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// The second removes the path at the end; none where systemd made it.
    Unix(UnixListener, Option<OwnPath>),
}

/// All sockets to serve: systemd's where it passed any, else those asked for, else the loopback's.
pub fn open(wanted: &[Listen]) -> Result<Vec<Listener>, ListenError> {
    let passed = activation::sockets().map_err(ListenError::Activation)?;
    if !passed.is_empty() {
        let listeners = passed.into_iter().map(Listener::adopt);
        return listeners
            .collect::<io::Result<_>>()
            .map_err(ListenError::Activation);
    }
    if !wanted.is_empty() {
        return wanted.iter().map(|place| bind(place, wanted)).collect();
    }
    let defaults = Listen::defaults();
    let mut listeners = Vec::new();
    let mut failed = None;
    for place in &defaults {
        match bind(place, &defaults) {
            Ok(listener) => listeners.push(listener),
            // A machine may have only one of the two loopback addresses.
            Err(ListenError::Bind { error, .. }) if no_such_address(&error) => {}
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(listeners),
    }
}

fn no_such_address(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

/// `all`: an IPv6 socket takes IPv4 too, unless another one of these does.
fn bind(place: &Listen, all: &[Listen]) -> Result<Listener, ListenError> {
    let failed = |error| ListenError::Bind {
        place: place.clone(),
        error,
    };
    match place {
        Listen::Tcp(address) => bind_tcp(*address, all).map_err(failed),
        Listen::Unix(path) => bind_unix(path),
    }
}

fn bind_tcp(address: SocketAddr, all: &[Listen]) -> io::Result<Listener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        let other = |listen: &Listen| matches!(listen, Listen::Tcp(other) if other.is_ipv4() && other.port() == address.port());
        setsockopt(&socket, sockopt::Ipv6V6Only, &all.iter().any(other))?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(BACKLOG)?))
}

fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
    let failed = |error| ListenError::Bind {
        place: Listen::Unix(path.to_owned()),
        error,
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        // Left behind by a server that was killed: nobody answers there.
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            _ => return Err(ListenError::InUse(path.to_owned())),
        }
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let made = OwnPath::of(path).map_err(failed)?;
    Ok(Listener::Unix(listener, Some(made)))
}

/// A socket's path, removed at the end if it is still the same.
#[derive(Debug)]
pub struct OwnPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnPath {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(OwnPath {
            path: path.to_owned(),
            inode: inode(path)?,
        })
    }
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Listener {
    /// A listening socket of systemd's.
    fn adopt(fd: OwnedFd) -> io::Result<Listener> {
        let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        match name.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                Ok(Listener::Tcp(TcpListener::from_std(listener)?))
            }
            Some(AddressFamily::Unix) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
            }
            other => Err(io::Error::other(format!(
                "one is of address family {other:?}; TCP and Unix are served"
            ))),
        }
    }

    /// Non-blocking, as the data plane wants it. A connection that breaks at once is passed over.
    pub async fn accept(&self) -> io::Result<(Arc<OwnedFd>, Peer)> {
        loop {
            match self {
                Listener::Tcp(listener) => {
                    let (stream, address) = listener.accept().await?;
                    // Without these a holder that vanished without a word would be one for ever.
                    if set_options(&stream, Liveness::SERVER).is_ok() {
                        return Ok((Arc::new(stream.into_std()?.into()), Peer::tcp(address)));
                    }
                }
                Listener::Unix(listener, _) => {
                    let (stream, _) = listener.accept().await?;
                    if let Ok(who) = stream.peer_cred() {
                        let (uid, pid) = (who.uid(), who.pid().unwrap_or(0));
                        let fd = stream.into_std()?.into();
                        return Ok((Arc::new(fd), Peer::Unix { uid, pid }));
                    }
                }
            }
        }
    }

    /// Where it really is: the port is known now, and systemd's sockets too.
    pub fn place(&self) -> io::Result<Listen> {
        match self {
            Listener::Tcp(listener) => Ok(Listen::Tcp(listener.local_addr()?)),
            Listener::Unix(listener, _) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("(no path)"));
                Ok(Listen::Unix(path.to_owned()))
            }
        }
    }
}

/// How long to wait before the next accept: an error of one connection says nothing about the next.
pub fn pause_after(error: &io::Error) -> Option<Duration> {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let transient = matches!(
        errno,
        Some(
            Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EINTR
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
        )
    );
    (!transient).then_some(PAUSE)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::getsockopt;
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn port(listener: &Listener) -> u16 {
        match listener.place().unwrap() {
            Listen::Tcp(address) => address.port(),
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn an_accepted_link_is_non_blocking_and_notices_a_dead_peer() {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), &[]).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port(&listener))).await;
        let client = client.unwrap();
        let (fd, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, Peer::Tcp(client.local_addr().unwrap()));
        let flags = OFlag::from_bits_retain(fcntl(&*fd, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK));
        assert!(getsockopt(&*fd, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&*fd, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&*fd, sockopt::TcpUserTimeout).unwrap(), 30_000);
    }

    #[tokio::test]
    async fn one_ipv6_socket_takes_ipv4_clients_and_knows_them_as_such() {
        let Ok(listener) = bind(&"[::]:0".parse().unwrap(), &[]) else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        let client = TcpStream::connect(("127.0.0.1", port(&listener))).await;
        let client = client.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, Peer::Tcp(client.local_addr().unwrap()));
        // Beside a socket for IPv4 it leaves that to it.
        let port = port(&listener);
        drop(listener);
        let both: Vec<Listen> = [format!("[::]:{port}"), format!("0.0.0.0:{port}")]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let listeners: Result<Vec<_>, _> = both.iter().map(|place| bind(place, &both)).collect();
        assert_eq!(listeners.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_dead_servers_path_is_taken_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let place = Listen::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = bind(&place, &[]).unwrap();
        let error = bind(&place, &[]).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        let client = UnixStream::connect(&path).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let pid = std::process::id() as i32;
        assert_eq!(peer, Peer::Unix { uid, pid });
        drop((client, listener));
        assert!(!path.exists(), "the path stayed behind");
        std::fs::write(&path, "data").unwrap();
        let error = bind(&place, &[]).unwrap_err();
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_path_that_another_server_took_over_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&Listen::Unix(path.clone()), &[]).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn a_lack_of_descriptors_makes_it_wait_and_one_bad_client_does_not() {
        for (errno, waits) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ENOMEM, true),
            (Errno::ENOBUFS, true),
            (Errno::ECONNABORTED, false),
            (Errno::EINTR, false),
            (Errno::EHOSTUNREACH, false),
        ] {
            assert_eq!(pause_after(&errno.into()).is_some(), waits, "{errno}");
        }
        assert!(pause_after(&io::Error::other("no errno")).is_some());
    }
}
