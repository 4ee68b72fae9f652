//! The daemon's loop: look, plan, act, look again, for ever.
//! Called by `dstd run`. Level-triggered: events and signals only make it look sooner. Links are left to one task a
//! node, so a node that doesn't answer holds up nothing else. Leaves the kernel as it is when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::calls::Calls;
use super::execute::{Executor, Mode};
use super::fence::{Fencer, addresses};
use super::files::{Files, Read};
use super::interrupt::Interrupt;
use super::observe::{Probes, Survey};
use super::schedule::{Cause, IDLE, Schedule};
use super::worker::{Answer, Report, Want, Worker};
use crate::kernel::{Connector, Kernel, KernelError, KernelEvent};
use crate::metrics::{Address, Listening, Stats, listen};
use crate::plan::{Action, Allowed, Plan, Step, Undecided, plan};
use crate::signals::Ending;
use crate::table::DstArgs;
use crate::topology::{Fingerprint, Item, Topology, TopologyErrors};
use crate::units::{DeviceName, NodeName};

/// How long steps that are under way are waited for at the end; less than systemd's own limit.
const LAST_STEPS: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Topology(#[from] TopologyErrors),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("signals can't be caught: {0}")]
    Signals(#[from] std::io::Error),
}

/// The loop's state between two passes.
#[derive(Debug)]
pub struct Daemon<K, C> {
    kernel: Arc<K>,
    connector: Arc<C>,
    topology: Arc<Topology>,
    calls: Calls,
    workers: BTreeMap<NodeName, Worker>,
    reports: mpsc::UnboundedSender<Report>,
    probes: Probes,
    /// When each node was asked last.
    asked: BTreeMap<NodeName, Instant>,
    /// Nodes that were connected once, or couldn't be reached. One that only told its size isn't among them.
    tried: BTreeSet<NodeName>,
    /// Nodes to be asked again because the topology was re-read: their exports may have grown.
    refresh: BTreeSet<NodeName>,
    /// What was refused or noted last, so that it is logged once.
    said: BTreeSet<String>,
    stats: Arc<Stats>,
}

/// What a pass came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Steps carried out here; those of links are the workers'.
    pub steps: usize,
    pub failures: usize,
    /// Nodes that lack links or facts, and which.
    pub wanting: BTreeMap<NodeName, Want>,
    pub refusals: usize,
}

/// What a look came to.
struct Look {
    survey: Survey,
    plan: Plan,
    /// Nodes that lack links or facts.
    wants: BTreeMap<NodeName, Want>,
}

/// A pass whose steps are still to be taken.
struct Begun {
    look: Look,
    steps: Vec<Step>,
    topology: Arc<Topology>,
}

/// A pass whose steps are under way, on a task of their own: one that hangs must hold up neither events, nor what nodes
/// say, nor the watchdog.
struct Working {
    begun: Begun,
    task: JoinHandle<usize>,
}

