//! The binary as a person meets it: texts and exit statuses of what needs no kernel and no node.

#![allow(clippy::unwrap_used)]

use std::fs;

use assert_cmd::Command;

struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn dstd(args: &[&str]) -> Ran {
    let output = Command::cargo_bin("dstd")
        .unwrap()
        .args(args)
        .output()
        .unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

const GOOD: &str =
    "version: 1\nnodes: {a: {uri: 'nbd://h/'}}\ndevices: {d: {table: [dst: {node: a}]}}\n";

#[test]
fn validate_tells_right_from_wrong() {
    let (_dir, path) = file(GOOD);
    let ran = dstd(&["validate", &path]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("nodes: a"), "{}", ran.out);
    let (_dir, path) = file(&GOOD.replace("node: a", "node: b"));
    let ran = dstd(&["validate", &path]);
    assert_eq!(ran.status, 4);
    assert!(
        ran.err.contains("t.yaml:3:35: there is no node `b`"),
        "{}",
        ran.err
    );
}

#[test]
fn two_files_are_one_topology() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    let ran = dstd(&["validate", &path]);
    assert_eq!(ran.status, 4);
    assert!(ran.err.contains("no *.yaml file"), "{}", ran.err);
    fs::write(
        dir.path().join("1.yaml"),
        "version: 1\nnodes: {a: {uri: 'nbd://h/'}}\n",
    )
    .unwrap();
    fs::write(
        dir.path().join("2.yaml"),
        "version: 1\ndevices: {d: {table: [dst: {node: a}]}}\n",
    )
    .unwrap();
    let ran = dstd(&["table", &path, "--size", "a=8s"]);
    assert_eq!(
        (ran.status, ran.out.as_str()),
        (0, "0 8 dst 1 a 0 8 2 block_size 512\n")
    );
    fs::write(
        dir.path().join("3.yaml"),
        "version: 1\nnodes: {a: {uri: 'nbd://other/'}}\n",
    )
    .unwrap();
    let ran = dstd(&["validate", &path]);
    assert!(
        ran.err
            .contains("3.yaml:2:9: the node `a` already stands at "),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("1.yaml:2:9: remove one"), "{}", ran.err);
}

#[test]
fn table_says_which_size_is_missing_or_too_small() {
    let (_dir, path) = file(&GOOD.replace("node: a", "node: a, offset: 8s, length: 8s"));
    let ran = dstd(&["table", &path, "--size", "a=15s"]);
    assert_eq!(ran.status, 3);
    assert!(
        ran.err
            .contains("ends at sector 16, and the export of node `a` has only 15"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("t.yaml:3:"), "{}", ran.err);
    let ran = dstd(&["table", &path, "--size", "a=15"]);
    assert_eq!(ran.status, 64);
    assert!(ran.err.contains("write `15s` for sectors"), "{}", ran.err);
    let ran = dstd(&["table", &path, "--device", "dst-one", "--size", "a=16s"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("no device `dst-one`: `dstd validate`"),
        "{}",
        ran.err
    );
}

#[test]
fn a_local_disk_must_be_one() {
    let (_dir, path) = file("version: 1\ndevices: {d: {table: [linear: {device: /dev/null}]}}\n");
    let ran = dstd(&["table", &path]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("/dev/null: it is no block device"),
        "{}",
        ran.err
    );
}

#[test]
fn an_unreachable_node_is_named() {
    let (_dir, path) = file(&GOOD.replace("nbd://h/", "nbd+unix:///x?socket=/nonexistent/socket"));
    let ran = dstd(&["table", &path]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("node a: ") && ran.err.contains("/nonexistent/socket"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("--size a=SIZE"), "{}", ran.err);
}

#[test]
fn the_doctor_names_what_is_bad_and_says_what_to_do() {
    let (_dir, path) = file(&GOOD.replace("nbd://h/", "nbd+unix:///x?socket=/nonexistent/socket"));
    let ran = dstd(&["doctor", &path]);
    assert_eq!(ran.status, 1);
    let bad = ran
        .out
        .lines()
        .find(|line| line.contains("node a"))
        .unwrap();
    assert!(bad.starts_with("BAD   node a can't be used: "), "{bad}");
    assert!(ran.out.contains("do: look at the server"), "{}", ran.out);
    let (_dir, path) = file("version: 2\n");
    let ran = dstd(&["doctor", &path]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.out.contains("BAD   the topology can't be used:") && ran.out.contains(":1:10:"),
        "{}",
        ran.out
    );
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    assert_eq!(dstd(&["fly"]).status, 64);
    assert_eq!(dstd(&["--help"]).status, 0);
}

#[test]
fn man_pages_and_completions_come_from_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(dstd(&["man", dir.path().to_str().unwrap()]).status, 0);
    let page = fs::read_to_string(dir.path().join("dstd-apply.1")).unwrap();
    assert!(page.contains("allow"), "{page}");
    assert!(dstd(&["completions", "bash"]).out.contains("fail-pending"));
}
