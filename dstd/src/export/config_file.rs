//! The node server's YAML: read, checked, and what is wrong with it told with file, line and column.
//!
//! Owns the keys of the file. Called by `cli::export` and at a reload. Shares YAML and errors with `topology`.
//! Never looks at the system but for this one file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::str::FromStr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::access::{Access, Prefix};
use super::config::{
    Config, DRAIN_TIMEOUT, ExportConfig, HOLDER_TIMEOUT, Listen, description_fault, name_fault,
};
use super::limits::Limits;
use crate::topology::scalar::{self, TimeSpan, Version};
use crate::topology::yaml::{self, Fault};
use crate::topology::{At, Path, Place, TopologyError, TopologyErrors, YesNo};
use crate::units::{Id, Sectors};

/// A value as it is written; it is understood later, so that all that are wrong are told at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Text(String);

impl FromStr for Text {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Text(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        scalar::text(d, "one value")
    }
}

#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with version, listen, exports and limits"
)]
struct FileSpec {
    #[allow(dead_code)]
    version: Version,
    #[serde(default)]
    listen: Vec<Text>,
    exports: BTreeMap<Text, ExportSpec>,
    #[serde(default)]
    limits: LimitsSpec,
    drain_timeout: Option<Text>,
    workers: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping like {path: /PATH}")]
struct ExportSpec {
    path: Text,
    read_only: Option<Text>,
    shared: Option<Text>,
    description: Option<Text>,
    default: Option<Text>,
    allow: Option<Vec<Text>>,
    #[serde(default)]
    read_only_for: Vec<Text>,
    identity: Option<Text>,
    holder_timeout: Option<Text>,
    reopen: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping like {connections: 1024}")]
struct LimitsSpec {
    connections: Option<Text>,
    connections_per_peer: Option<Text>,
    handshakes: Option<Text>,
    handshakes_per_peer: Option<Text>,
    handshake_timeout: Option<Text>,
    handshake_idle: Option<Text>,
    in_flight_per_link: Option<Text>,
    in_flight: Option<Text>,
}

/// The names of the exports, whatever is below them.
#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    exports: BTreeMap<Text, IgnoredAny>,
}

pub fn load(path: &FsPath) -> Result<Config, TopologyErrors> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) => Err(TopologyErrors(vec![TopologyError {
            place: Place::file(path),
            message: format!("can't be read: {error}"),
        }])),
    }
}

/// `file` is for the errors.
pub fn parse(file: impl Into<PathBuf>, text: &str) -> Result<Config, TopologyErrors> {
    let mut reader = Reader {
        file: file.into(),
        text,
        errors: Vec::new(),
    };
    let config = match yaml::parse_as::<FileSpec>(text, "exports") {
        Ok(spec) => Some(reader.config(spec)),
        Err(first) => {
            reader.faults(first);
            None
        }
    };
    reader.errors.sort();
    reader.errors.dedup();
    match config {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => Err(TopologyErrors(reader.errors)),
    }
}

struct Reader<'a> {
    file: PathBuf,
    text: &'a str,
    errors: Vec<TopologyError>,
}

