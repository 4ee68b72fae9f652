//! The rows of vm.json, and what is read from them: ratios and bars.
//!
//! Owns the file's format, what "best peer" means and how good issue 5 wants each job to be. Filled by main; read by
//! `report`, `plot` and `page`. Measures nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use dst_bench_export::stats;
use serde::{Deserialize, Serialize};

use crate::matrix::{Mode, Setup};
use crate::runs::Run;

/// A cell: the medians of its runs. `job` has the connections in it where they are more than one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub setup: String,
    pub mode: String,
    pub job: String,
    pub iops: f64,
    pub mbps: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub kinstr_per_io: Option<f64>,
    pub spread_pct: Option<f64>,
    pub switches_per_io: f64,
    pub softirqs_per_io: f64,
    pub segments_per_io: f64,
    pub merged_pct: Option<f64>,
    pub idle_pct: f64,
}

impl Row {
    pub fn new(setup: Setup, mode: Mode, job: String, run: Run, spread: Option<f64>) -> Row {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        Row {
            setup: setup.id().to_owned(),
            mode: mode.id().to_owned(),
            job,
            iops: round(run.iops),
            mbps: round(run.mbps),
            p50_us: run.p50_us.map(round),
            p99_us: run.p99_us.map(round),
            kinstr_per_io: run.kinstr_per_io.map(round),
            spread_pct: spread.map(round),
            switches_per_io: round(run.switches_per_io),
            softirqs_per_io: round(run.softirqs_per_io),
            segments_per_io: round(run.segments_per_io),
            merged_pct: run.merged_pct.map(round),
            idle_pct: round(run.idle_pct),
        }
    }

    /// Higher is better. Where instructions are counted, idle time is no work of anybody's.
    pub fn speed(&self) -> f64 {
        self.kinstr_per_io.map_or(self.iops, |work| 1e6 / work)
    }
}

/// What was measured where, and the rows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub machine: BTreeMap<String, String>,
    /// by mode
    pub versions: BTreeMap<String, BTreeMap<String, String>>,
    pub rows: Vec<Row>,
}

