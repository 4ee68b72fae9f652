//! `dstd remove`: takes devices away by name.
//! Called by cli. Never touches a device whose dm UUID isn't ours, nor one that is in use.

use clap::Args;

use super::args::default_topology;
use super::{Exit, Stop, print, system};
use crate::kernel::{Kernel, ObservedDevice};
use crate::table::DstArgs;
use crate::units::{DeviceName, NodeName};

/// Remove devices that dstd made
#[derive(Debug, Args)]
pub struct Remove {
    #[arg(value_name = "DEVICE", required = true)]
    devices: Vec<DeviceName>,
    /// Fail what is queued or in flight on the devices' nodes first, also for other devices of these nodes
    #[arg(long)]
    force: bool,
}

impl Remove {
    pub fn run(self) -> Result<Exit, Stop> {
        let kernel = system::kernel()?;
        let found = kernel.devices()?;
        // All are checked before the first is touched.
        let devices = self
            .devices
            .iter()
            .map(|name| removable(name, &found, self.force).map(|device| (name, device)))
            .collect::<Result<Vec<_>, _>>()?;
        for (name, device) in devices {
            if self.force {
                for node in nodes_of(device) {
                    kernel.fail_pending(&node)?;
                }
            }
            kernel.remove(name)?;
            print(format!("Removed {name}.\n"))?;
            if default_topology().is_some_and(|t| t.devices.contains_key(name)) {
                print(
                    "  # It is still in the topology in /etc/dst: `dstd run` and `dstd apply` make it again.\n",
                )?;
            }
        }
        Ok(Exit::Done)
    }
}

fn removable<'a>(
    name: &DeviceName,
    found: &'a [ObservedDevice],
    force: bool,
) -> Result<&'a ObservedDevice, Stop> {
    let Some(device) = found.iter().find(|d| d.name == name.as_str()) else {
        return Err(Stop::failed(format!(
            "there is no device {name}: `dstd status` lists them"
        )));
    };
    if !device.uuid.is_ours() {
        let text = format!(
            "{name} isn't dstd's (its dm UUID doesn't begin with DST-): use `dmsetup remove` if you mean it"
        );
        return Err(Stop::new(Exit::Refused, text));
    }
    // With --force its users may only be waiting for I/O that is about to fail.
    if device.open_count > 0 && !force {
        let text = format!(
            "{name} is in use ({} opened it): unmount or deactivate what is on it first",
            device.open_count
        );
        return Err(Stop::new(Exit::Refused, text));
    }
    Ok(device)
}

fn nodes_of(device: &ObservedDevice) -> Vec<NodeName> {
    let lines = device.lines.iter().chain(device.inactive.iter().flatten());
    let args = lines.filter_map(|line| DstArgs::of(line).ok());
    let mut nodes: Vec<_> = args.flat_map(|args| args.extents).map(|e| e.node).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}
