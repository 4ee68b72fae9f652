//! One link at the data plane: its state, its limits, its end.
//!
//! Owns the receive block, the output, and what of the stream was understood. Turned by the worker's loop; `serve`
//! starts requests, `large` the long ones, `finish` answers. Never starts a request after the gate was cut.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tracing::debug;

use super::core::{Core, Kind, token};
use super::large::{Big, Drain, Stream};
use super::pool::{BlockId, LARGE_DATA, Size, Span};
use super::reply::{self, SHORT_REPLY, To};
use super::request::{Refusal, Rules};
use super::ring::{Completion, Op, Ring, SPANS, Target, raw};
use super::rx::Rx;
use super::tx::Tx;
use crate::export::backend::{Backend, WriteTurn};
use crate::export::link::{End, LinkGate, LinkLimits, Transmission};

/// Operations of one link on the job threads at a time.
pub const JOBS: usize = 16;
/// Requests of one link that may be under way.
const PENDING: usize = 1024;
/// What a request under way counts for beside its data.
pub const OVERHEAD: usize = 256;
/// What a link may always hold, or it could not go on: a block that is received and one that is written.
const LEAST: usize = 2 * LARGE_DATA;
/// What one link is served at once before the others have their turn.
const TURN_REQUESTS: usize = 64;
const TURN_BYTES: usize = 512 << 10;
/// A send of at most this much is made one with the receive after it; a longer one may wait for the client to read,
/// and requests shouldn't have to.
const JOINED: usize = 64 << 10;
/// Bytes that the kernel may hold for a client on a Unix socket.
const UNIX_BUFFER: usize = 512 << 10;
/// From here on the rest of a payload is received in one piece.
const IN_ONE: usize = 32 << 10;
/// Most of one receive of long writes over TCP: the kernel acknowledges nothing while it copies, and its sender waits.
const AT_ONCE: u32 = 96 << 10;

#[derive(Debug)]
pub enum State {
    Requests,
    Stream(Stream),
    Drain(Drain),
    Big(Big),
}

/// What the next receive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Bytes without which nothing can go on.
    pub least: usize,
    /// Bytes of the payload that is being received.
    pub payload: usize,
}

/// How one step of a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Done,
    Receive(Need),
    /// Something under way has to end first.
    Wait,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Idle,
    /// There is more to do at once.
    More,
}

#[derive(Debug, Default)]
pub struct Budget {
    pub requests: usize,
    pub bytes: usize,
}

pub struct Link {
    pub id: usize,
    socket: Arc<OwnedFd>,
    pub backend: Arc<Backend>,
    pub gate: Arc<LinkGate>,
    pub rules: Rules,
    pub allocation: Option<u32>,
    pub export: usize,
    target: Target,
    /// The client can't send far ahead, see [`tune`].
    pub narrow: bool,
    /// So many reads belong to a run that wasn't all cached.
    pub singly: usize,
    /// The last WRITE was one that comes in several receives.
    pub long_writes: bool,
    /// This link's turn to write into the file, or that it didn't get one; ends with the link's own turn.
    pub writing: Option<Option<WriteTurn>>,
    limits: LinkLimits,
    pub rx: Rx,
    pub tx: Tx,
    pub state: State,
    need: Option<Need>,
    pub closed: Option<End>,
    /// Requests in the core's list.
    pub pending: usize,
    /// Flights and jobs on job threads.
    pub jobs: usize,
    /// Bytes of requests under way.
    pub cost: usize,
    /// Bytes of receive blocks that only writes under way hold.
    pub left: usize,
    /// Whether this link may write; asked at the first modifying request.
    writer: Option<bool>,
    /// In the worker's list of links to turn, or to settle.
    pub ready: bool,
    pub touched: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("closed", &self.closed)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// On failure the transmission comes back: its gate must be ended.
    pub fn new<R: Ring>(
        id: usize,
        transmission: Transmission,
        core: &mut Core<R>,
    ) -> Result<Link, Box<Transmission>> {
        let fd = raw(&transmission.socket);
        let narrow = !tune(&transmission.socket);
        let target = match core.ring.add(fd, id as u32) {
            Ok(target) => target,
            Err(error) => {
                debug!("a link couldn't be added to its worker: {error}");
                return Err(Box::new(transmission));
            }
        };
        let traits = *transmission.export.traits();
        let export = core.join_export(&transmission.export);
        Ok(Link {
            id,
            rules: Rules {
                mode: transmission.mode,
                size: traits.size,
                min_block: traits.min_block,
                max_payload: traits.max_payload,
                read_only: transmission.read_only || traits.read_only,
                flags: transmission.flags,
                block_status: transmission.allocation.is_some(),
            },
            allocation: transmission.allocation,
            limits: transmission.limits,
            socket: transmission.socket,
            backend: transmission.export,
            gate: transmission.gate,
            export,
            target,
            narrow,
            singly: 0,
            long_writes: false,
            writing: None,
            rx: Rx::default(),
            tx: Tx::default(),
            state: State::Requests,
            need: None,
            closed: None,
            pending: 0,
            jobs: 0,
            cost: 0,
            left: 0,
            writer: None,
            ready: false,
            touched: false,
        })
    }

