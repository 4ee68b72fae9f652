//! What the running machine says of itself and of its disks: machine id, boot id, sysfs.
//!
//! Owns those paths, so that tests can give others. Called by open and identity. Writes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::open::OpenError;

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    pub major: u32,
    pub minor: u32,
}

impl Number {
    pub fn of(dev: u64) -> Number {
        Number {
            major: rustix::fs::major(dev),
            minor: rustix::fs::minor(dev),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Machine {
    /// `None`: it has none (yet), as in a container or an installer.
    pub id: Option<String>,
    pub boot: String,
    /// /sys/dev/block
    pub sys: PathBuf,
}

impl Machine {
    pub fn this() -> Result<Machine, OpenError> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT).map_err(|error| OpenError::NoBootId { error })?;
        // The file says "uninitialized" in an image that has not been booted.
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let id = Some(id.trim().to_owned()).filter(|id| id.len() == 32);
        Ok(Machine {
            id,
            boot: boot.trim().to_owned(),
            sys: "/sys/dev/block".into(),
        })
    }

    /// The device's directory in sysfs, links resolved so that `..` of a partition is its disk.
    pub fn directory(&self, number: Number) -> io::Result<PathBuf> {
        let Number { major, minor } = number;
        fs::canonicalize(self.sys.join(format!("{major}:{minor}")))
    }

    /// One attribute of a device; `None`: not there, or empty.
    pub fn attribute(&self, number: Number, name: &str) -> Option<String> {
        let file = self.directory(number).ok()?.join(name);
        let text = fs::read_to_string(file).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A number of the device's queue.
    pub fn queue(&self, number: Number, name: &str) -> Option<u64> {
        read_number(&self.queue_file(number, name)?)
    }

    /// Where such a number stands; a partition has its disk's.
    pub fn queue_file(&self, number: Number, name: &str) -> Option<PathBuf> {
        let directory = self.directory(number).ok()?;
        ["queue", "../queue"]
            .into_iter()
            .map(|queue| directory.join(queue).join(name))
            .find(|file| file.exists())
    }

    /// Who holds a device: names like `dm-3`, `md0`.
    pub fn holders(&self, number: Number) -> Vec<String> {
        let listed = self
            .directory(number)
            .and_then(|dir| fs::read_dir(dir.join("holders")));
        let mut names: Vec<String> = listed
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
