//! Which system call of a traced program is meant. Called by trace at each entry; reads the program's memory and
//! files, never changes them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::str::FromStr;

use nix::libc;
use nix::unistd::Pid;

const DM_IOCTL: u64 = 0xfd;
/// nlmsg_type of the generic netlink controller; families come after it.
const GENL_ID_CTRL: u16 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A device-mapper ioctl by its number.
    Dm(u64),
    Netlink,
    Io,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "dm:create" => Call::Dm(3),
            "dm:remove" => Call::Dm(4),
            "dm:suspend" => Call::Dm(6),
            "dm:load" => Call::Dm(9),
            "dm:status" => Call::Dm(12),
            "dm:message" => Call::Dm(14),
            "netlink" => Call::Netlink,
            "io" => Call::Io,
            _ => return Err("no such call".to_owned()),
        })
    }
}

impl Call {
    /// Whether the call that the thread is about to make is one of these.
    pub fn is(self, thread: Pid, registers: &libc::user_regs_struct) -> bool {
        let number = i64::try_from(registers.orig_rax).unwrap_or(-1);
        match self {
            Call::Dm(command) => {
                number == libc::SYS_ioctl
                    && (registers.rsi >> 8) & 0xff == DM_IOCTL
                    && registers.rsi & 0xff == command
            }
            Call::Netlink => {
                number == libc::SYS_sendto
                    && is_request(thread, registers.rsi, registers.rdx) == Some(true)
            }
            Call::Io => {
                let io = [
                    libc::SYS_read,
                    libc::SYS_write,
                    libc::SYS_pread64,
                    libc::SYS_pwrite64,
                    libc::SYS_fsync,
                    libc::SYS_fdatasync,
                ];
                io.contains(&number) && is_block_device(thread, registers.rdi)
            }
        }
    }
}

/// What is sent is one netlink message, and not the controller's.
fn is_request(thread: Pid, address: u64, length: u64) -> Option<bool> {
    let memory = File::open(format!("/proc/{thread}/mem")).ok()?;
    let mut head = [0; 6];
    memory.read_exact_at(&mut head, address).ok()?;
    let [a, b, c, d, e, f] = head;
    let kind = u16::from_ne_bytes([e, f]);
    Some(u64::from(u32::from_ne_bytes([a, b, c, d])) == length && kind > GENL_ID_CTRL)
}

fn is_block_device(thread: Pid, fd: u64) -> bool {
    fs::metadata(format!("/proc/{thread}/fd/{fd}"))
        .is_ok_and(|meta| meta.file_type().is_block_device())
}
