//! Carries out plans and repeats until nothing is left to do.
//! Called by cli. Never decides which steps: `plan` does.

mod apply;
mod backoff;
mod execute;
mod fence;
#[cfg(test)]
mod fence_tests;
mod files;
#[cfg(test)]
mod independence_tests;
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
use std::time::Duration;

use crate::kernel::{Kernel, KernelError};

/// A kernel call that takes longer is stuck: its thread is left to it, and the daemon goes on. Longer than udev's.
const CALL_LIMIT: Duration = Duration::from_secs(45);

/// Runs a kernel call where it may block.
pub(crate) async fn blocking<K, T, F>(kernel: &Arc<K>, call: F) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    blocking_for(CALL_LIMIT, kernel, call).await
}

async fn blocking_for<K, T, F>(limit: Duration, kernel: &Arc<K>, call: F) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    let kernel = Arc::clone(kernel);
    let call = tokio::task::spawn_blocking(move || call(&kernel));
    let failed = |reason| Err(KernelError::new("call the kernel", None, reason));
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => failed(format!("the call ended abnormally: {error}")),
        Err(_) => failed(format!(
            "no answer within {} s: it waits for a device; `dstd fail-pending NODE` frees what waits for a node, and the \
             stack of the thread in /proc/{}/task says where it is",
            limit.as_secs(),
            std::process::id()
        )),
    }
}
