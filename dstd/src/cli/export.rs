//! `dstd export`: the node server.
//! Called by cli. Turns arguments into a configuration, then hands over to export.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;

use super::{Exit, Stop, logs, print, system};
use crate::export::access::{Access, Prefix};
use crate::export::config::{Config, ExportConfig, Listen, name_fault};
use crate::export::server::DataPlane;
use crate::export::worker::{Engine, Workers};
use crate::export::{config_file, service};

/// Serve files and block devices to NBD clients: the node server
///
/// Exports come from the command line or from a file (docs/node-server.md). Without --listen only this machine is
/// served. SIGHUP reads the file again, SIGTERM answers what was asked and ends.
#[derive(Debug, Args)]
pub struct Export {
    /// Name of an export and the file or block device behind it; the only one serves clients that name none, too
    #[arg(value_name = "NAME=PATH", required_unless_present = "config")]
    exports: Vec<NamedPath>,
    /// Read exports, limits and where to listen from a YAML file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["exports", "listen", "read_only", "shared", "allow"])]
    config: Option<PathBuf>,
    /// Where to listen: ADDRESS[:PORT], [ADDRESS]:PORT or unix:/PATH; sockets of systemd's go first. 127.0.0.1 and
    /// ::1, port 10809, when it isn't given
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Listen>,
    /// Let clients read only
    #[arg(long)]
    read_only: bool,
    /// No writer rules: any number of clients with sessions may write at once
    #[arg(long)]
    shared: bool,
    /// Serve only clients of this address or net, or `unix`; everybody when it isn't given
    #[arg(long, value_name = "PREFIX")]
    allow: Vec<Prefix>,
    /// Threads that serve requests; one for each CPU when it isn't given
    #[arg(long, value_name = "COUNT")]
    workers: Option<std::num::NonZeroUsize>,
    /// Check the configuration, and serve nothing
    #[arg(long)]
    check: bool,
    /// What to log: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info", env = "DSTD_LOG")]
    log: String,
}

/// NAME=PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedPath {
    name: String,
    path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, path)) = text.split_once('=').filter(|(_, path)| !path.is_empty()) else {
            return Err("write NAME=PATH, such as disk0=/srv/disk0.img".to_owned());
        };
        match name_fault(name) {
            Some(fault) => Err(fault),
            None => Ok(NamedPath {
                name: name.to_owned(),
                path: path.into(),
            }),
        }
    }
}

impl Export {
    pub fn run(self) -> Result<Exit, Stop> {
        let mut config = match &self.config {
            Some(file) => config_file::load(file)?,
            None => self.arguments()?,
        };
        if let Some(workers) = self.workers {
            config.workers = Some(workers.get());
        }
        if self.check {
            print(shown(&config))?;
            return Ok(Exit::Done);
        }
        let _logs = logs::start(&self.log)?;
        let plane = data_plane(&config)?;
        system::block_on(service::run(config, self.config, plane))?.map_err(Stop::failed)?;
        Ok(Exit::Done)
    }

    fn arguments(&self) -> Result<Config, Stop> {
        let mut exports = BTreeMap::new();
        for NamedPath { name, path } in &self.exports {
            let path = std::path::absolute(path)
                .map_err(|error| Stop::failed(format!("{}: {error}", path.display())))?;
            let export = ExportConfig {
                read_only: self.read_only,
                shared: self.shared,
                access: Access {
                    allow: (!self.allow.is_empty()).then(|| self.allow.clone()),
                    read_only_for: Vec::new(),
                },
                ..ExportConfig::new(path)
            };
            if exports.insert(name.clone(), export).is_some() {
                let text = format!("there are two exports `{name}`: rename one");
                return Err(Stop::new(Exit::Usage, text));
            }
        }
        Ok(Config {
            listen: self.listen.clone(),
            ..Config::new(exports)
        })
    }
}

fn shown(config: &Config) -> String {
    let mut text = String::from("The configuration is right.\n");
    for (name, export) in &config.exports {
        let mode = if export.read_only {
            "read-only"
        } else {
            "read-write"
        };
        let path: &Path = &export.path;
        text += &format!("  export `{name}`: {}, {mode}\n", path.display());
    }
    text
}

/// The threads that serve requests.
fn data_plane(config: &Config) -> Result<Arc<dyn DataPlane>, Stop> {
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::start(config.workers.unwrap_or_else(cpus), Engine::Auto);
    match workers {
        Ok(workers) => Ok(Arc::new(workers)),
        Err(error) => Err(Stop::failed(format!(
            "the threads that serve requests can't start: {error}"
        ))),
    }
}
