//! Metrics of the daemon in the text format of Prometheus, over HTTP on a Unix or loopback socket.
//! Started by `dstd run --metrics`. Only looks; who asks, however slowly or often, never holds up the daemon.

mod address;
mod serve;
mod stats;
#[cfg(test)]
mod tests;
mod text;

pub use address::Address;
pub use serve::{Listening, listen};
pub use stats::Stats;
