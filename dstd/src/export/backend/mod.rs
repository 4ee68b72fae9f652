//! One opened export's storage: a file or a block device.
//!
//! Owns its descriptor, size, identity, incarnation, what it can do, and the memory of a failed flush.
//! Called by workers (requests) and by the handshake (what to tell clients). Never looks at a client or a name;
//! never changes a byte outside the size that it had when it was opened.

pub mod fault;
mod flush;
mod holes;
mod identity;
mod inline;
mod machine;
mod open;
mod sys;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_disk;
#[cfg(test)]
mod tests_flush;
mod turn;
mod zero;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};

pub use fault::{FaultKind, FaultPoint, FaultScript, Faults};
pub use open::{OpenError, OpenOptionsOf};
pub use turn::WriteTurn;

use flush::FlushMemory;
use inline::{Inline, Way};
use machine::Machine;
use turn::Turns;
use zero::{Disk, Zeroer};

/// What a client may be told of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    pub size: u64,
    pub read_only: bool,
    pub rotational: bool,
    pub can_trim: bool,
    pub can_zero: bool,
    /// Logical block size: requests must be multiples of it; 1 for files.
    pub min_block: u32,
    pub pref_block: u32,
    /// Largest payload of a READ or WRITE in bytes.
    pub max_payload: u32,
}

/// Work that may block: done on the ring (reads, writes, flushes) or on the pool (all).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowOp {
    Flush,
    Trim {
        offset: u64,
        length: u64,
    },
    /// `keep`: NO_HOLE. `fast`: ENOTSUP, and nothing changed, where it would take as long as a write.
    Zero {
        offset: u64,
        length: u64,
        keep: bool,
        fast: bool,
    },
    /// CACHE: read ahead.
    Cache {
        offset: u64,
        length: u64,
    },
}

/// A run of `base:allocation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub length: u64,
    pub hole: bool,
    pub zero: bool,
}

/// Fields are dropped in this order: a failure is counted while the lock on the file is still held.
#[derive(Debug)]
pub struct Backend {
    flush: FlushMemory,
    file: File,
    is_device: bool,
    traits: Traits,
    identity: [u8; 16],
    incarnation: [u8; 16],
    inline: Inline,
    turns: Turns,
    zeroer: Zeroer,
    faults: Option<Arc<dyn Faults>>,
}

impl Backend {
    /// May block, for `lock_wait` and as long as the storage takes. The error's text says what to do; its source is
    /// an [`OpenError`].
    pub fn open(options: &OpenOptionsOf) -> io::Result<Backend> {
        Ok(Backend::open_on(options, &Machine::this()?)?)
    }

    fn open_on(options: &OpenOptionsOf, machine: &Machine) -> Result<Backend, OpenError> {
        let opened = open::open(options, machine)?;
        let turns = match opened.device {
            Some(_) => Turns::of_device(),
            None => Turns::of_file(),
        };
        let disk = opened.device.map(|number| {
            let queue = |name| machine.queue(number, name).unwrap_or_default();
            let own = |name| machine.attribute(number, name)?.parse().ok();
            Disk {
                block: u64::from(opened.traits.min_block),
                discard_granularity: queue("discard_granularity"),
                discard_alignment: own("discard_alignment").unwrap_or_default(),
                zeroes: machine.queue_file(number, "write_zeroes_max_bytes"),
            }
        });
        Ok(Backend {
            flush: opened.flush,
            file: opened.file,
            is_device: opened.device.is_some(),
            traits: opened.traits,
            identity: opened.identity,
            incarnation: opened.incarnation,
            inline: Inline::new(opened.memory),
            turns,
            zeroer: Zeroer::new(disk, opened.memory),
            faults: None,
        })
    }

