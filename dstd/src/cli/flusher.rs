//! PR_SET_IO_FLUSHER: memory that this process asks for is never found by writing to devices it serves.
//! Called by run. One prctl; unsafe only because libc offers it so.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;

/// From linux/prctl.h; the libc crate doesn't have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

pub fn set() -> Result<(), Errno> {
    let zero: libc::c_ulong = 0;
    let one: libc::c_ulong = 1;
    // SAFETY: PR_SET_IO_FLUSHER takes numbers only; it reads and writes no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, one, zero, zero, zero) };
    Errno::result(result).map(drop)
}
