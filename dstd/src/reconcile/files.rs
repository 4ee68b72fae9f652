//! Watches topology files and reads them.
//! Started by run. On threads of its own: the disk they lie on may be a device of ours, whose node is dead; the loop
//! that would bring it back must not wait for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::debug;

use crate::topology::{Fingerprint, Topology, TopologyErrors, topology_files};

/// How often files are looked at that the kernel doesn't watch for us.
const LOOK: Duration = Duration::from_secs(2);
/// Who saves a file does it in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// File systems where others change files behind this kernel's back (`linux/magic.h`).
const REMOTE: [i64; 7] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xfe53_4d42, // SMB2
    0xff53_4d42, // CIFS
    0x0102_1997, // 9P
    0x6573_5546, // FUSE
    0x00c3_6400, // Ceph
];

pub type Read = Result<Topology, TopologyErrors>;

#[derive(Debug)]
pub struct Files {
    asked: Arc<Notify>,
    news: mpsc::Receiver<Read>,
    task: JoinHandle<()>,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Files {
    /// `seen`: what they were when they were read last.
    pub fn watch(paths: Vec<PathBuf>, seen: Fingerprint) -> Self {
        let (tell, news) = mpsc::channel(1);
        let asked = Arc::new(Notify::new());
        let task = tokio::spawn(serve(paths, seen, Arc::clone(&asked), tell));
        Self { asked, news, task }
    }

    /// Reads them also if they are what they were.
    pub fn read_again(&self) {
        self.asked.notify_one();
    }

    /// The next topology, when the files have changed or somebody asked.
    pub async fn next(&mut self) -> Read {
        match self.news.recv().await {
            Some(read) => read,
            None => std::future::pending().await,
        }
    }
}

async fn serve(
    paths: Vec<PathBuf>,
    mut seen: Fingerprint,
    asked: Arc<Notify>,
    tell: mpsc::Sender<Read>,
) {
    let mut watch = Watch::new();
    let mut must = false;
    loop {
        let (paths, was, watches) = (paths.clone(), seen.clone(), watch.watches());
        let look = spawn_blocking(move || {
            // First the watch, then the fingerprint: what changes while it is read is seen the next time.
            let watched = cover(watches, &paths);
            let now = Fingerprint::of(&paths);
            let read = (must || now != was).then(|| Topology::load(&paths));
            (watched, now, read)
        });
        let Ok((watched, now, read)) = look.await else {
            sleep(LOOK).await;
            continue;
        };
        seen = now;
        if let Some(read) = read
            && tell.send(read).await.is_err()
        {
            return;
        }
        must = tokio::select! {
            () = asked.notified() => true,
            () = watch.changed(watched) => false,
        };
    }
}

/// The kernel's word that something has changed where the files are; without it they are looked at.
struct Watch(Option<EventStream<Vec<u8>>>);

impl Watch {
    fn new() -> Self {
        let made = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; 4096]));
        let made = made.inspect_err(|error| debug!(%error, "no inotify: looking at files"));
        Self(made.ok())
    }

    fn watches(&self) -> Option<Watches> {
        self.0.as_ref().map(EventStream::watches)
    }

    /// Returns when there is reason to look: a change that has settled, or the time where not all is `watched`.
    async fn changed(&mut self, watched: bool) {
        let Some(stream) = &mut self.0 else {
            return sleep(LOOK).await;
        };
        if !watched {
            tokio::select! {
                _ = stream.next() => {}
                () = sleep(LOOK) => return,
            }
        } else if stream.next().await.is_none_or(|event| event.is_err()) {
            sleep(LOOK).await;
        }
        sleep(SETTLE).await;
        while stream.next().now_or_never().flatten().is_some() {}
    }
}

/// False: something isn't watched. Files are replaced by others of their names, so it is folders that are watched; also
/// those that symbolic links lead to.
fn cover(watches: Option<Watches>, paths: &[PathBuf]) -> bool {
    let Some(mut watches) = watches else {
        return false;
    };
    let what = WatchMask::CLOSE_WRITE
        | WatchMask::MODIFY
        | WatchMask::ATTRIB
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    folders(paths).iter().all(|folder| {
        let local = nix::sys::statfs::statfs(folder)
            .is_ok_and(|fs| !REMOTE.contains(&fs.filesystem_type().0));
        local && watches.add(folder, what).is_ok()
    })
}

/// Where the files are, and where what is named itself could be replaced.
fn folders(paths: &[PathBuf]) -> Vec<PathBuf> {
    let named = paths.iter().cloned();
    let files = paths
        .iter()
        .flat_map(|path| topology_files(path).unwrap_or_default());
    let mut folders = Vec::new();
    for path in named.chain(files) {
        let real = path.canonicalize().ok();
        folders.extend(path.is_dir().then(|| path.clone()));
        folders.extend([Some(path), real].into_iter().flatten().map(|p| {
            let parent = p.parent().filter(|parent| !parent.as_os_str().is_empty());
            parent.unwrap_or(Path::new(".")).to_owned()
        }));
    }
    folders.sort();
    folders.dedup();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "version: 1\nnodes: {a: {uri: 'nbd://h/'}}\n";

    #[tokio::test(start_paused = true)]
    async fn a_change_is_read_and_so_is_what_somebody_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.yaml");
        std::fs::write(&path, ONE).unwrap();
        let paths = vec![dir.path().to_owned()];
        let mut files = Files::watch(paths.clone(), Fingerprint::of(&paths));
        std::fs::write(&path, "version: 1\nnodes: {b: {uri: 'nbd://host/'}}\n").unwrap();
        let read = files.next().await.unwrap();
        assert_eq!(read.nodes.keys().next().unwrap().as_str(), "b");
        let quiet = tokio::time::timeout(LOOK * 5, files.next()).await;
        assert!(quiet.is_err(), "nothing has changed");
        files.read_again();
        assert!(files.next().await.is_ok());
        std::fs::write(&path, "version: 2\n").unwrap();
        let wrong = files.next().await.unwrap_err().to_string();
        assert!(wrong.contains("t.yaml:1:10"), "{wrong}");
    }

    /// Time stands still here: what is seen, the kernel has told.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_replaced_is_seen_also_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let [real, links] = ["real", "links"].map(|name| dir.path().join(name));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&links).unwrap();
        std::fs::write(real.join("t.yaml"), ONE).unwrap();
        std::os::unix::fs::symlink(real.join("t.yaml"), links.join("t.yaml")).unwrap();
        let mut watch = Watch::new();
        let covered = cover(watch.watches(), std::slice::from_ref(&links));
        assert!(covered, "all is watched");
        let other = "version: 1\nnodes: {other: {uri: 'nbd://host/'}}\n";
        std::fs::write(real.join("new"), other).unwrap();
        std::fs::rename(real.join("new"), real.join("t.yaml")).unwrap();
        watch.changed(true).await;
        let quiet = tokio::time::timeout(LOOK * 5, watch.changed(true)).await;
        assert!(quiet.is_err(), "nothing has changed");
        std::fs::remove_file(links.join("t.yaml")).unwrap();
        watch.changed(true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_watched_is_looked_at() {
        let mut watch = Watch::new();
        assert!(!cover(watch.watches(), &["/nowhere/at/all/t.yaml".into()]));
        watch.changed(false).await;
        Watch(None).changed(false).await;
    }
}
