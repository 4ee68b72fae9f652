//! Ends requests that were under way: completions come in, replies go out.
//!
//! Owns the way from the last completion of a request, over its flush, to its answer and the memory it held.
//! Called by the worker's loop. Never answers success before all of a request is done.

use std::io;

use super::core::{Answer, Core, Direction, Flight, HEAD_ROOM, Pending};
use super::link::Link;
use super::pool::Span;
use super::reply::{self, refusal_of};
use super::request::{EINVAL, EIO, ENOTSUP, Refusal};
use super::ring::Ring;
use crate::export::backend::Run;

impl Link {
    /// One read or write of the storage ended for good.
    pub fn landed<R: Ring>(&mut self, core: &mut Core<R>, flight: &Flight, result: io::Result<()>) {
        self.jobs -= usize::from(flight.job);
        if flight.direction == Direction::Write && core.pool.release(flight.span.block) {
            // Free only now: the link had already left it.
            self.left -= flight.span.block.capacity();
        }
        let pending = &mut core.requests[flight.request];
        pending.outstanding -= 1;
        let unfinished = pending.open || pending.outstanding > 0;
        match result {
            Err(error) => {
                pending.error.get_or_insert(refusal_of(&error));
            }
            Ok(()) if pending.answer == Answer::Chunks && unfinished => {
                self.send_chunk(core, flight.request, flight.piece, false);
            }
            Ok(()) => {}
        }
        self.settle_request(core, flight.request);
    }

    /// A job that isn't a flight ended.
    pub fn job_done<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        request: usize,
        result: io::Result<Vec<Run>>,
    ) {
        self.jobs -= 1;
        core.requests[request].outstanding -= 1;
        match result {
            Ok(runs) if core.requests[request].answer == Answer::Runs => {
                self.reply_runs(core, request, &runs);
                core.requests[request].answer = Answer::Nothing;
            }
            Ok(_) => {}
            Err(error) => core.requests[request].error = Some(refusal_of(&error)),
        }
        self.settle_request(core, request);
    }

    /// Answers a request if nothing of it is under way any more; with FUA, after a flush.
    pub fn settle_request<R: Ring>(&mut self, core: &mut Core<R>, request: usize) {
        let pending = &mut core.requests[request];
        if pending.open || pending.outstanding > 0 {
            return;
        }
        let nobody = pending.answer == Answer::Nothing;
        if pending.error.is_none() && !nobody && std::mem::take(&mut pending.fua) {
            core.join_sync(self.export, request);
            return;
        }
        self.answer(core, request, Ok(()));
    }

    /// The end of a request; `synced` is what the flush that it waited for ended with.
    pub fn answer<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        request: usize,
        synced: Result<(), Refusal>,
    ) {
        let mut pending = core.requests.remove(request);
        self.pending -= 1;
        self.cost -= pending.cost;
        let error = pending.error.or(synced.err());
        match pending.answer {
            Answer::Nothing => {}
            _ if self.tx.dead => {}
            _ => match error {
                Some(refusal) => {
                    let refusal = honest(refusal, pending.fast);
                    self.reply_error(core, pending.to, refusal);
                }
                None => self.answer_success(core, &mut pending),
            },
        }
        for piece in pending.pieces.iter().filter(|piece| piece.len > 0) {
            core.pool.release(piece.block);
        }
        core.give_back(pending.pieces);
    }

    fn answer_success<R: Ring>(&mut self, core: &mut Core<R>, pending: &mut Pending) {
        match pending.answer {
            Answer::Plain | Answer::Runs | Answer::Nothing => self.reply_done(core, pending.to),
            Answer::Data => self.reply_data(core, pending),
            Answer::Chunks => {
                let unsent = pending.pieces.iter().filter(|piece| piece.len > 0).count();
                let mut left = unsent;
                for index in 0..pending.pieces.len() {
                    if pending.pieces[index].len > 0 {
                        left -= 1;
                        self.emit_chunk(core, pending, index, left == 0);
                    }
                }
            }
        }
    }

    /// All pieces as one reply; their order in the list may differ from that in the export.
    fn reply_data<R: Ring>(&mut self, core: &mut Core<R>, pending: &mut Pending) {
        pending.pieces.sort_unstable_by_key(|piece| piece.at);
        let head = reply::read_head_len(pending.to.mode);
        for (index, piece) in pending.pieces.iter_mut().enumerate() {
            let mut span = Span::new(piece.block, HEAD_ROOM, piece.len);
            if index == 0 {
                span = Span::new(piece.block, HEAD_ROOM - head, head + piece.len);
                let out = &mut core.pool.bytes_mut(span)[..head];
                let len = pending.length as usize;
                reply::read_head(out, pending.to, pending.to.offset, len, true);
            }
            piece.len = 0;
            self.tx.push(&mut core.pool, span);
        }
    }

    /// One piece of a reply in chunks, as soon as it is there.
    pub fn send_chunk<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        request: usize,
        index: usize,
        done: bool,
    ) {
        if self.tx.dead {
            return;
        }
        let mut pieces = std::mem::take(&mut core.requests[request].pieces);
        let len = pieces[index].len;
        let to = core.requests[request].to;
        self.chunk(core, to, &mut pieces[index], done);
        let pending = &mut core.requests[request];
        pending.pieces = pieces;
        pending.cost -= len;
        self.cost -= len;
    }

    fn emit_chunk<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        pending: &mut Pending,
        index: usize,
        done: bool,
    ) {
        let to = pending.to;
        self.chunk(core, to, &mut pending.pieces[index], done);
    }

    fn chunk<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        to: reply::To,
        piece: &mut super::core::Piece,
        done: bool,
    ) {
        let head = reply::read_head_len(to.mode);
        let span = Span::new(piece.block, HEAD_ROOM - head, head + piece.len);
        let out = &mut core.pool.bytes_mut(span)[..head];
        reply::read_head(out, to, piece.at, piece.len, done);
        piece.len = 0;
        self.tx.push(&mut core.pool, span);
    }

    fn reply_runs<R: Ring>(&mut self, core: &mut Core<R>, request: usize, runs: &[Run]) {
        let pending = &core.requests[request];
        let (to, length) = (pending.to, pending.length);
        // No runs would make no progress; "allocated" may always be said.
        let all = [Run {
            length,
            hole: false,
            zero: false,
        }];
        let runs = if runs.is_empty() { &all[..] } else { runs };
        if self.tx.dead {
            return;
        }
        let Some(context) = self.allocation else {
            core.requests[request].error = Some(Refusal::new(EIO, "no context was chosen"));
            return;
        };
        match self
            .tx
            .room(&mut core.pool, reply::block_status_len(to.mode, runs.len()))
        {
            Ok(room) => {
                let len = reply::block_status(core.pool.bytes_mut(room), to, context, runs);
                self.tx.commit(len);
            }
            Err(error) => self.out_of_memory(&error),
        }
    }
}

/// ENOTSUP is an answer only to a request that allowed it.
fn honest(refusal: Refusal, fast: bool) -> Refusal {
    if refusal.errno == ENOTSUP && !fast {
        return Refusal::new(EINVAL, refusal.text);
    }
    refusal
}
