//! The system calls that neither `std` nor rustix wraps: block device ioctls and the question for write-back errors.
//!
//! Owns all unsafe code of the storage half. Called by open, zero and flush. Never decides anything.
#![allow(unsafe_code)] // ioctls and one libc function without a safe wrapper

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);

/// A block device's size in bytes.
pub fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0;
    // SAFETY: BLKGETSIZE64 writes one u64 to the pointer, which is `size`, alive during the call.
    unsafe { blkgetsize64(file.as_raw_fd(), &mut size) }?;
    Ok(size)
}

pub fn discard(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64 from the pointer, which is `range`, alive during the call.
    unsafe { blkdiscard(file.as_raw_fd(), &range) }?;
    Ok(())
}

/// Whether a write-back of this file failed since this descriptor was last told (or was opened). Writes nothing out
/// and waits for nothing: it asks for a byte far beyond the data, and the kernel's error mark is one for all of the file.
pub fn write_back_error(file: &File) -> io::Result<()> {
    const FAR: u64 = i64::MAX as u64 - 0xffff;
    sync_range(file, (FAR, 1), libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

/// Writes the dirty pages of a range to the storage, which may still have them in a cache of its own.
pub fn write_back(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, (offset, length), all)
}

fn sync_range(file: &File, (offset, length): (u64, u64), flags: u32) -> io::Result<()> {
    let parts = (offset.try_into(), length.try_into());
    let (Ok(offset), Ok(length)) = parts else {
        return Err(Errno::EINVAL.into());
    };
    // SAFETY: takes no pointer; the descriptor is open as long as `file` is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) };
    Errno::result(result)?;
    Ok(())
}
