//! The memory that requests and replies travel in: page-aligned blocks of three sizes, known by number.
//!
//! Owns the mappings, the free lists and how often each block is held. One pool a worker; links take blocks,
//! operations under way hold them until their completion. Never frees a mapping that an operation may still use.
#![allow(unsafe_code)] // The kernel and the job threads use the blocks by address.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Small: an idle link, a 4 KiB read from disk. Large: a receive under load, a piece of a large read.
/// Each has room for headers beside its round number of data bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Small,
    Medium,
    Large,
}

const SIZES: [usize; 3] = [8 << 10, 68 << 10, 260 << 10];
const PER_MAPPING: [u32; 3] = [64, 16, 8];
/// Free blocks beyond these give their pages back, so that a burst doesn't stay in memory.
const KEPT: [usize; 3] = [512, 64, 32];
/// Data bytes that fit a large block after its header.
pub const LARGE_DATA: usize = 256 << 10;

impl Size {
    pub const fn bytes(self) -> usize {
        SIZES[self as usize]
    }

    /// The smallest that has room for `bytes`.
    pub fn for_bytes(bytes: usize) -> Size {
        match bytes {
            n if n <= SIZES[0] => Size::Small,
            n if n <= SIZES[1] => Size::Medium,
            _ => Size::Large,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId {
    size: Size,
    index: u32,
}

impl BlockId {
    pub const fn first(size: Size) -> BlockId {
        BlockId { size, index: 0 }
    }

    pub fn capacity(self) -> usize {
        self.size.bytes()
    }

    pub fn size(self) -> Size {
        self.size
    }
}

/// A range of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub block: BlockId,
    pub start: u32,
    pub len: u32,
}

impl Span {
    /// Positions within a block fit 32 bits.
    pub fn new(block: BlockId, start: usize, len: usize) -> Span {
        Span {
            block,
            start: start as u32,
            len: len as u32,
        }
    }

    pub fn skip(self, bytes: u32) -> Span {
        Span {
            start: self.start + bytes,
            len: self.len - bytes,
            ..self
        }
    }
}

#[derive(Debug)]
struct Mapping {
    at: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: a mapping is plain memory; who may use which part of it and when is the pool's rule.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself is never written after it was made.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; the last holder is gone, and the pool drops it only then.
        let _ = unsafe { munmap(self.at.cast(), self.len.get()) };
    }
}

#[derive(Debug)]
struct Class {
    size: Size,
    mappings: Vec<Arc<Mapping>>,
    free: VecDeque<u32>,
    held: Vec<u16>,
}

/// Blocks of one worker.
#[derive(Debug)]
pub struct Pool {
    classes: [Class; 3],
    in_use: usize,
}

/// A span handed to another thread for one operation. The block is held until that operation's completion
/// is back at the worker, so nobody else touches the bytes meanwhile.
#[derive(Debug)]
pub struct Loan {
    at: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: the bytes belong to the loan alone while it lives (see its description).
unsafe impl Send for Loan {}

impl Loan {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, which the loan keeps; nobody writes these bytes while it lives.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping, which the loan keeps; nobody else uses these bytes while it lives.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Class {
    fn new(size: Size) -> Class {
        Class {
            size,
            mappings: Vec::new(),
            free: VecDeque::new(),
            held: Vec::new(),
        }
    }

    fn grow(&mut self) -> io::Result<()> {
        let count = PER_MAPPING[self.size as usize];
        let Some(len) = NonZeroUsize::new(self.size.bytes() * count as usize) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let at = unsafe { mmap_anonymous(None, len, rights, flags) }?.cast();
        self.mappings.push(Arc::new(Mapping { at, len }));
        let first = self.held.len() as u32;
        self.held.resize(self.held.len() + count as usize, 0);
        self.free.extend((first..first + count).rev());
        Ok(())
    }

    fn place(&self, index: u32) -> (&Arc<Mapping>, usize) {
        let count = PER_MAPPING[self.size as usize];
        let mapping = &self.mappings[(index / count) as usize];
        (mapping, (index % count) as usize * self.size.bytes())
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            classes: [Size::Small, Size::Medium, Size::Large].map(Class::new),
            in_use: 0,
        }
    }
}

impl Pool {
    /// A block, held once. The most recently released comes first: it is warm in the cache.
    pub fn take(&mut self, size: Size) -> io::Result<BlockId> {
        let class = &mut self.classes[size as usize];
        if class.free.is_empty() {
            class.grow()?;
        }
        let Some(index) = class.free.pop_back() else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        class.held[index as usize] = 1;
        self.in_use += size.bytes();
        Ok(BlockId { size, index })
    }

    pub fn hold(&mut self, block: BlockId) {
        self.classes[block.size as usize].held[block.index as usize] += 1;
    }

    pub fn held_once(&self, block: BlockId) -> bool {
        self.classes[block.size as usize].held[block.index as usize] == 1
    }

