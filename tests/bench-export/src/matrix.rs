//! What is measured: the cells of the table.
//!
//! Owns the ids of setups, transports, backings and jobs as they stand in export.json. Used by everything here;
//! measures nothing. A cell is a backing, a transport and a job; each cell is run with every setup.

use std::fmt;

use clap::ValueEnum;

/// A server under measurement; the ids are those of export.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Setup {
    Export,
    Nbdkit,
    #[value(name = "nbdserver")]
    NbdServer,
    QemuWb,
    QemuNone,
}

impl Setup {
    pub const ALL: [Setup; 5] = [
        Setup::Export,
        Setup::Nbdkit,
        Setup::NbdServer,
        Setup::QemuWb,
        Setup::QemuNone,
    ];

    pub fn id(self) -> &'static str {
        match self {
            Setup::Export => "export",
            Setup::Nbdkit => "nbdkit",
            Setup::NbdServer => "nbdserver",
            Setup::QemuWb => "qemu-wb",
            Setup::QemuNone => "qemu-none",
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Unix];

    pub fn id(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Unix => "unix",
        }
    }
}

/// Where the exported file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backing {
    Tmpfs,
    Disk,
}

impl Backing {
    pub const ALL: [Backing; 2] = [Backing::Tmpfs, Backing::Disk];

    pub fn id(self) -> &'static str {
        match self {
            Backing::Tmpfs => "tmpfs",
            Backing::Disk => "disk",
        }
    }
}

/// One fio job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// fio's `rw`: randread, randwrite, read or write.
    pub rw: &'static str,
    pub block_kib: u32,
    pub depth: u32,
    pub connections: u32,
}

impl Job {
    /// The jobs of the issue; a sequential job has one connection and eight requests in flight.
    pub const ALL: [Job; 12] = [
        Job::small("randread", 1, 1),
        Job::small("randread", 1, 4),
        Job::small("randread", 32, 1),
        Job::small("randread", 32, 4),
        Job::small("randwrite", 1, 1),
        Job::small("randwrite", 1, 4),
        Job::small("randwrite", 32, 1),
        Job::small("randwrite", 32, 4),
        Job::large("read", 128),
        Job::large("read", 1024),
        Job::large("write", 128),
        Job::large("write", 1024),
    ];

    const fn small(rw: &'static str, depth: u32, connections: u32) -> Job {
        Job {
            rw,
            block_kib: 4,
            depth,
            connections,
        }
    }

    const fn large(rw: &'static str, block_kib: u32) -> Job {
        Job {
            rw,
            block_kib,
            depth: 8,
            connections: 1,
        }
    }

    /// Judged by IOPS, not by MB/s.
    pub fn is_small(self) -> bool {
        self.block_kib == 4
    }

    pub fn is_write(self) -> bool {
        self.rw.ends_with("write")
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block_kib {
            1024 => write!(f, "{}-1m", self.rw)?,
            kib => write!(f, "{}-{kib}k", self.rw)?,
        }
        write!(f, "-qd{}-c{}", self.depth, self.connections)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub backing: Backing,
    pub transport: Transport,
    pub job: Job,
}

impl Cell {
    /// As in export.json: "tmpfs-randread-4k-qd32-c4".
    pub fn job_id(self) -> String {
        format!("{}-{}", self.backing.id(), self.job)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport.id(), self.job_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_issue() {
        let cell = Cell {
            backing: Backing::Tmpfs,
            transport: Transport::Unix,
            job: Job::small("randread", 32, 4),
        };
        assert_eq!(cell.to_string(), "unix/tmpfs-randread-4k-qd32-c4");
        let cell = Cell {
            job: Job::large("write", 1024),
            ..cell
        };
        assert_eq!(cell.job_id(), "tmpfs-write-1m-qd8-c1");
        let ids = Setup::ALL.map(Setup::id);
        assert_eq!(
            ids,
            ["export", "nbdkit", "nbdserver", "qemu-wb", "qemu-none"]
        );
        for setup in Setup::ALL {
            let value = setup.to_possible_value().expect("no setup is hidden");
            assert_eq!(value.get_name(), setup.id());
        }
    }
}
