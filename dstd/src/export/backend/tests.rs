//! Files: what may be opened, whose they are, and that their contents follow every operation.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use proptest::prelude::*;
use tempfile::TempDir;

use super::holes::{Layout, runs};
use super::identity;
use super::machine::Number;
use super::*;

pub const LIMIT: Duration = Duration::from_secs(30);

pub fn machine(sys: &Path) -> Machine {
    Machine {
        id: Some("3d1219c7c4c5404aaa1f6d2a48adfda4".to_owned()),
        boot: "boot one".to_owned(),
        sys: sys.to_owned(),
    }
}

pub fn options(path: &Path, read_only: bool, dir: &Path) -> OpenOptionsOf {
    OpenOptionsOf {
        runtime_dir: dir.join("run"),
        // A child that another test is just starting has inherited our descriptors until its exec.
        lock_wait: LIMIT,
        ..OpenOptionsOf::new(path, read_only)
    }
}

pub fn make(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("disk");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn open(dir: &TempDir, size: u64) -> Backend {
    let path = make(dir.path(), size);
    Backend::open(&options(&path, false, dir.path())).unwrap()
}

/// A disk's file system, and memory's.
fn dirs() -> Vec<TempDir> {
    ["/var/tmp", "/dev/shm"]
        .into_iter()
        .filter_map(|parent| tempfile::tempdir_in(parent).ok())
        .collect()
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().expect("an errno for the client")
}

fn refused(path: &Path, read_only: bool, dir: &TempDir) -> String {
    let mut options = options(path, read_only, dir.path());
    options.lock_wait = Duration::ZERO;
    Backend::open(&options).unwrap_err().to_string()
}

#[test]
fn what_is_no_storage_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (dir.path(), "directory"),
        (&fifo, "FIFO"),
        (&socket, "socket"),
        (Path::new("/dev/zero"), "character device"),
    ] {
        for read_only in [true, false] {
            let text = refused(path, read_only, &dir);
            assert!(text.contains(&format!("it is a {kind}")), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
        }
    }
    assert!(refused(Path::new(""), true, &dir).contains("has no path"));
    let missing = dir.path().join("missing");
    assert!(refused(&missing, false, &dir).contains("make it first"));
    assert!(!missing.exists(), "an export never creates its file");
}

#[test]
fn the_descriptor_is_closed_on_exec_and_may_wait() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(&dir, 4096);
    let flags = rustix::io::fcntl_getfd(backend.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let flags = rustix::fs::fcntl_getfl(backend.as_fd()).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let writer = Backend::open(&options(&path, false, dir.path())).unwrap();
    for read_only in [true, false] {
        let text = refused(&path, read_only, &dir);
        assert!(
            text.contains("locked by another export of this server"),
            "{text}"
        );
    }
    drop(writer);
    let first = Backend::open(&options(&path, true, dir.path())).unwrap();
    let _second = Backend::open(&options(&path, true, dir.path())).unwrap();
    drop(first);
    assert!(refused(&path, false, &dir).contains("for writing: it is locked"));
}

#[test]
fn a_dying_predecessor_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let old = Backend::open(&options(&path, false, dir.path())).unwrap();
    let (begun, begins) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            begun.send(()).unwrap();
            Backend::open(&options(&path, false, dir.path())).map(|_| ())
        });
        begins.recv().unwrap();
        drop(old);
        opening.join().unwrap().unwrap();
    });
}

#[test]
fn traits_of_files() {
    for dir in dirs() {
        let backend = open(&dir, 10_007);
        let traits = *backend.traits();
        assert_eq!((traits.size, traits.min_block), (10_007, 1));
        assert!(traits.can_trim && traits.can_zero && !traits.read_only);
        assert!(traits.pref_block.is_power_of_two() && traits.pref_block >= 4096);
        assert_eq!(
            fs::metadata(dir.path().join("disk")).unwrap().len(),
            10_007,
            "probing for holes changed the size"
        );
        drop(backend);
        let options = options(&dir.path().join("disk"), true, dir.path());
        let traits = *Backend::open(&options).unwrap().traits();
        assert!(!traits.can_trim && !traits.can_zero && traits.read_only);
    }
}

