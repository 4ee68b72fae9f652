//! What is written: sectors that carry the run, their operation and their own number, and a checksum.
//! Used by load (both ways). Knows nothing of the history.

use crate::register::{OpId, Seen};

pub const SECTOR: usize = 512;
const WORDS: usize = SECTOR / 8;
const MAGIC: u64 = u64::from_be_bytes(*b"DSTCHECK");

/// Bytes of a whole sector that this run can't have put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alien {
    /// Of a run with this seed.
    Run(u64),
    /// Of this run, but of another sector.
    Misplaced { op: OpId, sector: u64 },
}

fn checksum(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(MAGIC, |sum, word| {
        (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Every word differs between two operations, so that a torn sector shows wherever it is torn.
pub fn encode(bytes: &mut [u8], seed: u64, op: OpId, sector: u64) {
    let filler = (0..).map(|i: u64| {
        op.wrapping_mul(0xd134_2543_de82_ef95)
            .wrapping_add(i ^ seed)
    });
    let words = [MAGIC, seed, op, sector]
        .into_iter()
        .chain(filler)
        .take(WORDS - 1);
    let sum = checksum(words.clone());
    for (to, word) in bytes.chunks_exact_mut(8).zip(words.chain([sum])) {
        to.copy_from_slice(&word.to_be_bytes());
    }
}

pub fn decode(bytes: &[u8], seed: u64, sector: u64) -> Result<Seen, Alien> {
    let mut words = [0; WORDS];
    for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = from
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    if words.iter().all(|word| *word == 0) {
        return Ok(Seen::Zeroes);
    }
    let sum = checksum(words[..WORDS - 1].iter().copied());
    match words {
        _ if words[0] != MAGIC || sum != words[WORDS - 1] => Ok(Seen::Torn),
        [_, run, ..] if run != seed => Err(Alien::Run(run)),
        [_, _, op, at, ..] if at != sector => Err(Alien::Misplaced { op, sector: at }),
        [_, _, op, ..] => Ok(Seen::Value(op)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_whose_it_is() {
        let mut bytes = [0; SECTOR];
        assert_eq!(decode(&bytes, 1, 7), Ok(Seen::Zeroes));
        encode(&mut bytes, 1, 99, 7);
        assert_eq!(decode(&bytes, 1, 7), Ok(Seen::Value(99)));
        assert_eq!(decode(&bytes, 2, 7), Err(Alien::Run(1)));
        assert_eq!(
            decode(&bytes, 1, 8),
            Err(Alien::Misplaced { op: 99, sector: 7 })
        );
    }

    #[test]
    fn it_shows_wherever_it_is_torn() {
        let (mut old, mut new) = ([0; SECTOR], [0; SECTOR]);
        encode(&mut old, 1, 99, 7);
        encode(&mut new, 1, 100, 7);
        // Bytes that both have in common don't tear.
        let first = old
            .iter()
            .zip(&new)
            .position(|(a, b)| a != b)
            .unwrap_or(SECTOR);
        let last = old.iter().zip(&new).rposition(|(a, b)| a != b).unwrap_or(0);
        for at in first + 1..=last {
            let torn = [&new[..at], &old[at..]].concat();
            assert_eq!(decode(&torn, 1, 7), Ok(Seen::Torn), "torn at byte {at}");
            let cut = [&new[..at], &[0; SECTOR][at..]].concat();
            assert_eq!(decode(&cut, 1, 7), Ok(Seen::Torn), "cut at byte {at}");
        }
    }
}
