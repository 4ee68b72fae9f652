//! Opening the storage of an export: what it is, who else uses it, what it can do.
//!
//! Owns the checks before the first byte is served, and their words. Called by `Backend::open`; may wait up to
//! `lock_wait` for a dying predecessor. Never creates, truncates or changes a file, and never opens a thing that it
//! hasn't looked at: a path is resolved once (O_PATH), everything else is asked of that descriptor.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use thiserror::Error;

use super::flush::{FlushMemory, Record};
use super::machine::{Machine, Number};
use super::{Traits, identity, sys};

/// How an export is opened; [`OpenOptionsOf::new`] gives what is usual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptionsOf {
    pub path: PathBuf,
    pub read_only: bool,
    /// What the operator says it is, instead of what is found out.
    pub identity: Option<[u8; 16]>,
    /// Where failed flushes are counted; must live as long as the boot does and be the same for each server.
    pub runtime_dir: PathBuf,
    /// How long another holder of the storage is waited for: a killed server's last requests may still run.
    pub lock_wait: Duration,
}

impl OpenOptionsOf {
    pub const RUNTIME_DIR: &str = "/run/dstd/export";

    pub fn new(path: impl Into<PathBuf>, read_only: bool) -> OpenOptionsOf {
        OpenOptionsOf {
            path: path.into(),
            read_only,
            identity: None,
            runtime_dir: OpenOptionsOf::RUNTIME_DIR.into(),
            lock_wait: Duration::from_secs(3),
        }
    }
}

#[derive(Debug, Error)]
pub enum OpenError {
    #[error("an export has no path: name the file or block device that it serves")]
    NoPath,
    #[error("can't {what} {}: {error}{}", .path.display(), hint(.error))]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error(
        "can't export {}: it is a {kind}; name a regular file or a block device", .path.display()
    )]
    WrongKind { path: PathBuf, kind: &'static str },
    #[error(
        "can't export {} {}: it is locked by {holder}. A file that is exported for writing has one server only, one \
         that is exported read-only may have several of those; stop the other, or export a copy", .path.display(),
         mode(*.read_only)
    )]
    Locked {
        path: PathBuf,
        read_only: bool,
        holder: String,
    },
    #[error(
        "can't export {} for writing: it, its disk or one of its partitions is mounted or held by {holder}; unmount \
         or release it (lsblk and findmnt show what uses it), or export it read-only", .path.display()
    )]
    Held { path: PathBuf, holder: String },
    #[error("can't export {} for writing: the device is read-only; export it read-only", .path.display())]
    ReadOnlyDevice { path: PathBuf },
    #[error(
        "can't tell {} from other storage: the kernel has no serial number for it and this machine has no \
         /etc/machine-id; give the export an identity (a UUID)", .path.display()
    )]
    NoIdentity { path: PathBuf },
    #[error("can't read /proc/sys/kernel/random/boot_id: {error}; is /proc mounted?")]
    NoBootId { error: io::Error },
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> io::Error {
        let kind = match &error {
            OpenError::NoPath | OpenError::WrongKind { .. } | OpenError::NoIdentity { .. } => {
                io::ErrorKind::InvalidInput
            }
            OpenError::Io { error, .. } | OpenError::NoBootId { error } => error.kind(),
            OpenError::Locked { .. } | OpenError::Held { .. } => io::ErrorKind::ResourceBusy,
            OpenError::ReadOnlyDevice { .. } => io::ErrorKind::ReadOnlyFilesystem,
        };
        io::Error::new(kind, error)
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "; an export never creates its file: make it first (truncate -s SIZE PATH)"
        }
        Some(libc::EROFS) => "; its file system is read-only: export it read-only",
        Some(libc::EACCES | libc::EPERM) => {
            "; the server's user needs access to it: see its owner and mode (for a device: group `disk`)"
        }
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => {
            "; without locks two servers could write one file: serve it where its file system is local"
        }
        _ => "",
    }
}

fn mode(read_only: bool) -> &'static str {
    match read_only {
        true => "read-only",
        false => "for writing",
    }
}

/// What the rest of the backend needs.
#[derive(Debug)]
pub(super) struct Opened {
    pub file: File,
    pub device: Option<Number>,
    pub memory: bool,
    pub traits: Traits,
    pub identity: [u8; 16],
    pub incarnation: [u8; 16],
    pub flush: FlushMemory,
}

