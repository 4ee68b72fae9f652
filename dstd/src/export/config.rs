//! What a node server should serve, to whom and on which sockets.
//!
//! Owns these values and their defaults. Made by `config_file` (YAML) and by `cli::export` (arguments); used by
//! the server and by reload, which compares two of them. Never opens a file or a socket.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::access::Access;
use super::limits::Limits;
use crate::units::Id;

pub const DEFAULT_PORT: u16 = 10809;
/// After its last link was lost, a holder has the writer role for this long.
pub const HOLDER_TIMEOUT: Duration = Duration::from_secs(30);
/// At the end, or before an export goes: how long clients may take with what they sent.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The protocol has 4096; a name that a person types is shorter.
pub const NAME_MAX: usize = 1024;
const DESCRIPTION_MAX: usize = 4096;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub exports: BTreeMap<String, ExportConfig>,
    /// Empty: [`Listen::defaults`].
    pub listen: Vec<Listen>,
    pub limits: Limits,
    pub drain_timeout: Duration,
    /// Threads that serve requests; none given: one for each CPU.
    pub workers: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportConfig {
    pub path: PathBuf,
    pub read_only: bool,
    /// No writer rules.
    pub shared: bool,
    pub description: String,
    /// The export of clients that name none.
    pub default: bool,
    pub access: Access,
    /// Told to clients instead of what the storage says of itself.
    pub identity: Option<Id>,
    pub holder_timeout: Duration,
    /// Another number than before: open it anew at a reload, although nothing else changed.
    pub reopen: u64,
}

impl ExportConfig {
    pub fn new(path: PathBuf) -> Self {
        ExportConfig {
            path,
            read_only: false,
            shared: false,
            description: String::new(),
            default: false,
            access: Access::default(),
            identity: None,
            holder_timeout: HOLDER_TIMEOUT,
            reopen: 0,
        }
    }

    /// Whether clients of the one can stay when it becomes the other. What only newcomers meet may differ.
    pub fn same_storage(&self, other: &ExportConfig) -> bool {
        self.path == other.path
            && self.read_only == other.read_only
            && self.shared == other.shared
            && self.identity == other.identity
            && self.holder_timeout == other.holder_timeout
            && self.reopen == other.reopen
    }
}

impl Config {
    pub fn new(exports: BTreeMap<String, ExportConfig>) -> Self {
        Config {
            exports,
            listen: Vec::new(),
            limits: Limits::default(),
            drain_timeout: DRAIN_TIMEOUT,
            workers: None,
        }
    }

    /// The name behind the empty one: itself, the export marked so, or the only one there is.
    pub fn default_export(&self) -> Option<&str> {
        let marked = self.exports.iter().find(|(_, export)| export.default);
        let only = || {
            let mut all = self.exports.iter();
            all.next().filter(|_| all.next().is_none())
        };
        let own = self.exports.get_key_value("");
        own.or(marked).or_else(only).map(|(name, _)| name.as_str())
    }
}

/// `None`: a name that an export can have.
pub fn name_fault(name: &str) -> Option<String> {
    if name.len() > NAME_MAX {
        return Some(format!(
            "an export's name has {NAME_MAX} bytes at most, this one {}",
            name.len()
        ));
    }
    let control = name.chars().any(char::is_control);
    control.then(|| format!("`{}` has control characters", name.escape_debug()))
}

/// `None`: a text that clients may be shown.
pub fn description_fault(text: &str) -> Option<String> {
    (text.len() > DESCRIPTION_MAX).then(|| {
        format!(
            "a description has {DESCRIPTION_MAX} bytes at most, this one {}",
            text.len()
        )
    })
}

/// A place where clients come in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Listen {
    /// This machine only: who serves the network says so, and thinks of `allow`.
    pub fn defaults() -> Vec<Listen> {
        vec![
            Listen::Tcp(([127, 0, 0, 1], DEFAULT_PORT).into()),
            Listen::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], DEFAULT_PORT).into()),
        ]
    }

    /// Whether other machines may reach it.
    pub fn is_public(&self) -> bool {
        match self {
            Listen::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Listen::Unix(_) => false,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                path if path.starts_with('/') => Ok(Listen::Unix(path.into())),
                _ => Err(format!(
                    "`{text}`: write the whole path of the socket, `unix:/run/dstd/export.sock`"
                )),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Listen::Tcp(address));
        }
        let host = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match host.unwrap_or(text).parse() {
            Ok(ip) => Ok(Listen::Tcp(SocketAddr::new(ip, DEFAULT_PORT))),
            Err(_) => Err(format!(
                "`{text}` is no address to listen on: write `10.0.0.1:10809`, `[::]:10809` (all, IPv4 too) or \
                 `unix:/PATH` (names of hosts aren't looked up)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(exports: &[(&str, bool)]) -> Config {
        let exports = exports.iter().map(|(name, default)| {
            let export = ExportConfig {
                default: *default,
                ..ExportConfig::new("/x".into())
            };
            ((*name).to_owned(), export)
        });
        Config::new(exports.collect())
    }

    #[test]
    fn the_empty_name_is_one_export_or_none() {
        for (exports, found) in [
            (&[("a", false)][..], Some("a")),
            (&[("a", false), ("b", false)], None),
            (&[("a", false), ("b", true)], Some("b")),
            (&[("", false), ("b", false)], Some("")),
            (&[], None),
        ] {
            assert_eq!(config(exports).default_export(), found, "{exports:?}");
        }
    }

    #[test]
    fn places_to_listen_on_are_read_and_written_alike() {
        for (text, shown, public) in [
            ("0.0.0.0:10809", "0.0.0.0:10809", true),
            ("[::]:1", "[::]:1", true),
            ("[::1]:1", "[::1]:1", false),
            ("127.0.0.1", "127.0.0.1:10809", false),
            ("[::1]", "[::1]:10809", false),
            ("10.0.0.1", "10.0.0.1:10809", true),
            ("unix:/run/x.sock", "unix:/run/x.sock", false),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.to_string(), shown);
            assert_eq!(listen.is_public(), public, "{text}");
        }
        for (text, says) in [
            ("unix:x.sock", "whole path"),
            ("unix:", "whole path"),
            ("*:10809", "is no address to listen on"),
            ("host.example:10809", "aren't looked up"),
            ("10.0.0.1:99999", "is no address to listen on"),
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn without_a_word_nobody_else_is_served() {
        assert!(Listen::defaults().iter().all(|listen| !listen.is_public()));
    }
}
