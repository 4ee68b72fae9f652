//! dstd: the daemon and command line of DST.
//! Owns the list of modules; main.rs and the integration tests use it.
//! Pure: units, topology, table, plan. Effects: nbd (wire), netlink and dm (kernel), reconcile, cli.
//! Effects reach the kernel only through the traits in `kernel`, so that all else runs against a simulated one.

pub mod cli;
pub mod dm;
pub mod doctor;
pub mod export;
pub mod kernel;
pub mod metrics;
pub mod nbd;
pub mod netlink;
pub mod plan;
pub mod reconcile;
pub mod signals;
pub mod table;
pub mod topology;
pub mod units;
