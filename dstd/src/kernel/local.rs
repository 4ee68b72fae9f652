//! A local block device's number, size and access, from stat and sysfs.
//! Called by the real kernel and by `dstd table`. Needs no privilege: the device isn't opened.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use super::{Access, KernelError, LocalDevice};
use crate::units::{DeviceNumber, Sectors};

pub fn local_device(path: &Path) -> Result<LocalDevice, KernelError> {
    let what = || format!("look at {}", path.display());
    let io = |error: std::io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        KernelError::new(what(), errno, error.to_string())
    };
    let stat = fs::metadata(path).map_err(io)?;
    if !stat.file_type().is_block_device() {
        return Err(KernelError::new(
            what(),
            Some(Errno::ENOTBLK),
            "it is no block device: name a disk, a partition or a logical volume",
        ));
    }
    let number = DeviceNumber {
        major: u32::try_from(major(stat.rdev())).unwrap_or_default(),
        minor: u32::try_from(minor(stat.rdev())).unwrap_or_default(),
    };
    let attribute = |name: &str| {
        let file = format!("/sys/dev/block/{number}/{name}");
        let text = fs::read_to_string(&file).map_err(io)?;
        text.trim()
            .parse::<u64>()
            .map_err(|_| KernelError::new(what(), None, format!("{file} holds no number")))
    };
    Ok(LocalDevice {
        number,
        size: Sectors(attribute("size")?),
        access: match attribute("ro")? {
            0 => Access::ReadWrite,
            _ => Access::ReadOnly,
        },
    })
}
