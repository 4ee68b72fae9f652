//! What lets the daemon go on when memory is short, as the disk that would be swapped to may be one of its own.
//! Called by run. What can't be had is a warning that says what to grant: a daemon without it is better than none.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use tracing::warn;

use super::flusher;
use crate::nbd::lookup::load_resolver;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// Killed after almost everything else; not -1000, as nothing should be beyond reach.
const OOM_WANTED: i32 = -900;

pub fn protect() {
    load_resolver();
    if let Err(error) = lock_memory() {
        warn!(
            "memory isn't locked ({error}): grant LimitMEMLOCK=infinity or CAP_IPC_LOCK; until then the daemon may wait \
             for a page that lies on a disk of its own"
        );
    }
    if let Err(error) = flusher::set() {
        warn!(
            "PR_SET_IO_FLUSHER isn't set ({error}): grant CAP_SYS_RESOURCE; until then the daemon's own allocations may \
             wait for writes to its own disks"
        );
    }
    if let Err(error) = spare(Path::new(OOM_SCORE)) {
        warn!(
            "{OOM_SCORE} isn't {OOM_WANTED} ({error}): grant CAP_SYS_RESOURCE, or OOMScoreAdjust={OOM_WANTED} in the unit; \
             until then the daemon may be killed when memory is short, and links stay broken"
        );
    }
}

/// All that is there now, code too; what comes later as it is touched: whole stacks of threads would be wasted.
fn lock_memory() -> Result<(), Errno> {
    mlockall(MlockAllFlags::MCL_CURRENT)?;
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_FUTURE | on_fault)
}

/// A lower score, by the unit or by hand, stays.
fn spare(score: &Path) -> io::Result<()> {
    let now = fs::read_to_string(score)?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= OOM_WANTED) {
        return Ok(());
    }
    fs::write(score, format!("{OOM_WANTED}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_lowered_and_never_raised() {
        let dir = tempfile::tempdir().unwrap();
        let score = dir.path().join("score");
        for (before, after) in [
            ("0\n", "-900\n"),
            ("-500\n", "-900\n"),
            ("-1000\n", "-1000\n"),
        ] {
            fs::write(&score, before).unwrap();
            spare(&score).unwrap();
            assert_eq!(fs::read_to_string(&score).unwrap(), after);
        }
        assert!(spare(&dir.path().join("absent")).is_err());
    }
}
