//! What a kernel said last, out of the console's log. Called by supervise when a VM died or was reset without having
//! asked for it: a log file is of no use to somebody who has only what CI printed.

use std::fs;
use std::path::Path;

/// How a kernel begins to say what is wrong with it.
const TROUBLE: [&str; 5] = ["Oops", "BUG: ", "kernel BUG", "Kernel panic", "WARNING: "];
/// How a kernel begins.
const BIRTH: &str = "] Linux version ";
/// Beyond that, trouble may be of an earlier test.
const RECENT: usize = 120;
/// Enough for the registers and the first frames.
const SHOWN: usize = 40;
const SHOWN_WITHOUT_TROUBLE: usize = 8;

/// Of the life that ended: the newest one, or where the kernel came up again since (`reset`) the one before it.
pub fn last_words(console: &Path, reset: bool) -> Vec<String> {
    let log = fs::read(console).unwrap_or_default();
    pick(&String::from_utf8_lossy(&log), reset)
}

fn pick(log: &str, reset: bool) -> Vec<String> {
    let mut lines: Vec<&str> = log.lines().map(str::trim_end).collect();
    if reset && let Some(birth) = lines.iter().rposition(|line| line.contains(BIRTH)) {
        lines.truncate(birth);
    }
    let recent = lines.split_off(lines.len().saturating_sub(RECENT));
    let trouble = |line: &&str| TROUBLE.iter().any(|word| line.contains(word));
    let from = recent
        .iter()
        .position(trouble)
        .unwrap_or(recent.len().saturating_sub(SHOWN_WITHOUT_TROUBLE));
    let shown = recent.iter().skip(from).take(SHOWN);
    shown.map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[    0.000000] Linux version 6.12\n[    9.0] fine\n[   10.0] Oops: int3: 0000\r\n[   10.1] RIP: 0010:x\n\
                       [    0.000000] Linux version 6.12\n[    1.0] fine again\n";

    #[test]
    fn a_reset_shows_the_life_before() {
        assert_eq!(
            pick(LOG, true),
            ["[   10.0] Oops: int3: 0000", "[   10.1] RIP: 0010:x"]
        );
    }

    #[test]
    fn a_death_without_a_word_shows_what_came_last() {
        let quiet: String = (0..50).map(|n| format!("[ {n}] fine\n")).collect();
        let shown = pick(&quiet, false);
        assert_eq!(shown.len(), SHOWN_WITHOUT_TROUBLE);
        assert_eq!(shown.last().map(String::as_str), Some("[ 49] fine"));
    }

    #[test]
    fn old_trouble_is_not_taken_for_it() {
        let mut log = LOG.to_owned();
        log.extend((0..RECENT).map(|n| format!("[ {n}] fine\n")));
        assert!(pick(&log, false).iter().all(|line| line.contains("fine")));
    }

    #[test]
    fn no_log_is_no_words() {
        assert!(pick("", true).is_empty());
    }
}
