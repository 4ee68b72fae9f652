//! Looks names up, which can't be stopped and takes half a minute where no name server answers.
//! Called by socket. Each lookup has a thread of its own: those that kernel calls run on are few. Of one host there is one
//! lookup at a time, shared by all who want it: tries that gave up would else leave ever more threads behind.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// More than the C library's resolver takes.
const STACK: usize = 512 * 1024;

/// An error can't be shared; its kind and words can.
type Found = Result<Vec<IpAddr>, (io::ErrorKind, String)>;

struct Lookups {
    /// Who waits, by host.
    waiting: Mutex<BTreeMap<String, Vec<oneshot::Sender<Found>>>>,
}

static LOOKUPS: Lookups = Lookups::new();

pub async fn lookup(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = LOOKUPS.share(name, ask_library).await?;
    Ok(found.into_iter().map(|ip| (ip, port).into()).collect())
}

/// The C library loads what it needs for names at the first lookup that leaves the local files: at the start, not when
/// the disk it lies on is gone. Nobody waits for it.
pub fn load_resolver() {
    let look = || drop(ask_library("dstd.invalid"));
    let thread = thread::Builder::new().name("lookup".to_owned());
    if let Err(error) = thread.stack_size(STACK).spawn(look) {
        tracing::debug!(%error, "the resolver isn't loaded yet");
    }
}

fn ask_library(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Lookups {
    const fn new() -> Self {
        Lookups {
            waiting: Mutex::new(BTreeMap::new()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Vec<oneshot::Sender<Found>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn share(
        &'static self,
        name: &str,
        look: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> io::Result<Vec<IpAddr>> {
        let (tell, told) = oneshot::channel();
        let first = {
            let mut waiting = self.waiting();
            let who = waiting.entry(name.to_owned()).or_default();
            who.push(tell);
            who.len() == 1
        };
        if first {
            let mut under_way = UnderWay {
                lookups: self,
                name: name.to_owned(),
                found: Err((
                    io::ErrorKind::Other,
                    "the lookup ended abnormally".to_owned(),
                )),
            };
            let run = move || {
                let found = look(&under_way.name);
                under_way.has(found);
            };
            let thread = thread::Builder::new().name("lookup".to_owned());
            thread.stack_size(STACK).spawn(run)?;
        }
        let found = told.await.map_err(io::Error::other)?;
        found.map_err(|(kind, text)| io::Error::new(kind, text))
    }
}

/// A lookup; however it ends, all who wait hear of it, and the next one to come begins anew.
struct UnderWay {
    lookups: &'static Lookups,
    name: String,
    found: Found,
}

impl UnderWay {
    fn has(&mut self, found: io::Result<Vec<IpAddr>>) {
        self.found = found.map_err(|error| (error.kind(), error.to_string()));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        for tell in self
            .lookups
            .waiting()
            .remove(&self.name)
            .unwrap_or_default()
        {
            // Whoever asked may have given up.
            let _ = tell.send(self.found.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn tries_of_one_host_share_one_lookup() {
        static SHARED: Lookups = Lookups::new();
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let look = |held: Receiver<()>| {
            move |_: &str| {
                BEGUN.fetch_add(1, Ordering::SeqCst);
                let _ = held.recv();
                Ok(vec![IP])
            }
        };
        let mut releases = Vec::new();
        let mut held = || {
            let (release, held) = channel();
            releases.push(release);
            held
        };
        // Each try gives up, and the next one comes.
        for _ in 0..5 {
            let gave_up = timeout(Duration::from_millis(1), SHARED.share("h", look(held())));
            assert!(gave_up.await.is_err());
        }
        let last = tokio::spawn(SHARED.share("h", look(held())));
        let other = timeout(LONG, SHARED.share("g", |_| Ok(vec![]))).await;
        assert_eq!(
            other.unwrap().unwrap(),
            [] as [IpAddr; 0],
            "another host's doesn't wait"
        );
        releases.clear();
        let found = timeout(LONG, last).await.unwrap().unwrap();
        assert_eq!(found.unwrap(), [IP]);
        assert_eq!(BEGUN.load(Ordering::SeqCst), 1, "one for all");
        // Over, so the next one asks anew; also after one that failed, or panicked.
        let failed = SHARED
            .share("h", |_| Err(io::Error::other("no such host")))
            .await;
        assert_eq!(failed.unwrap_err().to_string(), "no such host");
        SHARED
            .share("h", |_| panic!("as the test wants"))
            .await
            .unwrap_err();
        assert_eq!(SHARED.share("h", |_| Ok(vec![IP])).await.unwrap(), [IP]);
    }

    #[test]
    fn a_lookup_takes_no_thread_of_kernel_calls() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (release, held) = channel::<()>();
        runtime.block_on(async {
            let call = tokio::task::spawn_blocking(move || held.recv());
            let found = timeout(LONG, lookup("localhost", 7)).await.unwrap();
            assert!(found.unwrap().iter().all(|address| address.port() == 7));
            drop(release);
            assert!(call.await.unwrap().is_err());
        });
    }
}