#[test]
fn nothing_is_written_read_only_or_outside() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 8192);
    let zero = |offset, length| SlowOp::Zero {
        offset,
        length,
        keep: false,
        fast: false,
    };
    let trim = |offset, length| SlowOp::Trim { offset, length };
    {
        let backend = Backend::open(&options(&path, false, dir.path())).unwrap();
        for (offset, length) in [(8192, 1), (4096, 4097), (u64::MAX, 1), (1 << 63, 1 << 63)] {
            let bytes = vec![1; length.min(8192) as usize];
            if length <= 8192 {
                let tried = backend.try_write(&bytes, offset);
                assert_eq!(errno(tried.unwrap_err()), libc::EINVAL);
                let wrote = backend.write(&bytes, offset);
                assert_eq!(errno(wrote.unwrap_err()), libc::EINVAL);
                let read = backend.read(&mut bytes.clone(), offset);
                assert_eq!(errno(read.unwrap_err()), libc::EINVAL);
            }
            for op in [zero(offset, length), trim(offset, length)] {
                assert_eq!(errno(backend.slow(op).unwrap_err()), libc::EINVAL);
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    }
    let backend = Backend::open(&options(&path, true, dir.path())).unwrap();
    assert_eq!(errno(backend.write(&[1], 0).unwrap_err()), libc::EROFS);
    assert_eq!(errno(backend.try_write(&[1], 0).unwrap_err()), libc::EROFS);
    for op in [zero(0, 1), trim(0, 1)] {
        assert_eq!(errno(backend.slow(op).unwrap_err()), libc::EROFS);
    }
    backend.slow(SlowOp::Flush).unwrap();
}

#[test]
fn a_file_that_became_shorter_is_an_error_never_zeros() {
    for dir in dirs() {
        let backend = open(&dir, 64 << 10);
        backend.write(&[7; 65536], 0).unwrap();
        File::options()
            .write(true)
            .open(dir.path().join("disk"))
            .unwrap()
            .set_len(10_000)
            .unwrap();
        let mut buf = [0; 4096];
        for offset in [8192, 32768] {
            assert_eq!(
                errno(backend.read(&mut buf, offset).unwrap_err()),
                libc::EIO
            );
            match backend.try_read(&mut buf, offset) {
                Ok(None) => {}
                Ok(Some(())) => panic!("read what isn't there"),
                Err(error) => assert_eq!(errno(error), libc::EIO),
            }
        }
        let runs = backend.block_status(0, 64 << 10, 100).unwrap();
        assert!(runs.iter().all(|run| !run.zero), "{runs:?}");
    }
}

#[test]
fn a_cached_page_is_read_and_written_inline() {
    for dir in dirs() {
        let backend = open(&dir, 1 << 20);
        backend.write(&[3; 8192], 4096).unwrap();
        let mut buf = [0; 4096];
        assert_eq!(backend.try_read(&mut buf, 4096).unwrap(), Some(()));
        assert_eq!(buf, [3; 4096]);
        assert_eq!(backend.try_write(&[4; 4096], 4096).unwrap(), Some(()));
        backend.read(&mut buf, 4096).unwrap();
        assert_eq!(buf, [4; 4096]);
    }
}

#[test]
fn trim_and_zero_make_holes_and_no_hole_keeps_the_space() {
    for dir in dirs() {
        let path = dir.path().join("disk");
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap());
        let backend = open(&dir, 1 << 20);
        let zero = |keep| SlowOp::Zero {
            offset: 0,
            length: 1 << 20,
            keep,
            fast: true,
        };
        let trim = SlowOp::Trim {
            offset: 0,
            length: 1 << 20,
        };
        for (op, empty) in [(zero(false), true), (zero(true), false), (trim, true)] {
            backend.write(&[9; 1 << 20], 0).unwrap();
            backend.slow(SlowOp::Flush).unwrap();
            assert!(blocks() >= 2048);
            backend.slow(op).unwrap();
            assert_eq!(blocks() < 64, empty, "{op:?} left {} blocks", blocks());
            assert!(fs::read(&path).unwrap() == vec![0; 1 << 20]);
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write(u8, bool),
    Zero { keep: bool, fast: bool },
    Trim,
    Read(bool),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (1u8.., any::<bool>()).prop_map(|(byte, inline)| Change::Write(byte, inline)),
        2 => any::<(bool, bool)>().prop_map(|(keep, fast)| Change::Zero { keep, fast }),
        1 => Just(Change::Trim),
        2 => any::<bool>().prop_map(Change::Read),
    ]
}

/// Ranges of a disk of `size` bytes that are multiples of `block`, often at page borders.
pub fn changes(size: usize, block: usize) -> impl Strategy<Value = Vec<(usize, usize, Act)>> {
    let place = prop_oneof![0..=size, (0..=size / 4096).prop_map(|page| page * 4096)];
    let range = (place.clone(), place).prop_map(move |(a, b)| {
        let (a, b) = (a / block * block, b / block * block);
        (a.min(b), a.max(b))
    });
    let one = (range, change()).prop_map(|((from, to), change)| (from, to, Act(change)));
    proptest::collection::vec(one, 1..40)
}

#[derive(Debug, Clone)]
pub struct Act(Change);

/// Does them on the backend and on a model; a byte of the model is unknown after a TRIM.
pub fn follow(backend: &Backend, changes: Vec<(usize, usize, Act)>) {
    let size = backend.traits().size as usize;
    let mut model = vec![None; size];
    let mut known = vec![0; size];
    backend.read(&mut known, 0).unwrap();
    for (to, from) in model.iter_mut().zip(known) {
        *to = Some(from);
    }
    for (from, to, act) in changes {
        let (offset, length) = (from as u64, (to - from) as u64);
        match act.0 {
            Change::Write(byte, inline) => {
                let bytes = vec![byte; to - from];
                if !(inline && backend.try_write(&bytes, offset).unwrap().is_some()) {
                    backend.write(&bytes, offset).unwrap();
                }
                model[from..to].fill(Some(byte));
            }
            Change::Zero { keep, fast } => {
                let op = SlowOp::Zero {
                    offset,
                    length,
                    keep,
                    fast,
                };
                match backend.slow(op) {
                    Ok(()) => model[from..to].fill(Some(0)),
                    // Then nothing may have changed.
                    Err(error) => {
                        assert!(fast);
                        assert_eq!(errno(error), libc::EOPNOTSUPP);
                    }
                }
            }
            Change::Trim => {
                backend.slow(SlowOp::Trim { offset, length }).unwrap();
                model[from..to].fill(None);
            }
            Change::Read(inline) => {
                let mut bytes = vec![0xee; to - from];
                if !(inline && backend.try_read(&mut bytes, offset).unwrap().is_some()) {
                    backend.read(&mut bytes, offset).unwrap();
                }
                same(&bytes, &model[from..to]);
            }
        }
    }
    let mut bytes = vec![0xee; size];
    backend.read(&mut bytes, 0).unwrap();
    same(&bytes, &model);
    status_is_true(backend, &bytes);
}

fn same(bytes: &[u8], model: &[Option<u8>]) {
    assert_eq!(bytes.len(), model.len());
    let differs = bytes
        .iter()
        .zip(model)
        .position(|(byte, want)| want.is_some_and(|want| want != *byte));
    if let Some(at) = differs {
        panic!("byte {at} is {}, not {:?}", bytes[at], model[at]);
    }
}

fn status_is_true(backend: &Backend, bytes: &[u8]) {
    let runs = backend
        .block_status(0, bytes.len() as u64, usize::MAX)
        .unwrap();
    let mut at = 0;
    for run in &runs {
        let end = at + run.length as usize;
        assert!(run.length > 0);
        assert_eq!(run.hole, run.zero);
        assert!(
            !run.zero || bytes[at..end].iter().all(|byte| *byte == 0),
            "{at}..{end} is called zero"
        );
        at = end;
    }
    assert_eq!(at, bytes.len(), "the runs cover the range");
    assert!(runs.windows(2).all(|two| two[0].hole != two[1].hole));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn contents_follow_every_operation(changes in changes(100_700, 1)) {
        for dir in dirs() {
            let backend = open(&dir, 100_700);
            follow(&backend, changes.clone());
            let file = dir.path().join("disk");
            prop_assert_eq!(fs::metadata(file).unwrap().len(), 100_700);
        }
    }
}

/// A file as it shows itself while others change it.
struct Fake {
    data: fn(u64) -> Option<u64>,
    hole: fn(u64) -> u64,
    size: u64,
}

impl Layout for Fake {
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((self.data)(offset))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok((self.hole)(offset))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

fn shown(runs: Vec<Run>) -> Vec<(u64, bool)> {
    runs.iter().map(|run| (run.length, run.hole)).collect()
}

#[test]
fn contradictions_count_as_data() {
    // Punched between the two questions: "data here", "hole here".
    let flips = Fake {
        data: Some,
        hole: |at| at,
        size: 1 << 20,
    };
    assert_eq!(
        shown(runs(&flips, 100, 10_000, 9).unwrap()),
        [(9900, false)]
    );
    let flips_once = Fake {
        data: |at| (at == 0).then_some(0),
        ..flips
    };
    assert_eq!(
        shown(runs(&flips_once, 0, 10_000, 9).unwrap()),
        [(4096, false), (5904, true)]
    );
    // Truncated meanwhile: what lies behind the end isn't zero.
    let short = Fake {
        data: |_| None,
        hole: |at| at,
        size: 5000,
    };
    assert_eq!(
        shown(runs(&short, 0, 9000, 9).unwrap()),
        [(5000, true), (4000, false)]
    );
}

#[test]
fn runs_are_cut_to_the_range_and_counted() {
    // Data and holes of 4096 by turns, data first.
    let stripes = Fake {
        data: |at| {
            Some(if at / 4096 % 2 == 0 {
                at
            } else {
                (at / 4096 + 1) * 4096
            })
        },
        hole: |at| {
            if at / 4096 % 2 == 0 {
                (at / 4096 + 1) * 4096
            } else {
                at
            }
        },
        size: 1 << 30,
    };
    let all = shown(runs(&stripes, 1000, 9000, 9).unwrap());
    assert_eq!(all, [(3096, false), (4096, true), (808, false)]);
    let two = shown(runs(&stripes, 1000, 9000, 2).unwrap());
    assert_eq!(two, [(3096, false), (4096, true)]);
    let one = shown(runs(&stripes, 5000, 9000, 1).unwrap());
    assert_eq!(one, [(3192, true)]);
}

#[test]
fn identity_stays_with_the_file_and_a_copy_has_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 4096);
    let of = |path: &Path| {
        let backend = Backend::open(&options(path, true, dir.path())).unwrap();
        backend.identity()
    };
    let first = of(&path);
    let moved = dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(of(&moved), first, "a new name is the same storage");
    let copy = dir.path().join("copy");
    fs::copy(&moved, &copy).unwrap();
    assert_ne!(of(&copy), first);
    // The same inode number, most likely, but another birth, as soon as the file system's clock has gone on.
    let born = |path: &Path| fs::metadata(path).unwrap().created().unwrap();
    let first_birth = born(&moved);
    fs::remove_file(&moved).unwrap();
    let again = loop {
        let again = make(dir.path(), 4096);
        if born(&again) != first_birth {
            break again;
        }
        fs::remove_file(again).unwrap();
    };
    assert_ne!(of(&again), first);
    // Many files of one birth.
    let many: HashSet<_> = (0..50)
        .map(|n| {
            let path = dir.path().join(format!("{n}"));
            File::create(&path).unwrap();
            path
        })
        .collect::<Vec<_>>()
        .iter()
        .map(|path| of(path))
        .collect();
    assert_eq!(many.len(), 50);
    let mut options = options(&again, true, dir.path());
    options.identity = Some([5; 16]);
    assert_eq!(Backend::open(&options).unwrap().identity(), [5; 16]);
}

