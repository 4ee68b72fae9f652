//! Device-mapper, the module, and what the kernel has of devices and nodes.
//! Called by the doctor's command. Pure: what was looked at is handed in.

use super::{Finding, Machine};
use crate::kernel::{Kernel, KernelError, NodeState, ObservedDevice, ObservedNode};
use crate::netlink::NetlinkError;

pub fn device_mapper(opened: Result<(), &KernelError>) -> Finding {
    match opened {
        Ok(()) => Finding::good("device-mapper is there"),
        Err(error) => Finding::bad(
            format!("device-mapper can't be used: {}", error.reason),
            "`modprobe dm-mod`, as root; in a container the host must hand in /dev/mapper/control",
        ),
    }
}

/// `family` is what came of asking for its netlink family.
pub fn module(family: &Result<(), NetlinkError>, machine: &Machine) -> Finding {
    let release = machine.release();
    match family {
        Ok(()) => {
            Finding::good("the module dm-dst is loaded, and of the version that this dstd speaks")
        }
        Err(NetlinkError::FamilyAbsent) if machine.has_module() => Finding::note(
            format!("the module dm-dst is there for this kernel ({release}), and not loaded"),
            "nothing: the first table loads it; `modprobe dm-dst` if you want it now",
        ),
        Err(NetlinkError::FamilyAbsent) => Finding::bad(
            format!("there is no module dm-dst for this kernel ({release})"),
            "`make install` in the source tree; `dkms status dm-dst` tells for which kernels it was built",
        ),
        Err(NetlinkError::Version { .. }) => Finding::bad(
            format!(
                "module and dstd don't fit each other: {}",
                family_text(family)
            ),
            "`make install` both from one tree, then `modprobe -r dm-dst` when no device uses it, or reboot",
        ),
        Err(error) => Finding::bad(
            format!("the module can't be asked: {error}"),
            "run `dstd doctor` as root, in the initial user and network namespaces",
        ),
    }
}

fn family_text(family: &Result<(), NetlinkError>) -> String {
    family
        .as_ref()
        .err()
        .map_or_else(String::new, ToString::to_string)
}

/// Devices and nodes as they are, or why they can't be told.
pub fn seen<K: Kernel>(kernel: &K) -> Vec<Finding> {
    let looked = kernel
        .devices()
        .and_then(|devices| Ok((devices, kernel.nodes()?)));
    match looked {
        Ok((devices, nodes)) => devices_and_nodes(&devices, &nodes),
        Err(error) => vec![Finding::bad(
            format!("the kernel's devices and nodes can't be looked at: {error}"),
            "run `dstd doctor` as root, in the initial user and network namespaces",
        )],
    }
}

/// One for each that isn't as it should be, or one that says that all are.
fn devices_and_nodes(devices: &[ObservedDevice], nodes: &[ObservedNode]) -> Vec<Finding> {
    let ours: Vec<_> = devices.iter().filter(|d| d.uuid.is_ours()).collect();
    let mut findings: Vec<_> = ours.iter().filter_map(|device| troubled(device)).collect();
    findings.extend(nodes.iter().filter_map(lacking));
    findings.extend(nodes.iter().filter_map(unfenced));
    if findings.is_empty() {
        let text = match (ours.len(), nodes.len()) {
            (0, 0) => "the kernel has no devices of dstd's yet".to_owned(),
            (devices, nodes) => format!(
                "the kernel has {devices} devices of dstd's and {nodes} nodes, all as they should be"
            ),
        };
        findings.push(Finding::good(text));
    }
    findings
}

fn troubled(device: &ObservedDevice) -> Option<Finding> {
    let name = &device.name;
    if device.lines.is_empty() {
        return Some(Finding::bad(
            format!("device {name} has no table"),
            "`dstd plan` says what it waits for; `dstd apply` or `dstd run` goes on with it",
        ));
    }
    device.suspended.then(|| {
        Finding::bad(
            format!("device {name} is suspended: its I/O waits"),
            format!("`dstd apply` resumes it, or `dmsetup resume {name}` if you suspended it"),
        )
    })
}

