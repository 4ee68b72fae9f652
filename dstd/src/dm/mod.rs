//! Device-mapper through its ioctls: devices, tables, suspend, resume, remove.
//!
//! Owns `Dm`, an adaptor over the crate devicemapper that checks what the crate would panic
//! on, adds the kernel log's words to a refusal, and never waits for udev without end.
//! Called by `kernel::real`, on threads that may block. Never decides what to do.

mod cookie;
mod devnode;
pub mod events;
mod kmsg;

use std::fs::File;
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devicemapper::errors::Error as CoreError;
use devicemapper::{
    DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid as LibraryUuid,
};
use nix::errno::Errno;

use crate::kernel::{Access, DmUuid, Flush, KernelError, ObservedDevice};
use crate::table::Line;
use crate::units::{DeviceName, DeviceNumber, Sectors};

const CONTROL: &str = "/dev/mapper/control";
/// `DM_MAX_TYPE_NAME` without the NUL.
const TARGET_MAX: usize = 15;
/// A device that was just made is opened by udev for a moment.
const BUSY_LIMIT: Duration = Duration::from_millis(500);
const BUSY_STEP: Duration = Duration::from_millis(20);

type RawLine = (u64, u64, String, String);

pub struct Dm {
    dm: DM,
}

impl std::fmt::Debug for Dm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dm").finish_non_exhaustive()
    }
}

impl Dm {
    pub fn open() -> Result<Self, KernelError> {
        let what = "open device-mapper";
        File::open(CONTROL).map_err(|error| {
            let reason = match error.kind() {
                ErrorKind::NotFound => {
                    format!("{CONTROL} isn't there: modprobe dm-mod")
                }
                ErrorKind::PermissionDenied => {
                    format!("{CONTROL}: permission denied; run it as root")
                }
                _ => format!("{CONTROL}: {error}"),
            };
            KernelError::new(what, error.raw_os_error().map(Errno::from_raw), reason)
        })?;
        let dm = DM::new().map_err(|e| explain(what, &e))?;
        dm.version().map_err(|e| explain(what, &e))?;
        Ok(Dm { dm })
    }

    /// Every device, with the tables of ours. Those of others may hold keys, and asking for them can block: a thin pool
    /// on a device of ours doesn't answer while our node is dead.
    pub fn devices(&self) -> Result<Vec<ObservedDevice>, KernelError> {
        let what = "list the devices";
        let mut devices = Vec::new();
        for (name, _, _) in self.dm.list_devices().map_err(|e| explain(what, &e))? {
            match self.observe(&DevId::Name(&name)) {
                Ok(device) => devices.push(device),
                // It went meanwhile.
                Err(error) if errno(&error) == Some(Errno::ENXIO) => {}
                Err(error) => {
                    let what = format!("look at device {}", name.as_ref() as &DmName);
                    return Err(explain(&what, &error));
                }
            }
        }
        Ok(devices)
    }

    fn observe(&self, id: &DevId<'_>) -> Result<ObservedDevice, DmError> {
        let info = self.dm.device_info(id)?;
        let flags = info.flags();
        let uuid = DmUuid(info.uuid().map(ToString::to_string).unwrap_or_default());
        let (mut lines, mut inactive) = (Vec::new(), None);
        if uuid.is_ours() {
            lines = self.table(id, DmFlags::empty())?;
            if flags.contains(DmFlags::DM_INACTIVE_PRESENT) {
                inactive = Some(self.table(id, DmFlags::DM_QUERY_INACTIVE_TABLE)?);
            }
        }
        Ok(ObservedDevice {
            name: info.name().map(ToString::to_string).unwrap_or_default(),
            uuid,
            number: number(&info),
            suspended: flags.contains(DmFlags::DM_SUSPEND),
            access: match flags.contains(DmFlags::DM_READONLY) {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            },
            open_count: u32::try_from(info.open_count()).unwrap_or(0),
            lines,
            inactive,
        })
    }

