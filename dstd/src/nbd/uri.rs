//! Standard NBD URIs (doc/uri.md of the NBD project, on top of RFC 3986).
//!
//! Owns parsing and printing of a node's address. Called by the topology and the CLI.
//! Never resolves names and never opens anything.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;
use uuid::Uuid;

use crate::units::AddressMark;

/// The port that IANA assigned to NBD.
pub const DEFAULT_PORT: u16 = 10809;
/// The protocol's limit for strings, export names included.
pub const EXPORT_NAME_MAX: usize = 4096;
/// `sun_path` without its terminating NUL.
pub const SOCKET_PATH_MAX: usize = 107;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    Name(String),
    V4(Ipv4Addr),
    /// With a zone (`[fe80::1%25eth0]`) where a link-local address needs one.
    V6(Ipv6Addr, Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Tcp {
        host: Host,
        port: u16,
    },
    /// A path that begins with NUL names a socket in the abstract namespace.
    Unix {
        path: PathBuf,
    },
}

/// Where a node is and which of the server's exports it means.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdUri {
    pub address: Address,
    /// May be empty: the server's default export.
    pub export: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UriError {
    #[error(
        "the URI is empty; write it as nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
    )]
    Empty,
    #[error(
        "`{0}` has no `://`; write it as nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
    )]
    NoScheme(String),
    #[error("scheme `{0}` isn't known; use nbd:// or nbd+unix://")]
    UnknownScheme(String),
    #[error("{0}:// isn't supported: TLS is not supported yet (a later step); use {1}://")]
    TlsLater(String, &'static str),
    #[error(
        "parameter `{0}` isn't supported: TLS is not supported yet (a later step); leave it out"
    )]
    TlsParameter(String),
    #[error("character {0:?} at byte {1} isn't allowed in a URI; write it as {2}")]
    BadCharacter(char, usize, String),
    #[error("`%` at byte {0} must be followed by two hexadecimal digits; a literal % is %25")]
    BadPercent(usize),
    #[error("a fragment (`#{0}`) means nothing in an NBD URI; a literal # is %23")]
    Fragment(String),
    #[error("`{0}@`: a user name is only used with TLS, which is not supported yet; leave it out")]
    UserInfo(String),
    #[error("the host is missing; write it as nbd://HOST[:PORT]/EXPORT")]
    MissingHost,
    #[error("host `{0}` isn't a host name: {1}")]
    BadHost(String, &'static str),
    #[error("`[{0}]` isn't an IPv6 address")]
    BadIpv6(String),
    #[error("`[` in the host has no `]`; an IPv6 address is written as [::1]")]
    UnclosedBracket,
    #[error("IPv6 address `{0}` must stand in brackets: [{0}]")]
    BareIpv6(String),
    #[error("port `{0}` isn't a number from 1 to 65535")]
    BadPort(String),
    #[error("the port is missing after `:`; leave the `:` out for the default port 10809")]
    EmptyPort,
    #[error(
        "`{0}`: nbd+unix:// takes no host; write nbd+unix:///EXPORT?socket=PATH (three slashes)"
    )]
    HostWithUnix(String),
    #[error("nbd+unix:// needs the socket's path: nbd+unix:///EXPORT?socket=PATH")]
    MissingSocket,
    #[error("parameter `socket` is empty")]
    EmptySocket,
    #[error("parameter `socket` belongs to nbd+unix://, not to nbd://")]
    SocketWithTcp,
    #[error("socket path `{0}` isn't absolute; daemon and shell don't share a working directory")]
    RelativeSocket(String),
    #[error("the socket path is {0} bytes long; at most {SOCKET_PATH_MAX} are possible")]
    SocketTooLong(usize),
    #[error(
        "the socket path has a NUL inside; only a leading one (abstract namespace) is possible"
    )]
    SocketNul,
    #[error("parameter `{0}` is given twice")]
    DuplicateParameter(String),
    #[error("parameter `{0}` isn't known; nbd+unix:// takes `socket`, nbd:// takes none")]
    UnknownParameter(String),
    #[error("the export name isn't UTF-8 once decoded")]
    ExportNotUtf8,
    #[error("the export name has a NUL (%00) in it; the protocol forbids that")]
    ExportNul,
    #[error("the export name is {0} bytes long; the protocol allows {EXPORT_NAME_MAX}")]
    ExportTooLong(usize),
}

