//! The real kernel and the real way to nodes, for the commands that need them.
//! Used by the commands; the only place in cli that names the implementations.

use std::future::Future;
use std::sync::Arc;

use super::Stop;
use crate::kernel::real::{RealConnector, RealKernel};

pub fn kernel() -> Result<Arc<RealKernel>, Stop> {
    Ok(Arc::new(RealKernel::open()?))
}

pub fn connector() -> Arc<RealConnector> {
    Arc::new(RealConnector::default())
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(|error| Stop::failed(format!("the runtime can't start: {error}")))?;
    let result = runtime.block_on(future);
    // A kernel call that hangs must not keep the command from ending.
    runtime.shutdown_background();
    Ok(result)
}
