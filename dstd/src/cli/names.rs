//! `dstd names`: names for completions, and the part of bash's script that asks for them.
//! Called by cli and pages. Hidden. Where it finds nothing it says nothing, also not why: somebody is typing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, ValueEnum};

use super::args::default_topology;
use super::{Exit, Stop, print, system};
use crate::kernel::{DmUuid, Kernel};
use crate::topology::Topology;
use crate::units::DeviceName;

/// Where everybody may read what devices there are.
const SYSFS: &str = "/sys/block";

/// Print names for completions
#[derive(Debug, Args)]
pub struct Names {
    what: What,
    /// Instead of /etc/dst
    topologies: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Those of dstd's that the kernel has
    Devices,
    /// Those that the kernel has; for who may not ask it, those of the topology
    Nodes,
    TopologyDevices,
    TopologyNodes,
}

impl Names {
    pub fn run(self) -> Result<Exit, Stop> {
        let names = match self.what {
            What::Devices => devices(Path::new(SYSFS)).unwrap_or_default(),
            What::Nodes => nodes().unwrap_or_else(|_| nodes_of(default_topology())),
            What::TopologyDevices => self.topology().map_or_else(BTreeSet::new, |topology| {
                topology.devices.keys().map(ToString::to_string).collect()
            }),
            What::TopologyNodes => nodes_of(self.topology()),
        };
        for name in names {
            print(format!("{name}\n"))?;
        }
        Ok(Exit::Done)
    }

    fn topology(&self) -> Option<Topology> {
        match self.topologies.as_slice() {
            [] => default_topology(),
            paths => Topology::load(paths).ok(),
        }
    }
}

fn nodes_of(topology: Option<Topology>) -> BTreeSet<String> {
    let nodes = topology.unwrap_or_default().nodes;
    nodes.keys().map(ToString::to_string).collect()
}

fn nodes() -> Result<BTreeSet<String>, Stop> {
    let nodes = system::kernel()?.nodes()?;
    Ok(nodes.iter().map(|node| node.name.to_string()).collect())
}

/// Those whose UUID is of dstd's, without any that was renamed to what a shell would read otherwise.
fn devices(sysfs: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for disk in fs::read_dir(sysfs)? {
        let dm = disk?.path().join("dm");
        let read = |file| fs::read_to_string(dm.join(file)).unwrap_or_default();
        let name = read("name").trim_end().to_owned();
        if DmUuid(read("uuid")).is_ours() && name.parse::<DeviceName>().is_ok() {
            names.insert(name);
        }
    }
    Ok(names)
}

/// What completions know: all commands but the hidden ones.
pub fn visible(command: &clap::Command) -> clap::Command {
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    clap::Command::new("dstd")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(shown.cloned())
}

/// clap's script for bash, with names where a command takes them.
pub fn bash(command: &clap::Command, script: &str) -> String {
    let (options, positionals) = places(command);
    let names = include_str!("names.bash")
        .replace("@OPTIONS@", options.trim_end())
        .replace("@POSITIONALS@", positionals.trim_end());
    format!(
        "{}\n{names}",
        script.replace("complete -F _dstd ", "complete -F _dstd_names ")
    )
}

/// The arms of both `case`s: by the command and the option before the word, and by the command and how many words of its own
/// are there already.
fn places(command: &clap::Command) -> (String, String) {
    let (mut options, mut positionals) = (String::new(), String::new());
    for command in command.get_subcommands() {
        for arg in command.get_arguments() {
            let what = match arg.get_value_names() {
                Some([name]) if name == "DEVICE" => "devices",
                Some([name]) if name == "NODE" => "nodes",
                _ => continue,
            };
            let name = command.get_name();
            match arg.get_long() {
                Some(long) => {
                    options += &format!("        '{name} --{long}') what=topology-{what} ;;\n");
                }
                None => {
                    let many = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
                        || matches!(arg.get_action(), clap::ArgAction::Append);
                    let nth = if many { "*" } else { "0" };
                    positionals += &format!("        '{name} '{nth}) what={what} ;;\n");
                }
            }
        }
    }
    (options, positionals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_dstds_are_read_by_anybody_and_strange_names_left_out() {
        let sysfs = tempfile::tempdir().unwrap();
        for (disk, name, uuid) in [
            ("dm-0", "archive\n", "DST-archive\n"),
            ("dm-1", "renamed\n", "DST-old\n"),
            ("dm-2", "vg-root\n", "LVM-abc\n"),
            ("dm-3", "bare\n", "\n"),
            ("dm-4", "$(reboot)\n", "DST-strange\n"),
        ] {
            let dm = sysfs.path().join(disk).join("dm");
            fs::create_dir_all(&dm).unwrap();
            fs::write(dm.join("name"), name).unwrap();
            fs::write(dm.join("uuid"), uuid).unwrap();
        }
        fs::create_dir(sysfs.path().join("vda")).unwrap();
        let names: Vec<_> = devices(sysfs.path()).unwrap().into_iter().collect();
        assert_eq!(names, ["archive", "renamed"]);
    }

    #[test]
    fn bash_asks_where_a_command_takes_a_name() {
        let (options, positionals) = places(&super::super::command());
        for line in [
            "'plan --allow-shrink') what=topology-devices ;;",
            "'apply --steal') what=topology-nodes ;;",
            "'table --device') what=topology-devices ;;",
        ] {
            assert!(options.contains(line), "{options}");
        }
        let lines: Vec<_> = positionals.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "'remove '*) what=devices ;;",
                "'rename '0) what=devices ;;",
                "'fail-pending '0) what=nodes ;;",
                "'fence '0) what=nodes ;;"
            ]
        );
    }
}