pub(super) fn open(options: &OpenOptionsOf, machine: &Machine) -> Result<Opened, OpenError> {
    let path = options.path.as_path();
    if path.as_os_str().is_empty() {
        return Err(OpenError::NoPath);
    }
    let io = |what| {
        move |error: io::Error| OpenError::Io {
            what,
            path: path.to_owned(),
            error,
        }
    };
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map_err(io("find"))?;
    let found = handle.metadata().map_err(io("look at"))?;
    let device = kind(path, &found)?.then(|| Number::of(found.rdev()));
    if let Some(number) = device
        && !options.read_only
        && machine.attribute(number, "ro").as_deref() == Some("1")
    {
        let path = path.to_owned();
        return Err(OpenError::ReadOnlyDevice { path });
    }
    let file = claim(options, machine, &handle, &found)?;
    let memory = in_memory(&file).map_err(io("ask the file system of"))?;
    let traits =
        traits(&file, device, &found, options.read_only, machine).map_err(io("measure"))?;
    let identity = match (options.identity, device) {
        (Some(identity), _) => identity,
        (None, None) => identity::of_file(&file, machine).map_err(io("look at"))?,
        (None, Some(number)) => {
            identity::of_device(number, machine).ok_or_else(|| OpenError::NoIdentity {
                path: path.to_owned(),
            })?
        }
    };
    let mut record = Record::open(
        &options.runtime_dir,
        identity,
        &machine.boot,
        !options.read_only,
    );
    let witness = match options.read_only || memory {
        true => None,
        false => Some(witness(path, &handle, &file, &mut record).map_err(io("open"))?),
    };
    Ok(Opened {
        device,
        memory,
        traits,
        identity,
        incarnation: identity::incarnation(identity, &machine.boot, record.failures()),
        flush: FlushMemory::new(witness, record),
        file,
    })
}

/// The second descriptor (see [`FlushMemory`]). Counts a failure from before this opening that nobody was told of:
/// each descriptor hears of it, so both are asked.
fn witness(path: &Path, handle: &File, file: &File, record: &mut Record) -> io::Result<File> {
    let second = again(handle, true, 0)?;
    let told = [file, &second].map(sys::write_back_error);
    if told.iter().any(|told| told.is_err()) {
        tracing::warn!(
            "{}: a write-back failed before this server started; clients are told of a new incarnation",
            path.display()
        );
        record.count();
    }
    Ok(second)
}

/// True: a block device. False: a regular file.
fn kind(path: &Path, found: &fs::Metadata) -> Result<bool, OpenError> {
    let of = found.file_type();
    let kind = if of.is_file() {
        return Ok(false);
    } else if of.is_block_device() {
        return Ok(true);
    } else if of.is_dir() {
        "directory"
    } else if of.is_fifo() {
        "FIFO"
    } else if of.is_char_device() {
        "character device"
    } else if of.is_socket() {
        "socket"
    } else {
        "thing of unknown kind"
    };
    Err(OpenError::WrongKind {
        path: path.to_owned(),
        kind,
    })
}

/// Opens what `handle` stands for. No O_NONBLOCK, which io_uring would take for "never wait"; none is needed, the kind
/// is known. O_CLOEXEC comes from `std`.
fn again(handle: &File, read_only: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Opens the storage and locks others out. A predecessor that was killed holds it until its last request has ended,
/// and udev locks a disk for moments: both are waited for.
fn claim(
    options: &OpenOptionsOf,
    machine: &Machine,
    handle: &File,
    found: &fs::Metadata,
) -> Result<File, OpenError> {
    const EVERY: Duration = Duration::from_millis(20);
    let device = found.file_type().is_block_device();
    let path = || options.path.clone();
    // For a block device O_EXCL means: nobody has it mounted or holds it.
    let (exclusive, lock) = match options.read_only {
        true => (0, FlockOperation::NonBlockingLockShared),
        false if device => (libc::O_EXCL, FlockOperation::NonBlockingLockExclusive),
        false => (0, FlockOperation::NonBlockingLockExclusive),
    };
    let deadline = Instant::now() + options.lock_wait;
    loop {
        let refused = match again(handle, options.read_only, exclusive) {
            Ok(file) => match flock(&file, lock) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) => OpenError::Locked {
                    path: path(),
                    read_only: options.read_only,
                    holder: lock_holders(found),
                },
                Err(error) => {
                    return Err(OpenError::Io {
                        what: "lock",
                        path: path(),
                        error: error.into(),
                    });
                }
            },
            Err(error) if device && error.raw_os_error() == Some(libc::EBUSY) => OpenError::Held {
                path: path(),
                holder: device_holders(machine, found),
            },
            Err(error) => {
                return Err(OpenError::Io {
                    what: "open",
                    path: path(),
                    error,
                });
            }
        };
        if Instant::now() >= deadline {
            return Err(refused);
        }
        std::thread::sleep(EVERY);
    }
}

