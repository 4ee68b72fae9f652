//! A limit for the wait for udev, which has none in libdevmapper's protocol.
//!
//! Owns the rescue: after the limit, the semaphores that this process waits on are removed,
//! and the wait returns with an error. Called by `Dm` around resume and remove. One of the
//! modules with unsafe code (System V semaphores); never touches another process's.

#![allow(unsafe_code)]

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::libc;

/// Longer than udev needs for a slow device, shorter than a person waits.
pub const UDEV_LIMIT: Duration = Duration::from_secs(30);

const TABLE: &str = "/proc/sysvipc/sem";
/// The upper half of every udev cookie of device-mapper.
const COOKIE_MAGIC: u32 = 0x0D4D;
/// Not in libc for every platform; from the kernel's `linux/sem.h`.
const GETPID: libc::c_int = 11;

/// Runs `operation`; from the limit on, a wait for udev in it is ended.
pub fn limited<T>(operation: impl FnOnce() -> T) -> T {
    limited_by(UDEV_LIMIT, operation)
}

fn limited_by<T>(limit: Duration, operation: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        scope.spawn(move || {
            while wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let ended = end_waits();
                tracing::warn!(ended, "udev doesn't answer; its cookies are given up");
            }
        });
        let result = operation();
        drop(done);
        result
    })
}

/// Removes the cookies that this process was the last to touch: it waits for udev on them.
fn end_waits() -> usize {
    let table = fs::read_to_string(TABLE).unwrap_or_default();
    let ours = cookies(&table).filter(|id| last_to_touch(*id) == Some(std::process::id()));
    ours.filter(|id| remove(*id)).count()
}

/// Ids of the semaphores in the kernel's table whose keys are udev cookies.
fn cookies(table: &str) -> impl Iterator<Item = i32> {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let key = words.next()?.parse::<i32>().ok()?;
        let id = words.next()?.parse::<i32>().ok()?;
        ((key as u32) >> 16 == COOKIE_MAGIC).then_some(id)
    })
}

fn last_to_touch(id: i32) -> Option<u32> {
    // SAFETY: GETPID takes no fourth argument and writes no memory; a stale id is an error.
    let pid = unsafe { libc::semctl(id, 0, GETPID) };
    u32::try_from(pid).ok()
}

fn remove(id: i32) -> bool {
    // SAFETY: IPC_RMID takes no fourth argument and writes no memory; a stale id is an error.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) == 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A cookie as libdevmapper makes one, waiting for a udev that never answers.
    fn make_cookie(key: u32) -> i32 {
        // SAFETY: plain numbers, no memory involved.
        let id = unsafe { libc::semget(key as i32, 1, 0o600 | libc::IPC_CREAT) };
        assert!(id >= 0, "no System V semaphores here");
        change(id, 1);
        id
    }

    /// -1: gone meanwhile.
    fn change(id: i32, by: i16) -> i32 {
        let mut operation = libc::sembuf {
            sem_num: 0,
            sem_op: by,
            sem_flg: 0,
        };
        // SAFETY: one operation, owned by this frame, as the count says.
        unsafe { libc::semop(id, &mut operation, 1) }
    }

    #[test]
    fn a_wait_for_a_dead_udev_ends() {
        let key = COOKIE_MAGIC << 16 | (std::process::id() & 0xffff);
        let id = make_cookie(key);
        let begin = Instant::now();
        let waited = limited_by(Duration::from_millis(50), || change(id, 0));
        assert_eq!(waited, -1, "the semaphore is removed under the wait");
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert_eq!(change(id, 1), -1);
    }

    #[test]
    fn other_semaphores_are_left_alone() {
        let table = "       key      semid perms\n223150081          7   600\n -5 8 600\n junk\n";
        assert_eq!(223_150_081u32 >> 16, COOKIE_MAGIC);
        assert_eq!(cookies(table).collect::<Vec<_>>(), [7]);
        assert_eq!(cookies("").count(), 0);
    }

    #[test]
    fn what_needs_no_udev_is_not_delayed() {
        assert_eq!(limited_by(Duration::from_secs(60), || 5), 5);
    }
}
