//! Block devices, as loop devices over memory: needs root and /dev/loop, else each test says so and passes.
//! A sealed memfd makes a disk whose writes fail.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use tempfile::TempDir;

use super::tests::{changes, follow, options};
use super::*;

const SIZE: usize = 1 << 20;

struct Loop {
    memory: File,
    path: PathBuf,
    dir: TempDir,
}

impl Loop {
    fn new() -> Option<Loop> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory: File = rustix::fs::memfd_create("disk", flags).unwrap().into();
        memory.set_len(SIZE as u64).unwrap();
        let file = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let made = Command::new("losetup")
            .args(["-f", "--show", &file])
            .output();
        let made = made.ok().filter(|made| made.status.success());
        let Some(made) = made else {
            let _ = writeln!(io::stderr(), "SKIPPED: no loop device can be made here");
            return None;
        };
        Some(Loop {
            memory,
            path: String::from_utf8(made.stdout).unwrap().trim().into(),
            dir: tempfile::tempdir().unwrap(),
        })
    }

    fn open(&self) -> Backend {
        self.try_open(false).unwrap()
    }

    fn try_open(&self, read_only: bool) -> io::Result<Backend> {
        Backend::open(&options(&self.path, read_only, self.dir.path()))
    }

    /// From here on, writes that reach the disk fail.
    fn break_writes(&self) {
        rustix::fs::fcntl_add_seals(&self.memory, SealFlags::WRITE).unwrap();
    }

    /// Writes dirty pages back as the kernel does by itself: whoever has the disk open isn't told.
    fn write_back(&self) {
        let done = Command::new("blockdev")
            .arg("--flushbufs")
            .arg(&self.path)
            .status();
        done.unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The flag stays with the number, not with the disk.
        let _ = Command::new("blockdev")
            .arg("--setrw")
            .arg(&self.path)
            .status();
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn traits_of_a_disk() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    let traits = *backend.traits();
    assert_eq!((traits.size, traits.min_block), (SIZE as u64, 512));
    assert!(traits.can_trim && traits.can_zero && !traits.rotational);
    let runs = backend.block_status(512, 8192, 5).unwrap();
    let expected = Run {
        length: 8192,
        hole: false,
        zero: false,
    };
    assert_eq!(runs, [expected]);
}

#[test]
fn a_held_disk_is_not_written() {
    let Some(disk) = Loop::new() else { return };
    let holder = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(&disk.path)
        .unwrap();
    let mut options = options(&disk.path, false, disk.dir.path());
    options.lock_wait = Duration::ZERO;
    let text = Backend::open(&options).unwrap_err().to_string();
    assert!(text.contains("is mounted or held by"), "{text}");
    drop(disk.try_open(true).unwrap());
    drop(holder);
    drop(disk.open());
}

#[test]
fn a_disk_that_is_read_only_says_so() {
    let Some(disk) = Loop::new() else { return };
    let set = Command::new("blockdev")
        .arg("--setro")
        .arg(&disk.path)
        .status();
    assert!(set.unwrap().success());
    let text = disk.try_open(false).unwrap_err().to_string();
    assert!(text.contains("the device is read-only"), "{text}");
    assert!(disk.try_open(true).unwrap().traits().read_only);
}

/// What "fsyncgate" is about: the second fdatasync of the disk says that all is well.
#[test]
fn a_real_write_back_failure_is_remembered() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    let before = backend.incarnation();
    backend.write(&[1; 4096], 0).unwrap();
    disk.break_writes();
    assert_eq!(errno(backend.slow(SlowOp::Flush)), libc::EIO);
    backend.file.sync_data().expect("the kernel has forgotten");
    assert_eq!(errno(backend.slow(SlowOp::Flush)), libc::EIO);
    drop(backend);
    let next = disk.open();
    assert_ne!(next.incarnation(), before);
    next.slow(SlowOp::Flush).unwrap();
}

/// Of two flushes at once on the one descriptor, the kernel tells one of the failure.
#[test]
fn a_flush_whose_error_another_one_got_fails_too() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    backend.write(&[1; 4096], 0).unwrap();
    disk.break_writes();
    let other = backend.file.sync_data();
    assert_eq!(errno(other), libc::EIO);
    let ours = backend.file.sync_data();
    assert_eq!(errno(backend.flush_done(ours)), libc::EIO);
}

