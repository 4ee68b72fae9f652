//! This machine: udev and its rule, LVM's filters, the daemon and its memory, the module's file. All from files.
//! Called by the doctor's command. Tests give it another root.

use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;

const RULES: [&str; 4] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];
const OOM_WANTED: i32 = -900;

#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    release: String,
}

/// A `dstd run`.
struct Daemon {
    pid: u32,
    /// None: it can't be looked at.
    locked_kib: Option<u64>,
    oom_score: Option<i32>,
    /// Its binary was replaced since.
    replaced: bool,
}

impl Machine {
    pub fn this() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::at(Path::new("/"), release.trim())
    }

    pub fn at(root: &Path, release: &str) -> Self {
        Self {
            root: root.to_owned(),
            release: release.to_owned(),
        }
    }

    pub fn release(&self) -> &str {
        &self.release
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    pub fn has_module(&self) -> bool {
        let dirs = ["lib/modules", "usr/lib/modules"].into_iter();
        let mut lists =
            dirs.filter_map(|dir| self.read(&format!("{dir}/{}/modules.dep", self.release)));
        lists.any(|list| {
            let mut files = list.lines().filter_map(|line| line.split(':').next());
            files.any(|file| file.contains("/dm-dst.ko") || file.starts_with("dm-dst.ko"))
        })
    }

    pub fn udev(&self) -> Finding {
        if !self.exists("run/udev/control") {
            return Finding::note(
                "no udev runs here: dstd makes the links in /dev/mapper itself, and nothing scans devices",
                "nothing, if that is meant (a container, an initramfs)",
            );
        }
        let rules = self.rules();
        let number = |name: &str| {
            let mut named = rules.iter().filter_map(|rule| rule.split_once('-'));
            let (number, _) = named.find(|(_, rest)| *rest == name)?;
            number.parse::<u32>().ok()
        };
        let Some(ours) = number("dm-dst.rules") else {
            return Finding::bad(
                "the udev rule of dm-dst is missing: blkid and LVM read a device whose node has never answered, and hang",
                "`make install`, or put dm-target/udev/56-dm-dst.rules into /etc/udev/rules.d and dst-ready into /usr/lib/udev",
            );
        };
        let before = number("dm.rules");
        let after = number("dm-disk.rules").or(number("persistent-storage-dm.rules"));
        if before.is_some_and(|b| ours <= b) || after.is_some_and(|a| ours >= a) {
            let advice = match before {
                Some(before) => format!("rename it, such as {:02}-dm-dst.rules", before + 1),
                None => "give it another number".to_owned(),
            };
            return Finding::bad(
                format!(
                    "the udev rule of dm-dst ({ours}) isn't between dm's own ({} and {}), so it comes too early or too late",
                    place(before),
                    place(after)
                ),
                advice,
            );
        }
        if !self.exists("usr/lib/udev/dst-ready") && !self.exists("lib/udev/dst-ready") {
            return Finding::bad(
                "the program dst-ready, which the udev rule of dm-dst calls, is missing",
                "`make install`, or put dm-target/udev/dst-ready into /usr/lib/udev",
            );
        }
        Finding::good("udev runs and has the rule of dm-dst")
    }

    fn rules(&self) -> Vec<String> {
        let dirs = RULES
            .iter()
            .filter_map(|dir| fs::read_dir(self.root.join(dir)).ok());
        let files = dirs.flatten().flatten();
        files
            .filter_map(|file| file.file_name().into_string().ok())
            .collect()
    }

    /// Nothing to say where there is no LVM.
    pub fn lvm(&self) -> Option<Finding> {
        let config = self.read("etc/lvm/lvm.conf")?;
        let set = |name: &str| {
            config.lines().map(str::trim).find_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            })
        };
        let off = set("use_devicesfile").is_some_and(|value| value.starts_with('0'));
        if !off && self.exists("etc/lvm/devices/system.devices") {
            return Some(Finding::note(
                "LVM uses a devices file: it sees no device that isn't in it",
                "`lvmdevices --adddev /dev/mapper/NAME` for devices that are to be physical volumes",
            ));
        }
        let filter = ["global_filter", "filter"]
            .into_iter()
            .find_map(|name| Some((name, set(name)?)));
        Some(match filter {
            Some((name, value)) => Finding::note(
                format!("lvm.conf has a filter ({name} = {value})"),
                "make sure that it takes /dev/mapper/NAME of the devices that are to be physical volumes, and no other name of them",
            ),
            None => Finding::good("LVM takes devices of dst: no filter, no devices file"),
        })
    }

    pub fn daemon(&self) -> Finding {
        let daemons = self.daemons();
        let daemon = match daemons.as_slice() {
            [] => {
                return Finding::note(
                    "no `dstd run` is there: links that break stay broken, and lost ones wait for `quiesce`",
                    "`systemctl enable --now dstd`",
                );
            }
            [one] => one,
            several => {
                let pids: Vec<_> = several.iter().map(|d| d.pid.to_string()).collect();
                return Finding::note(
                    format!("several `dstd run` are there ({})", pids.join(", ")),
                    "one for each machine is enough; they do no harm to data, but take links from each other",
                );
            }
        };
        daemon.finding()
    }

    fn daemons(&self) -> Vec<Daemon> {
        let Ok(entries) = fs::read_dir(self.root.join("proc")) else {
            return Vec::new();
        };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid| self.daemon_of(pid)).collect()
    }

    fn daemon_of(&self, pid: u32) -> Option<Daemon> {
        if self.read(&format!("proc/{pid}/comm"))?.trim() != "dstd" {
            return None;
        }
        let command = self.read(&format!("proc/{pid}/cmdline"))?;
        if command.split('\0').nth(1) != Some("run") {
            return None;
        }
        let status = self.read(&format!("proc/{pid}/status"));
        let locked = status.as_deref().and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmLck:"))?;
            line.split_whitespace().next()?.parse().ok()
        });
        let score = self.read(&format!("proc/{pid}/oom_score_adj"));
        let exe = fs::read_link(self.root.join(format!("proc/{pid}/exe"))).ok();
        Some(Daemon {
            pid,
            locked_kib: locked,
            oom_score: score.and_then(|score| score.trim().parse().ok()),
            replaced: exe.is_some_and(|exe| exe.to_string_lossy().ends_with(" (deleted)")),
        })
    }
}

