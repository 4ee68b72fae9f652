//! What to do, and when: rules in words, as the control socket takes them.
//!
//!   arm request|reply [COMMAND] [at FIRST LAST] [nth N] [conn N] [when before|header|payload|after [BYTE]] do ACTION…
//!   ACTION: rst|fin|half [client|server|both] | stall|hole [up|down|both] | hold | twice | garble | dup; `and` joins them
//!
//! Pure; called by control (words) and the pumps (matching). Never acts.

use anyhow::{Context, Result, bail, ensure};
use nbdpeer::proto;

use crate::framing::{Direction, Message, What};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A reset (on a Unix socket a close).
    Rst,
    /// Nothing more is sent to that side, and what it sends is thrown away.
    Fin,
    /// Nothing more is sent to that side; what it sends goes on.
    Half,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Cut(Cut, Side),
    /// Reads no more: until `heal`.
    Stall(Direction),
    /// Reads on and throws it away, for ever.
    Hole(Direction),
    /// Keeps the message back until `release`.
    Hold,
    /// Sends the message twice.
    Twice,
    /// Inverts the byte, or sends it twice.
    Garble,
    Dup,
}

/// At which byte of a message. Without a number: the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    Header(Option<u64>),
    Payload(Option<u64>),
    After,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub id: u64,
    what: What,
    command: Option<u16>,
    range: Option<(u64, u64)>,
    conn: Option<u64>,
    when: When,
    /// Matches still to let pass, and this one.
    nth: u64,
    pub actions: Vec<Action>,
}

const COMMANDS: [(&str, u16); 6] = [
    ("read", proto::READ),
    ("write", proto::WRITE),
    ("disc", proto::DISC),
    ("flush", proto::FLUSH),
    ("trim", proto::TRIM),
    ("zero", proto::WRITE_ZEROES),
];

pub fn command_name(command: u16) -> &'static str {
    let known = COMMANDS.iter().find(|(_, number)| *number == command);
    known.map_or("other", |(name, _)| name)
}

pub struct Words<'a>(pub std::iter::Peekable<std::str::SplitWhitespace<'a>>);

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        Self(line.split_whitespace().peekable())
    }

    pub fn word(&mut self, what: &str) -> Result<&'a str> {
        self.0.next().with_context(|| format!("{what} is missing"))
    }

    pub fn number(&mut self, what: &str) -> Result<u64> {
        let word = self.word(what)?;
        word.parse()
            .with_context(|| format!("{what}: `{word}` is no number"))
    }

    /// The next word, if `known` knows it.
    fn maybe<T>(&mut self, known: impl Fn(&str) -> Option<T>) -> Option<T> {
        let found = known(self.0.peek()?)?;
        self.0.next();
        Some(found)
    }

    pub fn maybe_number(&mut self) -> Option<u64> {
        self.maybe(|word| word.parse().ok())
    }

    pub fn end(&mut self) -> Result<()> {
        match self.0.next() {
            None => Ok(()),
            Some(word) => bail!("`{word}` is too much"),
        }
    }
}

impl Rule {
    /// What follows `arm`.
    pub fn parse(id: u64, words: &mut Words) -> Result<Self> {
        let mut rule = Rule {
            id,
            what: match words.word("request or reply")? {
                "request" => What::Request,
                "reply" => What::Reply,
                other => bail!("`{other}` is neither request nor reply"),
            },
            command: None,
            range: None,
            conn: None,
            when: When::Before,
            nth: 1,
            actions: Vec::new(),
        };
        loop {
            match words.word("do ACTION")? {
                "at" => rule.range = Some((words.number("FIRST")?, words.number("LAST")?)),
                "nth" => rule.nth = words.number("N")?.max(1),
                "conn" => rule.conn = Some(words.number("N")?),
                "when" => rule.when = parse_when(words)?,
                "do" => break,
                word => {
                    let known = COMMANDS.iter().find(|(name, _)| *name == word);
                    rule.command = Some(known.with_context(|| format!("what is `{word}`?"))?.1);
                }
            }
        }
        rule.actions = parse_actions(words)?;
        Ok(rule)
    }

    /// Whether it is this message's turn; counts those that pass.
    pub fn fires(&mut self, conn: u64, message: &Message) -> bool {
        let (first, last) = (message.offset, message.offset + message.length.max(1) - 1);
        let fits = self.what == message.what
            && self.conn.is_none_or(|only| only == conn)
            && self.command.is_none_or(|only| only == message.command)
            && self
                .range
                .is_none_or(|(from, to)| from <= last && first <= to);
        self.nth -= u64::from(fits);
        fits && self.nth == 0
    }

    pub fn wait_for_next(&mut self) {
        self.nth = 1;
    }

    /// Bytes of the message that pass before the actions.
    pub fn byte(&self, message: &Message) -> u64 {
        let (head, payload) = (message.head as u64, message.payload);
        match self.when {
            When::Before => 0,
            When::Header(byte) => byte.unwrap_or(head / 2).min(head),
            When::Payload(byte) => head + byte.unwrap_or(payload / 2).min(payload),
            When::After => head + payload,
        }
    }

    /// The whole message has to be there first.
    pub fn needs_all(&self) -> bool {
        self.actions
            .iter()
            .any(|action| matches!(action, Action::Hold | Action::Twice))
    }
}

