//! Reads that follow each other, on the wire and in the file, are done with one system call.
//!
//! Owns which of the requests received make such a run, and their replies. Called by `serve` for each read.
//! Never waits: neither for requests that may still come, nor for a disk.

use std::io::IoSliceMut;

use super::core::Core;
use super::link::{Budget, Link};
use super::reply::{self, To};
use super::request::{Command, Header, Verdict, header_len};
use super::ring::Ring;

/// Requests of one run; what they save each is small against their bytes' way beyond [`BYTES`].
const MOST: usize = 16;
const BYTES: usize = 64 << 10;

/// At least two reads, the second of where the first one ends, and so on.
struct Run {
    reads: [(To, usize); MOST],
    count: usize,
    bytes: usize,
}

impl Run {
    fn reads(&self) -> &[(To, usize)] {
        &self.reads[..self.count]
    }
}

impl Link {
    /// Answers the read at hand and those that go on where it ends. False: it has to be done by itself.
    pub fn read_run<R: Ring>(
        &mut self,
        core: &mut Core<R>,
        budget: &mut Budget,
        to: To,
        len: usize,
    ) -> bool {
        if self.singly > 0 {
            self.singly -= 1;
            return false;
        }
        let Some(run) = self.run(core, to, len) else {
            return false;
        };
        let head = reply::read_head_len(to.mode);
        let all = run.count * head + run.bytes;
        let Ok(room) = self.tx.room(&mut core.pool, all) else {
            return false;
        };
        let mut out = core.pool.bytes_mut(room);
        if !self.fill(out, &run, head) {
            // Not all of it is cached: what is, each of them finds by itself.
            self.singly = run.count - 1;
            return false;
        }
        for (to, len) in run.reads() {
            reply::read_head(&mut out[..head], *to, to.offset, *len, true);
            out = &mut out[head + len..];
        }
        self.tx.commit(all);
        self.rx.consume(run.count * header_len(to.mode));
        budget.requests += run.count - 1;
        budget.bytes += run.bytes;
        core.served += run.count - 1;
        core.gathered += run.count - 1;
        true
    }

    /// The request at hand and those behind it that belong to its run; None: it is alone.
    fn run<R: Ring>(&self, core: &Core<R>, to: To, len: usize) -> Option<Run> {
        let received = core.pool.bytes(self.rx.front(self.rx.len())?);
        let headers = received.chunks_exact(header_len(to.mode)).skip(1);
        let mut bytes = len;
        let mut behind = headers.map_while(|raw| {
            let header = Header::decode(raw, to.mode)?;
            let Verdict::Serve(next) = self.rules.judge(&header) else {
                return None;
            };
            let len = next.length as usize;
            let belongs = matches!(next.command, Command::Read { .. })
                && next.offset == to.offset + bytes as u64
                && bytes + len <= BYTES;
            belongs.then(|| {
                bytes += len;
                (self.to(&header), len)
            })
        });
        // Most reads are alone: they don't pay for the list.
        let second = behind.next()?;
        let mut run = Run {
            reads: [second; MOST],
            count: 2,
            bytes: 0,
        };
        run.reads[0] = (to, len);
        for (place, read) in run.reads[2..].iter_mut().zip(behind) {
            *place = read;
            run.count += 1;
        }
        run.bytes = bytes;
        self.has_room_for(core, bytes).then_some(run)
    }

    /// Each read's bytes behind its header's place.
    fn fill(&self, mut out: &mut [u8], run: &Run, head: usize) -> bool {
        let mut parts: [IoSliceMut<'_>; MOST] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (part, (_, len)) in parts.iter_mut().zip(run.reads()) {
            let (data, rest) = out[head..].split_at_mut(*len);
            *part = IoSliceMut::new(data);
            out = rest;
        }
        let offset = run.reads[0].0.offset;
        let read = self.backend.try_read_parts(&mut parts[..run.count], offset);
        matches!(read, Ok(Some(())))
    }
}