/// The parts of a URI before any of them is decoded.
struct Parts<'a> {
    authority: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.is_empty() {
            return Err(UriError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UriError::NoScheme(text.to_owned()));
        };
        let lower = scheme.to_ascii_lowercase();
        let unix = match lower.as_str() {
            "nbd" => false,
            "nbd+unix" => true,
            "nbds" => return Err(UriError::TlsLater(lower, "nbd")),
            "nbds+unix" => return Err(UriError::TlsLater(lower, "nbd+unix")),
            _ => return Err(UriError::UnknownScheme(scheme.to_owned())),
        };
        check_characters(text, scheme.len() + 3)?;
        let parts = split(rest)?;
        let export = parse_export(parts.path)?;
        let socket = parse_query(parts.query, unix)?;
        let address = if unix {
            parse_unix(parts.authority, socket)?
        } else {
            parse_tcp(parts.authority)?
        };
        Ok(NbdUri { address, export })
    }
}

/// Refuses what RFC 3986 allows nowhere, with its place in the whole text.
fn check_characters(text: &str, from: usize) -> Result<(), UriError> {
    let bytes = text.as_bytes();
    for (at, c) in text[from..].char_indices().map(|(i, c)| (i + from, c)) {
        if c == '%' {
            let digits = bytes.get(at + 1..at + 3);
            if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                return Err(UriError::BadPercent(at));
            }
        } else if !(c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?#[]".contains(c)) {
            return Err(UriError::BadCharacter(c, at, percent_encode_char(c)));
        }
    }
    Ok(())
}

fn split(rest: &str) -> Result<Parts<'_>, UriError> {
    if let Some((_, fragment)) = rest.split_once('#') {
        return Err(UriError::Fragment(fragment.to_owned()));
    }
    let (before, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match before.split_once('/') {
        Some((authority, path)) => (authority, path),
        None => (before, ""),
    };
    Ok(Parts {
        authority,
        path,
        query,
    })
}

fn parse_export(path: &str) -> Result<String, UriError> {
    let export = String::from_utf8(percent_decode(path)).map_err(|_| UriError::ExportNotUtf8)?;
    if export.contains('\0') {
        return Err(UriError::ExportNul);
    }
    if export.len() > EXPORT_NAME_MAX {
        return Err(UriError::ExportTooLong(export.len()));
    }
    Ok(export)
}

/// Takes the `socket` parameter out of the query; everything else is an error.
fn parse_query(query: Option<&str>, unix: bool) -> Result<Option<Vec<u8>>, UriError> {
    let mut socket = None;
    for pair in query.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = String::from_utf8_lossy(&percent_decode(key)).into_owned();
        match key.as_str() {
            "socket" if !unix => return Err(UriError::SocketWithTcp),
            "socket" if socket.is_some() => return Err(UriError::DuplicateParameter(key)),
            "socket" => socket = Some(percent_decode(value)),
            tls if tls.starts_with("tls-") => return Err(UriError::TlsParameter(key)),
            _ => return Err(UriError::UnknownParameter(key)),
        }
    }
    Ok(socket)
}

fn parse_unix(authority: &str, socket: Option<Vec<u8>>) -> Result<Address, UriError> {
    if !authority.is_empty() {
        return Err(UriError::HostWithUnix(authority.to_owned()));
    }
    let socket = socket.ok_or(UriError::MissingSocket)?;
    let Some(first) = socket.first() else {
        return Err(UriError::EmptySocket);
    };
    if *first != 0 && *first != b'/' {
        let text = String::from_utf8_lossy(&socket).into_owned();
        return Err(UriError::RelativeSocket(text));
    }
    if socket[1..].contains(&0) {
        return Err(UriError::SocketNul);
    }
    if socket.len() > SOCKET_PATH_MAX {
        return Err(UriError::SocketTooLong(socket.len()));
    }
    let path = PathBuf::from(std::ffi::OsString::from_vec(socket));
    Ok(Address::Unix { path })
}

fn parse_tcp(authority: &str) -> Result<Address, UriError> {
    if let Some((user, _)) = authority.rsplit_once('@') {
        return Err(UriError::UserInfo(user.to_owned()));
    }
    let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
        let (address, after) = inner.split_once(']').ok_or(UriError::UnclosedBracket)?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(UriError::BadPort(after.to_owned())),
        };
        (parse_ipv6(address)?, port)
    } else {
        if Ipv6Addr::from_str(authority).is_ok() {
            return Err(UriError::BareIpv6(authority.to_owned()));
        }
        match authority.split_once(':') {
            Some((host, port)) => (parse_host(host)?, Some(port)),
            None => (parse_host(authority)?, None),
        }
    };
    let port = port.map_or(Ok(DEFAULT_PORT), parse_port)?;
    Ok(Address::Tcp { host, port })
}

