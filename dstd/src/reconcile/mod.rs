//! Carries out plans and repeats until nothing is left to do.
//! Called by cli. Never decides which steps: `plan` does.

mod apply;
mod backoff;
mod execute;
mod fence;
#[cfg(test)]
mod fence_tests;
mod links;
mod observe;
#[cfg(test)]
mod property_tests;
mod run;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
mod worker;

pub use apply::{Applied, ApplyError, apply, survey, unreachable};
pub use execute::{Executor, Failure, Mode};
pub use links::{LinkError, connect};
pub use observe::{Survey, locals, observe, probe_nodes};
pub use run::{Daemon, RunError, run};

use std::sync::Arc;

use crate::kernel::{Kernel, KernelError};

/// Runs a kernel call where it may block.
pub(crate) async fn blocking<K, T, F>(kernel: &Arc<K>, call: F) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    let kernel = Arc::clone(kernel);
    let joined = tokio::task::spawn_blocking(move || call(&kernel)).await;
    joined.unwrap_or_else(|error| {
        let reason = format!("the call ended abnormally: {error}");
        Err(KernelError::new("call the kernel", None, reason))
    })
}
