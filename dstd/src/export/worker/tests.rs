//! Links served for real: a raw client on a socket pair, each test on both engines.

mod commands;
mod limits;
mod model;
mod peer;
mod streams;
