//! The server of metrics: HTTP as far as a scraper speaks it.
//! Started by the daemon. Bounded in clients, time and bytes; what it can't get of the kernel is an error to the scraper only.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::address::Address;
use super::stats::Stats;
use super::text::{Seen, page};
use crate::kernel::{Kernel, KernelError, device_io};
use crate::reconcile::blocking_dm;

/// Clients at the same time; more wait.
const CLIENTS: usize = 4;
/// For a request to come, for a look to begin, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a request that is looked at.
const REQUEST_MAX: usize = 8192;
/// Clients that aren't accepted yet.
const BACKLOG: u32 = 64;
/// After an accept that failed.
const PAUSE: Duration = Duration::from_secs(1);

enum Listener {
    Unix(UnixListener),
    Loopback(TcpListener),
}

/// The server's task; it ends when this is dropped.
#[derive(Debug)]
pub struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves from now on. Needs a tokio runtime.
pub async fn listen<K: Kernel + 'static>(
    address: &Address,
    kernel: Arc<K>,
    stats: Arc<Stats>,
) -> io::Result<Listening> {
    let listener = match address {
        Address::Loopback(address) => Listener::Loopback(TcpListener::bind(address).await?),
        Address::Unix(path) => Listener::Unix(bind(path).await?),
    };
    info!("metrics are served at {address}");
    Ok(Listening(tokio::spawn(serve(listener, kernel, stats))))
}

/// For root only, from its first moment on. A socket that was left behind goes: nobody answers there. Nothing else does.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(path).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)
}

async fn serve<K: Kernel + 'static>(listener: Listener, kernel: Arc<K>, stats: Arc<Stats>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    let turn = Arc::new(Semaphore::new(1));
    while let Ok(permit) = Arc::clone(&clients).acquire_owned().await {
        let (kernel, stats, turn) = (Arc::clone(&kernel), Arc::clone(&stats), Arc::clone(&turn));
        let accepted = match &listener {
            Listener::Unix(listener) => match listener.accept().await {
                Ok((stream, _)) => Ok(tokio::spawn(async move {
                    let _permit = permit;
                    client(stream, &kernel, &stats, &turn).await;
                })),
                Err(error) => Err(error),
            },
            Listener::Loopback(listener) => match listener.accept().await {
                Ok((stream, _)) => Ok(tokio::spawn(async move {
                    let _permit = permit;
                    client(stream, &kernel, &stats, &turn).await;
                })),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = accepted {
            warn!("metrics: no client can be accepted: {error}");
            sleep(PAUSE).await;
        }
    }
}

async fn client<K, S>(mut stream: S, kernel: &Arc<K>, stats: &Stats, turn: &Arc<Semaphore>)
where
    K: Kernel + 'static,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(request) = timeout(PATIENCE, request(&mut stream)).await else {
        return;
    };
    let answer = match request.as_deref() {
        Some("/metrics" | "/") => match look(kernel, turn, PATIENCE).await {
            Ok(seen) => {
                // The lock is held for no longer than this.
                let counts = stats.counts().clone();
                answer("200 OK", &page(&seen, &counts))
            }
            Err(error) => answer("503 Service Unavailable", &format!("{error}\n")),
        },
        Some(_) => answer("404 Not Found", "metrics are at /metrics\n"),
        None => answer("400 Bad Request", "ask with GET /metrics\n"),
    };
    let sent = timeout(PATIENCE, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    });
    if let Ok(Err(error)) = sent.await {
        debug!(%error, "metrics: the answer wasn't taken");
    }
}

/// The path that a GET asks for; None: it is none.
async fn request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 && bytes.len() + n <= REQUEST_MAX => {
                bytes.extend_from_slice(&chunk[..n])
            }
            _ => return None,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.lines().next()?.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    let path = path.split('?').next()?;
    (method == "GET" && version.starts_with("HTTP/1.")).then(|| path.to_owned())
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// One at a time: one that hangs leaves a single call behind, however often it is asked for, and the others to the daemon.
pub(super) async fn look<K: Kernel + 'static>(
    kernel: &Arc<K>,
    turn: &Arc<Semaphore>,
    patience: Duration,
) -> Result<Seen, KernelError> {
    let Ok(Ok(turn)) = timeout(patience, Arc::clone(turn).acquire_owned()).await else {
        let what = "look at the kernel";
        return Err(KernelError::new(what, None, "an earlier look hangs"));
    };
    let look = move |kernel: &K| {
        // Given back when the look is over, however late.
        let _turn = turn;
        let nodes = kernel.nodes()?;
        let devices = kernel.devices()?.into_iter();
        let ours = devices.filter(|device| device.uuid.is_ours());
        let devices = ours.map(|device| {
            let io = device_io(device.number);
            (device, io)
        });
        Ok(Seen {
            devices: devices.collect(),
            nodes,
        })
    };
    blocking_dm(kernel, look).await
}
