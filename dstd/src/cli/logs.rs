//! Where log lines go: the journal or standard error, by way of a thread of its own.
//! Called by run and export. Whoever logs never waits: a journal that stands still (its disk may be one of our devices,
//! whose node is dead) must not hold up the links that would bring it back. What finds the queue full is dropped and counted.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::{Exit, Stop};

const JOURNAL: &str = "/run/systemd/journal/socket";
/// Lines that wait; then new ones are dropped.
const LINES: usize = 4096;
/// Longer texts are cut: a datagram has its limit.
const TEXT_MAX: usize = 32 * 1024;
/// How long the last lines have to get out at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
const STACK: usize = 128 * 1024;

/// Keep it: what is still queued is written when it is dropped.
#[must_use]
pub struct Logs(Arc<Queue>);

impl Drop for Logs {
    fn drop(&mut self) {
        self.0.flush(LAST_WORDS);
    }
}

/// To the journal where standard error leads there, else to standard error.
pub fn start(filter: &str) -> Result<Logs, Stop> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Stop::new(Exit::Usage, format!("`{filter}` is no log filter: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = stderr_is_journal()
        .then(journal_socket)
        .and_then(Result::ok);
    let queue = Arc::new(Queue::new(LINES));
    let lines = Arc::clone(&queue);
    if let Some(socket) = journal {
        spawn(&queue, Journal(socket))?;
        registry.with(ToJournal(lines)).init();
    } else {
        spawn(&queue, Plain(io::stderr()))?;
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || ToPlain(Arc::clone(&lines)))
            .with_ansi(io::stderr().is_terminal())
            .with_target(false);
        registry.with(layer).init();
    }
    Ok(Logs(queue))
}

/// The variable alone proves nothing: whoever a service starts inherits it, also with standard error elsewhere.
fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn journal_socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(JOURNAL)?;
    Ok(socket)
}

fn spawn(queue: &Arc<Queue>, sink: impl Sink) -> Result<(), Stop> {
    let queue = Arc::clone(queue);
    let thread = thread::Builder::new().name("log".to_owned());
    let thread = thread.stack_size(STACK).spawn(move || queue.serve(sink));
    thread
        .map(drop)
        .map_err(|error| Stop::failed(format!("the log can't start: {error}")))
}

/// Where lines end up; may block for as long as it wants.
trait Sink: Send + 'static {
    fn write(&mut self, line: &[u8]);
    fn dropped(&mut self, count: u64);
}

struct Plain<W>(W);

impl<W: Write + Send + 'static> Sink for Plain<W> {
    fn write(&mut self, line: &[u8]) {
        // There is nobody left to tell.
        let _ = self.0.write_all(line);
    }

    fn dropped(&mut self, count: u64) {
        let _ = writeln!(self.0, "{}", dropped_text(count));
    }
}

struct Journal(UnixDatagram);

impl Sink for Journal {
    fn write(&mut self, line: &[u8]) {
        // Journald was started anew: its socket is another one.
        if self.0.send(line).is_err() && self.0.connect(JOURNAL).is_ok() {
            let _ = self.0.send(line);
        }
    }

    fn dropped(&mut self, count: u64) {
        let mut entry = entry(Level::WARN);
        put(&mut entry, "MESSAGE", &dropped_text(count));
        self.write(&entry);
    }
}

fn dropped_text(count: u64) -> String {
    format!("{count} log lines were dropped here: nobody took them")
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    dropped: u64,
    /// The thread is in the sink.
    writing: bool,
}

struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    limit: usize,
}

impl Queue {
    fn new(limit: usize) -> Self {
        Queue {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits for the sink.
    fn push(&self, line: Vec<u8>) {
        let mut waiting = self.lock();
        if waiting.lines.len() < self.limit {
            waiting.lines.push_back(line);
        } else {
            waiting.dropped += 1;
        }
        self.changed.notify_all();
    }

    fn serve(&self, mut sink: impl Sink) {
        loop {
            let mut waiting = self.lock();
            waiting.writing = false;
            self.changed.notify_all();
            let idle = |w: &mut Waiting| w.lines.is_empty() && w.dropped == 0;
            let woken = self.changed.wait_while(waiting, idle);
            let mut waiting = woken.unwrap_or_else(PoisonError::into_inner);
            waiting.writing = true;
            let lines = std::mem::take(&mut waiting.lines);
            let dropped = std::mem::take(&mut waiting.dropped);
            drop(waiting);
            lines.iter().for_each(|line| sink.write(line));
            if dropped > 0 {
                sink.dropped(dropped);
            }
        }
    }

    fn flush(&self, limit: Duration) {
        let busy = |w: &mut Waiting| w.writing || !w.lines.is_empty() || w.dropped > 0;
        drop(self.changed.wait_timeout_while(self.lock(), limit, busy));
    }
}

/// What a line is written to when it is formatted: whole lines come in one piece.
struct ToPlain(Arc<Queue>);

impl Write for ToPlain {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Events as the journal's entries (systemd's "native protocol"): fields get the prefix `F_`.
struct ToJournal(Arc<Queue>);

impl<S: Subscriber> Layer<S> for ToJournal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let about = event.metadata();
        let mut entry = entry(*about.level());
        put(&mut entry, "TARGET", about.target());
        if let (Some(file), Some(line)) = (about.file(), about.line()) {
            put(&mut entry, "CODE_FILE", file);
            put(&mut entry, "CODE_LINE", &line.to_string());
        }
        event.record(&mut Fields(&mut entry));
        self.0.push(entry);
    }
}

