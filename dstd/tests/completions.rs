//! Completions as bash has them: the generated script is loaded in a real bash, and its function is called as readline
//! calls it. What must be offered is read from the help of each command.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

const DSTD: &str = env!("CARGO_BIN_EXE_dstd");

/// Finds the function by what bash registered for `dstd`; the words are the line up to the cursor.
const ASK: &str = r#"
set -eu
source /dev/stdin <<<"$("$DSTD" completions bash)"
registered=$(complete -p dstd)
[[ $registered =~ ' -F '([^ ]+)' ' ]]
ask=${BASH_REMATCH[1]}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
COMPREPLY=()
"$ask" dstd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" || true # a status of 1: it has nothing to offer
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"#;

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> BTreeSet<String> {
    let ran = Command::new("bash")
        .args(["--norc", "-c", ASK, "bash"])
        .args(words)
        .env("DSTD", DSTD)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.is_empty(), "{words:?}: {said}");
    let out = String::from_utf8(ran.stdout).unwrap();
    out.lines().map(str::to_owned).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn help(arguments: &[&str]) -> String {
    let ran = Command::new(DSTD)
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(ran.status.success());
    String::from_utf8(ran.stdout).unwrap()
}

fn commands() -> Vec<String> {
    let help = help(&[]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    // What is longer than a line goes on further to the right.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(names.len() >= 16, "{names:?}");
    names
}

/// `-s` and `--long` of a command, as the left column of its help has them.
fn options(command: &str) -> BTreeSet<String> {
    let help = help(&[command]);
    let lines = help.lines().map(str::trim_start);
    let words = lines
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split("  ").next())
        .flat_map(|line| line.split(|c: char| c.is_whitespace() || c == ',' || c == '['));
    let options = words.filter(|word| {
        let name = word.trim_start_matches('-');
        word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic())
    });
    options.map(str::to_owned).collect()
}

#[test]
fn commands_are_offered() {
    let all = offered(&["dstd", ""]);
    for command in commands() {
        assert!(all.contains(&command), "{command} isn't in {all:?}");
    }
    assert_eq!(offered(&["dstd", "re"]), set(&["remove", "rename"]));
    assert_eq!(offered(&["dstd", "fail"]), set(&["fail-pending"]));
    assert_eq!(offered(&["dstd", "nothing"]), set(&[]));
}

#[test]
fn every_option_of_every_command_is_offered() {
    for command in commands().iter().filter(|name| *name != "help") {
        let options = options(command);
        assert!(options.contains("--help"), "{command}: {options:?}");
        assert_eq!(offered(&["dstd", command, "-"]), options, "{command}");
    }
    let allow = set(&["--allow-shrink", "--allow-other-data"]);
    assert_eq!(offered(&["dstd", "plan", "t.yaml", "--allow"]), allow);
}

#[test]
fn values_that_are_known_are_offered() {
    let when = set(&["auto", "always", "never"]);
    assert_eq!(offered(&["dstd", "plan", "--color", ""]), when);
    let when = set(&["auto", "always"]);
    assert_eq!(offered(&["dstd", "apply", "--color", "a"]), when);
    assert_eq!(offered(&["dstd", "completions", "b"]), set(&["bash"]));
    let shells = offered(&["dstd", "completions", ""]);
    assert!(shells.contains("zsh"), "{shells:?}");
}

/// The page says so: what is offered beside options is what bash itself would offer.
#[test]
fn names_of_devices_and_nodes_are_not_known() {
    let options = options("remove");
    assert_eq!(offered(&["dstd", "remove", ""]), options);
    assert_eq!(offered(&["dstd", "remove", "arch"]), set(&[]));
}
