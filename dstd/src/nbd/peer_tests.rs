//! Tests of `nbd::client` against the real servers nbdkit, qemu-nbd and nbd-server, over
//! loopback and Unix sockets. A server that isn't installed is skipped, and says so.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::client::{connect, probe};
use super::client_tests::ATTACH;
use super::error::NbdError;
use super::proto;
use super::uri::NbdUri;
use crate::kernel::{Connection, NbdFlags, Negotiated};

const LIMIT: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// A server process that ends with the test.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // nbd-server puts itself into the background and leaves its number in a file.
        if let Ok(pid) = fs::read_to_string(self.dir.path().join("pid"))
            && let Ok(pid) = pid.trim().parse()
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        // Not eprintln!: the test runner would hide it.
        let _ = writeln!(std::io::stderr(), "skipped: {program} isn't installed");
    }
    found
}

/// `args` may name the test's directory as `{dir}`.
fn start(program: &str, args: &[&str], files: &[(&str, &[u8])]) -> Option<Server> {
    if !installed(program) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap().to_owned();
    for (name, content) in files {
        let content = String::from_utf8(content.to_vec()).map_or_else(
            |_| content.to_vec(),
            |text| text.replace("{dir}", &here).into_bytes(),
        );
        fs::write(dir.path().join(name), content).unwrap();
    }
    let child = Command::new(program)
        .args(args.iter().map(|a| a.replace("{dir}", &here)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some(Server { child, dir })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Server {
    fn unix(&self, export: &str) -> NbdUri {
        let socket = self.dir.path().join("s");
        format!("nbd+unix:///{export}?socket={}", socket.display())
            .parse()
            .unwrap()
    }

    /// Probes until the server listens.
    async fn probe(&self, uri: &NbdUri) -> Result<Negotiated, NbdError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match probe(uri, ATTACH.session.client, LIMIT).await {
                Err(NbdError::Connect { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => return result.map(|probed| probed.negotiated),
            }
        }
    }
}

fn read_request(offset: u64, length: u32) -> Vec<u8> {
    let mut out = proto::encode_disconnect().to_vec();
    out[6..8].copy_from_slice(&0u16.to_be_bytes());
    out[16..24].copy_from_slice(&offset.to_be_bytes());
    out[24..].copy_from_slice(&length.to_be_bytes());
    out
}

/// Reads through the socket as the kernel will, and compares.
fn assert_reads(connection: Connection, unix: bool, offset: u64, expected: &[u8]) {
    let request = read_request(offset, expected.len() as u32);
    let mut got = vec![0; 16 + expected.len()];
    if unix {
        let mut stream = UnixStream::from(connection.socket);
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&proto::encode_disconnect()).unwrap();
    } else {
        let mut stream = TcpStream::from(connection.socket);
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&proto::encode_disconnect()).unwrap();
    }
    assert_eq!(
        got[..8],
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0],
        "a simple reply without error"
    );
    assert_eq!(&got[16..], expected);
}

fn pattern(size: u64) -> Vec<u8> {
    (0..size).map(|i| (i / 512) as u8 | 0x80).collect()
}

#[tokio::test]
async fn nbdkit_over_a_unix_socket() {
    let content = pattern(MIB + 512);
    let args = ["-f", "-U", "{dir}/s", "file", "{dir}/disk"];
    let Some(server) = start("nbdkit", &args, &[("disk", &content)]) else {
        return;
    };
    let uri = server.unix("");
    let negotiated = server.probe(&uri).await.unwrap();
    assert_eq!(negotiated.size.0, MIB + 512);
    assert!(negotiated.flags.has(NbdFlags::SEND_FLUSH) && negotiated.flags.multi_conn());
    assert!(!negotiated.flags.read_only());
    let connection = connect(&uri, &ATTACH, LIMIT).await.unwrap();
    assert!(connection.same_host);
    assert_eq!(connection.negotiated, negotiated);
    assert_reads(connection, true, 1024, &content[1024..5120]);
}

#[tokio::test]
async fn nbdkit_block_sizes_read_only_over_tcp_and_ipv6() {
    let port = free_port().to_string();
    let args = [
        "-f",
        "-r",
        "-i",
        "::1",
        "-p",
        &port,
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=4096",
        "blocksize-preferred=64K",
        "blocksize-maximum=512K",
    ];
    let Some(server) = start("nbdkit", &args, &[]) else {
        return;
    };
    let uri: NbdUri = format!("nbd://[::1]:{port}/any").parse().unwrap();
    let negotiated = server.probe(&uri).await.unwrap();
    let sizes = (
        negotiated.min_block,
        negotiated.pref_block,
        negotiated.max_payload,
    );
    assert_eq!(sizes, (4096, 65536, 512 * 1024));
    assert!(negotiated.flags.read_only());
    let connection = connect(&uri, &ATTACH, LIMIT).await.unwrap();
    assert!(connection.same_host);
    assert_reads(connection, false, 0, &[0; 4096]);
}

