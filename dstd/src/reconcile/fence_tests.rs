//! Old links and who fences them: which may be asked about, of whom, how often, and that nothing else waits for it.
//! Against the simulated kernel, with simulated nodes in virtual time, and at the end with our own node server.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::fence::{Addresses, Fencer, addresses, askable};
use super::links::connect;
use crate::kernel::real::RealConnector;
use crate::kernel::sim::{HANDSHAKE, SimKernel, SimNodes, export};
use crate::kernel::{
    Access, Conduct, Connector, DmUuid, Fenced, Kernel, NbdFlags, Negotiated, ObservedNode,
};
use crate::nbd::uri::NbdUri;
use crate::plan::Connect;
use crate::topology::Topology;
use crate::units::{Generation, Id, NodeName, Slot};

/// Longer than the longest pause, in virtual time.
const LONG: Duration = Duration::from_secs(60);

fn node_a() -> NodeName {
    "a".parse().unwrap()
}

fn ours(identity: u8) -> Negotiated {
    Negotiated {
        identity: Some(Id([identity; 16])),
        incarnation: Some(Id([7; 16])),
        ..export(1000, NbdFlags::CAN_MULTI_CONN)
    }
}

fn stock() -> Negotiated {
    export(1000, NbdFlags::CAN_MULTI_CONN)
}

fn want(links: u32) -> Connect {
    Connect {
        node: node_a(),
        slots: Vec::new(),
        wanted: links,
        zero_copy: None,
        replace: None,
        steal: false,
        same_data: false,
        conduct: Conduct::default(),
    }
}

struct World<C> {
    kernel: Arc<SimKernel>,
    nodes: Arc<C>,
    uri: NbdUri,
}

impl World<SimNodes> {
    /// A table names node a, which has `links` links to `server`.
    async fn new(server: Negotiated, links: u32) -> Self {
        let world = World::with(SimNodes::default(), "nbd://a/");
        world.serves(server);
        world.table();
        world.connect(links).await;
        world
    }

    fn serves(&self, server: Negotiated) {
        self.nodes.exports().insert(self.uri.to_string(), server);
    }

    /// What was asked so far: slot and generation, in order of slots.
    fn asked(&self) -> Vec<(u32, u32)> {
        let fences = self.nodes.fences();
        let mut asked: Vec<_> = fences.iter().map(|f| (f.slot.0, f.generation.0)).collect();
        asked.sort();
        asked
    }
}

impl<C: Connector> World<C> {
    fn with(nodes: C, uri: &str) -> Self {
        World {
            kernel: Arc::default(),
            nodes: Arc::new(nodes),
            uri: uri.parse().unwrap(),
        }
    }

    fn table(&self) {
        let device = "d".parse().unwrap();
        let line = "0 8 dst 1 a 0 8".parse().unwrap();
        let kernel = &self.kernel;
        kernel
            .create(&device, &DmUuid::default(), Access::ReadWrite)
            .unwrap();
        kernel.load(&device, &[line], Access::ReadWrite).unwrap();
    }

    async fn connect(&self, links: u32) -> ObservedNode {
        let nodes = self.nodes.as_ref();
        connect(&self.kernel, nodes, &self.uri, &want(links))
            .await
            .unwrap()
    }

    fn fencer(&self) -> Fencer {
        let known = Addresses::from([(node_a(), self.uri.clone())]);
        Fencer::start(Arc::clone(&self.kernel), Arc::clone(&self.nodes), known)
    }

    fn lose(&self, slots: &[u32]) {
        self.kernel.lose_writes(&node_a(), slots, 5);
    }

    fn node(&self) -> ObservedNode {
        self.kernel.state().nodes[&node_a()].clone()
    }

    /// Slot and generation of the links that aren't fenced.
    fn unfenced(&self) -> Vec<(u32, u32)> {
        let unfenced = self.node().unfenced;
        unfenced
            .iter()
            .map(|o| (o.slot.0, o.generation.0))
            .collect()
    }

