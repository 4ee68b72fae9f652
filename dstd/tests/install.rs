//! What `make install` puts on a machine: files below a DESTDIR, all gone after `make uninstall`; units that keep what
//! others need; what the quickstart says of it. Units are started in the VM (`tests/vm/cases/51-export-units.sh`), where
//! the quickstart's other commands are tried, too (`34-quickstart.sh`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every unit of the tree, by file name.
fn units() -> BTreeMap<String, String> {
    let files = fs::read_dir(repository().join("dstd/systemd")).unwrap();
    let text = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    files.map(|file| text(file.unwrap().path())).collect()
}

/// What systemd reads of a unit.
fn settings(unit: &str) -> Vec<String> {
    let lines = unit.lines().filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

fn install(arguments: &[&str], root: &Path) {
    let ran = Command::new(repository().join("scripts/install.sh"))
        .args(arguments)
        .env("DESTDIR", root)
        .env("DSTD", env!("CARGO_BIN_EXE_dstd"))
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// Files below a directory, without it.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => found.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                ),
            }
        }
    }
    found.sort();
    found
}

/// Failed flushes are counted below /run/dstd for as long as the machine is up, and systemd empties a unit's runtime
/// directories when it stops unless it is told not to.
#[test]
fn no_unit_that_stops_empties_the_directory_that_all_share() {
    let mut sharing = 0;
    for (name, text) in units() {
        let mut lines = text.lines();
        if lines.any(|line| line.starts_with("RuntimeDirectory=dstd")) {
            sharing += 1;
            let kept = text
                .lines()
                .any(|line| line == "RuntimeDirectoryPreserve=yes");
            assert!(kept, "{name}");
        }
    }
    assert_eq!(sharing, 3);
}

#[test]
fn an_instance_is_the_node_server_but_for_its_name_and_file() {
    let units = units();
    let one = settings(&units["dstd-export.service"]);
    let many = settings(&units["dstd-export@.service"]);
    let as_instance = |line: &String| match line.as_str() {
        "Description=DST node server" => "Description=DST node server %i".to_owned(),
        line => line
            .replace("/etc/dst-export.yaml", "/etc/dst-export/%i.yaml")
            .replace("ConditionPathExists=", "AssertPathExists="),
    };
    assert_eq!(many, one.iter().map(as_instance).collect::<Vec<_>>());

    let one = settings(&units["dstd-export.socket"]);
    let many = settings(&units["dstd-export@.socket"]);
    let port = |line: &&String| !line.starts_with("ListenStream=") || line.contains("/run/");
    let as_instance = |line: &String| {
        line.replace("server,", "server %i,")
            .replace("export.sock", "export-%i.sock")
    };
    let one: Vec<_> = one.iter().filter(port).map(as_instance).collect();
    assert_eq!(many, one);
}

#[test]
fn what_is_installed_is_taken_away_again() {
    let dir = tempfile::tempdir().unwrap();
    install(&["/opt/dst"], dir.path());
    let found = files(dir.path());
    let mut expected = vec![
        "etc/udev/rules.d/56-dm-dst.rules".to_owned(),
        "usr/lib/udev/dst-ready".to_owned(),
        "opt/dst/bin/dstd".to_owned(),
        "opt/dst/share/bash-completion/completions/dstd".to_owned(),
        "opt/dst/share/man/man1/dstd.1".to_owned(),
        "opt/dst/share/man/man1/dstd-export.1".to_owned(),
    ];
    expected.extend(
        units()
            .keys()
            .map(|name| format!("etc/systemd/system/{name}")),
    );
    for file in &expected {
        assert!(found.contains(file), "{file} isn't in {found:?}");
    }
    let source =
        |file: &&String| file.starts_with("usr/src/dm-dst-") && file.ends_with("/dkms.conf");
    assert!(found.iter().any(|file| source(&file)), "{found:?}");
    for name in units().keys().filter(|name| name.ends_with(".service")) {
        let unit = fs::read_to_string(dir.path().join("etc/systemd/system").join(name)).unwrap();
        assert!(
            unit.contains("\nExecStart=/opt/dst/bin/dstd "),
            "{name}: {unit}"
        );
    }

    let topology = dir.path().join("etc/dst/mine.yaml");
    fs::write(topology, "version: 1\n").unwrap();
    install(&["--remove", "/opt/dst"], dir.path());
    assert_eq!(files(dir.path()), ["etc/dst/mine.yaml"]);
}

/// A disk that fills up, or a hand on Ctrl-C, must not leave half a dstd where systemd starts it; and one that runs keeps
/// its file.
#[test]
fn an_install_that_is_cut_short_leaves_the_old_binary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usr/bin/dstd");
    let running = dir.path().join("running");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "the old one").unwrap();
    fs::hard_link(&path, &running).unwrap();
    let script = repository().join("scripts/install.sh");
    // no file of more than a MiB: sources fit, the binary doesn't
    let ran = Command::new("bash")
        .args(["-c", "ulimit -f 1024; exec \"$0\" /usr"])
        .arg(script)
        .env("DESTDIR", dir.path())
        .env("DSTD", env!("CARGO_BIN_EXE_dstd"))
        .output()
        .unwrap();
    assert!(!ran.status.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "the old one");

    install(&["/usr"], dir.path());
    let installed = fs::read(&path).unwrap();
    assert_eq!(installed, fs::read(env!("CARGO_BIN_EXE_dstd")).unwrap());
    assert_eq!(fs::read_to_string(&running).unwrap(), "the old one");
    let left = files(path.parent().unwrap());
    assert_eq!(left, ["dstd"]);
}

/// The commands under "Install" need a network and change the machine, so here is only looked whether they still are
/// what the tree has.
#[test]
fn the_quickstart_installs_with_what_there_is() {
    let page = fs::read_to_string(repository().join("docs/quickstart.md")).unwrap();
    let mut commands = Vec::new();
    for block in ["build", "install"] {
        let (_, rest) = page.split_once(&format!("```sh {block}\n")).unwrap();
        let (block, _) = rest.split_once("```").unwrap();
        commands.extend(block.lines());
    }
    let mut targets = Vec::new();
    for command in commands {
        match command.strip_prefix("make ") {
            Some(target) => targets.push(target),
            None => assert!(
                [
                    "apt-get install -y make",
                    "install -m 755 target/release/dstd /usr/local/bin/"
                ]
                .contains(&command),
                "{command}"
            ),
        }
    }
    assert_eq!(targets, ["build", "install"]);
    for target in targets.into_iter().chain(["uninstall"]) {
        let make = Command::new("make")
            .args(["--dry-run", target])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(make.status.success(), "make {target}");
    }
}
