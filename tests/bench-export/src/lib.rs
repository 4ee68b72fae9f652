//! What the benches share: medians, rows of JSON, panels of bars. Used by bench-export and by tests/bench-vm.

pub mod bars;
pub mod stats;
