//! Starts QEMU: its command line, the choice between KVM and TCG, the serial ports (console to a file,
//! progress to a pipe). Called by supervise and main; knows nothing of tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::disks::{Bench, Disks};
use crate::host::Guest;

const PROBE_LIMIT: Duration = Duration::from_secs(20);
const PROBE_WORD: &str = "DST-PROBE-OK";

/// For the debug kernel: KASAN reports more than its first finding, free pages hold a pattern, and what is slow is not
/// stuck for that.
const DEBUG_WORDS: &str = " pci=noacpi kasan_multi_shot page_poison=1 \
     systemd.default_timeout_start_sec=600 udev.event_timeout=900";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
    /// TCG on one CPU whose clock counts instructions: a nanosecond each, so that time is work
    Counting,
}

impl Accel {
    fn words(self) -> &'static [&'static str] {
        match self {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => &["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "qemu64"],
            // sleep=on: else the clock would run away whenever the guest waits for the host's disk
            Accel::Counting => &[
                "-accel",
                "tcg,thread=single,tb-size=1024",
                "-icount",
                "shift=0,sleep=on,align=off",
                "-rtc",
                "clock=vm",
                "-cpu",
                "qemu64",
            ],
        }
    }
}

#[derive(Debug)]
pub struct Machine {
    pub guest: Guest,
    pub disks: Disks,
    pub accel: Accel,
    console: PathBuf,
    memory: u32,
    cpus: u32,
    plugin: Option<String>,
}

impl Machine {
    pub fn new(guest: Guest, disks: Disks, out: &Path, memory: u32, cpus: u32) -> Result<Self> {
        let accel = choose_accel(&guest)?;
        let console = out.join("console.log");
        if console.exists() {
            fs::remove_file(&console).with_context(|| format!("removing {}", console.display()))?;
        }
        Ok(Self {
            guest,
            disks,
            accel,
            console,
            memory,
            cpus,
            plugin: None,
        })
    }

    /// Makes it count instructions, and the plugin (built beside this program) say where they are, if the bench wants that.
    pub fn set_up(&mut self, bench: &Bench, bin_dir: &Path) {
        if bench.icount {
            self.accel = Accel::Counting;
        }
        let plugin = bin_dir.join("libdst_profile.so");
        self.plugin = bench
            .profile
            .as_ref()
            .map(|file| format!("{},out={}", plugin.display(), file.display()));
    }

    /// How many times longer than usual anything may take here.
    pub fn slowness(&self) -> u32 {
        match self.accel {
            Accel::Counting => 4 * self.guest.slowness(),
            Accel::Kvm | Accel::Tcg => self.guest.slowness(),
        }
    }

    pub fn console(&self) -> &Path {
        &self.console
    }

