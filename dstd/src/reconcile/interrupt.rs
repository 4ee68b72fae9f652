//! The wish of an operator that an apply ends early.
//! Asked by cli when a signal comes, looked at by the executor before each step. Never ends anything itself: what was begun
//! has to be taken back, or a device's I/O would pause until the next apply.

use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub struct Interrupt {
    asked: AtomicBool,
    /// Steps are being carried out.
    busy: AtomicBool,
}

/// What becomes of the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No device is half-changed: whoever asks may drop the work.
    AtOnce,
    /// When the step under way has ended, and what isn't complete was taken back.
    Soon,
    /// It was asked before.
    Again,
}

impl Interrupt {
    pub fn ask(&self) -> Asked {
        if self.asked.swap(true, Ordering::SeqCst) {
            return Asked::Again;
        }
        match self.busy.load(Ordering::SeqCst) {
            true => Asked::Soon,
            false => Asked::AtOnce,
        }
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Steps are being carried out as long as the answer lives.
    pub fn busy(&self) -> Busy<'_> {
        self.busy.store(true, Ordering::SeqCst);
        Busy(self)
    }
}

#[derive(Debug)]
pub struct Busy<'a>(&'a Interrupt);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::SeqCst);
    }
}
