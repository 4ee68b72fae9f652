//! One connection after the handshake: takes the requests that are there, does them, and answers, rightly or not.
//!
//! A link that ends by a lie does nothing more after it: what it took is done or dropped before the lie is said. So
//! the replay elsewhere is never overtaken, and what was acknowledged stays. Called by main, a thread a connection.

use std::io;
use std::time::Duration;

use fastrand::Rng;
use nbdpeer::{Request, proto};

use crate::handshake::shake_hands;
use crate::input::{Input, Stream};
use crate::lies::{self, Lie, fatal, reply};
use crate::store::{Answer, Store, apply};

/// Requests that are answered together.
const BATCH: usize = 32;
/// Replies that are withheld wait no longer for the next ones.
const WITHHELD: Duration = Duration::from_millis(2);
/// Cookies remembered.
const PAST: usize = 64;
const REQUEST: usize = 28;
/// No end for a client that ought to have gone at the first byte.
const GARBAGE: usize = 8 << 20;
const NOISE: usize = 64 * 1024;

struct Link<'a> {
    store: &'a Store,
    input: Input,
    random: Rng,
    past: Vec<u64>,
    withheld: Vec<u8>,
}

/// How a link went.
enum End {
    Closed,
    Reset,
}

pub fn serve(store: &Store, stream: Stream) -> io::Result<()> {
    let mut input = Input::new(stream)?;
    let number = store.connected();
    let size = store.data().len() as u64;
    if !shake_hands(&mut input, size)? {
        return Ok(());
    }
    let mut link = Link {
        store,
        input,
        random: Rng::with_seed(
            store
                .manner
                .seed
                .wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        ),
        past: Vec::new(),
        withheld: Vec::new(),
    };
    loop {
        match link.round()? {
            None => {}
            Some(End::Closed) => return Ok(()),
            Some(End::Reset) => {
                link.input.reset();
                return Ok(());
            }
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Link<'_> {
    /// The requests that are there, at least one; `None` stands for DISC or nonsense.
    fn batch(&mut self) -> io::Result<Option<Vec<Request>>> {
        if !self.withheld.is_empty() && !self.input.has(REQUEST, WITHHELD)? {
            let bytes = std::mem::take(&mut self.withheld);
            self.input.send(&bytes)?;
        }
        let mut requests = Vec::new();
        loop {
            if let Some(request) = self.request()? {
                requests.push(request);
            } else {
                return Ok(None);
            }
            if requests.len() == BATCH || self.input.peek(REQUEST).len() < REQUEST {
                return Ok(Some(requests));
            }
        }
    }

    fn request(&mut self) -> io::Result<Option<Request>> {
        let head = self.input.take(REQUEST)?;
        let mut request = Request {
            flags: number(&head[4..6]) as u16,
            kind: number(&head[6..8]) as u16,
            cookie: number(&head[8..16]),
            offset: number(&head[16..24]),
            length: number(&head[24..]),
            payload: Vec::new(),
        };
        let magic = number(&head[..4]) as u32;
        let size = self.store.data().len() as u64;
        if magic != proto::REQUEST_MAGIC || request.kind == proto::DISC || request.length > size {
            return Ok(None);
        }
        if request.kind == proto::WRITE {
            request.payload = self.payload(&request)?;
        }
        Ok(Some(request))
    }

    /// A write's payload. EARLY answers before it is there, and lets nobody see the difference.
    fn payload(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let early = self.store.manner.among.contains(&Lie::Early)
            && self.random.u8(..8) == 0
            && self.store.roll(&mut self.random) == Some(false);
        let length = request.length as usize;
        let end = request.offset.saturating_add(request.length);
        if !early || end > self.store.data().len() as u64 {
            return self.input.take(length);
        }
        let mut data = self.store.data();
        self.input
            .send(&reply(proto::SIMPLE_MAGIC, 0, request.cookie, b""))?;
        let payload = self.input.take(length)?;
        data[request.offset as usize..][..length].copy_from_slice(&payload);
        drop(data);
        self.remember(request.cookie);
        self.store.told(Some(Lie::Early));
        // Answered: for the rest of the round it is no request.
        Ok(Vec::new())
    }

    fn remember(&mut self, cookie: u64) {
        self.past.push(cookie);
        if self.past.len() > PAST {
            self.past.remove(0);
        }
    }

    fn round(&mut self) -> io::Result<Option<End>> {
        let Some(mut requests) = self.batch()? else {
            return Ok(Some(End::Closed));
        };
        requests.retain(|r| r.kind != proto::WRITE || !r.payload.is_empty());
        let reversed = requests.len() > 1 && self.reverses();
        if reversed {
            requests.reverse();
        }
        let mut out = std::mem::take(&mut self.withheld);
        let mut rest = requests.into_iter();
        while let Some(request) = rest.next() {
            match self
                .store
                .roll(&mut self.random)
                .map(|fatal| self.choose(fatal, request.kind))
            {
                Some(Some(lie)) if lie.is_fatal() => {
                    self.input.send(&out)?;
                    return self.last_words(lie, &request, rest.as_slice()).map(Some);
                }
                Some(Some(lie)) => {
                    self.lie(lie, &request, &mut out)?;
                    // What is withheld isn't answered yet.
                    if lie == Lie::Late {
                        continue;
                    }
                }
                _ => {
                    self.store.told(reversed.then_some(Lie::Order));
                    let bytes = self.right(&request);
                    out.extend(bytes);
                }
            }
            self.remember(request.cookie);
        }
        self.input.send(&out)?;
        Ok(None)
    }

    /// Whether this round is answered from its end.
    fn reverses(&mut self) -> bool {
        self.store.manner.among.contains(&Lie::Order)
            && self.random.u8(..4) == 0
            && self.store.roll(&mut self.random) == Some(false)
    }

    /// ORDER is told of rounds.
    fn choose(&mut self, fatal: bool, command: u16) -> Option<Lie> {
        let among = &self.store.manner.among;
        let chosen = Lie::choose(
            among,
            fatal,
            command,
            !self.past.is_empty(),
            &mut self.random,
        );
        chosen.filter(|lie| *lie != Lie::Order)
    }

    fn do_it(&self, request: &Request) -> Answer {
        apply(&mut self.store.data(), request)
    }

    fn right(&self, request: &Request) -> Vec<u8> {
        match self.do_it(request) {
            Ok(data) => reply(proto::SIMPLE_MAGIC, 0, request.cookie, &data),
            Err(error) => reply(proto::SIMPLE_MAGIC, error, request.cookie, b""),
        }
    }

    /// One after which the link goes on. `out`: what is to be sent at the end of the round.
    fn lie(&mut self, lie: Lie, request: &Request, out: &mut Vec<u8>) -> io::Result<()> {
        self.store.told(Some(lie));
        match lie {
            Lie::Error => {
                if self.random.bool() {
                    let _ = self.do_it(request);
                }
                let error = lies::error(&mut self.random);
                out.extend(reply(proto::SIMPLE_MAGIC, error, request.cookie, b""));
            }
            Lie::Crumbs => {
                self.input.send(out)?;
                out.clear();
                let bytes = self.right(request);
                // A payload byte by byte takes too long to be worth it.
                let (crumbs, rest) = bytes.split_at(bytes.len().min(24));
                crumbs
                    .chunks(1)
                    .try_for_each(|crumb| self.input.send(crumb))?;
                self.input.send(rest)?;
            }
            _ => {
                let bytes = self.right(request);
                self.withheld.extend(bytes);
            }
        }
        Ok(())
    }

    /// One after which it doesn't. `rest`: what else was asked; some of it is done, and nobody is told.
    fn last_words(&mut self, lie: Lie, request: &Request, rest: &[Request]) -> io::Result<End> {
        self.store.told(Some(lie));
        // Some of these acknowledge it before they lie.
        let done = request.kind == proto::READ || lie.acknowledges() || self.random.bool();
        let payload = match done {
            true => self.do_it(request).unwrap_or_default(),
            false => Vec::new(),
        };
        for request in rest.iter().filter(|request| request.kind != proto::READ) {
            if self.random.bool() {
                let _ = self.do_it(request);
            }
        }
        let bytes = fatal(lie, request.cookie, &payload, &self.past, &mut self.random);
        self.input.send(&bytes)?;
        match lie {
            Lie::Garbage => self.garbage()?,
            Lie::Urgent => {
                self.input.send_urgent(0)?;
                self.input.send(&[0])?;
            }
            Lie::Reset => return Ok(End::Reset),
            _ if self.random.u8(..4) == 0 => return Ok(End::Reset),
            _ => {}
        }
        Ok(End::Closed)
    }

    fn garbage(&mut self) -> io::Result<()> {
        let mut noise = vec![0; NOISE];
        self.random.fill(&mut noise);
        (0..GARBAGE / NOISE).try_for_each(|_| self.input.send(&noise))
    }
}
