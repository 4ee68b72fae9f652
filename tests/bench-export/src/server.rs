//! Starts one server of each kind on a file, on TCP or on a Unix socket, and ends it.
//!
//! Owns their command lines: the defaults of each, but for what the comments say. Used by `main`. A server is
//! ready when it has greeted a client.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cpu;
use crate::matrix::{Setup, Transport};

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);

/// The export's name; nbdkit takes any.
const NAME: &str = "disk";

#[derive(Debug)]
pub struct Server {
    pub uri: String,
    pid: u32,
    /// Not of nbd-server, which becomes a daemon.
    child: Option<Child>,
    /// Processes while it has no client.
    idle: usize,
    log: PathBuf,
}

/// Where a server listens.
enum Address {
    Tcp(u16),
    Unix(PathBuf),
}

impl Server {
    /// `dir` takes its log, pid file and socket; what an earlier server left there goes.
    pub fn start(
        setup: Setup,
        transport: Transport,
        file: &Path,
        dir: &Path,
        dstd: &Path,
    ) -> Result<Server> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir(dir)?;
        let address = match transport {
            Transport::Unix => Address::Unix(dir.join("s")),
            Transport::Tcp => Address::Tcp(free_port()?),
        };
        let uri = match &address {
            Address::Tcp(port) => format!("nbd://127.0.0.1:{port}/{NAME}"),
            Address::Unix(path) => format!("nbd+unix:///{NAME}?socket={}", path.display()),
        };
        let log = dir.join("log");
        let mut server = match setup {
            Setup::NbdServer => Self::nbd_server(&address, file, dir, &log)?,
            _ => Self::foreground(command(setup, &address, file, dstd), &log)?,
        };
        server.uri = uri;
        server.log = log;
        if let Err(error) = server.wait_greeting(&address) {
            bail!("it does not serve: {error:#}; it said: {}", server.said());
        }
        // Its first client is gone when it is as many processes as before: two looks that agree.
        server.idle = cpu::processes(server.pid)?.min({
            std::thread::sleep(Duration::from_millis(50));
            cpu::processes(server.pid)?
        });
        Ok(server)
    }

    /// CPU seconds used so far, counted when no client is left.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu::seconds(self.pid, self.idle)
    }

    /// None while it runs; else how it ended.
    pub fn ended(&mut self) -> Option<String> {
        let how = match &mut self.child {
            Some(child) => child.try_wait().ok()??.to_string(),
            None => kill(Pid::from_raw(self.pid as i32), None)
                .err()?
                .to_string(),
        };
        Some(format!("it ended ({how}); it said: {}", self.said()))
    }

    /// The end of its log.
    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.trim().lines().collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    fn foreground(mut command: Command, log: &Path) -> Result<Server> {
        let log = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| {
                format!("{command:?} can't be started; `make bench-export` installs the peers")
            })?;
        Ok(Server {
            uri: String::new(),
            pid: child.id(),
            child: Some(child),
            idle: 1,
            log: PathBuf::new(),
        })
    }

    /// As a daemon: with -d it would end after one connection. Four worker threads a connection, its default.
    fn nbd_server(address: &Address, file: &Path, dir: &Path, log: &Path) -> Result<Server> {
        let listen = match address {
            Address::Tcp(port) => format!("listenaddr = 127.0.0.1\nport = {port}"),
            Address::Unix(path) => format!("unixsock = {}", path.display()),
        };
        let config = dir.join("nbd-server.conf");
        fs::write(
            &config,
            format!(
                "[generic]\n{listen}\nallowlist = true\n[{NAME}]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
                file.display()
            ),
        )?;
        let pid_file = dir.join("pid");
        let log = File::create(log)?;
        let status = Command::new("nbd-server")
            .arg("-C")
            .arg(&config)
            .arg("-p")
            .arg(&pid_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("nbd-server can't be started; `make bench-export` installs the peers")?;
        if !status.success() {
            bail!("nbd-server ended with {status}");
        }
        let deadline = Instant::now() + START;
        loop {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                return Ok(Server {
                    uri: String::new(),
                    pid,
                    child: None,
                    idle: 1,
                    log: PathBuf::new(),
                });
            }
            if Instant::now() > deadline {
                bail!("nbd-server wrote no pid file");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_greeting(&mut self, address: &Address) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(how) = self.ended() {
                bail!(how);
            }
            match greeting(address) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid as i32);
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + STOP;
        loop {
            let gone = match &mut self.child {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => kill(pid, None).is_err(),
            };
            if gone {
                return;
            }
            if Instant::now() > deadline {
                let _ = kill(pid, Signal::SIGKILL);
                if let Some(child) = &mut self.child {
                    let _ = child.wait();
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// qemu-nbd locks its image against qemu-nbd; here two serve one file, one after the other. cache=none goes with
/// native AIO, as it is used; both defaults but that and the number of clients.
fn command(setup: Setup, address: &Address, file: &Path, dstd: &Path) -> Command {
    let file = file.display();
    let mut command;
    match setup {
        Setup::Export => {
            command = Command::new(dstd);
            command.args(["export", &format!("{NAME}={file}"), "--listen"]);
            command.arg(match address {
                Address::Tcp(port) => format!("127.0.0.1:{port}"),
                Address::Unix(path) => format!("unix:{}", path.display()),
            });
        }
        Setup::Nbdkit => {
            command = Command::new("nbdkit");
            command.arg("--foreground");
            match address {
                Address::Tcp(port) => {
                    command.args(["--ip-addr=127.0.0.1", &format!("--port={port}")])
                }
                Address::Unix(path) => command.arg(format!("--unix={}", path.display())),
            };
            command.args(["file", &format!("{file}")]);
        }
        Setup::QemuWb | Setup::QemuNone | Setup::NbdServer => {
            command = Command::new("qemu-nbd");
            command.args(["--persistent", "--shared=8", "--discard=unmap"]);
            command.arg(format!("--export-name={NAME}"));
            match setup {
                Setup::QemuNone => command.args(["--cache=none", "--aio=native"]),
                _ => command.arg("--cache=writeback"),
            };
            match address {
                Address::Tcp(port) => command.args(["--bind=127.0.0.1", &format!("--port={port}")]),
                Address::Unix(path) => command.arg(format!("--socket={}", path.display())),
            };
            command.arg("--image-opts");
            command.arg(format!(
                "driver=raw,file.driver=file,file.locking=off,file.filename={file}"
            ));
        }
    }
    command
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port")?;
    Ok(listener.local_addr()?.port())
}

/// A socket that listens is not yet a server that talks.
fn greeting(address: &Address) -> Result<()> {
    let mut magic = [0; 8];
    let limit = Some(Duration::from_secs(5));
    match address {
        Address::Tcp(port) => {
            let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
            socket.set_read_timeout(limit)?;
            socket.read_exact(&mut magic)?;
        }
        Address::Unix(path) => {
            let mut socket = UnixStream::connect(path)?;
            socket.set_read_timeout(limit)?;
            socket.read_exact(&mut magic)?;
        }
    }
    if &magic != b"NBDMAGIC" {
        bail!("its greeting is not an NBD server's");
    }
    Ok(())
}
