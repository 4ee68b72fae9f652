//! dst-log: reads what dm-log-writes has kept of a disk. `list` shows its entries, `replay` applies a range of them to an
//! image: so a disk is brought back to what it surely held at any flush, or at the moment its machine lost power.
//! Run by the guest tests of durability. The format is that of the kernel's dm-log-writes target, version 1:
//! a super block, then entries of one block each with their data behind them. What wasn't flushed when the log was
//! looked at stands behind everything that was. Never writes to a log.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLAG_FLUSH: u64 = 1;
const FLAG_FUA: u64 = 2;
const FLAG_DISCARD: u64 = 4;
const FLAG_MARK: u64 = 8;
/// Sector, count, flags, bytes of inline data.
const HEAD: usize = 32;

#[derive(Parser)]
#[command(name = "dst-log", about = "Read a log of dm-log-writes, and replay it")]
enum Cli {
    /// One line an entry: NUMBER SECTOR COUNT FLAGS, and a mark's text
    List { log: PathBuf },
    /// Apply entries to IMAGE; prints the number of the first one that was not applied
    Replay {
        log: PathBuf,
        image: PathBuf,
        /// The first entry to apply
        #[arg(long, default_value_t = 0)]
        from: usize,
        /// The first entry not to apply
        #[arg(long, conflicts_with = "to_mark", required_unless_present = "to_mark")]
        to: Option<usize>,
        /// Nothing from the first mark with this text on
        #[arg(long)]
        to_mark: Option<String>,
    },
}

#[derive(Debug)]
struct Entry {
    /// In blocks of the log, as all of this.
    block: u64,
    count: u64,
    flags: u64,
    mark: String,
    /// Where in the log its data begin.
    data: u64,
}

impl Entry {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    fn flags(&self) -> String {
        let names = [
            (FLAG_FLUSH, "flush"),
            (FLAG_FUA, "fua"),
            (FLAG_DISCARD, "discard"),
            (FLAG_MARK, "mark"),
        ];
        let set: Vec<&str> = names
            .iter()
            .filter(|(flag, _)| self.has(*flag))
            .map(|(_, name)| *name)
            .collect();
        if set.is_empty() {
            "-".to_owned()
        } else {
            set.join(",")
        }
    }
}