    /// With faults in the way; every operation then goes through [`Backend::read`], [`Backend::write`],
    /// [`Backend::slow`] and [`Backend::block_status`], on the pool. For tests.
    #[must_use]
    pub fn with_faults(mut self, faults: Arc<dyn Faults>) -> Backend {
        self.faults = Some(faults);
        self
    }

    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Stays the same while this is open, also after a failed flush: what was written in between and told "failed" must
    /// not look like the next opening's.
    pub fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }

    /// For the ring: READ, WRITE and FSYNC go to this descriptor. `None`: everything must go through
    /// [`Backend::read`], [`Backend::write`] and [`Backend::slow`] (a test's faults are in the way).
    /// Whatever makes data durable there (FSYNC, a write with RWF_DSYNC) must pass [`Backend::flush_done`].
    pub fn ring_fd(&self) -> Option<RawFd> {
        self.faults.is_none().then(|| self.file.as_raw_fd())
    }

    /// Reads without waiting for the disk: `Ok(None)` where that can't be done now. All or nothing.
    pub fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<()>> {
        self.try_read_parts(&mut [IoSliceMut::new(buf)], offset)
    }

    /// The same into several parts, one behind the other.
    pub fn try_read_parts(
        &self,
        parts: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> io::Result<Option<()>> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.check(offset, length as u64)?;
        let flags = match self.inline.read_way() {
            _ if self.faults.is_some() => return Ok(None),
            Way::Plain => ReadWriteFlags::empty(),
            Way::NoWait => ReadWriteFlags::NOWAIT,
            Way::Never | Way::Timed => return Ok(None),
        };
        let done = preadv2(&self.file, parts, offset, flags);
        not_now(done, length, || self.inline.no_nowait_read())
    }

    /// To be taken before [`Backend::try_write`], for many of them. `None`: as if that had said `Ok(None)`.
    pub fn turn(&self) -> Option<WriteTurn> {
        self.turns.take()
    }

    /// Writes into the page cache if that won't wait for the disk: `Ok(None)` where it might (part of it may have been
    /// written then).
    pub fn try_write(&self, buf: &[u8], offset: u64) -> io::Result<Option<()>> {
        self.check_write(offset, buf.len() as u64)?;
        if self.faults.is_some() {
            return Ok(None);
        }
        let mut way = self.inline.write_way(offset, buf.len());
        if way == Way::NoWait {
            let slices = &[IoSlice::new(buf)];
            let done = pwritev2(&self.file, slices, offset, ReadWriteFlags::NOWAIT);
            let mut refused = false;
            let result = not_now(done, buf.len(), || refused = true);
            if !refused {
                return result;
            }
            self.inline.no_nowait_write();
            way = self.inline.timed_way(offset, buf.len());
        }
        match way {
            Way::Plain => write_all(&self.file, buf, offset).map(Some),
            Way::Timed => {
                let start = Instant::now();
                let done = write_all(&self.file, buf, offset);
                self.inline.wrote(start);
                done.map(Some)
            }
            Way::Never | Way::NoWait => Ok(None),
        }
    }

    /// May block. A file that became shorter is EIO.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.fault(FaultKind::Read, offset, buf.len() as u64)?;
        read_all(&self.file, buf, offset)
    }

    /// May block.
    pub fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        self.fault(FaultKind::Write, offset, buf.len() as u64)?;
        write_all(&self.file, buf, offset)
    }

    /// May block; called on the pool only.
    pub fn slow(&self, op: SlowOp) -> io::Result<()> {
        match op {
            SlowOp::Flush => self.flush_now(),
            SlowOp::Trim { offset, length } => {
                self.check_write(offset, length)?;
                self.fault(FaultKind::Trim, offset, length)?;
                if !self.traits.can_trim {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                if length == 0 {
                    return Ok(());
                }
                self.zeroer.trim(&self.file, offset, length)
            }
            SlowOp::Zero {
                offset,
                length,
                keep,
                fast,
            } => {
                self.check_write(offset, length)?;
                self.fault(FaultKind::Zero, offset, length)?;
                let settle = |offset, length| {
                    let done = sys::write_back(&self.file, offset, length);
                    done.or_else(|error| self.flush_done(Err(error)))
                };
                self.zeroer
                    .zero(&self.file, (offset, length), (keep, fast), settle)
            }
            SlowOp::Cache { offset, length } => {
                self.check(offset, length)?;
                self.fault(FaultKind::Cache, offset, length)?;
                zero::cache(&self.file, offset, length)
            }
        }
    }

    fn flush_now(&self) -> io::Result<()> {
        self.flush_state()?;
        if self.traits.read_only {
            return Ok(()); // Its clients have nothing to lose, and another server's failure isn't for them.
        }
        let done = self.fault(FaultKind::Flush, 0, u64::MAX);
        self.flush_done(done.and_then(|()| self.file.sync_data()))
    }

    /// What a flush that ran on the ring ended with; returns what the client is to be told. Before that, a failure is
    /// on record for a server that comes after this one.
    pub fn flush_done(&self, result: io::Result<()>) -> io::Result<()> {
        self.flush.done(result)
    }

    /// A flush that failed once has failed for good: asked before a FLUSH or FUA is begun.
    pub fn flush_state(&self) -> io::Result<()> {
        self.flush.state()
    }

    /// The runs that cover `offset..offset + length`, merged, at most `max`; may end early. May block: pool only.
    pub fn block_status(&self, offset: u64, length: u64, max: usize) -> io::Result<Vec<Run>> {
        self.check(offset, length)?;
        self.fault(FaultKind::Status, offset, length)?;
        if length == 0 || max == 0 {
            return Ok(Vec::new());
        }
        if self.is_device {
            return Ok(vec![Run {
                length,
                hole: false,
                zero: false,
            }]);
        }
        holes::runs(&self.file, offset, offset + length, max)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn fault(&self, kind: FaultKind, offset: u64, length: u64) -> io::Result<()> {
        match &self.faults {
            None => Ok(()),
            Some(faults) => faults.before(&FaultPoint {
                kind,
                offset,
                length,
            }),
        }
    }

    /// The second lock on a door that the worker has locked: nothing outside the export is touched.
    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.traits.size => Ok(()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn check_write(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.traits.read_only {
            return Err(Errno::EROFS.into());
        }
        self.check(offset, length)
    }
}

/// The result of a call with RWF_NOWAIT; `refused` where the file system doesn't know it. Any other error is "not now"
/// too: a call that may wait can do more (free space, memory), so its word is the one that counts.
fn not_now(
    done: rustix::io::Result<usize>,
    length: usize,
    refused: impl FnOnce(),
) -> io::Result<Option<()>> {
    use rustix::io::Errno;
    match done {
        Ok(n) => Ok((n == length).then_some(())),
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            refused();
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

fn read_all(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buf, offset).map_err(raw)
}

fn write_all(file: &File, buf: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(buf, offset).map_err(raw)
}

/// Clients are told errno values: a call that moved nothing (the file became shorter) is EIO.
fn raw(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => Errno::EIO.into(),
    }
}
