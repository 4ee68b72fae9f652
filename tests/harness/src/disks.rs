//! Makes the disks of one VM: an overlay of the root, the kernel's modules, the payload (what is tested),
//! the results and empty scratch disks; reads the results back. Called by main. All but the logs is
//! thrown away after the run; the cached images are never written to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::host::{Guest, Tree, sbin, tool};

const SCRATCH_DISKS: usize = 4;
const SCRATCH_BYTES: u64 = 3 << 30;
const RESULTS_SIZE: &str = "512M";

/// What the guest's agent is to do; it reads this from run.env on the payload.
#[derive(Debug)]
pub enum Mode {
    Tests {
        filter: Vec<String>,
        which: Which,
        /// Of these files of cases only; none named: of all
        topics: Vec<String>,
        /// Tests that would begin later than this (seconds since 1970) are skipped
        until: Option<u64>,
    },
    Demo,
    Shell,
    Bench(Bench),
}

/// tests/vm/bench/run.sh walks through a plan.
#[derive(Debug, Clone, Args)]
pub struct Bench {
    #[arg(long)]
    pub plan: PathBuf,
    /// One CPU that counts instructions
    #[arg(long)]
    pub icount: bool,
    /// Of one run, in the guest's time
    #[arg(long)]
    pub msecs: u64,
    /// Of dm-dst's nodes
    #[arg(long, default_value = "on")]
    pub zero_copy: String,
    /// Let the plugin of tests/profile write here what the guest executed
    #[arg(long, requires = "icount")]
    pub profile: Option<PathBuf>,
}

/// Which tests of those that the filter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// those that are tagged with nothing
    Quick,
    /// also the fault tests
    Faults,
    /// only those for a guest that has little memory, and a node outside of it
    Small,
}

impl Which {
    /// As list.sh prints them.
    pub fn tags(self) -> &'static [&'static str] {
        match self {
            Which::Quick => &["-"],
            Which::Faults => &["-", "faults"],
            Which::Small => &["small"],
        }
    }
}

impl Mode {
    pub fn is_small(&self) -> bool {
        matches!(
            self,
            Mode::Tests {
                which: Which::Small,
                ..
            }
        )
    }
}

/// A disk as QEMU sees it; the guest knows it by its serial.
#[derive(Debug)]
pub struct Disk {
    pub serial: String,
    pub path: PathBuf,
    pub format: &'static str,
    pub read_only: bool,
}

#[derive(Debug)]
pub struct Disks {
    pub all: Vec<Disk>,
    /// What a node outside of the guest serves to it.
    pub outside: Option<PathBuf>,
    work: PathBuf,
    results: PathBuf,
}

impl Disks {
    pub fn make(tree: &Tree, guest: &Guest, out: &Path, mode: &Mode, debug: bool) -> Result<Self> {
        let work = out.join("work");
        for old in [&work, &out.join("logs")] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
        let root = work.join("root.qcow2");
        tool(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&guest.rootfs)
                .arg(&root),
        )?;
        let modules = modules_image(guest, &work)?;
        let payload = payload_image(tree, &work, mode, debug, guest.slowness())?;
        let results = work.join("results.ext4");
        mke2fs(&results, "dst-results", None, RESULTS_SIZE)?;
        let raw = |serial: &str, path: &Path, read_only| Disk {
            serial: serial.to_owned(),
            path: path.to_path_buf(),
            format: "raw",
            read_only,
        };
        let mut all = vec![
            Disk {
                format: "qcow2",
                ..raw("root", &root, false)
            },
            raw("modules", &modules, true),
            raw("payload", &payload, true),
            raw("results", &results, false),
        ];
        for n in 0..SCRATCH_DISKS {
            let path = empty_file(&work, &format!("scratch{n}.raw"))?;
            all.push(raw(&format!("scratch{n}"), &path, false));
        }
        let outside = match mode.is_small() {
            true => Some(empty_file(&work, "outside.raw")?),
            false => None,
        };
        Ok(Self {
            all,
            outside,
            work,
            results,
        })
    }

    /// Copies the guest's logs to OUT/logs. The guest may have died: its file system is repaired first.
    pub fn bring_logs_home(&self, out: &Path) -> Result<()> {
        // e2fsck exits with 1 after a repair, which is no failure here
        sbin("e2fsck")
            .args(["-f", "-y"])
            .arg(&self.results)
            .output()
            .context("running e2fsck")?;
        tool(
            sbin("debugfs")
                .args(["-R", "rdump /logs ."])
                .arg(&self.results)
                .current_dir(out),
        )?;
        Ok(())
    }

    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.work).with_context(|| format!("removing {}", self.work.display()))
    }
}

fn empty_file(work: &Path, name: &str) -> Result<PathBuf> {
    let path = work.join(name);
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(SCRATCH_BYTES)
        .with_context(|| format!("sizing {}", path.display()))?;
    Ok(path)
}

