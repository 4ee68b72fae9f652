//! One accepted link: what control plane and data plane share of it.
//!
//! Owns the moments of a link's life that both sides must agree on: it may write, it is cut, it has ended.
//! Made by the handshake, kept by the roles (who cut it) and by one worker (who ends it).
//! ```text
//!     open ──cut()──► cut ──end()──► ended        cut: no request starts any more; the socket is shut down
//!       └──────────────end()───────────▲          ended: nothing of it can touch the storage, it is closed
//! ```

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::watch;

/// How replies are framed on a link; each mode includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ReplyMode {
    #[default]
    Simple,
    Structured,
    /// 64-bit lengths in requests and replies.
    Extended,
}

/// Why a link is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client said DISC, and everything before it was answered.
    Disconnected,
    /// End of file, an error of the socket, a protocol error.
    Lost,
    /// This server cut it: a fence, a take-over, a limit, a reload or its own end.
    Cut,
}

/// Decides about the writer role; asked once for each link, at its first modifying request.
pub trait WriterRole: Send + Sync {
    /// False: somebody else holds the export, the request gets EPERM.
    fn claim(&self) -> bool;
}

/// The shared half of a link.
pub struct LinkGate {
    socket: Arc<OwnedFd>,
    cut: AtomicBool,
    ended: watch::Sender<Option<End>>,
    role: OnceLock<Box<dyn WriterRole>>,
}

impl std::fmt::Debug for LinkGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkGate")
            .field("cut", &self.is_cut())
            .field("ended", &*self.ended.borrow())
            .finish_non_exhaustive()
    }
}

impl LinkGate {
    pub fn new(socket: Arc<OwnedFd>) -> Arc<Self> {
        Arc::new(LinkGate {
            socket,
            cut: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            role: OnceLock::new(),
        })
    }

    /// Before the link reaches a worker; a second call changes nothing.
    pub fn set_role(&self, role: Box<dyn WriterRole>) {
        let _ = self.role.set(role);
    }

    /// No role set: the export is shared, or the link is read-only anyway.
    pub fn claim_write(&self) -> bool {
        self.role.get().is_none_or(|role| role.claim())
    }

    /// From here on no request of this link starts; those that run are finished by the worker, which sees the
    /// socket end. Never blocks.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        let _ = shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.socket),
            Shutdown::Both,
        );
    }

    /// The worker asks before it starts each request.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// What was received is still served and answered, then the link ends. May take as long as the client sends.
    pub fn drain(&self) {
        let _ = shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.socket),
            Shutdown::Read,
        );
    }

    /// The worker's last word: all its requests are finished or dropped and its half of the socket is closed.
    pub fn end(&self, why: End) {
        let why = if self.is_cut() { End::Cut } else { why };
        self.ended
            .send_if_modified(|ended| ended.replace(why).is_none());
    }

    pub fn ended(&self) -> Option<End> {
        *self.ended.borrow()
    }

    /// Waits for [`LinkGate::end`]; for fences and drains.
    pub async fn wait_end(&self) -> End {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(why) = *ended.borrow_and_update() {
                return why;
            }
            if ended.changed().await.is_err() {
                return End::Lost;
            }
        }
    }
}

/// What one link may take of the server's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimits {
    /// Bytes of payload, received or read and not yet answered.
    pub in_flight: usize,
    /// The same for all links together: when they are many, each gets an even share of it.
    pub of_all: usize,
}

/// All that a worker needs to serve a link.
#[derive(Debug)]
pub struct Transmission {
    pub socket: Arc<OwnedFd>,
    pub export: Arc<super::backend::Backend>,
    pub mode: ReplyMode,
    /// The transmission flags that the client was told; a request that needs another is refused.
    pub flags: crate::kernel::NbdFlags,
    /// The id of `base:allocation`, if the client chose it.
    pub allocation: Option<u32>,
    pub read_only: bool,
    pub limits: LinkLimits,
    pub gate: Arc<LinkGate>,
}
