//! Kernel calls, which block, on threads of their own and with a limit.
//! Called by everything in reconcile that asks the kernel. A call that doesn't return is left behind with its thread, and
//! holds up nothing but its own device: what it still does there nobody else may interfere with.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::links::LinkError;
use crate::kernel::{Kernel, KernelError};
use crate::units::DeviceName;

/// A call that takes longer is stuck. Longer than udev's limit.
const CALL_LIMIT: Duration = Duration::from_secs(45);

/// Calls of device-mapper at the same time. Fewer than the runtime has threads, so that those that hang never leave none
/// for netlink, which doesn't hang: links come back that way, and with them what the others wait for.
static DM_CALLS: Semaphore = Semaphore::const_new(24);

/// Runs a call that doesn't touch device-mapper.
pub(crate) async fn blocking<K, T, F>(kernel: &Arc<K>, call: F) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    limited(CALL_LIMIT, None, kernel, call).await
}

/// Runs a call that looks at devices or local disks.
pub(crate) async fn blocking_dm<K, T, F>(kernel: &Arc<K>, call: F) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    limited(CALL_LIMIT, Some(&DM_CALLS), kernel, call).await
}

async fn limited<K, T, F>(
    limit: Duration,
    pool: Option<&'static Semaphore>,
    kernel: &Arc<K>,
    call: F,
) -> Result<T, KernelError>
where
    K: Kernel + 'static,
    T: Send + 'static,
    F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
{
    let deadline = Instant::now() + limit;
    let failed = |reason| Err(KernelError::new("call the kernel", None, reason));
    let permit = match pool {
        None => None,
        Some(pool) => match timeout_at(deadline, pool.acquire()).await {
            Ok(permit) => permit.ok(),
            Err(_) => {
                return failed("too many calls of device-mapper hang already".to_owned());
            }
        },
    };
    let kernel = Arc::clone(kernel);
    let call = tokio::task::spawn_blocking(move || {
        // Given back when the call returns, however late.
        let _permit = permit;
        call(&kernel)
    });
    match timeout_at(deadline, call).await {
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

/// Calls that change devices: one at a time for each.
#[derive(Clone, Debug)]
pub struct Calls {
    limit: Duration,
    /// Devices with a call that hasn't returned.
    held: Arc<Mutex<BTreeSet<DeviceName>>>,
}

impl Default for Calls {
    fn default() -> Self {
        Calls {
            limit: CALL_LIMIT,
            held: Arc::default(),
        }
    }
}

impl Calls {
    pub(super) async fn about<K, T, F>(
        &self,
        device: &DeviceName,
        kernel: &Arc<K>,
        call: F,
    ) -> Result<T, LinkError>
    where
        K: Kernel + 'static,
        T: Send + 'static,
        F: FnOnce(&K) -> Result<T, KernelError> + Send + 'static,
    {
        let Some(hold) = self.hold(device) else {
            return Err(LinkError::Hangs(device.clone()));
        };
        let call = move |kernel: &K| {
            let _hold = hold;
            call(kernel)
        };
        Ok(limited(self.limit, Some(&DM_CALLS), kernel, call).await?)
    }

    /// Whether a call about it was left behind.
    pub(super) fn hangs(&self, device: &DeviceName) -> bool {
        self.held().contains(device)
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<DeviceName>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, device: &DeviceName) -> Option<Hold> {
        let new = self.held().insert(device.clone());
        new.then(|| Hold {
            calls: self.clone(),
            device: device.clone(),
        })
    }
}

/// Of one device, until the call has returned.
struct Hold {
    calls: Calls,
    device: DeviceName,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.calls.held().remove(&self.device);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::kernel::sim::{SimKernel, SimNodes};
    use crate::kernel::{Access, DmUuid};
    use crate::plan::{Action, Step};
    use crate::reconcile::{Executor, Interrupt, Mode};
    use crate::topology::Topology;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_call_that_the_kernel_does_not_end_is_left_behind() {
        let kernel = Arc::new(SimKernel::default());
        let (release, held) = channel::<()>();
        let stuck = limited(SHORT, None, &kernel, move |_| {
            let _ = held.recv();
            Ok(())
        });
        let error = stuck.await.unwrap_err().to_string();
        assert!(error.contains("it waits for a device"), "{error}");
        assert!(blocking(&kernel, |kernel| kernel.nodes()).await.is_ok());
        drop(release);
    }

    #[test]
    fn calls_that_hang_leave_threads_for_others() {
        static FEW: Semaphore = Semaphore::const_new(2);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(3)
            .build()
            .unwrap();
        let kernel = Arc::new(SimKernel::default());
        let mut releases = Vec::new();
        runtime.block_on(async {
            for n in 0..4 {
                let (release, held) = channel::<()>();
                releases.push(release);
                let stuck = limited(SHORT, Some(&FEW), &kernel, move |_| {
                    let _ = held.recv();
                    Ok(())
                });
                let error = stuck.await.unwrap_err().to_string();
                assert_eq!(error.contains("too many"), n >= 2, "{error}");
            }
            let answer = limited(LONG, None, &kernel, |kernel: &SimKernel| kernel.nodes());
            assert!(answer.await.is_ok());
            // They end at last, and others may.
            releases.clear();
            let answer = limited(LONG, Some(&FEW), &kernel, |kernel: &SimKernel| {
                kernel.nodes()
            });
            assert!(answer.await.is_ok());
        });
    }

    fn steps(device: &DeviceName) -> [Step; 3] {
        let line = "0 8 dst 1 a 0 8 1 no_discard".parse().unwrap();
        let device = || device.clone();
        [
            Action::Load {
                device: device(),
                live: Vec::new(),
                lines: vec![line],
                access: Access::ReadWrite,
            },
            Action::Suspend { device: device() },
            Action::Resume { device: device() },
        ]
        .map(|action| Step {
            action,
            why: String::new(),
        })
    }

    #[tokio::test]
    async fn nothing_is_done_to_a_device_while_a_call_about_it_hangs() {
        let (kernel, nodes): (Arc<SimKernel>, Arc<SimNodes>) = Default::default();
        let device: DeviceName = "d".parse().unwrap();
        let access = Access::ReadWrite;
        kernel
            .create(&device, &DmUuid::of(&device), access)
            .unwrap();
        let (release, held) = channel::<()>();
        kernel.state().hold = Some(held);
        kernel.state().calls.clear();
        let topology = Topology::default();
        let calls = Calls {
            limit: SHORT,
            ..Calls::default()
        };
        let patient = Calls {
            limit: LONG,
            ..calls.clone()
        };
        let interrupt = Interrupt::default();
        let executor = |calls| Executor {
            kernel: &kernel,
            connector: &nodes,
            topology: &topology,
            mode: Mode::Lenient,
            calls,
            interrupt: &interrupt,
        };
        let steps = steps(&device);
        executor(&patient).execute(&steps[..1], |_| {}).await;
        let failures = executor(&calls).execute(&steps[1..], |_| {}).await;
        assert_eq!(failures.len(), 1, "{failures:?}");
        let failures = executor(&patient).execute(&steps, |_| {}).await;
        let error = failures[0].error.to_string();
        assert!(error.contains("hasn't returned"), "{error}");
        // Neither taken back nor gone on with: that would be under the hands of the call.
        assert_eq!(kernel.state().calls, ["load d"]);
        drop(release);
        let returned = async {
            while patient.hangs(&device) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, returned).await.unwrap();
        let failures = executor(&patient).execute(&steps[2..], |_| {}).await;
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(kernel.state().calls, ["load d", "suspend d", "resume d"]);
    }
}
