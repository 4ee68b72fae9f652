//! One direction of a connection: reads messages, lets the rules look at each, and passes its bytes up to the one at
//! which something is to happen. Called by conn, which acts. Cancel-safe: a step that is dropped has lost nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use crate::framing::{Dialogue, Direction, Message, What};
use crate::lock;
use crate::rules::{Action, Rule};
use crate::shared::Shared;
use crate::sock::Sock;

const CHUNK: u64 = 64 * 1024;

/// What both pumps of a connection share.
pub struct Talk {
    pub conn: u64,
    pub shared: Arc<Shared>,
    pub dialogue: Mutex<Dialogue>,
    /// Rules by the cookie of the request that they held and let go.
    pub released: Mutex<HashMap<u64, u64>>,
}

/// What conn has to act on.
pub enum Event {
    Sprung(Sprung),
    End,
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

/// A rule has fired at this message; `whole` if it needs all of it, which then wasn't passed on.
pub struct Sprung {
    pub rule: Rule,
    pub message: Message,
    pub whole: Vec<u8>,
}

pub struct Pump {
    direction: Direction,
    /// The begin of a head.
    head: Vec<u8>,
    /// Read, and not yet written from `at` on.
    out: Vec<u8>,
    at: usize,
    /// Of the current message: bytes to be read, and bytes that are through.
    left: u64,
    passed: u64,
    trap: Option<(u64, Sprung)>,
    collecting: bool,
    raw: bool,
    muted: bool,
    /// The other side has a part of a message and waits for the rest, which won't come.
    pub torn: bool,
    spoil: Option<Action>,
    /// To be sent between two messages.
    pub inject: VecDeque<Vec<u8>>,
    pub stalled: bool,
    pub hole: bool,
    pub ended: bool,
}

impl Pump {
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            head: Vec::new(),
            out: Vec::new(),
            at: 0,
            left: 0,
            passed: 0,
            trap: None,
            collecting: false,
            raw: false,
            muted: false,
            torn: false,
            spoil: None,
            inject: VecDeque::new(),
            stalled: false,
            hole: false,
            ended: false,
        }
    }

    /// Its source is cut: what it read and hasn't passed on is lost with it, and what comes is thrown away.
    pub fn cut_off(&mut self) {
        let amid = !self.collecting && (self.left > 0 || self.at < self.out.len());
        self.torn |= amid && self.passed > 0;
        self.muted = true;
        self.collecting = false;
        self.left = 0;
        self.trap = None;
        self.pass(Vec::new());
    }

    pub fn spoil(&mut self, how: Action) {
        self.spoil = Some(how);
    }

    pub fn send_twice(&mut self, whole: &[u8]) {
        self.out = [whole, whole].concat();
        self.passed = 0;
    }

    /// Until something happens that conn must know. Nobody at `to`: what comes is thrown away.
    pub async fn step(&mut self, from: Option<&Sock>, to: Option<&Sock>, talk: &Talk) -> Event {
        loop {
            if self.stalled {
                std::future::pending::<()>().await;
            }
            if let Some((_, sprung)) = self.trap.take_if(|(byte, _)| *byte == self.passed) {
                return Event::Sprung(sprung);
            }
            let event = if self.at < self.out.len() {
                self.write(to).await
            } else if self.left == 0
                && let Some(bytes) = self.inject.pop_front()
            {
                self.pass(bytes);
                self.passed = 0;
                None
            } else if self.muted {
                self.read(from, CHUNK).await.err()
            } else if self.left > 0 {
                self.read_payload(from).await
            } else {
                self.read_head(from, talk).await
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn pass(&mut self, bytes: Vec<u8>) {
        self.out = bytes;
        self.at = 0;
    }

    async fn write(&mut self, to: Option<&Sock>) -> Option<Event> {
        match self.spoil.take() {
            Some(Action::Garble) => self.out[self.at] ^= 0xff,
            Some(_) => self.out.insert(self.at, self.out[self.at]),
            None => {}
        }
        let mut end = self.out.len();
        if let Some((byte, _)) = &self.trap {
            end = end.min(self.at + (byte - self.passed) as usize);
        }
        let put = match to.filter(|_| !self.hole) {
            Some(sock) => sock.write(&self.out[self.at..end]).await,
            None => Ok(end - self.at),
        };
        match put {
            Err(error) => return Some(Event::WriteFailed(error)),
            Ok(put) => {
                self.at += put;
                self.passed += put as u64;
            }
        }
        if self.at == self.out.len() {
            self.pass(Vec::new());
        }
        None
    }

    /// At most `most` bytes; an event if there are none.
    async fn read(&mut self, from: Option<&Sock>, most: u64) -> Result<Vec<u8>, Event> {
        let Some(sock) = from.filter(|_| !self.ended) else {
            return std::future::pending().await;
        };
        let mut bytes = vec![0; most as usize];
        match sock.read(&mut bytes).await {
            Ok(0) => Err(Event::End),
            Ok(got) => {
                bytes.truncate(got);
                Ok(bytes)
            }
            Err(error) => Err(Event::ReadFailed(error)),
        }
    }

    async fn read_payload(&mut self, from: Option<&Sock>) -> Option<Event> {
        let bytes = match self.read(from, self.left.min(CHUNK)).await {
            Ok(bytes) => bytes,
            Err(event) => return Some(event),
        };
        self.left -= bytes.len() as u64;
        if !self.collecting {
            self.pass(bytes);
            return None;
        }
        if let Some((_, sprung)) = &mut self.trap {
            sprung.whole.extend(bytes);
        }
        self.collected()
    }

    fn collected(&mut self) -> Option<Event> {
        if self.left > 0 {
            return None;
        }
        self.collecting = false;
        self.trap.take().map(|(_, sprung)| Event::Sprung(sprung))
    }

    async fn read_head(&mut self, from: Option<&Sock>, talk: &Talk) -> Option<Event> {
        let need = match self.raw {
            true => None,
            false => lock(&talk.dialogue).need(self.direction, &self.head),
        };
        let Some(need) = need else {
            self.raw = true;
            return self.read_raw(from).await;
        };
        if self.head.len() < need {
            let most = (need - self.head.len()) as u64;
            return match self.read(from, most).await {
                Ok(bytes) => {
                    self.head.extend(bytes);
                    None
                }
                // The other side gets the half head, too.
                Err(event) if self.head.is_empty() => Some(event),
                Err(_) => {
                    let bytes = std::mem::take(&mut self.head);
                    self.raw = true;
                    self.torn = true;
                    self.pass(bytes);
                    None
                }
            };
        }
        let message = lock(&talk.dialogue).interpret(self.direction, &self.head);
        self.begin(message, talk)
    }

    async fn read_raw(&mut self, from: Option<&Sock>) -> Option<Event> {
        if !self.head.is_empty() {
            let bytes = std::mem::take(&mut self.head);
            self.pass(bytes);
            return None;
        }
        match self.read(from, CHUNK).await {
            Ok(bytes) => self.pass(bytes),
            Err(event) => return Some(event),
        }
        None
    }

    fn begin(&mut self, message: Message, talk: &Talk) -> Option<Event> {
        let head = std::mem::take(&mut self.head);
        self.passed = 0;
        self.left = message.payload;
        if message.what == What::Reply
            && let Some(rule) = lock(&talk.released).remove(&message.cookie)
        {
            talk.shared.answered(rule, message.error);
        }
        let Some(rule) = talk.shared.look(talk.conn, &message) else {
            self.pass(head);
            return None;
        };
        self.collecting = rule.needs_all();
        let byte = if self.collecting {
            u64::MAX
        } else {
            rule.byte(&message)
        };
        let mut sprung = Sprung {
            rule,
            message,
            whole: Vec::new(),
        };
        match self.collecting {
            true => sprung.whole = head,
            false => self.pass(head),
        }
        self.trap = Some((byte, sprung));
        match self.collecting {
            true => self.collected(),
            false => None,
        }
    }
}
