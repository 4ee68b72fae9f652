//! What the connections and the control socket share: armed rules, what became of them, and the connections there are.
//! Tells events, a line each. Called by both; owns no socket.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::conn::{Deed, Order};
use crate::framing::{Message, What};
use crate::lock;
use crate::rules::{Rule, command_name};
use crate::sock::Address;

/// What becomes of clients that connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accept {
    #[default]
    Yes,
    /// They are reset.
    No,
    /// They hear nothing.
    Stall,
}

/// What became of a rule. Stages come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Armed,
    Fired,
    Released,
    Answered,
}

#[derive(Debug)]
struct Fate {
    stage: Stage,
    conn: u64,
    text: String,
}

#[derive(Debug)]
struct Peer {
    orders: mpsc::UnboundedSender<Order>,
    requests: u64,
    replies: u64,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    fates: BTreeMap<u64, Fate>,
    conns: BTreeMap<u64, Peer>,
    last_conn: u64,
    accept: Accept,
}

#[derive(Debug)]
pub struct Shared {
    to: Address,
    events: fn(&str),
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    pub fn new(to: Address, events: fn(&str)) -> Self {
        Self {
            to,
            events,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub fn server(&self) -> &Address {
        &self.to
    }

    pub fn say(&self, line: &str) {
        (self.events)(line);
    }

    pub fn accept(&self) -> Accept {
        lock(&self.state).accept
    }

    pub fn set_accept(&self, accept: Accept) {
        lock(&self.state).accept = accept;
    }

    pub fn opened(&self) -> (u64, mpsc::UnboundedReceiver<Order>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let mut state = lock(&self.state);
        state.last_conn += 1;
        let id = state.last_conn;
        let peer = Peer {
            orders,
            requests: 0,
            replies: 0,
        };
        state.conns.insert(id, peer);
        self.say(&format!("conn {id} up"));
        (id, receiver)
    }

    pub fn closed(&self, conn: u64) {
        lock(&self.state).conns.remove(&conn);
        self.say(&format!("conn {conn} closed"));
        self.changed.notify_waiters();
    }

    /// Counts a message; the rule that fires at it is disarmed.
    pub fn look(&self, conn: u64, message: &Message) -> Option<Rule> {
        let mut state = lock(&self.state);
        if let Some(peer) = state.conns.get_mut(&conn) {
            peer.requests += u64::from(message.what == What::Request);
            peer.replies += u64::from(message.what == What::Reply);
        }
        // Every rule counts the message; of several whose turn it is the others take the next.
        let mut turn = None;
        for (at, rule) in state.rules.iter_mut().enumerate() {
            if rule.fires(conn, message) && turn.replace(turn.unwrap_or(at)).is_some() {
                rule.wait_for_next();
            }
        }
        let at = turn?;
        Some(state.rules.remove(at))
    }

    pub fn arm(&self, make: impl FnOnce(u64) -> Result<Rule>) -> Result<u64> {
        let mut state = lock(&self.state);
        let id = state.fates.last_key_value().map_or(1, |(id, _)| id + 1);
        let rule = make(id)?;
        state.rules.push(rule);
        let fate = Fate {
            stage: Stage::Armed,
            conn: 0,
            text: String::new(),
        };
        state.fates.insert(id, fate);
        Ok(id)
    }

    pub fn disarm(&self, id: Option<u64>) {
        lock(&self.state)
            .rules
            .retain(|rule| id.is_some_and(|only| only != rule.id));
    }

    fn reached(&self, id: u64, stage: Stage, conn: Option<u64>, text: &str) {
        if let Some(fate) = lock(&self.state).fates.get_mut(&id) {
            fate.stage = stage;
            fate.conn = conn.unwrap_or(fate.conn);
            text.clone_into(&mut fate.text);
        }
        self.say(&format!("{stage:?} {id} {text}").to_lowercase());
        self.changed.notify_waiters();
    }

    pub fn fired(&self, rule: &Rule, conn: u64, message: &Message) {
        let what = match message.what {
            What::Reply => "reply",
            _ => "request",
        };
        let text = format!(
            "conn {conn} {what} {} {} {}",
            command_name(message.command),
            message.offset,
            message.length
        );
        self.reached(rule.id, Stage::Fired, Some(conn), &text);
    }

    pub fn released(&self, id: u64) {
        self.reached(id, Stage::Released, None, "");
    }

    pub fn answered(&self, id: u64, error: u32) {
        self.reached(id, Stage::Answered, None, &error.to_string());
    }

    /// Until the rule has come so far. What there is to say of it.
    pub async fn wait(&self, id: u64, stage: Stage) -> Result<String> {
        loop {
            // Before looking: what changes then isn't missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = lock(&self.state);
                let fate = state.fates.get(&id).context("there is no such rule")?;
                if fate.stage >= stage {
                    return Ok(fate.text.clone());
                }
            }
            changed.await;
        }
    }

    pub fn list(&self) -> String {
        let state = lock(&self.state);
        let conns = state.conns.iter();
        let texts: Vec<String> = conns
            .map(|(id, peer)| {
                format!(
                    "conn {id} requests {} replies {}",
                    peer.requests, peer.replies
                )
            })
            .collect();
        texts.join("; ")
    }

    /// To one connection or all; the number that obeyed.
    pub async fn order(&self, conn: Option<u64>, deed: impl Fn() -> Deed) -> Result<usize> {
        let mut waiting = Vec::new();
        {
            let state = lock(&self.state);
            let chosen = state
                .conns
                .iter()
                .filter(|(id, _)| conn.is_none_or(|only| only == **id));
            for (_, peer) in chosen {
                let (done, told) = oneshot::channel();
                let order = Order { deed: deed(), done };
                if peer.orders.send(order).is_ok() {
                    waiting.push(told);
                }
            }
        }
        if let Some(only) = conn.filter(|_| waiting.is_empty()) {
            anyhow::bail!("there is no connection {only}");
        }
        let count = waiting.len();
        for told in waiting {
            // One that ends meanwhile needs no more orders.
            told.await.unwrap_or(Ok(()))?;
        }
        Ok(count)
    }

    /// The connection that holds what the rule held back.
    pub fn holder(&self, id: u64) -> Result<u64> {
        let state = lock(&self.state);
        let fate = state.fates.get(&id).context("there is no such rule")?;
        anyhow::ensure!(
            fate.stage == Stage::Fired,
            "rule {id} holds nothing: {:?}",
            fate.stage
        );
        Ok(fate.conn)
    }
}
