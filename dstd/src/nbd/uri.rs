//! Wire helper: replace this file. The topology uses FromStr (error text for people, `nbds://` refused), Display, Clone, Eq, Hash.
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri(String);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct UriError(pub String);

impl FromStr for NbdUri {
    type Err = UriError;
    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.starts_with("nbds") {
            return Err(UriError(format!(
                "`{text}`: nbds:// (TLS) is a later step; use nbd://"
            )));
        }
        if text.starts_with("nbd://") || text.starts_with("nbd+unix://") {
            return Ok(Self(text.to_owned()));
        }
        Err(UriError(format!("`{text}` is no NBD URI")))
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
