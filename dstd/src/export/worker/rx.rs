//! What a link has received and not yet used: one block, filled from the left.
//!
//! Owns the receive block of one link and decides where the next receive goes. Used by its link only.
//! Never moves bytes while a receive is under way; a block that writes still hold is left to them.

use std::io;

use super::pool::{BlockId, Pool, Size, Span};

/// After so many receives that a small block would have held, a small one is taken again.
const CALM: u8 = 16;

#[derive(Debug, Default)]
pub struct Rx {
    block: Option<BlockId>,
    start: usize,
    end: usize,
    /// A receive is under way.
    pub out: bool,
    /// The socket said that more is there.
    pub more: bool,
    /// How much the receive under way was given.
    pub asked: usize,
    /// The last receive filled all it was given.
    full: bool,
    calm: u8,
}

impl Rx {
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Free bytes behind what was received.
    pub fn tail(&self) -> usize {
        self.block.map_or(0, |block| block.capacity() - self.end)
    }

    /// The first `len` bytes, as a span of the block that this still holds.
    pub fn front(&self, len: usize) -> Option<Span> {
        let block = self.block?;
        (len <= self.len()).then(|| Span::new(block, self.start, len))
    }

    pub fn consume(&mut self, len: usize) {
        self.start += len.min(self.len());
    }

    pub fn received(&mut self, len: usize, more: bool) {
        self.end += len;
        self.out = false;
        self.more = more;
        self.full = len == self.asked;
        self.calm = if len <= Size::Small.bytes() / 2 {
            self.calm.saturating_add(1)
        } else {
            0
        };
    }

    /// Where the next receive goes: all of the tail, which is at least `least` bytes. Returns too how many bytes
    /// of memory the link left behind in a block that writes still hold.
    pub fn make_room(&mut self, pool: &mut Pool, least: usize) -> io::Result<(Span, usize)> {
        let wanted = self.wanted(self.len() + least);
        let Some(old) = self.block else {
            let block = pool.take(wanted)?;
            self.block = Some(block);
            return Ok((Span::new(block, 0, block.capacity()), 0));
        };
        if self.len() == 0 && old.size() == wanted && pool.held_once(old) {
            (self.start, self.end) = (0, 0);
        }
        let grows = wanted as usize > old.size() as usize;
        let shrinks = self.len() == 0 && (wanted as usize) < old.size() as usize;
        // A short tail would make many small receives; moving the little that is there costs less.
        let short = self.tail() < least.max(old.capacity() / 4);
        let mut left = 0;
        if grows || shrinks || (short && (self.start > 0 || self.tail() < least)) {
            left = self.relocate(pool, old, wanted, least)?;
        }
        let block = self.block.unwrap_or(old);
        Ok((Span::new(block, self.end, self.tail()), left))
    }

    fn relocate(
        &mut self,
        pool: &mut Pool,
        old: BlockId,
        wanted: Size,
        least: usize,
    ) -> io::Result<usize> {
        let len = self.len();
        let from = Span::new(old, self.start, len);
        let fits = len + least <= old.capacity() && wanted as usize <= old.size() as usize;
        if fits && len > 0 && pool.held_once(old) {
            pool.copy(from, old, 0);
            (self.start, self.end) = (0, len);
            return Ok(0);
        }
        let block = pool.take(wanted)?;
        pool.copy(from, block, 0);
        self.block = Some(block);
        (self.start, self.end) = (0, len);
        Ok(if pool.release(old) { 0 } else { old.capacity() })
    }

    /// Small for a link that is idle or only reads, large as soon as more comes at a time.
    fn wanted(&self, bytes: usize) -> Size {
        let size = Size::for_bytes(bytes);
        let large_now = self.block.is_some_and(|block| block.size() == Size::Large);
        if size != Size::Small || self.full || (large_now && self.calm < CALM) {
            return Size::Large;
        }
        Size::Small
    }

    /// Lets the block go; no receive is under way.
    pub fn clear(&mut self, pool: &mut Pool) -> usize {
        (self.start, self.end) = (0, 0);
        match self.block.take() {
            Some(block) if !pool.release(block) => block.capacity(),
            _ => 0,
        }
    }
}
