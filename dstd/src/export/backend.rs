//! One opened export's storage: a file or a block device.
//!
//! Owns its descriptor, size, identity, incarnation, what it can do, and the memory of a failed flush.
//! Called by workers (requests) and by the handshake (what to tell clients). Never looks at a client or a name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

/// How an export is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptionsOf {
    pub path: PathBuf,
    pub read_only: bool,
}

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

#[derive(Debug)]
pub struct Backend {
    file: File,
    traits: Traits,
    identity: [u8; 16],
    incarnation: [u8; 16],
    /// The errno of the first flush that failed; 0: none. Never reset while this is open.
    failed_flush: AtomicI32,
}

impl Backend {
    pub fn open(options: &OpenOptionsOf) -> io::Result<Backend> {
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .open(&options.path)?;
        Backend::from_file(file, options.read_only, &options.path)
    }

    fn from_file(file: File, read_only: bool, _path: &Path) -> io::Result<Backend> {
        let size = file.metadata()?.len();
        Ok(Backend {
            file,
            traits: Traits {
                size,
                read_only,
                rotational: false,
                can_trim: true,
                can_zero: true,
                min_block: 1,
                pref_block: 4096,
                max_payload: 32 << 20,
            },
            identity: [0; 16],
            incarnation: [0; 16],
            failed_flush: AtomicI32::new(0),
        })
    }

    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    pub fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }

    /// For the ring: READ, WRITE and FSYNC go to this descriptor. `None`: everything must go through
    /// [`Backend::read`], [`Backend::write`] and [`Backend::slow`] (a test's faults are in the way).
    pub fn ring_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    /// Reads without waiting for the disk: `Ok(None)` where that can't be done now. All or nothing.
    pub fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<()>> {
        self.read(buf, offset).map(Some)
    }

    /// Writes into the page cache if that won't wait for the disk: `Ok(None)` where it might.
    pub fn try_write(&self, buf: &[u8], offset: u64) -> io::Result<Option<()>> {
        self.write(buf, offset).map(Some)
    }

    /// May block. A file that became shorter is EIO.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    pub fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    /// May block; called on the pool only.
    pub fn slow(&self, op: SlowOp) -> io::Result<()> {
        match op {
            SlowOp::Flush => self.flush_done(self.file.sync_data()),
            _ => Err(Errno::EOPNOTSUPP.into()),
        }
    }

    /// What a flush that ran on the ring ended with; returns what the client is to be told.
    pub fn flush_done(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
            let _ =
                self.failed_flush
                    .compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.flush_state()?;
        result
    }

    /// A flush that failed once has failed for good: asked before a FLUSH or FUA is begun.
    pub fn flush_state(&self) -> io::Result<()> {
        match self.failed_flush.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The runs that cover `offset..offset + length`, merged, at most `max`; may end early. May block: pool only.
    pub fn block_status(&self, _offset: u64, length: u64, _max: usize) -> io::Result<Vec<Run>> {
        Ok(vec![Run {
            length,
            hole: false,
            zero: false,
        }])
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
