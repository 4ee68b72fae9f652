//! The YAML topology: its types, its validation, its errors.
//! Called by table, plan, reconcile and cli. Never asks a node or the kernel anything.

mod check;
mod error;
mod load;
mod nearest;
pub(crate) mod scalar;
mod schema;
mod spec;
#[cfg(test)]
mod tests;
pub(crate) mod yaml;

pub use error::{At, Path, PathStep, Place, TopologyError, TopologyErrors};
pub use load::{Entry, Fingerprint, Source, Topology, topology_files};
pub use nearest::nearest;
pub use schema::json_schema;
pub use spec::{
    DeviceSpec, DstItem, Item, LinearItem, NodeSpec, Policy, Quiesce, RawItem, UnknownRestart,
    YesNo, ZeroCopy,
};
