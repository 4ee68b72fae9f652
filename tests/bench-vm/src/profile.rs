//! Where the instructions are: what tests/profile wrote, by the guest's symbols.
//!
//! Owns how addresses become functions and functions parts. Called by main with --profile; reads files only.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The kernel's half of the address space begins here; what is below is of processes, whose symbols nobody has.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// The guest's kernel symbols by address: name, and the module or "kernel".
#[derive(Debug)]
pub struct Symbols(BTreeMap<u64, (String, String)>);

impl Symbols {
    /// As /proc/kallsyms has them.
    pub fn parse(text: &str) -> Symbols {
        let mut symbols = BTreeMap::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [address, kind, name, module @ ..] = &fields[..] else {
                continue;
            };
            if let (Ok(address), "t" | "T" | "w" | "W") = (u64::from_str_radix(address, 16), *kind)
            {
                let module = module
                    .first()
                    .map_or("kernel", |m| m.trim_matches(['[', ']']));
                symbols.insert(address, ((*name).to_owned(), module.to_owned()));
            }
        }
        Symbols(symbols)
    }

    fn find(&self, address: u64) -> (&str, &str) {
        if address < KERNEL {
            return ("(user space)", "user");
        }
        let below = self.0.range(..=address).next_back();
        below.map_or(("(unknown)", "kernel"), |(_, (name, module))| {
            (name, module)
        })
    }
}

/// Instructions by (module, function), of each job in the order in which they ran: the counts between two marks.
pub fn parse(text: &str, symbols: &Symbols) -> Result<Vec<BTreeMap<(String, String), u64>>> {
    let mut marks: Vec<BTreeMap<u64, u64>> = Vec::new();
    for line in text.lines() {
        if line == "mark" {
            marks.push(BTreeMap::new());
            continue;
        }
        let pair = line.split_once(' ').and_then(|(address, count)| {
            let hex = |text| u64::from_str_radix(text, 16).ok();
            Some((hex(address)?, hex(count)?))
        });
        let (address, count) = pair.with_context(|| format!("no count: {line}"))?;
        marks
            .last_mut()
            .context("a count before the first mark")?
            .insert(address, count);
    }
    if marks.is_empty() || marks.len() % 2 == 1 {
        bail!("{} marks: each job makes two", marks.len());
    }
    let jobs = marks.chunks(2).map(|pair| {
        let mut functions = BTreeMap::new();
        for (address, after) in &pair[1] {
            let spent = after - pair[0].get(address).copied().unwrap_or(0).min(*after);
            let (name, module) = symbols.find(*address);
            *functions
                .entry((module.to_owned(), name.to_owned()))
                .or_insert(0) += spent;
        }
        functions
    });
    Ok(jobs.collect())
}

/// The parts, then the functions that cost most, in instructions per I/O.
pub fn print(title: &str, functions: &BTreeMap<(String, String), u64>, ios: f64, most: usize) {
    let per_io = |count: u64| count as f64 / ios;
    let mut modules: BTreeMap<&str, u64> = BTreeMap::new();
    for ((module, _), count) in functions {
        *modules.entry(module).or_insert(0) += count;
    }
    let mut modules: Vec<_> = modules.into_iter().collect();
    modules.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let all: u64 = modules.iter().map(|(_, count)| count).sum();
    println!(
        "\n{title}: {:.0} instructions per I/O, {ios} I/Os",
        per_io(all)
    );
    for (module, count) in modules.iter().filter(|(_, count)| per_io(*count) >= 1.0) {
        println!("{:>10.0}  {module}", per_io(*count));
    }
    let mut sorted: Vec<_> = functions.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    println!("the functions that cost most:");
    for ((module, name), count) in sorted.into_iter().take(most) {
        println!("{:>10.0}  {name} [{module}]", per_io(*count));
    }
}

/// `ios` of each job that ran.
pub fn report(file: &Path, kallsyms: &Path, jobs: &[(String, f64)], most: usize) -> Result<()> {
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("{}", path.display()));
    let found = parse(&read(file)?, &Symbols::parse(&read(kallsyms)?))?;
    if found.len() != jobs.len() {
        bail!("{} jobs were marked, {} ran", found.len(), jobs.len());
    }
    for ((title, ios), functions) in jobs.iter().zip(&found) {
        print(title, functions, *ios, most);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "ffffffff81000000 T tcp_sendmsg\nffffffff81000100 t helper\n\
        ffffffffc0000000 t dmdst_map\t[dm_dst]\nffffffff82000000 D data\n";

    #[test]
    fn what_lies_between_two_marks_counts() {
        let text = "mark\nffffffff81000010 5\nmark\nffffffff81000010 15\nffffffffc0000008 8\n400000 2\n\
            mark\nffffffff81000110 1\nmark\nffffffff81000110 3\n";
        let jobs = parse(text, &Symbols::parse(SYMBOLS)).expect("two jobs");
        let count = |n: usize, module: &str, name: &str| {
            jobs[n].get(&(module.to_owned(), name.to_owned())).copied()
        };
        assert_eq!(count(0, "kernel", "tcp_sendmsg"), Some(16));
        assert_eq!(count(0, "dm_dst", "dmdst_map"), Some(8));
        assert_eq!(count(0, "user", "(user space)"), Some(2));
        assert_eq!((count(1, "kernel", "helper"), jobs.len()), (Some(2), 2));
    }

    #[test]
    fn half_a_job_is_none() {
        let symbols = Symbols::parse("");
        assert!(parse("mark\n", &symbols).is_err());
        assert!(parse("400000 2\n", &symbols).is_err());
        assert!(parse("mark\nwhat\n", &symbols).is_err());
    }
}
