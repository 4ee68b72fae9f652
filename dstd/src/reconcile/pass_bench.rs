//! How much CPU a pass of the daemon takes, and how long a first convergence, at 10, 100 and 1,000 nodes.
//! Run by hand (docs/testing.md); asserts nothing of times. The simulated kernel's own copying is part of the figures.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::run::Daemon;
use super::worker::Report;
use crate::kernel::NbdFlags;
use crate::kernel::sim::{SimKernel, SimNodes, export};
use crate::topology::Topology;

const ROUNDS: u32 = 20;

/// A fifth as many devices as nodes, two at least, each on ten extents of nodes that others use, too.
fn topology(nodes: usize) -> (Topology, Arc<SimNodes>) {
    let servers = Arc::new(SimNodes::default());
    let mut text = "version: 1\nnodes:\n".to_owned();
    for node in 0..nodes {
        let uri = format!("nbd://n{node}/");
        text += &format!("  n{node}: {{uri: '{uri}', links: 2}}\n");
        servers
            .exports()
            .insert(uri, export(1 << 20, NbdFlags::CAN_MULTI_CONN));
    }
    text += "devices:\n";
    for device in 0..(nodes / 5).max(2) {
        text += &format!("  d{device}:\n    table:\n");
        for extent in 0..10 {
            let node = (device * 5 + extent) % nodes;
            let offset = (device * 10 + extent) * 64;
            text += &format!("      - dst: {{node: n{node}, offset: {offset}s, length: 64s}}\n");
        }
    }
    (Topology::parse_one("bench.yaml", text).unwrap(), servers)
}

/// User and system time of this process.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        let (seconds, micros) = (time.tv_sec(), time.tv_usec());
        Duration::new(seconds.unsigned_abs(), 0) + Duration::from_micros(micros.unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

async fn converge(
    daemon: &mut Daemon<SimKernel, SimNodes>,
    inbox: &mut mpsc::UnboundedReceiver<Report>,
) -> usize {
    for passes in 1.. {
        let pass = daemon.pass().await.unwrap();
        if daemon.settled(&pass) && pass.wanting.is_empty() {
            return passes;
        }
        // As the loop does: all that came at the same time is one reason to look.
        if let Ok(Some(report)) = timeout(Duration::from_secs(10), inbox.recv()).await {
            daemon.hear(report);
        }
        while let Ok(report) = inbox.try_recv() {
            daemon.hear(report);
        }
    }
    0
}

#[tokio::test(start_paused = true)]
#[ignore = "a measurement, not a test"]
async fn pass_times() {
    for nodes in [10, 100, 1000] {
        let (topology, servers) = topology(nodes);
        let devices = topology.devices.len();
        let (mut daemon, mut inbox) = Daemon::new(Arc::default(), servers, topology);
        let (begun, at_first) = (Instant::now(), cpu());
        let passes = converge(&mut daemon, &mut inbox).await;
        let (converging, took) = (cpu() - at_first, begun.elapsed());
        let before = cpu();
        for _ in 0..ROUNDS {
            let pass = daemon.pass().await.unwrap();
            assert_eq!((pass.steps, pass.wanting.len()), (0, 0));
        }
        let pass = (cpu() - before) / ROUNDS;
        println!(
            "{nodes} nodes, {devices} devices: a pass that changes nothing {:.2} ms of CPU; first convergence {:.0} ms of \
             CPU, {passes} passes, {:.1} s without the kernel's and the network's time",
            pass.as_secs_f64() * 1e3,
            converging.as_secs_f64() * 1e3,
            took.as_secs_f64(),
        );
    }
}
