//! A failed flush is never forgotten: not by this opening, not by the next.

use std::fs;
use std::path::Path;

use nix::libc;

use super::flush::Record;
use super::tests::{make, options};
use super::*;

fn open(path: &Path, dir: &Path) -> Backend {
    Backend::open(&options(path, false, dir)).unwrap()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_failed_flush_stays_failed_and_the_next_opening_is_another_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let first = open(&path, dir.path());
    let (identity, incarnation) = (first.identity(), first.incarnation());
    drop(first);
    let script = FaultScript::new();
    let second = open(&path, dir.path()).with_faults(script.clone());
    assert_eq!(second.incarnation(), incarnation, "a restart loses nothing");
    script.fail(FaultKind::Flush, 0..1, libc::ENOSPC, 1);
    second.slow(SlowOp::Flush).expect_err("the disk is full");
    // By now a server that is started after a kill -9 must know.
    let run = dir.path().join("run");
    let record = fs::read_dir(&run).unwrap().next().unwrap().unwrap().path();
    assert!(fs::read_to_string(&record).unwrap().ends_with(" 1\n"));
    for _ in 0..3 {
        assert_eq!(errno(second.slow(SlowOp::Flush)), libc::ENOSPC);
        assert_eq!(errno(second.flush_state()), libc::ENOSPC);
        assert_eq!(errno(second.flush_done(Ok(()))), libc::ENOSPC);
    }
    assert_eq!(second.incarnation(), incarnation);
    assert!(fs::read_to_string(&record).unwrap().ends_with(" 1\n"));
    drop(second);
    let third = open(&path, dir.path());
    assert_eq!(third.identity(), identity);
    assert_ne!(third.incarnation(), incarnation);
    third.slow(SlowOp::Flush).unwrap();
}

#[test]
fn a_failure_on_the_ring_counts_and_a_cancelled_one_doesnt() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let backend = open(&path, dir.path());
    let before = backend.incarnation();
    let cancelled = io::Error::from_raw_os_error(libc::ECANCELED);
    assert_eq!(errno(backend.flush_done(Err(cancelled))), libc::ECANCELED);
    backend.flush_state().unwrap();
    backend.slow(SlowOp::Flush).unwrap();
    let failed = io::Error::from_raw_os_error(libc::EIO);
    assert_eq!(errno(backend.flush_done(Err(failed))), libc::EIO);
    assert_eq!(errno(backend.slow(SlowOp::Flush)), libc::EIO);
    drop(backend);
    assert_ne!(open(&path, dir.path()).incarnation(), before);
}

#[test]
fn failures_of_another_boot_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut record = Record::open(dir.path(), [1; 16], "boot one", true);
    record.count();
    record.count();
    let failures = |boot| Record::open(dir.path(), [1; 16], boot, false).failures();
    assert_eq!(failures("boot one"), 2);
    assert_eq!(failures("boot two"), 0);
    let other = Record::open(dir.path(), [2; 16], "boot one", false);
    assert_eq!(other.failures(), 0, "another storage's failures");
}

#[test]
fn a_record_that_cant_be_kept_makes_each_opening_an_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let mut options = options(&path, false, dir.path());
    let file = dir.path().join("in the way of the directory");
    fs::write(&file, "").unwrap();
    for nowhere in [&file, Path::new("/proc/dst/run")] {
        options.runtime_dir = nowhere.to_owned();
        let first = Backend::open(&options).unwrap().incarnation();
        assert_ne!(Backend::open(&options).unwrap().incarnation(), first);
    }
}

#[test]
fn a_record_that_cant_be_read_repeats_no_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let first = open(&path, dir.path()).incarnation();
    let run = dir.path().join("run");
    let record = fs::read_dir(&run).unwrap().next().unwrap().unwrap().path();
    fs::write(record, "boot").unwrap();
    let second = open(&path, dir.path()).incarnation();
    assert_ne!(second, first);
    assert_eq!(
        open(&path, dir.path()).incarnation(),
        second,
        "it is kept again"
    );
}
