//! How a plot looks: SVG with a legend and panels of bars, each row's longest bar as long as any other row's.
//!
//! Draws numbers; knows nothing of what they mean.

use std::fmt::Write;

use anyhow::Result;

const LABEL: f64 = 170.0;
const BARS: f64 = 400.0;
const BAR: f64 = 6.0;
const TITLE: f64 = 30.0;
/// Of a panel.
pub const WIDTH: f64 = LABEL + BARS + 30.0;
/// Where the first panel begins, below the legend.
pub const TOP: f64 = 40.0;

/// A row of bars: what it is, and each bar's colour, value and tooltip.
#[derive(Debug)]
pub struct Row {
    pub label: String,
    pub bars: Vec<(&'static str, f64, String)>,
}

pub fn legend(body: &mut String, names: &[(&str, &str)]) -> Result<()> {
    for (n, (name, colour)) in names.iter().enumerate() {
        let x = 10.0 + 110.0 * n as f64;
        writeln!(
            body,
            r#"<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/><text x="{}" y="20">{name}</text>"#,
            x + 17.0
        )?;
    }
    Ok(())
}

/// `slots` is how many bars a row has room for. Returns where the next panel may begin.
pub fn panel(
    body: &mut String,
    (left, top): (f64, f64),
    title: &str,
    slots: usize,
    rows: &[Row],
) -> Result<f64> {
    let zero = left + LABEL;
    let mut y = top + TITLE;
    writeln!(
        body,
        r#"<text x="{zero}" y="{}" font-weight="bold">{title}</text>"#,
        top + 18.0
    )?;
    for row in rows {
        let most = row.bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
        writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            zero - 6.0,
            y + BAR * slots as f64 / 2.0 + 4.0,
            row.label
        )?;
        for (colour, value, tip) in &row.bars {
            let width = if most > 0.0 { BARS * value / most } else { 0.0 };
            writeln!(
                body,
                r#"<rect x="{zero}" y="{y}" width="{width:.1}" height="{BAR}" fill="{colour}"><title>{tip}</title></rect>"#
            )?;
            y += BAR;
        }
        y += BAR;
    }
    Ok(y + 10.0)
}

pub fn document(body: &str, width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}