impl<K: Kernel + 'static, C: Connector> Daemon<K, C> {
    pub fn new(
        kernel: Arc<K>,
        connector: Arc<C>,
        topology: Topology,
    ) -> (Self, mpsc::UnboundedReceiver<Report>) {
        let (reports, inbox) = mpsc::unbounded_channel();
        let mut daemon = Self {
            kernel,
            connector,
            topology: Arc::default(),
            calls: Calls::default(),
            workers: BTreeMap::new(),
            reports,
            probes: Probes::new(),
            asked: BTreeMap::new(),
            tried: BTreeSet::new(),
            refresh: BTreeSet::new(),
            said: BTreeSet::new(),
            stats: Arc::default(),
        };
        daemon.replace(topology);
        daemon.refresh.clear();
        (daemon, inbox)
    }

    /// Takes a new topology: nodes whose URI changed, and new ones, start from nothing.
    pub fn replace(&mut self, topology: Topology) {
        self.topology = Arc::new(topology);
        let nodes = &self.topology.nodes;
        self.workers
            .retain(|name, worker| nodes.get(name).is_some_and(|n| n.spec.uri == worker.uri));
        self.probes
            .retain(|name, _| self.workers.contains_key(name));
        self.start_workers();
        let items = self.topology.devices.values().flat_map(|d| &d.spec.table);
        self.refresh = items
            .filter_map(|item| match item {
                Item::Dst(dst) if dst.length.is_none() => Some(dst.node.clone()),
                _ => None,
            })
            .collect();
    }

    fn fencer(&self) -> Fencer {
        let (kernel, connector) = (Arc::clone(&self.kernel), Arc::clone(&self.connector));
        Fencer::start(kernel, connector, addresses(&self.topology))
    }

    /// Those that are missing, and those that have ended: a node isn't left alone for what went wrong in one try.
    fn start_workers(&mut self) {
        self.workers.retain(|name, worker| {
            let ended = worker.has_ended();
            if ended {
                error!(node = %name, "node {name}: its task ended, which is a fault in dstd; it is started again");
            }
            !ended
        });
        for (name, node) in &self.topology.nodes {
            self.workers.entry(name.clone()).or_insert_with(|| {
                Worker::start(
                    name.clone(),
                    node.spec.uri.clone(),
                    Arc::clone(&self.kernel),
                    Arc::clone(&self.connector),
                    self.reports.clone(),
                )
            });
        }
    }

    /// Looks, plans and acts once.
    #[cfg(test)]
    pub async fn pass(&mut self) -> Result<Pass, KernelError> {
        let begun = self.begin().await?;
        let failures = self.steps(&begun).await;
        Ok(self.finish(begun, failures))
    }

    /// Looks and plans, and tells the nodes that are there what they lack: they don't wait for steps of devices, which may
    /// take long.
    async fn begin(&mut self) -> Result<Begun, KernelError> {
        self.start_workers();
        let look = self.look().await?;
        self.say(&look.plan);
        self.doubt(&look.plan);
        self.tell(&look, true);
        Ok(Begun {
            steps: steps_of_devices(&look.plan),
            look,
            topology: Arc::clone(&self.topology),
        })
    }

    /// Takes the steps, and answers with how many failed. It needs nothing of the daemon, which goes on meanwhile.
    fn steps(&self, begun: &Begun) -> impl Future<Output = usize> + Send + use<K, C> {
        let (kernel, connector) = (Arc::clone(&self.kernel), Arc::clone(&self.connector));
        let (topology, calls) = (Arc::clone(&begun.topology), self.calls.clone());
        let steps = begun.steps.clone();
        async move {
            let executor = Executor {
                kernel: &kernel,
                connector: &connector,
                topology: &topology,
                mode: Mode::Lenient,
                calls: &calls,
                interrupt: &Interrupt::default(),
            };
            executor.execute(&steps, |_| {}).await.len()
        }
    }

    fn finish(&mut self, begun: Begun, failures: usize) -> Pass {
        // Those that weren't there exist now, if a table names them.
        if Arc::ptr_eq(&begun.topology, &self.topology) {
            self.tell(&begun.look, false);
        }
        let (steps, refusals) = (begun.steps.len(), begun.look.plan.refusals.len());
        let wants = begun.look.wants;
        self.stats
            .pass(steps, Some(failures), refusals, wants.len());
        Pass {
            steps,
            failures,
            refusals,
            wanting: wants,
        }
    }

    /// What a node said a while ago keeps it from being connected: it isn't believed any longer. Connecting it checks the
    /// same, and goes on until it is mended.
    fn doubt(&mut self, plan: &Plan) {
        for node in &plan.doubts {
            if self.asked.get(node).is_none_or(|at| at.elapsed() >= IDLE) {
                self.probes.remove(node);
            }
        }
    }

    /// Looks, and tells the nodes that are there what they lack: steps that failed have to wait, links and settings needn't.
    pub async fn glance(&mut self) -> Result<(), KernelError> {
        self.start_workers();
        let look = self.look().await?;
        let settings = look.plan.settings(&look.survey.observed);
        let executor = Executor {
            kernel: &self.kernel,
            connector: &self.connector,
            topology: &self.topology,
            mode: Mode::Lenient,
            calls: &self.calls,
            interrupt: &Interrupt::default(),
        };
        executor.execute(&settings, |_| {}).await;
        self.tell(&look, true);
        Ok(())
    }

    async fn try_glance(&mut self) {
        if let Err(error) = self.glance().await {
            debug!(%error, "the kernel can't be looked at");
        }
    }

    async fn look(&self) -> Result<Look, KernelError> {
        let begun = Instant::now();
        let survey = Survey::take(&self.kernel, &self.topology, &self.probes).await?;
        let plan = plan(&survey.desired, &survey.observed, &Allowed::default());
        let mut wants = self.fact_wants(&survey);
        for step in &plan.steps {
            if let Action::Connect(connect) = &step.action {
                wants.insert(connect.node.clone(), Want::Links(connect.clone()));
            }
        }
        self.stats.looked(begun.elapsed());
        let nodes = survey.observed.nodes.values();
        self.stats.seen(nodes, SystemTime::now());
        Ok(Look {
            survey,
            plan,
            wants,
        })
    }

    /// Those that can be told at once, or all others.
    fn tell(&self, look: &Look, at_once: bool) {
        for (name, worker) in &self.workers {
            let want = look.wants.get(name).cloned().unwrap_or_default();
            let there = look.survey.observed.nodes.contains_key(name);
            if at_once == (there || !matches!(want, Want::Links(_))) {
                worker.tell(want);
            }
        }
    }

    /// Nodes that must be asked for their size and flags.
    fn fact_wants(&self, survey: &Survey) -> BTreeMap<NodeName, Want> {
        let waits = survey
            .desired
            .devices
            .values()
            .filter_map(|table| match table {
                Err(Undecided::Waits { nodes, .. }) => Some(nodes),
                _ => None,
            });
        let asked = waits.flatten().chain(&self.refresh);
        asked.map(|node| (node.clone(), Want::Facts)).collect()
    }

    /// Takes what a worker says; false where it is about an address that is no longer the node's.
    pub fn hear(&mut self, report: Report) -> bool {
        let Report { node, uri, answer } = report;
        if self
            .workers
            .get(&node)
            .is_none_or(|worker| worker.uri != uri)
        {
            return false;
        }
        self.refresh.remove(&node);
        match answer {
            // What the kernel was told just now is newer than any probe.
            Answer::Connected => {
                self.probes.remove(&node);
                self.tried.insert(node);
            }
            Answer::Facts(facts) => {
                self.asked.insert(node.clone(), Instant::now());
                self.probes.insert(node, Ok(*facts));
            }
            Answer::Failed(why) => {
                self.probes.insert(node.clone(), Err(why));
                self.tried.insert(node);
            }
        }
        true
    }

    /// Says what an operator must know of an event; what is to be done about it the next look tells.
    pub fn note(&mut self, event: &KernelEvent) {
        match event {
            KernelEvent::DataLost { node, writes } => {
                error!(%node, writes, "node {node}: its server is another incarnation, and {writes} acknowledged writes were not durable: each device that uses it fails its next flush, once; check what is on them");
                let mut counts = self.stats.counts();
                *counts.data_lost.entry(node.clone()).or_default() += 1;
            }
            KernelEvent::Fence {
                node,
                slot,
                generation,
                ambiguous,
                reason,
            } if *ambiguous > 0 => {
                let why = reason.as_deref().unwrap_or("it is lost");
                info!(%node, "node {node}: the link of slot {slot}, generation {generation}, left {ambiguous} ranges that it may still write ({why})");
            }
            KernelEvent::Overflow => {
                warn!(
                    "events of the kernel were missed, losses of data perhaps among them: the kernel's log has those, and `dstd status` how things are"
                );
                self.stats.counts().missed += 1;
            }
            other => debug!(event = ?other, "kernel event"),
        }
    }

    /// Whether all that can be is as the topology says: what is left waits for nodes that were tried. One that told its size
    /// has still to be connected.
    pub fn settled(&self, pass: &Pass) -> bool {
        let heard = |(node, want): (&NodeName, &Want)| {
            let told = *want == Want::Facts && self.asked.contains_key(node);
            told || self.tried.contains(node)
        };
        pass.steps == 0 && pass.wanting.iter().all(heard)
    }

    fn say(&mut self, plan: &Plan) {
        let refusals = plan.refusals.iter().map(ToString::to_string);
        let now: BTreeSet<_> = refusals.chain(plan.notes.iter().cloned()).collect();
        for text in now.difference(&self.said) {
            if text.starts_with('!') {
                warn!("refused: {text}");
            } else {
                info!("{text}");
            }
        }
        self.said = now;
    }

    /// For systemd, and whoever asks it.
    pub fn status(&self, pass: &Pass) -> String {
        let mut text = format!(
            "{} devices, {} nodes",
            self.topology.devices.len(),
            self.topology.nodes.len()
        );
        if !pass.wanting.is_empty() {
            let names: Vec<_> = pass.wanting.keys().take(5).map(NodeName::as_str).collect();
            text += &format!(
                "; {} not fully connected: {}",
                pass.wanting.len(),
                names.join(", ")
            );
        }
        if pass.refusals > 0 {
            text += &format!("; {} changes refused (see `dstd plan`)", pass.refusals);
        }
        let counts = self.stats.counts();
        for (node, times) in &counts.data_lost {
            text += &format!("; DATA LOST by node {node} ({times} times, see the log)");
        }
        if counts.missed > 0 {
            text += &format!("; events missed {} times (see the log)", counts.missed);
        }
        text
    }
}

