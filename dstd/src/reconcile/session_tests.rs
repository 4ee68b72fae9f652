//! What links of a node are told to be: session kept, generations that two daemons chose at once, steal.
//! Against the simulated kernel and nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use super::links::{LinkError, connect};
use crate::kernel::sim::{SimKernel, SimNodes, export};
use crate::kernel::{
    Access, Attach, Conduct, ConnectError, Connection, Connector, DmUuid, Fence, Kernel, NbdFlags,
    NodeState, ObservedNode, Policy, Probed,
};
use crate::nbd::uri::NbdUri;
use crate::plan::Connect;
use crate::units::{Generation, Id, NodeName, Session, Slot};

struct World {
    kernel: Arc<SimKernel>,
    nodes: SimNodes,
}

fn node_a() -> NodeName {
    "a".parse().unwrap()
}

fn uri() -> NbdUri {
    "nbd://a/".parse().unwrap()
}

/// `links` links of node a.
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

impl World {
    /// A table names node a, which has no link yet.
    fn new(flags: u16) -> Self {
        let world = World {
            kernel: Arc::default(),
            nodes: SimNodes::default(),
        };
        let mut exports = world.nodes.exports();
        exports.insert("nbd://a/".into(), export(1000, flags));
        drop(exports);
        let device = "d".parse().unwrap();
        let line = "0 8 dst 1 a 0 8".parse().unwrap();
        let kernel = &world.kernel;
        kernel
            .create(&device, &DmUuid::default(), Access::ReadWrite)
            .unwrap();
        kernel.load(&device, &[line], Access::ReadWrite).unwrap();
        world
    }

    fn multi() -> Self {
        World::new(NbdFlags::CAN_MULTI_CONN)
    }

    async fn connect(&self, want: &Connect) -> Result<ObservedNode, LinkError> {
        connect(&self.kernel, &self.nodes, &uri(), want).await
    }

    /// As if the topology named another address now.
    async fn connect_to(&self, uri: &str, want: &Connect) -> Result<ObservedNode, LinkError> {
        connect(&self.kernel, &self.nodes, &uri.parse().unwrap(), want).await
    }

    /// What connections were told to be since this was asked last: slot, generation.
    fn told(&self) -> Vec<(u32, u32)> {
        let told = std::mem::take(&mut *self.nodes.attached());
        told.iter().map(|a| (a.slot.0, a.generation.0)).collect()
    }
}

#[tokio::test]
async fn the_first_links_make_a_session() {
    let world = World::multi();
    let node = world.connect(&want(3)).await.unwrap();
    let sessions: Vec<Session> = world.nodes.attached().iter().map(|a| a.session).collect();
    assert_eq!(sessions, [node.session.unwrap(); 3]);
    assert_eq!(world.told(), [(0, 1), (1, 2), (2, 3)]);
    // The kernel was given the very numbers that the server was told.
    let links: Vec<_> = node
        .links
        .iter()
        .map(|l| (l.slot.0, l.generation.0))
        .collect();
    assert_eq!(links, [(0, 1), (1, 2), (2, 3)]);
}

#[tokio::test]
async fn a_later_dstd_goes_on_with_the_kernels_session() {
    let world = World::multi();
    let first = world.connect(&want(3)).await.unwrap();
    world.told();
    world.kernel.lose_links(&node_a(), &[0, 2]);
    let node = world.connect(&want(3)).await.unwrap();
    assert_eq!(node.session, first.session);
    let sessions = world
        .nodes
        .attached()
        .iter()
        .map(|a| a.session)
        .collect::<Vec<_>>();
    assert_eq!(sessions, [first.session.unwrap(); 2]);
    // Slot 1 goes on.
    assert_eq!(world.told(), [(0, 4), (2, 5)]);
    assert_eq!(node.live, 3);
}

#[tokio::test]
async fn a_node_that_was_made_anew_has_a_new_session() {
    let world = World::multi();
    let first = world.connect(&want(1)).await.unwrap();
    let again = World::multi();
    let second = again.connect(&want(1)).await.unwrap();
    assert_ne!(first.session.unwrap().nonce, second.session.unwrap().nonce);
    assert_eq!(
        first.session.unwrap().client,
        second.session.unwrap().client
    );
}

#[tokio::test]
async fn steal_is_told_only_where_it_was_asked_for() {
    let world = World::multi();
    world.connect(&want(1)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[0]);
    let steal = Connect {
        steal: true,
        ..want(2)
    };
    world.connect(&steal).await.unwrap();
    let told: Vec<bool> = world.nodes.attached().iter().map(|a| a.steal).collect();
    assert_eq!(told, [false, true, true]);
}

#[tokio::test]
async fn without_multi_conn_one_link_is_made_and_no_other_tried_again() {
    let world = World::new(0);
    let node = world.connect(&want(4)).await.unwrap();
    assert_eq!((node.live, node.wanted), (1, 1));
    assert_eq!(world.told(), [(0, 1)]);
    let node = world.connect(&want(4)).await.unwrap();
    assert_eq!((node.live, node.generation), (1, Generation(1)));
}

