//! The page, held to the format, and the server, over a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::serve::look;
use super::text::{Seen, page};
use super::*;
use crate::cli::status_tests::{device, node};
use crate::kernel::sim::{Fault, SimKernel, When};
use crate::kernel::{Access, DeviceIo, DmUuid, Kernel, Latencies, Latency, NodeState};
use crate::reconcile::Cause;
use crate::units::Bytes;

fn seen() -> Seen {
    let io = DeviceIo {
        writes: 7,
        written: Bytes(4096),
        write_ms: 1500,
        ..DeviceIo::default()
    };
    let devices = vec![
        (device("dev", "DST-dev", &["0 8 dst 1 alpha 0 8"]), Some(io)),
        (device("new", "DST-new", &[]), None),
    ];
    let nodes = vec![node()];
    Seen { devices, nodes }
}

fn counts() -> stats::Counts {
    let stats = Stats::default();
    stats.pass(3, Some(1), 2, 4);
    stats.pass(0, None, 0, 0);
    stats.looked(Duration::from_millis(12));
    stats.begun(Cause::Device);
    stats.begun(Cause::Device);
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    stats.seen([node()].iter(), at(100));
    stats.seen([node()].iter(), at(200));
    stats.counts().data_lost.insert("alpha".parse().unwrap(), 1);
    stats.counts().data_lost.insert("gone".parse().unwrap(), 2);
    stats.counts().clone()
}

/// Each sample by its name and labels. Every family has help and type before it, and no sample stands twice.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let (mut family, mut families) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} stands twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let expected = match family.as_str() {
                "dst_node_latency_seconds" => "histogram",
                name if name.ends_with("_total") => "counter",
                _ => "gauge",
            };
            assert_eq!(kind, format!("{family} {expected}"));
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let sample = name.split('{').next().unwrap();
            let part = sample.strip_prefix(&family).unwrap_or(line);
            let parts: &[_] = match family.as_str() {
                "dst_node_latency_seconds" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(parts.contains(&part), "{line}");
            let value = value.parse().unwrap();
            assert!(
                all.insert(name.to_owned(), value).is_none(),
                "{name} stands twice"
            );
        }
    }
    all
}

#[test]
fn the_page_has_what_kernel_and_daemon_count() {
    let page = page(&seen(), &counts());
    let samples = samples(&page);
    for (name, value) in [
        ("dst_passes_total", 2.0),
        ("dst_failed_passes_total", 2.0),
        ("dst_passes_by_cause_total{cause=\"device_event\"}", 2.0),
        ("dst_passes_by_cause_total{cause=\"time\"}", 0.0),
        ("dst_steps_total", 3.0),
        ("dst_failed_steps_total", 1.0),
        ("dst_refused_changes", 2.0),
        ("dst_wanting_nodes", 4.0),
        ("dst_looking_seconds_total", 0.012),
        ("dst_data_lost_total{node=\"alpha\"}", 1.0),
        ("dst_data_lost_total{node=\"gone\"}", 2.0),
        ("dst_device_size_bytes{device=\"dev\"}", 4096.0),
        ("dst_device_writes_total{device=\"dev\"}", 7.0),
        ("dst_device_write_seconds_total{device=\"dev\"}", 1.5),
        ("dst_node_state{node=\"alpha\",state=\"degraded\"}", 1.0),
        ("dst_node_state{node=\"alpha\",state=\"live\"}", 0.0),
        (
            "dst_node_state_since_timestamp_seconds{node=\"alpha\"}",
            100.0,
        ),
        ("dst_node_queued{node=\"alpha\"}", 5.0),
        ("dst_node_reconnects_total{node=\"alpha\"}", 7.0),
        ("dst_node_merged_requests_total{node=\"alpha\"}", 21.0),
        ("dst_node_queue_waits_total{node=\"alpha\"}", 9.0),
        ("dst_node_queue_seconds_total{node=\"alpha\"}", 2.5),
        (
            "dst_link_sent_bytes_total{node=\"alpha\",slot=\"0\"}",
            4096.0,
        ),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in {page}");
    }
    // One that the kernel says nothing of, and a link that drains, have none.
    assert!(!samples.contains_key("dst_device_writes_total{device=\"new\"}"));
    assert!(!page.contains("slot=\"1\""));
}

