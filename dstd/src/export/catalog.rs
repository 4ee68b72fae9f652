//! The exports as they are now: which name leads to which opened storage, and to which links.
//!
//! Owns the opened storage of each export, its writer role and the list of its links. Made at the start and changed
//! by reload; asked by the handshake. Names of clients are only looked up in a map: none ever becomes a path.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::Peer;
use super::backend::{Backend, OpenOptionsOf};
use super::config::{Config, ExportConfig};
use super::link::LinkGate;
use super::roles::{RoleConfig, Roles};
use crate::kernel::NbdFlags;

/// An export's storage, open; all its clients share one.
#[derive(Debug)]
pub struct Open {
    pub backend: Arc<Backend>,
    pub roles: Arc<Roles>,
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    /// It goes away: no link is added any more.
    closing: bool,
    next: u64,
    gates: HashMap<u64, Arc<LinkGate>>,
}

impl Open {
    /// May block on the disk. The text is for the operator.
    pub fn storage(config: &ExportConfig) -> Result<Arc<Open>, String> {
        let options = OpenOptionsOf {
            identity: config.identity.map(|identity| identity.0),
            ..OpenOptionsOf::new(&config.path, config.read_only)
        };
        let backend = Backend::open(&options).map_err(|error| error.to_string())?;
        Ok(Open::new(Arc::new(backend), config))
    }

    pub fn new(backend: Arc<Backend>, config: &ExportConfig) -> Arc<Open> {
        let roles = Roles::new(RoleConfig {
            shared: config.shared,
            holder_timeout: config.holder_timeout,
        });
        Arc::new(Open {
            backend,
            roles,
            links: Mutex::default(),
        })
    }

    /// `None`: the export is going away, nobody may come any more.
    pub fn register(self: &Arc<Self>, gate: &Arc<LinkGate>) -> Option<Registered> {
        let mut links = self.links();
        if links.closing {
            return None;
        }
        links.next += 1;
        let number = links.next;
        links.gates.insert(number, gate.clone());
        Some(Registered {
            open: self.clone(),
            number,
        })
    }

    /// From here on no link is added; returns those that there are.
    pub fn close(&self) -> Vec<Arc<LinkGate>> {
        let mut links = self.links();
        links.closing = true;
        links.gates.values().cloned().collect()
    }

    pub fn link_count(&self) -> usize {
        self.links().gates.len()
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link in its export's list; taken off it when dropped.
#[derive(Debug)]
pub struct Registered {
    open: Arc<Open>,
    number: u64,
}

impl Registered {
    /// The export goes away, and its links with it.
    pub fn is_closing(&self) -> bool {
        self.open.links().closing
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.open.links().gates.remove(&self.number);
    }
}

/// One export under its name.
#[derive(Debug, Clone)]
pub struct Export {
    pub name: String,
    pub config: ExportConfig,
    /// `Err`: not to be had now; why, for the operator.
    pub open: Result<Arc<Open>, String>,
}

impl Export {
    /// Whether this client can never write, whoever has the writer role.
    pub fn read_only_for(&self, open: &Open, peer: &Peer) -> bool {
        self.config.read_only
            || open.backend.traits().read_only
            || self.config.access.only_reads(peer)
    }
}

/// All exports.
#[derive(Debug, Default)]
pub struct Catalog {
    exports: BTreeMap<String, Export>,
    default: Option<String>,
}

impl Catalog {
    pub fn new(config: &Config, exports: BTreeMap<String, Export>) -> Self {
        let default = config.default_export().map(str::to_owned);
        Catalog { exports, default }
    }

    /// The export that a client means, if it may know of it.
    pub fn find(&self, name: &str, peer: &Peer) -> Option<&Export> {
        let name = match name {
            "" => self.default.as_deref()?,
            name => name,
        };
        let export = self.exports.get(name)?;
        export.config.access.allows(peer).then_some(export)
    }

    /// What this client may know of.
    pub fn visible(&self, peer: &Peer) -> impl Iterator<Item = &Export> {
        let allowed = |export: &&Export| export.config.access.allows(peer);
        self.exports.values().filter(allowed)
    }

    pub fn exports(&self) -> &BTreeMap<String, Export> {
        &self.exports
    }
}

/// What a link's requests may be, in the protocol's bits.
pub fn transmission_flags(backend: &Backend, read_only: bool, structured: bool) -> NbdFlags {
    let traits = backend.traits();
    let mut flags = NbdFlags::HAS_FLAGS
        | NbdFlags::SEND_FLUSH
        | NbdFlags::SEND_FUA
        | NbdFlags::SEND_CACHE
        // True of every export: all connections share one page cache, and a flush covers what any of them wrote.
        | NbdFlags::CAN_MULTI_CONN;
    for (when, bits) in [
        (read_only, NbdFlags::READ_ONLY),
        (traits.rotational, NbdFlags::ROTATIONAL),
        (!read_only && traits.can_trim, NbdFlags::SEND_TRIM),
        (
            !read_only && traits.can_zero,
            NbdFlags::SEND_WRITE_ZEROES | NbdFlags::SEND_FAST_ZERO,
        ),
        (structured, NbdFlags::SEND_DF),
    ] {
        if when {
            flags |= bits;
        }
    }
    NbdFlags(flags)
}
