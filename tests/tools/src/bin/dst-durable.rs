//! dst-durable: writes numbered records to a device or a directory and makes them durable, batch after batch; later proves
//! that what was durable still is. `run` keeps in a ledger how many records fsync has confirmed, until it is told to
//! stop or anything fails; `verify` looks for each confirmed one. Run by the guest tests of power loss. One program
//! writes a target at a time, so an error of fsync reaches the one it concerns. Never looks at how the storage works.
//!
//! A device is a ring of 4 KiB slots, record R in slot R modulo their number; in a directory each record is a file.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};

const O_DIRECT: i32 = 0o40000;
const SLOT: usize = 4096;

#[derive(Parser)]
#[command(name = "dst-durable", about = "Prove that what fsync confirmed stays")]
enum Cli {
    /// Write and fsync until the stop file is there, or something fails; prints what and how much
    Run {
        #[command(flatten)]
        place: Place,
        /// Records that are written at the same time before each fsync
        #[arg(long, default_value_t = 8)]
        batch: u64,
        /// End after so many batches
        #[arg(long, default_value_t = u64::MAX)]
        batches: u64,
        #[arg(long)]
        stop_file: Option<PathBuf>,
        /// Run by a shell after each fsync, with the number of confirmed records behind it
        #[arg(long)]
        on_commit: Option<String>,
    },
    /// Find every record that was confirmed
    Verify {
        #[command(flatten)]
        place: Place,
        /// Look only for records below this one
        #[arg(long)]
        upto: Option<u64>,
    },
}

#[derive(Args, Clone)]
struct Place {
    /// A block device, or a directory
    #[arg(long)]
    target: PathBuf,
    #[arg(long)]
    ledger: PathBuf,
    /// Tells this run's records from those of others
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Slots of a device, from its beginning
    #[arg(long, default_value_t = 256)]
    slots: u64,
}

/// What of a run's records is known: `confirmed` are durable, `begun` may be there.
#[derive(Debug, Clone, Copy, Default)]
struct Ledger {
    begun: u64,
    confirmed: u64,
}

impl Ledger {
    fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let (begun, confirmed) = text.trim().split_once(' ').context("no ledger")?;
        Ok(Ledger {
            begun: begun.parse()?,
            confirmed: confirmed.parse()?,
        })
    }

    /// Whoever looks meanwhile sees a whole one.
    fn store(self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, format!("{} {}\n", self.begun, self.confirmed))?;
        Ok(fs::rename(&new, path)?)
    }
}

#[repr(align(4096))]
struct Block([u8; SLOT]);

/// Every byte depends on seed and number, so that no other record and no torn one looks like it.
fn record(seed: u64, number: u64) -> Box<Block> {
    let mut block = Box::new(Block([0; SLOT]));
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
    for word in block.0.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    block.0[..8].copy_from_slice(&seed.to_le_bytes());
    block.0[8..16].copy_from_slice(&number.to_le_bytes());
    block
}

/// Where records go.
#[derive(Debug)]
enum Medium {
    Device { file: File, slots: u64 },
    Directory(PathBuf),
}

impl Medium {
    fn open(place: &Place, write: bool) -> Result<Self> {
        let path = &place.target;
        let found = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
        if found.is_dir() {
            return Ok(Medium::Directory(path.clone()));
        }
        ensure!(
            found.file_type().is_block_device(),
            "{} is neither a device nor a directory",
            path.display()
        );
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(O_DIRECT)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Medium::Device {
            file,
            slots: place.slots,
        })
    }

    fn put(&self, seed: u64, number: u64) -> io::Result<()> {
        let block = record(seed, number);
        match self {
            Medium::Device { file, slots } => {
                file.write_all_at(&block.0, number % slots * SLOT as u64)
            }
            Medium::Directory(dir) => {
                let file = File::create_new(dir.join(number.to_string()))?;
                file.write_all_at(&block.0, 0)?;
                file.sync_all()
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Medium::Device { file, .. } => file.sync_all(),
            Medium::Directory(dir) => File::open(dir)?.sync_all(),
        }
    }

    /// The 4 KiB in which a record should be.
    fn get(&self, number: u64) -> io::Result<Box<Block>> {
        let mut block = Box::new(Block([0; SLOT]));
        match self {
            Medium::Device { file, slots } => {
                file.read_exact_at(&mut block.0, number % slots * SLOT as u64)?;
            }
            Medium::Directory(dir) => {
                File::open(dir.join(number.to_string()))?.read_exact_at(&mut block.0, 0)?;
            }
        }
        Ok(block)
    }

    /// How many records are kept, counted from the newest; older ones were overwritten.
    fn keeps(&self) -> u64 {
        match self {
            Medium::Device { slots, .. } => *slots,
            Medium::Directory(_) => u64::MAX,
        }
    }
}

struct Run {
    place: Place,
    batch: u64,
    batches: u64,
    stop_file: Option<PathBuf>,
    on_commit: Option<String>,
}

