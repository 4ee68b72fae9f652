//! One connection: both pumps, and what the rules and the operator do to it: cuts, stalls, holding back and letting go.
//! Started by main for each client. Owns both sockets; nobody else closes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use tokio::sync::{mpsc, oneshot};

use crate::framing::{Dialogue, Direction, Message};
use crate::lock;
use crate::pump::{Event, Pump, Sprung, Talk};
use crate::rules::{Action, Cut, Side};
use crate::shared::Shared;
use crate::sock::Sock;

/// From the control socket.
#[derive(Debug)]
pub enum Deed {
    Act(Vec<Action>),
    Heal(Vec<Direction>),
    Release(u64),
}

#[derive(Debug)]
pub struct Order {
    pub deed: Deed,
    pub done: oneshot::Sender<Result<()>>,
}

struct Conn {
    talk: Talk,
    client: Option<Sock>,
    server: Option<Sock>,
    up: Pump,
    down: Pump,
    /// Whole requests, by the rule that held them.
    held: BTreeMap<u64, (Message, Vec<u8>)>,
}

pub async fn serve(shared: Arc<Shared>, client: Sock) {
    let server = match Sock::connect(shared.server()).await {
        Ok(server) => server,
        Err(error) => {
            shared.say(&format!("no server: {error}"));
            return client.reset();
        }
    };
    let (id, mut orders) = shared.opened();
    let mut conn = Conn {
        talk: Talk {
            conn: id,
            shared: shared.clone(),
            dialogue: Mutex::new(Dialogue::default()),
            released: Mutex::default(),
        },
        client: Some(client),
        server: Some(server),
        up: Pump::new(Direction::Up),
        down: Pump::new(Direction::Down),
        held: BTreeMap::new(),
    };
    conn.run(&mut orders).await;
    shared.closed(id);
}

impl Conn {
    async fn run(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        while !(self.up.ended && self.down.ended) {
            let (client, server) = (self.client.as_ref(), self.server.as_ref());
            let (direction, event) = tokio::select! {
                event = self.up.step(client, server, &self.talk) => (Direction::Up, event),
                event = self.down.step(server, client, &self.talk) => (Direction::Down, event),
                order = orders.recv() => {
                    if let Some(order) = order {
                        let _ = order.done.send(self.obey(order.deed));
                    }
                    continue;
                }
            };
            self.handle(direction, event);
        }
    }

    fn pump(&mut self, direction: Direction) -> &mut Pump {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn say(&self, what: &str) {
        self.talk
            .shared
            .say(&format!("conn {} {what}", self.talk.conn));
    }

    fn handle(&mut self, direction: Direction, event: Event) {
        let (from, to) = match direction {
            Direction::Up => (Side::Client, Side::Server),
            Direction::Down => (Side::Server, Side::Client),
        };
        match event {
            Event::Sprung(sprung) => self.spring(direction, sprung),
            Event::End => {
                self.say(&format!("{from:?} ended"));
                self.pump(direction).ended = true;
                self.pass_on(to, Cut::Half);
            }
            Event::ReadFailed(error) => self.broken(from, to, &error),
            Event::WriteFailed(error) => self.broken(to, from, &error),
        }
    }

    fn broken(&mut self, side: Side, other: Side, error: &std::io::Error) {
        self.say(&format!("{side:?} broke: {error}"));
        self.cut(Cut::Rst, side);
        self.pass_on(other, Cut::Rst);
    }

    /// What happened at one side, told to the other. A server for which something is held back isn't told.
    fn pass_on(&mut self, side: Side, how: Cut) {
        if side == Side::Client || self.held.is_empty() {
            self.cut(how, side);
        }
    }

    fn spring(&mut self, direction: Direction, sprung: Sprung) {
        let Sprung {
            rule,
            message,
            whole,
        } = sprung;
        for action in &rule.actions {
            match action {
                Action::Hold => {
                    self.held.insert(rule.id, (message, whole.clone()));
                }
                Action::Twice => self.pump(direction).send_twice(&whole),
                Action::Garble | Action::Dup => self.pump(direction).spoil(*action),
                other => self.act(*other),
            }
        }
        // Last: who waits for it finds it done.
        self.talk.shared.fired(&rule, self.talk.conn, &message);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Cut(how, side) => self.cut(how, side),
            Action::Stall(direction) => self.pump(direction).stalled = true,
            Action::Hole(direction) => self.pump(direction).hole = true,
            Action::Hold | Action::Twice | Action::Garble | Action::Dup => {}
        }
    }

    fn cut(&mut self, how: Cut, side: Side) {
        let (socket, from) = match side {
            Side::Client => (&mut self.client, &mut self.up),
            Side::Server => (&mut self.server, &mut self.down),
        };
        if how != Cut::Half {
            from.cut_off();
        }
        if how == Cut::Rst {
            from.ended = true;
            if let Some(socket) = socket.take() {
                socket.reset();
            }
        } else if let Some(socket) = socket {
            socket.end_writing();
        }
        // Nothing more goes there, and nobody is to hear of it by a broken pipe.
        match side {
            Side::Client => self.down.hole = true,
            Side::Server => self.up.hole = true,
        }
    }

    fn obey(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Act(actions) => {
                let immediate =
                    |a: &Action| matches!(a, Action::Cut(..) | Action::Stall(_) | Action::Hole(_));
                ensure!(
                    actions.iter().all(immediate),
                    "that needs a message: arm it"
                );
                actions.into_iter().for_each(|action| self.act(action));
                Ok(())
            }
            Deed::Heal(directions) => {
                for direction in directions {
                    self.pump(direction).stalled = false;
                }
                Ok(())
            }
            Deed::Release(rule) => self.release(rule),
        }
    }

    fn release(&mut self, rule: u64) -> Result<()> {
        ensure!(
            self.server.is_some() && !self.up.hole,
            "the server's side is cut"
        );
        ensure!(
            !self.up.torn,
            "the server has a part of another message: nothing can follow it"
        );
        let (message, bytes) = self.held.remove(&rule).context("nothing is held")?;
        lock(&self.talk.released).insert(message.cookie, rule);
        self.up.inject.push_back(bytes);
        self.talk.shared.released(rule);
        Ok(())
    }
}
