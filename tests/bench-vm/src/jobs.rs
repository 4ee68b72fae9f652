//! The jobs, as they stand in tests/vm/bench/jobs.fio: a section is a job, and its name the job's id.
//!
//! Owns the few of fio's options that decide what a job is here. Used by the matrix and by dst-tcp, so that the bare
//! exchange has the sizes of fio's. Runs nothing.

use anyhow::{Context, Result, bail};

/// The same file that the guest gives to fio.
pub const FILE: &str = include_str!("../../vm/bench/jobs.fio");

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: String,
    /// fio's `rw`
    pub rw: String,
    /// in bytes
    pub block: u64,
    pub depth: u64,
    /// threads that submit
    pub jobs: u64,
    /// not through the page cache
    pub direct: bool,
}

/// One request of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

impl Job {
    /// A long sequential one, which a stream stands for; the others are exchanges.
    pub fn is_stream(&self) -> bool {
        self.block > 4096
    }

    /// What the requests of one batch are: seven in ten are reads where both are mixed.
    pub fn batch(&self) -> Vec<Kind> {
        let kind = |n: u64| match self.rw.as_str() {
            "randrw" if n * 7 % 10 < 7 => Kind::Read,
            "read" | "randread" => Kind::Read,
            _ => Kind::Write,
        };
        (0..self.depth).map(kind).collect()
    }
}

/// All jobs of a job file, in its order.
pub fn parse(text: &str) -> Result<Vec<Job>> {
    let mut global: Vec<(&str, &str)> = Vec::new();
    let mut sections: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    let mut in_global = true;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            in_global = name == "global";
            if !in_global {
                sections.push((name, global.clone()));
            }
            continue;
        }
        let option = line.split_once('=').unwrap_or((line, "1"));
        match sections.last_mut() {
            _ if in_global => global.push(option),
            Some((_, options)) => options.push(option),
            None => bail!("`{line}` stands before the first section"),
        }
    }
    sections
        .into_iter()
        .map(|(name, options)| job(name, &options).with_context(|| format!("job {name}")))
        .collect()
}

/// The last word on an option counts.
fn job(id: &str, options: &[(&str, &str)]) -> Result<Job> {
    let find = |key: &str| {
        let mut found = options.iter().rev().filter(|(name, _)| *name == key);
        found.next().map(|(_, value)| *value)
    };
    let number = |key: &str, default: u64| {
        find(key).map_or(Ok(default), |text| {
            let (digits, unit) = match text.strip_suffix(['k', 'm']) {
                Some(digits) if text.ends_with('k') => (digits, 1 << 10),
                Some(digits) => (digits, 1 << 20),
                None => (text, 1),
            };
            let value: u64 = digits.parse().with_context(|| format!("{key}={text}"))?;
            Ok::<u64, anyhow::Error>(value * unit)
        })
    };
    Ok(Job {
        id: id.to_owned(),
        rw: find("rw").context("it has no rw")?.to_owned(),
        block: number("bs", 4096)?,
        depth: number("iodepth", 1)?,
        jobs: number("numjobs", 1)?,
        direct: number("direct", 0)? == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_id(id: &str) -> Job {
        let jobs = parse(FILE).expect("the job file can be read");
        jobs.into_iter()
            .find(|job| job.id == id)
            .expect("it has that job")
    }

    /// An id says what the job is: a slip in the file would measure something else under that name.
    #[test]
    fn ids_are_what_the_jobs_are() {
        let jobs = parse(FILE).expect("the job file can be read");
        assert_eq!(jobs.len(), 27);
        for job in &jobs {
            let size = match job.block {
                1048576 => "1m".to_owned(),
                block => format!("{}k", block / 1024),
            };
            let rw = if job.direct {
                job.rw.clone()
            } else {
                "bufwrite".to_owned()
            };
            let mut id = format!("{rw}-{size}");
            if job.direct {
                id += &format!("-qd{}", job.depth);
            }
            if job.jobs > 1 {
                id += &format!("-j{}", job.jobs);
            }
            let rest = job.id.strip_prefix(&id);
            assert!(
                matches!(rest, Some("" | "-b16" | "-fsync1" | "-fsync32")),
                "{} is {id}",
                job.id
            );
        }
        let mut ids: Vec<_> = jobs.iter().map(|job| &job.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), jobs.len(), "an id stands twice");
    }

    #[test]
    fn a_batch_is_what_the_depth_says() {
        assert_eq!(by_id("randread-4k-qd32").batch(), vec![Kind::Read; 32]);
        assert_eq!(by_id("write-4k-qd32").batch(), vec![Kind::Write; 32]);
        let mixed = by_id("randrw-4k-qd128").batch();
        let reads = mixed.iter().filter(|kind| **kind == Kind::Read).count();
        assert_eq!((mixed.len(), reads), (128, 89));
        assert!(by_id("read-1m-qd8").is_stream() && !by_id("read-4k-qd32").is_stream());
    }

    #[test]
    fn what_it_does_not_understand_is_an_error() {
        assert!(parse("[a]\nbs=4q\nrw=read").is_err());
        assert!(parse("[a]\nbs=4k").is_err());
        assert!(parse("bs=4k\n[global]\nrw=read\n").is_ok());
    }
}