/// All steps but those of links, without the devices whose tables wait for an export's new size.
fn steps_of_devices(plan: &Plan) -> Vec<Step> {
    let mut growing: BTreeSet<&NodeName> = BTreeSet::new();
    let mut skipped: BTreeSet<&DeviceName> = BTreeSet::new();
    let mut steps = Vec::new();
    for step in &plan.steps {
        match &step.action {
            Action::Connect(connect) => {
                if connect.replace.is_some() {
                    growing.insert(&connect.node);
                }
                continue;
            }
            Action::Load { device, lines, .. } => {
                let args = lines.iter().filter_map(|line| DstArgs::of(line).ok());
                let mut extents = args.flat_map(|args| args.extents);
                if extents.any(|extent| growing.contains(&extent.node)) {
                    skipped.insert(device);
                }
            }
            _ => {}
        }
        if step
            .action
            .device()
            .is_none_or(|device| !skipped.contains(device))
        {
            steps.push(step.clone());
        }
    }
    steps
}

/// Everything that makes the loop look.
struct Wakers {
    reports: mpsc::UnboundedReceiver<Report>,
    events: Option<mpsc::Receiver<KernelEvent>>,
    devices: Option<mpsc::Receiver<()>>,
    files: Files,
    hangup: Signal,
    ending: Ending,
}