/// While it connects, another dstd gives the node all its links, `rounds` times.
struct Rival {
    world: Arc<World>,
    rounds: AtomicUsize,
    /// The other's links are lost again at once.
    lose: bool,
}

impl Connector for Rival {
    fn new_session(&self, uri: &NbdUri, first: Generation) -> Result<Session, ConnectError> {
        self.world.nodes.new_session(uri, first)
    }

    async fn fence(&self, uri: &NbdUri, fence: &Fence) -> Result<(), ConnectError> {
        self.world.nodes.fence(uri, fence).await
    }

    async fn probe(&self, uri: &NbdUri) -> Result<Probed, ConnectError> {
        self.world.nodes.probe(uri).await
    }

    async fn connect(&self, uri: &NbdUri, attach: &Attach) -> Result<Connection, ConnectError> {
        let left = self.rounds.load(Ordering::SeqCst);
        if left > 0 {
            self.rounds.store(left - 1, Ordering::SeqCst);
            self.world.connect(&want(1)).await.unwrap();
            if self.lose {
                self.world.kernel.lose_links(&node_a(), &[0]);
            }
        }
        self.world.nodes.connect(uri, attach).await
    }
}

async fn against(rounds: usize, lose: bool) -> (Arc<World>, Result<ObservedNode, LinkError>) {
    let world = Arc::new(World::multi());
    let rival = Rival {
        world: Arc::clone(&world),
        rounds: AtomicUsize::new(rounds),
        lose,
    };
    let result = connect(&world.kernel, &rival, &uri(), &want(1)).await;
    (world, result)
}

#[tokio::test]
async fn of_two_daemons_that_chose_the_same_generation_the_kernel_takes_one() {
    let (world, result) = against(1, false).await;
    let node = result.unwrap();
    assert_eq!((node.live, node.generation), (1, Generation(1)));
    // The other one's session stays: the loser's was never the kernel's.
    let sets = world.kernel.state();
    let sets = sets.calls.iter().filter(|c| c.starts_with("links_set"));
    assert_eq!(
        sets.count(),
        2,
        "one was taken, one refused, none tried again"
    );
}

#[tokio::test]
async fn whoever_lost_the_race_takes_the_winners_session() {
    let (world, result) = against(1, true).await;
    let node = result.unwrap();
    assert_eq!((node.live, node.generation), (1, Generation(2)));
    let told: Vec<_> = world.nodes.attached().clone();
    let [winner, loser, again] = told[..] else {
        panic!("{told:?}");
    };
    assert_ne!(winner.session, loser.session);
    assert_eq!(again.session, winner.session);
    assert_eq!(again.generation, Generation(2));
    assert_eq!(node.session, Some(winner.session));
}

