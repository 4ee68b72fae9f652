//! From a device of the topology, and what its nodes and local disks are, to the table it must have.
//! Called by plan and cli. Pure. Never guesses a size: what is missing is said, not assumed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{DstArgs, Extent, Features, Line, TARGET};
use crate::kernel::{Access, Negotiated};
use crate::topology::{DeviceSpec, DstItem, Item, LinearItem};
use crate::units::{BlockSize, Bytes, DeviceName, DeviceNumber, NodeName, Sectors};

/// What a table must know of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub size: Bytes,
    pub min_block: u32,
    pub read_only: bool,
}

impl From<&Negotiated> for NodeFacts {
    fn from(n: &Negotiated) -> Self {
        Self {
            size: n.size,
            min_block: n.min_block,
            read_only: n.flags.read_only(),
        }
    }
}

/// What a table must know of a local disk. Without a number its path stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFacts {
    pub size: Sectors,
    pub read_only: bool,
    pub number: Option<DeviceNumber>,
}

/// All that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    pub locals: BTreeMap<PathBuf, LocalFacts>,
}

/// The table that a device must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub lines: Vec<Line>,
    pub access: Access,
}

impl Table {
    pub fn size(&self) -> Sectors {
        self.lines.last().and_then(Line::end).unwrap_or_default()
    }
}

/// A fact that a table can't be made without.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    Node(NodeName),
    Local(PathBuf),
}

/// Why there is no table. `item` counts from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    #[error("{}", missing_text(what))]
    Missing { item: usize, what: Missing },
    #[error("{message}")]
    Refused { item: usize, message: String },
}

fn missing_text(what: &Missing) -> String {
    match what {
        Missing::Node(node) => {
            format!("the size of node `{node}` is not known, and the item has no length")
        }
        Missing::Local(path) => format!("the size of {} is not known", path.display()),
    }
}

impl RenderError {
    pub fn item(&self) -> usize {
        match self {
            Self::Missing { item, .. } | Self::Refused { item, .. } => *item,
        }
    }
}

