//! A limit for the wait for udev, which has none in libdevmapper's protocol.
//!
//! Owns the rescue: semaphores that this process has waited on for longer than the limit are removed,
//! and the wait returns with an error. Called by `Dm` around resume, rename and remove, of several devices at
//! once: one that hangs must not hold up the others, nor its rescue cut theirs short. One of the
//! modules with unsafe code (System V semaphores); never touches another process's.

#![allow(unsafe_code)]

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;

/// Longer than udev needs for a slow device, shorter than a person waits.
pub const UDEV_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked again after the limit.
const AGAIN: Duration = Duration::from_secs(1);

const TABLE: &str = "/proc/sysvipc/sem";
/// Its column with the time at which a semaphore was made and set.
const CTIME: usize = 9;
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
            let mut pause = limit;
            while wait.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let ended = end_waits(limit);
                if ended > 0 {
                    tracing::warn!(ended, "udev doesn't answer; its cookies are given up");
                }
                // The operation may have come to its wait late, or hang before it.
                pause = limit.min(AGAIN);
            }
        });
        let result = operation();
        drop(done);
        result
    })
}

/// Removes the cookies older than the limit that this process was the last to touch: it waits for udev on them.
fn end_waits(limit: Duration) -> usize {
    let table = fs::read_to_string(TABLE).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let made_by = now.unwrap_or_default().saturating_sub(limit).as_secs();
    let ours = cookies(&table, made_by).filter(|id| last_to_touch(*id) == Some(std::process::id()));
    ours.filter(|id| remove(*id)).count()
}

/// Ids of the semaphores in the kernel's table whose keys are udev cookies, and that were made by then (seconds of the epoch).
fn cookies(table: &str, made_by: u64) -> impl Iterator<Item = i32> {
    table.lines().skip(1).filter_map(move |line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let key = words.first()?.parse::<i32>().ok()?;
        let id = words.get(1)?.parse::<i32>().ok()?;
        let made = words.get(CTIME)?.parse::<u64>().ok()?;
        ((key as u32) >> 16 == COOKIE_MAGIC && made <= made_by).then_some(id)
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
        let table = "  key semid perms nsems uid gid cuid cgid otime ctime\n\
                     223150081 7 600 1 0 0 0 0 0 1000\n223150082 9 600 1 0 0 0 0 0 1001\n\
                     -5 8 600 1 0 0 0 0 0 1000\n junk\n";
        assert_eq!(223_150_081u32 >> 16, COOKIE_MAGIC);
        let made_by = |then| cookies(table, then).collect::<Vec<_>>();
        assert_eq!(made_by(999), [0; 0]);
        assert_eq!(made_by(1000), [7], "another wait has just begun");
        assert_eq!(made_by(1001), [7, 9]);
        assert_eq!(cookies("", 1000).count(), 0);
    }

    #[test]
    fn what_needs_no_udev_is_not_delayed() {
        assert_eq!(limited_by(Duration::from_secs(60), || 5), 5);
    }
}