#[test]
fn latency_is_a_histogram_with_bounds_in_seconds() {
    let mut node = node();
    node.latency = Some(Latencies {
        read: Latency::of(12_000_000_345, vec![1, 0, 2, 3]),
        write: Latency::of(0, vec![0, 0]),
    });
    let mut old = node.clone();
    (old.name, old.latency) = ("old".parse().unwrap(), None);
    let nodes = vec![node, old];
    let devices = Vec::new();
    let page = page(&Seen { devices, nodes }, &stats::Counts::default());
    let expected = "\
# HELP dst_node_latency_seconds From when a request is gathered to be sent until it is answered.
# TYPE dst_node_latency_seconds histogram
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"read\",le=\"0.000001\"} 1
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"read\",le=\"0.000002\"} 1
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"read\",le=\"0.000004\"} 3
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"read\",le=\"+Inf\"} 6
dst_node_latency_seconds_sum{node=\"alpha\",op=\"read\"} 12.000000345
dst_node_latency_seconds_count{node=\"alpha\",op=\"read\"} 6
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"write\",le=\"0.000001\"} 0
dst_node_latency_seconds_bucket{node=\"alpha\",op=\"write\",le=\"+Inf\"} 0
dst_node_latency_seconds_sum{node=\"alpha\",op=\"write\"} 0.000000000
dst_node_latency_seconds_count{node=\"alpha\",op=\"write\"} 0
# HELP ";
    assert!(page.contains(expected), "{page}");
    samples(&page);
}

#[test]
fn the_last_bound_of_the_kernels_is_written_in_full() {
    let node = node();
    let read = &node.latency.as_ref().unwrap().read;
    assert_eq!(read.last_bound(), 1 << 24);
    let page = page(&seen(), &stats::Counts::default());
    let bound = "op=\"read\",le=\"16.777216\"} 99\n";
    assert!(page.contains(bound), "{page}");
}

/// A counter that isn't there before it counts has no increase when it comes.
#[test]
fn each_node_has_its_count_of_lost_data_before_any_is_lost() {
    let page = page(&seen(), &stats::Counts::default());
    assert_eq!(samples(&page)["dst_data_lost_total{node=\"alpha\"}"], 0.0);
}

#[test]
fn a_device_that_was_given_a_strange_name_does_not_spoil_the_page() {
    let name = "a\"b\\x20c\n";
    let devices = vec![(device(name, "DST-a", &[]), None)];
    let nodes = Vec::new();
    let page = page(&Seen { devices, nodes }, &stats::Counts::default());
    let line = r#"dst_device_suspended{device="a\"b\\x20c\n"} 0"#;
    assert!(page.lines().any(|l| l == line), "{page}");
}

#[test]
fn a_state_that_changes_is_so_since_then() {
    let stats = Stats::default();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let mut node = node();
    stats.seen([node.clone()].iter(), at(1));
    node.state = NodeState::Lost;
    stats.seen([node.clone()].iter(), at(2));
    stats.seen([node.clone()].iter(), at(3));
    assert_eq!(stats.counts().since[&node.name], (NodeState::Lost, at(2)));
    stats.seen([].iter(), at(4));
    assert!(stats.counts().since.is_empty());
}

#[test]
fn only_unix_and_loopback_sockets_are_taken() {
    for good in ["unix:/run/dstd/metrics", "127.0.0.1:9150", "[::1]:9150"] {
        assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
    }
    for (bad, why) in [
        ("0.0.0.0:9150", "0.0.0.0 isn't a loopback address"),
        ("[2001:db8::1]:9150", "isn't a loopback address"),
        ("unix:metrics", "no absolute path"),
        ("9150", "write unix:/PATH, 127.0.0.1:PORT"),
    ] {
        let error = bad.parse::<Address>().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

struct World {
    kernel: Arc<SimKernel>,
    dir: tempfile::TempDir,
    _listening: Listening,
}

impl World {
    async fn new() -> Self {
        let kernel = Arc::new(SimKernel::default());
        let device = "dev".parse().unwrap();
        let access = Access::ReadWrite;
        kernel
            .create(&device, &DmUuid::of(&device), access)
            .unwrap();
        kernel
            .load(&device, &["0 8 dst 1 alpha 0 8".parse().unwrap()], access)
            .unwrap();
        kernel.resume(&device).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("metrics"));
        // One that died has left its socket.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("metrics")).unwrap());
        let listening = listen(&address, kernel.clone(), Arc::default()).await;
        World {
            kernel,
            dir,
            _listening: listening.unwrap(),
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("metrics"))
            .await
            .unwrap()
    }

    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn a_scraper_gets_the_page_and_others_a_word() {
    use std::os::unix::fs::PermissionsExt;

    let world = World::new().await;
    let mode = std::fs::metadata(world.dir.path().join("metrics"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = world.ask(GET).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    assert_eq!(
        samples(body)["dst_node_state{node=\"alpha\",state=\"waiting\"}"],
        1.0
    );
    assert_eq!(
        samples(body)["dst_device_size_bytes{device=\"dev\"}"],
        4096.0
    );
    let counted = "dst_node_latency_seconds_count{node=\"alpha\",op=\"write\"}";
    assert_eq!(samples(body)[counted], 0.0);
    for (request, status) in [
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "400"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = world.ask(request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let endless = "x".repeat(20_000);
    let mut stream = world.connect().await;
    let _ = stream.write_all(endless.as_bytes()).await;
    let mut answer = Vec::new();
    // The end comes with an answer or, as not all was read, without.
    let _ = stream.read_to_end(&mut answer).await;
    world.kernel.go_wrong([(When::After(0), Fault::Fails)]);
    let answer = world.ask(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("list the nodes"),
        "{answer}"
    );
    assert!(world.ask(GET).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_hold_others_up_for_a_moment_only() {
    let world = World::new().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(world.connect().await);
    }
    let answer = tokio::time::timeout(Duration::from_secs(300), world.ask(GET)).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_socket_of_one_that_listens_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other");
    let other = tokio::net::UnixListener::bind(&path).unwrap();
    let kernel = Arc::new(SimKernel::default());
    let address = Address::Unix(path.clone());
    let error = listen(&address, kernel, Arc::default()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let _client = UnixStream::connect(&path).await.unwrap();
    other.accept().await.unwrap();
}

/// Else each scrape would leave one more call of device-mapper behind, until none were left for the daemon.
#[tokio::test]
async fn while_a_look_hangs_no_other_is_begun() {
    let world = World::new().await;
    let turn = Arc::new(Semaphore::new(1));
    world.kernel.go_wrong([(When::After(1), Fault::Hangs)]);
    let (kernel, its_turn) = (world.kernel.clone(), turn.clone());
    let first = tokio::spawn(async move { look(&kernel, &its_turn, Duration::MAX).await });
    let mut hanging = world.kernel.hanging();
    hanging.wait_for(|n| *n == 1).await.unwrap();
    let second = look(&world.kernel, &turn, Duration::from_millis(1)).await;
    // It takes its turn with it also when whoever asked is gone.
    first.abort();
    let gone = first.await.is_err();
    let turns = turn.available_permits();
    world.kernel.release();
    let error = second.err().unwrap().to_string();
    assert!(error.contains("an earlier look hangs"), "{error}");
    assert_eq!((gone, turns), (true, 0));
    assert!(look(&world.kernel, &turn, Duration::MAX).await.is_ok());
}
