//! Makes the traffic: threads that write numbered sectors to a small hot set, read them, zero and flush, and enter all
//! of it into the ledger. Called by main (a device) and the tests (a simulation). Never judges what it reads.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use nix::time::{ClockId, clock_gettime};

use crate::ledger::{Extent, Layout, Ledger};
use crate::medium::Medium;
use crate::register::{Kind, OpId, Time};
use crate::sector::{self, SECTOR};

/// Tries to find a range that nobody writes, before it reads instead.
const TRIES: usize = 8;
/// Between two tries of the final pass.
const AGAIN: Duration = Duration::from_millis(20);
/// Sectors of one read of the final pass.
const FINAL_READ: u64 = 64;

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub threads: usize,
    /// The longest operation, and the unit of offsets and lengths, in sectors.
    pub longest: u64,
    pub block: u64,
    /// Of a hundred operations.
    pub zeroings: u8,
    pub flushes: u8,
    /// Let writes that overlap be under way at the same time.
    pub contend: bool,
    /// Stop after so many operations.
    pub ops: u64,
    /// A device that fails at once must not be asked for nothing else.
    pub after_error: Duration,
}

/// CLOCK_MONOTONIC, which does not differ between processes.
pub fn now() -> Time {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}

/// What all threads share.
pub struct Load<'a> {
    pub plan: Plan,
    pub layout: Layout,
    pub stop: AtomicBool,
    medium: &'a dyn Medium,
    ledger: Mutex<Ledger>,
    /// Ranges being written.
    writing: Mutex<Vec<Extent>>,
    done: AtomicU64,
}

/// O_DIRECT wants aligned memory.
const ALIGN: usize = 4096;

struct Buffer {
    bytes: Vec<u8>,
    first: usize,
}

impl Buffer {
    fn new(sectors: u64) -> Self {
        let bytes = vec![0; sectors as usize * SECTOR + ALIGN];
        let first = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, first }
    }

    fn of(&mut self, extent: Extent) -> &mut [u8] {
        &mut self.bytes[self.first..][..extent.length as usize * SECTOR]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Load<'a> {
    pub fn new(plan: Plan, layout: Layout, medium: &'a dyn Medium) -> Self {
        Self {
            plan,
            layout,
            medium,
            stop: AtomicBool::new(false),
            ledger: Mutex::new(Ledger::new(layout)),
            writing: Mutex::new(Vec::new()),
            done: AtomicU64::new(0),
        }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Every hot sector gets its first value.
    pub fn fill(&self) -> io::Result<()> {
        let mut worker = Worker::new(self, 0);
        self.pieces().try_for_each(|extent| worker.write(extent))
    }

    /// Until `stop`, the number of operations, or a violation.
    pub fn work(&self, number: u64) {
        let mut worker = Worker::new(self, number + 1);
        while !self.is_over() {
            if worker.step().is_err() {
                std::thread::sleep(self.plan.after_error);
            }
        }
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.done.load(Ordering::Relaxed) >= self.plan.ops
            || self.ledger().failed()
    }

    /// Reads everything, when nothing else is under way any more, and judges all. An error: what was not readable.
    pub fn finish(&self, patience: Duration) -> io::Result<()> {
        let mut worker = Worker::new(self, 0);
        let deadline = now() + patience.as_nanos() as u64;
        for extent in self.pieces() {
            while let Err(error) = worker.read(extent) {
                if now() > deadline {
                    return Err(error);
                }
                std::thread::sleep(AGAIN);
            }
        }
        let mut ledger = self.ledger();
        let now = now();
        ledger.settle(now);
        Ok(())
    }

    fn pieces(&self) -> impl Iterator<Item = Extent> {
        let length = self.layout.length;
        (0..self.layout.regions).flat_map(move |region| {
            (0..length)
                .step_by(FINAL_READ as usize)
                .map(move |at| Extent {
                    place: region * length + at,
                    length: FINAL_READ.min(length - at),
                })
        })
    }

    /// False: somebody writes there.
    fn claim(&self, extent: Extent) -> bool {
        if self.plan.contend {
            return true;
        }
        let mut writing = lock(&self.writing);
        let free = !writing.iter().any(|other| other.overlaps(&extent));
        if free {
            writing.push(extent);
        }
        free
    }

    fn release(&self, extent: Extent) {
        lock(&self.writing).retain(|other| *other != extent);
    }

    fn offset(&self, extent: Extent) -> u64 {
        self.layout.sector(extent.place) * SECTOR as u64
    }

    fn begin(&self, kind: Kind, extent: Extent) -> OpId {
        let mut ledger = self.ledger();
        let now = now();
        ledger.begin(kind, extent, now)
    }
}

struct Worker<'a> {
    load: &'a Load<'a>,
    random: Rng,
    buffer: Buffer,
}