/// The kernel's modules with dm-dst.ko among them, so that `dmsetup` loads it by itself as on a real host.
fn modules_image(guest: &Guest, work: &Path) -> Result<PathBuf> {
    let stage = work.join("modules");
    let image = work.join("modules.ext4");
    let tree = stage.join("lib/modules").join(&guest.release);
    fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    let from = guest.kernel_dir.join("lib/modules").join(&guest.release);
    tool(
        Command::new("cp")
            .args(["-a", "--reflink=auto", "-T"])
            .arg(&from)
            .arg(&tree),
    )?;
    let updates = tree.join("updates");
    fs::create_dir_all(&updates).with_context(|| format!("creating {}", updates.display()))?;
    for module in &guest.modules {
        let name = module.file_name().unwrap_or_default();
        fs::copy(module, updates.join(name))
            .with_context(|| format!("copying {}", module.display()))?;
    }
    if !guest.modules.is_empty() {
        tool(sbin("depmod").arg("-b").arg(&stage).arg(&guest.release))?;
    }
    mke2fs(
        &image,
        "dst-modules",
        Some(&stage.join("lib/modules")),
        "512M",
    )?;
    fs::remove_dir_all(&stage).with_context(|| format!("removing {}", stage.display()))?;
    Ok(image)
}

/// What is tested: guest scripts, binaries, example tables, pages, udev rules and systemd units, and what is
/// installed from the tree.
fn payload_image(
    tree: &Tree,
    work: &Path,
    mode: &Mode,
    debug: bool,
    slowness: u32,
) -> Result<PathBuf> {
    let stage = work.join("payload");
    let image = work.join("payload.ext4");
    for dir in ["tests", "bin", "udev", "systemd", "dstd"] {
        fs::create_dir_all(stage.join(dir))
            .with_context(|| format!("creating {}", stage.display()))?;
    }
    copy_tree(&tree.root.join("tests/vm"), &stage.join("tests/vm"))?;
    copy_tree(
        &tree.root.join("dmsetup-tables"),
        &stage.join("dmsetup-tables"),
    )?;
    // and all that scripts/install.sh installs
    for dir in ["docs", "scripts", "dm-target", "dstd/systemd"] {
        copy_tree(&tree.root.join(dir), &stage.join(dir))?;
    }
    for dir in ["dm-target", "dstd", "udev", "systemd"] {
        collect_system_files(&tree.root.join(dir), &stage)?;
    }
    copy_binaries(&tree.bin_dir(debug), &stage.join("bin"))?;
    let mut env = match mode {
        Mode::Tests {
            filter,
            which,
            topics,
            until,
        } => format!(
            "MODE=tests\nFILTER='{}'\nONLY='{}'\nTOPICS='{}'\nUNTIL={}\nexport ROUNDS={}\n",
            filter.join("\n").replace('\'', ""),
            which.tags().join(" "),
            topics.join(" "),
            until.map(|at| at.to_string()).unwrap_or_default(),
            rounds()
        ),
        Mode::Demo => "MODE=demo\n".to_owned(),
        Mode::Shell => "MODE=shell\n".to_owned(),
        Mode::Bench(bench) => {
            fs::copy(&bench.plan, stage.join("plan"))
                .with_context(|| format!("copying {}", bench.plan.display()))?;
            format!(
                "MODE=bench\nexport BENCH_MSECS={} BENCH_ZERO_COPY={} BENCH_PROFILE={}\n",
                bench.msecs,
                bench.zero_copy,
                bench.profile.as_ref().map_or("", |_| "yes")
            )
        }
    };
    env.push_str(&format!("export SLOWNESS={slowness}\n"));
    fs::write(stage.join("run.env"), env).context("writing run.env")?;
    mke2fs(&image, "dst-payload", Some(&stage), "512M")?;
    fs::remove_dir_all(&stage).with_context(|| format!("removing {}", stage.display()))?;
    Ok(image)
}

/// How often the fault tests do what they do, in multiples.
fn rounds() -> u32 {
    let asked = std::env::var("ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        tool(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to))?;
    }
    Ok(())
}

/// Everything in a folder `udev` below `dir` (rules and what they call), and every systemd unit.
fn collect_system_files(dir: &Path, stage: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_system_files(&path, stage)?;
            continue;
        }
        let kind = match path.extension().and_then(|e| e.to_str()) {
            _ if dir.ends_with("udev") => "udev",
            Some("service" | "target" | "socket" | "path" | "timer") => "systemd",
            _ => continue,
        };
        if let Some(name) = path.file_name() {
            let to = stage.join(kind).join(name);
            fs::copy(&path, &to).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

/// The executables that cargo left at the top of its profile directory, but this program.
fn copy_binaries(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if !from.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let name = entry.file_name();
        let plain = !name.to_string_lossy().contains('.') && name != "dst-vm";
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 && plain {
            fs::copy(entry.path(), to.join(&name)).with_context(|| format!("copying {name:?}"))?;
        }
    }
    Ok(())
}

fn mke2fs(image: &Path, label: &str, content: Option<&Path>, size: &str) -> Result<()> {
    let mut command = sbin("mke2fs");
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-E",
        "root_owner=0:0",
        "-L",
        label,
    ]);
    if let Some(dir) = content {
        command.arg("-d").arg(dir);
    }
    tool(command.arg(image).arg(size))?;
    Ok(())
}
