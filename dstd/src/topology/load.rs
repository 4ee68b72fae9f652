//! Reads topology files or directories of them and puts them together.
//! Called by cli and reconcile. Collects every error it can before it gives up; never looks at the system but for these files.

use std::collections::BTreeMap;
use std::path::{Path as FsPath, PathBuf};

use super::check;
use super::error::{At, Path, Place, TopologyError, TopologyErrors};
use super::spec::{DeviceSpec, FileSpec, NodeSpec};
use super::yaml;
use crate::units::{DeviceName, NodeName};

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// A node or device and the file (by its index in `Topology::sources`) it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    pub source: usize,
    pub spec: T,
}

/// What should exist. Valid by construction: `load` and `parse` make no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    pub sources: Vec<Source>,
    pub nodes: BTreeMap<NodeName, Entry<NodeSpec>>,
    pub devices: BTreeMap<DeviceName, Entry<DeviceSpec>>,
}

impl Topology {
    /// Reads files, and the `*.yaml` and `*.yml` of directories.
    pub fn load(paths: &[PathBuf]) -> Result<Self, TopologyErrors> {
        let mut errors = Vec::new();
        let mut sources = Vec::new();
        for path in paths {
            match topology_files(path) {
                Ok(files) => sources.extend(files.iter().filter_map(|file| {
                    std::fs::read_to_string(file)
                        .map_err(|error| errors.push(unreadable(file, &error)))
                        .ok()
                        .map(|text| Source {
                            path: file.clone(),
                            text,
                        })
                })),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(TopologyErrors(errors));
        }
        Self::parse(sources)
    }

    /// Puts texts together.
    pub fn parse(sources: Vec<Source>) -> Result<Self, TopologyErrors> {
        let mut errors = Vec::new();
        let mut topology = Self::default();
        let files: Vec<_> = sources.iter().map(|s| yaml::parse(&s.text)).collect();
        topology.sources = sources;
        for (source, file) in files.into_iter().enumerate() {
            match file {
                Ok(file) => topology.merge(source, file, &mut errors),
                Err(fault) => {
                    let Source { path, text } = &topology.sources[source];
                    errors.push(TopologyError {
                        place: Place::new(path, text, fault.line, fault.column),
                        message: fault.message,
                    });
                }
            }
        }
        // Cross-references of half a topology would only repeat the first error in other words.
        if errors.is_empty() {
            errors = check::check(&topology);
        }
        errors.sort();
        errors.dedup();
        if errors.is_empty() {
            Ok(topology)
        } else {
            Err(TopologyErrors(errors))
        }
    }

    /// One text under a name; for tests and standard input.
    pub fn parse_one(
        path: impl Into<PathBuf>,
        text: impl Into<String>,
    ) -> Result<Self, TopologyErrors> {
        Self::parse(vec![Source {
            path: path.into(),
            text: text.into(),
        }])
    }

    fn merge(&mut self, source: usize, file: FileSpec, errors: &mut Vec<TopologyError>) {
        for (name, spec) in file.nodes {
            if let Some(other) = self.nodes.get(&name) {
                let path = Path::root().to("nodes").to(name.as_str());
                errors.push(self.twice("node", name.as_str(), &path, source, other.source));
            } else {
                self.nodes.insert(name, Entry { source, spec });
            }
        }
        for (name, spec) in file.devices {
            if let Some(other) = self.devices.get(&name) {
                let path = Path::root().to("devices").to(name.as_str());
                errors.push(self.twice("device", name.as_str(), &path, source, other.source));
            } else {
                self.devices.insert(name, Entry { source, spec });
            }
        }
    }

    fn twice(&self, what: &str, name: &str, path: &Path, new: usize, old: usize) -> TopologyError {
        let first = self.place(old, path, At::Key);
        self.error(
            new,
            path,
            At::Key,
            format!("the {what} `{name}` already stands at {first}: remove one, or rename it"),
        )
    }

    /// Where a value stands.
    pub fn place(&self, source: usize, path: &Path, at: At) -> Place {
        let Source { path: file, text } = &self.sources[source];
        match yaml::locate(text, path, at) {
            Some((line, column)) => Place::new(file, text, line, column),
            None => Place::file(file),
        }
    }

    pub fn error(&self, source: usize, path: &Path, at: At, message: String) -> TopologyError {
        TopologyError {
            place: self.place(source, path, at),
            message,
        }
    }

    /// Where an item of a device's table stands.
    pub fn item_place(&self, device: &DeviceName, item: usize) -> Option<Place> {
        let entry = self.devices.get(device)?;
        Some(self.place(entry.source, &item_path(device, item), At::Value))
    }
}

/// What tells whether topology files changed: their paths, times and sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<(std::time::SystemTime, u64)>)>);

impl Fingerprint {
    pub fn of(paths: &[PathBuf]) -> Self {
        let files = paths
            .iter()
            .flat_map(|path| topology_files(path).unwrap_or_default());
        let seen = files.map(|file| {
            let state = std::fs::metadata(&file).ok();
            let state = state.and_then(|m| Some((m.modified().ok()?, m.len())));
            (file, state)
        });
        Self(seen.collect())
    }
}

pub fn item_path(device: &DeviceName, item: usize) -> Path {
    Path::root()
        .to("devices")
        .to(device.as_str())
        .to("table")
        .to(item)
}

fn unreadable(file: &FsPath, error: &std::io::Error) -> TopologyError {
    TopologyError {
        place: Place::file(file),
        message: format!("can't be read: {error}"),
    }
}

/// The files that a path names: itself, or the `.yaml` and `.yml` in it.
pub fn topology_files(path: &FsPath) -> Result<Vec<PathBuf>, TopologyError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|file| file.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(TopologyError {
            place: Place::file(path),
            message: "no *.yaml file is in this directory: put a topology there, or name one with --topology".to_owned(),
        });
    }
    Ok(files)
}
