//! Roles as the handshake uses them: real gates on socket pairs, waiting joins and fences, futures that are
//! dropped, ends that are told. Time is tokio's, paused.

use std::future::Future;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, yield_now};
use tokio::time::advance;

use super::table_tests::session;
use super::*;
use crate::export::link::End;
use crate::units::Session;

const TIMEOUT: Duration = Duration::from_secs(30);

fn roles() -> Arc<Roles> {
    Roles::new(RoleConfig {
        shared: false,
        holder_timeout: TIMEOUT,
    })
}

/// A gate, and the client's end of its socket.
fn gate() -> (Arc<LinkGate>, UnixStream) {
    let (server, client) = UnixStream::pair().unwrap();
    (LinkGate::new(Arc::new(OwnedFd::from(server))), client)
}

fn request(session: Session, slot: u32, generation: u64) -> SessionRequest {
    SessionRequest {
        steal: false,
        identify_only: false,
        slot,
        generation,
        session,
        export: "disk".to_owned(),
    }
}

fn fence_of(session: Session, slot: u32, generation: u64) -> FenceRequest {
    FenceRequest {
        slot,
        generation,
        session,
        export: "disk".to_owned(),
    }
}

async fn join(roles: &Roles, request: &SessionRequest) -> (Arc<LinkGate>, UnixStream) {
    let (gate, client) = gate();
    let joined = roles.join(Some(request), Arc::clone(&gate), "peer".to_owned());
    assert!(!joined.await.unwrap().read_only);
    (gate, client)
}

async fn join_anonymous(roles: &Roles) -> (Arc<LinkGate>, bool) {
    let (gate, _) = gate();
    let joined = roles.join(None, Arc::clone(&gate), "stock".to_owned());
    (gate, joined.await.unwrap().read_only)
}

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// A join under way; `None` from `done` means that it waits.
fn start<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(future)
}

fn start_join(
    roles: &Arc<Roles>,
    request: SessionRequest,
) -> (JoinHandle<Result<Joined, RoleError>>, Arc<LinkGate>) {
    let roles = Arc::clone(roles);
    let (gate, _) = gate();
    let mine = Arc::clone(&gate);
    let join = async move { roles.join(Some(&request), mine, "peer".to_owned()).await };
    (start(join), gate)
}

fn start_fence(roles: &Arc<Roles>, request: FenceRequest) -> JoinHandle<()> {
    let roles = Arc::clone(roles);
    start(async move { roles.fence(&request).await })
}

fn assert_forgotten(roles: &Roles) {
    let state = roles.state();
    assert!(state.machine.is_idle(), "{:?}", state.machine);
    assert!(state.gates.is_empty(), "{:?}", state.gates);
}

#[tokio::test(start_paused = true)]
async fn a_take_over_is_granted_when_the_older_sessions_last_link_has_ended_not_before() {
    let roles = roles();
    let (first, mut client) = join(&roles, &request(session(1, 1), 0, 1)).await;
    let (second, _client) = join(&roles, &request(session(1, 1), 1, 2)).await;
    let (waiting, newer) = start_join(&roles, request(session(1, 2), 0, 1));
    settle().await;
    assert!(first.is_cut() && second.is_cut() && !newer.is_cut());
    // The old client sees its socket end, although its requests still run.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    advance(Duration::from_secs(3600)).await;
    first.end(End::Lost);
    settle().await;
    assert!(!waiting.is_finished(), "one link's requests still run");
    second.end(End::Lost);
    assert!(!waiting.await.unwrap().unwrap().read_only);
    newer.end(End::Disconnected);
    settle().await;
    assert_forgotten(&roles);
}

#[tokio::test(start_paused = true)]
async fn a_lost_holder_keeps_the_role_for_its_timeout_and_not_longer() {
    let roles = roles();
    let (gate, _client) = join(&roles, &request(session(1, 1), 0, 1)).await;
    gate.end(End::Lost);
    settle().await;
    advance(TIMEOUT - Duration::from_millis(1)).await;
    let other = request(session(2, 1), 0, 1);
    assert!(roles.identify(&other).by_other);
    let (waiting, _) = start_join(&roles, other.clone());
    let text = waiting.await.unwrap().unwrap_err().to_string();
    assert!(text.contains("the export is free in 1s"), "{text}");
    advance(Duration::from_millis(1)).await;
    assert!(!roles.identify(&other).by_other);
    join(&roles, &other).await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_comes_back_in_time_keeps_the_role() {
    let roles = roles();
    let (gate, _client) = join(&roles, &request(session(1, 1), 0, 1)).await;
    gate.end(End::Lost);
    settle().await;
    advance(TIMEOUT - Duration::from_secs(1)).await;
    let (_again, _client) = join(&roles, &request(session(1, 1), 0, 2)).await;
    advance(TIMEOUT).await;
    assert!(roles.identify(&request(session(2, 1), 0, 1)).by_other);
}

#[tokio::test(start_paused = true)]
async fn a_fence_waits_for_its_own_links_and_touches_no_other() {
    let roles = roles();
    let me = session(1, 1);
    let (old, _c) = join(&roles, &request(me, 0, 5)).await;
    let (newer, _c) = join(&roles, &request(me, 0, 6)).await;
    let (other_slot, _c) = join(&roles, &request(me, 1, 4)).await;
    let fences = [5, 3, 5].map(|generation| start_fence(&roles, fence_of(me, 0, generation)));
    settle().await;
    assert!(old.is_cut());
    assert!(!newer.is_cut() && !other_slot.is_cut());
    let done = fences.each_ref().map(JoinHandle::is_finished);
    assert_eq!(done, [false, true, false]);
    old.end(End::Lost);
    for fence in fences {
        fence.await.unwrap();
    }
    let (refused, _) = start_join(&roles, request(me, 0, 5));
    let error = refused.await.unwrap().unwrap_err();
    assert!(matches!(error, RoleError::Fenced { .. }), "{error}");
    assert!(!newer.is_cut() && !other_slot.is_cut());
    // The session goes on, and a link of the next generation may come.
    join(&roles, &request(me, 0, 7)).await;
}

#[tokio::test(start_paused = true)]
async fn a_fence_of_an_unknown_session_is_answered_at_once_and_remembered() {
    let roles = roles();
    roles.fence(&fence_of(session(1, 1), 0, 3)).await;
    let (late, _) = start_join(&roles, request(session(1, 1), 0, 3));
    assert!(matches!(late.await.unwrap(), Err(RoleError::Fenced { .. })));
    assert_forgotten(&roles);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_fenced_while_it_waits_to_join_never_joins() {
    let roles = roles();
    let (old, _c) = join(&roles, &request(session(1, 1), 0, 1)).await;
    let (waiting, _) = start_join(&roles, request(session(1, 2), 0, 1));
    settle().await;
    // Answered at once: such a link has no requests.
    roles.fence(&fence_of(session(1, 2), 0, 1)).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, RoleError::Fenced { .. }), "{error}");
    old.end(End::Lost);
    settle().await;
    assert_forgotten(&roles);
}