    /// Memory that this link's requests hold: read and not sent, received and not written.
    fn used(&self) -> usize {
        self.tx.bytes + self.cost + self.left
    }

    fn limit<R: Ring>(&self, core: &Core<R>) -> usize {
        let share = self.limits.of_all / core.all_links().max(1);
        self.limits.in_flight.min(share).max(LEAST)
    }

    /// One request always has room, of whatever length.
    pub fn has_room_for<R: Ring>(&self, core: &Core<R>, bytes: usize) -> bool {
        self.used() == 0 || self.used() + bytes <= self.limit(core)
    }

    fn is_full<R: Ring>(&self, core: &Core<R>) -> bool {
        let full = self.used() >= self.limit(core) || self.tx.is_long();
        // A reply that can't leave in parts frees nothing before it is whole, nor does one that failed before its end.
        let full = full
            && match &self.state {
                State::Big(big) => !big.whole && core.requests[big.request].error.is_none(),
                _ => true,
            };
        full || self.pending >= PENDING || self.jobs >= JOBS
    }

    pub fn may_write(&mut self) -> bool {
        *self.writer.get_or_insert_with(|| self.gate.claim_write())
    }

    pub fn close(&mut self, why: End) {
        self.closed.get_or_insert(why);
    }

    pub fn protocol_error(&mut self, what: &str) {
        debug!("a client broke the protocol, its link ends: {what}");
        self.close(End::Lost);
    }

    /// The worker can't get memory: this link ends, others may live on.
    pub fn out_of_memory(&mut self, error: &std::io::Error) {
        tracing::warn!("no memory for a link's buffers, the link ends: {error}");
        self.close(End::Lost);
    }

    /// Serves what was received, as far as limits and the others' patience allow.
    pub fn turn<R: Ring>(&mut self, core: &mut Core<R>) -> Turn {
        let turn = self.serve(core);
        self.writing = None;
        turn
    }

    fn serve<R: Ring>(&mut self, core: &mut Core<R>) -> Turn {
        let mut budget = Budget::default();
        self.need = None;
        while !self.rx.out && self.closed.is_none() {
            if self.gate.is_cut() {
                self.close(End::Cut);
                return Turn::Idle;
            }
            if self.is_full(core) {
                return Turn::Idle;
            }
            if budget.requests >= TURN_REQUESTS || budget.bytes >= TURN_BYTES {
                return Turn::More;
            }
            match self.step(core, &mut budget) {
                Step::Done => {}
                Step::Wait => return Turn::Idle,
                Step::Receive(need) => {
                    self.need = Some(need);
                    return Turn::Idle;
                }
            }
        }
        Turn::Idle
    }

    fn step<R: Ring>(&mut self, core: &mut Core<R>, budget: &mut Budget) -> Step {
        match self.state {
            State::Requests => self.next_request(core, budget),
            State::Stream(_) => self.stream(core, budget),
            State::Drain(_) => self.drain(core),
            State::Big(_) => self.big(core, budget),
        }
    }

    /// Starts the send and the receive that are due. True: the link is at its end, nothing of it is under way.
    pub fn settle<R: Ring>(&mut self, core: &mut Core<R>) -> bool {
        if self.closed == Some(End::Cut) {
            self.tx.dead = true;
        }
        let receive = match self.closed {
            None => self.next_receive(core),
            Some(_) => None,
        };
        // Also where there was no memory for the receive just now.
        if self.closed.is_some() {
            self.abandon(core);
        }
        if self.tx.dead && !self.tx.is_sending() {
            self.tx.discard(&mut core.pool);
        }
        if !self.tx.is_sending() && !self.tx.is_empty() {
            self.send(core, receive.is_some());
        }
        if let Some(op) = receive {
            self.rx.out = true;
            core.ring.push(&core.pool, token(Kind::Recv, self.id), op);
        }
        self.closed.is_some()
            && !self.rx.out
            && self.pending == 0
            && !self.tx.is_sending()
            && self.tx.is_empty()
    }

    /// Starts the send alone, before [`Link::settle`] does the rest.
    pub fn send_now<R: Ring>(&mut self, core: &mut Core<R>) {
        let may = self.closed.is_none() && !self.tx.dead;
        if may && !self.tx.is_sending() && !self.tx.is_empty() {
            self.send(core, false);
        }
    }

