//! Whose turn it is to write into a file.
//!
//! A file system lets one writer at a time into a file (the kernel's inode lock), and lets others spin or sleep at
//! each write. So workers take turns, many writes long. Devices have no such lock. Called by workers through
//! `Backend::turn`. Never needed for correctness; never held while a link waits for its client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::lock_api::ArcMutexGuard;
use parking_lot::{FairMutex, RawFairMutex};

/// Others' turns are shorter unless they wait for the disk: then the ring writes, and this worker goes on.
const PATIENCE: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Turns(Option<Arc<FairMutex<()>>>);

/// Held; ends when dropped, and the longest waiting has it then.
pub struct WriteTurn {
    _held: Option<ArcMutexGuard<RawFairMutex, ()>>,
}

impl fmt::Debug for WriteTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTurn").finish_non_exhaustive()
    }
}

impl Turns {
    pub fn of_file() -> Turns {
        Turns(Some(Arc::default()))
    }

    pub fn of_device() -> Turns {
        Turns(None)
    }

    /// `None`: not now.
    pub fn take(&self) -> Option<WriteTurn> {
        let Some(turns) = &self.0 else {
            return Some(WriteTurn { _held: None });
        };
        let turn = FairMutex::try_lock_arc_for(turns, PATIENCE)?;
        Some(WriteTurn { _held: Some(turn) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_writer_at_a_time_and_a_device_many() {
        let file = Turns::of_file();
        let first = file.take();
        assert!(first.is_some());
        assert!(file.take().is_none());
        drop(first);
        assert!(file.take().is_some());
        let device = Turns::of_device();
        let first = device.take();
        assert!(first.is_some() && device.take().is_some());
    }
}