    async fn until_unfenced_are(&self, expected: &[(u32, u32)]) {
        let reached = async {
            while self.unfenced() != expected {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = timeout(LONG, reached).await;
        assert!(reached.is_ok(), "{:?}, not {expected:?}", self.unfenced());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_with_writes_is_fenced_at_once_and_no_other() {
    let world = World::new(ours(1), 3).await;
    let _fencer = world.fencer();
    // It has had its first look, and listens.
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    world.lose(&[0, 2]);
    world.until_unfenced_are(&[]).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "by the event, not by the next look"
    );
    assert_eq!(world.asked(), [(0, 1), (2, 3)]);
    assert_eq!(world.node().live, 1, "slot 1 goes on");
    let fence = world.nodes.fences()[0];
    assert_eq!(Some(fence.session), world.node().session);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_before_the_start_or_without_a_word_is_found() {
    let world = World::new(ours(1), 2).await;
    world.kernel.state().mute = true;
    world.lose(&[0]);
    let _fencer = world.fencer();
    world.until_unfenced_are(&[]).await;
    sleep(Duration::from_secs(1)).await;
    world.lose(&[1]);
    world.until_unfenced_are(&[]).await;
    assert_eq!(world.asked(), [(0, 1), (1, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_busy_holds_up_neither_the_others_nor_the_links() {
    let world = World::new(ours(1), 2).await;
    let _fencer = world.fencer();
    world.nodes.busy().insert(Slot(0));
    world.lose(&[0, 1]);
    let begun = Instant::now();
    let node = world.connect(2).await;
    assert_eq!(node.live, 2);
    world.until_unfenced_are(&[(0, 1)]).await;
    assert!(begun.elapsed() < HANDSHAKE, "the busy fence was waited for");
    // It is asked again and again until the server has finished.
    while world.nodes.fences().len() < 4 {
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.unfenced(), [(0, 1)]);
    world.nodes.busy().clear();
    world.until_unfenced_are(&[]).await;
    assert_eq!(world.node().live, 2, "the new links have newer generations");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_asked_until_it_can() {
    let world = World::new(ours(1), 1).await;
    let server = world.nodes.exports().remove("nbd://a/").unwrap();
    let _fencer = world.fencer();
    world.lose(&[0]);
    sleep(LONG * 10).await;
    assert_eq!(world.unfenced(), [(0, 1)]);
    let tries = world.nodes.fences().len();
    assert!((15..60).contains(&tries), "{tries} tries in ten minutes");
    world.serves(server);
    world.until_unfenced_are(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_is_asked_at_once() {
    let world = World::new(ours(1), 1).await;
    let server = world.nodes.exports().remove("nbd://a/").unwrap();
    let _fencer = world.fencer();
    world.lose(&[0]);
    // By now there is half a minute between tries.
    sleep(LONG * 10).await;
    world.serves(server);
    let back = Instant::now();
    world.connect(1).await;
    world.until_unfenced_are(&[]).await;
    assert!(
        back.elapsed() < Duration::from_secs(1),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn one_fence_covers_all_old_links_of_a_slot() {
    let world = World::new(ours(1), 1).await;
    world.lose(&[0]);
    world.connect(1).await;
    world.lose(&[0]);
    assert_eq!(world.unfenced(), [(0, 1), (0, 2)]);
    let _fencer = world.fencer();
    world.until_unfenced_are(&[]).await;
    assert_eq!(world.asked(), [(0, 2)]);
}

#[tokio::test(start_paused = true)]
async fn the_links_of_a_session_that_the_kernel_forgot_are_left_to_other_fences() {
    let world = World::new(ours(1), 2).await;
    world.lose(&[0]);
    // The last table goes and comes back: guards are kept, the session isn't.
    let device = "d".parse().unwrap();
    world.kernel.remove(&device).unwrap();
    world.table();
    assert_eq!(world.unfenced(), [(0, 1)]);
    let before = world.node();
    assert_eq!((before.session, before.generation), (None, Generation(2)));
    world.connect(2).await;
    world.lose(&[1]);
    let _fencer = world.fencer();
    // Its server would say yes to anything asked in the name of the new session.
    world.until_unfenced_are(&[(0, 1)]).await;
    sleep(LONG).await;
    assert_eq!(world.asked(), [(1, 4)]);
    assert_eq!(world.unfenced(), [(0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn links_to_a_stock_server_are_not_asked_of_what_takes_its_place() {
    let world = World::new(stock(), 2).await;
    let first = world.node().session.unwrap();
    world.lose(&[0, 1]);
    let _fencer = world.fencer();
    sleep(LONG).await;
    assert!(
        world.nodes.fences().is_empty(),
        "a stock server is left in peace"
    );
    world.serves(ours(1));
    world.connect(2).await;
    let second = world.node().session.unwrap();
    assert_ne!(first, second);
    let told = world.nodes.attached().last().unwrap().session;
    assert_eq!(
        told, second,
        "the server knows the session that the kernel keeps"
    );
    world.lose(&[1]);
    world.until_unfenced_are(&[(0, 1), (1, 2)]).await;
    sleep(LONG).await;
    let asked = world.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_the_kernel_lost_is_asked_for_again() {
    let world = World::new(ours(1), 1).await;
    world.kernel.state().deaf = 1;
    let _fencer = world.fencer();
    world.lose(&[0]);
    world.until_unfenced_are(&[]).await;
    assert_eq!(world.asked(), [(0, 1), (0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn another_export_at_the_address_fences_nothing() {
    let world = World::new(ours(1), 1).await;
    world.serves(ours(2));
    world.lose(&[0]);
    let _fencer = world.fencer();
    sleep(LONG).await;
    assert_eq!(world.unfenced(), [(0, 1)]);
    world.serves(ours(1));
    world.until_unfenced_are(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn another_machine_with_the_same_storage_fences_nothing_that_the_first_one_had() {
    let world = World::new(ours(1), 2).await;
    let first = world.node().session.unwrap();
    let mut other = ours(1);
    other.incarnation = Some(Id([8; 16]));
    world.serves(other);
    world.lose(&[0, 1]);
    // Before the node has new links, and after.
    let _fencer = world.fencer();
    sleep(LONG).await;
    assert_eq!(world.unfenced(), [(0, 1), (1, 2)]);
    world.connect(2).await;
    sleep(LONG).await;
    assert_eq!(world.unfenced(), [(0, 1), (1, 2)]);
    assert_ne!(world.node().session.unwrap(), first);
    // What it had itself it can tell.
    world.lose(&[1]);
    world.until_unfenced_are(&[(0, 1), (1, 2)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_asked_instead_of_the_old() {
    let world = World::new(ours(1), 1).await;
    let server = world.nodes.exports().remove("nbd://a/").unwrap();
    world.lose(&[0]);
    let fencer = world.fencer();
    sleep(LONG).await;
    world.nodes.exports().insert("nbd://b/".into(), server);
    let text = "version: 1\nnodes: {a: {uri: 'nbd://b/'}}\n";
    fencer.tell(addresses(&Topology::parse_one("t.yaml", text).unwrap()));
    world.until_unfenced_are(&[]).await;
}

#[tokio::test]
async fn an_entry_that_stands_for_several_links_is_not_asked_about() {
    let world = World::new(ours(1), 2).await;
    world.lose(&[0, 1]);
    let mut node = world.node();
    node.unfenced[0].merged = 3;
    let asked: Vec<_> = askable(&node).into_keys().collect();
    assert_eq!(asked, [Slot(1)]);
}

#[tokio::test]
async fn the_simulated_kernel_refuses_fences_as_the_real_one_does() {
    let world = World::new(ours(1), 1).await;
    let session = world.node().session.unwrap();
    let link = |session, generation| Fenced::Link {
        session,
        slot: Slot(0),
        generation: Generation(generation),
    };
    let refused = |what| world.kernel.fenced(&node_a(), what).unwrap_err().errno;
    let stranger = crate::units::Session::begin(Id([9; 16]), world.uri.mark(), Generation(1));
    assert_eq!(refused(link(stranger, 1)), Some(nix::errno::Errno::ESTALE));
    assert_eq!(refused(link(session, 2)), Some(nix::errno::Errno::ENOENT));
    let node = world.kernel.fenced(&node_a(), link(session, 1)).unwrap();
    assert_eq!(node.live, 0, "a fence ends a link that still stands");
    world.connect(1).await;
    world.lose(&[0]);
    world.kernel.fenced(&node_a(), Fenced::All).unwrap();
    assert_eq!(world.unfenced(), []);
}

/// Our node server on a Unix socket; its links' requests are under way for as long as the test wants.
mod our_server {
    use tokio::net::UnixListener;

    use super::*;
    use crate::export::access::Peer;
    use crate::export::link::{End, Transmission};
    use crate::export::server::Server;
    use crate::export::testing::{Recorder, config, files, opened};

    struct Running {
        plane: Arc<Recorder>,
        dir: tempfile::TempDir,
    }

    fn start() -> Running {
        let dir = files();
        let plane = Arc::new(Recorder::default());
        let config = config(&dir, "version: 1\nexports: {a: {path: DIR/a}}\n");
        let exports = opened(&config);
        let server = Server::new(config, exports, plane.clone());
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let socket = stream.into_std().unwrap();
                server.newcomer(Arc::new(socket.into()), Peer::Unix { uid: 0, pid: 1 });
            }
        });
        Running { plane, dir }
    }

    impl Running {
        fn world(&self) -> World<RealConnector> {
            let socket = self.dir.path().join("s");
            let uri = format!("nbd+unix:///a?socket={}", socket.display());
            let world = World::with(RealConnector::default(), &uri);
            world.table();
            world
        }

        /// The next link, in transmission phase.
        async fn link(&self) -> Transmission {
            while self.plane.count() == 0 {
                tokio::task::yield_now().await;
            }
            self.plane.take()
        }
    }

    #[tokio::test]
    async fn a_fence_comes_when_the_old_links_requests_have_ended_and_new_links_do_not_wait() {
        let running = start();
        let world = running.world();
        let node = world.connect(2).await;
        assert!(node.negotiated.unwrap().identity.is_some());
        let (old, other) = (running.link().await, running.link().await);
        let _fencer = world.fencer();
        world.lose(&[0]);
        let node = world.connect(2).await;
        assert_eq!((node.live, node.generation), (2, Generation(3)));
        let new = running.link().await;
        // The server was told, and cut the old link; its requests go on.
        let cut = async {
            while !old.gate.is_cut() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, cut).await.unwrap();
        assert_eq!(world.unfenced(), [(0, 1)]);
        let gate = old.gate.clone();
        drop(old);
        gate.end(End::Lost);
        world.until_unfenced_are(&[]).await;
        assert!(!new.gate.is_cut() && !other.gate.is_cut());
    }
}
