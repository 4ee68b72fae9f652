//! The plot: vm.svg. On the left what a job costs with each setup (counted instructions; shorter is better), on the right
//! how fast it is (plain; longer is better).
//!
//! Owns the colours. Called by main; computes nothing.

use std::path::Path;

use anyhow::{Context, Result};
use dst_bench_export::bars::{self, Row};

use crate::matrix::{Mode, Setup};
use crate::results::Results;

fn colour(setup: Setup) -> &'static str {
    match setup {
        Setup::Brd => "#bbbbbb",
        Setup::Tcp => "#888888",
        Setup::NbdkoNbdkit => "#0072b2",
        Setup::NbdkoNbdserver => "#009e73",
        Setup::NbdkoQemu => "#e6a117",
        Setup::NbdkoExport => "#b0a08a",
        Setup::Nvmetcp => "#7b3fa0",
        Setup::Iscsi => "#56b4e9",
        Setup::DmdstNbdkit => "#f4a3a8",
        Setup::DmdstNbdserver => "#e0606a",
        _ => "#c1272d", // dmdst+export; scale setups have no bars
    }
}

pub fn write(results: &Results, path: &Path) -> Result<()> {
    let mut body = String::new();
    let names: Vec<_> = Setup::ALL
        .iter()
        .map(|setup| (setup.id(), colour(*setup)))
        .collect();
    bars::legend(&mut body, &names)?;
    let mut bottom = bars::TOP;
    let panels = [
        (
            Mode::Icount,
            0.0,
            "instructions per I/O (shorter is better)",
        ),
        (Mode::Plain, bars::WIDTH, "speed (longer is better)"),
    ];
    for (mode, left, title) in panels {
        let rows: Vec<Row> = results
            .jobs(mode)
            .into_iter()
            .map(|job| row(results, mode, job))
            .collect();
        if !rows.is_empty() {
            let end = bars::panel(&mut body, (left, bars::TOP), title, Setup::ALL.len(), &rows)?;
            bottom = bottom.max(end);
        }
    }
    let width = (2.0 * bars::WIDTH).max(10.0 + 110.0 * Setup::ALL.len() as f64);
    std::fs::write(path, bars::document(&body, width, bottom))
        .with_context(|| format!("{} can't be written", path.display()))
}

fn row(results: &Results, mode: Mode, job: &str) -> Row {
    let bar = |setup: Setup| {
        let found = results.find(mode, job, setup)?;
        let value = found.kinstr_per_io.unwrap_or(found.iops);
        Some((colour(setup), value, format!("{setup} {job}: {value:.1}")))
    };
    Row {
        label: job.to_owned(),
        bars: Setup::ALL.into_iter().filter_map(bar).collect(),
    }
}
