//! NBD as a client speaks it: URIs, the handshake, sockets ready for the kernel.
//!
//! Owns everything between a node's address and a socket in transmission phase.
//! Called by the connector (`kernel::real`) and by `dstd probe`.
//! Never sends a READ or WRITE: data I/O is the kernel's alone.

pub mod client;
pub mod client_id;
pub mod error;
pub mod limits;
pub mod lookup;
pub mod proto;
pub mod socket;
pub mod uri;

pub use client::{connect, fence, probe};
pub use error::NbdError;
pub use uri::{Address, Host, NbdUri, UriError};

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod peer_tests;
#[cfg(test)]
mod session_tests;
