//! How names, sizes, durations and other single values are read from YAML, and their JSON schemas.
//! Used by spec. Everything is read as text, so that `no`, `on` and `4096` mean what a person wrote.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::units::{BlockSize, DeviceName, Millis, NodeName, SLOTS_MAX, Sectors};

struct TextVisitor<T>(&'static str, PhantomData<T>);

impl<T> Visitor<'_> for TextVisitor<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Reads a scalar by its text.
pub fn text<'de, D, T>(deserializer: D, expecting: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    deserializer.deserialize_str(TextVisitor(expecting, PhantomData))
}

pub fn uri<'de, D: Deserializer<'de>>(d: D) -> Result<crate::nbd::uri::NbdUri, D::Error> {
    text(d, "an NBD URI such as nbd://10.0.0.1:10809/export")
}

const NAME_PATTERN: &str = "^[A-Za-z0-9._-]{1,63}$";
const SIZE_PATTERN: &str = "^[0-9]+ ?(s|KiB|MiB|GiB|TiB)$";

/// Deserialize through FromStr, and the schema beside it.
macro_rules! scalar {
    ($type:ty, $name:literal, $expecting:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                text(d, $expecting)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

scalar!(NodeName, "NodeName", "a node's name", { "type": "string", "pattern": NAME_PATTERN });
scalar!(DeviceName, "DeviceName", "a device's name", { "type": "string", "pattern": NAME_PATTERN });
scalar!(Sectors, "Size", "a size such as 10GiB or 2097152s", { "type": "string", "pattern": SIZE_PATTERN });

impl FromStr for BlockSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse().ok().and_then(Self::new);
        size.ok_or_else(|| {
            format!("`{text}` is no block size: write 512, 1024, 2048 or 4096 (bytes)")
        })
    }
}
scalar!(BlockSize, "BlockSize", "a block size: 512, 1024, 2048 or 4096", { "enum": [512, 1024, 2048, 4096] });

/// How many links a node should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCount(pub u32);

impl Default for LinkCount {
    fn default() -> Self {
        Self(1)
    }
}

impl FromStr for LinkCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|n| (1..=SLOTS_MAX).contains(n));
        count
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no number of links: write 1 to {SLOTS_MAX}"))
    }
}
scalar!(LinkCount, "LinkCount", "a number of links", { "type": "integer", "minimum": 1, "maximum": SLOTS_MAX });

/// The version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version;

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1" => Ok(Self),
            _ => Err(format!(
                "version `{text}` is not known: this dstd reads `version: 1`"
            )),
        }
    }
}
scalar!(Version, "Version", "the format's version, 1", { "const": 1 });

/// A length of time, also none; the node server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSpan(pub Duration);

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|e| {
            format!("`{text}` is no length of time ({e}): write `30s`, `5m` or `1h 30m`")
        })
    }
}

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let TimeSpan(length) = text.parse()?;
        Self::exactly(length).ok_or_else(|| {
            format!("`{text}` can't be had: write whole milliseconds, at least `1ms` and at most 49 days")
        })
    }
}
scalar!(Millis, "TimeSpan", "a length of time such as 5m", { "type": "string" });

/// After how long without a byte a link with requests counts as lost. The kernel looks once a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Millis);

impl Timeout {
    const LEAST: Millis = Millis::seconds(1);
}

impl Default for Timeout {
    fn default() -> Self {
        Self(Millis::seconds(30))
    }
}

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time: Millis = text.parse()?;
        if time < Self::LEAST {
            return Err(format!(
                "a timeout of {time} is too short: write at least `1s`"
            ));
        }
        Ok(Self(time))
    }
}
scalar!(Timeout, "Timeout", "a length of time such as 30s", { "type": "string", "default": "30s" });

/// Reads one of a few words; YAML's own true and false count as the words given for them.
pub fn word<T: Copy>(found: &str, what: &str, words: &[(&str, T)]) -> Result<T, String> {
    let value = words.iter().find(|(word, _)| *word == found);
    value.map(|(_, value)| *value).ok_or_else(|| {
        let shown: Vec<_> = words
            .iter()
            .map(|(word, _)| *word)
            .filter(|word| !matches!(*word, "true" | "false"))
            .collect();
        format!("`{found}` is no {what}: write {}", shown.join(" or "))
    })
}
