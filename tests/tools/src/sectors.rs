//! What is written: sectors that carry their own number, and which ones are chosen.
//! Used by main. Both halves of a test get the same from the same seed and table.

use std::collections::BTreeSet;

use crate::table::Table;

pub const SECTOR: u64 = 512;
const MAGIC: u64 = u64::from_be_bytes(*b"DST-POKE");

/// Aligned as O_DIRECT wants it.
#[derive(Debug)]
#[repr(align(4096))]
pub struct Sector(pub [u8; SECTOR as usize]);

impl Sector {
    /// Magic, seed and number in front, then bytes that depend on both up to the end.
    pub fn numbered(seed: u64, at: u64) -> Self {
        let mut bytes = [0; SECTOR as usize];
        let mut random = Random(seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            let value = match i {
                0 => MAGIC,
                1 => seed,
                2 => at,
                _ => random.next(),
            };
            word.copy_from_slice(&value.to_be_bytes());
        }
        Self(bytes)
    }
}

/// Says for a person what a sector holds.
pub fn describe(found: &[u8]) -> String {
    let mut words = found.chunks_exact(8).map(|word| {
        word.iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    });
    match (words.next(), words.next(), words.next()) {
        (Some(MAGIC), Some(seed), Some(at)) => {
            let whole = found == Sector::numbered(seed, at).0;
            let torn = if whole { "" } else { ", damaged" };
            format!("device sector {at} of seed {seed}{torn}")
        }
        _ if found.iter().all(|byte| *byte == 0) => "zeroes".to_owned(),
        _ => format!("{:02x?}...", &found[..found.len().min(16)]),
    }
}

/// Small and repeatable; its quality matters little (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 |= u64::from(self.0 == 0);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// `count` sectors anywhere (fewer on a device that has fewer) and, as far as that allows, the first and last of each extent.
pub fn choose(table: &Table, seed: u64, count: u64) -> BTreeSet<u64> {
    let size = table.size();
    let count = count.min(size) as usize;
    let edges = table
        .extents
        .iter()
        .flat_map(|e| [e.start, e.start + e.length - 1]);
    let mut chosen: BTreeSet<u64> = edges.take(count).collect();
    if count as u64 == size {
        return (0..size).collect();
    }
    let mut random = Random(seed ^ MAGIC);
    while chosen.len() < count {
        chosen.insert(random.next() % size);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_itself_and_shows_damage() {
        let mut sector = Sector::numbered(7, 1234);
        assert_eq!(describe(&sector.0), "device sector 1234 of seed 7");
        sector.0[500] ^= 1;
        assert_eq!(describe(&sector.0), "device sector 1234 of seed 7, damaged");
        assert_ne!(Sector::numbered(7, 1).0, Sector::numbered(8, 1).0);
    }

    #[test]
    fn the_same_seed_chooses_the_same_sectors_edges_first() -> anyhow::Result<()> {
        let table = Table::parse("0 1000 dst 2 a 5 400 b 0 600 2 block_size 512")?;
        let chosen = choose(&table, 3, 100);
        assert_eq!(chosen, choose(&table, 3, 100));
        assert_ne!(chosen, choose(&table, 4, 100));
        assert_eq!(chosen.len(), 100);
        assert!([0, 399, 400, 999].iter().all(|at| chosen.contains(at)));
        assert_eq!(choose(&table, 3, 5000).len(), 1000);
        Ok(())
    }
}
