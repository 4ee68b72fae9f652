//! The arguments of a `dst` table line: `<#extents> {<node> <offset> <length>}+ [<#features> <feature>...]`.
//! Used by render, plan, topology checks and status. Prints exactly what the kernel prints: features always,
//! block_size first. Never asks whether the nodes exist or are large enough.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use thiserror::Error;

use super::Line;
use crate::units::{BlockSize, NameError, NodeName, Sectors};

/// The name of the kernel's target.
pub const TARGET: &str = "dst";

/// A range of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Extent {
    pub node: NodeName,
    pub offset: Sectors,
    pub length: Sectors,
}

impl Extent {
    pub fn end(&self) -> Option<Sectors> {
        self.offset.checked_add(self.length)
    }
}

/// What a table line can switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Features {
    pub block_size: BlockSize,
    pub read_only: bool,
    pub no_discard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DstArgs {
    pub extents: Vec<Extent>,
    pub features: Features,
}

/// Why a text is no list of dst arguments.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DstError {
    #[error("the line ends where {0} should stand")]
    Ends(&'static str),
    #[error("`{found}` is no {what}: write a whole number")]
    Number { what: &'static str, found: String },
    #[error("a dst line has at least one extent")]
    NoExtent,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("extent {0} has the length 0")]
    EmptyExtent(usize),
    #[error("extent {0} ends beyond what 64 bits can count")]
    Overflow(usize),
    #[error("`{0}` is no feature: dst knows `block_size N`, `read_only` and `no_discard`")]
    Feature(String),
    #[error("the feature `{0}` stands twice")]
    FeatureTwice(String),
    #[error("`{0}` is no block size: write 512, 1024, 2048 or 4096")]
    BlockSize(String),
    #[error("{announced} feature words are announced, {found} follow")]
    FeatureCount { announced: u64, found: usize },
    #[error("`{0}` is more than the announced extents and features")]
    TooMuch(String),
    #[error("the extents add up to {sum} sectors, the line has {length}")]
    Sum { sum: Sectors, length: Sectors },
    #[error("`{0}` is no dst line")]
    OtherTarget(String),
}

impl DstArgs {
    /// The length of the line; None where it overflows.
    pub fn total(&self) -> Option<Sectors> {
        self.extents
            .iter()
            .try_fold(Sectors::ZERO, |sum, extent| sum.checked_add(extent.length))
    }

    /// Reads a whole line, and checks that the extents add up to its length.
    pub fn of(line: &Line) -> Result<Self, DstError> {
        if line.target != TARGET {
            return Err(DstError::OtherTarget(line.to_string()));
        }
        let args: Self = line.args.parse()?;
        let sum = args.total().ok_or(DstError::Overflow(args.extents.len()))?;
        if sum != line.length {
            let length = line.length;
            return Err(DstError::Sum { sum, length });
        }
        Ok(args)
    }
}

impl fmt::Display for DstArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.extents.len())?;
        for Extent {
            node,
            offset,
            length,
        } in &self.extents
        {
            write!(f, " {node} {offset} {length}")?;
        }
        let Features {
            block_size,
            read_only,
            no_discard,
        } = self.features;
        let words = 2 + u32::from(read_only) + u32::from(no_discard);
        write!(f, " {words} block_size {block_size}")?;
        if read_only {
            f.write_str(" read_only")?;
        }
        if no_discard {
            f.write_str(" no_discard")?;
        }
        Ok(())
    }
}

impl FromStr for DstArgs {
    type Err = DstError;

    fn from_str(text: &str) -> Result<Self, DstError> {
        let mut words = Words(text.split_whitespace());
        let count = words.number("number of extents")?;
        if count == 0 {
            return Err(DstError::NoExtent);
        }
        let mut extents = Vec::new();
        for i in 1..=count {
            extents.push(words.extent(usize::try_from(i).unwrap_or(usize::MAX))?);
        }
        let features = words.features()?;
        match words.0.next() {
            Some(word) => Err(DstError::TooMuch(word.to_owned())),
            None => Ok(Self { extents, features }),
        }
    }
}

struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self, what: &'static str) -> Result<&'a str, DstError> {
        self.0.next().ok_or(DstError::Ends(what))
    }

    fn number(&mut self, what: &'static str) -> Result<u64, DstError> {
        let found = self.word(what)?;
        found.parse().map_err(|_| DstError::Number {
            what,
            found: found.to_owned(),
        })
    }

    /// `position` counts from 1, for the error.
    fn extent(&mut self, position: usize) -> Result<Extent, DstError> {
        let extent = Extent {
            node: self.word("a node's name")?.parse()?,
            offset: Sectors(self.number("offset in sectors")?),
            length: Sectors(self.number("length in sectors")?),
        };
        if extent.length == Sectors::ZERO {
            return Err(DstError::EmptyExtent(position));
        }
        extent.end().ok_or(DstError::Overflow(position))?;
        Ok(extent)
    }

    fn features(&mut self) -> Result<Features, DstError> {
        let mut features = Features::default();
        let Some(count) = self.0.next() else {
            return Ok(features);
        };
        let announced = count.parse::<u64>().map_err(|_| DstError::Number {
            what: "number of feature words",
            found: count.to_owned(),
        })?;
        let take = usize::try_from(announced).unwrap_or(usize::MAX);
        let words: Vec<_> = self.0.by_ref().take(take).collect();
        if words.len() != take {
            let found = words.len();
            return Err(DstError::FeatureCount { announced, found });
        }
        let mut block_size = None;
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let new = match word {
                "read_only" => !std::mem::replace(&mut features.read_only, true),
                "no_discard" => !std::mem::replace(&mut features.no_discard, true),
                "block_size" => {
                    let size = words.next().ok_or(DstError::Ends("the block size"))?;
                    let parsed = size.parse().ok().and_then(BlockSize::new);
                    let parsed = parsed.ok_or_else(|| DstError::BlockSize(size.to_owned()))?;
                    block_size.replace(parsed).is_none()
                }
                _ => return Err(DstError::Feature(word.to_owned())),
            };
            if !new {
                return Err(DstError::FeatureTwice(word.to_owned()));
            }
        }
        features.block_size = block_size.unwrap_or_default();
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent() -> impl Strategy<Value = Extent> {
        (
            "[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}",
            0..1u64 << 50,
            1..1u64 << 50,
        )
            .prop_map(|(node, offset, length)| Extent {
                node: node.parse().unwrap(),
                offset: Sectors(offset),
                length: Sectors(length),
            })
    }

    prop_compose! {
        fn dst_args()(
            extents in proptest::collection::vec(extent(), 1..20),
            block_size in proptest::sample::select(vec![512, 1024, 2048, 4096]),
            read_only: bool,
            no_discard: bool,
        ) -> DstArgs {
            let block_size = BlockSize::new(block_size).unwrap();
            DstArgs { extents, features: Features { block_size, read_only, no_discard } }
        }
    }

    proptest! {
        #[test]
        fn printing_and_reading_are_inverse(args in dst_args()) {
            prop_assert_eq!(args.to_string().parse(), Ok(args));
        }

        #[test]
        fn garbage_never_panics(text in "[0-9a-z ]{0,80}") {
            let _ = text.parse::<DstArgs>();
        }
    }

    #[test]
    fn features_may_be_left_out_but_are_always_printed() {
        let args: DstArgs = "1 alpha 0 8".parse().unwrap();
        assert_eq!(args.to_string(), "1 alpha 0 8 2 block_size 512");
        let args: DstArgs = "1 alpha 0 8 3 read_only block_size 4096".parse().unwrap();
        assert_eq!(args.to_string(), "1 alpha 0 8 3 block_size 4096 read_only");
    }

    #[test]
    fn each_wrong_thing_has_its_own_text() {
        for (text, says) in [
            ("", "number of extents should stand"),
            ("0", "at least one extent"),
            ("x alpha 0 8", "`x` is no number of extents"),
            ("1 al/pha 0 8", "no node name"),
            ("1 alpha 0 0", "extent 1 has the length 0"),
            ("1 alpha 18446744073709551615 1", "64 bits"),
            ("2 alpha 0 8", "a node's name should stand"),
            ("1 alpha 0 8 1 fast", "`fast` is no feature"),
            ("1 alpha 0 8 2 block_size 513", "`513` is no block size"),
            (
                "1 alpha 0 8 3 read_only",
                "3 feature words are announced, 1 follow",
            ),
            ("1 alpha 0 8 2 read_only read_only", "stands twice"),
            ("1 alpha 0 8 0 9", "more than the announced"),
        ] {
            let error = text.parse::<DstArgs>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let line = "0 9 dst 1 alpha 0 8".parse().unwrap();
        let error = DstArgs::of(&line).unwrap_err().to_string();
        assert_eq!(error, "the extents add up to 8 sectors, the line has 9");
    }
}