fn parse_ipv6(text: &str) -> Result<Host, UriError> {
    let bad = || UriError::BadIpv6(text.to_owned());
    let (address, zone) = match text.split_once("%25") {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address = Ipv6Addr::from_str(address).map_err(|_| bad())?;
    // Interface names have no characters that would need decoding.
    let zone_ok = |z: &str| !z.is_empty() && z.bytes().all(is_host_byte);
    match zone {
        None => Ok(Host::V6(address, None)),
        Some(zone) if zone_ok(zone) => Ok(Host::V6(address, Some(zone.to_owned()))),
        Some(_) => Err(bad()),
    }
}

fn is_host_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._".contains(&b)
}

fn parse_host(text: &str) -> Result<Host, UriError> {
    let bad = |why| Err(UriError::BadHost(text.to_owned(), why));
    if text.is_empty() {
        return Err(UriError::MissingHost);
    }
    if let Ok(v4) = Ipv4Addr::from_str(text) {
        return Ok(Host::V4(v4));
    }
    if !text.bytes().all(is_host_byte) {
        return bad("it may hold letters, digits, `-`, `.` and `_`");
    }
    if text.len() > 253 {
        return bad("it is longer than 253 bytes");
    }
    // A resolver would take 10.0.0 or 10.0.0.256 for something else than meant.
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return bad("it looks like an IPv4 address, but is none");
    }
    let labels_ok = text
        .strip_suffix('.')
        .unwrap_or(text)
        .split('.')
        .all(|label| !label.is_empty() && label.len() <= 63);
    if !labels_ok {
        return bad("each part between the dots must be 1 to 63 bytes long");
    }
    Ok(Host::Name(text.to_owned()))
}

fn parse_port(text: &str) -> Result<u16, UriError> {
    if text.is_empty() {
        return Err(UriError::EmptyPort);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if port > 0 && digits => Ok(port),
        _ => Err(UriError::BadPort(text.to_owned())),
    }
}

/// `text` has passed `check_characters`, so each `%` has its two digits.
fn percent_decode(text: &str) -> Vec<u8> {
    let hex = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' && i + 2 < bytes.len() {
            out.push(hex(bytes[i + 1]) << 4 | hex(bytes[i + 2]));
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

fn percent_encode_char(c: char) -> String {
    let mut utf8 = [0; 4];
    percent_encode(c.encode_utf8(&mut utf8).as_bytes(), "")
}

fn percent_encode(bytes: &[u8], keep: &str) -> String {
    let mut out = String::new();
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || keep.as_bytes().contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::V4(address) => write!(f, "{address}"),
            Host::V6(address, None) => write!(f, "[{address}]"),
            Host::V6(address, Some(zone)) => write!(f, "[{address}%25{zone}]"),
        }
    }
}

/// For messages: `10.0.0.1:10809`, `/run/nbd.sock`, `@abstract`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix { path } => match path.as_os_str().as_bytes() {
                [0, name @ ..] => write!(f, "@{}", String::from_utf8_lossy(name)),
                _ => write!(f, "{}", path.display()),
            },
        }
    }
}

/// The canonical form; parsing it gives the same value.
impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(self.export.as_bytes(), "/:@!$&'()*+,;=");
        match &self.address {
            Address::Tcp { host, port } if *port == DEFAULT_PORT => {
                write!(f, "nbd://{host}/{export}")
            }
            Address::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
            Address::Unix { path } => {
                let socket = percent_encode(path.as_os_str().as_bytes(), "/:@,");
                write!(f, "nbd+unix:///{export}?socket={socket}")
            }
        }
    }
}

impl NbdUri {
    /// The same for URIs that are written differently and mean the same.
    pub fn mark(&self) -> AddressMark {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, self.to_string().as_bytes());
        let [a, b, c, d, ..] = hash.into_bytes();
        AddressMark(u32::from_be_bytes([a, b, c, d]).max(1))
    }

    /// The Unix socket's path, where there is one.
    pub fn socket_path(&self) -> Option<&Path> {
        match &self.address {
            Address::Unix { path } => Some(path),
            Address::Tcp { .. } => None,
        }
    }
}

#[cfg(test)]
#[path = "uri_tests.rs"]
mod tests;