#[test]
fn a_failure_after_the_last_flush_is_counted_when_the_server_ends() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    let before = backend.incarnation();
    backend.write(&[1; 4096], 0).unwrap();
    disk.break_writes();
    // Somebody else hears of it first, so that the next opening wouldn't.
    let other = File::options().write(true).open(&disk.path).unwrap();
    assert_eq!(errno(other.sync_data()), libc::EIO);
    drop(backend);
    assert_ne!(disk.open().incarnation(), before);
}

#[test]
fn a_failure_that_nobody_was_told_of_is_found_when_opening() {
    let Some(disk) = Loop::new() else { return };
    let before = disk.open().incarnation();
    let killed = File::options().write(true).open(&disk.path).unwrap();
    killed.write_all_at(&[1; 4096], 0).unwrap();
    disk.break_writes();
    disk.write_back();
    drop(killed);
    let next = disk.open();
    assert_ne!(next.incarnation(), before);
    next.slow(SlowOp::Flush).unwrap();
    let after = next.incarnation();
    drop(next);
    assert_eq!(disk.open().incarnation(), after, "counted once");
}

/// The kernel drops cached pages before it asks the device to zero them; a device that then refuses must not have cost
/// what a client had written.
#[test]
fn a_refused_fast_zero_loses_nothing() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    let zero = |keep, fast| SlowOp::Zero {
        offset: 0,
        length: 8192,
        keep,
        fast,
    };
    // This disk makes holes, but its memory can't zero in place; the kernel takes that refusal for both.
    backend.slow(zero(false, true)).unwrap();
    backend.slow(zero(true, false)).unwrap();
    backend.write(&[5; 8192], 0).unwrap();
    let stale = disk.dir.path().join("write_zeroes_max_bytes");
    std::fs::write(&stale, "4096\n").unwrap();
    let settled = std::cell::Cell::new(None);
    let zeroer = Zeroer::new(
        Some(Disk {
            block: 512,
            discard_granularity: 4096,
            discard_alignment: 0,
            zeroes: Some(stale),
        }),
        false,
    );
    let refused = zeroer.zero(&backend.file, (0, 8192), (false, true), |offset, length| {
        settled.set(Some((offset, length)));
        sys::write_back(&backend.file, offset, length)
    });
    assert_eq!(errno(refused), libc::EOPNOTSUPP);
    assert_eq!(settled.get(), Some((0, 8192)));
    let mut bytes = [0; 8192];
    backend.read(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [5; 8192], "a refusal has changed something");
    for keep in [false, true] {
        assert_eq!(errno(backend.slow(zero(keep, true))), libc::EOPNOTSUPP);
    }
    backend.read(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [5; 8192]);
    backend.slow(zero(false, false)).unwrap();
    backend.read(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 8192]);
}

#[test]
fn a_trim_reaches_the_disk_in_whole_units() {
    let Some(disk) = Loop::new() else { return };
    let backend = disk.open();
    backend.write(&[6; SIZE], 0).unwrap();
    backend.slow(SlowOp::Flush).unwrap();
    let full = disk.memory.metadata().unwrap().blocks();
    let trim = SlowOp::Trim {
        offset: 512,
        length: SIZE as u64 - 1024,
    };
    backend.slow(trim).unwrap();
    let left = disk.memory.metadata().unwrap().blocks();
    assert!(left <= full / 64, "{left} of {full} blocks are left");
    let mut bytes = vec![0; SIZE];
    backend.read(&mut bytes, 0).unwrap();
    assert_eq!(bytes[..512], [6; 512]);
    assert_eq!(bytes[SIZE - 512..], [6; 512]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_s_contents_follow_every_operation(changes in changes(SIZE, 512)) {
        let Some(disk) = Loop::new() else { return Ok(()) };
        let backend = disk.open();
        follow(&backend, changes);
        let mut cached = vec![0; SIZE];
        backend.read(&mut cached, 0).unwrap();
        backend.slow(SlowOp::Flush).unwrap();
        let mut durable = vec![0; SIZE];
        disk.memory.read_exact_at(&mut durable, 0).unwrap();
        prop_assert!(cached == durable, "what was flushed isn't what was read");
    }
}
