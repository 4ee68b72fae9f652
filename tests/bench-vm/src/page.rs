//! docs/performance.md, made of vm.json: every figure in it comes from there.
//!
//! Owns the page's words. Called by main with --page; measures nothing.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::matrix::{self, Mode, Setup};
use crate::report::{self, Value};
use crate::results::{Results, bars};

const INTRODUCTION: &str = include_str!("page.md");

/// True if every cell has a result; those that haven't are named on the page.
pub fn write(results: &Results, path: &Path) -> Result<bool> {
    let missing = missing(results)?;
    std::fs::write(path, page(results, &missing)?)
        .with_context(|| format!("{} can't be written", path.display()))?;
    for what in &missing {
        println!("MISSING {what}");
    }
    Ok(missing.is_empty())
}

fn missing(results: &Results) -> Result<Vec<String>> {
    let jobs = matrix::all_jobs()?;
    let mut missing = Vec::new();
    for mode in [Mode::Icount, Mode::Plain] {
        if results.jobs(mode).is_empty() {
            missing.push(format!("{}: everything", mode.id()));
            continue;
        }
        for line in matrix::lines(mode)? {
            for setup in Setup::every() {
                let found = results.find(mode, &line.to_string(), setup);
                if matrix::applies(setup, line, &jobs) && found.is_none() {
                    missing.push(format!("{} {setup} {line}", mode.id()));
                }
            }
        }
    }
    Ok(missing)
}

fn page(results: &Results, missing: &[String]) -> Result<String> {
    let mut page = INTRODUCTION.to_owned();
    if !missing.is_empty() {
        writeln!(page, "\n**Without a result**, and so in no ratio or bar:\n")?;
    }
    for what in missing {
        writeln!(page, "- {what}")?;
    }
    if !results.jobs(Mode::Icount).is_empty() {
        counted(results, &mut page)?;
    }
    if !results.jobs(Mode::Plain).is_empty() {
        plain(results, &mut page)?;
    }
    writeln!(page, "\n## What was measured with what\n")?;
    for (key, value) in &results.machine {
        writeln!(page, "- {key}: {value}")?;
    }
    for (mode, versions) in &results.versions {
        let all: Vec<String> = versions
            .iter()
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        writeln!(page, "- {mode}: {}", all.join(", "))?;
    }
    Ok(page)
}

fn counted(results: &Results, page: &mut String) -> Result<()> {
    let mode = Mode::Icount;
    let jobs = results.jobs(mode);
    writeln!(page, "\n## Instructions\n")?;
    for value in [
        Value::Speed,
        Value::Switches,
        Value::Softirqs,
        Value::Segments,
        Value::Merged,
        Value::Idle,
    ] {
        section(results, mode, value, &jobs, page)?;
    }
    let large: Vec<&str> = jobs
        .iter()
        .filter(|job| report::is_large(job))
        .copied()
        .collect();
    section(results, mode, Value::Mbps, &large, page)?;
    let bars = bars(results);
    writeln!(page, "### What issue 5 asked for\n")?;
    let mut table = vec![
        ["job", "beside", "is", "wanted", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    table.extend(bars.iter().map(report::bar_line));
    writeln!(page, "{}", report::markdown(&table))?;
    Ok(())
}

fn plain(results: &Results, page: &mut String) -> Result<()> {
    let mode = Mode::Plain;
    let jobs = results.jobs(mode);
    writeln!(page, "\n## Time, on two CPUs\n")?;
    for value in [Value::Speed, Value::Latency, Value::Spread] {
        section(results, mode, value, &jobs, page)?;
    }
    Ok(())
}

fn section(
    results: &Results,
    mode: Mode,
    value: Value,
    jobs: &[&str],
    page: &mut String,
) -> Result<()> {
    let title = value.title(mode);
    let first = title.chars().next().map(|c| c.to_uppercase().to_string());
    let rest: String = title.chars().skip(1).collect();
    writeln!(page, "### {}{rest}\n", first.unwrap_or_default())?;
    let table = report::table(results, mode, value, jobs);
    writeln!(page, "{}", report::markdown(&table))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::made;

    #[test]
    fn a_page_names_what_has_no_result() {
        let results = made("untar", &[(Setup::Brd, 7.0), (Setup::DmdstExport, 9.0)]);
        let missing = missing(&results).expect("the job file can be read");
        let is_missing = |what: &str| missing.iter().any(|cell| cell == what);
        assert!(is_missing("icount iscsi untar") && is_missing("plain: everything"));
        assert!(!is_missing("icount brd untar") && !is_missing("icount tcp untar"));
        let page = page(&results, &missing).expect("a page");
        assert!(page.contains("\n- icount iscsi untar\n"));
    }
}
