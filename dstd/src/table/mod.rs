//! Table lines of device-mapper, and the table that a device of the topology must have.
//! Called by plan, reconcile, cli and the kernel traits. Pure: sizes come from the caller.

mod line;

pub use line::{Line, LineError};
