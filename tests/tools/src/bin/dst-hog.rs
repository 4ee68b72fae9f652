//! dst-hog MIB PASSES: uses more memory than there is and proves that it gets back what it put there. Each pass goes
//! through all pages in another order, looks for what the pass before has left, and writes anew. Run by the guest tests
//! of swap. Touches nothing but its own memory.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

const WORDS: usize = 4096 / 8;

#[derive(Parser)]
#[command(
    name = "dst-hog",
    about = "Use memory, and verify what comes back from swap"
)]
struct Cli {
    mib: usize,
    passes: u64,
}

/// Every word of a page depends on page and pass.
fn word(page: usize, pass: u64, at: usize) -> u64 {
    let seed = (page as u64) << 20 | pass << 10 | at as u64;
    let mixed = (seed ^ (seed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn visit(memory: &mut [u64], page: usize, pass: u64) -> Result<()> {
    let words = &mut memory[page * WORDS..][..WORDS];
    for (at, found) in words.iter_mut().enumerate() {
        if pass > 0 {
            let want = word(page, pass - 1, at);
            ensure!(
                *found == want,
                "page {page} holds {found:#x} at word {at}, not {want:#x} of pass {}",
                pass - 1
            );
        }
        *found = word(page, pass, at);
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<()> {
    let pages = cli.mib.checked_mul(256).context("too much")?;
    ensure!(pages > 0, "no memory to use");
    let mut memory = vec![0_u64; pages * WORDS];
    for pass in 0..cli.passes {
        // Forwards, backwards, and so on: what comes next was always used longest ago, or just now.
        for i in 0..pages {
            let page = if pass % 2 == 0 { i } else { pages - 1 - i };
            visit(&mut memory, page, pass)?;
        }
        println!("pass {pass}");
    }
    println!(
        "{} bytes verified",
        cli.passes.saturating_sub(1) * pages as u64 * 4096
    );
    Ok(())
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dst-hog: {error:#}");
            ExitCode::FAILURE
        }
    }
}