    /// True: that was the last hold, the block is free.
    pub fn release(&mut self, block: BlockId) -> bool {
        let class = &mut self.classes[block.size as usize];
        let held = &mut class.held[block.index as usize];
        debug_assert!(*held > 0, "a block was released once too often");
        *held = held.saturating_sub(1);
        if *held > 0 {
            return false;
        }
        self.in_use -= block.capacity();
        if class.free.len() < KEPT[block.size as usize] {
            class.free.push_back(block.index);
        } else {
            let (mapping, offset) = class.place(block.index);
            // SAFETY: the block lies within the mapping and nobody holds it; its contents may go.
            let _ = unsafe {
                let at = mapping.at.add(offset).cast();
                madvise(at, block.capacity(), MmapAdvise::MADV_DONTNEED)
            };
            class.free.push_front(block.index);
        }
        true
    }

    pub fn bytes(&self, span: Span) -> &[u8] {
        // SAFETY: `address` checked the range; an operation that writes a span is given to the kernel or a
        // job with the span as its own, and links read only what has been completed.
        unsafe { std::slice::from_raw_parts(self.address(span).as_ptr(), span.len as usize) }
    }

    pub fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        // SAFETY: as `bytes`; a link writes only into spans that no operation was given.
        unsafe { std::slice::from_raw_parts_mut(self.address(span).as_ptr(), span.len as usize) }
    }

    /// Moves bytes within or between blocks; they may overlap.
    pub fn copy(&mut self, from: Span, to: BlockId, at: usize) {
        let target = self.address(Span::new(to, at, from.len as usize));
        let source = self.address(from);
        // SAFETY: both ranges were checked by `address`; `copy` allows an overlap.
        unsafe { std::ptr::copy(source.as_ptr(), target.as_ptr(), from.len as usize) };
    }

    /// Where a span lies; stays there until its block is free.
    pub fn address(&self, span: Span) -> NonNull<u8> {
        assert!(span.start as usize + span.len as usize <= span.block.capacity());
        let class = &self.classes[span.block.size as usize];
        let (mapping, offset) = class.place(span.block.index);
        // SAFETY: the block lies within its mapping, the span within its block.
        unsafe { mapping.at.add(offset + span.start as usize) }
    }

    pub fn lend(&self, span: Span) -> Loan {
        let (mapping, _) = self.classes[span.block.size as usize].place(span.block.index);
        Loan {
            at: self.address(span),
            len: span.len as usize,
            _mapping: Arc::clone(mapping),
        }
    }

    /// Bytes of all blocks that somebody holds.
    pub fn in_use(&self) -> usize {
        self.in_use
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.in_use == 0 {
            return;
        }
        // A worker that ended badly: the kernel may still write into its blocks, so they are never unmapped.
        for class in &mut self.classes {
            class.mappings.drain(..).for_each(std::mem::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_after_its_last_hold_and_comes_back_first() {
        let mut pool = Pool::default();
        let block = pool.take(Size::Small).unwrap();
        pool.hold(block);
        assert!(!pool.release(block));
        assert_eq!(pool.in_use(), Size::Small.bytes());
        assert!(pool.release(block));
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.take(Size::Small).unwrap(), block);
        pool.release(block);
    }

    #[test]
    fn blocks_keep_what_was_written_and_never_overlap() {
        let mut pool = Pool::default();
        for size in [Size::Small, Size::Medium, Size::Large] {
            let blocks: Vec<_> = (0..70).map(|_| pool.take(size).unwrap()).collect();
            for (n, block) in blocks.iter().enumerate() {
                pool.bytes_mut(Span::new(*block, 0, size.bytes()))
                    .fill(n as u8);
            }
            for (n, block) in blocks.iter().enumerate() {
                let bytes = pool.bytes(Span::new(*block, 0, size.bytes()));
                assert!(bytes.iter().all(|b| *b == n as u8), "block {n} of {size:?}");
                assert!(pool.release(*block));
            }
        }
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn copies_overlap_and_cross_blocks() {
        let mut pool = Pool::default();
        let (a, b) = (
            pool.take(Size::Small).unwrap(),
            pool.take(Size::Large).unwrap(),
        );
        pool.bytes_mut(Span::new(a, 4, 6))
            .copy_from_slice(b"abcdef");
        pool.copy(Span::new(a, 4, 6), a, 2);
        assert_eq!(pool.bytes(Span::new(a, 2, 6)), b"abcdef");
        pool.copy(Span::new(a, 3, 4), b, 9);
        assert_eq!(pool.bytes(Span::new(b, 9, 4)), b"bcde");
        pool.release(a);
        pool.release(b);
    }

    #[test]
    #[should_panic(expected = "capacity")]
    fn a_span_beyond_its_block_is_refused() {
        let mut pool = Pool::default();
        let block = pool.take(Size::Small).unwrap();
        pool.bytes(Span::new(block, 8000, 200));
    }
}
