//! What can go wrong in a talk with the kernel over netlink, in words for people.
//!
//! Owns `NetlinkError`. Made by the client and the event listener; `kernel::real` turns it
//! into a `KernelError`. The kernel's own words (extack) are always part of the text.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum NetlinkError {
    #[error("dm-dst module isn't loaded: modprobe dm-dst")]
    FamilyAbsent,
    #[error("needs CAP_SYS_ADMIN in the initial user namespace: run it as root")]
    NotPermitted,
    #[error("the module speaks version {found} of its netlink family, dstd version {known}")]
    Version { found: u32, known: u32 },
    /// `text` is the kernel's extack message, or errno's own where there is none.
    #[error("{text}")]
    Refused { errno: Errno, text: String },
    #[error("the kernel hasn't answered within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the kernel's answer can't be understood: {0}")]
    BadAnswer(String),
    #[error("{0} is too long for a netlink message")]
    TooLong(&'static str),
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
}

impl NetlinkError {
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::FamilyAbsent => Some(Errno::ENOENT),
            NetlinkError::NotPermitted => Some(Errno::EPERM),
            NetlinkError::Refused { errno, .. } => Some(*errno),
            NetlinkError::Timeout(_) => Some(Errno::ETIMEDOUT),
            NetlinkError::Socket(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}
