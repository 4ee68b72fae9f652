//! `dstd remove`: takes devices away by name.
//! Called by cli. Never touches a device whose dm UUID isn't ours, nor one that is in use.

use std::time::{Duration, Instant};

use clap::Args;

use super::args::default_topology;
use super::{Exit, Stop, print, system};
use crate::kernel::{Kernel, ObservedDevice};
use crate::table::DstArgs;
use crate::units::{DeviceName, NodeName};

/// udev opens for a moment what was just closed or written.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
        let found = self.unused(|| Ok(kernel.devices()?))?;
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

    /// What there is, as soon as nobody has the devices open; with one that stays open it is refused later.
    fn unused(
        &self,
        mut look: impl FnMut() -> Result<Vec<ObservedDevice>, Stop>,
    ) -> Result<Vec<ObservedDevice>, Stop> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = look()?;
            let mut ours = found.iter().filter(|d| self.names(d));
            if self.force || Instant::now() >= until || ours.all(|d| d.open_count == 0) {
                return Ok(found);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn names(&self, device: &ObservedDevice) -> bool {
        self.devices.iter().any(|name| name.as_str() == device.name)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Access, DmUuid};
    use crate::units::DeviceNumber;

    fn device(name: &str, open_count: u32) -> ObservedDevice {
        ObservedDevice {
            name: name.to_owned(),
            uuid: DmUuid("DST-dev".into()),
            number: DeviceNumber {
                major: 252,
                minor: 0,
            },
            suspended: false,
            access: Access::ReadWrite,
            open_count,
            lines: Vec::new(),
            inactive: None,
        }
    }

    #[test]
    fn who_looks_at_a_device_for_a_moment_is_waited_for_and_others_devices_are_not() {
        let remove = Remove {
            devices: vec!["dev".parse().unwrap()],
            force: false,
        };
        let mut looks = [2, 1, 0, 0].into_iter();
        let found = remove.unused(|| {
            let opened = looks.next().unwrap();
            Ok(vec![device("other", 3), device("dev", opened)])
        });
        assert_eq!(found.unwrap()[1].open_count, 0);
        assert_eq!(looks.len(), 1, "it looked until nobody had it open");
    }
}
