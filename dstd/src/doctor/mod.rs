//! What is wrong with a machine or its nodes, and what to do about it.
//! Called by `dstd doctor`. Only looks: opens no device, takes no writer role, changes nothing. Each finding stands alone.

mod kernel;
mod machine;
mod nodes;

use std::fmt;

pub use kernel::{device_mapper, module, seen};
pub use machine::Machine;
pub use nodes::ask;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    /// It works, and there is something to know or to do better.
    Note,
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub text: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Finding {
    fn good(text: impl Into<String>) -> Self {
        Self::new(Level::Good, text, None)
    }

    fn note(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Level::Note, text, Some(advice.into()))
    }

    pub fn bad(text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Level::Bad, text, Some(advice.into()))
    }

    fn new(level: Level, text: impl Into<String>, advice: Option<String>) -> Self {
        let text = text.into();
        Self {
            level,
            text,
            advice,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.level {
            Level::Good => "ok",
            Level::Note => "note",
            Level::Bad => "BAD",
        };
        write!(f, "{word:<5} {}", self.text.replace('\n', "\n      "))?;
        match &self.advice {
            Some(advice) => write!(f, "\n      do: {advice}"),
            None => Ok(()),
        }
    }
}
