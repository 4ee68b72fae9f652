//! A raw NBD client for tests of the node server: every message is made by hand and can be sent wrong.
//!
//! Owns one blocking socket and what was negotiated on it. Used by dstd's export tests and by `dst-nbd` (VM tests).
//! Shares no code with dstd, so that a mistake there can't hide itself here. Waits for nothing for ever:
//! every read has a time limit.

pub mod address;
pub mod error;
pub mod handshake;
pub mod peer;
pub mod proto;
pub mod request;

pub use address::Address;
pub use error::{PeerError, Result};
pub use handshake::{Export, Fence, Reply, Session, SessionAnswer};
pub use peer::Peer;
pub use request::{Answer, Chunk, Mode, Request};
