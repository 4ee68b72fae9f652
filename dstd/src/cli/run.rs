//! `dstd run`: the daemon.
//! Called by cli. Sets up logs and memory, then hands over to reconcile.

use std::str::FromStr;

use clap::Args;

use super::args::TopologyArgs;
use super::protect::protect;
use super::{Exit, Stop, logs, system};
use crate::metrics::Address;
use crate::reconcile::{RunError, run};

/// Keep the kernel as the topology says, until told to end
///
/// Reads the topology again on SIGHUP and when a file changes. SIGTERM ends it and leaves devices and links as they are.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    topology: TopologyArgs,
    /// Serve metrics for Prometheus: unix:/PATH, 127.0.0.1:PORT or [::1]:PORT
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "DSTD_METRICS",
        default_value = "",
        hide_default_value = true
    )]
    metrics: Metrics,
    /// What to log: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "FILTER", default_value = "info", env = "DSTD_LOG")]
    log: String,
}

/// Empty is none: with `Environment=DSTD_METRICS=` a drop-in of the unit takes back what another one has set.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Metrics(Option<Address>);

impl FromStr for Metrics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = (!text.is_empty()).then(|| text.parse());
        Ok(Self(address.transpose()?))
    }
}

impl Run {
    pub fn run(self) -> Result<Exit, Stop> {
        let _logs = logs::start(&self.log)?;
        protect();
        let kernel = system::kernel()?;
        let running = run(
            kernel,
            system::connector(),
            self.topology.paths(),
            self.metrics.0,
        );
        let ended = system::block_on(running)?;
        match ended {
            Ok(()) => Ok(Exit::Done),
            Err(RunError::Topology(errors)) => Err(errors.into()),
            Err(error) => Err(Stop::failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_of_metrics_is_none() {
        assert_eq!("".parse(), Ok(Metrics(None)));
        let address = "127.0.0.1:9150".parse().unwrap();
        assert_eq!("127.0.0.1:9150".parse(), Ok(Metrics(Some(address))));
        assert!("9150".parse::<Metrics>().is_err());
    }
}
