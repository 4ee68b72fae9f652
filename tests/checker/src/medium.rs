//! What is checked: a block device by direct I/O, or whatever else reads and writes sectors (tests simulate one).
//! Called by load's threads, all at once. Keeps no state of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

const O_DIRECT: i32 = 0o40000;
const O_DSYNC: i32 = 0o10000;

/// Offsets in bytes.
pub trait Medium: Sync {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// `durable`: with FUA.
    fn write(&self, at: u64, bytes: &[u8], durable: bool) -> io::Result<()>;
    fn zero(&self, at: u64, length: u64) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
}

#[derive(Debug)]
pub struct Device {
    plain: File,
    durable: File,
}

impl Device {
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(path)
        };
        Ok(Self {
            plain: open(O_DIRECT)?,
            durable: open(O_DIRECT | O_DSYNC)?,
        })
    }

    /// In bytes.
    pub fn size(&self) -> io::Result<u64> {
        (&self.plain).seek(SeekFrom::End(0))
    }
}

impl Medium for Device {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.plain.read_exact_at(bytes, at)
    }

    fn write(&self, at: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let file = if durable { &self.durable } else { &self.plain };
        // A rest after a short write would be another request: what is short has failed.
        match file.write_at(bytes, at)? {
            all if all == bytes.len() => Ok(()),
            part => Err(io::Error::other(format!(
                "only {part} of {} bytes written",
                bytes.len()
            ))),
        }
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.plain, flags, at as i64, length as i64).map_err(io::Error::from)
    }

    fn flush(&self) -> io::Result<()> {
        self.plain.sync_data()
    }
}
