//! dst-tcp: the limit of the network. For a job of jobs.fio it sends over the loopback interface what NBD would, between
//! two processes, and does nothing else: a batch of requests in one send, their replies in one send; where a job is a
//! long sequential one, a stream one way. Prints what fio would say of it. Run by tests/vm/bench/steps.sh for the setup
//! `tcp`, with BENCH_MSECS and BENCH_COUNT set as for fio.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bench_vm::jobs::{self, Job, Kind};
use serde_json::json;

/// Of a request and of a simple reply in NBD.
const REQUEST: u64 = 28;
const REPLY: u64 = 16;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve"] => serve(),
        [file, job] => measure(file, job),
        _ => Err(anyhow::anyhow!("usage: dst-tcp JOBFILE JOB")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dst-tcp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How much goes each way in one exchange, and how many requests that is. Nothing one way: a stream the other way.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    sent: u64,
    received: u64,
    requests: u64,
}

impl Exchange {
    fn of(job: &Job) -> Exchange {
        if job.is_stream() {
            let reads = job.batch().first() == Some(&Kind::Read);
            return Exchange {
                sent: if reads { 0 } else { job.block },
                received: if reads { job.block } else { 0 },
                requests: 1,
            };
        }
        let batch = job.batch();
        let count = batch.len() as u64;
        let reads = batch.iter().filter(|kind| **kind == Kind::Read).count() as u64;
        Exchange {
            sent: count * REQUEST + (count - reads) * job.block,
            received: count * REPLY + reads * job.block,
            requests: count,
        }
    }
}

/// What one connection did.
#[derive(Default)]
struct Done {
    requests: u64,
    seconds: f64,
    /// of each exchange, in nanoseconds
    latencies: Vec<u64>,
}

fn measure(file: &str, id: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
    let job = jobs::parse(&text)?.into_iter().find(|job| job.id == id);
    let job = job.with_context(|| format!("{file} has no job {id}"))?;
    let msecs: u64 = std::env::var("BENCH_MSECS")
        .context("BENCH_MSECS")?
        .parse()?;
    let exchange = Exchange::of(&job);
    let mut server = Server::start()?;
    let mut links = Vec::new();
    for _ in 0..job.jobs {
        links.push(server.connect(exchange)?);
    }
    count("prerun")?;
    let time = Duration::from_millis(msecs);
    let runs: Vec<_> = links
        .into_iter()
        .map(|link| thread::spawn(move || run(link, exchange, time)))
        .collect();
    let mut all = Vec::new();
    for run in runs {
        match run.join() {
            Ok(done) => all.push(done?),
            Err(_) => bail!("a connection's thread panicked"),
        }
    }
    count("postrun")?;
    print(&job, all);
    Ok(())
}

fn run(mut link: TcpStream, exchange: Exchange, time: Duration) -> Result<Done> {
    let request = vec![0x5a; exchange.sent as usize];
    let mut reply = vec![0; exchange.received as usize];
    let mut done = Done::default();
    let begin = Instant::now();
    let mut last = begin;
    while last - begin < time {
        link.write_all(&request)?;
        link.read_exact(&mut reply)?;
        let now = Instant::now();
        done.latencies.push((now - last).as_nanos() as u64);
        done.requests += exchange.requests;
        last = now;
    }
    done.seconds = (last - begin).as_secs_f64();
    Ok(done)
}

/// As fio has it in its JSON, with unified_rw_reporting.
fn print(job: &Job, all: Vec<Done>) {
    let requests: u64 = all.iter().map(|done| done.requests).sum();
    let seconds = all.iter().map(|done| done.seconds).fold(0.0, f64::max);
    let mut latencies: Vec<u64> = all.into_iter().flat_map(|done| done.latencies).collect();
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies.get(latencies.len() * percent / 100);
    println!(
        "{}",
        json!({"jobs": [{"error": 0, "mixed": {
            "total_ios": requests,
            "io_bytes": requests * job.block,
            "runtime": seconds * 1e3,
            "lat_ns": {"percentile": {"50.000000": percentile(50), "99.000000": percentile(99)}},
        }}]})
    );
}

