//! One task a node: connects it and keeps trying, with growing pauses.
//! Started by run, which tells it after each pass what the node lacks. Never decides what a node should have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::links::connect;
use crate::kernel::{Connector, Kernel, Negotiated};
use crate::nbd::uri::NbdUri;
use crate::plan::Connect;
use crate::units::NodeName;

/// Links of a node are made no more often than this.
const FLAPPING: Duration = Duration::from_millis(250);

/// What a node lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Want {
    #[default]
    Nothing,
    /// Its size and flags.
    Facts,
    Links(Connect),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    pub node: NodeName,
    pub uri: NbdUri,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Connected,
    Facts(Box<Negotiated>),
    Failed(String),
}

/// The task of a node; it ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    pub uri: NbdUri,
    want: watch::Sender<Want>,
    task: JoinHandle<()>,
}

impl Worker {
    pub fn start<K: Kernel + 'static, C: Connector>(
        node: NodeName,
        uri: NbdUri,
        kernel: Arc<K>,
        connector: Arc<C>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let (want, wanted) = watch::channel(Want::Nothing);
        let task = Task {
            said: String::new(),
            node,
            uri: uri.clone(),
            kernel,
            connector,
            reports,
        };
        let task = tokio::spawn(task.serve(wanted));
        Self { uri, want, task }
    }

    /// It doesn't end by itself: something in it panicked.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Said anew after every pass, so that a want which was met in vain is met again.
    pub fn tell(&self, want: Want) {
        if want != Want::Nothing || *self.want.borrow() != Want::Nothing {
            self.want.send_replace(want);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task<K, C> {
    /// What failed last, so that it is logged once.
    said: String,
    node: NodeName,
    uri: NbdUri,
    kernel: Arc<K>,
    connector: Arc<C>,
    reports: mpsc::UnboundedSender<Report>,
}

impl<K: Kernel + 'static, C: Connector> Task<K, C> {
    async fn serve(mut self, mut wanted: watch::Receiver<Want>) {
        let mut backoff = Backoff::default();
        let mut connected: Option<Instant> = None;
        loop {
            let want = wanted.borrow_and_update().clone();
            if want == Want::Nothing {
                backoff.reset();
            } else if let Some(error) = self.meet(&want, &mut connected).await {
                self.warn(error);
                // Not told anew, so that nothing that is wrong elsewhere holds it up.
                sleep(backoff.next()).await;
                continue;
            } else {
                backoff.reset();
                self.said.clear();
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Why it couldn't be met.
    async fn meet(&self, want: &Want, connected: &mut Option<Instant>) -> Option<String> {
        let answer = match want {
            Want::Nothing => return None,
            Want::Facts => self.ask().await,
            Want::Links(connect) => {
                // A server that takes links and drops them at once isn't asked without end.
                if let Some(last) = *connected {
                    sleep_until(last + FLAPPING).await;
                }
                *connected = Some(Instant::now());
                self.links(connect).await
            }
        };
        let error = match &answer {
            Answer::Failed(error) => Some(error.clone()),
            _ => None,
        };
        // Whoever ended doesn't hear it.
        let _ = self.reports.send(Report {
            node: self.node.clone(),
            uri: self.uri.clone(),
            answer,
        });
        error
    }

    fn warn(&mut self, error: String) {
        let node = &self.node;
        if error == self.said {
            debug!(%node, "node {node} is still not connected: {error}");
        } else {
            warn!(%node, "node {node} is not connected, will be tried again: {error}");
            self.said = error;
        }
    }

    async fn ask(&self) -> Answer {
        match self.connector.probe(&self.uri).await {
            Ok(found) => Answer::Facts(Box::new(found.negotiated)),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    async fn links(&self, want: &Connect) -> Answer {
        match connect(&self.kernel, self.connector.as_ref(), &self.uri, want).await {
            Ok(node) => {
                info!(node = %self.node, "connected node {}: {} of {} links", self.node, node.live, node.wanted);
                Answer::Connected
            }
            Err(error) => Answer::Failed(error.to_string()),
        }
    }
}
