//! Which parts of a file hold data: the runs of `base:allocation`.
//!
//! Owns the walk with SEEK_DATA and SEEK_HOLE. Called by `Backend::block_status` on the pool. Never calls data a hole:
//! each step asks the kernel anew, so a write acknowledged before the question is seen; whatever the kernel can't say
//! (or says twice differently, because the file is changed meanwhile) counts as data, which is always true enough.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Run;

/// What is called data when two answers contradict each other: a page.
const DOUBT: u64 = 4096;

/// Where data and holes begin; a trait, so that tests can answer what a busy file would.
pub trait Layout {
    /// The first data at or after `offset`; `None`: only a hole follows.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// The first hole at or after `offset`, the end of the file included.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;
    /// The file's size now.
    fn size(&self) -> io::Result<u64>;
}

impl Layout for File {
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // The file system doesn't know holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        match seek(self, SeekFrom::Hole(offset)) {
            Ok(hole) => Ok(hole),
            // It became shorter between two questions: the caller calls the place data.
            Err(Errno::NXIO) => Ok(offset),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
            Err(error) => Err(error.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// The runs from `start`, merged, at most `max`, up to `end` or fewer.
pub fn runs(layout: &impl Layout, start: u64, end: u64, max: usize) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = start;
    while at < end {
        let data = match layout.next_data(at)? {
            Some(data) => data.clamp(at, end),
            // No data follows, but a file that became shorter isn't zero there: reading it is an error.
            None => end.min(layout.size()?.max(at)),
        };
        if data > at && !push(&mut runs, max, data - at, true) {
            break;
        }
        at = data;
        if at == end {
            break;
        }
        let hole = match layout.next_hole(at)? {
            hole if hole > at => hole.min(end),
            _ => at.saturating_add(DOUBT).min(end),
        };
        if !push(&mut runs, max, hole - at, false) {
            break;
        }
        at = hole;
    }
    Ok(runs)
}

/// False: there is no room for another run.
fn push(runs: &mut Vec<Run>, max: usize, length: u64, hole: bool) -> bool {
    if let Some(last) = runs.last_mut().filter(|last| last.hole == hole) {
        last.length += length;
        return true;
    }
    if runs.len() >= max {
        return false;
    }
    runs.push(Run {
        length,
        hole,
        zero: hole,
    });
    true
}
