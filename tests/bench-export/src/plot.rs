//! The plot: target/bench/export.svg.
//!
//! Owns how results look. Called by `main`; computes nothing but bars. One row of panels for each backing and
//! transport: on the left each setup's speed by the fastest setup's, on the right its CPU time per request by that
//! of the setup that needs most. So export's bars should be long on the left and short on the right.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::matrix::{Backing, Cell, Setup, Transport};
use crate::report::{Results, Run};

const LABEL: f64 = 170.0;
const BARS: f64 = 400.0;
const PANEL: f64 = LABEL + BARS + 30.0;
const BAR: f64 = 6.0;
const TITLE: f64 = 30.0;

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
    let mut top = 40.0;
    for (n, setup) in results.setups.iter().enumerate() {
        let x = 10.0 + 110.0 * n as f64;
        writeln!(
            body,
            r#"<rect x="{x}" y="10" width="12" height="12" fill="{}"/><text x="{}" y="20">{setup}</text>"#,
            colour(*setup),
            x + 17.0
        )?;
    }
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
            let speed = |cell: Cell, run: &Run| run.speed(cell);
            panel(
                &mut body,
                results,
                &cells,
                0.0,
                top,
                &format!("{title}: speed"),
                speed,
            )?;
            let cpu = |_: Cell, run: &Run| run.server_cpu_s_per_mop;
            let title = format!("{title}: server CPU per request (shorter is better)");
            top = panel(&mut body, results, &cells, PANEL, top, &title, cpu)?;
        }
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n",
        2.0 * PANEL
    ))
}

/// Returns where the next panel may begin.
fn panel(
    body: &mut String,
    results: &Results,
    cells: &[Cell],
    left: f64,
    top: f64,
    title: &str,
    value: impl Fn(Cell, &Run) -> f64,
) -> Result<f64> {
    let zero = left + LABEL;
    let mut y = top + TITLE;
    writeln!(
        body,
        r#"<text x="{zero}" y="{}" font-weight="bold">{title}</text>"#,
        top + 18.0
    )?;
    for cell in cells {
        let values: Vec<(Setup, f64)> = results
            .setups
            .iter()
            .filter_map(|setup| Some((*setup, value(*cell, &results.median(*cell, *setup)?))))
            .collect();
        let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            zero - 6.0,
            y + BAR * results.setups.len() as f64 / 2.0 + 4.0,
            cell.job
        )?;
        for (setup, value) in values {
            let width = if most > 0.0 { BARS * value / most } else { 0.0 };
            writeln!(
                body,
                r#"<rect x="{zero}" y="{y}" width="{width:.1}" height="{BAR}" fill="{}"><title>{setup} {cell}: {value:.2}</title></rect>"#,
                colour(setup)
            )?;
            y += BAR;
        }
        y += BAR;
    }
    Ok(y + 10.0)
}