#[tokio::test(start_paused = true)]
async fn a_join_and_a_fence_that_are_dropped_leave_nothing_behind() {
    let roles = roles();
    let (old, _c) = join(&roles, &request(session(1, 1), 0, 1)).await;
    let (waiting, gate) = start_join(&roles, request(session(1, 2), 0, 1));
    let fence = start_fence(&roles, fence_of(session(1, 1), 0, 1));
    settle().await;
    assert!(!waiting.is_finished() && !fence.is_finished());
    waiting.abort();
    fence.abort();
    settle().await;
    assert_eq!(Arc::strong_count(&gate), 1, "nobody keeps the gate");
    old.end(End::Lost);
    settle().await;
    assert_forgotten(&roles);
    // The fence was heard, so its number counts; the session itself may come back.
    let (refused, _) = start_join(&roles, request(session(1, 1), 0, 1));
    assert!(matches!(
        refused.await.unwrap(),
        Err(RoleError::Fenced { .. })
    ));
    join(&roles, &request(session(1, 1), 0, 2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stolen_role_goes_over_when_all_that_wrote_have_ended() {
    let roles = roles();
    let (writer, read_only) = join_anonymous(&roles).await;
    assert!(!read_only);
    let (idle, _) = join_anonymous(&roles).await;
    assert!(writer.claim_write() && writer.claim_write());
    let mut steal = request(session(2, 1), 0, 1);
    let (refused, _) = start_join(&roles, steal.clone());
    let text = refused.await.unwrap().unwrap_err().to_string();
    assert!(
        text.contains("clients without a session that write, from stock"),
        "{text}"
    );
    steal.steal = true;
    let (waiting, gate) = start_join(&roles, steal);
    settle().await;
    assert!(writer.is_cut() && !idle.is_cut());
    assert!(!idle.claim_write(), "the role is being taken");
    assert!(!waiting.is_finished());
    writer.end(End::Lost);
    waiting.await.unwrap().unwrap();
    assert!(!idle.claim_write());
    let (_, read_only) = join_anonymous(&roles).await;
    assert!(read_only);
    gate.end(End::Disconnected);
    settle().await;
    assert!(idle.claim_write(), "free again");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_only_asks_takes_nothing() {
    let roles = roles();
    let mut ask = request(session(1, 1), 0, 0);
    ask.identify_only = true;
    assert_eq!(roles.identify(&ask).text, "");
    let (gate, _c) = join(&roles, &ask).await;
    join(&roles, &request(session(2, 1), 0, 1)).await;
    assert!(!gate.claim_write());
}

#[tokio::test(start_paused = true)]
async fn read_only_links_take_no_role() {
    let roles = roles();
    let (reader, _c) = gate();
    let mine = request(session(1, 1), 0, 1);
    let joined = roles.join_read_only(Some(&mine), Arc::clone(&reader), "peer".to_owned());
    assert!(joined.await.unwrap().read_only);
    let joined = roles.join_read_only(None, gate().0, "peer".to_owned());
    assert!(joined.await.unwrap().read_only);
    join(&roles, &request(session(2, 1), 0, 1)).await;
    let fence = start_fence(&roles, fence_of(session(1, 1), 0, 1));
    settle().await;
    assert!(reader.is_cut() && !fence.is_finished());
    reader.end(End::Lost);
    fence.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn roles_that_are_gone_grant_nothing_and_keep_nothing() {
    let roles = roles();
    let (gate, _) = join_anonymous(&roles).await;
    let (named, _c) = join(&roles, &request(session(1, 1), 0, 1)).await;
    let weak = Arc::downgrade(&roles);
    drop(roles);
    assert!(weak.upgrade().is_none());
    assert!(!gate.claim_write());
    named.end(End::Lost);
    settle().await;
    assert_eq!(Arc::strong_count(&named), 1);
}
