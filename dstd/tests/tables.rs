//! Holds every topology of dmsetup-tables/ to the table beside it, and the published schema to the types.
//! Sizes come from NAME.sizes, so no node is asked.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn topologies() -> Vec<PathBuf> {
    let files = fs::read_dir(repository().join("dmsetup-tables")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|f| f.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_topology_makes_the_table_beside_it() {
    let topologies = topologies();
    assert!(
        topologies.len() >= 8,
        "only {} topologies",
        topologies.len()
    );
    for yaml in topologies {
        let made = Command::cargo_bin("dstd")
            .unwrap()
            .arg("table")
            .arg(&yaml)
            .arg("--sizes")
            .arg(yaml.with_extension("sizes"))
            .assert()
            .success();
        let made = String::from_utf8(made.get_output().stdout.clone()).unwrap();
        let held = fs::read_to_string(yaml.with_extension("table")).unwrap();
        assert_eq!(made, held, "{}", yaml.display());
    }
}

#[test]
fn no_table_stands_without_its_topology() {
    for file in fs::read_dir(repository().join("dmsetup-tables")).unwrap() {
        let file = file.unwrap().path();
        if file
            .extension()
            .is_some_and(|e| e == "table" || e == "sizes")
        {
            assert!(file.with_extension("yaml").exists(), "{}", file.display());
        }
    }
}

#[test]
fn the_published_schema_is_current() {
    let held = fs::read_to_string(repository().join("docs/topology.schema.json")).unwrap();
    assert_eq!(
        dstd::topology::json_schema(),
        held,
        "make it anew: cargo run -p dstd -- schema > docs/topology.schema.json"
    );
}

#[test]
fn the_published_schema_of_status_is_current() {
    let held = fs::read_to_string(repository().join("docs/status.schema.json")).unwrap();
    assert!(
        dstd::cli::status_schema() == held,
        "make it anew: cargo run -p dstd -- schema --status > docs/status.schema.json"
    );
}