/// The nodes that a device's table names, in the order of their first use.
pub fn nodes_of(spec: &DeviceSpec) -> Vec<NodeName> {
    let mut nodes = Vec::new();
    for item in &spec.table {
        let named = match item {
            Item::Dst(dst) => vec![dst.node.clone()],
            Item::Linear(_) => Vec::new(),
            Item::Raw(raw) => DstArgs::of(&raw.0)
                .map(|args| args.extents.into_iter().map(|e| e.node).collect())
                .unwrap_or_default(),
        };
        for node in named {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
    }
    nodes
}

/// The local disks that a device's table names: those of `linear` items, and paths in raw lines.
pub fn locals_of(spec: &DeviceSpec) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for item in &spec.table {
        match item {
            Item::Dst(_) => {}
            Item::Linear(linear) => paths.push(linear.device.clone()),
            Item::Raw(raw) => paths.extend(paths_in(&raw.0.args).map(PathBuf::from)),
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

fn paths_in(args: &str) -> impl Iterator<Item = &str> {
    args.split(' ').filter(|word| word.starts_with("/dev/"))
}

/// The table of a device.
pub fn render(name: &DeviceName, spec: &DeviceSpec, facts: &Facts) -> Result<Table, RenderError> {
    let access = access(name, spec, facts)?;
    let mut lines = Lines {
        facts,
        features: Features {
            block_size: spec.block_size,
            read_only: access == Access::ReadOnly,
            no_discard: spec.no_discard,
        },
        name,
        done: Vec::new(),
        extents: Vec::new(),
        position: Sectors::ZERO,
    };
    for (i, item) in spec.table.iter().enumerate() {
        match item {
            Item::Dst(dst) => lines.dst(i, dst)?,
            Item::Linear(linear) => lines.linear(i, linear)?,
            Item::Raw(raw) => lines.raw(i, &raw.0)?,
        }
    }
    lines.end_dst(spec.table.len().saturating_sub(1))?;
    Ok(Table {
        lines: lines.done,
        access,
    })
}

fn refused<T>(item: usize, message: String) -> Result<T, RenderError> {
    Err(RenderError::Refused { item, message })
}

/// Read-only where the topology says so, or where something below can only be read.
fn access(name: &DeviceName, spec: &DeviceSpec, facts: &Facts) -> Result<Access, RenderError> {
    let cause = spec
        .table
        .iter()
        .enumerate()
        .find_map(|(i, item)| read_only_cause(item, facts).map(|cause| (i, cause)));
    match (spec.read_only, cause) {
        (Some(true), _) | (None, Some(_)) => Ok(Access::ReadOnly),
        (_, None) => Ok(Access::ReadWrite),
        (Some(false), Some((item, cause))) => refused(
            item,
            format!(
                "{cause} is read-only, and device `{name}` says `read_only: false`: take that out, or make it writable"
            ),
        ),
    }
}

fn read_only_cause(item: &Item, facts: &Facts) -> Option<String> {
    let node = |node: &NodeName| {
        let known = facts.nodes.get(node).filter(|n| n.read_only);
        known.map(|_| format!("the export of node `{node}`"))
    };
    match item {
        Item::Dst(dst) => node(&dst.node),
        Item::Linear(linear) => {
            let known = facts.locals.get(&linear.device).filter(|l| l.read_only);
            known.map(|_| linear.device.display().to_string())
        }
        Item::Raw(raw) => {
            let args = DstArgs::of(&raw.0).ok()?;
            if args.features.read_only {
                return Some("this dst line".to_owned());
            }
            args.extents.iter().find_map(|e| node(&e.node))
        }
    }
}

/// Lines as they grow; neighbouring extents wait in `extents` until their line ends.
struct Lines<'a> {
    facts: &'a Facts,
    features: Features,
    name: &'a DeviceName,
    done: Vec<Line>,
    extents: Vec<Extent>,
    /// The end of all that is in `done` and `extents`.
    position: Sectors,
}

impl Lines<'_> {
    fn dst(&mut self, item: usize, dst: &DstItem) -> Result<(), RenderError> {
        let facts = self.facts.nodes.get(&dst.node).copied();
        let length = match (dst.length, facts) {
            (Some(length), _) => length,
            (None, Some(facts)) => self.rest_of(item, dst, facts)?,
            (None, None) => {
                let what = Missing::Node(dst.node.clone());
                return Err(RenderError::Missing { item, what });
            }
        };
        let extent = Extent {
            node: dst.node.clone(),
            offset: dst.offset,
            length,
        };
        self.check_extent(item, &extent, self.features.block_size)?;
        self.advance(item, length)?;
        self.extents.push(extent);
        Ok(())
    }

    /// From the item's offset to the export's last whole block.
    fn rest_of(
        &self,
        item: usize,
        dst: &DstItem,
        facts: NodeFacts,
    ) -> Result<Sectors, RenderError> {
        let block = self.features.block_size.sectors();
        let usable = facts.size.whole_sectors().0 / block * block;
        let rest = usable.checked_sub(dst.offset.0).filter(|rest| *rest > 0);
        match rest {
            Some(rest) => Ok(Sectors(rest)),
            None => refused(
                item,
                format!(
                    "the export of node `{}` has {usable} usable sectors, and the item begins at sector {}: lower the offset",
                    dst.node, dst.offset
                ),
            ),
        }
    }

    /// What is known of the node must fit the extent; an unknown node is the kernel's to check.
    fn check_extent(
        &self,
        item: usize,
        extent: &Extent,
        block: BlockSize,
    ) -> Result<(), RenderError> {
        let Some(facts) = self.facts.nodes.get(&extent.node) else {
            return Ok(());
        };
        let node = &extent.node;
        let end = extent.end().unwrap_or(Sectors(u64::MAX));
        if end > facts.size.whole_sectors() {
            return refused(
                item,
                format!(
                    "the extent ends at sector {end}, and the export of node `{node}` has only {} ({}): shorten the extent, or enlarge the export",
                    facts.size.whole_sectors(),
                    facts.size
                ),
            );
        }
        if facts.min_block > block.bytes() {
            let advice = match facts.min_block {
                ..=4096 => format!(
                    "set `block_size: {}` on device `{}`",
                    facts.min_block, self.name
                ),
                _ => "no device can have blocks that large: set the server to smaller ones"
                    .to_owned(),
            };
            return refused(
                item,
                format!(
                    "node `{node}` takes blocks of {} bytes and up, device `{}` has block_size {block}: {advice}",
                    facts.min_block, self.name
                ),
            );
        }
        Ok(())
    }

    fn linear(&mut self, item: usize, linear: &LinearItem) -> Result<(), RenderError> {
        let Some(facts) = self.facts.locals.get(&linear.device) else {
            let what = Missing::Local(linear.device.clone());
            return Err(RenderError::Missing { item, what });
        };
        let path = linear.device.display();
        let rest = facts.size.checked_sub(linear.offset).unwrap_or_default();
        let length = linear.length.unwrap_or(rest);
        if length > rest || length == Sectors::ZERO {
            return refused(
                item,
                format!(
                    "{path} has {} sectors, the item begins at {} and wants {length}: change offset or length",
                    facts.size, linear.offset
                ),
            );
        }
        self.end_dst(item)?;
        let args = format!("{} {}", local_word(&linear.device, facts), linear.offset);
        self.push(item, length, "linear", args)
    }

    fn raw(&mut self, item: usize, line: &Line) -> Result<(), RenderError> {
        if line.start != Sectors::ZERO && line.start != self.position {
            return refused(
                item,
                format!(
                    "the line starts at {}, the item before it ends at {}: write {}, or 0 for \"where the item before it ends\"",
                    line.start, self.position, self.position
                ),
            );
        }
        let args = match DstArgs::of(line) {
            Ok(args) => self.raw_dst(item, args)?,
            Err(_) => self.numbers_for_paths(&line.args),
        };
        self.end_dst(item)?;
        self.push(item, line.length, &line.target, args)
    }

    fn raw_dst(&self, item: usize, mut args: DstArgs) -> Result<String, RenderError> {
        for extent in &args.extents {
            self.check_extent(item, extent, args.features.block_size)?;
        }
        args.features.read_only |= self.features.read_only;
        Ok(args.to_string())
    }

    fn numbers_for_paths(&self, args: &str) -> String {
        let words: Vec<_> = args
            .split(' ')
            .map(|word| match self.facts.locals.get(Path::new(word)) {
                Some(facts) => local_word(Path::new(word), facts),
                None => word.to_owned(),
            })
            .collect();
        words.join(" ")
    }

    fn push(
        &mut self,
        item: usize,
        length: Sectors,
        target: &str,
        args: String,
    ) -> Result<(), RenderError> {
        let start = self.position;
        self.advance(item, length)?;
        self.done.push(Line {
            start,
            length,
            target: target.to_owned(),
            args,
        });
        Ok(())
    }

    fn advance(&mut self, item: usize, length: Sectors) -> Result<(), RenderError> {
        let end = self
            .position
            .checked_add(length)
            .filter(|end| end.bytes().is_some());
        match end {
            Some(end) => {
                self.position = end;
                Ok(())
            }
            None => refused(
                item,
                "the items together are larger than a device can be".to_owned(),
            ),
        }
    }

    /// Makes one line of the extents that wait. `item` is where a wrong start is blamed on.
    fn end_dst(&mut self, item: usize) -> Result<(), RenderError> {
        if self.extents.is_empty() {
            return Ok(());
        }
        let args = DstArgs {
            extents: std::mem::take(&mut self.extents),
            features: self.features,
        };
        let start = self.done.last().and_then(Line::end).unwrap_or_default();
        let length = self.position.checked_sub(start).unwrap_or_default();
        if !start.is_aligned_to(self.features.block_size) {
            return refused(
                item,
                format!(
                    "the extents before this would start at sector {start}, no multiple of block_size {}: give the item before them a length that is",
                    self.features.block_size
                ),
            );
        }
        self.done.push(Line {
            start,
            length,
            target: TARGET.to_owned(),
            args: args.to_string(),
        });
        Ok(())
    }
}

fn local_word(path: &Path, facts: &LocalFacts) -> String {
    facts
        .number
        .map_or_else(|| path.display().to_string(), |number| number.to_string())
}
