//! The topology as it is written: one type for each mapping, one field for each key.
//! Read by yaml; the JSON schema is made from it. Checks only what one value can tell; `check` does the rest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::scalar::{self, LinkCount, Timeout, Version, word};
use crate::nbd::uri::NbdUri;
use crate::table::Line;
use crate::units::{BlockSize, DeviceName, Millis, NodeName, Sectors};

/// One topology file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with version, nodes and devices"
)]
#[schemars(title = "DST topology")]
pub struct FileSpec {
    /// Always 1.
    #[allow(dead_code)]
    version: Version,
    /// Remote exports, by name.
    #[serde(default)]
    pub nodes: BTreeMap<NodeName, NodeSpec>,
    /// What should exist as /dev/mapper/NAME.
    #[serde(default)]
    pub devices: BTreeMap<DeviceName, DeviceSpec>,
}

/// A remote export.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping like {uri: nbd://HOST/EXPORT}"
)]
pub struct NodeSpec {
    /// nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[serde(deserialize_with = "scalar::uri")]
    #[schemars(with = "String")]
    pub uri: NbdUri,
    /// Connections to keep open; more than one only where the server says it can.
    #[serde(default)]
    pub links: LinkCount,
    /// What I/O does while no link is live.
    #[serde(default)]
    pub policy: Policy,
    /// After how long a node without proof is taken as fenced.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// Whether the server ends a connection only when its requests are finished.
    #[serde(default)]
    pub eof_fences: YesNo,
    /// Whether pages go to the socket without a copy.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// What to do when it can't be told whether the server restarted.
    #[serde(default)]
    pub unknown_restart: UnknownRestart,
    /// After how long without a byte a link with requests is lost; tenfold while a discard or a flush is under way.
    #[serde(default)]
    pub timeout: Timeout,
}

/// A local block device made of other storage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping like {table: [...]}")]
pub struct DeviceSpec {
    /// What lies end to end in the device.
    pub table: Vec<Item>,
    /// Logical block size in bytes; 512 where it isn't given.
    #[serde(default)]
    pub block_size: BlockSize,
    /// Refuse writes; decided by the nodes where it isn't given.
    pub read_only: Option<bool>,
    /// Refuse discards.
    #[serde(default)]
    pub no_discard: bool,
}

/// One entry of a device's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Dst(DstItem),
    Linear(LinearItem),
    Raw(RawItem),
}

/// A range of a node; the whole export where offset and length are left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping like {node: NAME, offset: SIZE, length: SIZE}"
)]
pub struct DstItem {
    pub node: NodeName,
    /// Where the range begins; 0s where it isn't given.
    #[serde(default)]
    #[schemars(extend("default" = "0s"))]
    pub offset: Sectors,
    /// How long it is; up to the end of the export where it isn't given.
    pub length: Option<Sectors>,
}

/// A range of a local block device; all of it where offset and length are left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping like {device: /dev/PATH, offset: SIZE, length: SIZE}"
)]
pub struct LinearItem {
    /// Path of a block device.
    pub device: PathBuf,
    /// Where the range begins; 0s where it isn't given.
    #[serde(default)]
    #[schemars(extend("default" = "0s"))]
    pub offset: Sectors,
    pub length: Option<Sectors>,
}

/// Any dmsetup table line, as text. A start of 0 stands for "where the item before it ends".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawItem(pub Line);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    Queue,
    QueueFor(Millis),
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesce {
    After(Millis),
    Never,
}

impl Default for Quiesce {
    fn default() -> Self {
        Self::After(Millis::seconds(10))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum YesNo {
    Yes,
    #[default]
    No,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownRestart {
    #[default]
    Trust,
    Eio,
}

impl FromStr for Quiesce {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            _ => text.parse().map(Self::After),
        }
    }
}

impl FromStr for YesNo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use YesNo::{No, Yes};
        let words = [("yes", Yes), ("no", No), ("true", Yes), ("false", No)];
        word(text, "answer", &words)
    }
}

