//! Reads YAML: the only file that knows serde_yaml.
//! Called by load, and by `export::config_file` for the node server. Duplicate keys are errors (serde_yaml alone takes the last), and the place of any value can be
//! asked for afterwards: serde_yaml keeps no places, so `locate` reads again and fails on purpose at that value.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize, Deserializer};

use super::error::{At, Path, PathStep};
use super::nearest::nearest;
use super::spec::FileSpec;

/// What is wrong with a text; line and column count from 1.
#[derive(Debug)]
pub struct Fault {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

pub fn parse(text: &str) -> Result<FileSpec, Fault> {
    parse_as(text, "nodes and devices")
}

/// `content`: what should stand in a file that is empty.
pub fn parse_as<T: DeserializeOwned>(text: &str, content: &str) -> Result<T, Fault> {
    if text
        .lines()
        .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    {
        return Err(Fault {
            line: 1,
            column: 1,
            message: format!("the file is empty: write `version: 1`, then {content}"),
        });
    }
    UniqueKeys
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| fault(&error))?;
    serde_yaml::from_str(text).map_err(|error| fault(&error))
}

/// What is wrong with the value behind these keys, whatever is wrong elsewhere: `parse_as` tells only the first.
pub fn fault_at<T: DeserializeOwned>(text: &str, keys: &[&str]) -> Option<Fault> {
    let pick = Pick::<T>(keys, PhantomData);
    let error = pick
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    Some(fault(&error))
}

/// Line and column of the value (or of the key) at a path.
pub fn locate(text: &str, path: &Path, at: At) -> Option<(usize, usize)> {
    let seeker = Seeker { steps: &path.0, at };
    let error = seeker
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    error.location().map(|l| (l.line(), l.column()))
}

fn fault(error: &serde_yaml::Error) -> Fault {
    let (line, column) = error.location().map_or((1, 1), |l| (l.line(), l.column()));
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let message = match text {
        "deserializing from YAML containing more than one document is not supported" => {
            "there is a second document (`---`): a file holds one".to_owned()
        }
        _ => format!("{}{}", plain(text), suggestion(text)),
    };
    Fault {
        line,
        column,
        message,
    }
}

/// serde's words for types, in those of YAML.
fn plain(text: &str) -> String {
    text.replace("unit value", "nothing")
        .replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
}

/// "unknown field `lnks`, expected one of `uri`, `links`": names the nearest.
fn suggestion(text: &str) -> String {
    let Some((_, rest)) = text.split_once("unknown field `") else {
        return String::new();
    };
    let mut names = rest.split('`').step_by(2);
    let found = names.next().unwrap_or_default();
    let expected = rest.split('`').skip(2).step_by(2);
    nearest(found, expected).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// Visits everything and refuses a key that its mapping already has.
#[derive(Clone, Copy)]
struct UniqueKeys;

impl<'de> DeserializeSeed<'de> for UniqueKeys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! ignore_scalars {
    () => {
        fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_i128<E: Error>(self, _: i128) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u128<E: Error>(self, _: u128) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain YAML without tags")
    }

    ignore_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while map.next_key_seed(NewKey(&mut seen))?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

/// A key that must not be in the set yet.
struct NewKey<'a>(&'a mut HashSet<String>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is one word")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<(), E> {
        if self.0.insert(key.to_owned()) {
            return Ok(());
        }
        Err(E::custom(format!(
            "the key `{key}` stands here a second time: remove one, or rename it"
        )))
    }
}

/// Goes down a path and fails at its end.
#[derive(Clone, Copy)]
struct Seeker<'a> {
    steps: &'a [PathStep],
    at: At,
}

impl<'de> DeserializeSeed<'de> for Seeker<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seeker<'_> {
    fn arrived<E: Error>(self) -> Result<(), E> {
        match self.steps {
            [] => Err(E::custom("here")),
            _ => Ok(()),
        }
    }
}

impl<'de> Visitor<'de> for Seeker<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value at a path")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.arrived()
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.arrived()
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.arrived()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let [first, rest @ ..] = self.steps else {
            return Err(A::Error::custom("here"));
        };
        let below = Seeker {
            steps: rest,
            ..self
        };
        for i in 0.. {
            let more = match first {
                PathStep::Index(index) if *index == i => seq.next_element_seed(below)?.is_some(),
                _ => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let [first, rest @ ..] = self.steps else {
            return Err(A::Error::custom("here"));
        };
        let below = Seeker {
            steps: rest,
            ..self
        };
        while let Some(found) = map.next_key_seed(SoughtKey {
            step: first,
            last: rest.is_empty(),
            at: self.at,
        })? {
            if found {
                map.next_value_seed(below)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Goes down mappings and reads what it finds there.
struct Pick<'a, T>(&'a [&'a str], PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Pick<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            [] => T::deserialize(deserializer).map(drop),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Pick<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0 {
                [first, rest @ ..] if *first == key => {
                    map.next_value_seed(Pick::<T>(rest, PhantomData))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Compares keys; fails on the right one where the key itself is sought.
struct SoughtKey<'a> {
    step: &'a PathStep,
    last: bool,
    at: At,
}

impl<'de> DeserializeSeed<'de> for SoughtKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SoughtKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        let found = matches!(self.step, PathStep::Key(step) if step == key);
        if found && self.last && self.at == At::Key {
            return Err(E::custom("here"));
        }
        Ok(found)
    }
}