    /// The live table of any device, if it holds a `dst` line. May block for as long as a target of others does.
    pub fn dst_table(&self, device: &str) -> Result<Vec<Line>, KernelError> {
        let what = format!("look at the table of {device}");
        let fail = |e: DmError| explain(&what, &e);
        let id = DevId::Name(DmName::new(device).map_err(fail)?);
        if !self.has_dst(&id).map_err(fail)? {
            return Ok(Vec::new());
        }
        self.table(&id, DmFlags::empty()).map_err(fail)
    }

    /// The live or the inactive table, never with a flush of the device.
    fn table(&self, id: &DevId<'_>, which: DmFlags) -> Result<Vec<Line>, DmError> {
        let flags = DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH | which;
        let options = DmOptions::default().set_flags(flags);
        let (_, lines) = self.dm.table_status(id, options)?;
        Ok(lines.into_iter().map(line).collect())
    }

    fn has_dst(&self, id: &DevId<'_>) -> Result<bool, DmError> {
        let options = DmOptions::default().set_flags(DmFlags::DM_NOFLUSH);
        let (_, lines) = self.dm.table_status(id, options)?;
        Ok(lines.iter().any(|(_, _, target, _)| target == "dst"))
    }

    /// Makes an empty device, suspended.
    pub fn create(
        &self,
        device: &DeviceName,
        uuid: &DmUuid,
        access: Access,
    ) -> Result<(), KernelError> {
        let what = format!("create device {device}");
        let fail = |e: DmError| explain(&what, &e);
        let uuid = LibraryUuid::new(&uuid.0).map_err(fail)?;
        let created = self
            .dm
            .device_create(name(device)?, Some(uuid), options(access));
        match created {
            Err(error) if errno(&error) == Some(Errno::EBUSY) => {
                let reason = "a device of this name or UUID exists already; see `dmsetup info`";
                Err(KernelError::new(what, Some(Errno::EBUSY), reason))
            }
            other => other.map(drop).map_err(fail),
        }
    }

    /// Puts a table into the inactive slot.
    pub fn load(
        &self,
        device: &DeviceName,
        lines: &[Line],
        access: Access,
    ) -> Result<(), KernelError> {
        let what = format!("load the table of {device}");
        let raw = raw_lines(&what, lines)?;
        let id = DevId::Name(name(device)?);
        let info = self.dm.device_info(&id).map_err(|e| explain(&what, &e))?;
        let log = kmsg::Log::from_now();
        let loaded = self.dm.table_load(&id, &raw, options(access));
        loaded.map(drop).map_err(|error| {
            let words = log.words_about(number(&info));
            refused_table(&what, &error, &words)
        })
    }

    /// Empties the inactive slot.
    pub fn clear(&self, device: &DeviceName) -> Result<(), KernelError> {
        let cleared = self.dm.table_clear(&DevId::Name(name(device)?));
        let what = format!("clear the inactive table of {device}");
        cleared.map(drop).map_err(|e| explain(&what, &e))
    }

    pub fn suspend(&self, device: &DeviceName, flush: Flush) -> Result<(), KernelError> {
        let flags = match flush {
            Flush::Wait => DmFlags::DM_SUSPEND,
            Flush::NoFlush => DmFlags::DM_SUSPEND | DmFlags::DM_NOFLUSH,
        };
        let options = DmOptions::default().set_flags(flags);
        let suspended = self.dm.device_suspend(&DevId::Name(name(device)?), options);
        let what = format!("suspend {device}");
        suspended.map(drop).map_err(|e| explain(&what, &e))
    }

    /// Swaps an inactive table in and lets I/O go on. `/dev/mapper/NAME` is there afterwards.
    pub fn resume(&self, device: &DeviceName) -> Result<(), KernelError> {
        let what = format!("resume {device}");
        let id = DevId::Name(name(device)?);
        let before = self.dm.device_info(&id).map_err(|e| explain(&what, &e))?;
        let log = kmsg::Log::from_now();
        let resumed = self.with_udev(
            &what,
            || self.dm.device_suspend(&id, resuming()),
            || self.is_resumed(&id),
        );
        resumed.map_err(|error| {
            let words = log.words_about(number(&before));
            refused_table(&what, &error, &words)
        })?;
        devnode::ensure(device, number(&before).minor).map_err(|e| {
            KernelError::new(what, e.raw_os_error().map(Errno::from_raw), e.to_string())
        })
    }