    fn send<R: Ring>(&mut self, core: &mut Core<R>, receive_follows: bool) {
        let nothing = Span::new(PLACEHOLDER, 0, 0);
        let mut spans = [nothing; SPANS];
        let count = self.tx.begin(&mut core.pool, &mut spans);
        // Joined, it isn't known to be complete before the client's next word, so nothing else may be on its way out.
        let alone = self.pending == 0 && self.tx.bytes <= JOINED && self.tx.sends_all();
        let then = receive_follows && alone && core.ring.joins();
        self.tx.joined = then;
        let op = Op::Send {
            to: self.target,
            spans: &spans[..count],
            then,
        };
        core.ring.push(&core.pool, token(Kind::Send, self.id), op);
    }

    fn next_receive<R: Ring>(&mut self, core: &mut Core<R>) -> Option<Op<'static>> {
        let need = self.need.take()?;
        let (mut span, left) = match self.rx.make_room(&mut core.pool, need.least) {
            Ok(room) => room,
            Err(error) => {
                self.out_of_memory(&error);
                return None;
            }
        };
        self.left += left;
        if self.long_writes && !self.narrow {
            span.len = span.len.min(AT_ONCE);
        }
        // The rest of a large payload comes in one piece; else whatever is there, with the requests behind it.
        let all = need.payload >= IN_ONE;
        if all {
            span.len = span.len.min(need.payload as u32);
        }
        self.rx.asked = span.len as usize;
        Some(Op::Recv {
            to: self.target,
            span,
            all,
            wait: !self.rx.more,
        })
    }

    pub fn received<R: Ring>(&mut self, core: &mut Core<R>, completion: Completion) {
        if completion.result == -(Errno::ECANCELED as i32) {
            // The send that it was one with has failed, or was short, and tells so itself.
            self.rx.received(0, false);
            return;
        }
        if self.tx.joined {
            self.tx.sent_all(&mut core.pool);
        }
        let got = usize::try_from(completion.result);
        self.rx.received(got.unwrap_or(0), completion.more);
        match completion.result {
            1.. => {}
            0 => self.close(End::Lost),
            errno => {
                debug!("a link's socket failed at a receive (errno {})", -errno);
                self.close(End::Lost);
            }
        }
    }

    pub fn sent<R: Ring>(&mut self, core: &mut Core<R>, completion: Completion) {
        if self.tx.joined {
            // The kernel tells of a joined send only if it failed or was short. The receive behind it is then dropped,
            // and of that it doesn't tell (IOSQE_CQE_SKIP_SUCCESS silences the rest of a broken chain).
            self.rx.received(0, false);
        }
        let sent = usize::try_from(completion.result).unwrap_or(0);
        self.tx.sent(&mut core.pool, sent);
        if completion.result < 0 {
            // Nobody will get the replies. What runs is finished, what was received isn't begun.
            self.tx.dead = true;
            self.close(End::Lost);
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Success without data.
    pub fn reply_done<R: Ring>(&mut self, core: &mut Core<R>, to: To) {
        self.reply_short(core, |out| reply::done(out, to));
    }

    pub fn reply_error<R: Ring>(&mut self, core: &mut Core<R>, to: To, refusal: Refusal) {
        self.reply_short(core, |out| reply::error(out, to, refusal));
    }

    fn reply_short<R: Ring>(&mut self, core: &mut Core<R>, fill: impl FnOnce(&mut [u8]) -> usize) {
        if self.tx.dead {
            return;
        }
        match self.tx.room(&mut core.pool, SHORT_REPLY) {
            Ok(room) => {
                let len = fill(core.pool.bytes_mut(room));
                self.tx.commit(len);
            }
            Err(error) => self.out_of_memory(&error),
        }
    }

    /// After [`Link::settle`] said so: gives everything back, then tells the gate.
    pub fn end<R: Ring>(mut self, core: &mut Core<R>) {
        self.rx.clear(&mut core.pool);
        self.tx.discard(&mut core.pool);
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        core.ring.remove(self.target);
        core.leave_export(self.export);
        drop(self.socket);
        drop(self.backend);
        self.gate.end(self.closed.unwrap_or(End::Lost));
    }
}

/// Replies leave as they are gathered. False: it is a Unix socket. Their buffers don't grow by themselves as TCP's do: ours
/// gets one that a long reply fits, the client's lets it send but little ahead of what is received.
fn tune(socket: &OwnedFd) -> bool {
    if setsockopt(socket, sockopt::TcpNoDelay, &true).is_ok() {
        return true;
    }
    // Beyond the system's limit with privilege, else up to it.
    let _ = setsockopt(socket, sockopt::SndBufForce, &UNIX_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &UNIX_BUFFER));
    false
}

/// Fills an array of spans; never used.
const PLACEHOLDER: BlockId = BlockId::first(Size::Small);
