//! What tells one storage from another, and one life of its contents from the next.
//!
//! Owns how identity and incarnation are derived (UUID version 5 under a namespace of ours). Called by open.
//! An identity stays over restarts and reboots. Serial numbers that only their makers vouch for are taken together
//! with the machine's id: virtual disks of two machines often have the same. Never asks the storage's contents:
//! a copy would have the same identity.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Statx, StatxFlags};
use uuid::Uuid;

use super::machine::{Machine, Number};

const NAMESPACE: Uuid = Uuid::from_u128(0x731c7d0f_8557_44a2_9b34_bb8b6ae4022e);

/// XFS makes its file system id of the device's number, which another boot may give to another disk.
const XFS: i64 = 0x5846_5342;

/// What an identity is made of: words, joined so that no two lists look the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words(Vec<u8>);

impl Words {
    fn new(kind: &str) -> Words {
        Words(Vec::new()).and(kind)
    }

    fn and(mut self, word: impl AsRef<[u8]>) -> Words {
        let word = word.as_ref();
        self.0.extend((word.len() as u64).to_be_bytes());
        self.0.extend(word);
        self
    }

    fn machine(self, machine: &Machine) -> Words {
        self.and(machine.id.as_deref().unwrap_or_default())
    }

    fn id(&self) -> [u8; 16] {
        Uuid::new_v5(&NAMESPACE, &self.0).into_bytes()
    }
}

/// Of a regular file: the machine, the file system, the inode and when it was made. So a copy is another storage,
/// as is a file that is deleted and made again; a renamed one is the same.
pub fn of_file(file: &File, machine: &Machine) -> io::Result<[u8; 16]> {
    Ok(file_words(file, machine)?.id())
}

fn file_words(file: &File, machine: &Machine) -> io::Result<Words> {
    let want = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, want)?;
    let system = rustix::fs::fstatfs(file)?;
    let device = Number {
        major: stat.stx_dev_major,
        minor: stat.stx_dev_minor,
    };
    let disk = match system.f_type == XFS {
        true => disk_words(machine, device),
        false => None,
    };
    let disk = match disk {
        Some(words) => words.0,
        None => rustix::fs::fstatvfs(file)?.f_fsid.to_be_bytes().to_vec(),
    };
    Ok(Words::new("file")
        .machine(machine)
        .and(disk)
        .and(stat.stx_ino.to_be_bytes())
        .and(birth(&stat)))
}

fn birth(stat: &Statx) -> Vec<u8> {
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    if !known {
        return Vec::new();
    }
    let mut birth = stat.stx_btime.tv_sec.to_be_bytes().to_vec();
    birth.extend(stat.stx_btime.tv_nsec.to_be_bytes());
    birth
}

/// Of a block device: what sysfs knows of it, else its number on this machine. `None`: neither, so the operator must
/// say what it is.
pub fn of_device(number: Number, machine: &Machine) -> Option<[u8; 16]> {
    let words = disk_words(machine, number).or_else(|| {
        machine.id.as_ref()?;
        Some(
            Words::new("number")
                .machine(machine)
                .and(number.major.to_be_bytes())
                .and(number.minor.to_be_bytes()),
        )
    });
    Some(words?.id())
}

/// What stays with the disk when its number changes.
fn disk_words(machine: &Machine, number: Number) -> Option<Words> {
    let ask = |name: &str| machine.attribute(number, name);
    if let Some(start) = ask("partition").and_then(|_| ask("start")) {
        return partition_words(machine, number, &start);
    }
    if ask("dm/name").is_some() {
        return dm_words(machine, number);
    }
    if let Some(uuid) = ask("md/uuid") {
        return Some(Words::new("md").and(uuid));
    }
    if ask("loop/backing_file").is_some() {
        return loop_words(machine, number);
    }
    if let Some(wwid) = ask("wwid").or_else(|| ask("device/wwid")) {
        let vouched = ["eui.", "naa.", "uuid."];
        let words = Words::new("wwid").and(&wwid);
        return Some(match vouched.iter().any(|kind| wwid.starts_with(kind)) {
            true => words,
            false => words.machine(machine),
        });
    }
    // `device/serial` of an NVMe namespace is its controller's, but those have a wwid.
    let serial = ask("serial").or_else(|| ask("device/cid"));
    let serial = serial.or_else(|| ask("device/serial"))?;
    Some(Words::new("serial").and(serial).machine(machine))
}

/// The disk's identity and where the partition begins: both stay when partitions are numbered anew. The partition
/// table's own UUID comes second, because only newer kernels tell it, and an update must not change an identity.
fn partition_words(machine: &Machine, number: Number, start: &str) -> Option<Words> {
    let parent = machine.attribute(number, "../dev");
    let parent = parent.as_deref().and_then(parse_number);
    if let Some(disk) = parent.and_then(|parent| disk_words(machine, parent)) {
        return Some(Words::new("partition").and(disk.0).and(start));
    }
    let uevent = machine.attribute(number, "uevent")?;
    let uuid = uevent
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="))?;
    Some(Words::new("partuuid").machine(machine).and(uuid))
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some(Number {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// LVM's, LUKS's and multipath's UUIDs are unique; others' (DST's own too) are made of names.
fn dm_words(machine: &Machine, number: Number) -> Option<Words> {
    let unique = ["LVM-", "CRYPT-LUKS", "mpath-"];
    match machine.attribute(number, "dm/uuid") {
        Some(uuid) if unique.iter().any(|kind| uuid.starts_with(kind)) => {
            Some(Words::new("dm").and(uuid))
        }
        Some(uuid) => Some(Words::new("dm").and(uuid).machine(machine)),
        None => {
            let name = machine.attribute(number, "dm/name")?;
            Some(Words::new("dm name").and(name).machine(machine))
        }
    }
}

/// A loop device is the file behind it, from an offset.
fn loop_words(machine: &Machine, number: Number) -> Option<Words> {
    let path = machine.attribute(number, "loop/backing_file")?;
    let offset = machine.attribute(number, "loop/offset");
    let file = match looked_at(Path::new(&path)) {
        Ok(file) => file_words(&file, machine).ok()?,
        // Deleted, or of another mount namespace.
        Err(_) => Words::new("path").machine(machine).and(&path),
    };
    let offset = offset.unwrap_or_default();
    Some(Words::new("loop").and(file.0).and(offset))
}

/// A descriptor that reads and locks nothing.
fn looked_at(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = nix::libc::O_PATH;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
}

/// Changes with each boot and with each failed flush (`failures` of them since), because both can have lost what
/// clients were not yet promised.
pub fn incarnation(identity: [u8; 16], boot: &str, failures: u64) -> [u8; 16] {
    Words::new("incarnation")
        .and(identity)
        .and(boot)
        .and(failures.to_be_bytes())
        .id()
}