impl<'a> Worker<'a> {
    fn new(load: &'a Load<'a>, number: u64) -> Self {
        Self {
            load,
            random: Rng::with_seed(load.plan.seed.wrapping_add(number << 32)),
            buffer: Buffer::new(load.plan.longest.max(FINAL_READ)),
        }
    }

    /// One operation; an error is the device's.
    fn step(&mut self) -> io::Result<()> {
        self.load.done.fetch_add(1, Ordering::Relaxed);
        let (zeroings, flushes) = (self.load.plan.zeroings, self.load.plan.flushes);
        match self.random.u8(..100) {
            n if n < flushes => self.flush(),
            n if n < flushes + zeroings => match self.free_extent() {
                Some(extent) => self.zero(extent),
                None => self.read_somewhere(),
            },
            n if n < 55 => match self.free_extent() {
                Some(extent) => self.write(extent),
                None => self.read_somewhere(),
            },
            _ => self.read_somewhere(),
        }
    }

    fn read_somewhere(&mut self) -> io::Result<()> {
        let extent = self.extent();
        self.read(extent)
    }

    /// Short ones are more frequent than long ones.
    fn extent(&mut self) -> Extent {
        let (plan, layout) = (&self.load.plan, self.load.layout);
        let most = plan.longest.min(layout.length) / plan.block;
        let blocks = self.random.u64(1..=most);
        let blocks = self.random.u64(1..=blocks);
        let start = self.random.u64(0..=layout.length / plan.block - blocks);
        Extent {
            place: self.random.u64(..layout.regions) * layout.length + start * plan.block,
            length: blocks * plan.block,
        }
    }

    /// Claimed; the write releases it.
    fn free_extent(&mut self) -> Option<Extent> {
        let load = self.load;
        (0..TRIES)
            .map(|_| self.extent())
            .find(|extent| load.claim(*extent))
    }

    fn write(&mut self, extent: Extent) -> io::Result<()> {
        let (load, durable) = (self.load, self.random.u8(..20) == 0);
        let op = load.begin(Kind::Write, extent);
        let first = load.layout.sector(extent.place);
        let bytes = self.buffer.of(extent);
        for (bytes, sector) in bytes.chunks_exact_mut(SECTOR).zip(first..) {
            sector::encode(bytes, load.plan.seed, op, sector);
        }
        let result = load.medium.write(load.offset(extent), bytes, durable);
        self.wrote(op, extent, result)
    }

    fn zero(&mut self, extent: Extent) -> io::Result<()> {
        let load = self.load;
        let op = load.begin(Kind::Zero, extent);
        let result = load
            .medium
            .zero(load.offset(extent), extent.length * SECTOR as u64);
        self.wrote(op, extent, result)
    }

    fn wrote(&mut self, op: OpId, extent: Extent, result: io::Result<()>) -> io::Result<()> {
        let end = now();
        self.load.ledger().end_write(op, result.is_ok(), end);
        self.load.release(extent);
        result
    }

    fn read(&mut self, extent: Extent) -> io::Result<()> {
        let load = self.load;
        let op = load.begin(Kind::Read, extent);
        let bytes = self.buffer.of(extent);
        let result = load.medium.read(load.offset(extent), bytes);
        let end = now();
        let sectors = bytes
            .chunks_exact(SECTOR)
            .zip(load.layout.sector(extent.place)..);
        let found: Option<Vec<_>> = result.is_ok().then(|| {
            sectors
                .map(|(bytes, sector)| sector::decode(bytes, load.plan.seed, sector))
                .collect()
        });
        load.ledger().end_read(op, found.as_deref(), end);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.load.medium.flush();
        self.load.ledger().end_flush(result.is_ok());
        result
    }
}
