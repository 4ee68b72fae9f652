//! Starts the requests of a link: at once from the page cache where that works, else on ring or job threads.
//!
//! Owns the way of each command from its header to its first operation. Called in a link's turn.
//! Never waits: what may block becomes a request under way, answered by `finish`.

use std::io;

use super::core::{Answer, Core, Direction, Flight, HEAD_ROOM, Pending, Piece};
use super::jobs::Work;
use super::large::{Drain, Stream};
use super::link::{Budget, Link, Need, OVERHEAD, State, Step};
use super::pool::{LARGE_DATA, Size, Span};
use super::reply::{self, To, refusal_of};
use super::request::{Command, EPERM, Header, Refusal, Request, Verdict, header_len};
use super::ring::Ring;
use crate::export::backend::SlowOp;
use crate::export::link::{End, ReplyMode};

/// A payload that lacks at most this much is waited for in its block; of a larger one the parts are written as
/// they come.
const WAIT_FOR: usize = 64 << 10;
/// Runs in one block status reply; in extended mode they fill a quarter of a block.
const RUNS: usize = 4096;

impl Link {
    pub fn to(&self, header: &Header) -> To {
        To {
            mode: self.rules.mode,
            cookie: header.cookie,
            offset: header.offset,
        }
    }

    pub fn next_request<R: Ring>(&mut self, core: &mut Core<R>, budget: &mut Budget) -> Step {
        let head = header_len(self.rules.mode);
        let Some(span) = self.rx.front(head) else {
            let least = head - self.rx.len();
            let part = self.rx.front(self.rx.len());
            if part.is_some_and(|part| !Header::may_begin(core.pool.bytes(part), self.rules.mode)) {
                self.protocol_error("a request doesn't begin with the magic number");
                return Step::Done;
            }
            return Step::Receive(Need { least, payload: 0 });
        };
        let Some(header) = Header::decode(core.pool.bytes(span), self.rules.mode) else {
            self.protocol_error("a request doesn't begin with the magic number");
            return Step::Done;
        };
        budget.requests += 1;
        match self.rules.judge(&header) {
            Verdict::Disconnect => self.close(End::Disconnected),
            Verdict::Fatal(what) => self.protocol_error(what),
            Verdict::Refuse { refusal, payload } => self.refuse(&header, refusal, payload),
            Verdict::Serve(request) => {
                let step = self.begin(core, budget, &header, request);
                // One that lacks bytes or room comes by here again.
                core.served += usize::from(step == Step::Done);
                return step;
            }
        }
        Step::Done
    }

    /// The answer goes out after the payload was read and dropped.
    fn refuse(&mut self, header: &Header, refusal: Refusal, payload: u64) {
        self.rx.consume(header_len(self.rules.mode));
        let to = self.to(header);
        self.state = State::Drain(Drain {
            left: payload,
            to,
            refusal,
        });
    }

