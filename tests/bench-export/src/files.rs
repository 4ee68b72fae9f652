//! The files that the servers serve: one in memory (tmpfs), one on the disk of the working directory.
//!
//! Owns their place, contents and removal, and the lock that keeps a second bench from this host. Called by `main`.
//! qemu-nbd with cache=none has a disk file of its own: its direct writes would drop the others' page cache.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::matrix::{Backing, Setup};

const SIZE: u64 = 512 << 20;
const MEMORY: &str = "/dev/shm/dst-bench-export";

pub struct Files {
    tmpfs: PathBuf,
    disk: PathBuf,
    direct: PathBuf,
    dir: PathBuf,
    _lock: File,
}

impl Files {
    /// Random bytes, the same in all; `out` is on the disk.
    pub fn make(out: &Path) -> Result<Files> {
        let lock = File::create("/dev/shm/dst-bench-export.lock").context("/dev/shm is needed")?;
        if lock.try_lock().is_err() {
            bail!("another bench-export runs on this host; two would measure each other");
        }
        let dir = out.canonicalize()?.join("export-run");
        for old in [Path::new(MEMORY), &dir] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
            fs::create_dir_all(old)?;
        }
        let files = Files {
            tmpfs: Path::new(MEMORY).join("disk"),
            disk: dir.join("disk"),
            direct: dir.join("direct"),
            dir,
            _lock: lock,
        };
        let mut random = File::open("/dev/urandom")?.take(SIZE);
        io::copy(&mut random, &mut File::create(&files.tmpfs)?).context("/dev/shm is too small")?;
        for path in [&files.disk, &files.direct] {
            let mut file = File::create(path)?;
            io::copy(&mut File::open(&files.tmpfs)?, &mut file)?;
            file.sync_all()?;
        }
        Ok(files)
    }

    pub fn path(&self, backing: Backing, setup: Setup) -> &Path {
        match (backing, setup) {
            (Backing::Tmpfs, _) => &self.tmpfs,
            (Backing::Disk, Setup::QemuNone) => &self.direct,
            (Backing::Disk, _) => &self.disk,
        }
    }

    /// For sockets and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every page in the page cache, and none of earlier jobs left to be written.
    pub fn warm(&self, backing: Backing) -> Result<()> {
        let mut file = File::open(self.path(backing, Setup::Export))?;
        file.sync_all()?;
        io::copy(&mut file, &mut io::sink())?;
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(MEMORY);
        for path in [&self.disk, &self.direct] {
            let _ = fs::remove_file(path);
        }
    }
}
