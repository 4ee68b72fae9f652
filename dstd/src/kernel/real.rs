//! The real kernel behind the traits of `kernel`. Provisional: the connector is real, the kernel not yet
//! (every call is refused with a text that says so).
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;

#[derive(Debug)]
pub struct RealKernel(());

impl RealKernel {
    pub fn open() -> Result<Self, KernelError> {
        Err(KernelError::new(
            "reach the kernel",
            None,
            "this build of dstd has no kernel side yet",
        ))
    }
}

fn none<T>() -> Result<T, KernelError> {
    Err(KernelError::new(
        "reach the kernel",
        None,
        "this build of dstd has no kernel side yet",
    ))
}

impl Kernel for RealKernel {
    fn devices(&self) -> Result<Vec<ObservedDevice>, KernelError> {
        none()
    }
    fn nodes(&self) -> Result<Vec<ObservedNode>, KernelError> {
        none()
    }
    fn local_device(&self, path: &Path) -> Result<LocalDevice, KernelError> {
        local_device(path)
    }
    fn create(&self, _: &DeviceName, _: &DmUuid, _: Access) -> Result<(), KernelError> {
        none()
    }
    fn load(&self, _: &DeviceName, _: &[Line], _: Access) -> Result<(), KernelError> {
        none()
    }
    fn clear(&self, _: &DeviceName) -> Result<(), KernelError> {
        none()
    }
    fn suspend(&self, _: &DeviceName, _: Flush) -> Result<(), KernelError> {
        none()
    }
    fn resume(&self, _: &DeviceName) -> Result<(), KernelError> {
        none()
    }
    fn remove(&self, _: &DeviceName) -> Result<(), KernelError> {
        none()
    }
    fn links_set(&self, _: LinksSet) -> Result<ObservedNode, KernelError> {
        none()
    }
    fn links_drop(&self, _: &NodeName, _: &[Slot], _: bool) -> Result<(), KernelError> {
        none()
    }
    fn node_set(&self, _: &NodeName, _: u32) -> Result<(), KernelError> {
        none()
    }
    fn fail_pending(&self, _: &NodeName) -> Result<(), KernelError> {
        none()
    }
    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
        none()
    }
}

#[derive(Clone, Debug, Default)]
pub struct RealConnector(());

const LIMIT: Duration = Duration::from_secs(10);

impl Connector for RealConnector {
    async fn probe(&self, uri: &NbdUri) -> Result<Negotiated, ConnectError> {
        let found = crate::nbd::probe(uri, LIMIT).await;
        found.map_err(|error| ConnectError {
            message: error.to_string(),
        })
    }

    async fn connect(&self, uri: &NbdUri) -> Result<Connection, ConnectError> {
        let connection = crate::nbd::connect(uri, LIMIT).await;
        connection.map_err(|error| ConnectError {
            message: error.to_string(),
        })
    }
}
