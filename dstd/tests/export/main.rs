//! The node server's tests from outside: real sockets, a client that shares no code with it (tests/nbdpeer).
//!
//! One test binary, so that it is linked once. `support` starts servers, in this process (where faults can be put
//! into the storage) or as `dstd export` (where it can be killed and stopped).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod crash;
mod errors;
mod fences;
mod flow;
mod handshake;
mod limits;
mod mutated;
mod options;
mod stopped;
mod support;
mod writers;