impl FromStr for ZeroCopy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use ZeroCopy::{Auto, Off, On};
        let words = [
            ("auto", Auto),
            ("on", On),
            ("off", Off),
            ("true", On),
            ("false", Off),
        ];
        word(text, "zero_copy setting", &words)
    }
}

impl FromStr for UnknownRestart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = [("trust", Self::Trust), ("eio", Self::Eio)];
        word(text, "unknown_restart setting", &words)
    }
}

/// Deserialize by text, with the words as schema.
macro_rules! words {
    ($type:ty, $name:literal, $expecting:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                scalar::text(d, $expecting)
            }
        }
        schema!($type, $name, $schema);
    };
}

macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

words!(Quiesce, "Quiesce", "a length of time or never", { "type": "string", "default": "10s" });
words!(YesNo, "YesNo", "yes or no", { "enum": ["yes", "no", true, false] });
words!(ZeroCopy, "ZeroCopy", "auto, on or off", { "enum": ["auto", "on", "off", true, false] });
words!(UnknownRestart, "UnknownRestart", "trust or eio", { "enum": ["trust", "eio"] });
schema!(Policy, "Policy", {
    "anyOf": [
        { "enum": ["queue", "error"] },
        {
            "type": "object",
            "properties": { "queue_for": { "type": "string" } },
            "required": ["queue_for"],
            "additionalProperties": false
        }
    ]
});

const POLICY: &str = "queue, {queue_for: DURATION} or error";

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PolicyVisitor)
    }
}

struct PolicyVisitor;

impl<'de> Visitor<'de> for PolicyVisitor {
    type Value = Policy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(POLICY)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Policy, E> {
        match text {
            "queue" => Ok(Policy::Queue),
            "error" => Ok(Policy::Error),
            _ => Err(E::custom(format!("`{text}` is no policy: write {POLICY}"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Policy, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct QueueFor {
            queue_for: Millis,
        }
        let policy = QueueFor::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        Ok(Policy::QueueFor(policy.queue_for))
    }
}

const ITEM: &str = "`dst: {node: NAME}`, `linear: {device: /dev/PATH}` or a table line as text";

/// The one key of an item that is a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ItemKey {
    Dst,
    Linear,
}

impl FromStr for ItemKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "dst" => Ok(Self::Dst),
            "linear" => Ok(Self::Linear),
            _ => Err(format!("`{text}` is no kind of item: write {ITEM}")),
        }
    }
}

impl<'de> Deserialize<'de> for ItemKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        scalar::text(d, "dst or linear")
    }
}

/// A key where none may be: reading it fails, so the error stands at the key.
struct NoMoreKeys;

impl FromStr for NoMoreKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Err(format!(
            "an item has one key, and `{text}` is a second: begin each item with its own `- `, \
             and put what belongs to it inside its braces"
        ))
    }
}

impl<'de> Deserialize<'de> for NoMoreKeys {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        scalar::text(d, "nothing")
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ITEM)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        let line = text.parse().map_err(E::custom)?;
        Ok(Item::Raw(RawItem(line)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let Some(key) = map.next_key::<ItemKey>()? else {
            return Err(A::Error::custom(format!("the item is empty: write {ITEM}")));
        };
        let item = match key {
            ItemKey::Dst => Item::Dst(map.next_value()?),
            ItemKey::Linear => Item::Linear(map.next_value()?),
        };
        map.next_key::<NoMoreKeys>()?;
        Ok(item)
    }
}

impl JsonSchema for Item {
    fn schema_name() -> Cow<'static, str> {
        "Item".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let dst = generator.subschema_for::<DstItem>();
        let linear = generator.subschema_for::<LinearItem>();
        json_schema!({
            "anyOf": [
                { "type": "object", "properties": { "dst": dst },
                  "required": ["dst"], "additionalProperties": false },
                { "type": "object", "properties": { "linear": linear },
                  "required": ["linear"], "additionalProperties": false },
                { "type": "string", "pattern": "^\\s*[0-9]+\\s+[0-9]+\\s+\\S+" }
            ]
        })
    }
}
