//! The plot: target/bench/export.svg.
//!
//! Owns how results look. Called by `main`; computes nothing but bars. One row of panels for each backing and
//! transport: on the left each setup's speed by the fastest setup's, on the right its CPU time per request by that
//! of the setup that needs most. So export's bars should be long on the left and short on the right.

use std::path::Path;

use anyhow::{Context, Result};
use dst_bench_export::bars::{self, Row};

use crate::matrix::{Backing, Cell, Setup, Transport};
use crate::report::{Results, Run};

fn colour(setup: Setup) -> &'static str {
    match setup {
        Setup::Export => "#c1272d",
        Setup::Nbdkit => "#0072b2",
        Setup::NbdServer => "#009e73",
        Setup::QemuWb => "#e6a117",
        Setup::QemuNone => "#b0a08a",
    }
}

pub fn write(results: &Results, path: &Path) -> Result<()> {
    std::fs::write(path, draw(results)?)
        .with_context(|| format!("{} can't be written", path.display()))
}

fn draw(results: &Results) -> Result<String> {
    let mut body = String::new();
    let mut top = bars::TOP;
    let names: Vec<_> = results
        .setups
        .iter()
        .map(|s| (s.id(), colour(*s)))
        .collect();
    bars::legend(&mut body, &names)?;
    for backing in Backing::ALL {
        for transport in Transport::ALL {
            let cells: Vec<Cell> = results
                .cells
                .iter()
                .filter(|cell| (cell.backing, cell.transport) == (backing, transport))
                .copied()
                .collect();
            if cells.is_empty() {
                continue;
            }
            let title = format!("{}, {}", backing.id(), transport.id());
            let slots = results.setups.len();
            let speed = rows(results, &cells, |cell, run| run.speed(cell));
            let name = format!("{title}: speed");
            bars::panel(&mut body, (0.0, top), &name, slots, &speed)?;
            let cpu = rows(results, &cells, |_, run| run.server_cpu_s_per_mop);
            let name = format!("{title}: server CPU per request (shorter is better)");
            top = bars::panel(&mut body, (bars::WIDTH, top), &name, slots, &cpu)?;
        }
    }
    Ok(bars::document(&body, 2.0 * bars::WIDTH, top))
}

fn rows(results: &Results, cells: &[Cell], value: impl Fn(Cell, &Run) -> f64) -> Vec<Row> {
    let bar = |cell: Cell, setup: Setup| {
        let value = value(cell, &results.median(cell, setup)?);
        Some((colour(setup), value, format!("{setup} {cell}: {value:.2}")))
    };
    let row = |cell: &Cell| Row {
        label: cell.job.to_string(),
        bars: results
            .setups
            .iter()
            .filter_map(|setup| bar(*cell, *setup))
            .collect(),
    };
    cells.iter().map(row).collect()
}
