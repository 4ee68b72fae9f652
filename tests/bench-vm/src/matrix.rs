//! What is measured: setups × jobs × connections, in one of two modes.
//!
//! Owns the ids as they stand in vm.json, and which cells make no sense; every other cell that has no result is a failure.
//! Used by everything on the host's side; measures nothing.

use std::fmt;

use anyhow::Result;
use bench_vm::jobs::{self, Job};
use clap::ValueEnum;

/// A way to one device out of two remote disks; the first two are limits, not ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Setup {
    /// two RAM disks under dm-linear: the limit above the network
    #[value(name = "brd")]
    Brd,
    /// the same sizes over a bare connection: the limit of the network
    #[value(name = "tcp")]
    Tcp,
    #[value(name = "nbdko+nbdkit")]
    NbdkoNbdkit,
    #[value(name = "nbdko+nbdserver")]
    NbdkoNbdserver,
    #[value(name = "nbdko+qemu")]
    NbdkoQemu,
    #[value(name = "nbdko+export")]
    NbdkoExport,
    #[value(name = "nvmetcp")]
    Nvmetcp,
    #[value(name = "iscsi")]
    Iscsi,
    #[value(name = "dmdst+nbdkit")]
    DmdstNbdkit,
    #[value(name = "dmdst+nbdserver")]
    DmdstNbdserver,
    #[value(name = "dmdst+export")]
    DmdstExport,
    /// a dm-dst device of one node on a file in memory, to hold the next three against
    #[value(name = "scale-1")]
    Scale1,
    /// of 10,000 extents of that node
    #[value(name = "scale-x10000")]
    ScaleX10000,
    /// of 16 nodes
    #[value(name = "scale-n16")]
    ScaleN16,
    /// of 64 nodes
    #[value(name = "scale-n64")]
    ScaleN64,
}

impl Setup {
    pub const ALL: [Setup; 11] = [
        Setup::Brd,
        Setup::Tcp,
        Setup::NbdkoNbdkit,
        Setup::NbdkoNbdserver,
        Setup::NbdkoQemu,
        Setup::NbdkoExport,
        Setup::Nvmetcp,
        Setup::Iscsi,
        Setup::DmdstNbdkit,
        Setup::DmdstNbdserver,
        Setup::DmdstExport,
    ];

    /// Measured beside, and never in the same table.
    pub const SCALE: [Setup; 4] = [
        Setup::Scale1,
        Setup::ScaleX10000,
        Setup::ScaleN16,
        Setup::ScaleN64,
    ];

    pub fn every() -> Vec<Setup> {
        [&Self::ALL[..], &Self::SCALE[..]].concat()
    }

    /// The jobs that a scale setup is for: as deep for each node as the job of scale-1 that it is held against.
    pub fn scale_jobs(self) -> &'static [&'static str] {
        match self {
            Setup::Scale1 | Setup::ScaleX10000 => &["randread-4k-qd8", "randread-4k-qd32"],
            Setup::ScaleN16 => &["randread-4k-qd128"],
            Setup::ScaleN64 => &["randread-4k-qd512"],
            _ => &[],
        }
    }

    /// What `dmdst+export` is held against.
    pub const PEERS: [Setup; 6] = [
        Setup::NbdkoNbdkit,
        Setup::NbdkoNbdserver,
        Setup::NbdkoQemu,
        Setup::NbdkoExport,
        Setup::Nvmetcp,
        Setup::Iscsi,
    ];

    /// dm-dst and nbd.ko at the same server.
    pub const SAME_SERVER: [(Setup, Setup); 3] = [
        (Setup::DmdstNbdkit, Setup::NbdkoNbdkit),
        (Setup::DmdstNbdserver, Setup::NbdkoNbdserver),
        (Setup::DmdstExport, Setup::NbdkoExport),
    ];

    pub fn id(self) -> &'static str {
        match self {
            Setup::Brd => "brd",
            Setup::Tcp => "tcp",
            Setup::NbdkoNbdkit => "nbdko+nbdkit",
            Setup::NbdkoNbdserver => "nbdko+nbdserver",
            Setup::NbdkoQemu => "nbdko+qemu",
            Setup::NbdkoExport => "nbdko+export",
            Setup::Nvmetcp => "nvmetcp",
            Setup::Iscsi => "iscsi",
            Setup::DmdstNbdkit => "dmdst+nbdkit",
            Setup::DmdstNbdserver => "dmdst+nbdserver",
            Setup::DmdstExport => "dmdst+export",
            Setup::Scale1 => "scale-1",
            Setup::ScaleX10000 => "scale-x10000",
            Setup::ScaleN16 => "scale-n16",
            Setup::ScaleN64 => "scale-n64",
        }
    }

    /// Limits have no connections to choose from, nbd-server announces no multi-conn, an iSCSI session of Linux has one
    /// connection.
    fn takes_connections(self) -> bool {
        !matches!(
            self,
            Setup::Brd | Setup::Tcp | Setup::NbdkoNbdserver | Setup::Iscsi | Setup::DmdstNbdserver
        )
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Mode {
    /// one CPU that counts instructions: time is work
    Icount,
    /// two CPUs, the host's time
    Plain,
}

impl Mode {
    pub fn id(self) -> &'static str {
        match self {
            Mode::Icount => "icount",
            Mode::Plain => "plain",
        }
    }
}

