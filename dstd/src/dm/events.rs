//! What device-mapper tells on its own: that some device came, went, was renamed or got another live table.
//!
//! Owns the wait on device-mapper's control file, which is readable while the kernel's count of events differs from the one
//! that was armed last. A count can't overflow as a queue of messages does, so no event is ever lost; which device it was
//! isn't told, so the listener looks at all. uevents can be missed, and tell of each close of a writer, too, through udev.
//! The kernel counts no suspend, no plain resume, no load or clear of an inactive table and no end of a deferred removal:
//! those are found by the daemon's regular look. Called by `kernel::real`. One of the modules with unsafe code (tokio's
//! registration of a file).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use devicemapper::DM;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::explain;
use crate::kernel::KernelError;

/// Subscribes; must be called within a tokio runtime.
pub fn listen() -> Result<mpsc::Receiver<()>, KernelError> {
    let what = "listen to device-mapper's events";
    let failed = |e: io::Error| KernelError::new(what, None, e.to_string());
    let dm = DM::new().map_err(|e| explain(what, &e))?;
    dm.arm_poll().map_err(|e| explain(what, &e))?;
    let file = dm.file().try_clone().map_err(failed)?;
    let rearm = move || dm.arm_poll().map(drop).map_err(io::Error::other);
    follow(file.into(), rearm).map_err(failed)
}

/// Tells each time that the file is readable; `rearm` makes it wait for the next event. Events that come while one waits to
/// be heard are the same reason to look. The channel ends where nothing more can come.
fn follow(
    file: OwnedFd,
    rearm: impl Fn() -> io::Result<()> + Send + 'static,
) -> io::Result<mpsc::Receiver<()>> {
    // SAFETY: an OwnedFd is open, and the same file, for as long as it lives, and the AsyncFd owns it.
    let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let mut ready = tokio::select! {
                () = sender.closed() => return,
                ready = file.readable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return,
                },
            };
            // Armed before it is told: what comes during the listener's look is told again.
            if let Err(error) = rearm() {
                tracing::debug!(%error, "no more events of device-mapper");
                return;
            }
            ready.clear_ready();
            if let Err(TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use nix::sys::eventfd::{EfdFlags, EventFd};
    use tokio::sync::mpsc::error::TryRecvError;
    use tokio::task::yield_now;

    use super::*;

    /// Readable from a write to the next read, as the control file is from an event to the next arming.
    fn count() -> (Arc<EventFd>, OwnedFd) {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let events = Arc::new(EventFd::from_value_and_flags(0, flags).unwrap());
        let file = events.as_fd().try_clone_to_owned().unwrap();
        (events, file)
    }

    /// What is told of it.
    fn told_of(events: &Arc<EventFd>, file: OwnedFd) -> mpsc::Receiver<()> {
        let events = Arc::clone(events);
        let rearm = move || events.read().map(drop).map_err(io::Error::from);
        follow(file, rearm).unwrap()
    }

    #[tokio::test]
    async fn a_burst_is_told_once() {
        let (events, file) = count();
        let mut told = told_of(&events, file);
        for _ in 0..5 {
            events.write(1).unwrap();
        }
        told.recv().await.unwrap();
        for _ in 0..10 {
            yield_now().await;
        }
        assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
        assert!(events.read().is_err(), "it is armed");
    }

    #[tokio::test]
    async fn what_comes_during_a_look_is_told_after_it() {
        let (events, file) = count();
        let mut told = told_of(&events, file);
        events.write(1).unwrap();
        told.recv().await.unwrap();
        // The listener looks now.
        events.write(1).unwrap();
        told.recv().await.unwrap();
    }

    #[tokio::test]
    async fn it_ends_where_it_cannot_be_armed() {
        let (events, file) = count();
        let mut told = follow(file, || Err(io::Error::other("gone"))).unwrap();
        events.write(1).unwrap();
        assert_eq!(told.recv().await, None);
    }
}