    /// Boots; the guest's progress port is the child's standard output.
    pub fn boot(&self) -> Result<Child> {
        let mut command = self.command("console=ttyS0,115200");
        command
            .arg("-chardev")
            .arg(format!(
                "file,id=console,append=on,path={}",
                self.console.display()
            ))
            .args(["-serial", "chardev:console", "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command.spawn().context("starting QEMU")
    }

    /// Boots with the console on this terminal.
    pub fn interactive(&self) -> Result<ExitCode> {
        let mut command = self.command("console=ttyS0,115200 quiet");
        command.args(["-serial", "mon:stdio", "-serial", "null"]);
        let status = command.status().context("starting QEMU")?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn command(&self, append: &str) -> Command {
        let mut command = base_command(self.accel, &self.guest);
        command.args([
            "-m",
            &self.memory.to_string(),
            "-smp",
            &self.cpus.to_string(),
        ]);
        // A busy host stops the guest for half a minute at times: only what takes longer is the kernel's own.
        command.arg("-append").arg(format!(
            "{append} watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120 panic=5 mitigations=off apparmor=0 init_on_alloc=0 random.trust_cpu=on log_buf_len=16M printk.devkmsg=on \
             net.ifnames=0 audit=0 nokaslr no_timer_check systemd.show_status=0 systemd.firstboot=off{}",
            if self.guest.debug { DEBUG_WORDS } else { "" }
        ));
        for disk in &self.disks.all {
            // unsafe: these disks live for one run; a guest's flush need not reach the host's disk
            command.arg("-drive").arg(format!(
                "file={},format={},if=none,id={},cache=unsafe,discard=unmap,readonly={}",
                disk.path.display(),
                disk.format,
                disk.serial,
                if disk.read_only { "on" } else { "off" },
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={0},serial={0}", disk.serial));
        }
        if let Some(plugin) = &self.plugin {
            command.args(["-plugin", plugin]);
        }
        if let Some(image) = &self.disks.outside {
            outside_node(&mut command, image);
        }
        command
    }
}

/// A node whose server needs no memory of the guest's: each connection to 10.0.2.9:10809 gets an nbdkit of its own here,
/// on the same file. It is slow: 20 ms for each write. The guest reaches nothing else.
fn outside_node(command: &mut Command, image: &Path) {
    let server = format!(
        "nbdkit --single --log=null --filter=delay file {} wdelay=20ms",
        image.display()
    );
    command
        .arg("-netdev")
        .arg(format!(
            "user,id=outside,restrict=on,guestfwd=tcp:10.0.2.9:10809-cmd:{}",
            server.replace(',', ",,")
        ))
        .args(["-device", "virtio-net-pci,netdev=outside"]);
}

/// QEMU dies with us (setpriv), so an interrupted run leaves no VM behind.
fn base_command(accel: Accel, guest: &Guest) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(&guest.qemu);
    command.args(accel.words());
    command.args(["-nodefaults", "-display", "none"]);
    command
        .arg("-kernel")
        .arg(guest.kernel_dir.join("vmlinuz"))
        .arg("-initrd")
        .arg(&guest.initrd);
    command
}

/// /dev/kvm may exist and still not boot a stock kernel: try, and remember the answer until the next reboot.
fn choose_accel(guest: &Guest) -> Result<Accel> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accel::Tcg);
    }
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    let memory = guest
        .initrd
        .parent()
        .and_then(Path::parent)
        .map(|dir| dir.join("kvm-probe"));
    let Some(memory) = memory else {
        bail!("the initrd has no cache directory above it")
    };
    let known = fs::read_to_string(&memory).unwrap_or_default();
    let works = match known.split_once(' ') {
        Some((id, answer)) if id == boot_id.trim() => answer.trim() == "works",
        _ => {
            let works = probe_kvm(guest)?;
            let answer = if works { "works" } else { "broken" };
            eprintln!(
                "dst-vm: /dev/kvm {answer} here{}",
                if works { "" } else { ", using TCG (slower)" }
            );
            fs::write(&memory, format!("{} {answer}\n", boot_id.trim()))
                .with_context(|| format!("writing {}", memory.display()))?;
            works
        }
    };
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn probe_kvm(guest: &Guest) -> Result<bool> {
    let log = guest
        .initrd
        .with_extension(format!("probe.{}", std::process::id()));
    let mut command = base_command(Accel::Kvm, guest);
    command.args([
        "-m",
        "512",
        "-no-reboot",
        "-append",
        "console=ttyS0 dst.probe panic=-1",
        "-serial",
    ]);
    command.arg(format!("file:{}", log.display()));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting QEMU to try KVM")?;
    let deadline = Instant::now() + PROBE_LIMIT;
    let said_so = || {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .contains(PROBE_WORD)
    };
    while Instant::now() < deadline && child.try_wait()?.is_none() && !said_so() {
        thread::sleep(Duration::from_millis(50));
    }
    let works = said_so();
    // both may be gone already, which is as good
    let _ = child.kill();
    child.wait().context("waiting for the KVM probe")?;
    let _ = fs::remove_file(&log);
    Ok(works)
}
