//! The real kernel and real nodes behind the traits of `kernel`.
//!
//! Owns the joining of `dm`, `netlink` and `nbd`, and the wording of their errors. Called by
//! reconcile and cli. Decides nothing; each method is one effect.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::mpsc;

use super::{
    Access, Attach, Conduct, ConnectError, Connection, Connector, DmUuid, Fence, Fenced, Flush,
    Kernel, KernelError, KernelEvent, LinksSet, LocalDevice, ObservedDevice, ObservedNode, Probed,
    local_device,
};
use crate::dm::{self, Dm};
use crate::nbd::client::HANDSHAKE_TIMEOUT;
use crate::nbd::client_id::{ClientIdError, client_id};
use crate::nbd::{self, NbdError, NbdUri};
use crate::netlink::{NetlinkError, client as netlink, events};
use crate::table::Line;
use crate::units::{DeviceName, Generation, Id, NodeName, Session, Slot};

#[derive(Debug)]
pub struct RealKernel {
    dm: Dm,
}

impl RealKernel {
    /// Needs root; says so where that is what is missing.
    pub fn open() -> Result<Self, KernelError> {
        Ok(RealKernel { dm: Dm::open()? })
    }
}

fn said(what: impl Into<String>) -> impl FnOnce(NetlinkError) -> KernelError {
    move |error| KernelError::new(what, error.errno(), error.to_string())
}

impl Kernel for RealKernel {
    fn devices(&self) -> Result<Vec<ObservedDevice>, KernelError> {
        self.dm.devices()
    }

    fn dst_table(&self, device: &str) -> Result<Vec<Line>, KernelError> {
        self.dm.dst_table(device)
    }

    fn nodes(&self) -> Result<Vec<ObservedNode>, KernelError> {
        match netlink::nodes() {
            Err(NetlinkError::FamilyAbsent) => Ok(Vec::new()),
            other => other.map_err(said("list the nodes")),
        }
    }

    fn node(&self, node: &NodeName) -> Result<Option<ObservedNode>, KernelError> {
        match netlink::node(node) {
            Ok(found) => Ok(Some(found)),
            // No such node, or no module.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(said(format!("look at node {node}"))(error)),
        }
    }

    fn local_device(&self, path: &Path) -> Result<LocalDevice, KernelError> {
        local_device(path)
    }

    fn create(
        &self,
        device: &DeviceName,
        uuid: &DmUuid,
        access: Access,
    ) -> Result<(), KernelError> {
        self.dm.create(device, uuid, access)
    }

    fn load(&self, device: &DeviceName, lines: &[Line], access: Access) -> Result<(), KernelError> {
        self.dm.load(device, lines, access)
    }

    fn clear(&self, device: &DeviceName) -> Result<(), KernelError> {
        self.dm.clear(device)
    }

    fn suspend(&self, device: &DeviceName, flush: Flush) -> Result<(), KernelError> {
        self.dm.suspend(device, flush)
    }

    fn resume(&self, device: &DeviceName) -> Result<(), KernelError> {
        self.dm.resume(device)
    }

    fn remove(&self, device: &DeviceName) -> Result<(), KernelError> {
        self.dm.remove(device)
    }

    fn rename(&self, device: &DeviceName, to: &DeviceName) -> Result<(), KernelError> {
        self.dm.rename(device, to)
    }

    fn links_set(&self, links: LinksSet) -> Result<ObservedNode, KernelError> {
        netlink::links_set(&links).map_err(said(format!("hand links to node {}", links.node)))
    }

    fn links_drop(&self, node: &NodeName, slots: &[Slot], force: bool) -> Result<(), KernelError> {
        netlink::links_drop(node, slots, force).map_err(said(format!("drop links of node {node}")))
    }

    fn set_wanted(&self, node: &NodeName, wanted: u32) -> Result<(), KernelError> {
        let what = format!("set the number of links of node {node} to {wanted}");
        netlink::set_wanted(node, wanted).map_err(said(what))
    }

    fn set_conduct(&self, node: &NodeName, conduct: &Conduct) -> Result<(), KernelError> {
        let what = format!("change the settings of node {node}");
        netlink::set_conduct(node, conduct).map_err(said(what))
    }