#[tokio::test]
async fn nbdkit_refuses_unknown_exports() {
    let args = ["-f", "-U", "{dir}/s", "file", "dir={dir}/"];
    let Some(server) = start("nbdkit", &args, &[("known", &[0; 512])]) else {
        return;
    };
    assert_eq!(
        server.probe(&server.unix("known")).await.unwrap().size.0,
        512
    );
    let text = server
        .probe(&server.unix("strange"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("`strange`") && text.contains("`known`"),
        "{text}"
    );
}

#[tokio::test]
async fn nbdkit_that_wants_tls_is_told_from_others() {
    let key = b"dst:0123456789abcdef0123456789abcdef\n";
    let psk = [
        "-f",
        "-U",
        "{dir}/s",
        "--tls=require",
        "--tls-psk={dir}/psk",
        "memory",
        "1M",
    ];
    let Some(server) = start("nbdkit", &psk, &[("psk", key)]) else {
        return;
    };
    let uri = server.unix("");
    let error = server.probe(&uri).await.unwrap_err();
    assert!(matches!(error, NbdError::TlsRequired(_)), "{error}");
    let error = connect(&uri, &ATTACH, LIMIT).await.unwrap_err();
    assert!(matches!(error, NbdError::TlsRequired(_)), "{error}");
}

#[tokio::test]
async fn nbdkit_in_oldstyle_is_refused_by_name() {
    let Some(server) = start(
        "nbdkit",
        &["-f", "-o", "-U", "{dir}/s", "memory", "1M"],
        &[],
    ) else {
        return;
    };
    let error = server.probe(&server.unix("")).await.unwrap_err();
    assert!(matches!(error, NbdError::Oldstyle), "{error}");
}

#[tokio::test]
async fn qemu_nbd_with_name_and_description() {
    let content = pattern(3 * MIB + 1024);
    let args = [
        "-t",
        "-k",
        "{dir}/s",
        "-f",
        "raw",
        "-x",
        "my disk",
        "-D",
        "a disk",
        "{dir}/disk",
    ];
    let Some(server) = start("qemu-nbd", &args, &[("disk", &content)]) else {
        return;
    };
    let uri = server.unix("my%20disk");
    let negotiated = server.probe(&uri).await.unwrap();
    assert_eq!(negotiated.size.0, 3 * MIB + 1024);
    assert_eq!(negotiated.description.as_deref(), Some("a disk"));
    assert!(
        negotiated
            .flags
            .has(NbdFlags::SEND_FUA | NbdFlags::SEND_TRIM)
    );
    let connection = connect(&uri, &ATTACH, LIMIT).await.unwrap();
    assert_reads(connection, true, 3 * MIB, &content[3 * MIB as usize..]);
    let text = server
        .probe(&server.unix("other"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("`other`") && text.contains("exports: `my disk`"),
        "{text}"
    );
}

#[tokio::test]
async fn nbd_server_over_loopback() {
    let content = pattern(MIB);
    let port = free_port().to_string();
    let config = format!(
        "[generic]\nport = {port}\nlistenaddr = 127.0.0.1\nallowlist = true\n\
         [disk]\nexportname = {{dir}}/disk\nflush = true\nfua = true\ntrim = true\n"
    );
    let files: [(&str, &[u8]); 2] = [("disk", &content), ("config", config.as_bytes())];
    let args = ["-C", "{dir}/config", "-p", "{dir}/pid"];
    let Some(server) = start("nbd-server", &args, &files) else {
        return;
    };
    let uri: NbdUri = format!("nbd://127.0.0.1:{port}/disk").parse().unwrap();
    let negotiated = server.probe(&uri).await.unwrap();
    assert_eq!(negotiated.size.0, MIB);
    assert!(negotiated.flags.has(NbdFlags::SEND_FLUSH));
    let connection = connect(&uri, &ATTACH, LIMIT).await.unwrap();
    assert_reads(connection, false, 512, &content[512..2048]);
    let uri: NbdUri = format!("nbd://127.0.0.1:{port}/nope").parse().unwrap();
    let text = server.probe(&uri).await.unwrap_err().to_string();
    assert!(text.contains("`nope`") && text.contains("`disk`"), "{text}");
}

#[tokio::test]
async fn nothing_listens() {
    let port = free_port();
    let uri: NbdUri = format!("nbd://127.0.0.1:{port}/x").parse().unwrap();
    let text = probe(&uri, ATTACH.session.client, LIMIT)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains(&format!("can't connect to 127.0.0.1:{port}")),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
    let uri: NbdUri = "nbd+unix:///x?socket=/nonexistent/s".parse().unwrap();
    let text = probe(&uri, ATTACH.session.client, LIMIT)
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("/nonexistent/s: No such file"), "{text}");
    assert!(!Path::new("/nonexistent").exists());
}
