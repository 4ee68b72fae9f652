//! CPU time of a server: all its threads, its children and the children it has reaped.
//!
//! Reads /proc only. Called around each fio run. The kernel keeps the sum of user and system time by the
//! scheduler's clock, so it is exact; /proc shows it in ticks of 10 ms for each process.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::{SysconfVar, sysconf};

/// Children of a server that still live this long after its last client has gone are its own affair.
const SETTLE: Duration = Duration::from_secs(3);

/// One process as /proc/PID/stat has it.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// Living and ended threads, and reaped children.
    ticks: u64,
}

/// The name in parentheses may hold anything, spaces and parentheses included; what follows the last one is plain.
fn parse(text: &str) -> Option<Stat> {
    let (pid, rest) = text.split_once(" (")?;
    let fields: Vec<&str> = rest.rsplit_once(") ")?.1.split(' ').collect();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some(Stat {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

/// The process and its descendants.
fn family(root: u32) -> Result<Vec<Stat>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc can't be read")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end at any moment.
        if let Some(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .as_deref()
            .and_then(parse)
        {
            all.push(stat);
        }
    }
    let Some(at) = all.iter().position(|stat| stat.pid == root) else {
        bail!("the server (pid {root}) has ended");
    };
    let mut found = vec![all.swap_remove(at)];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        found.extend(all.extract_if(.., |stat| stat.parent == parent));
        next += 1;
    }
    Ok(found)
}

/// Seconds of CPU that the server has used so far, once no process is left that serves a client.
/// `idle` is the number of processes it had before it had any.
pub fn seconds(root: u32, idle: usize) -> Result<f64> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let family = family(root)?;
        if family.len() <= idle || Instant::now() > deadline {
            let ticks: u64 = family.iter().map(|stat| stat.ticks).sum();
            return Ok(ticks as f64 / ticks_per_second()?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many processes the server is.
pub fn processes(root: u32) -> Result<usize> {
    Ok(family(root)?.len())
}

fn ticks_per_second() -> Result<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the system has no clock tick")?;
    Ok(ticks as f64)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "77 (a) (b) S 5 77 77 0 -1 4194368 267 1203 1 0 10 20 300 4000 20 0 1";
        let want = Stat {
            pid: 77,
            parent: 5,
            ticks: 4330,
        };
        assert_eq!(parse(line), Some(want));
        assert_eq!(parse("77 (cut"), None);
    }

    /// Burns CPU in a child that is reaped and in one that lives on; both count.
    #[test]
    fn children_count() {
        let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let mut shell = Command::new("sh")
            .args([
                "-c",
                &format!("sh -c '{burn}'; (read x) & {burn}; echo done; wait"),
            ])
            .stdout(std::process::Stdio::piped())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(shell.stdout.take().expect("a pipe")),
            &mut line,
        )
        .expect("its word");
        let own = fs::read_to_string(format!("/proc/{}/stat", shell.id())).expect("it lives");
        let fields: Vec<u64> = own
            .rsplit_once(") ")
            .expect("a stat line")
            .1
            .split(' ')
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let used = seconds(shell.id(), 2).expect("it lives");
        shell.kill().expect("it dies");
        shell.wait().expect("it is gone");
        assert!(fields[13] > 0, "the reaped child used CPU: {own}");
        let own = (fields[11] + fields[12]) as f64 / ticks_per_second().expect("a tick");
        assert!(used > own * 1.3, "{used} s with children, {own} s without");
    }
}