impl Reader<'_> {
    /// The first fault of the file, and the first one of each export: serde stops at the first of what it reads.
    fn faults(&mut self, first: Fault) {
        let names = yaml::parse_as::<Names>(self.text, "")
            .map_or_else(|_| vec![], |n| n.exports.into_keys().collect::<Vec<_>>());
        let exports = names.iter().filter_map(|name| {
            yaml::fault_at::<ExportSpec>(self.text, &["exports", name.0.as_str()])
        });
        let mut faults: Vec<_> = exports.collect();
        faults.extend(yaml::fault_at::<LimitsSpec>(self.text, &["limits"]));
        faults.push(first);
        for fault in faults {
            let place = Place::new(&self.file, self.text, fault.line, fault.column);
            self.errors.push(TopologyError {
                place,
                message: fault.message,
            });
        }
    }

    fn wrong(&mut self, path: &Path, at: At, message: String) {
        let place = match yaml::locate(self.text, path, at) {
            Some((line, column)) => Place::new(&self.file, self.text, line, column),
            None => Place::file(&self.file),
        };
        self.errors.push(TopologyError { place, message });
    }

    /// The value of a key, or its default.
    fn value<T: FromStr>(&mut self, path: &Path, key: &str, text: Option<&Text>, default: T) -> T
    where
        T::Err: fmt::Display,
    {
        match text.map(|text| text.0.parse::<T>()) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(error)) => {
                self.wrong(&path.to(key), At::Value, error.to_string());
                default
            }
        }
    }

    fn list<T: FromStr>(&mut self, path: &Path, key: &str, texts: &[Text]) -> Vec<T>
    where
        T::Err: fmt::Display,
    {
        let mut found = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match text.0.parse::<T>() {
                Ok(value) => found.push(value),
                Err(error) => self.wrong(&path.to(key).to(i), At::Value, error.to_string()),
            }
        }
        found
    }

    fn config(&mut self, spec: FileSpec) -> Config {
        let root = Path::root();
        let mut exports = BTreeMap::new();
        for (name, export) in &spec.exports {
            let path = root.to("exports").to(name.0.as_str());
            if let Some(fault) = name_fault(&name.0) {
                self.wrong(&path, At::Key, fault);
            }
            exports.insert(name.0.clone(), self.export(&path, export));
        }
        if exports.is_empty() {
            let message = "there is no export: write `NAME: {path: /PATH}`".to_owned();
            self.wrong(&root.to("exports"), At::Value, message);
        }
        self.defaults(&exports);
        self.twice_served(&exports);
        let listen: Vec<Listen> = self.list(&root, "listen", &spec.listen);
        for (i, place) in listen.iter().enumerate() {
            if listen[..i].contains(place) {
                let message = format!("`{place}` stands here a second time: remove one");
                self.wrong(&root.to("listen").to(i), At::Value, message);
            }
        }
        let drain = spec.drain_timeout.as_ref();
        let workers: Option<Count> = spec
            .workers
            .as_ref()
            .map(|text| self.value(&root, "workers", Some(text), Count(1)));
        Config {
            exports,
            listen,
            limits: self.limits(&spec.limits),
            drain_timeout: self
                .value(&root, "drain_timeout", drain, TimeSpan(DRAIN_TIMEOUT))
                .0,
            workers: workers.map(|count| count.0),
        }
    }

    fn export(&mut self, at: &Path, spec: &ExportSpec) -> ExportConfig {
        let path = PathBuf::from(&spec.path.0);
        if !path.is_absolute() {
            let message = format!(
                "`{}` doesn't begin with `/`: write the whole path, a service has no directory of its own",
                spec.path.0
            );
            self.wrong(&at.to("path"), At::Value, message);
        }
        let description = spec.description.as_ref().map_or("", |text| &text.0);
        if let Some(fault) = description_fault(description) {
            self.wrong(&at.to("description"), At::Value, fault);
        }
        let allow: Option<Vec<Prefix>> =
            spec.allow.as_ref().map(|list| self.list(at, "allow", list));
        if spec.allow.as_ref().is_some_and(Vec::is_empty) {
            let message = "the list is empty, so nobody could come: name somebody, or leave `allow` out for everybody";
            self.wrong(&at.to("allow"), At::Value, message.to_owned());
        }
        let (read_only, shared, default) = (&spec.read_only, &spec.shared, &spec.default);
        let identity: Option<Identity> = spec
            .identity
            .as_ref()
            .map(|text| self.value(at, "identity", Some(text), Identity(Id::default())));
        let holder = spec.holder_timeout.as_ref();
        ExportConfig {
            path,
            read_only: self.yes(at, "read_only", read_only.as_ref()),
            shared: self.yes(at, "shared", shared.as_ref()),
            description: description.to_owned(),
            default: self.yes(at, "default", default.as_ref()),
            access: Access {
                allow,
                read_only_for: self.list(at, "read_only_for", &spec.read_only_for),
            },
            identity: identity.map(|identity| identity.0),
            holder_timeout: self
                .value(at, "holder_timeout", holder, TimeSpan(HOLDER_TIMEOUT))
                .0,
            reopen: self.value(at, "reopen", spec.reopen.as_ref(), Number(0)).0,
        }
    }

    fn yes(&mut self, path: &Path, key: &str, text: Option<&Text>) -> bool {
        self.value(path, key, text, YesNo::No) == YesNo::Yes
    }

    fn defaults(&mut self, exports: &BTreeMap<String, ExportConfig>) {
        let own = exports.get_key_value("");
        let marked = exports.iter().filter(|(_, export)| export.default);
        let mut names = own.into_iter().chain(marked).map(|(name, _)| name);
        let Some(first) = names.next() else { return };
        for name in names.filter(|name| *name != first).collect::<Vec<_>>() {
            let path = Path::root().to("exports").to(name.as_str()).to("default");
            let message = format!(
                "`{first}` is the default export already: only one can be (the export with the empty name always is)"
            );
            self.wrong(&path, At::Value, message);
        }
    }

    /// The storage's lock would refuse the second; said here, it has a place.
    fn twice_served(&mut self, exports: &BTreeMap<String, ExportConfig>) {
        let mut seen: BTreeMap<&FsPath, (&str, bool)> = BTreeMap::new();
        for (name, export) in exports {
            let here = (name.as_str(), export.read_only);
            let Some((first, only_read)) = seen.insert(&export.path, here) else {
                continue;
            };
            if !(only_read && export.read_only) {
                let path = Path::root().to("exports").to(name.as_str()).to("path");
                let message = format!(
                    "`{first}` serves the same file, and two exports can share one only if both say `read_only: yes`. \
                     One export is enough for any number of clients; `read_only_for` keeps some from writing"
                );
                self.wrong(&path, At::Value, message);
            }
        }
    }

    fn limits(&mut self, spec: &LimitsSpec) -> Limits {
        let at = &Path::root().to("limits");
        let preset = Limits::default();
        let mut count =
            |key, text: &Option<Text>, preset| self.value(at, key, text.as_ref(), Count(preset)).0;
        let connections = count("connections", &spec.connections, preset.connections);
        let connections_per_peer = count(
            "connections_per_peer",
            &spec.connections_per_peer,
            preset.connections_per_peer,
        );
        let handshakes = count("handshakes", &spec.handshakes, preset.handshakes);
        let handshakes_per_peer = count(
            "handshakes_per_peer",
            &spec.handshakes_per_peer,
            preset.handshakes_per_peer,
        );
        let mut time = |key, text: &Option<Text>, preset| {
            self.value(at, key, text.as_ref(), TimeSpan(preset)).0
        };
        let handshake_timeout = time(
            "handshake_timeout",
            &spec.handshake_timeout,
            preset.handshake_timeout,
        );
        let handshake_idle = time(
            "handshake_idle",
            &spec.handshake_idle,
            preset.handshake_idle,
        );
        let mut size =
            |key, text: &Option<Text>, preset| self.value(at, key, text.as_ref(), Size(preset)).0;
        let in_flight_per_link = size(
            "in_flight_per_link",
            &spec.in_flight_per_link,
            preset.in_flight_per_link,
        );
        let in_flight = size("in_flight", &spec.in_flight, preset.in_flight);
        Limits {
            connections,
            connections_per_peer,
            handshakes,
            handshakes_per_peer,
            handshake_timeout,
            handshake_idle,
            in_flight_per_link,
            in_flight,
        }
    }
}

/// At least one.
struct Count(usize);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|n| *n > 0);
        count
            .map(Count)
            .ok_or_else(|| format!("`{text}` is no number from 1 up"))
    }
}

struct Number(u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().map(Number);
        number.map_err(|_| format!("`{text}` is no whole number from 0 up"))
    }
}

/// In bytes.
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sectors: Sectors = text
            .parse()
            .map_err(|error: crate::units::SizeError| error.to_string())?;
        let bytes = sectors.bytes().map(|bytes| Size(bytes.0));
        bytes.ok_or_else(|| format!("`{text}` is too large"))
    }
}

struct Identity(Id);

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(&digits, 16) {
            Ok(id) if whole && id != 0 => Ok(Identity(Id(id.to_be_bytes()))),
            _ => Err(format!(
                "`{text}` is no identity: write a UUID, 32 hexadecimal digits that aren't all 0 (`uuidgen` makes one)"
            )),
        }
    }
}
