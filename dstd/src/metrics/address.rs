//! Where metrics are served: a Unix socket or a loopback address, nothing else, as whoever reads them knows every node.
//! Used by the command line. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!(
                    "`{path}` is no absolute path: write unix:/run/dstd/metrics, say"
                )),
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is no address: write unix:/PATH, 127.0.0.1:PORT or [::1]:PORT")
        })?;
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(format!(
                "{} isn't a loopback address: others would read it without being asked who they are; put a proxy that asks before it",
                address.ip()
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}
