//! States that no history may pass through, whatever died, failed or hung: checked after each call that changes something.
//! Used by the simulated kernel; what it finds stands in `State::forbidden`, which the property tests want empty.

use super::{LinksSet, ObservedNode, SimDevice, State, Table};
use crate::plan::{Difference, compare};
use crate::table::DstArgs;
use crate::units::NodeName;

/// Node, beginning and end.
type Range = (NodeName, u64, u64);

impl State {
    pub fn forbid(&mut self, what: impl Into<String>) {
        self.forbidden.push(what.into());
    }

    /// dstd changes its own devices only.
    pub(super) fn may_touch(&mut self, verb: &str, device: &str) {
        let others = |d: &SimDevice| !d.uuid.is_ours();
        if self.devices.get(device).is_some_and(others) {
            self.forbid(format!("{verb} {device}: it is somebody else's"));
        }
    }

    /// I/O pauses only to switch tables, and only if that makes a difference.
    pub(super) fn may_suspend(&mut self, device: &str) {
        let Some(d) = self.devices.get(device) else {
            return;
        };
        let lines = |table: &Option<Table>| table.as_ref().map(|t| (t.lines.clone(), t.access));
        if d.inactive.is_none() || lines(&d.inactive) == lines(&d.live) {
            self.forbid(format!("suspend {device}: no other table waits for it"));
        }
    }

    /// A resume that has to switch tables suspends by itself, and then with a flush, which waits for nodes.
    pub(super) fn may_resume(&mut self, device: &str) {
        let Some(d) = self.devices.get(device) else {
            return;
        };
        let (live, inactive) = (d.live.as_ref(), d.inactive.as_ref());
        let flushes = live.is_some() && inactive.is_some() && !d.suspended;
        let change = inactive.and_then(|new| Some(compare(&live?.lines, &new.lines)));
        let shared = inactive.and_then(|new| self.writer_beside(device, new));
        if flushes {
            self.forbid(format!("resume {device}: it would suspend with a flush"));
        }
        if let Some(Difference::Shrink | Difference::OtherData { .. }) = change {
            self.data_changes.push(format!("{device}: {change:?}"));
        }
        if let Some(other) = shared {
            let text = format!("resume {device}: {other} writes the same range of a node");
            self.forbid(text);
        }
    }

    /// Another device whose live table writes what this table of `device` writes, or would after a resume.
    fn writer_beside(&self, device: &str, table: &Table) -> Option<String> {
        let mine = writes(table);
        let others = self.devices.iter().filter(|(name, _)| *name != device);
        let shares = |theirs: &Table| {
            let theirs = writes(theirs);
            mine.iter().any(|a| theirs.iter().any(|b| overlap(a, b)))
        };
        others
            .filter(|(_, d)| d.live.iter().chain(&d.inactive).any(shares))
            .map(|(name, _)| name.clone())
            .next()
    }

    pub(super) fn may_remove(&mut self, device: &str) {
        if self.devices.get(device).is_some_and(|d| d.open_count > 0) {
            self.forbid(format!("remove {device}: it is in use"));
        }
    }
}

/// A live link is replaced only where its server, its address or its settings are others.
pub(super) fn needless(node: &ObservedNode, set: &LinksSet) -> Option<String> {
    let replaces = |link: &super::ObservedLink| set.links.iter().any(|new| new.slot == link.slot);
    let same = node.session == Some(set.session)
        && node.negotiated.as_ref() == Some(&set.negotiated)
        && node.zero_copy == Some(set.zero_copy);
    (same && node.links.iter().any(replaces)).then(|| {
        let name = &node.name;
        format!("links_set {name}: a live link is replaced, and nothing has changed")
    })
}

fn writes(table: &Table) -> Vec<Range> {
    let args = table.lines.iter().filter_map(|l| DstArgs::of(l).ok());
    args.filter(|args| !args.features.read_only)
        .flat_map(|args| args.extents)
        .map(|e| {
            let end = e.offset.0.saturating_add(e.length.0);
            (e.node, e.offset.0, end)
        })
        .collect()
}

fn overlap(a: &Range, b: &Range) -> bool {
    a.0 == b.0 && a.1 < b.2 && b.1 < a.2
}
