//! TRIM, WRITE_ZEROES and CACHE.
//!
//! Owns the choice between hole, unwritten extent, the device's own zeroing and plain zeros, and what it learned of
//! the file system. Called by `Backend::slow` on the pool. Never changes a byte outside the range, never the size.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::machine::read_number;
use super::sys;

/// A page: what a block device's fallocate may cut its cache by.
const PAGE: u64 = 4096;
/// How many zeros one write has.
const ZEROS: usize = 256 << 10;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
const FILL: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// What zeroing needs to know of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub block: u64,
    pub discard_granularity: u64,
    pub discard_alignment: u64,
    /// Where sysfs says how many bytes it zeroes without being sent the zeros. The kernel sets that to 0 when the
    /// device refuses it for the first time, whoever asked.
    pub zeroes: Option<PathBuf>,
}

impl Disk {
    fn zeroes_fast(&self) -> bool {
        let most = self.zeroes.as_deref().and_then(read_number);
        most.is_some_and(|most| most > 0)
    }
}

#[derive(Debug)]
pub struct Zeroer {
    /// `None`: a regular file.
    disk: Option<Disk>,
    memory: bool,
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
}

/// A range; never empty inside this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    offset: u64,
    length: u64,
}

impl Zeroer {
    pub fn new(disk: Option<Disk>, memory: bool) -> Zeroer {
        Zeroer {
            disk,
            memory,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
        }
    }

    /// Advisory: what isn't a whole unit of a disk's discards is left alone.
    pub fn trim(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let Some(disk) = &self.disk else {
            return self.attempt(file, PUNCH, Span { offset, length }, &self.no_punch);
        };
        let unit = disk.discard_granularity.max(disk.block).max(PAGE);
        match inner(offset, length, unit, disk.discard_alignment % unit) {
            Some(span) => sys::discard(file, span.offset, span.length),
            None => Ok(()),
        }
    }

    /// `settle`: writes a range of the cache out to the disk.
    pub fn zero(
        &self,
        file: &File,
        (offset, length): (u64, u64),
        (keep, fast): (bool, bool),
        settle: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let span = Span { offset, length };
        match &self.disk {
            None => self.zero_file(file, span, keep, fast),
            Some(disk) => self.zero_disk(file, span, (keep, fast), disk, settle),
        }
    }

    fn zero_file(&self, file: &File, span: Span, keep: bool, fast: bool) -> io::Result<()> {
        let mut done = Err(Errno::OPNOTSUPP.into());
        if !keep {
            done = self.attempt(file, PUNCH, span, &self.no_punch);
        }
        if unsupported(&done) {
            done = self.attempt(file, ZERO, span, &self.no_zero_range);
        }
        if unsupported(&done) && self.memory {
            // Memory knows no unwritten extents: fresh pages are as good, and taken without being written.
            done = self.attempt(file, PUNCH, span, &self.no_punch);
            if done.is_ok() {
                done = call(file, FILL, span);
            }
        }
        match unsupported(&done) {
            true if fast => Err(Errno::OPNOTSUPP.into()),
            true => write_zeros(file, span),
            false => done,
        }
    }

    /// The kernel drops the cached pages of the range *before* it asks the device, dirty ones too. Pages that lie in
    /// it in part are therefore written as zeros, and a "no" that must change nothing (FAST_ZERO) comes either before
    /// that call or after what it drops was written out.
    fn zero_disk(
        &self,
        file: &File,
        span: Span,
        (keep, fast): (bool, bool),
        disk: &Disk,
        settle: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(whole) = inner(span.offset, span.length, disk.block.max(PAGE), 0) else {
            return write_zeros(file, span);
        };
        if fast && (!disk.zeroes_fast() || (!keep && self.no_punch.load(Relaxed))) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let mut done = Err(Errno::OPNOTSUPP.into());
        if !keep {
            if fast {
                settle(whole.offset, whole.length)?;
            }
            done = self.attempt(file, PUNCH, whole, &self.no_punch);
        }
        if unsupported(&done) && (keep || !fast) {
            // The kernel itself writes zeros where the device can't.
            done = call(file, ZERO, whole);
        }
        if unsupported(&done) && !fast {
            done = write_zeros(file, whole);
        }
        done?;
        let (start, end) = (whole.offset, whole.offset + whole.length);
        for (from, to) in [(span.offset, start), (end, span.offset + span.length)] {
            if from < to {
                write_zeros(
                    file,
                    Span {
                        offset: from,
                        length: to - from,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// A way that was refused once isn't tried again.
    fn attempt(
        &self,
        file: &File,
        mode: FallocateFlags,
        span: Span,
        refused: &AtomicBool,
    ) -> io::Result<()> {
        if refused.load(Relaxed) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let done = call(file, mode, span);
        if unsupported(&done) {
            refused.store(true, Relaxed);
        }
        done
    }
}

fn call(file: &File, mode: FallocateFlags, span: Span) -> io::Result<()> {
    loop {
        match fallocate(file, mode, span.offset, span.length) {
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS) => return Err(Errno::OPNOTSUPP.into()),
            done => return Ok(done?),
        }
    }
}

fn unsupported(done: &io::Result<()>) -> bool {
    let errno = done.as_ref().err().and_then(io::Error::raw_os_error);
    errno == Some(Errno::OPNOTSUPP.raw_os_error())
}

fn write_zeros(file: &File, span: Span) -> io::Result<()> {
    let most = usize::try_from(span.length).map_or(ZEROS, |length| length.min(ZEROS));
    let zeros = vec![0; most];
    let end = span.offset + span.length;
    let mut at = span.offset;
    while at < end {
        let now = (end - at).min(most as u64);
        let part = zeros.get(..now as usize).unwrap_or(&zeros);
        super::write_all(file, part, at)?;
        at += now;
    }
    Ok(())
}

/// The whole units within a range; units begin at `shift`.
fn inner(offset: u64, length: u64, unit: u64, shift: u64) -> Option<Span> {
    let up = (offset.max(shift) - shift).next_multiple_of(unit) + shift;
    let end = offset + length;
    let down = end.checked_sub(shift)? / unit * unit + shift;
    (up < down).then(|| Span {
        offset: up,
        length: down - up,
    })
}

/// Reads ahead what lies in a range.
pub fn cache(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let Some(length) = std::num::NonZeroU64::new(length) else {
        return Ok(());
    };
    Ok(rustix::fs::fadvise(
        file,
        offset,
        Some(length),
        rustix::fs::Advice::WillNeed,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_units_are_taken() {
        let inner = |offset, length, unit, shift| {
            inner(offset, length, unit, shift).map(|span| (span.offset, span.length))
        };
        assert_eq!(inner(0, 8192, 4096, 0), Some((0, 8192)));
        assert_eq!(inner(512, 8192, 4096, 0), Some((4096, 4096)));
        assert_eq!(inner(512, 4096, 4096, 0), None);
        assert_eq!(inner(4096, 4095, 4096, 0), None);
        assert_eq!(inner(0, 4096, 4096, 512), None);
        assert_eq!(inner(0, 4608, 4096, 512), Some((512, 4096)));
        assert_eq!(inner(0, 100, 4096, 512), None);
    }
}
