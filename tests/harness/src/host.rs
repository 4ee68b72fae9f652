//! Finds the source tree and runs the scripts that fill the cache (kernel, rootfs, initrd, module).
//! Called by main; owns paths, never what happens inside the VM.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::SKIPPED;

/// What kernel.sh calls the kernel of scripts/kernel-debug.sh.
const DEBUG_KERNEL: &str = "debug";

/// A test, as list.sh prints it.
#[derive(Debug)]
struct Listed {
    name: String,
    /// "faults", "small", or "-"
    only: String,
    comment: String,
}

/// The source tree this program was built from.
#[derive(Debug)]
pub struct Tree {
    pub root: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// Looks upwards from this executable, then from the working directory.
    pub fn find() -> Result<Self> {
        let exe = std::env::current_exe().context("finding this executable")?;
        let cwd = std::env::current_dir().context("finding the working directory")?;
        let root = [&exe, &cwd]
            .iter()
            .flat_map(|start| start.ancestors())
            .find(|dir| dir.join("tests/vm/agent.sh").is_file())
            .map(Path::to_path_buf)
            .context("no DST source tree above this executable or the working directory")?;
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(Self { root, target })
    }

    /// Where a kernel's results, logs and console go.
    pub fn output_dir(&self, kernel: &str) -> PathBuf {
        self.target.join("vm").join(kernel)
    }

    /// Where cargo put dstd and the test tools.
    pub fn bin_dir(&self, debug: bool) -> PathBuf {
        self.target.join(if debug { "debug" } else { "release" })
    }

    pub fn list_tests(&self, filter: &[String]) -> Result<()> {
        for test in self.tests(filter)? {
            let only = match test.only.as_str() {
                "-" => String::new(),
                tag => format!("({tag}) "),
            };
            println!("{:<44} {only}{}", test.name, test.comment);
        }
        Ok(())
    }

    /// The files of cases with such tests, dealt out to `guests` so that each has about as many tests.
    pub fn deal(
        &self,
        filter: &[String],
        tags: &[&str],
        guests: usize,
    ) -> Result<Vec<Vec<String>>> {
        let tests = self.tests(filter)?;
        let wanted = tests
            .iter()
            .filter(|test| tags.contains(&test.only.as_str()));
        let topics = wanted.map(|test| test.name.split('.').next().unwrap_or_default());
        Ok(deal(topics, guests))
    }

    fn tests(&self, filter: &[String]) -> Result<Vec<Listed>> {
        let out = Command::new("bash")
            .arg(self.root.join("tests/vm/list.sh"))
            .stderr(Stdio::inherit())
            .output()
            .context("running tests/vm/list.sh")?;
        if !out.status.success() {
            bail!("tests/vm/list.sh failed: {}", out.status);
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let listed = text.lines().map(|line| {
            let mut fields = line.split('\t');
            Listed {
                name: fields.next().unwrap_or_default().to_owned(),
                comment: fields.next_back().unwrap_or_default().to_owned(),
                only: fields.next_back().unwrap_or("-").to_owned(),
            }
        });
        let wanted = |test: &Listed| filter.iter().any(|f| test.name.contains(f.as_str()));
        Ok(listed
            .filter(|test| filter.is_empty() || wanted(test))
            .collect())
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.root.join("scripts").join(name));
        command.stderr(Stdio::inherit());
        command
    }
}

/// Each topic, named once for each of its tests, goes to the guest that has the fewest so far, the largest first.
fn deal<'a>(topics: impl Iterator<Item = &'a str>, guests: usize) -> Vec<Vec<String>> {
    let mut sizes: Vec<(&str, usize)> = Vec::new();
    for topic in topics {
        match sizes.iter_mut().find(|(name, _)| *name == topic) {
            Some((_, size)) => *size += 1,
            None => sizes.push((topic, 1)),
        }
    }
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut hands = vec![(0, Vec::new()); guests];
    for (topic, size) in sizes {
        if let Some((sum, hand)) = hands.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += size;
            hand.push(topic.to_owned());
        }
    }
    let hands = hands.into_iter().map(|(_, hand)| hand);
    hands.filter(|hand| !hand.is_empty()).collect()
}