/// What stands in a row of the table; its id is the job's, with the connections behind it where they are more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    pub job: &'static str,
    pub connections: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.connections {
            1 => f.pad(self.job),
            n => f.pad(&format!("{}-c{n}", self.job)),
        }
    }
}

/// As deep as only many nodes are.
const SCALE_JOB: &str = "randread-4k-qd512";

/// tests/vm/bench/steps.sh unpacks a tree of files: the one job that isn't fio's.
pub const UNTAR: &str = "untar";

/// The jobs of the file, with ids that live as long as the program.
pub fn all_jobs() -> Result<Vec<(&'static str, Option<Job>)>> {
    let parsed = jobs::parse(jobs::FILE)?.into_iter();
    let mut all: Vec<(&'static str, Option<Job>)> = parsed
        .map(|job| (&*job.id.clone().leak(), Some(job)))
        .collect();
    all.push((UNTAR, None));
    Ok(all)
}

/// Every line of a mode. On one CPU more connections than one are never used: dm-dst and nvme-tcp choose them by CPU.
pub fn lines(mode: Mode) -> Result<Vec<Line>> {
    let jobs = all_jobs()?;
    let mut lines: Vec<Line> = jobs
        .iter()
        .map(|(job, _)| Line {
            job,
            connections: 1,
        })
        .collect();
    if mode == Mode::Plain {
        let many = jobs
            .iter()
            .filter(|(id, _)| id.contains("-4k-qd32") && id.starts_with("rand"));
        lines.extend(
            many.filter(|(id, _)| !id.starts_with("randrw"))
                .map(|(job, _)| Line {
                    job,
                    connections: 4,
                }),
        );
    }
    Ok(lines)
}

/// A bare connection has no page cache, fsync or file system; a scale setup has its own jobs, which are no others'.
pub fn applies(setup: Setup, line: Line, jobs: &[(&'static str, Option<Job>)]) -> bool {
    if Setup::SCALE.contains(&setup) {
        return line.connections == 1 && setup.scale_jobs().contains(&line.job);
    }
    if line.job == SCALE_JOB || line.connections > 1 && !setup.takes_connections() {
        return false;
    }
    let found = jobs.iter().find(|(id, _)| *id == line.job);
    let direct = found.is_some_and(|(_, job)| job.as_ref().is_some_and(|job| job.direct));
    setup != Setup::Tcp || direct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_issue() {
        let ids = Setup::ALL.map(Setup::id);
        let issue = "brd tcp nbdko+nbdkit nbdko+nbdserver nbdko+qemu nbdko+export nvmetcp iscsi dmdst+nbdkit \
                     dmdst+nbdserver dmdst+export";
        assert_eq!(ids.join(" "), issue);
        for setup in Setup::every() {
            let value = setup.to_possible_value().expect("no setup is hidden");
            assert_eq!(value.get_name(), setup.id());
        }
    }

    #[test]
    fn what_makes_no_sense_is_left_out_and_nothing_else() {
        let jobs = all_jobs().expect("the job file can be read");
        let count = |mode| {
            let lines = lines(mode).expect("lines");
            let cells = lines
                .iter()
                .flat_map(|line| Setup::ALL.map(|setup| applies(setup, *line, &jobs)));
            let (yes, no): (Vec<bool>, Vec<bool>) = cells.partition(|applies| *applies);
            (lines.len(), yes.len(), no.len())
        };
        // tcp: two buffered jobs and untar
        assert_eq!(count(Mode::Icount), (28, 27 * 11 - 3, 3 + 11));
        // six lines with four connections, which five setups don't take
        assert_eq!(count(Mode::Plain), (34, 33 * 11 - 3 - 30, 33 + 11));
        let scale = |setup: Setup| {
            let lines = lines(Mode::Plain).expect("lines");
            let cells = lines.iter().filter(|line| applies(setup, **line, &jobs));
            cells.count()
        };
        assert_eq!(Setup::SCALE.map(scale), [2, 2, 1, 1]);
    }
}
