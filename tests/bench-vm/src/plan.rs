//! The order of runs, as tests/vm/bench/run.sh walks through it.
//!
//! Where instructions are counted nothing else matters, and each setup is alone. Where the host's time counts, all setups
//! stand side by side and each job is run with one after the other, in an order that turns by one from round to round, so
//! that whatever slows the host for a while slows them all. Runs nothing.

use std::fmt::Write;

use bench_vm::jobs::Job;

use crate::matrix::{Line, Mode, Setup, applies};

#[derive(Debug)]
pub struct Plan<'a> {
    pub mode: Mode,
    pub setups: &'a [Setup],
    pub lines: &'a [Line],
    pub rounds: usize,
    pub jobs: &'a [(&'static str, Option<Job>)],
}

impl Plan<'_> {
    /// All cells that must have a result, in each round.
    pub fn cells(&self) -> impl Iterator<Item = (Setup, Line)> {
        self.lines.iter().flat_map(move |line| {
            let setups = self.setups.iter().copied();
            setups
                .filter(move |setup| applies(*setup, *line, self.jobs))
                .map(move |setup| (setup, *line))
        })
    }

    /// All runs of a plan of one CPU, as they come in the text.
    pub fn cells_in_order(&self) -> impl Iterator<Item = (Setup, Line, usize)> {
        self.setups.iter().flat_map(move |setup| {
            let rounds = 0..self.rounds;
            let runs = rounds.flat_map(move |round| self.lines.iter().map(move |l| (*l, round)));
            runs.filter(move |(line, _)| applies(*setup, *line, self.jobs))
                .map(move |(line, round)| (*setup, line, round))
        })
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut connections: Vec<u32> = self.lines.iter().map(|line| line.connections).collect();
        connections.sort_unstable();
        connections.dedup();
        for count in connections {
            let lines: Vec<Line> = self
                .lines
                .iter()
                .filter(|line| line.connections == count)
                .copied()
                .collect();
            let setups: Vec<Setup> = self
                .setups
                .iter()
                .filter(|setup| lines.iter().any(|line| applies(**setup, *line, self.jobs)))
                .copied()
                .collect();
            match self.mode {
                Mode::Icount => self.one_by_one(&mut text, &setups, &lines, count),
                Mode::Plain => self.side_by_side(&mut text, &setups, &lines, count),
            }
        }
        text
    }

    fn one_by_one(&self, text: &mut String, setups: &[Setup], lines: &[Line], count: u32) {
        for setup in setups {
            for round in 0..self.rounds {
                for line in lines {
                    self.run(text, *setup, *line, round);
                }
            }
            down(text, *setup, count);
        }
    }

    fn side_by_side(&self, text: &mut String, setups: &[Setup], lines: &[Line], count: u32) {
        for round in 0..self.rounds {
            for line in lines {
                for n in 0..setups.len() {
                    self.run(text, setups[(n + round) % setups.len()], *line, round);
                }
            }
        }
        for setup in setups {
            down(text, *setup, count);
        }
    }

    fn run(&self, text: &mut String, setup: Setup, line: Line, round: usize) {
        if applies(setup, line, self.jobs) {
            // writing to a String can't fail
            let _ = writeln!(
                text,
                "run {setup} {} {} {round}",
                line.connections, line.job
            );
        }
    }
}

fn down(text: &mut String, setup: Setup, connections: u32) {
    let _ = writeln!(text, "down {setup} {connections}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{all_jobs, lines};

    #[test]
    fn counted_setups_are_alone_and_others_turn() {
        let jobs = all_jobs().expect("jobs");
        let lines: Vec<Line> = lines(Mode::Icount).expect("lines")[..2].to_vec();
        let setups = [Setup::Brd, Setup::DmdstExport];
        let plan = |mode| Plan {
            mode,
            setups: &setups,
            lines: &lines,
            rounds: 2,
            jobs: &jobs,
        };
        let text = plan(Mode::Icount).text();
        let want = "run brd 1 randread-4k-qd1 0\nrun brd 1 randread-4k-qd8 0\nrun brd 1 randread-4k-qd1 1\n\
                    run brd 1 randread-4k-qd8 1\ndown brd 1\nrun dmdst+export 1 randread-4k-qd1 0\n";
        assert_eq!(&text[..want.len()], want);
        let text = plan(Mode::Plain).text();
        let first: Vec<&str> = text
            .lines()
            .map(|l| l.split(' ').nth(1).unwrap_or(""))
            .collect();
        let (brd, export) = ("brd", "dmdst+export");
        assert_eq!(
            first,
            [
                brd, export, brd, export, export, brd, export, brd, brd, export
            ]
        );
    }

    /// Each cell of each round stands once in the plan.
    #[test]
    fn nothing_is_left_out() {
        let jobs = all_jobs().expect("jobs");
        for mode in [Mode::Icount, Mode::Plain] {
            let lines = lines(mode).expect("lines");
            let plan = Plan {
                mode,
                setups: &Setup::ALL,
                lines: &lines,
                rounds: 3,
                jobs: &jobs,
            };
            let text = plan.text();
            let mut runs: Vec<&str> = text.lines().filter(|l| l.starts_with("run ")).collect();
            assert_eq!(runs.len(), plan.cells().count() * 3);
            if mode == Mode::Icount {
                let cells = plan.cells_in_order();
                let told: Vec<String> = cells
                    .map(|(setup, line, n)| {
                        format!("run {setup} {} {} {n}", line.connections, line.job)
                    })
                    .collect();
                assert_eq!(runs, told);
            }
            runs.sort_unstable();
            runs.dedup();
            assert_eq!(runs.len(), plan.cells().count() * 3);
        }
    }
}
