//! The whole checker on simulated disks: right ones, also such as fail, and one that lets old writes come late.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::medium::Medium;

const SECTORS: usize = 64;
const LAYOUT: Layout = Layout {
    regions: 2,
    length: 24,
    stride: 40,
};

type Late = (u64, Vec<u8>);

/// Sectors in memory, and what a test wants to go wrong. One lock an operation: whole operations have an order.
#[derive(Default)]
struct Memory {
    state: Mutex<State>,
    /// Every so many writes: one that fails; it is done at once, later (but before a new write to its range), or never.
    fails: Option<u64>,
    /// Every so many writes: one that is done again a few operations later, whatever has been written since.
    comes_back: Option<u64>,
    /// Every so many writes: one that is acknowledged and never done.
    loses: Option<u64>,
    /// Every so many zeroings: one that is done again a few operations later.
    zeroes_come_back: Option<u64>,
}

struct State {
    bytes: Vec<u8>,
    count: u64,
    zeroings: u64,
    late: Vec<(u64, Late)>,
    lingering: Vec<Late>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            bytes: vec![0; SECTORS * SECTOR],
            count: 0,
            zeroings: 0,
            late: Vec::new(),
            lingering: Vec::new(),
        }
    }
}

impl State {
    fn put(&mut self, (at, bytes): &Late) {
        self.bytes[*at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What is due by now.
    fn tick(&mut self) {
        self.count += 1;
        let (due, later) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|(when, _)| *when <= self.count);
        self.late = later;
        let due: Vec<(u64, Late)> = due;
        due.iter().for_each(|(_, late)| self.put(late));
    }

    /// The fence before a new write: failed ones take effect now, or never.
    fn fence(&mut self) {
        for (i, old) in std::mem::take(&mut self.lingering).iter().enumerate() {
            if i % 2 == 0 {
                self.put(old);
            }
        }
    }
}

fn every(n: Option<u64>, count: u64) -> bool {
    n.is_some_and(|n| count.is_multiple_of(n))
}

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Medium for Memory {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.tick();
        let length = bytes.len();
        bytes.copy_from_slice(&state.bytes[at as usize..][..length]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8], _durable: bool) -> io::Result<()> {
        let mut state = self.lock();
        state.tick();
        state.fence();
        let (count, write) = (state.count, (at, bytes.to_vec()));
        if every(self.fails, count) {
            match count % 3 {
                0 => state.put(&write),
                _ => state.lingering.push(write),
            }
            return Err(io::Error::other("as the test wants it"));
        }
        if !every(self.loses, count) {
            state.put(&write);
        }
        if every(self.comes_back, count) {
            state.late.push((count + 9, write));
        }
        Ok(())
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.tick();
        state.fence();
        let write = (at, vec![0; length as usize]);
        state.put(&write);
        state.zeroings += 1;
        if every(self.zeroes_come_back, state.zeroings) {
            let when = state.count + 9;
            state.late.push((when, write));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn small_plan(seed: u64) -> Plan {
    Plan {
        seed,
        threads: 4,
        longest: 16,
        block: 1,
        zeroings: 5,
        flushes: 2,
        contend: false,
        ops: 0,
        after_error: Duration::ZERO,
    }
}

fn report(medium: &dyn Medium, seed: u64, contend: bool, ops: u64) -> serde_json::Value {
    let plan = Plan {
        contend,
        ops,
        ..small_plan(seed)
    };
    let load = Load::new(plan, LAYOUT, medium);
    load.fill().expect("the first values");
    std::thread::scope(|scope| {
        for number in 0..4 {
            let load = &load;
            scope.spawn(move || load.work(number));
        }
    });
    load.finish(Duration::ZERO).expect("the last pass");
    load.ledger().report(seed, 0)
}

#[test]
fn a_right_disk_is_not_flagged() {
    for contend in [false, true] {
        for seed in 0..4 {
            let report = report(&Memory::default(), seed, contend, 5_000);
            assert_eq!(report["ok"], true, "{report}");
            assert!(report["ops"].as_u64() >= Some(5_000), "{report}");
            assert_eq!(report["hot_sectors"], 48);
            assert!(
                report["bytes_verified"].as_u64() > Some(1_000_000),
                "{report}"
            );
            assert_eq!(report["torn"], 0);
        }
    }
}

#[test]
fn a_disk_that_fails_now_and_then_is_not_flagged() {
    for seed in 0..4 {
        let medium = Memory {
            fails: Some(50),
            ..Memory::default()
        };
        let report = report(&medium, seed, false, 3_000);
        assert_eq!(report["ok"], true, "{report}");
        assert!(report["failed_writes"].as_u64() > Some(5), "{report}");
    }
}

#[test]
fn wrong_disks_are_flagged() {
    for seed in 0..4 {
        let wrong = [
            Memory {
                comes_back: Some(50),
                ..Memory::default()
            },
            Memory {
                loses: Some(50),
                ..Memory::default()
            },
            Memory {
                zeroes_come_back: Some(5),
                ..Memory::default()
            },
        ];
        for medium in wrong {
            for contend in [false, true] {
                let report = report(&medium, seed, contend, 20_000);
                assert_eq!(report["ok"], false, "{report}");
                let proof = report["violation"]["proof"].as_array().map_or(0, Vec::len);
                assert!(proof >= 1, "{report}");
            }
        }
    }
}

#[test]
fn the_last_pass_reads_every_sector() {
    for place in [0, 23, 24, 47] {
        let medium = Memory::default();
        let plan = Plan {
            ops: 0,
            ..small_plan(1)
        };
        let load = Load::new(plan, LAYOUT, &medium);
        load.fill().expect("the first values");
        medium.lock().bytes[LAYOUT.sector(place) as usize * SECTOR + 100] ^= 1;
        load.finish(Duration::ZERO).expect("the last pass");
        let report = load.ledger().report(1, 0);
        assert_eq!(
            report["violation"]["sector"],
            LAYOUT.sector(place),
            "{report}"
        );
    }
}

#[test]
fn a_fence_line_names_a_time_and_sectors() -> Result<()> {
    assert_eq!(fence("fenced 17")?, (17, 0..=u64::MAX));
    assert_eq!(fence("fenced 17 100 200")?, (17, 100..=200));
    for wrong in ["fence 17", "fenced", "fenced x", "fenced 1 2", ""] {
        assert!(fence(wrong).is_err(), "{wrong}");
    }
    Ok(())
}

#[test]
fn a_fence_file_is_followed_line_by_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("fences");
    let medium = Memory::default();
    let load = Load::new(small_plan(1), LAYOUT, &medium);
    let mut fences = Fences::new(Some(&path));
    let count = |fences: &mut Fences, text: &str| -> Result<_> {
        fs::write(&path, text)?;
        fences.look(&load)?;
        Ok(load.ledger().report(1, 0)["fences"].clone())
    };
    fences.look(&load)?;
    assert_eq!(count(&mut fences, "fenced 1\nfenc")?, 1);
    assert_eq!(count(&mut fences, "fenced 1\nfenced 2 0 9\n")?, 2);
    assert!(count(&mut fences, "fenced 1\nfenced 2 0 9\nnonsense\n").is_err());
    Ok(())
}

#[test]
fn regions_are_spread_over_the_device() -> Result<()> {
    let parse = |words: &str| {
        Args::parse_from(
            ["dst-checker", "--device", "x"]
                .into_iter()
                .chain(words.split_whitespace()),
        )
    };
    let spread = layout(&parse("--hot 300 --regions 3 --block 8"), 10_000)?;
    assert_eq!(
        (spread.regions, spread.length, spread.stride),
        (3, 96, 4952)
    );
    assert_eq!(spread.sector(96 * 2 + 5), 2 * 4952 + 5);
    assert!(spread.sector(spread.places() - 1) < 10_000);
    assert!(layout(&parse("--hot 300 --regions 3"), 299).is_err());
    assert!(layout(&parse("--hot 2 --regions 3"), 10_000).is_err());
    assert_eq!(layout(&parse("--hot 300"), 300)?.length, 300);
    Ok(())
}
