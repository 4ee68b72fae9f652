//! The memory of failed flushes.
//!
//! A page whose write-back failed is marked clean, so the next fdatasync succeeds though the data is lost, and a
//! server started after this one would believe in it. Therefore a failure is (1) kept while the backend is open and
//! answered to every later FLUSH and FUA, and (2) counted in a small file that lives as long as the boot does, before
//! any client is told; the count is part of the incarnation.
//! Called by the backend and by whoever flushes through the ring. Never flushes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::libc;
use uuid::Uuid;

use super::sys;

/// Where the failures of one identity are counted.
#[derive(Debug)]
pub struct Record {
    /// `None`: it can't be kept, so each opening is an incarnation of its own.
    file: Option<PathBuf>,
    boot: String,
    failures: u64,
}

impl Record {
    /// `keep`: whoever opens it may write, so the count must be writable from the start.
    pub fn open(dir: &Path, identity: [u8; 16], boot: &str, keep: bool) -> Record {
        let name = format!("{}.failed-flushes", Uuid::from_bytes(identity));
        let file = dir.join(name);
        let found = match fs::read_to_string(&file) {
            Ok(text) => parse(&text, boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
            Err(_) => None,
        };
        // What can't be read may have said anything: no earlier incarnation may be repeated.
        let mut record = Record {
            file: Some(file),
            boot: boot.to_owned(),
            failures: found.unwrap_or_else(rand::random),
        };
        if keep && let Err(error) = fs::create_dir_all(dir).and_then(|()| record.store()) {
            tracing::warn!(
                "failed flushes can't be counted in {}: {error}; clients will take each start of this server for \
                 lost data: make the directory writable",
                dir.display()
            );
            record.file = None;
            record.failures = rand::random();
        }
        record
    }

    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// One more failure, on its place when this returns.
    pub fn count(&mut self) {
        self.failures = self.failures.wrapping_add(1);
        if let Err(error) = self.store() {
            let file = self.file.as_deref().unwrap_or(Path::new("nowhere"));
            tracing::error!(
                "a failed flush can't be counted in {}: {error}; after a restart of this server clients won't be \
                 told that data was lost",
                file.display()
            );
        }
    }

    fn store(&self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let new = file.with_extension(format!("new-{}", std::process::id()));
        fs::write(&new, format!("{} {}\n", self.boot, self.failures))?;
        fs::rename(&new, file)
    }
}

/// `None`: not a record. Another boot's failures are over: the boot id alone tells of them.
fn parse(text: &str, boot: &str) -> Option<u64> {
    let (of_boot, count) = text.trim_end().rsplit_once(' ')?;
    let count = count.parse().ok()?;
    Some(if of_boot == boot { count } else { 0 })
}

#[derive(Debug)]
pub struct FlushMemory {
    /// The errno of the first flush that failed; 0: none. Set after the failure was counted, never reset.
    failed: AtomicI32,
    /// A second opening of the same storage. The kernel tells each opening once of a failed write-back; of two flushes
    /// at the same time on one descriptor the other would hear "done". `None`: nothing is ever written back.
    witness: Option<File>,
    /// Held while the witness is asked and a failure is counted.
    record: Mutex<Record>,
}

impl FlushMemory {
    pub fn new(witness: Option<File>, record: Record) -> FlushMemory {
        FlushMemory {
            failed: AtomicI32::new(0),
            witness,
            record: Mutex::new(record),
        }
    }

    pub fn state(&self) -> io::Result<()> {
        match self.failed.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// What a flush ended with goes in; what may be told to a client comes out.
    pub fn done(&self, result: io::Result<()>) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let result = result.and_then(|()| self.ask_witness());
        if let Err(error) = &result
            && !never_ran(error)
            && self.state().is_ok()
        {
            record.count();
            let errno = error.raw_os_error().filter(|errno| *errno > 0);
            self.failed
                .store(errno.unwrap_or(libc::EIO), Ordering::SeqCst);
            tracing::error!(
                "a flush failed: {error}; data that clients had written may be lost, every flush fails until the \
                 export is opened again"
            );
        }
        self.state()?;
        result
    }

    fn ask_witness(&self) -> io::Result<()> {
        self.witness.as_ref().map_or(Ok(()), sys::write_back_error)
    }
}

/// Cancelled on the ring or interrupted: it says nothing about the data.
fn never_ran(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECANCELED | libc::EINTR | libc::EAGAIN)
    )
}

impl Drop for FlushMemory {
    /// A write-back that failed after the last flush: no client will be told by this server, the next one's
    /// incarnation has to.
    fn drop(&mut self) {
        if self.state().is_ok() {
            let _ = self.done(Ok(()));
        }
    }
}