/// Ends with success also when the storage fails: what it said is printed, and it is the caller's to judge.
fn run(order: &Run) -> Result<()> {
    let place = &order.place;
    let medium = Medium::open(place, true)?;
    let mut ledger = Ledger::default();
    ledger.store(&place.ledger)?;
    let mut said = "stopped".to_owned();
    for _ in 0..order.batches {
        if order.stop_file.as_ref().is_some_and(|file| file.exists()) {
            break;
        }
        let first = ledger.begun;
        ledger.begun += order.batch;
        ledger.store(&place.ledger)?;
        if let Err(error) = batch(&medium, place.seed, first..ledger.begun) {
            said = error.to_string();
            break;
        }
        ledger.confirmed = ledger.begun;
        ledger.store(&place.ledger)?;
        if let Some(command) = &order.on_commit {
            let line = format!("{command} {}", ledger.confirmed);
            let status = Command::new("sh").arg("-c").arg(&line).status()?;
            ensure!(status.success(), "`{line}`: {status}");
        }
    }
    println!(
        "begun {} confirmed {}: {said}",
        ledger.begun, ledger.confirmed
    );
    Ok(())
}

fn batch(medium: &Medium, seed: u64, numbers: std::ops::Range<u64>) -> io::Result<()> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = numbers
            .map(|number| scope.spawn(move || medium.put(seed, number)))
            .collect();
        // All of them, also behind one that failed.
        let ends: Vec<_> = writers
            .into_iter()
            .map(|writer| {
                writer
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
            })
            .collect();
        ends.into_iter().collect::<io::Result<Vec<()>>>()
    })?;
    medium.sync()
}

fn verify(place: &Place, upto: Option<u64>) -> Result<()> {
    let medium = Medium::open(place, false)?;
    let mut ledger = Ledger::load(&place.ledger)?;
    ledger.confirmed = upto.map_or(ledger.confirmed, |upto| upto.min(ledger.confirmed));
    let first = ledger.confirmed.saturating_sub(medium.keeps());
    let mut wrong = String::new();
    let mut count = 0_u64;
    for number in first..ledger.confirmed {
        if let Err(error) = verify_one(&medium, place, ledger, number) {
            count += 1;
            if count <= 10 {
                writeln!(wrong, "  record {number}: {error:#}")?;
            }
        }
    }
    if count > 0 {
        bail!(
            "{count} of {} confirmed records are lost:\n{wrong}",
            ledger.confirmed - first
        );
    }
    println!(
        "{} records, {} bytes verified",
        ledger.confirmed - first,
        (ledger.confirmed - first) * SLOT as u64
    );
    Ok(())
}

/// The record is there, or on a device a later one of its slot that was begun.
fn verify_one(medium: &Medium, place: &Place, ledger: Ledger, number: u64) -> Result<()> {
    let found = medium.get(number)?;
    let later = std::iter::successors(Some(number), |n| n.checked_add(medium.keeps()));
    let mut possible = later.take_while(|n| *n == number || *n < ledger.begun);
    if possible.any(|n| record(place.seed, n).0 == found.0) {
        return Ok(());
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&found.0[at..at + 8]);
        u64::from_le_bytes(word)
    };
    bail!("found one that says seed {}, number {}", word(0), word(8))
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Run {
            place,
            batch,
            batches,
            stop_file,
            on_commit,
        } => run(&Run {
            place,
            batch,
            batches,
            stop_file,
            on_commit,
        }),
        Cli::Verify { place, upto } => verify(&place, upto),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dst-durable: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        let dir = std::env::temp_dir().join(format!("dst-durable-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("files")).unwrap();
        Place {
            target: dir.join("files"),
            ledger: dir.join("ledger"),
            seed: 7,
            slots: 0,
        }
    }

    fn done(name: &str) -> Place {
        let place = place(name);
        run(&Run {
            place: place.clone(),
            batch: 3,
            batches: 4,
            stop_file: None,
            on_commit: None,
        })
        .unwrap();
        place
    }

    fn remove(place: &Place) {
        fs::remove_dir_all(place.target.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_was_confirmed_is_found() {
        let place = done("found");
        assert_eq!(fs::read_to_string(&place.ledger).unwrap(), "12 12\n");
        verify(&place, None).unwrap();
        remove(&place);
    }

    #[test]
    fn a_record_that_is_missing_torn_or_anothers_is_lost() {
        let place = done("lost");
        let file = |number: u64| place.target.join(number.to_string());
        fs::remove_file(file(2)).unwrap();
        let mut torn = fs::read(file(5)).unwrap();
        torn[3000] ^= 1;
        fs::write(file(5), torn).unwrap();
        fs::copy(file(8), file(7)).unwrap();
        let said = verify(&place, None).unwrap_err().to_string();
        assert!(
            said.starts_with("3 of 12 confirmed records are lost:"),
            "{said}"
        );
        for number in [2, 5, 7] {
            assert!(said.contains(&format!("record {number}: ")), "{said}");
        }
        verify(&place, Some(2)).unwrap();
        remove(&place);
    }

    #[test]
    fn what_was_begun_and_not_confirmed_may_be_missing() {
        let place = done("begun");
        fs::write(&place.ledger, "15 12").unwrap();
        verify(&place, None).unwrap();
        fs::write(&place.ledger, "15 15").unwrap();
        assert!(verify(&place, None).is_err());
        remove(&place);
    }
}
