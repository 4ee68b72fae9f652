//! What the kernel tells on its own: state changes of nodes and links.
//!
//! Owns the subscription to group "events". Called by `kernel::real`. Lost events become one
//! `Overflow`, as the listener then has to look afresh. Ends when the module goes or nobody
//! listens any more; whoever listens then polls, and may subscribe again.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::sync::mpsc;

use super::client;
use super::error::NetlinkError;
use super::family::{self, Family};
use super::message;
use super::wire;
use crate::kernel::KernelEvent;

/// Events that wait for the listener; beyond that they wait in the kernel, then overflow.
const WAITING: usize = 256;

/// Subscribes; must be called within a tokio runtime.
pub fn listen() -> Result<mpsc::Receiver<KernelEvent>, NetlinkError> {
    let family = client::find_family()?;
    let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
    client::prepare(socket.socket_mut())?;
    // The module's end is told there only: our own group just falls silent.
    socket.socket_mut().add_membership(family::NOTIFY_GROUP)?;
    socket
        .socket_mut()
        .add_membership(family.events)
        .map_err(refused)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            end = forward(&socket, family, &sender) => {
                tracing::debug!(?end, "no more events of dm-dst");
                let _ = sender.send(KernelEvent::Overflow).await;
            }
        }
    });
    Ok(receiver)
}

fn refused(error: io::Error) -> NetlinkError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetlinkError::NotPermitted,
        _ => error.into(),
    }
}

/// Returns when nothing more will come.
async fn forward(
    socket: &TokioSocket,
    family: Family,
    sender: &mpsc::Sender<KernelEvent>,
) -> io::Result<()> {
    loop {
        let heard = match socket.recv_from_full().await {
            Ok((datagram, sender)) if sender.port_number() == 0 => hear(&datagram, family),
            Ok(_) => continue,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Heard {
                events: vec![KernelEvent::Overflow],
                end: false,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in heard.events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        if heard.end {
            return Ok(());
        }
    }
}

/// What one datagram tells.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    events: Vec<KernelEvent>,
    /// The family is gone.
    end: bool,
}

/// What can't be understood counts as lost.
fn hear(datagram: &[u8], family: Family) -> Heard {
    let mut heard = Heard {
        events: Vec::new(),
        end: false,
    };
    let Ok(messages) = wire::split(datagram) else {
        heard.events.push(KernelEvent::Overflow);
        return heard;
    };
    for message in messages {
        let Ok((command, attributes)) = message.generic() else {
            continue;
        };
        if message.kind == family.id {
            match message::event(command, attributes) {
                Ok(event) => heard.events.extend(event),
                Err(error) => {
                    tracing::warn!("an event of dm-dst can't be read: {error}");
                    heard.events.push(KernelEvent::Overflow);
                }
            }
        } else if message.kind == family::GENL_ID_CTRL {
            heard.end |= family::is_end_of(family.id, command, attributes);
        }
    }
    heard
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