enum Wake {
    Report(Report),
    Event(KernelEvent),
    /// Some device-mapper device came, went or changed.
    Device,
    Time,
    Topology(Read),
    Hangup,
    /// The steps are taken; so many failed.
    Done(usize),
    End,
}

impl Wakers {
    fn new<K: Kernel>(
        kernel: &K,
        reports: mpsc::UnboundedReceiver<Report>,
        files: Files,
    ) -> Result<Self, RunError> {
        let mut wakers = Self {
            reports,
            events: None,
            devices: None,
            files,
            hangup: signal(SignalKind::hangup())?,
            ending: Ending::watch()?,
        };
        if let Err(error) = wakers.listen(kernel) {
            info!(
                "no kernel events yet, looking every {} s until they come: {error}",
                IDLE.as_secs()
            );
        }
        Ok(wakers)
    }

    /// Events begin when the module is there: with the first table, or after it was loaded anew.
    fn listen<K: Kernel>(&mut self, kernel: &K) -> Result<(), KernelError> {
        let mut devices = Ok(());
        if self.devices.is_none() {
            devices = kernel.device_events().map(|d| self.devices = Some(d));
        }
        if self.events.is_none() {
            self.events = Some(kernel.events()?);
        }
        devices
    }

    /// Events that are there already.
    fn drain(&mut self, mut note: impl FnMut(KernelEvent)) {
        while let Some(event) = self.events.as_mut().and_then(|e| e.try_recv().ok()) {
            note(event);
        }
    }

