//! Requests that don't fit one block: long writes, long reads, payloads that nobody wants.
//!
//! Owns the progress of the one such request that a link can be in the middle of. Called in a link's turn.
//! Never holds more of a payload than a few blocks.

use super::core::{Answer, Core, HEAD_ROOM, Piece};
use super::link::{Budget, Link, Need, State, Step};
use super::pool::{LARGE_DATA, Size, Span};
use super::reply::{To, refusal_of};
use super::request::Refusal;
use super::ring::Ring;

/// Parts of a long write end at a multiple of this in the export, so that no page is written in two halves.
const PAGE: u64 = 4096;

/// A part shorter than this is moved to a block with more room rather than written; several pages, so that some
/// of it is left when its end is aligned.
const LEAST_PART: usize = 32 << 10;

/// A part of at least this is worth another thread where the client has to wait for this one.
const APART: usize = 192 << 10;

/// A WRITE whose payload is written as it comes.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    pub request: usize,
    pub at: u64,
    /// Bytes that aren't written yet.
    pub left: usize,
}

/// A refused request's payload.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    pub left: u64,
    pub to: To,
    pub refusal: Refusal,
}

/// A READ that takes several blocks.
#[derive(Debug, Clone, Copy)]
pub struct Big {
    pub request: usize,
    pub at: u64,
    pub end: u64,
    /// Its reply leaves in one piece.
    pub whole: bool,
}

impl Link {
    pub fn drain<R: Ring>(&mut self, core: &mut Core<R>) -> Step {
        let State::Drain(mut drain) = self.state else {
            return Step::Done;
        };
        let here = drain.left.min(self.rx.len() as u64);
        self.rx.consume(here as usize);
        drain.left -= here;
        if drain.left > 0 {
            self.state = State::Drain(drain);
            // All of the tail is used for it, so the number is only a lower bound.
            return Step::Receive(Need {
                least: 1,
                payload: drain.left.min(Size::Large.bytes() as u64) as usize,
            });
        }
        self.state = State::Requests;
        self.reply_error(core, drain.to, drain.refusal);
        Step::Done
    }

    pub fn stream<R: Ring>(&mut self, core: &mut Core<R>, budget: &mut Budget) -> Step {
        let State::Stream(mut stream) = self.state else {
            return Step::Done;
        };
        let here = stream.left.min(self.rx.len());
        let last = here == stream.left;
        let payload = stream.left - here;
        let room = self.rx.tail() >= payload.min(LEAST_PART);
        if !last && here < LARGE_DATA && (room || here < LEAST_PART) {
            let least = if room {
                payload.min(LEAST_PART)
            } else {
                payload.min(LARGE_DATA - here)
            };
            return Step::Receive(Need { least, payload });
        }
        let end = stream.at + here as u64;
        let part = if last {
            here
        } else {
            here.saturating_sub((end % PAGE) as usize)
        };
        self.write_part(core, stream, part);
        self.rx.consume(part);
        budget.bytes += part;
        stream.at += part as u64;
        stream.left -= part;
        if stream.left > 0 {
            self.state = State::Stream(stream);
            return Step::Done;
        }
        self.state = State::Requests;
        core.requests[stream.request].open = false;
        self.settle_request(core, stream.request);
        Step::Done
    }

    fn write_part<R: Ring>(&mut self, core: &mut Core<R>, stream: Stream, part: usize) {
        let Some(span) = self.rx.front(part).filter(|span| span.len > 0) else {
            return;
        };
        // After an error the rest is only read and dropped.
        if core.requests[stream.request].error.is_some() {
            return;
        }
        // While this thread copied it, nothing would be received, and a client that can't send ahead would wait.
        let apart = self.narrow && part >= APART;
        if apart {
            return self.write_span(core, stream.request, span, stream.at, true);
        }
        match self.write_now(core, span, stream.at) {
            Ok(Some(())) => {}
            Ok(None) => self.write_span(core, stream.request, span, stream.at, false),
            Err(error) => core.requests[stream.request].error = Some(refusal_of(&error)),
        }
    }

    pub fn begin_big<R: Ring>(&mut self, core: &mut Core<R>, to: To, length: u64, chunks: bool) {
        let answer = if chunks { Answer::Chunks } else { Answer::Data };
        let request = self.pending(core, to, answer);
        let pieces = core.spare_pieces();
        let pending = &mut core.requests[request];
        (pending.open, pending.length, pending.pieces) = (true, length, pieces);
        self.state = State::Big(Big {
            request,
            at: to.offset,
            end: to.offset + length,
            whole: !chunks,
        });
    }

    pub fn big<R: Ring>(&mut self, core: &mut Core<R>, budget: &mut Budget) -> Step {
        let State::Big(mut big) = self.state else {
            return Step::Done;
        };
        let len = (big.end - big.at).min(LARGE_DATA as u64) as usize;
        match core.pool.take(Size::Large) {
            Ok(block) => {
                let at = big.at;
                self.big_piece(core, big.request, Piece { block, len, at });
            }
            Err(error) => core.requests[big.request].error = Some(refusal_of(&error)),
        }
        budget.bytes += len;
        big.at += len as u64;
        if big.at < big.end && core.requests[big.request].error.is_none() {
            self.state = State::Big(big);
            return Step::Done;
        }
        self.state = State::Requests;
        core.requests[big.request].open = false;
        self.settle_request(core, big.request);
        Step::Done
    }

    fn big_piece<R: Ring>(&mut self, core: &mut Core<R>, request: usize, piece: Piece) {
        self.charge(core, request, piece.len);
        let span = Span::new(piece.block, HEAD_ROOM, piece.len);
        match self.backend.try_read(core.pool.bytes_mut(span), piece.at) {
            Ok(None) => return self.read_piece(core, request, piece),
            Ok(Some(())) => {}
            Err(error) => core.requests[request].error = Some(refusal_of(&error)),
        }
        let pending = &mut core.requests[request];
        pending.pieces.push(piece);
        // What a failed read left in the block is nobody's business.
        if pending.answer == Answer::Chunks && pending.error.is_none() {
            let index = pending.pieces.len() - 1;
            let end = pending.to.offset + pending.length;
            // The last one waits for `settle_request`, which knows whether it ends the reply.
            if piece.at + piece.len as u64 != end {
                self.send_chunk(core, request, index, false);
            }
        }
    }

    /// The link ended in the middle of a request: what runs of it is waited for, nobody is told.
    pub fn abandon<R: Ring>(&mut self, core: &mut Core<R>) {
        let request = match std::mem::replace(&mut self.state, State::Requests) {
            State::Stream(stream) => stream.request,
            State::Big(big) => big.request,
            State::Requests | State::Drain(_) => return,
        };
        let pending = &mut core.requests[request];
        (pending.open, pending.answer) = (false, Answer::Nothing);
        self.settle_request(core, request);
    }
}