fn parse_when(words: &mut Words) -> Result<When> {
    Ok(match words.word("before, header, payload or after")? {
        "before" => When::Before,
        "header" => When::Header(words.maybe_number()),
        "payload" => When::Payload(words.maybe_number()),
        "after" => When::After,
        other => bail!("`{other}` is no place in a message"),
    })
}

/// To the end of the line.
pub fn parse_actions(words: &mut Words) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    loop {
        match words.word("an action")? {
            "rst" => cut(Cut::Rst, words, &mut actions),
            "fin" => cut(Cut::Fin, words, &mut actions),
            "half" => cut(Cut::Half, words, &mut actions),
            "stall" => actions.extend(directions(words).iter().map(|d| Action::Stall(*d))),
            "hole" => actions.extend(directions(words).iter().map(|d| Action::Hole(*d))),
            "hold" => actions.push(Action::Hold),
            "twice" => actions.push(Action::Twice),
            "garble" => actions.push(Action::Garble),
            "dup" => actions.push(Action::Dup),
            other => bail!("`{other}` is no action"),
        }
        if words.maybe(|word| (word == "and").then_some(())).is_none() {
            break;
        }
    }
    words.end()?;
    let message = |a: &&Action| !matches!(a, Action::Cut(..) | Action::Stall(_) | Action::Hole(_));
    ensure!(
        actions.iter().filter(message).count() <= 1,
        "one of hold, twice, garble, dup at a time"
    );
    Ok(actions)
}

fn cut(how: Cut, words: &mut Words, actions: &mut Vec<Action>) {
    let sides = words.maybe(|word| match word {
        "client" => Some(vec![Side::Client]),
        "server" => Some(vec![Side::Server]),
        "both" => Some(vec![Side::Client, Side::Server]),
        _ => None,
    });
    let sides = sides.unwrap_or_else(|| vec![Side::Client, Side::Server]);
    actions.extend(sides.into_iter().map(|side| Action::Cut(how, side)));
}

/// Both, if none is named.
pub fn directions(words: &mut Words) -> Vec<Direction> {
    let both = vec![Direction::Up, Direction::Down];
    let named = words.maybe(|word| match word {
        "up" => Some(vec![Direction::Up]),
        "down" => Some(vec![Direction::Down]),
        "both" => Some(vec![Direction::Up, Direction::Down]),
        _ => None,
    });
    named.unwrap_or(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: &str) -> Result<Rule> {
        Rule::parse(1, &mut Words::new(line))
    }

    fn write(offset: u64, length: u64) -> Message {
        Message {
            what: What::Request,
            command: proto::WRITE,
            cookie: 1,
            offset,
            length,
            error: 0,
            head: 28,
            payload: length,
        }
    }

    #[test]
    fn a_rule_fires_at_its_message_only() -> Result<()> {
        let mut third = rule("request write at 4096 8191 nth 3 conn 2 do rst")?;
        let messages = [
            (2, write(0, 4096)),
            (2, write(0, 4097)),
            (2, write(8192, 512)),
            (1, write(4096, 512)),
            (
                2,
                Message {
                    command: proto::READ,
                    ..write(4096, 512)
                },
            ),
            (
                2,
                Message {
                    what: What::Reply,
                    ..write(4096, 512)
                },
            ),
            (2, write(8191, 1)),
            (2, write(5000, 1)),
        ];
        let fired: Vec<bool> = messages
            .iter()
            .map(|(conn, message)| third.fires(*conn, message))
            .collect();
        assert_eq!(
            fired,
            [false, false, false, false, false, false, false, true]
        );
        Ok(())
    }

    #[test]
    fn places_are_bytes_of_the_message() -> Result<()> {
        let byte = |when: &str| -> Result<u64> {
            Ok(rule(&format!("request when {when} do rst"))?.byte(&write(0, 1000)))
        };
        let places = [
            "before",
            "header",
            "header 3",
            "header 99",
            "payload",
            "payload 1",
            "payload 9999",
            "after",
        ];
        let bytes: Result<Vec<u64>> = places.iter().map(|when| byte(when)).collect();
        assert_eq!(bytes?, [0, 14, 3, 28, 528, 29, 1028, 1028]);
        Ok(())
    }

    #[test]
    fn actions_are_joined() -> Result<()> {
        use Action::{Cut as C, Hold, Stall};
        assert_eq!(
            rule("request do hold and rst client and stall down")?.actions,
            [Hold, C(Cut::Rst, Side::Client), Stall(Direction::Down)]
        );
        assert_eq!(
            rule("reply do fin")?.actions,
            [C(Cut::Fin, Side::Client), C(Cut::Fin, Side::Server)]
        );
        Ok(())
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (line, text) in [
            ("", "request or reply is missing"),
            ("question do rst", "`question` is neither"),
            ("request", "do ACTION is missing"),
            ("request writ do rst", "what is `writ`?"),
            ("request nth x do rst", "`x` is no number"),
            ("request when later do rst", "`later` is no place"),
            ("request do rest", "`rest` is no action"),
            ("request do rst left", "`left` is too much"),
            ("request do hold and garble", "at a time"),
        ] {
            let error = rule(line).expect_err(line);
            assert!(format!("{error:#}").contains(text), "{line}: {error:#}");
        }
    }
}
