//! How long a worker thread runs before the scheduler looks at others.
//!
//! Owns one scheduler setting of the calling thread. Called once by each worker at its start.
//! Never raises a priority: a shorter slice only means being chosen sooner and interrupted sooner.
#![allow(unsafe_code)] // No library wraps sched_setattr.

use nix::libc;

/// A worker needs a few microseconds at a time, but at once: with the usual 3 ms a busy machine lets it wait that
/// long behind whoever computes (measured at depth 1 over TCP beside two compilers: 16 to 25 thousand IOPS, the
/// 99th percentile from 770 to 40 µs).
const SLICE_NS: u64 = 100_000;

/// struct sched_attr of the kernel, first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Kernels before 6.12 ignore it, and a refusal changes nothing but latency.
pub fn shorten() {
    let size = size_of::<Attributes>() as u32;
    let mut attributes = Attributes::default();
    // SAFETY: both calls are about this thread and get a structure of the size that they are told.
    unsafe {
        let at = &raw mut attributes;
        let got = libc::syscall(libc::SYS_sched_getattr, 0, at, size, 0);
        if got != 0 || attributes.policy != libc::SCHED_OTHER as u32 {
            return;
        }
        attributes.size = size;
        attributes.runtime = SLICE_NS;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
    }
}