fn place(number: Option<u32>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

impl Daemon {
    fn finding(&self) -> Finding {
        let pid = self.pid;
        if self.locked_kib == Some(0) {
            return Finding::bad(
                format!(
                    "`dstd run` ({pid}) has no memory locked: it may wait for a page that lies on a disk of its own"
                ),
                "grant LimitMEMLOCK=infinity or CAP_IPC_LOCK (the unit that comes with it does), and start it anew: I/O goes on meanwhile",
            );
        }
        if self.oom_score.is_some_and(|score| score > OOM_WANTED) {
            return Finding::note(
                format!("`dstd run` ({pid}) may be killed early when memory is short"),
                format!("OOMScoreAdjust={OOM_WANTED} in its unit, or CAP_SYS_RESOURCE"),
            );
        }
        if self.replaced {
            return Finding::note(
                format!("`dstd run` ({pid}) is of a binary that was replaced since"),
                "`systemctl restart dstd`: I/O goes on meanwhile",
            );
        }
        // How much says nothing: stacks that nobody has touched count, too.
        let locked = self.locked_kib.map_or("", |_| ", its memory is locked");
        Finding::good(format!("`dstd run` is there ({pid}){locked}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::doctor::Level;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            root.add(files);
            root
        }

        fn add(&self, files: &[(&str, &str)]) {
            for (path, text) in files {
                let path = self.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }

        fn machine(&self) -> Machine {
            Machine::at(self.0.path(), "6.12")
        }
    }

    #[test]
    fn the_udev_rule_is_there_and_between_those_of_dm() {
        let root = Root::new(&[]);
        assert_eq!(root.machine().udev().level, Level::Note);
        root.add(&[
            ("run/udev/control", ""),
            ("usr/lib/udev/rules.d/55-dm.rules", ""),
            ("usr/lib/udev/rules.d/60-persistent-storage-dm.rules", ""),
        ]);
        let missing = root.machine().udev();
        assert!(
            missing.level == Level::Bad && missing.text.contains("is missing"),
            "{missing}"
        );
        root.add(&[("etc/udev/rules.d/56-dm-dst.rules", "")]);
        assert!(root.machine().udev().text.contains("dst-ready"));
        root.add(&[("usr/lib/udev/dst-ready", "")]);
        assert_eq!(root.machine().udev().level, Level::Good);
        let other = Root::new(&[
            ("run/udev/control", ""),
            ("usr/lib/udev/rules.d/10-dm.rules", ""),
            ("usr/lib/udev/rules.d/13-dm-disk.rules", ""),
            ("etc/udev/rules.d/56-dm-dst.rules", ""),
        ]);
        let late = other.machine().udev();
        assert_eq!(
            late.advice.as_deref(),
            Some("rename it, such as 11-dm-dst.rules")
        );
    }

    #[test]
    fn lvm_is_looked_at_where_it_is() {
        let root = Root::new(&[]);
        assert_eq!(root.machine().lvm(), None);
        root.add(&[(
            "etc/lvm/lvm.conf",
            "devices {\n\t# filter = [ \"a|.*|\" ]\n\tuse_devicesfile = 1\n}\n",
        )]);
        assert_eq!(root.machine().lvm().unwrap().level, Level::Good);
        root.add(&[("etc/lvm/devices/system.devices", "")]);
        assert!(
            root.machine()
                .lvm()
                .unwrap()
                .advice
                .unwrap()
                .contains("lvmdevices --adddev")
        );
        root.add(&[(
            "etc/lvm/lvm.conf",
            "use_devicesfile = 0\nglobal_filter = [ \"r|.*|\" ]\n",
        )]);
        let filtered = root.machine().lvm().unwrap();
        assert!(
            filtered.text.contains("global_filter = [ \"r|.*|\" ]"),
            "{filtered}"
        );
    }

    #[test]
    fn the_daemon_is_found_and_its_memory_looked_at() {
        let root = Root::new(&[
            ("proc/7/comm", "dstd\n"),
            ("proc/7/cmdline", "/usr/bin/dstd\0export\0a=b\0"),
            ("proc/self/comm", "dstd\n"),
        ]);
        assert!(root.machine().daemon().text.contains("no `dstd run`"));
        root.add(&[
            ("proc/8/comm", "dstd\n"),
            ("proc/8/cmdline", "/usr/bin/dstd\0run\0"),
            ("proc/8/status", "Name:\tdstd\nVmLck:\t       0 kB\n"),
            ("proc/8/oom_score_adj", "0\n"),
        ]);
        let found = root.machine().daemon();
        assert!(
            found.level == Level::Bad && found.text.contains("no memory locked"),
            "{found}"
        );
        root.add(&[("proc/8/status", "VmLck:\t   20480 kB\n")]);
        assert!(
            root.machine()
                .daemon()
                .advice
                .unwrap()
                .contains("OOMScoreAdjust")
        );
        root.add(&[("proc/8/oom_score_adj", "-900\n")]);
        assert_eq!(
            root.machine().daemon().text,
            "`dstd run` is there (8), its memory is locked"
        );
        symlink("/usr/bin/dstd (deleted)", root.0.path().join("proc/8/exe")).unwrap();
        assert!(
            root.machine()
                .daemon()
                .advice
                .unwrap()
                .contains("systemctl restart dstd")
        );
        root.add(&[("proc/9/comm", "dstd\n"), ("proc/9/cmdline", "dstd\0run\0")]);
        assert!(root.machine().daemon().text.contains("several"));
    }
}
