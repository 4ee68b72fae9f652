//! Sockets that systemd opened before it started this process (socket activation).
//!
//! Owns taking them over, once. Called by `listen` at the start. Believes only descriptors that listen.
#![allow(unsafe_code)] // descriptors arrive as bare numbers: that is how LISTEN_FDS tells of them

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{getsockopt, sockopt};

/// Each was taken once: a second owner would close it under the first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Every passed socket, in systemd's order; none where this process wasn't started so.
pub fn sockets() -> io::Result<Vec<OwnedFd>> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names(false)?;
    let sockets = passed.map(|(fd, name)| {
        // SAFETY: LISTEN_PID names this process, so systemd passed this descriptor to it and nobody else has it;
        // `TAKEN` sees to it that it gets one owner only.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        match getsockopt(&fd, sockopt::AcceptConn) {
            Ok(true) => Ok(fd),
            _ => Err(io::Error::other(format!(
                "systemd passed `{name}`, which is no listening stream socket: use ListenStream= and Accept=no"
            ))),
        }
    });
    sockets.collect()
}