fn entry(level: Level) -> Vec<u8> {
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    };
    let mut entry = Vec::new();
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", "dstd");
    entry
}

/// A field with its length before it, as any text may hold line ends.
fn put(entry: &mut Vec<u8>, name: &str, text: &str) {
    let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
    entry.extend(name.as_bytes());
    entry.push(b'\n');
    entry.extend((text.len() as u64).to_le_bytes());
    entry.extend(text);
    entry.push(b'\n');
}

struct Fields<'a>(&'a mut Vec<u8>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, text: &str) {
        match field.name() {
            "message" => put(self.0, "MESSAGE", text),
            name => put(self.0, &journal_name(name), text),
        }
    }
}

/// The journal takes capitals, digits and underscores, 64 at most.
fn journal_name(field: &str) -> String {
    let letters = field.chars().map(|c| match c.to_ascii_uppercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    });
    "F_".chars().chain(letters).take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Takes a line when the test lets it.
    struct Slow {
        go: Receiver<()>,
        taken: std::sync::mpsc::Sender<String>,
    }

    impl Sink for Slow {
        fn write(&mut self, line: &[u8]) {
            let _ = self.go.recv();
            let _ = self.taken.send(String::from_utf8_lossy(line).into_owned());
        }

        fn dropped(&mut self, count: u64) {
            let _ = self.taken.send(dropped_text(count));
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_stands_still_and_what_is_lost_is_counted() {
        let queue = Arc::new(Queue::new(10));
        let ((go, held), (taken, lines)) = (channel(), channel());
        spawn(&queue, Slow { go: held, taken }).unwrap();
        let (done, logged) = channel();
        let writer = Arc::clone(&queue);
        thread::spawn(move || {
            writer.push(b"first".to_vec());
            // The thread has it in its hands.
            while !writer.lock().lines.is_empty() {
                thread::yield_now();
            }
            for n in 0..1000 {
                write!(ToPlain(Arc::clone(&writer)), "{n}").unwrap();
            }
            done.send(()).unwrap();
        });
        logged.recv_timeout(LONG).expect("it waits for the log");
        queue.flush(Duration::from_millis(1));
        assert!(lines.try_recv().is_err(), "it was held");
        drop(go);
        queue.flush(LONG);
        let lines: Vec<_> = lines.try_iter().collect();
        let kept = (0..10).map(|n| n.to_string());
        let expected: Vec<_> = std::iter::once("first".to_owned())
            .chain(kept)
            .chain([dropped_text(990)])
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_entry_of_the_journal_has_its_fields() {
        let queue = Arc::new(Queue::new(10));
        let registry = tracing_subscriber::registry().with(ToJournal(Arc::clone(&queue)));
        tracing::subscriber::with_default(registry, || {
            tracing::warn!(node = %"a", "node.count" = 3, "two\nlines");
        });
        let entry = queue.lock().lines.pop_front().unwrap();
        let has = |name: &str, text: &str| {
            let mut field = Vec::new();
            put(&mut field, name, text);
            entry.windows(field.len()).any(|part| part == field)
        };
        assert!(has("MESSAGE", "two\nlines"));
        assert!(has("PRIORITY", "4") && has("SYSLOG_IDENTIFIER", "dstd"));
        assert!(has("F_NODE", "a") && has("F_NODE_COUNT", "3"));
    }

    #[test]
    fn the_journal_takes_entries_as_datagrams() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let queue = Arc::new(Queue::new(10));
        spawn(&queue, Journal(ours)).unwrap();
        queue.push(b"MESSAGE=x\n".to_vec());
        let mut seen = [0; 64];
        theirs.set_read_timeout(Some(LONG)).unwrap();
        let length = theirs.recv(&mut seen).unwrap();
        assert_eq!(&seen[..length], b"MESSAGE=x\n");
    }
}