fn device_holders(machine: &Machine, found: &fs::Metadata) -> String {
    match machine.holders(Number::of(found.rdev())) {
        names if names.is_empty() => "another program".to_owned(),
        names => names.join(", "),
    }
}

/// Who has the file flocked, as far as /proc tells.
fn lock_holders(found: &fs::Metadata) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut names: Vec<String> = lock_pids(&locks, found.dev(), found.ino())
        .into_iter()
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            match name.trim() {
                "" => format!("process {pid}"),
                _ if pid == std::process::id() => "another export of this server".to_owned(),
                name => format!("{name} (process {pid})"),
            }
        })
        .collect();
    names.dedup();
    match names.is_empty() {
        true => "another process (another `dstd export`, or udev looking at a disk)".to_owned(),
        false => names.join(" and "),
    }
}

/// From lines like `4: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`.
fn lock_pids(locks: &str, device: u64, inode: u64) -> Vec<u32> {
    let Number { major, minor } = Number::of(device);
    let which = format!("{major:02x}:{minor:02x}:{inode}");
    locks
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ours = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&which.as_str());
            ours.then(|| words.get(4)?.parse().ok()).flatten()
        })
        .collect()
}

/// Whether the file lies in a file system of memory only.
fn in_memory(file: &File) -> io::Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    const HUGETLBFS: i64 = 0x9584_58f6;
    let system = rustix::fs::fstatfs(file)?;
    let device = file.metadata()?.file_type().is_block_device();
    Ok(!device && [TMPFS, RAMFS, HUGETLBFS].contains(&system.f_type))
}

fn traits(
    file: &File,
    device: Option<Number>,
    found: &fs::Metadata,
    read_only: bool,
    machine: &Machine,
) -> io::Result<Traits> {
    const MAX_PAYLOAD: u32 = 32 << 20;
    let disk = device.unwrap_or(Number::of(found.dev()));
    let queue = |name| machine.queue(disk, name);
    let (size, min_block, preferred, can_trim) = match device {
        Some(_) => {
            let physical = queue("physical_block_size").unwrap_or_default();
            let optimal = queue("optimal_io_size").unwrap_or_default();
            (
                sys::device_size(file)?,
                rustix::fs::ioctl_blksszget(file)?,
                physical.max(optimal),
                queue("discard_max_bytes").unwrap_or_default() > 0,
            )
        }
        None => (
            found.len(),
            1,
            found.blksize(),
            can_punch(file, found.len()),
        ),
    };
    Ok(Traits {
        size,
        read_only,
        rotational: queue("rotational") == Some(1),
        can_trim: can_trim && !read_only,
        can_zero: !read_only,
        min_block,
        pref_block: preferred_block(preferred, min_block, MAX_PAYLOAD),
        max_payload: MAX_PAYLOAD,
    })
}

/// A power of two, as NBD wants it: what the storage prefers, at least a page.
fn preferred_block(wish: u64, min_block: u32, max_payload: u32) -> u32 {
    let wish = u32::try_from(wish)
        .unwrap_or(max_payload)
        .clamp(min_block.max(4096), max_payload);
    1 << wish.ilog2()
}

/// Asks for a hole behind the end, where none can change anything.
fn can_punch(file: &File, size: u64) -> bool {
    const PAGE: u64 = 4096;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = size.next_multiple_of(PAGE);
    fallocate(file, flags, behind, PAGE).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_s_holder_is_found_by_device_and_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 99 fe:00:5678 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 77 fe:01:5678 0 EOF\n\
                     3: -> FLOCK  ADVISORY  READ 78 fe:00:5678 0 EOF\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(lock_pids(locks, device, 5678), [1234]);
    }

    #[test]
    fn preferred_blocks_are_powers_of_two() {
        let prefer = |wish, min| preferred_block(wish, min, 32 << 20);
        assert_eq!(prefer(0, 512), 4096);
        assert_eq!(prefer(0, 16384), 16384);
        assert_eq!(prefer(1536 << 10, 512), 1 << 20);
        assert_eq!(prefer(1 << 40, 1), 32 << 20);
    }
}