/// A sysfs of files: path below /sys/dev/block, contents.
fn sysfs(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    // A partition's directory lies in its disk's; /sys/dev/block only links there.
    if dir.path().join("8:0/part").exists() {
        std::os::unix::fs::symlink("8:0/part", dir.path().join("8:1")).unwrap();
    }
    dir
}

fn number(major: u32, minor: u32) -> Number {
    Number { major, minor }
}

#[test]
fn devices_are_told_apart_by_what_stays() {
    let part = |wwid, start| {
        let files = [
            ("8:0/dev", "8:0"),
            ("8:0/device/wwid", wwid),
            ("8:0/part/partition", "1"),
            ("8:0/part/start", start),
        ];
        (files.to_vec(), number(8, 1))
    };
    let one = |name, text| (vec![(name, text)], number(8, 0));
    let dm = |uuid| {
        (
            vec![("8:0/dm/name", "a"), ("8:0/dm/uuid", uuid)],
            number(8, 0),
        )
    };
    let cases = [
        ("wwid", one("8:0/wwid", "eui.0123")),
        ("other wwid", one("8:0/wwid", "eui.4567")),
        ("maker's wwid", one("8:0/wwid", "t10.ATA QEMU QM00001")),
        ("serial", one("8:0/serial", "eui.0123")),
        ("partition", part("naa.5000", "2048")),
        ("partition elsewhere", part("naa.5000", "4096")),
        ("partition of another", part("naa.6000", "2048")),
        ("lvm", dm("LVM-aaaa")),
        ("dst", dm("DST-aaaa")),
        (
            "dm without uuid",
            (vec![("8:0/dm/name", "a")], number(8, 0)),
        ),
        ("md", one("8:0/md/uuid", "1:2:3:4")),
        ("nothing", one("8:0/size", "8")),
    ];
    let mut seen = HashSet::new();
    let mut by_name = HashMap::new();
    for (name, (files, device)) in cases {
        let sys = sysfs(&files);
        let here = machine(sys.path());
        let id = identity::of_device(device, &here).unwrap();
        assert!(seen.insert(id), "{name} looks like another");
        assert_eq!(identity::of_device(device, &here), Some(id), "{name}");
        let elsewhere = Machine {
            id: Some("f".repeat(32)),
            ..here
        };
        by_name.insert(name, identity::of_device(device, &elsewhere) == Some(id));
    }
    // What is unique in the world is the same disk in another machine; the rest may be another of the same name.
    for (name, same) in by_name {
        let unique = ["wwid", "other wwid", "lvm", "md"].contains(&name);
        assert_eq!(same, unique || name.starts_with("partition"), "{name}");
    }
}

