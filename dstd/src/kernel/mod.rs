//! What dstd needs of the kernel and of nodes, as two traits.
//! Implemented by `real` (dm ioctls, netlink, NBD handshakes) and by `sim` (tests); called by reconcile and cli.
//! The traits never decide anything: each method is one effect, and each refusal says why.

mod conduct;
mod io;
mod latency;
mod local;
pub mod real;
#[cfg(test)]
pub mod sim;
mod types;

use std::future::Future;
use std::path::Path;

use tokio::sync::mpsc;

pub use conduct::{Conduct, Policy, UnknownRestart, time_or_never};
pub use io::{DeviceIo, device_io};
pub use latency::{Latencies, Latency, QueueTime};
pub use local::local_device;
pub use types::*;

use crate::nbd::uri::NbdUri;
use crate::table::Line;
use crate::units::{DeviceName, Generation, NodeName, Session, Slot};

/// Device-mapper and the family `dm-dst`. Methods block, but for milliseconds only;
/// async callers put them on a blocking thread. Nothing here waits for a node's I/O except
/// `suspend` with `Flush::Wait` and `remove`, which dm itself makes wait.
pub trait Kernel: Send + Sync {
    /// Every dm device of the machine; tables only of ours, as targets of others can block who asks.
    fn devices(&self) -> Result<Vec<ObservedDevice>, KernelError>;
    /// The live table of a device that isn't ours, if it holds a `dst` line. May block for long.
    fn dst_table(&self, device: &str) -> Result<Vec<Line>, KernelError>;
    /// Every node that some table names. Empty when the module isn't loaded.
    fn nodes(&self) -> Result<Vec<ObservedNode>, KernelError>;
    /// One node; `None`: no table names it.
    fn node(&self, node: &NodeName) -> Result<Option<ObservedNode>, KernelError>;
    /// A local block device by path: number, size, read-only. The real one is `kernel::local_device`.
    fn local_device(&self, path: &Path) -> Result<LocalDevice, KernelError>;

    /// Makes an empty, suspended device.
    fn create(&self, device: &DeviceName, uuid: &DmUuid, access: Access)
    -> Result<(), KernelError>;
    /// Puts a table into the inactive slot, replacing one that is there.
    fn load(&self, device: &DeviceName, lines: &[Line], access: Access) -> Result<(), KernelError>;
    /// Empties the inactive slot.
    fn clear(&self, device: &DeviceName) -> Result<(), KernelError>;
    fn suspend(&self, device: &DeviceName, flush: Flush) -> Result<(), KernelError>;
    /// Swaps the inactive table in, if there is one, and lets I/O go on.
    fn resume(&self, device: &DeviceName) -> Result<(), KernelError>;
    fn remove(&self, device: &DeviceName) -> Result<(), KernelError>;
    /// Gives a device another name, under I/O too. Its UUID stays.
    fn rename(&self, device: &DeviceName, to: &DeviceName) -> Result<(), KernelError>;

    /// Hands sockets to the kernel; they are closed here also on failure. Answers with the node as it is then.
    fn links_set(&self, links: LinksSet) -> Result<ObservedNode, KernelError>;
    /// Drains (or cuts, with `force`) the links in these slots; no slot means all.
    fn links_drop(&self, node: &NodeName, slots: &[Slot], force: bool) -> Result<(), KernelError>;
    /// Changes how many links the node should have.
    fn set_wanted(&self, node: &NodeName, wanted: u32) -> Result<(), KernelError>;
    /// Changes how the node treats a loss.
    fn set_conduct(&self, node: &NodeName, conduct: &Conduct) -> Result<(), KernelError>;
    /// Lets go what waits for a fence of these old links. Nothing to lift is no error.
    fn fenced(&self, node: &NodeName, what: Fenced) -> Result<ObservedNode, KernelError>;
    /// Fails everything that is queued or in flight on the node, now.
    fn fail_pending(&self, node: &NodeName) -> Result<(), KernelError>;

    /// Events from now on. Called once per loop; needs a tokio runtime. After `KernelEvent::Overflow`
    /// the caller observes everything anew; when the channel closes it falls back to polling.
    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, KernelError>;
    /// That some dm device came, went, was renamed or got another live table, from now on; the caller observes all anew.
    /// None is lost: those that come before the last was heard are one. Called, and closes, as `events`.
    fn device_events(&self) -> Result<mpsc::Receiver<()>, KernelError>;
}

/// The way to nodes: NBD connections and what they negotiate.
pub trait Connector: Send + Sync + 'static {
    /// A session that no server has seen yet, of this machine and this address; its first link will have this generation.
    fn new_session(&self, uri: &NbdUri, first: Generation) -> Result<Session, ConnectError>;
    /// What the export is; leaves no connection behind and never takes the writer role.
    fn probe(&self, uri: &NbdUri) -> impl Future<Output = Result<Probed, ConnectError>> + Send;
    /// Returns when the server has said that nothing of these links can be applied any more.
    fn fence(
        &self,
        uri: &NbdUri,
        fence: &Fence,
    ) -> impl Future<Output = Result<(), ConnectError>> + Send;
    /// One connection, past the handshake, ready for the kernel: TCP_NODELAY and keepalive set.
    fn connect(
        &self,
        uri: &NbdUri,
        attach: &Attach,
    ) -> impl Future<Output = Result<Connection, ConnectError>> + Send;
}