    fn is_resumed(&self, id: &DevId<'_>) -> bool {
        let pending = DmFlags::DM_SUSPEND | DmFlags::DM_INACTIVE_PRESENT;
        self.dm
            .device_info(id)
            .is_ok_and(|info| !info.flags().intersects(pending))
    }

    pub fn remove(&self, device: &DeviceName) -> Result<(), KernelError> {
        let what = format!("remove {device}");
        let id = DevId::Name(name(device)?);
        let fail = |e: DmError| explain(&what, &e);
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            let opened = self.dm.device_info(&id).map_err(fail)?.open_count();
            if opened <= 0 {
                break;
            }
            if Instant::now() >= deadline {
                let reason = format!(
                    "it is in use (opened {opened} times): unmount it, deactivate what lies on it; \
                     `lsblk /dev/mapper/{device}` shows what that is"
                );
                return Err(KernelError::new(what, Some(Errno::EBUSY), reason));
            }
            sleep(BUSY_STEP);
        }
        self.with_udev(
            &what,
            || self.dm.device_remove(&id, DmOptions::default()),
            || {
                self.dm
                    .device_info(&id)
                    .is_err_and(|e| errno(&e) == Some(Errno::ENXIO))
            },
        )
        .map_err(fail)?;
        devnode::forget(device);
        Ok(())
    }

    /// Gives a device another name; `/dev/mapper/TO` is there afterwards.
    pub fn rename(&self, device: &DeviceName, to: &DeviceName) -> Result<(), KernelError> {
        let what = format!("rename {device} to {to}");
        let (old, id) = (name(device)?, DevId::Name(name(to)?));
        let renamed = self.with_udev(
            &what,
            || self.dm.device_rename(old, &id),
            || self.dm.device_info(&id).is_ok(),
        );
        renamed.map_err(|error| match errno(&error) {
            Some(Errno::EBUSY) => {
                let reason = format!("a device {to} is there already");
                KernelError::new(what.clone(), Some(Errno::EBUSY), reason)
            }
            _ => explain(&what, &error),
        })?;
        devnode::forget(device);
        let info = self.dm.device_info(&id).map_err(|e| explain(&what, &e))?;
        devnode::ensure(to, number(&info).minor).map_err(|e| {
            KernelError::new(what, e.raw_os_error().map(Errno::from_raw), e.to_string())
        })
    }

    /// Runs an operation whose end udev announces. The wait for that has a limit, and its
    /// failure is no failure of an operation that is `done`: taking that back would do harm.
    fn with_udev<T>(
        &self,
        what: &str,
        operation: impl FnOnce() -> Result<T, DmError>,
        done: impl FnOnce() -> bool,
    ) -> Result<(), DmError> {
        match cookie::limited(operation) {
            Err(DmError::Core(CoreError::UdevSync(error))) if done() => {
                tracing::warn!(
                    error,
                    "{what}: done, but udev hasn't finished with it within {} s, so its link in \
                     /dev/mapper may be late; is systemd-udevd stuck?",
                    cookie::UDEV_LIMIT.as_secs()
                );
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

fn name(device: &DeviceName) -> Result<&DmName, KernelError> {
    DmName::new(device.as_str()).map_err(|e| explain(&format!("name device {device}"), &e))
}

fn options(access: Access) -> DmOptions {
    let flags = match access {
        Access::ReadOnly => DmFlags::DM_READONLY,
        Access::ReadWrite => DmFlags::empty(),
    };
    DmOptions::default().set_flags(flags)
}

/// A resume with a new table suspends by itself what isn't suspended (any more: others act, too). Never with a flush, which
/// would wait for nodes.
fn resuming() -> DmOptions {
    DmOptions::default().set_flags(DmFlags::DM_NOFLUSH)
}

fn number(info: &DeviceInfo) -> DeviceNumber {
    let device = info.device();
    DeviceNumber {
        major: device.major,
        minor: device.minor,
    }
}

fn line((start, length, target, args): RawLine) -> Line {
    Line {
        start: Sectors(start),
        length: Sectors(length),
        target,
        args: args.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// What the crate takes; it panics on a target name that is too long.
fn raw_lines(what: &str, lines: &[Line]) -> Result<Vec<RawLine>, KernelError> {
    let bad = |reason: String| Err(KernelError::new(what, Some(Errno::EINVAL), reason));
    let mut raw = Vec::with_capacity(lines.len());
    for line in lines {
        if line.target.len() > TARGET_MAX {
            return bad(format!(
                "target `{}` is longer than {TARGET_MAX} bytes; there is none of such a name",
                line.target
            ));
        }
        if line.target.contains('\0') || line.args.contains('\0') {
            return bad(format!("the line at sector {} has a NUL in it", line.start));
        }
        let (target, args) = (line.target.clone(), line.args.clone());
        raw.push((line.start.0, line.length.0, target, args));
    }
    Ok(raw)
}

fn errno(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(CoreError::Ioctl(_, _, _, errno)) => Some(**errno),
        _ => None,
    }
}

/// dm itself only says EINVAL and the like; the kernel log says why.
fn refused_table(what: &str, error: &DmError, words: &[String]) -> KernelError {
    let mut refused = explain(what, error);
    if errno(error).is_some() {
        refused.reason = match words {
            [] => format!("{}; the kernel log may say why (dmesg)", refused.reason),
            _ => format!("the kernel refused it: {}", words.join("; ")),
        };
    }
    refused
}

fn explain(what: &str, error: &DmError) -> KernelError {
    let errno = errno(error);
    let reason = match (errno, error) {
        (Some(Errno::ENXIO), _) => "there is no such device".to_owned(),
        (Some(Errno::EPERM | Errno::EACCES), _) => "needs CAP_SYS_ADMIN: run it as root".to_owned(),
        (Some(errno), _) => format!("the kernel refused it ({})", errno.desc()),
        (None, other) => other.to_string(),
    };
    KernelError::new(what, errno, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ioctl(errno: Errno) -> DmError {
        DmError::Core(CoreError::Ioctl(9, None, None, Box::new(errno)))
    }

    fn a_line(target: &str, args: &str) -> Line {
        Line {
            start: Sectors(0),
            length: Sectors(8),
            target: target.to_owned(),
            args: args.to_owned(),
        }
    }

    #[test]
    fn targets_that_would_panic_the_library_are_refused() {
        let error = raw_lines("load", &[a_line("sixteen-byte-xxx", "")]).unwrap_err();
        assert!(
            error.to_string().contains("longer than 15 bytes"),
            "{error}"
        );
        let error = raw_lines("load", &[a_line("dst", "a\0b")]).unwrap_err();
        assert!(error.to_string().contains("NUL"), "{error}");
        let raw = raw_lines("load", &[a_line("dst", "1 a 0 8 0")]).unwrap();
        assert_eq!(raw, [(0, 8, "dst".to_owned(), "1 a 0 8 0".to_owned())]);
    }

    #[test]
    fn lines_come_with_single_spaces() {
        let found = line((0, 8, "linear".into(), " 8:0  16 ".into()));
        assert_eq!(found, a_line("linear", "8:0 16"));
    }

    #[test]
    fn refusals_say_what_why_and_what_to_do() {
        let cases = [
            (ioctl(Errno::ENXIO), "load x: there is no such device"),
            (
                ioctl(Errno::EPERM),
                "load x: needs CAP_SYS_ADMIN: run it as root",
            ),
            (
                ioctl(Errno::EINVAL),
                "load x: the kernel refused it (Invalid argument)",
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(explain("load x", &error).to_string(), expected);
        }
        let words = ["dst: extents of node a overlap".to_owned()];
        let error = refused_table("load x", &ioctl(Errno::EINVAL), &words);
        assert!(
            error
                .to_string()
                .ends_with(": dst: extents of node a overlap"),
            "{error}"
        );
        assert!(error.is(Errno::EINVAL));
        let error = refused_table("load x", &ioctl(Errno::EINVAL), &[]);
        assert!(error.to_string().ends_with("(dmesg)"), "{error}");
    }

    #[test]
    fn without_device_mapper_the_refusal_says_so() {
        match Dm::open() {
            Ok(_) => println!("not shown: device-mapper is here"),
            Err(error) => assert!(error.to_string().contains(CONTROL), "{error}"),
        }
    }
}