#[test]
fn a_device_that_nobody_knows_needs_an_identity() {
    let sys = sysfs(&[("8:0/size", "8")]);
    let mut here = machine(sys.path());
    here.id = None;
    assert_eq!(identity::of_device(number(8, 0), &here), None);
}

#[test]
fn incarnations_differ_by_boot_and_by_failure() {
    let of = |identity, boot, failures| identity::incarnation([identity; 16], boot, failures);
    let all = [of(1, "a", 0), of(1, "b", 0), of(1, "a", 1), of(2, "a", 0)];
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4);
    assert_eq!(of(1, "a", 0), all[0]);
}

#[test]
fn faults_stall_and_fail_what_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let script = FaultScript::new();
    let backend = open(&dir, 1 << 20).with_faults(script.clone());
    assert_eq!(backend.ring_fd(), None);
    assert_eq!(backend.try_write(&[1; 4096], 0).unwrap(), None);
    assert_eq!(backend.try_read(&mut [0; 4096], 0).unwrap(), None);

    script.fail(FaultKind::Write, 4096..8192, libc::ENOSPC, 1);
    backend.write(&[1; 4096], 0).unwrap();
    let failed = backend.write(&[1; 4096], 8191 - 4095).unwrap_err();
    assert_eq!(errno(failed), libc::ENOSPC);
    backend.write(&[1; 4096], 4096).unwrap();

    let hold = script.hold(FaultKind::Write, 0..512);
    let mut byte = [0];
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| backend.write(&[2; 512], 0));
        assert!(hold.wait_reached(1, LIMIT), "the write never came");
        backend.write(&[3; 512], 512).unwrap();
        backend.read(&mut byte, 0).unwrap();
        assert_eq!(byte, [1], "a stalled write has touched the storage");
        hold.release();
        stalled.join().unwrap().unwrap();
    });
    backend.read(&mut byte, 0).unwrap();
    assert_eq!(byte, [2]);
}
