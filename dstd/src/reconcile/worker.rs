//! One task a node: connects it and keeps trying, with growing pauses.
//! Started by run, which tells it after each pass what the node lacks. Never decides what a node should have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::links::connect;
use crate::kernel::{Connector, Kernel, Negotiated};
use crate::nbd::uri::NbdUri;
use crate::plan::Connect;
use crate::units::NodeName;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
            node,
            uri: uri.clone(),
            kernel,
            connector,
            reports,
        };
        let task = tokio::spawn(task.serve(wanted));
        Self { uri, want, task }
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
    node: NodeName,
    uri: NbdUri,
    kernel: Arc<K>,
    connector: Arc<C>,
    reports: mpsc::UnboundedSender<Report>,
}

impl<K: Kernel + 'static, C: Connector> Task<K, C> {
    async fn serve(self, mut wanted: watch::Receiver<Want>) {
        let mut pause = FIRST_PAUSE;
        while wanted.changed().await.is_ok() {
            let want = wanted.borrow_and_update().clone();
            let answer = match want {
                Want::Nothing => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Want::Facts => self.ask().await,
                Want::Links(connect) => self.links(&connect).await,
            };
            let failed = matches!(answer, Answer::Failed(_));
            // The report makes the loop look again, so what is still wanted is told anew and met after the pause.
            let _ = self.reports.send(Report {
                node: self.node.clone(),
                uri: self.uri.clone(),
                answer,
            });
            if failed {
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    async fn ask(&self) -> Answer {
        match self.connector.probe(&self.uri).await {
            Ok(found) => Answer::Facts(Box::new(found.negotiated)),
            Err(error) => self.failed(error.to_string()),
        }
    }

    async fn links(&self, want: &Connect) -> Answer {
        match connect(&self.kernel, self.connector.as_ref(), &self.uri, want).await {
            Ok(node) => {
                info!(node = %self.node, "connected node {}: {} of {} links", self.node, node.live, node.wanted);
                Answer::Connected
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    fn failed(&self, error: String) -> Answer {
        warn!(node = %self.node, "node {} is not connected, will be tried again: {error}", self.node);
        Answer::Failed(error)
    }
}

/// Half to all of it, so that many nodes don't come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
