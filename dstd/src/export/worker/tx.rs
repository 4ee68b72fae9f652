//! What a link has yet to send: replies gathered in blocks, in order.
//!
//! Owns the output blocks of one link: one send is under way while the next fills. Used by its link only.
//! Never splits a reply: a span is appended whole or not at all.

use std::collections::VecDeque;
use std::io;

use super::pool::{LARGE_DATA, Pool, Size, Span};
use super::ring::SPANS;

/// Data that was read and that the socket doesn't take yet. To read more of it ahead gains nothing and costs memory, and
/// it leaves the processor's cache before it is sent.
const UNSENT: usize = 2 * LARGE_DATA;
/// The same for short replies, which hold a block each.
const UNSENT_SPANS: usize = 4 * SPANS;

#[derive(Debug, Default)]
pub struct Tx {
    queue: VecDeque<Span>,
    /// How many spans at the front the send under way carries; 0: none is.
    sending: usize,
    /// The last span's block has room that nobody else uses.
    open: bool,
    /// Bytes in the queue.
    pub bytes: usize,
    /// The send under way is one with the receive: that one's completion tells of both.
    pub joined: bool,
    /// The socket takes nothing any more.
    pub dead: bool,
}

impl Tx {
    /// Room for `len` bytes behind what is queued; becomes part of the queue with [`Tx::commit`].
    pub fn room(&mut self, pool: &mut Pool, len: usize) -> io::Result<Span> {
        if self.open
            && let Some(last) = self.queue.back()
        {
            let end = (last.start + last.len) as usize;
            if end + len <= last.block.capacity() {
                return Ok(Span::new(last.block, end, len));
            }
        }
        self.seal(pool);
        let block = pool.take(Size::Large)?;
        self.queue.push_back(Span::new(block, 0, 0));
        self.open = true;
        Ok(Span::new(block, 0, len))
    }

    /// The first `len` bytes of the room that was given last.
    pub fn commit(&mut self, len: usize) {
        if let Some(last) = self.queue.back_mut() {
            last.len += len as u32;
            self.bytes += len;
        }
    }

    /// A span of a block that only this queue holds now.
    pub fn push(&mut self, pool: &mut Pool, span: Span) {
        self.seal(pool);
        self.bytes += span.len as usize;
        self.queue.push_back(span);
    }

    /// Nothing more goes into the last block.
    fn seal(&mut self, pool: &mut Pool) {
        let unused =
            std::mem::take(&mut self.open) && self.queue.back().is_some_and(|last| last.len == 0);
        if unused && let Some(last) = self.queue.pop_back() {
            pool.release(last.block);
        }
    }

    pub fn is_sending(&self) -> bool {
        self.sending > 0
    }

    /// The send that was begun last carries the whole queue.
    pub fn sends_all(&self) -> bool {
        self.sending == self.queue.len()
    }

    /// Nothing should be read for this link before some of it is sent.
    pub fn is_long(&self) -> bool {
        self.bytes >= UNSENT || self.queue.len() >= UNSENT_SPANS
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The spans of the next send, which is under way from now on.
    pub fn begin(&mut self, pool: &mut Pool, spans: &mut [Span; SPANS]) -> usize {
        self.seal(pool);
        self.sending = self.queue.len().min(SPANS);
        for (to, from) in spans.iter_mut().zip(&self.queue) {
            *to = *from;
        }
        self.sending
    }

    /// The send under way ended as a whole.
    pub fn sent_all(&mut self, pool: &mut Pool) {
        let len = |span: &Span| span.len as usize;
        let bytes = self.queue.iter().take(self.sending).map(len).sum();
        self.sent(pool, bytes);
    }

    /// The send under way ended after `sent` bytes; the rest stays at the front.
    pub fn sent(&mut self, pool: &mut Pool, mut sent: usize) {
        (self.sending, self.joined) = (0, false);
        self.bytes = self.bytes.saturating_sub(sent);
        while let Some(first) = self.queue.front_mut() {
            if (first.len as usize) > sent {
                *first = first.skip(sent as u32);
                return;
            }
            sent -= first.len as usize;
            pool.release(first.block);
            self.queue.pop_front();
            if self.queue.is_empty() {
                self.open = false;
            }
        }
    }

    /// Drops everything; no send is under way.
    pub fn discard(&mut self, pool: &mut Pool) {
        for span in self.queue.drain(..) {
            pool.release(span.block);
        }
        (self.bytes, self.open) = (0, false);
    }
}
