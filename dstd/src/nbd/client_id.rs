//! Who this machine is to a node server: sixteen bytes that stay the same over reboots.
//!
//! Owns where they come from. Called by the connector. Reads two small files; never writes one, never asks the network.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use thiserror::Error;
use tracing::warn;
use uuid::Uuid;

use crate::units::Id;

/// An operator's own choice: a UUID.
const OVERRIDE: &str = "/etc/dst/client-id";
const MACHINE_ID: &str = "/etc/machine-id";
/// The machine's id is meant to stay on the machine, so what servers see is a hash of it, in a namespace of its own.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_1c62_53c5_4f0e_9a55_d570_3c1b_e5a7);

#[derive(Debug, Error)]
pub enum ClientIdError {
    #[error("{} can't be read: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{} holds `{found}`, which is no UUID; write one as `uuidgen` prints it, or remove the file", .path.display())]
    Malformed { path: PathBuf, found: String },
}

pub fn client_id() -> Result<Id, ClientIdError> {
    let known = from_files(Path::new(OVERRIDE), Path::new(MACHINE_ID))?;
    Ok(known.unwrap_or_else(for_this_process))
}

/// `None`: nobody has given this machine an id.
fn from_files(chosen: &Path, machine: &Path) -> Result<Option<Id>, ClientIdError> {
    if let Some(text) = read(chosen)? {
        let uuid = Uuid::try_parse(&text).map_err(|_| ClientIdError::Malformed {
            path: chosen.to_owned(),
            found: crate::nbd::proto::printable(text.as_bytes()),
        })?;
        return Ok(Some(Id(uuid.into_bytes())));
    }
    // systemd writes other words there while an image has none yet.
    let is_id = |text: &String| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let machine = read(machine)?.filter(is_id);
    Ok(machine.map(|id| Id(Uuid::new_v5(&NAMESPACE, id.to_lowercase().as_bytes()).into_bytes())))
}

fn read(path: &Path) -> Result<Option<String>, ClientIdError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ClientIdError::Unreadable {
            path: path.to_owned(),
            error,
        }),
    }
}

/// A device may be needed before there is a machine id (an initramfs); the kernel keeps the session for whoever
/// comes later. After a reboot such a machine is a stranger to its servers.
fn for_this_process() -> Id {
    static ID: OnceLock<Id> = OnceLock::new();
    *ID.get_or_init(|| {
        warn!(
            "{MACHINE_ID} holds no machine id, so node servers won't know this machine after a reboot: \
             run systemd-machine-id-setup, or write a UUID to {OVERRIDE}"
        );
        Id(rand::random())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(chosen: Option<&str>, machine: Option<&str>) -> Result<Option<Id>, ClientIdError> {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: Option<&str>| {
            let path = dir.path().join(name);
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            path
        };
        from_files(&put("client-id", chosen), &put("machine-id", machine))
    }

    const MACHINE: &str = "0123456789abcdef0123456789abcdef\n";

    #[test]
    fn the_machine_id_is_hashed_and_the_hash_stays_the_same() {
        let id = with(None, Some(MACHINE)).unwrap().unwrap();
        // Another value here would make every machine a stranger to its servers after an upgrade.
        assert_eq!(id.to_string(), "491b13b01d64577884c0db823cf2d535");
        assert_eq!(with(None, Some(&MACHINE.to_uppercase())).unwrap(), Some(id));
    }

    #[test]
    fn the_operators_choice_comes_first() {
        let text = "67e55044-10b1-426f-9247-bb680e5fe0c8\n";
        let id = with(Some(text), Some(MACHINE)).unwrap().unwrap();
        assert_eq!(id.to_string(), "67e5504410b1426f9247bb680e5fe0c8");
        let error = with(Some("host-a"), Some(MACHINE)).unwrap_err().to_string();
        assert!(
            error.contains("client-id holds `host-a`, which is no UUID"),
            "{error}"
        );
        assert!(with(Some(""), Some(MACHINE)).is_err());
    }

    #[test]
    fn a_machine_without_an_id_says_so() {
        for machine in [None, Some(""), Some("uninitialized\n")] {
            assert_eq!(with(None, machine).unwrap(), None);
        }
        assert_eq!(for_this_process(), for_this_process());
    }
}