    async fn next(&mut self, until: Instant, working: &mut Option<Working>) -> Wake {
        let done = async {
            match working {
                // A panic is a failure, too.
                Some(working) => (&mut working.task).await.unwrap_or(1),
                None => std::future::pending().await,
            }
        };
        let event = async {
            match &mut self.events {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        let device = async {
            match &mut self.devices {
                Some(devices) => devices.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.ending.comes() => Wake::End,
            _ = self.hangup.recv() => Wake::Hangup,
            read = self.files.next() => Wake::Topology(read),
            failures = done => Wake::Done(failures),
            Some(report) = self.reports.recv() => Wake::Report(report),
            event = event => match event {
                Some(event) => Wake::Event(event),
                None => {
                    warn!("kernel events ended; looking every {} s until they come back", IDLE.as_secs());
                    self.events = None;
                    Wake::Time
                }
            },
            device = device => {
                if device.is_none() {
                    warn!("device-mapper's events ended; looking every {} s until they come back", IDLE.as_secs());
                    self.devices = None;
                }
                // What the end hid is looked for, too.
                Wake::Device
            }
            () = sleep_until(until) => Wake::Time,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run<K: Kernel + 'static, C: Connector>(
    kernel: Arc<K>,
    connector: Arc<C>,
    paths: Vec<PathBuf>,
    metrics: Option<Address>,
) -> Result<(), RunError> {
    let seen = Fingerprint::of(&paths);
    let (mut daemon, inbox) = Daemon::new(Arc::clone(&kernel), connector, Topology::load(&paths)?);
    let _metrics = serve_metrics(metrics, &daemon).await;
    let mut wakers = Wakers::new(kernel.as_ref(), inbox, Files::watch(paths, seen))?;
    let mut fencer = daemon.fencer();
    let mut schedule = Schedule::new();
    let mut working = None;
    loop {
        if working.is_none() && schedule.due() {
            working = turn(&mut daemon, &mut schedule).await?;
        }
        notify::alive();
        let until = schedule.wake(working.is_some());
        let cause = match wakers.next(until, &mut working).await {
            Wake::End => break,
            Wake::Done(failures) => {
                if let Some(Working { begun, .. }) = working.take() {
                    done(&mut daemon, &mut schedule, begun, failures);
                }
                None
            }
            Wake::Hangup => {
                wakers.files.read_again();
                None
            }
            // Settings are in force at once, also while passes fail and have to wait.
            Wake::Topology(read) => reload(&mut daemon, &fencer, read).then_some(Cause::Topology),
            Wake::Report(report) => daemon.hear(report).then_some(Cause::Report),
            Wake::Event(event) => {
                let mut cause = Cause::of(&event);
                daemon.note(&event);
                // A node's loss is many events, and one reason to look.
                wakers.drain(|event| {
                    cause = cause.max(Cause::of(&event));
                    daemon.note(&event);
                });
                Some(cause)
            }
            Wake::Device => {
                // Only a pass can mend a device, and while steps are under way they are what is told of.
                schedule.soon(Cause::Device);
                None
            }
            Wake::Time => {
                if let Err(error) = wakers.listen(kernel.as_ref()) {
                    debug!(%error, "no kernel events");
                }
                if fencer.has_ended() {
                    error!(
                        "the task that fences ended, which is a fault in dstd; it is started again"
                    );
                    fencer = daemon.fencer();
                }
                None
            }
        };
        // Else the next pass does the same, and comes at once.
        if let Some(cause) = cause
            && (!schedule.soon(cause) || working.is_some())
        {
            daemon.try_glance().await;
        }
    }
    end(working).await;
    Ok(())
}

/// A daemon without metrics is better than none.
async fn serve_metrics<K: Kernel + 'static, C: Connector>(
    address: Option<Address>,
    daemon: &Daemon<K, C>,
) -> Option<Listening> {
    let address = &address?;
    let (kernel, stats) = (Arc::clone(&daemon.kernel), Arc::clone(&daemon.stats));
    let listening = listen(address, kernel, stats).await;
    listening
        .map_err(|error| error!("metrics can't be served at {address}: {error}"))
        .ok()
}

async fn end(working: Option<Working>) {
    info!("ending; devices and links stay as they are");
    notify::stopping();
    // Half a change isn't left behind: a device may be suspended.
    if let Some(Working { task, .. }) = working
        && timeout(LAST_STEPS, task).await.is_err()
    {
        warn!("a step hangs; what it does is left to it, and the rest to the next dstd");
    }
}

async fn turn<K: Kernel + 'static, C: Connector>(
    daemon: &mut Daemon<K, C>,
    schedule: &mut Schedule,
) -> Result<Option<Working>, RunError> {
    let cause = schedule.cause();
    daemon.stats.begun(cause);
    match daemon.begin().await {
        Ok(begun) if begun.steps.is_empty() => done(daemon, schedule, begun, 0),
        Ok(begun) => {
            info!(
                "{} steps to take; looked because {cause}",
                begun.steps.len()
            );
            schedule.first = false;
            let task = tokio::spawn(daemon.steps(&begun));
            return Ok(Some(Working { begun, task }));
        }
        Err(error) if schedule.first => return Err(error.into()),
        Err(error) => {
            error!("the kernel can't be looked at: {error}");
            daemon.stats.pass(0, None, 0, 0);
            schedule.after_failure();
        }
    }
    schedule.first = false;
    Ok(None)
}

fn done<K: Kernel + 'static, C: Connector>(
    daemon: &mut Daemon<K, C>,
    schedule: &mut Schedule,
    begun: Begun,
    failures: usize,
) {
    let pass = daemon.finish(begun, failures);
    debug!(?pass, "pass");
    schedule.after(&pass);
    notify::state(schedule.ready(daemon.settled(&pass)), &daemon.status(&pass));
}

fn reload<K: Kernel + 'static, C: Connector>(
    daemon: &mut Daemon<K, C>,
    fencer: &Fencer,
    read: Read,
) -> bool {
    match read {
        Ok(topology) => {
            info!("topology read again");
            fencer.tell(addresses(&topology));
            daemon.replace(topology);
            true
        }
        Err(errors) => {
            error!("the topology has errors, the last good one stays in force:\n{errors}");
            false
        }
    }
}

/// What systemd is told; without systemd nobody listens.
mod notify {
    use sd_notify::NotifyState;

    fn send(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(false, states) {
            tracing::debug!(%error, "systemd can't be told");
        }
    }

    pub fn state(ready: bool, status: &str) {
        if ready {
            tracing::info!("ready: {status}");
            send(&[NotifyState::Ready]);
        }
        send(&[NotifyState::Status(status)]);
    }

    pub fn alive() {
        send(&[NotifyState::Watchdog]);
    }

    pub fn stopping() {
        send(&[NotifyState::Stopping]);
    }
}
