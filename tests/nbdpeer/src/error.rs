//! What can go wrong between a test and a server, told apart as far as a test wants to.

use crate::proto;

pub type Result<T> = std::result::Result<T, PeerError>;

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// End of file or a reset where more was due.
    #[error("the server closed the connection ({0})")]
    Closed(String),
    #[error("no answer from the server in time")]
    Silent,
    #[error("socket: {0}")]
    Io(std::io::Error),
    #[error("option {option:#x} refused: {} {text:?}", proto::reply_name(*kind))]
    Refused {
        option: u32,
        kind: u32,
        text: String,
    },
    #[error("{}", proto::errno_name(*.0))]
    Nbd(u32),
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

impl From<std::io::Error> for PeerError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::UnexpectedEof
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::ConnectionAborted => PeerError::Closed(error.to_string()),
            Kind::WouldBlock | Kind::TimedOut => PeerError::Silent,
            _ => PeerError::Io(error),
        }
    }
}

impl PeerError {
    pub fn is_closed(&self) -> bool {
        matches!(self, PeerError::Closed(_))
    }

    /// The type of the error reply to an option.
    pub fn refusal(&self) -> Option<u32> {
        match self {
            PeerError::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}
