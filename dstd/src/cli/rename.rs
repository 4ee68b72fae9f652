//! `dstd rename`: gives a device another name, under I/O too.
//! Called by cli. Never touches a device whose dm UUID isn't ours. The topology is the operator's to change, before it.

use clap::Args;

use super::args::default_topology;
use super::{Exit, Stop, print, system};
use crate::kernel::{Kernel, ObservedDevice};
use crate::units::DeviceName;

/// Give a device that dstd made another name
///
/// I/O goes on, and what is open or mounted stays so. Rename it in the topology first: until the device has its new name,
/// too, `dstd run` refuses to make another one beside it.
#[derive(Debug, Args)]
pub struct Rename {
    #[arg(value_name = "DEVICE")]
    device: DeviceName,
    #[arg(value_name = "NEW")]
    to: DeviceName,
}

impl Rename {
    pub fn run(self) -> Result<Exit, Stop> {
        let kernel = system::kernel()?;
        self.check(&kernel.devices()?)?;
        kernel.rename(&self.device, &self.to)?;
        print(format!("Renamed {} to {}.\n", self.device, self.to))?;
        let names = default_topology().map(|topology| {
            let has = |name: &DeviceName| topology.devices.contains_key(name);
            (has(&self.device), has(&self.to))
        });
        if names == Some((true, false)) {
            print(format!(
                "  # The topology in /etc/dst still has it as {}: rename it there, too.\n",
                self.device
            ))?;
        }
        Ok(Exit::Done)
    }

    fn check(&self, found: &[ObservedDevice]) -> Result<(), Stop> {
        let by_name = |name: &DeviceName| found.iter().find(|d| d.name == name.as_str());
        let (name, to) = (&self.device, &self.to);
        let Some(device) = by_name(name) else {
            return Err(Stop::failed(format!(
                "there is no device {name}: `dstd status` lists them"
            )));
        };
        if !device.uuid.is_ours() {
            let text = format!(
                "{name} isn't dstd's (its dm UUID doesn't begin with DST-): use `dmsetup rename` if you mean it"
            );
            return Err(Stop::new(Exit::Refused, text));
        }
        // Whoever changes it calls it by its name, and would leave it as it is half-way.
        if device.suspended || device.inactive.is_some() {
            let text = format!(
                "{name} is being changed, or was left half-way: try again, or `dstd apply` first"
            );
            return Err(Stop::new(Exit::Refused, text));
        }
        match by_name(to) {
            None => Ok(()),
            Some(_) => {
                let text = format!("a device {to} is there already");
                Err(Stop::new(Exit::Refused, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status_tests::device;

    #[test]
    fn only_devices_of_dstds_get_a_name_that_is_free() {
        let (mut suspended, mut loaded) = (device("s", "DST-s", &[]), device("l", "DST-l", &[]));
        suspended.suspended = true;
        loaded.inactive = Some(Vec::new());
        let (ours, lv) = (device("ours", "DST-ours", &[]), device("lv", "LVM-x", &[]));
        let found = [ours, lv, suspended, loaded];
        let check = |device: &str, to: &str| {
            let rename = Rename {
                device: device.parse().unwrap(),
                to: to.parse().unwrap(),
            };
            rename.check(&found).map_err(|stop| stop.exit)
        };
        assert_eq!(check("ours", "new"), Ok(()));
        assert_eq!(check("ours", "lv"), Err(Exit::Refused));
        assert_eq!(check("ours", "ours"), Err(Exit::Refused));
        assert_eq!(check("lv", "new"), Err(Exit::Refused));
        assert_eq!(check("none", "new"), Err(Exit::Failed));
        // In the midst of a change.
        assert_eq!(check("s", "new"), Err(Exit::Refused));
        assert_eq!(check("l", "new"), Err(Exit::Refused));
    }
}