    fn begin<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        budget: &mut Budget,
        header: &Header,
        request: Request,
    ) -> Step {
        if request.command.modifies() && !self.may_write() {
            let refusal = Refusal::new(EPERM, "another client is the writer of this export");
            self.refuse(header, refusal, header.payload(self.rules.mode));
            return Step::Done;
        }
        if request.fua || request.command == Command::Flush {
            // A flush that failed once has failed for good, so nothing more can be promised.
            if let Err(error) = self.backend.flush_state() {
                self.refuse(header, refusal_of(&error), header.payload(self.rules.mode));
                return Step::Done;
            }
        }
        let to = self.to(header);
        match request.command {
            Command::Read { whole } => return self.read(core, budget, to, request, whole),
            Command::Write => return self.write(core, budget, to, request),
            Command::Flush => self.flush(core, to),
            Command::Trim | Command::Zero { .. } | Command::Cache => self.slow(core, to, request),
            Command::Status { one } => self.status(core, to, request, one),
        }
        self.rx.consume(header_len(self.rules.mode));
        Step::Done
    }

    /// A new request under way.
    pub fn pending<R: Ring>(&mut self, core: &mut Core<R>, to: To, answer: Answer) -> usize {
        self.pending += 1;
        self.cost += OVERHEAD;
        core.requests.insert(Pending {
            link: self.id,
            to,
            answer,
            length: 0,
            fua: false,
            fast: false,
            open: false,
            outstanding: 0,
            error: None,
            cost: OVERHEAD,
            pieces: Vec::new(),
        })
    }

    fn read<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        budget: &mut Budget,
        to: To,
        request: Request,
        whole: bool,
    ) -> Step {
        // The rules bound it by max_payload.
        let len = request.length as usize;
        let chunks = to.mode != ReplyMode::Simple && !whole;
        if !self.has_room_for(core, if chunks { len.min(LARGE_DATA) } else { len }) {
            return Step::Wait;
        }
        if self.read_run(core, budget, to, len) {
            return Step::Done;
        }
        self.rx.consume(header_len(self.rules.mode));
        if len > LARGE_DATA {
            self.begin_big(core, to, request.length, chunks);
            return Step::Done;
        }
        budget.bytes += len;
        match self.read_cached(core, to, len) {
            Ok(true) => {}
            Ok(false) => self.read_later(core, to, len),
            Err(error) => self.reply_error(core, to, refusal_of(&error)),
        }
        Step::Done
    }

    /// Straight into the output, behind its header. False: it might take time.
    fn read_cached<R: Ring>(&mut self, core: &mut Core<R>, to: To, len: usize) -> io::Result<bool> {
        let head = reply::read_head_len(to.mode);
        let room = self.tx.room(&mut core.pool, head + len)?;
        let data = core.pool.bytes_mut(room.skip(head as u32));
        if self.backend.try_read(data, to.offset)?.is_none() {
            return Ok(false);
        }
        let out = &mut core.pool.bytes_mut(room)[..head];
        reply::read_head(out, to, to.offset, len, true);
        self.tx.commit(head + len);
        Ok(true)
    }

    fn read_later<R: Ring>(&mut self, core: &mut Core<R>, to: To, len: usize) {
        let block = match core.pool.take(Size::for_bytes(HEAD_ROOM + len)) {
            Ok(block) => block,
            Err(error) => return self.reply_error(core, to, refusal_of(&error)),
        };
        let request = self.pending(core, to, Answer::Data);
        self.charge(core, request, len);
        core.requests[request].length = len as u64;
        let piece = Piece {
            block,
            len,
            at: to.offset,
        };
        self.read_piece(core, request, piece);
    }

    pub fn charge<R: Ring>(&mut self, core: &mut Core<R>, request: usize, bytes: usize) {
        core.requests[request].cost += bytes;
        self.cost += bytes;
    }

    pub fn read_piece<R: Ring>(&mut self, core: &mut Core<R>, request: usize, piece: Piece) {
        if core.requests[request].pieces.capacity() == 0 {
            core.requests[request].pieces = core.spare_pieces();
        }
        let pending = &mut core.requests[request];
        pending.pieces.push(piece);
        pending.outstanding += 1;
        let flight = Flight {
            request,
            link: self.id,
            export: self.export,
            direction: Direction::Read,
            span: Span::new(piece.block, HEAD_ROOM, piece.len),
            offset: piece.at,
            piece: pending.pieces.len() - 1,
            job: false,
        };
        self.jobs += usize::from(core.launch(flight, false));
    }

    fn write<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        budget: &mut Budget,
        to: To,
        request: Request,
    ) -> Step {
        let head = header_len(self.rules.mode);
        let len = request.length as usize;
        self.long_writes = len > WAIT_FOR;
        let Some(all) = self.rx.front(head + len) else {
            let lacking = head + len - self.rx.len();
            if len <= WAIT_FOR {
                let payload = lacking;
                return Step::Receive(Need {
                    least: lacking,
                    payload,
                });
            }
            self.rx.consume(head);
            self.begin_stream(core, to, request);
            return Step::Done;
        };
        budget.bytes += len;
        let payload = all.skip(head as u32);
        let written = self.write_now(core, payload, to.offset);
        self.rx.consume(head + len);
        match written {
            Ok(Some(())) if request.fua => {
                let waiting = self.pending(core, to, Answer::Plain);
                core.join_sync(self.export, waiting);
            }
            Ok(Some(())) => self.reply_done(core, to),
            Ok(None) => {
                let pending = self.pending(core, to, Answer::Plain);
                core.requests[pending].fua = request.fua;
                self.write_span(core, pending, payload, to.offset, false);
            }
            Err(error) => self.reply_error(core, to, refusal_of(&error)),
        }
        Step::Done
    }

    /// `Ok(None)`: it might have to wait.
    pub fn write_now<R: Ring>(
        &mut self,
        core: &Core<R>,
        span: Span,
        offset: u64,
    ) -> io::Result<Option<()>> {
        // Asked once in a link's turn: to wait in vain again for each request would hold up all other links.
        match self.writing.get_or_insert_with(|| self.backend.turn()) {
            Some(_) => self.backend.try_write(core.pool.bytes(span), offset),
            None => Ok(None),
        }
    }

    /// Writes straight from the receive block, which is held until that is done; `apart`: on another thread.
    pub fn write_span<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        request: usize,
        span: Span,
        offset: u64,
        apart: bool,
    ) {
        core.pool.hold(span.block);
        core.requests[request].outstanding += 1;
        let flight = Flight {
            request,
            link: self.id,
            export: self.export,
            direction: Direction::Write,
            span,
            offset,
            piece: 0,
            job: false,
        };
        self.jobs += usize::from(core.launch(flight, apart));
    }

    fn begin_stream<R: Ring>(&mut self, core: &mut Core<R>, to: To, request: Request) {
        let pending = self.pending(core, to, Answer::Plain);
        core.requests[pending].fua = request.fua;
        core.requests[pending].open = true;
        self.state = State::Stream(Stream {
            request: pending,
            at: request.offset,
            left: request.length as usize,
        });
    }

    fn flush<R: Ring>(&mut self, core: &mut Core<R>, to: To) {
        if self.backend.traits().read_only {
            // Nothing was written here, and what another server's flush says isn't for these clients.
            return self.reply_done(core, to);
        }
        let pending = self.pending(core, to, Answer::Plain);
        core.join_sync(self.export, pending);
    }

    fn slow<R: Ring>(&mut self, core: &mut Core<R>, to: To, request: Request) {
        let Request { offset, length, .. } = request;
        let op = match request.command {
            Command::Trim => SlowOp::Trim { offset, length },
            Command::Zero { keep, fast } => SlowOp::Zero {
                offset,
                length,
                keep,
                fast,
            },
            _ => SlowOp::Cache { offset, length },
        };
        let pending = self.pending(core, to, Answer::Plain);
        core.requests[pending].fua = request.fua;
        core.requests[pending].fast = matches!(op, SlowOp::Zero { fast: true, .. });
        self.job(core, pending, Work::Slow(op));
    }

    fn status<R: Ring>(&mut self, core: &mut Core<R>, to: To, request: Request, one: bool) {
        let pending = self.pending(core, to, Answer::Runs);
        core.requests[pending].length = request.length;
        let work = Work::Status {
            offset: request.offset,
            length: request.length,
            max: if one { 1 } else { RUNS },
        };
        self.job(core, pending, work);
    }

    fn job<R: Ring>(&mut self, core: &mut Core<R>, request: usize, work: Work) {
        core.requests[request].outstanding = 1;
        self.jobs += 1;
        core.job(self.export, request, work);
    }
}
