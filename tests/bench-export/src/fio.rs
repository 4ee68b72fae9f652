//! Runs the fio job once and reads what fio says of it.
//!
//! Owns the mapping of a cell to the variables of job.fio. Called by `main` for each run; knows nothing of servers
//! but a URI.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::matrix::Job;

/// What one run did.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub ops: f64,
    pub bytes: f64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// The repository's own copy of the job.
pub fn job_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("job.fio")
}

pub fn run(job: Job, uri: &str, time: Duration, dir: &Path) -> Result<Done> {
    let out = dir.join("fio.json");
    let ran = Command::new("fio")
        .args(["--eta=never", "--output-format=json"])
        .arg(format!("--output={}", out.display()))
        .arg(job_file())
        .env("BENCH_URI", uri)
        .env("BENCH_RW", job.rw)
        .env("BENCH_BS", format!("{}k", job.block_kib))
        .env("BENCH_DEPTH", job.depth.to_string())
        .env("BENCH_CONNECTIONS", job.connections.to_string())
        .env("BENCH_MSECS", time.as_millis().to_string())
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .context("fio can't be started; `make bench-export` installs it")?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        bail!("fio ended with {}: {}", ran.status, said.trim());
    }
    // A fio of this version without the nbd engine's library writes its complaint into the same file.
    let text = std::fs::read_to_string(&out)?;
    let json = &text[text.find('{').unwrap_or(0)..];
    read(
        serde_json::from_str(json).context("fio's output is no JSON")?,
        job,
    )
}

fn read(json: Value, job: Job) -> Result<Done> {
    let group = &json["jobs"][0];
    if group["error"].as_i64() != Some(0) {
        bail!("fio reports error {}", group["error"]);
    }
    let side = &group[if job.is_write() { "write" } else { "read" }];
    let number = |value: &Value, what: &str| {
        value
            .as_f64()
            .filter(|number| *number > 0.0)
            .with_context(|| format!("fio reports no {what}"))
    };
    let latency = &side["lat_ns"]["percentile"];
    Ok(Done {
        ops: number(&side["total_ios"], "requests")?,
        bytes: number(&side["io_bytes"], "bytes")?,
        seconds: number(&side["runtime"], "run time")? / 1e3,
        p50_us: number(&latency["50.000000"], "p50")? / 1e3,
        p99_us: number(&latency["99.000000"], "p99")? / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_did_nothing_or_failed_is_no_result() {
        let job = Job::ALL[0];
        let side = |ios: u64| {
            json!({"total_ios": ios, "io_bytes": ios * 4096, "runtime": 2000,
                "lat_ns": {"percentile": {"50.000000": 1000, "99.000000": 9000}}})
        };
        let good = json!({"jobs": [{"error": 0, "read": side(10)}]});
        let done = read(good, job).expect("a good run");
        assert_eq!((done.ops, done.bytes, done.seconds), (10.0, 40960.0, 2.0));
        assert_eq!((done.p50_us, done.p99_us), (1.0, 9.0));
        let idle = json!({"jobs": [{"error": 0, "read": side(0)}]});
        assert!(
            read(idle, job)
                .expect_err("no requests")
                .to_string()
                .contains("requests")
        );
        let failed = json!({"jobs": [{"error": 5, "read": side(10)}]});
        assert!(
            read(failed, job)
                .expect_err("EIO")
                .to_string()
                .contains("error 5")
        );
    }
}
