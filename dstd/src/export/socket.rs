//! An accepted socket while its handshake runs.
//!
//! Owns reading and writing it from tokio, without a buffer: not a byte of the transmission phase is taken.
//! Called by the server. The descriptor is shared with the link's gate and goes to a worker as it is.
#![allow(unsafe_code)] // tokio wants it said that a registered descriptor stays open

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Dropped, it leaves the socket open and non-blocking for whoever else holds it.
#[derive(Debug)]
pub struct Socket(AsyncFd<Arc<OwnedFd>>);

impl Socket {
    /// The descriptor must be non-blocking.
    pub fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        // SAFETY: the descriptor stays open and the same while `AsyncFd` has its share of the `Arc`: an `OwnedFd`
        // behind one can't be replaced, and is closed by the last owner only.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Socket(registered?))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            let mut read = |fd: RawFd| Ok(recv(fd, into, MsgFlags::MSG_DONTWAIT)?);
            match ready.try_io(|fd| read(fd.as_raw_fd())) {
                Ok(result) => {
                    buf.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(send(fd.as_raw_fd(), bytes, flags)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_follows_stays_in_the_socket() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let fd = Arc::new(OwnedFd::from(server));
        let mut socket = Socket::new(fd.clone()).unwrap();
        client.write_all(b"handshakerequest").unwrap();
        let mut bytes = [0; 9];
        socket.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"handshake");
        socket.write_all(b"yes").await.unwrap();
        drop(socket);
        let mut server = UnixStream::from(Arc::into_inner(fd).unwrap());
        let mut bytes = [0; 32];
        let n = server.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"request");
        let mut answer = [0; 3];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"yes");
    }
}