/// What the kernel has done so far.
fn count(when: &str) -> Result<()> {
    let script = std::env::var("BENCH_COUNT").context("BENCH_COUNT")?;
    let status = Command::new("/bin/sh")
        .arg(script)
        .arg(when)
        .status()
        .context("/bin/sh")?;
    if !status.success() {
        bail!("counting ended with {status}");
    }
    Ok(())
}

/// The other process.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Result<Server> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the server can't be started")?;
        let mut port = [0; 2];
        child
            .stdout
            .as_mut()
            .context("the server has no standard output")?
            .read_exact(&mut port)
            .context("the server tells no port")?;
        Ok(Server {
            child,
            port: u16::from_be_bytes(port),
        })
    }

    /// The server hears first how much comes and goes.
    fn connect(&mut self, exchange: Exchange) -> Result<TcpStream> {
        let mut link = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        link.set_nodelay(true)?;
        let mut hello = exchange.sent.to_be_bytes().to_vec();
        hello.extend(exchange.received.to_be_bytes());
        link.write_all(&hello)?;
        link.read_exact(&mut [0])?; // its thread is there
        Ok(link)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // it serves nobody but us; already gone is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    io::stdout().write_all(&port.to_be_bytes())?;
    io::stdout().flush()?;
    for link in listener.incoming() {
        let link = link?;
        // the client tells what went wrong; for the server its end is the end
        thread::spawn(move || answer(link));
    }
    Ok(())
}

fn answer(mut link: TcpStream) -> io::Result<()> {
    link.set_nodelay(true)?;
    let mut hello = [[0; 8]; 2];
    link.read_exact(hello.as_flattened_mut())?;
    let [request, reply] = hello.map(|bytes| u64::from_be_bytes(bytes) as usize);
    let mut request = vec![0; request];
    let reply = vec![0xa5; reply];
    link.write_all(&[1])?;
    loop {
        link.read_exact(&mut request)?;
        link.write_all(&reply)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(rw: &str, block: u64, depth: u64) -> Job {
        Job {
            id: String::new(),
            rw: rw.to_owned(),
            block,
            depth,
            jobs: 1,
            direct: true,
        }
    }

    #[test]
    fn the_sizes_are_those_of_nbd() {
        let of = |rw, block, depth| {
            let e = Exchange::of(&job(rw, block, depth));
            (e.sent, e.received, e.requests)
        };
        assert_eq!(of("randread", 4096, 1), (28, 4112, 1));
        assert_eq!(of("randwrite", 4096, 32), (32 * 4124, 32 * 16, 32));
        assert_eq!(of("randrw", 4096, 10), (280 + 3 * 4096, 160 + 7 * 4096, 10));
        assert_eq!(of("read", 1 << 20, 8), (0, 1 << 20, 1));
        assert_eq!(of("write", 1 << 17, 8), (1 << 17, 0, 1));
    }

    /// Both ways between two threads, for as long as was asked.
    #[test]
    fn an_exchange_is_counted() {
        for (rw, block) in [("randread", 4096), ("write", 1 << 17), ("read", 1 << 17)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let port = listener.local_addr().expect("it has one").port();
            let server = thread::spawn(move || answer(listener.accept().expect("a client").0));
            let exchange = Exchange::of(&job(rw, block, 8));
            let mut link = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the server");
            let hello = [exchange.sent.to_be_bytes(), exchange.received.to_be_bytes()];
            link.write_all(hello.as_flattened()).expect("it is read");
            link.read_exact(&mut [0]).expect("its word");
            let done = run(link, exchange, Duration::from_millis(20)).expect("it runs");
            assert_eq!(
                done.requests,
                done.latencies.len() as u64 * exchange.requests
            );
            assert!(done.requests > 0 && done.seconds >= 0.02);
            let end = server.join().expect("it ends").expect_err("the link ended");
            assert_ne!(end.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
