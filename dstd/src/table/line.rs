//! One line of a dm table: start, length, target and its arguments as text.
//! Used wherever tables pass by. Never looks into the arguments.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::units::Sectors;

/// `<start> <length> <target> <args>`, the form of `dmsetup table`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    pub start: Sectors,
    pub length: Sectors,
    pub target: String,
    /// Single spaces between words, none at the ends; may be empty.
    pub args: String,
}

/// Why a text is no table line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    #[error(
        "`{0}` is no table line: write `<start> <length> <target> <args>`, start and length in sectors"
    )]
    TooShort(String),
    #[error("`{found}` is no {field} in sectors: write a whole number")]
    Number { field: &'static str, found: String },
    #[error("the length is 0: a table line has at least one sector")]
    Empty,
}

impl Line {
    /// The first sector after it; None where that overflows.
    pub fn end(&self) -> Option<Sectors> {
        self.start.checked_add(self.length)
    }
}

impl FromStr for Line {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let mut words = text.split_whitespace();
        let (Some(start), Some(length), Some(target)) = (words.next(), words.next(), words.next())
        else {
            return Err(LineError::TooShort(text.trim().to_owned()));
        };
        let length = number("length", length)?;
        if length == Sectors::ZERO {
            return Err(LineError::Empty);
        }
        Ok(Self {
            start: number("start", start)?,
            length,
            target: target.to_owned(),
            args: words.collect::<Vec<_>>().join(" "),
        })
    }
}

fn number(field: &'static str, text: &str) -> Result<Sectors, LineError> {
    text.parse().map(Sectors).map_err(|_| LineError::Number {
        field,
        found: text.to_owned(),
    })
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.start, self.length, self.target)?;
        if !self.args.is_empty() {
            write!(f, " {}", self.args)?;
        }
        Ok(())
    }
}
