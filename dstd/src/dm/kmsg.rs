//! The kernel log's words about a device, for refusals that have no text of their own.
//!
//! Owns reading /dev/kmsg from a moment on. Called by `Dm` around table loads and resumes.
//! Best effort: where the log can't be read there are no words. Never waits.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use crate::units::DeviceNumber;

/// More than the longest record of the kernel.
const RECORD_MAX: usize = 8192;
/// Records read after a refusal; a flooded log isn't searched for ever.
const RECORDS_MAX: usize = 1000;

#[derive(Debug)]
pub struct Log {
    file: Option<File>,
}

impl Log {
    pub fn from_now() -> Log {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let at_end = |mut file: File| file.seek(SeekFrom::End(0)).map(|_| file);
        Log {
            file: opened.and_then(at_end).ok(),
        }
    }

    /// What device-mapper has said of `device` since.
    pub fn words_about(self, device: DeviceNumber) -> Vec<String> {
        let Some(mut file) = self.file else {
            return Vec::new();
        };
        let mut words = Vec::new();
        let mut record = vec![0; RECORD_MAX];
        for _ in 0..RECORDS_MAX {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(n) => words.extend(words_of(&record[..n], device)),
                // Records were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        words.dedup();
        words
    }
}

/// The part of a record that a person needs: "dst: node alpha: ...".
fn words_of(record: &[u8], device: DeviceNumber) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (_, message) = text.split_once(';')?;
    let message = message.lines().next()?;
    let (_, said) = message.split_once("device-mapper: ")?;
    let (_, about) = said.split_once(&format!("{device}: "))?;
    Some(about.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceNumber = DeviceNumber {
        major: 254,
        minor: 3,
    };

    #[test]
    fn only_the_words_about_the_device_are_taken() {
        let cases = [
            (
                "3,1045,98765,-;device-mapper: table: 254:3: dst: extents of node a overlap (-EINVAL)\n SUBSYSTEM=x\n",
                Some("dst: extents of node a overlap (-EINVAL)"),
            ),
            (
                "3,1,2,-;device-mapper: table: 254:4: dst: other device\n",
                None,
            ),
            ("3,1,2,-;sd 254:3: no device-mapper\n", None),
            ("no record", None),
        ];
        for (record, expected) in cases {
            assert_eq!(words_of(record.as_bytes(), DEVICE).as_deref(), expected);
        }
    }

    #[test]
    fn a_log_that_has_nothing_to_say_is_no_obstacle() {
        assert!(Log::from_now().words_about(DEVICE).is_empty());
        assert!(Log { file: None }.words_about(DEVICE).is_empty());
    }
}
