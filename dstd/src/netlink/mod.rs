//! The netlink contract with dm-dst.ko: generic netlink family "dm-dst".
//!
//! Owns the wire (numbers, codec, messages) and the two ways to use it: requests and events.
//! Called by `kernel::real`. Never decides what to ask; docs/netlink/dm-dst.yaml describes
//! each operation, and tests hold that file, the C header and `numbers` equal.

pub mod client;
pub mod codec;
mod error;
pub mod events;
mod family;
pub mod message;
pub mod numbers;
pub mod wire;

pub use error::NetlinkError;

#[cfg(test)]
mod spec_tests;
