//! The node server: `dstd export` (docs/node-server.md).
//!
//! A control plane (tokio: listeners, handshake, roles, reload) hands each negotiated connection as a
//! [`link::Transmission`] to a data plane (worker threads with a ring each) that serves its requests.
//! Called by `cli::export` and by the tests. Never trusts a byte that a client sent.

pub mod backend;
pub mod link;
pub mod worker;

pub use link::{End, LinkGate, ReplyMode, Transmission};