impl Results {
    pub fn load(path: &Path) -> Result<Results> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = format!(
            "{{\"machine\": {},\n\"versions\": {},\n\"rows\": {}}}\n",
            serde_json::to_string(&self.machine)?,
            serde_json::to_string(&self.versions)?,
            stats::array(&self.rows)?
        );
        fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
    }

    /// These rows instead of what there was of their mode.
    pub fn replace(&mut self, mode: Mode, new: Results) {
        self.machine = new.machine;
        self.versions.extend(new.versions);
        self.rows.retain(|row| row.mode != mode.id());
        self.rows.extend(new.rows);
    }

    pub fn find(&self, mode: Mode, job: &str, setup: Setup) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.mode == mode.id() && row.job == job && row.setup == setup.id())
    }

    /// The jobs of a mode, but for those of scale only, in the order of the rows.
    pub fn jobs(&self, mode: Mode) -> Vec<&str> {
        let mut jobs: Vec<&str> = Vec::new();
        let scale = |row: &Row| Setup::SCALE.iter().any(|setup| setup.id() == row.setup);
        let of_mode = |row: &&Row| row.mode == mode.id() && !scale(row);
        for row in self.rows.iter().filter(of_mode) {
            if !jobs.contains(&row.job.as_str()) {
                jobs.push(&row.job);
            }
        }
        jobs
    }

    pub fn setups(&self, mode: Mode) -> Vec<Setup> {
        let has = |setup: &Setup| {
            let rows = &self.rows;
            rows.iter()
                .any(|r| r.mode == mode.id() && r.setup == setup.id())
        };
        Setup::ALL.into_iter().filter(has).collect()
    }

    pub fn ratio(&self, mode: Mode, job: &str, ours: Setup, theirs: Setup) -> Option<f64> {
        let ours = self.find(mode, job, ours)?.speed();
        Some(ours / self.find(mode, job, theirs)?.speed())
    }

    /// A scale setup beside the one node: what it is, the ratio, and the least that it must be.
    pub fn scale(&self, mode: Mode) -> Vec<(Setup, &'static str, f64, f64)> {
        let one = |job: &str| match job {
            "randread-4k-qd32" => "randread-4k-qd32",
            _ => "randread-4k-qd8",
        };
        let least = |setup| {
            if setup == Setup::ScaleX10000 {
                0.95
            } else {
                0.8
            }
        };
        let mut found = Vec::new();
        for setup in &Setup::SCALE[1..] {
            for job in setup.scale_jobs() {
                let own = self.find(mode, job, *setup);
                let theirs = self.find(mode, one(job), Setup::Scale1);
                if let (Some(own), Some(theirs)) = (own, theirs) {
                    found.push((*setup, *job, own.speed() / theirs.speed(), least(*setup)));
                }
            }
        }
        found
    }

    /// dmdst+export beside the peer that is hardest to beat.
    pub fn best_peer(&self, mode: Mode, job: &str) -> Option<(Setup, f64)> {
        Setup::PEERS
            .into_iter()
            .filter_map(|peer| Some((peer, self.ratio(mode, job, Setup::DmdstExport, peer)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// What issue 5 asks of a cell.
#[derive(Debug)]
pub struct Bar {
    pub job: String,
    pub what: String,
    pub ratio: f64,
    pub wanted: f64,
    pub goal: Option<f64>,
}

impl Bar {
    pub fn is_met(&self) -> bool {
        self.ratio >= self.wanted
    }
}

/// The least that dmdst+export must be beside the best peer, and the goal.
fn wanted(job: &str) -> (f64, Option<f64>) {
    let random = job.starts_with("randread-4k") || job.starts_with("randwrite-4k");
    match job {
        _ if random && job.ends_with("-qd1") => (1.1, None),
        _ if random && (job.ends_with("-qd32") || job.ends_with("-qd128")) => (2.0, Some(2.5)),
        "read-4k-qd32" | "write-4k-qd32" => (2.0, None),
        "read-4k-qd32-b16" | "write-4k-qd32-b16" => (1.0, None),
        _ if job.contains("-128k") || job.contains("-1m") => (1.2, None),
        _ if job.starts_with("bufwrite-4k-fsync") => (1.2, None),
        _ => (1.0, None),
    }
}

/// All bars that these results say something of; only counted instructions are judged.
pub fn bars(results: &Results) -> Vec<Bar> {
    let mode = Mode::Icount;
    let mut bars = Vec::new();
    for job in results.jobs(mode) {
        let mut add = |what: String, ratio: Option<f64>, wanted: f64, goal: Option<f64>| {
            bars.extend(ratio.map(|ratio| Bar {
                job: job.to_owned(),
                what,
                ratio,
                wanted,
                goal,
            }));
        };
        let (least, goal) = wanted(job);
        if let Some((peer, ratio)) = results.best_peer(mode, job) {
            add(format!("best peer, {peer}"), Some(ratio), least, goal);
        }
        if least == 2.0 && job.starts_with("rand") {
            let peer = Setup::NbdkoExport;
            let ratio = results.ratio(mode, job, Setup::DmdstExport, peer);
            add(peer.id().to_owned(), ratio, 1.5, None);
        }
        if job.contains("-128k") || job.contains("-1m") {
            let ratio = results.ratio(mode, job, Setup::DmdstExport, Setup::Tcp);
            add("bare TCP stream".to_owned(), ratio, 0.65, None);
        }
        for (ours, theirs) in Setup::SAME_SERVER {
            let deep =
                ours == Setup::DmdstNbdkit && job.ends_with("-qd32") && job.starts_with("rand");
            let ratio = results.ratio(mode, job, ours, theirs);
            let what = format!("{ours} beside {theirs}");
            add(what, ratio, if deep { 1.3 } else { 1.0 }, None);
        }
    }
    let scale = results.scale(mode).into_iter();
    bars.extend(scale.map(|(setup, job, ratio, wanted)| Bar {
        job: job.to_owned(),
        what: format!("{setup} beside one node, as deep for each"),
        ratio,
        wanted,
        goal: None,
    }));
    bars
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As if every setup had these thousands of instructions per I/O.
    pub fn made(job: &str, work: &[(Setup, f64)]) -> Results {
        let mut results = Results::default();
        for (setup, kinstr) in work {
            let run = Run {
                iops: 1e6 / kinstr,
                kinstr_per_io: Some(*kinstr),
                ..Run::default()
            };
            let row = Row::new(*setup, Mode::Icount, job.to_owned(), run, None);
            results.rows.push(row);
        }
        results
    }

    #[test]
    fn the_best_peer_is_the_hardest_to_beat() {
        let job = "randread-4k-qd32";
        let results = made(
            job,
            &[
                (Setup::Tcp, 4.0),
                (Setup::Brd, 10.0),
                (Setup::Nvmetcp, 50.0),
                (Setup::NbdkoExport, 60.0),
                (Setup::DmdstNbdkit, 30.0),
                (Setup::DmdstExport, 25.0),
            ],
        );
        assert_eq!(
            results.best_peer(Mode::Icount, job),
            Some((Setup::Nvmetcp, 2.0))
        );
        let bars = bars(&results);
        let shown: Vec<_> = bars
            .iter()
            .map(|b| (b.what.as_str(), b.ratio, b.wanted))
            .collect();
        let want = [
            ("best peer, nvmetcp", 2.0, 2.0),
            ("nbdko+export", 2.4, 1.5),
            ("dmdst+export beside nbdko+export", 2.4, 1.0),
        ];
        assert_eq!(shown, want);
        assert!(bars.iter().all(Bar::is_met));
    }

    #[test]
    fn many_nodes_are_held_against_one_as_deep() {
        let mut results = made("randread-4k-qd8", &[(Setup::Scale1, 20.0)]);
        results
            .rows
            .extend(made("randread-4k-qd512", &[(Setup::ScaleN64, 40.0)]).rows);
        results
            .rows
            .extend(made("randread-4k-qd32", &[(Setup::ScaleX10000, 9.0)]).rows);
        let found = results.scale(Mode::Icount);
        assert_eq!(found, [(Setup::ScaleN64, "randread-4k-qd512", 0.5, 0.8)]);
        assert!(results.jobs(Mode::Icount).is_empty());
        assert_eq!(bars(&results).len(), 1);
    }

    #[test]
    fn each_job_has_its_bar() {
        for (job, least) in [
            ("randread-4k-qd1", 1.1),
            ("randwrite-4k-qd128", 2.0),
            ("randrw-4k-qd32", 1.0),
            ("randread-4k-qd32-j4", 1.0),
            ("read-4k-qd32", 2.0),
            ("write-4k-qd32-b16", 1.0),
            ("write-1m-qd8", 1.2),
            ("bufwrite-4k-fsync1", 1.2),
            ("untar", 1.0),
        ] {
            assert_eq!(wanted(job).0, least, "{job}");
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let mut results = made("untar", &[(Setup::Brd, 7.0), (Setup::Iscsi, 9.0)]);
        results
            .machine
            .insert("cpu".into(), "one \"quoted\"".into());
        let path = std::env::temp_dir().join(format!("bench-vm-{}.json", std::process::id()));
        results.save(&path).expect("it is written");
        let again = Results::load(&path).expect("it is read");
        fs::remove_file(&path).expect("it is there");
        assert_eq!((again.rows, again.machine), (results.rows, results.machine));
    }
}
