//! Table lines of device-mapper, and the table that a device of the topology must have.
//! Called by plan, reconcile, cli and the kernel traits. Pure: sizes come from the caller.

mod dst;
mod line;
mod render;

pub use dst::{DstArgs, DstError, Extent, Features, TARGET};
pub use line::{Line, LineError};
pub use render::{
    Facts, LocalFacts, Missing, NodeFacts, RenderError, Table, locals_of, nodes_of, render,
};
