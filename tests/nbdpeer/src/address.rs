//! Where a server is: a TCP address or a Unix socket, and the NBD URIs that a test writes down.

use std::path::PathBuf;

use crate::{PeerError, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    Unix(PathBuf),
}

impl Address {
    /// `nbd://host[:port]/export` or `nbd+unix:///export?socket=path`, nothing escaped.
    pub fn parse_uri(uri: &str) -> Result<(Address, String)> {
        let wrong = || PeerError::Protocol(format!("`{uri}` isn't an NBD URI"));
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest.split_once("?socket=").ok_or_else(wrong)?;
            return Ok((Address::Unix(socket.into()), export.to_owned()));
        }
        let rest = uri.strip_prefix("nbd://").ok_or_else(wrong)?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let port_given = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        let address = match port_given {
            true => host.to_owned(),
            false => format!("{host}:10809"),
        };
        Ok((Address::Tcp(address), export.to_owned()))
    }
}