#[derive(Debug)]
struct Log {
    file: File,
    block: u64,
    entries: Vec<Entry>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl Log {
    fn load(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        ensure!(
            word(&head, 0) == MAGIC && word(&head, 8) == 1,
            "{} is no log of dm-log-writes",
            path.display()
        );
        let block = word(&head, 24) & 0xffff_ffff;
        ensure!(
            block.is_power_of_two() && (512..=4096).contains(&block),
            "blocks of {block} bytes"
        );
        let mut log = Log {
            file,
            block,
            entries: Vec::new(),
        };
        let mut at = 1;
        for number in 0..word(&head, 16) {
            let entry = log.entry(at).with_context(|| format!("entry {number}"))?;
            at = entry.data;
            if !entry.has(FLAG_DISCARD) {
                at += entry.count;
            }
            log.entries.push(entry);
        }
        Ok(log)
    }

    fn entry(&self, at: u64) -> Result<Entry> {
        let mut bytes = vec![0; self.block as usize];
        self.file.read_exact_at(&mut bytes, at * self.block)?;
        let inline = word(&bytes, 24) as usize;
        ensure!(HEAD + inline <= bytes.len(), "{inline} bytes of text");
        Ok(Entry {
            block: word(&bytes, 0),
            count: word(&bytes, 8),
            flags: word(&bytes, 16),
            mark: String::from_utf8_lossy(&bytes[HEAD..HEAD + inline])
                .trim_end_matches('\0')
                .to_owned(),
            data: at + 1,
        })
    }

    fn marked(&self, text: &str) -> Result<usize> {
        let found = self
            .entries
            .iter()
            .position(|entry| entry.has(FLAG_MARK) && entry.mark == text);
        found.with_context(|| format!("no mark `{text}` in {} entries", self.entries.len()))
    }

    fn apply(&self, entry: &Entry, image: &File) -> Result<()> {
        let mut bytes = vec![0; (entry.count * self.block) as usize];
        if !entry.has(FLAG_DISCARD) {
            self.file
                .read_exact_at(&mut bytes, entry.data * self.block)?;
        }
        Ok(image.write_all_at(&bytes, entry.block * self.block)?)
    }
}

fn list(log: &Log) {
    let sectors = log.block / 512;
    for (number, entry) in log.entries.iter().enumerate() {
        println!(
            "{number} {} {} {} {}",
            entry.block * sectors,
            entry.count * sectors,
            entry.flags(),
            entry.mark
        );
    }
}

fn replay(log: &Log, image: &Path, from: usize, to: usize) -> Result<()> {
    if from > to || to > log.entries.len() {
        bail!("no entries {from} to {to}: there are {}", log.entries.len());
    }
    let file = OpenOptions::new()
        .write(true)
        .open(image)
        .with_context(|| format!("opening {}", image.display()))?;
    for (number, entry) in (from..).zip(&log.entries[from..to]) {
        log.apply(entry, &file)
            .with_context(|| format!("entry {number}"))?;
    }
    println!("{to}");
    Ok(())
}

fn run(cli: Cli) -> Result<()> {
    match cli {
        Cli::List { log } => list(&Log::load(&log)?),
        Cli::Replay {
            log,
            image,
            from,
            to,
            to_mark,
        } => {
            let log = Log::load(&log)?;
            let to = match (to, to_mark) {
                (Some(to), _) => to,
                (None, Some(text)) => log.marked(&text)?,
                (None, None) => bail!("up to what?"),
            };
            replay(&log, &image, from, to)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dst-log: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of two writes, a flush of no data, a mark, a discard and a write behind it.
    fn a_log() -> Vec<u8> {
        let mut blocks: Vec<[u8; 512]> = Vec::new();
        let head = |words: [u64; 4], text: &str| {
            let mut block = [0; 512];
            for (to, word) in block.chunks_mut(8).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            block[HEAD..HEAD + text.len()].copy_from_slice(text.as_bytes());
            block
        };
        blocks.push(head([MAGIC, 1, 6, 512], ""));
        blocks.push(head([3, 2, 0, 0], ""));
        blocks.extend([[1; 512], [2; 512]]);
        blocks.push(head([4, 1, FLAG_FUA, 0], ""));
        blocks.push([3; 512]);
        blocks.push(head([0, 0, FLAG_FLUSH, 0], ""));
        blocks.push(head([0, 0, FLAG_MARK, 4], "here"));
        blocks.push(head([3, 1, FLAG_DISCARD, 0], ""));
        blocks.push(head([0, 1, 0, 0], ""));
        blocks.push([9; 512]);
        blocks.concat()
    }

    fn replayed(name: &str, to: usize) -> Vec<u8> {
        let dir = std::env::temp_dir().join(format!("dst-log-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (log, image) = (dir.join("log"), dir.join("image"));
        std::fs::write(&log, a_log()).unwrap();
        std::fs::write(&image, vec![0; 6 * 512]).unwrap();
        let log = Log::load(&log).unwrap();
        assert_eq!(log.marked("here").unwrap(), 3);
        assert!(log.marked("there").is_err());
        replay(&log, &image, 0, to).unwrap();
        let found = std::fs::read(&image).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        found.chunks(512).map(|block| block[0]).collect()
    }

    #[test]
    fn entries_are_applied_in_their_order_up_to_the_one_that_is_named() {
        assert_eq!(replayed("none", 0), [0, 0, 0, 0, 0, 0]);
        assert_eq!(replayed("one", 1), [0, 0, 0, 1, 2, 0]);
        assert_eq!(replayed("mark", 3), [0, 0, 0, 1, 3, 0]);
        assert_eq!(replayed("discard", 5), [0, 0, 0, 0, 3, 0]);
        assert_eq!(replayed("all", 6), [9, 0, 0, 0, 3, 0]);
    }
}
