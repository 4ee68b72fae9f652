//! `/dev/mapper/NAME` where no udev makes it.
//!
//! Owns that one symbolic link. Called by `Dm` after resume, rename and remove. Never touches a
//! device node or a link that points elsewhere; does nothing where udev runs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::units::DeviceName;

const UDEV: &str = "/run/udev/control";
const MAPPER: &str = "/dev/mapper";

pub fn ensure(device: &DeviceName, minor: u32) -> io::Result<()> {
    if Path::new(UDEV).exists() {
        return Ok(());
    }
    ensure_in(Path::new(MAPPER), device, minor)
}

pub fn forget(device: &DeviceName) {
    if !Path::new(UDEV).exists() {
        forget_in(Path::new(MAPPER), device);
    }
}

fn ensure_in(mapper: &Path, device: &DeviceName, minor: u32) -> io::Result<()> {
    let target = PathBuf::from(format!("../dm-{minor}"));
    let link = mapper.join(device.as_str());
    match fs::read_link(&link) {
        Ok(found) if found == target => return Ok(()),
        // Left over from a device of this name that had another number.
        Ok(found) if found.starts_with("..") => fs::remove_file(&link)?,
        // Something of another tool's making.
        _ if link.symlink_metadata().is_ok() => return Ok(()),
        _ => {}
    }
    symlink(target, link)
}

fn forget_in(mapper: &Path, device: &DeviceName) {
    let link = mapper.join(device.as_str());
    if fs::read_link(&link).is_ok_and(|target| target.starts_with("..")) {
        let _ = fs::remove_file(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_comes_follows_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let device: DeviceName = "archive".parse().unwrap();
        let link = dir.path().join("archive");
        for minor in [3, 3, 7] {
            ensure_in(dir.path(), &device, minor).unwrap();
            let target = fs::read_link(&link).unwrap();
            assert_eq!(target, Path::new(&format!("../dm-{minor}")));
        }
        forget_in(dir.path(), &device);
        assert!(fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn what_others_made_stays() {
        let dir = tempfile::tempdir().unwrap();
        let device: DeviceName = "archive".parse().unwrap();
        let link = dir.path().join("archive");
        fs::write(&link, b"node").unwrap();
        ensure_in(dir.path(), &device, 3).unwrap();
        forget_in(dir.path(), &device);
        assert_eq!(fs::read(&link).unwrap(), b"node");
    }
}
