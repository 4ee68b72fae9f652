//! The real kernel and real nodes behind the traits of `kernel`.
//!
//! Owns the joining of `dm`, `netlink` and `nbd`, and the wording of their errors. Called by
//! reconcile and cli. Decides nothing; each method is one effect.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::mpsc;

use super::{
    Access, Attach, Conduct, ConnectError, Connection, Connector, DmUuid, Fence, Fenced, Flush,
    Kernel, KernelError, KernelEvent, LinksSet, LocalDevice, ObservedDevice, ObservedNode, Probed,
    local_device,
};
use crate::dm::Dm;
use crate::nbd::client::HANDSHAKE_TIMEOUT;
use crate::nbd::client_id::client_id;
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
}

/// NBD over TCP and Unix sockets; each handshake has the same limit.
#[derive(Debug, Clone, Copy)]
pub struct RealConnector {
    limit: Duration,
}

impl Default for RealConnector {
    fn default() -> Self {
        RealConnector {
            limit: HANDSHAKE_TIMEOUT,
        }
    }
}

fn unreachable(uri: &NbdUri, error: &NbdError) -> ConnectError {
    ConnectError {
        message: format!("{uri}: {error}"),
    }
}

fn this_client() -> Result<Id, ConnectError> {
    client_id().map_err(|error| ConnectError {
        message: error.to_string(),
    })
}

impl Connector for RealConnector {
    fn new_session(&self, uri: &NbdUri, first: Generation) -> Result<Session, ConnectError> {
        Ok(Session::begin(this_client()?, uri.mark(), first))
    }

    async fn probe(&self, uri: &NbdUri) -> Result<Probed, ConnectError> {
        let probed = nbd::probe(uri, this_client()?, self.limit).await;
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
    fn a_refusal_keeps_operation_errno_and_words() {
        let error = said("do it")(NetlinkError::FamilyAbsent);
        let expected = "do it: dm-dst module isn't loaded: modprobe dm-dst";
        assert_eq!(error.to_string(), expected);
        assert!(error.is(Errno::ENOENT));
    }
}
