//! Completions as bash has them: the generated script is loaded in a real bash, and its function is called as readline
//! calls it. What must be offered is read from the help of each command.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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
    offered_by(Path::new(DSTD).parent().unwrap(), words)
}

/// The same where this directory's `dstd` is the one on the line.
fn offered_by(directory: &Path, words: &[&str]) -> BTreeSet<String> {
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let ran = Command::new("bash")
        .args(["--norc", "-c", ASK, "bash"])
        .args(words)
        .env("DSTD", DSTD)
        .env("PATH", path)
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

/// Names of the topology that is on the line; else of the one in /etc/dst.
#[test]
fn an_option_that_takes_a_name_is_offered_those_of_the_topology() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.yaml");
    let text = "version: 1\nnodes: {alpha: {uri: 'nbd://a/'}, amber: {uri: 'nbd://b/'}, beta: {uri: 'nbd://c/'}}\n\
        devices: {archive: {table: [dst: {node: alpha}]}, big.one: {table: [dst: {node: beta}]}}\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let nodes = set(&["alpha", "amber", "beta"]);
    assert_eq!(offered(&["dstd", "plan", file, "--steal", ""]), nodes);
    let some = set(&["alpha", "amber"]);
    assert_eq!(
        offered(&["dstd", "apply", "-t", file, "--prune", "--same-data", "a"]),
        some
    );
    let devices = set(&["archive", "big.one"]);
    for option in ["--allow-shrink", "--allow-other-data"] {
        assert_eq!(offered(&["dstd", "plan", file, option, ""]), devices);
    }
    let one = set(&["big.one"]);
    assert_eq!(offered(&["dstd", "table", file, "--device", "b"]), one);
    // Errors in it are for the command itself to tell.
    std::fs::write(file, "nonsense").unwrap();
    assert_eq!(offered(&["dstd", "plan", file, "--steal", ""]), set(&[]));
    let gone = "/nonexistent/t.yaml";
    offered(&["dstd", "plan", gone, "--steal", ""]);
}

/// What the kernel has is asked of `dstd names`, here of one that answers as a kernel with devices and nodes does.
#[test]
fn a_command_that_takes_a_name_is_offered_those_of_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("dstd");
    let answers =
        "#!/bin/sh\n[ \"$1\" = names ] && [ $# = 2 ] && printf \"$2-one\\n$2-two\\nother\\n\"\n";
    std::fs::write(&fake, answers).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let offered = |words: &[&str]| offered_by(dir.path(), words);
    let devices = set(&["devices-one", "devices-two"]);
    assert_eq!(offered(&["dstd", "remove", "dev"]), devices);
    assert_eq!(
        offered(&["dstd", "remove", "--force", "other", "dev"]),
        devices
    );
    assert_eq!(offered(&["dstd", "rename", "dev"]), devices);
    assert_eq!(offered(&["dstd", "rename", "devices-one", "dev"]), set(&[]));
    let nodes = set(&["nodes-one", "nodes-two"]);
    assert_eq!(offered(&["dstd", "fence", "nod"]), nodes);
    assert_eq!(offered(&["dstd", "fail-pending", "nod"]), nodes);
    let names = set(&["nodes-one", "nodes-two", "other"]);
    let all: BTreeSet<_> = options("fence").union(&names).cloned().collect();
    assert_eq!(offered(&["dstd", "fence", ""]), all);
    assert_eq!(offered(&["dstd", "fence", "-"]), options("fence"));
    assert_eq!(offered(&["dstd", "fence", "nodes-one", "nod"]), set(&[]));
    // A command's name that is still being typed is no command.
    assert_eq!(offered(&["dstd", "remove"]), set(&["remove"]));
    assert_eq!(offered(&["dstd", "status", "dev"]), set(&[]));
}

#[test]
fn what_is_only_for_scripts_is_not_offered() {
    assert!(!offered(&["dstd", ""]).contains("names"));
    assert!(!help(&[]).contains("names"));
}

/// Nobody wants to read it while typing.
#[test]
fn names_are_asked_for_in_silence() {
    for what in ["devices", "nodes", "topology-devices", "topology-nodes"] {
        let ran = Command::new(DSTD).args(["names", what]).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && said.is_empty(), "{what}: {said}");
    }
}
