//! The dst lines of a device-mapper table, read anew from the words that `dmsetup table` prints.
//! Used by main. Knows nothing of dstd's own parser, and takes no other target.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

#[derive(Debug)]
pub struct Extent {
    /// The device's sector with which the extent begins.
    pub start: u64,
    pub node: String,
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug)]
pub struct Table {
    pub extents: Vec<Extent>,
}

impl Table {
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut extents = Vec::new();
        for line in text.lines() {
            parse_line(line, &mut extents).with_context(|| format!("in the line '{line:.80}'"))?;
        }
        ensure!(!extents.is_empty(), "the table has no extent");
        Ok(Self { extents })
    }

    /// The device's size in sectors.
    pub fn size(&self) -> u64 {
        self.extents
            .last()
            .map_or(0, |last| last.start + last.length)
    }

    /// The node and its sector that hold a sector of the device.
    pub fn locate(&self, at: u64) -> Result<(&str, u64)> {
        let next = self.extents.partition_point(|extent| extent.start <= at);
        let extent = next.checked_sub(1).map(|i| &self.extents[i]);
        match extent {
            Some(e) if at < e.start + e.length => Ok((&e.node, e.offset + at - e.start)),
            _ => bail!("sector {at} lies outside of the table"),
        }
    }
}

fn parse_line(line: &str, extents: &mut Vec<Extent>) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |i: usize| -> Result<u64> {
        let word = words
            .get(i)
            .with_context(|| format!("word {i} is missing"))?;
        word.parse()
            .with_context(|| format!("'{word}' is no number"))
    };
    ensure!(words.get(2) == Some(&"dst"), "its target isn't dst");
    let mut start = number(0)?;
    for i in 0..number(3)? as usize {
        let extent = Extent {
            start,
            node: words[4 + 3 * i].to_owned(),
            offset: number(5 + 3 * i)?,
            length: number(6 + 3 * i)?,
        };
        start += extent.length;
        extents.push(extent);
    }
    ensure!(
        start == number(0)? + number(1)?,
        "its extents don't add up to its length"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "0 7 dst 2 a 10 3 b 0 4 2 block_size 512\n7 1 dst 1 a 0 1 2 block_size 512\n";

    #[test]
    fn sectors_are_located_at_and_around_boundaries() -> Result<()> {
        let table = Table::parse(TEXT)?;
        assert_eq!(table.size(), 8);
        let places: Result<Vec<_>> = (0..8).map(|at| table.locate(at)).collect();
        let expected = [
            ("a", 10),
            ("a", 11),
            ("a", 12),
            ("b", 0),
            ("b", 1),
            ("b", 2),
            ("b", 3),
            ("a", 0),
        ];
        assert_eq!(places?, expected);
        assert!(table.locate(8).is_err());
        Ok(())
    }

    #[test]
    fn wrong_tables_are_refused() {
        for text in [
            "",
            "0 7 linear 8:0 0",
            "0 8 dst 1 a 0 7 2 block_size 512",
            "0 1 dst x",
        ] {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }
}
