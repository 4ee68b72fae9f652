//! Watches topology files and reads them.
//! Started by run. On threads of its own: the disk they lie on may be a device of ours, whose node is dead; the loop
//! that would bring it back must not wait for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::topology::{Fingerprint, Topology, TopologyErrors};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

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
    loop {
        let must = tokio::select! {
            () = asked.notified() => true,
            () = sleep(LOOK) => false,
        };
        let (paths, was) = (paths.clone(), seen.clone());
        let look = spawn_blocking(move || {
            // First the fingerprint: what changes while it is read is seen the next time.
            let now = Fingerprint::of(&paths);
            let read = (must || now != was).then(|| Topology::load(&paths));
            (now, read)
        });
        let Ok((now, read)) = look.await else {
            continue;
        };
        seen = now;
        if let Some(read) = read
            && tell.send(read).await.is_err()
        {
            return;
        }
    }
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
}
