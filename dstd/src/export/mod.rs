//! The node server: `dstd export` (docs/node-server.md).
//!
//! A control plane (tokio: listeners, handshake, roles, reload) hands each negotiated connection as a
//! [`link::Transmission`] to a data plane (worker threads with a ring each) that serves its requests.
//! Called by `cli::export` and by the tests. Never trusts a byte that a client sent.

pub mod access;
mod activation;
pub mod backend;
pub mod catalog;
pub mod config;
pub mod config_file;
pub mod handshake;
pub mod limits;
pub mod link;
pub mod listen;
pub mod options;
pub mod reload;
pub mod roles;
pub mod server;
pub mod service;
mod socket;
pub mod wire;
pub mod worker;

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use link::{End, LinkGate, ReplyMode, Transmission};