    fn fenced(&self, node: &NodeName, fenced: Fenced) -> Result<ObservedNode, KernelError> {
        let what = match fenced {
            Fenced::Link { slot, .. } => {
                format!("lift the guards of an old link in slot {slot} of node {node}")
            }
            Fenced::All => format!("lift all guards of node {node}"),
        };
        netlink::fenced(node, fenced).map_err(said(what))
    }

    fn fail_pending(&self, node: &NodeName) -> Result<(), KernelError> {
        let what = format!("fail what is pending on node {node}");
        netlink::fail_pending(node).map_err(said(what))
    }

    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
        events::listen().map_err(said("listen to dm-dst's events"))
    }

    fn device_events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        dm::events::listen()
    }
}

/// NBD over TCP and Unix sockets; each handshake has the same limit.
#[derive(Debug)]
pub struct RealConnector {
    limit: Duration,
    /// Read once: later the disk that the files lie on may be a device of ours, whose node is dead.
    client: OnceLock<Id>,
    read: ReadClient,
}

type ReadClient = fn() -> Result<Id, ClientIdError>;

impl Default for RealConnector {
    fn default() -> Self {
        RealConnector::reading(client_id)
    }
}

fn unreachable(uri: &NbdUri, error: &NbdError) -> ConnectError {
    ConnectError {
        message: format!("{uri}: {error}"),
    }
}

impl RealConnector {
    fn reading(read: ReadClient) -> Self {
        let connector = RealConnector {
            limit: HANDSHAKE_TIMEOUT,
            client: OnceLock::new(),
            read,
        };
        // What is wrong is told by whoever needs it, and may be mended by then.
        let _ = connector.this_client();
        connector
    }

    fn this_client(&self) -> Result<Id, ConnectError> {
        if let Some(client) = self.client.get() {
            return Ok(*client);
        }
        let client = (self.read)().map_err(|error| ConnectError {
            message: error.to_string(),
        })?;
        Ok(*self.client.get_or_init(|| client))
    }
}

impl Connector for RealConnector {
    fn new_session(&self, uri: &NbdUri, first: Generation) -> Result<Session, ConnectError> {
        Ok(Session::begin(self.this_client()?, uri.mark(), first))
    }

    async fn probe(&self, uri: &NbdUri) -> Result<Probed, ConnectError> {
        let probed = nbd::probe(uri, self.this_client()?, self.limit).await;
        probed.map_err(|e| unreachable(uri, &e))
    }

    async fn fence(&self, uri: &NbdUri, fence: &Fence) -> Result<(), ConnectError> {
        let fenced = nbd::fence(uri, fence, self.limit).await;
        fenced.map_err(|e| unreachable(uri, &e))
    }

    async fn connect(&self, uri: &NbdUri, attach: &Attach) -> Result<Connection, ConnectError> {
        let connected = nbd::connect(uri, attach, self.limit).await;
        connected.map_err(|e| unreachable(uri, &e))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn an_unreachable_node_is_named_with_its_address() {
        let uri: NbdUri = "nbd+unix:///disk?socket=/nonexistent/s".parse().unwrap();
        let connector = RealConnector::default();
        let attach = Attach {
            session: Session::default(),
            slot: Slot(0),
            generation: Generation(1),
            steal: false,
            timeout: None,
        };
        let text = connector
            .connect(&uri, &attach)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("nbd+unix:///disk?socket=/nonexistent/s: "),
            "{text}"
        );
        assert!(text.contains("can't connect"), "{text}");
    }

    #[test]
    fn who_this_machine_is_is_read_once() {
        static READ: AtomicUsize = AtomicUsize::new(0);
        let connector = RealConnector::reading(|| {
            READ.fetch_add(1, Ordering::SeqCst);
            Ok(Id([7; 16]))
        });
        assert_eq!(READ.load(Ordering::SeqCst), 1, "at the start");
        let uri: NbdUri = "nbd://h/".parse().unwrap();
        for _ in 0..3 {
            let session = connector.new_session(&uri, Generation(1)).unwrap();
            assert_eq!(session.client, Id([7; 16]));
        }
        assert_eq!(READ.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_refusal_keeps_operation_errno_and_words() {
        let error = said("do it")(NetlinkError::FamilyAbsent);
        let expected = "do it: dm-dst module isn't loaded: modprobe dm-dst";
        assert_eq!(error.to_string(), expected);
        assert!(error.is(Errno::ENOENT));
    }
}
