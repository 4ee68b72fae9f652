//! dst-poke: proves by contents where a device's sectors lie. `write` puts numbered sectors at random places of
//! a device, `check` finds each in the backing file that the table names, and nothing anywhere else; `assemble`
//! puts a device's contents together from the backing files. Run by the guest tests; shares no code with dstd,
//! so that a mistake there can't hide itself here. Never writes to a backing file.

mod sectors;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::sectors::{SECTOR, Sector, choose};
use crate::table::Table;

const O_DIRECT: i32 = 0o40000;
/// What is read of an image at once.
const CHUNK: u64 = 1 << 20;
const WRITERS: usize = 8;

/// For each node, the device's sector that must be at a sector of its image.
type Expected<'a> = BTreeMap<&'a str, BTreeMap<u64, u64>>;

#[derive(Parser)]
#[command(
    name = "dst-poke",
    about = "Prove by contents where a device's sectors lie"
)]
enum Cli {
    /// Write COUNT numbered sectors to random places of DEVICE, and around every extent boundary
    Write {
        device: PathBuf,
        #[command(flatten)]
        choice: Choice,
    },
    /// Find what `write` wrote: each sector in its image and nothing else in any image
    Check {
        #[command(flatten)]
        choice: Choice,
        /// Every node's backing file
        #[arg(value_name = "NODE=IMAGE")]
        images: Vec<Image>,
    },
    /// Print the device's contents as the images hold them
    Assemble {
        /// The output of `dmsetup table DEVICE`
        #[arg(long)]
        table: PathBuf,
        #[arg(value_name = "NODE=IMAGE")]
        images: Vec<Image>,
    },
}

#[derive(clap::Args)]
struct Choice {
    /// The output of `dmsetup table DEVICE`
    #[arg(long)]
    table: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long, default_value_t = 3000)]
    count: u64,
}

impl Choice {
    fn take(&self) -> Result<(Table, BTreeSet<u64>)> {
        let table = Table::load(&self.table)?;
        let sectors = choose(&table, self.seed, self.count);
        Ok((table, sectors))
    }
}

#[derive(Clone, Debug)]
struct Image {
    node: String,
    path: PathBuf,
}

impl FromStr for Image {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (node, path) = text.split_once('=').context("want NODE=IMAGE")?;
        Ok(Self {
            node: node.to_owned(),
            path: path.into(),
        })
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Write { device, choice } => write(&device, &choice),
        Cli::Check { choice, images } => check(&choice, &images),
        Cli::Assemble { table, images } => assemble(&table, &images),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dst-poke: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(device: &Path, choice: &Choice) -> Result<()> {
    let (_, sectors) = choice.take()?;
    let sectors: Vec<u64> = sectors.into_iter().collect();
    println!("seed {}, {} sectors", choice.seed, sectors.len());
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(O_DIRECT)
        .open(device)
        .with_context(|| format!("opening {}", device.display()))?;
    // Strided, so that neighbours are under way at the same time.
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|first| {
                let (file, sectors) = (&file, &sectors);
                scope.spawn(move || {
                    sectors
                        .iter()
                        .skip(first)
                        .step_by(WRITERS)
                        .try_for_each(|&at| {
                            file.write_all_at(&Sector::numbered(choice.seed, at).0, at * SECTOR)
                                .with_context(|| format!("writing sector {at}"))
                        })
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().unwrap_or_else(|_| bail!("a writer panicked")))
    })?;
    file.sync_all().context("flushing the device")
}

fn check(choice: &Choice, images: &[Image]) -> Result<()> {
    let (table, sectors) = choice.take()?;
    let mut expected: Expected<'_> = BTreeMap::new();
    for &at in &sectors {
        let (node, there) = table.locate(at)?;
        ensure!(
            images.iter().any(|image| image.node == node),
            "no image given for node {node}"
        );
        expected.entry(node).or_default().insert(there, at);
    }
    for image in images {
        check_image(image, choice.seed, &mut expected)?;
    }
    for (node, missing) in &expected {
        if let Some((there, at)) = missing.first_key_value() {
            bail!(
                "device sector {at} is not at sector {there} of node {node}, where the table puts it; {} sectors are missing there",
                missing.len()
            );
        }
    }
    println!(
        "{} sectors found, nothing else in {} images",
        sectors.len(),
        images.len()
    );
    Ok(())
}

/// Takes what it finds out of `expected`.
fn check_image(image: &Image, seed: u64, expected: &mut Expected<'_>) -> Result<()> {
    let name = image.path.display();
    let mut file = File::open(&image.path).with_context(|| format!("opening {name}"))?;
    let mut chunk = Vec::new();
    let mut base = 0;
    loop {
        chunk.clear();
        if Read::take(&mut file, CHUNK)
            .read_to_end(&mut chunk)
            .with_context(|| format!("reading {name}"))?
            == 0
        {
            return Ok(());
        }
        if chunk.iter().any(|byte| *byte != 0) {
            for (there, found) in (base..).zip(chunk.chunks(SECTOR as usize)) {
                check_sector(image, there, found, seed, expected)?;
            }
        }
        base += CHUNK / SECTOR;
    }
}

fn check_sector(
    image: &Image,
    there: u64,
    found: &[u8],
    seed: u64,
    expected: &mut Expected<'_>,
) -> Result<()> {
    let name = image.path.display();
    let sectors_of_node = expected.get_mut(image.node.as_str());
    match sectors_of_node.and_then(|sectors| sectors.remove(&there)) {
        Some(at) => ensure!(
            found == Sector::numbered(seed, at).0,
            "sector {there} of {name} must hold device sector {at}, but holds {}",
            sectors::describe(found)
        ),
        None => ensure!(
            found.iter().all(|byte| *byte == 0),
            "sector {there} of {name} must be untouched, but holds {}",
            sectors::describe(found)
        ),
    }
    Ok(())
}

fn assemble(table: &Path, images: &[Image]) -> Result<()> {
    let table = Table::load(table)?;
    let mut files = BTreeMap::new();
    for image in images {
        let file =
            File::open(&image.path).with_context(|| format!("opening {}", image.path.display()))?;
        files.insert(image.node.as_str(), file);
    }
    let mut out = BufWriter::with_capacity(CHUNK as usize, io::stdout().lock());
    for extent in &table.extents {
        let file = files
            .get_mut(extent.node.as_str())
            .with_context(|| format!("no image given for node {}", extent.node))?;
        let want = extent.length * SECTOR;
        file.seek(SeekFrom::Start(extent.offset * SECTOR))?;
        let got = io::copy(&mut file.take(want), &mut out)?;
        ensure!(
            got == want,
            "the image of node {} ends inside an extent",
            extent.node
        );
    }
    Ok(out.flush()?)
}