/// The cached pieces of a guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// the launcher of scripts/qemu.sh
    pub qemu: PathBuf,
    pub kernel_dir: PathBuf,
    pub release: String,
    pub initrd: PathBuf,
    pub rootfs: PathBuf,
    /// dm-dst.ko for this kernel, where it was asked for; with the debug kernel also the planted bugs
    pub modules: Vec<PathBuf>,
    /// The kernel with all checks on, which takes its time.
    pub debug: bool,
}

impl Guest {
    /// How many times longer than on a stock kernel anything may take.
    pub fn slowness(&self) -> u32 {
        if self.debug { 6 } else { 1 }
    }

    /// Fills the cache through the scripts. None: this kernel can't be had here, and that was said loudly.
    pub fn prepare(tree: &Tree, kernel: &str, with_module: bool) -> Result<Option<Self>> {
        let setup = tree
            .script("setup-host.sh")
            .arg("vm")
            .status()
            .context("running setup-host.sh")?;
        if !setup.success() {
            bail!("scripts/setup-host.sh vm failed: {setup}");
        }
        let Some(kernel_dir) = printed_path(tree.script("kernel.sh").arg(kernel))? else {
            return Ok(None);
        };
        let debug = kernel == DEBUG_KERNEL;
        let mut modules = Vec::new();
        if with_module {
            match printed_path(tree.script("build-module.sh").arg(kernel))? {
                Some(module) => modules.push(module),
                None => return Ok(None),
            }
        }
        if debug {
            let mut build = tree.script("build-module.sh");
            build.arg(kernel).arg("--source");
            build.arg(tree.root.join("tests/planted"));
            modules.push(required_path(&mut build)?);
        }
        let qemu = required_path(&mut tree.script("qemu.sh"))?;
        let initrd = required_path(tree.script("initrd.sh").arg(&kernel_dir))?;
        let rootfs = required_path(&mut tree.script("rootfs.sh"))?;
        let release = fs::read_to_string(kernel_dir.join("release"))
            .with_context(|| format!("reading {}/release", kernel_dir.display()))?
            .trim()
            .to_owned();
        Ok(Some(Self {
            qemu,
            kernel_dir,
            release,
            initrd,
            rootfs,
            modules,
            debug,
        }))
    }
}

/// The path a script prints, or None when it exits with the status for "skipped".
fn printed_path(command: &mut Command) -> Result<Option<PathBuf>> {
    let out = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if out.status.code() == Some(i32::from(SKIPPED)) {
        return Ok(None);
    }
    if !out.status.success() {
        bail!("{command:?} failed: {}", out.status);
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let path = PathBuf::from(text.lines().last().unwrap_or_default());
    if !path.exists() {
        bail!("{command:?} printed no path that exists: {text:?}");
    }
    Ok(Some(path))
}

fn required_path(command: &mut Command) -> Result<PathBuf> {
    let shown = format!("{command:?}");
    printed_path(command)?.with_context(|| format!("{shown} has no business skipping"))
}

/// A tool that Debian keeps in /usr/sbin, which a root shell from plain `su` does not have on its PATH.
pub fn sbin(name: &str) -> Command {
    let path = Path::new("/usr/sbin").join(name);
    if path.exists() {
        Command::new(path)
    } else {
        Command::new(name)
    }
}

/// Runs a host tool and fails with what it said.
pub fn tool(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !out.status.success() {
        bail!(
            "{command:?} failed: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// One VM per output directory: two runs of the same kernel would mix their logs.
pub fn lock_dir(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let file = File::create(dir.join("lock"))
        .with_context(|| format!("opening {}/lock", dir.display()))?;
    if file.try_lock().is_err() {
        eprintln!(
            "dst-vm: waiting for another run that uses {}",
            dir.display()
        );
        file.lock()
            .with_context(|| format!("locking {}", dir.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::deal;

    #[test]
    fn each_guest_gets_about_as_many_tests() {
        let topics = ["a", "a", "b", "c", "c", "c", "d", "d", "e"];
        assert_eq!(
            deal(topics.into_iter(), 2),
            [vec!["c", "b", "e"], vec!["a", "d"]]
        );
        assert_eq!(deal(topics.into_iter(), 1), [["c", "a", "d", "b", "e"]]);
    }

    #[test]
    fn a_guest_without_tests_is_not_started() {
        assert_eq!(deal(["a", "a"].into_iter(), 2), [["a"]]);
        assert!(deal([].into_iter(), 2).is_empty());
    }
}