#[tokio::test]
async fn a_race_that_is_lost_again_and_again_is_told() {
    let (_, result) = against(100, true).await;
    match result.unwrap_err() {
        LinkError::Kernel(error) => assert!(error.is(Errno::ESTALE), "{error}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_node_that_lost_its_settings_has_them_again_before_its_first_link() {
    let world = World::multi();
    let error = Conduct {
        policy: Policy::Error,
        ..Conduct::default()
    };
    let want = Connect {
        conduct: error,
        ..want(2)
    };
    let node = world.connect(&want).await.unwrap();
    assert_eq!(node.conduct, error);
    let calls = world.kernel.state().calls.clone();
    assert_eq!(calls[2..], ["set_conduct a", "links_set a"]);
    world.kernel.lose_links(&node_a(), &[0]);
    world.connect(&want).await.unwrap();
    assert_eq!(world.kernel.state().calls[4..], ["links_set a"]);
}

#[tokio::test]
async fn links_that_agreed_on_something_else_are_made_anew_with_the_lost_one() {
    let world = World::multi();
    world.connect(&want(3)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[1]);
    world.told();
    let flags = NbdFlags::CAN_MULTI_CONN | NbdFlags::SEND_FUA;
    let other = export(1000, flags);
    world.nodes.exports().insert("nbd://a/".into(), other);
    let node = world.connect(&want(3)).await.unwrap();
    let links: Vec<_> = node.links.iter().map(|l| l.generation.0).collect();
    assert_eq!(links, [4, 5, 6], "one server for all");
    assert!(node.negotiated.unwrap().flags.has(NbdFlags::SEND_FUA));
    // An export that only grew is no other.
    world.kernel.lose_links(&node_a(), &[1]);
    let grown = export(2000, flags);
    world.nodes.exports().insert("nbd://a/".into(), grown);
    let node = world.connect(&want(3)).await.unwrap();
    let mut links: Vec<_> = node.links.iter().map(|l| l.generation.0).collect();
    links.sort();
    assert_eq!(links, [4, 6, 7]);
}

#[tokio::test]
async fn a_session_begins_with_the_links_that_it_is_for() {
    let world = World::multi();
    let first = world.connect(&want(2)).await.unwrap().session.unwrap();
    assert_eq!(first.first(), Generation(1));
    world.kernel.lose_links(&node_a(), &[0, 1]);
    let mut told = export(1000, NbdFlags::CAN_MULTI_CONN);
    told.identity = Some(Id([1; 16]));
    told.incarnation = Some(Id([1; 16]));
    world.nodes.exports().insert("nbd://a/".into(), told);
    let second = world.connect(&want(2)).await.unwrap().session.unwrap();
    assert_eq!(second.first(), Generation(3));
    assert_eq!(first.client, second.client);
}

#[tokio::test]
async fn links_that_could_be_made_are_used_although_another_failed() {
    let world = World::multi();
    world.nodes.refused().insert(Slot(2));
    let error = world.connect(&want(4)).await.unwrap_err().to_string();
    assert!(error.contains("node a has 2 of 4 links"), "{error}");
    assert!(error.contains("too many connections"), "{error}");
    let node = world.kernel.node(&node_a()).unwrap().unwrap();
    assert_eq!((node.live, node.state), (2, NodeState::Degraded));
    world.nodes.refused().clear();
    assert_eq!(world.connect(&want(4)).await.unwrap().live, 4);
    // Links to a server that is another now are not mixed with new ones.
    world.kernel.lose_links(&node_a(), &[0]);
    let flags = NbdFlags::CAN_MULTI_CONN | NbdFlags::SEND_FUA;
    world
        .nodes
        .exports()
        .insert("nbd://a/".into(), export(1000, flags));
    world.nodes.refused().insert(Slot(2));
    world.connect(&want(4)).await.unwrap_err();
    let node = world.kernel.node(&node_a()).unwrap().unwrap();
    assert_eq!(node.live, 3);
    assert!(!node.negotiated.unwrap().flags.has(NbdFlags::SEND_FUA));
}

#[tokio::test]
async fn a_server_that_takes_one_link_only_is_found_to_be_another_also_by_a_later_slot() {
    let world = World::multi();
    world.connect(&want(2)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[1]);
    world
        .nodes
        .exports()
        .insert("nbd://a/".into(), export(1000, 0));
    let node = world.connect(&want(2)).await.unwrap();
    assert!(!node.negotiated.unwrap().flags.multi_conn());
    let links: Vec<_> = node
        .links
        .iter()
        .map(|l| (l.slot.0, l.generation.0))
        .collect();
    assert_eq!(links, [(0, 3)], "the link to the old server is replaced");
}

#[tokio::test]
async fn links_to_two_addresses_are_mixed_only_where_both_tell_the_same_export() {
    let world = World::multi();
    let stock = || export(1000, NbdFlags::CAN_MULTI_CONN);
    world.nodes.exports().insert("nbd://b/".into(), stock());
    let first = world.connect(&want(2)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[1]);
    // Another dstd than the one that made them: only the kernel knows.
    let refused = world.connect_to("nbd://b/", &want(2)).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("lead to another address"), "{text}");
    assert!(text.contains("`dstd apply --same-data a`"), "{text}");
    let node = world.kernel.node(&node_a()).unwrap().unwrap();
    assert_eq!((node.live, node.session), (1, first.session));
    let word = Connect {
        same_data: true,
        ..want(2)
    };
    let node = world.connect_to("nbd://b/", &word).await.unwrap();
    let links: Vec<_> = node.links.iter().map(|l| l.generation.0).collect();
    assert_eq!(links, [3, 4], "none to the old address");
    assert_ne!(node.session, first.session);
    // From here on it is the node's address, and the old one is another.
    world.kernel.lose_links(&node_a(), &[0]);
    world.connect_to("nbd://b/", &want(2)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[0]);
    world.connect(&want(2)).await.unwrap_err();
}

#[tokio::test]
async fn an_export_that_tells_who_it_is_may_have_two_addresses() {
    let world = World::multi();
    let mut told = export(1000, NbdFlags::CAN_MULTI_CONN);
    told.identity = Some(Id([1; 16]));
    told.incarnation = Some(Id([1; 16]));
    for uri in ["nbd://a/", "nbd://b/"] {
        world.nodes.exports().insert(uri.into(), told.clone());
    }
    let first = world.connect(&want(2)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[1]);
    let node = world.connect_to("nbd://b/", &want(2)).await.unwrap();
    assert_eq!((node.live, node.session), (2, first.session));
}

#[tokio::test]
async fn a_node_without_a_link_goes_to_its_new_address_as_another_session() {
    let world = World::multi();
    let stock = export(1000, NbdFlags::CAN_MULTI_CONN);
    world.nodes.exports().insert("nbd://b/".into(), stock);
    let first = world.connect(&want(2)).await.unwrap();
    world.kernel.lose_links(&node_a(), &[0, 1]);
    let node = world.connect_to("nbd://b/", &want(2)).await.unwrap();
    assert_eq!(node.live, 2);
    assert_ne!(node.session, first.session);
}