fn lacking(node: &ObservedNode) -> Option<Finding> {
    let name = &node.name;
    let reason = node.reason.as_deref().map(|reason| format!(": {reason}"));
    let reason = reason.unwrap_or_default();
    let has = format!("{} of {} links", node.live, node.wanted);
    let waiting = match node.queued {
        0 => String::new(),
        n => format!("; {n} requests wait"),
    };
    let run = "see below whether it answers; `dstd run` connects it as soon as it does";
    let finding = match node.state {
        NodeState::Live => return None,
        NodeState::Degraded => Finding::note(format!("node {name} has {has}{reason}"), run),
        NodeState::Waiting => {
            Finding::bad(format!("node {name} was never connected{waiting}"), run)
        }
        NodeState::Lost => Finding::bad(format!("node {name} has no link{reason}{waiting}"), run),
        NodeState::Failed => Finding::bad(
            format!(
                "node {name} has no link and its policy has expired, so I/O on it fails{reason}"
            ),
            run,
        ),
        NodeState::Mismatch => Finding::bad(
            format!("node {name} offers what doesn't fit its devices{reason}"),
            "mend the export, or its address in the topology",
        ),
    };
    Some(finding)
}

/// Where nothing but a person's word is left.
fn unfenced(node: &ObservedNode) -> Option<Finding> {
    let name = &node.name;
    let known = node
        .negotiated
        .as_ref()
        .is_some_and(|n| n.identity.is_some());
    let stuck = !node.unfenced.is_empty() && node.conduct.quiesce.is_none() && !known;
    stuck.then(|| {
        let (links, barred) = (node.unfenced.len(), node.barred);
        Finding::bad(
            format!("{links} lost links of node {name} may still write, and {barred} requests wait for your word"),
            format!("end the old server, then `dstd fence {name}` (docs/failures.md, \"Why a write may wait\")"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status_tests::{device, node};
    use crate::doctor::Level;
    use crate::kernel::sim::{Fault, SimKernel, When};

    #[test]
    fn what_is_right_is_one_line() {
        let mut node = node();
        (node.state, node.unfenced) = (NodeState::Live, Vec::new());
        let device = device("dev", "DST-dev", &["0 8 zero "]);
        let found = devices_and_nodes(&[device], &[node]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Good);
        assert_eq!(
            devices_and_nodes(&[], &[])[0].text,
            "the kernel has no devices of dstd's yet"
        );
    }

    #[test]
    fn a_kernel_that_can_not_be_looked_at_is_bad() {
        let kernel = SimKernel::default();
        assert_eq!(seen(&kernel)[0].level, Level::Good);
        for calls in [0, 1] {
            kernel.go_wrong([(When::After(calls), Fault::Fails)]);
            let found = seen(&kernel);
            assert_eq!((found.len(), found[0].level), (1, Level::Bad));
            let text = &found[0].text;
            assert!(text.contains("a fault that the test wants"), "{text}");
        }
    }

    #[test]
    fn what_stands_still_is_named_with_what_to_do() {
        let mut suspended = device("dev", "DST-dev", &["0 8 zero "]);
        suspended.suspended = true;
        let others = device("lv", "LVM-x", &[]);
        let empty = device("empty", "DST-empty", &[]);
        let mut lost = node();
        lost.state = NodeState::Lost;
        lost.conduct.quiesce = None;
        lost.negotiated.as_mut().unwrap().identity = None;
        let found = devices_and_nodes(&[suspended, others, empty], &[lost]);
        let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "BAD   device dev is suspended: its I/O waits\n      do: `dstd apply` resumes it, or `dmsetup resume dev` if you suspended it",
                "BAD   device empty has no table\n      do: `dstd plan` says what it waits for; `dstd apply` or `dstd run` goes on with it",
                "BAD   node alpha has no link: link 1: connection reset; 5 requests wait\n      do: see below whether it answers; `dstd run` connects it as soon as it does",
                "BAD   2 lost links of node alpha may still write, and 8 requests wait for your word\n      do: end the old server, then `dstd fence alpha` (docs/failures.md, \"Why a write may wait\")",
            ]
        );
    }

    #[test]
    fn the_module_is_there_or_can_be_had_or_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::at(dir.path(), "6.12-test");
        let level = |family: Result<(), NetlinkError>| {
            let finding = module(&family, &machine);
            (finding.level, finding.text)
        };
        assert_eq!(level(Ok(())).0, Level::Good);
        let none = "there is no module dm-dst for this kernel (6.12-test)".to_owned();
        assert_eq!(level(Err(NetlinkError::FamilyAbsent)), (Level::Bad, none));
        let other = level(Err(NetlinkError::Version { found: 2, known: 1 }));
        assert!(
            other.0 == Level::Bad && other.1.contains("version 2"),
            "{other:?}"
        );
        let modules = dir.path().join("lib/modules/6.12-test");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(
            modules.join("modules.dep"),
            "updates/dkms/dm-dst.ko.xz: kernel/drivers/md/dm-mod.ko\n",
        )
        .unwrap();
        assert_eq!(level(Err(NetlinkError::FamilyAbsent)).0, Level::Note);
    }
}
