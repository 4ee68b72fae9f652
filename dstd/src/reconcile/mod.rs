//! Carries out plans and repeats until nothing is left to do.
//! Called by cli. Never decides which steps: `plan` does.

mod apply;
mod backoff;
mod calls;
mod execute;
mod fence;
#[cfg(test)]
mod fence_tests;
mod files;
#[cfg(test)]
mod independence_tests;
mod interrupt;
#[cfg(test)]
mod leftover_tests;
mod links;
mod observe;
#[cfg(test)]
mod pass_bench;
#[cfg(test)]
mod property_tests;
mod run;
mod schedule;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
mod worker;

pub use apply::{Applied, ApplyError, Progress, apply, survey, unreachable};
pub use calls::Calls;
pub use execute::{Executor, Failure, Mode};
pub use interrupt::{Asked, Interrupt};
pub use links::{LinkError, connect};
pub use observe::{Survey, locals, observe, probe_nodes};
pub use run::{Daemon, RunError, run};
pub use schedule::Cause;

pub(crate) use calls::{blocking, blocking_dm};
