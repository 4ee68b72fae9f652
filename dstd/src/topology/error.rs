//! Errors of a topology: each names a place, what was found there and what would be right.
//! Made by yaml, load and check; printed by cli. Never decides what is wrong.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// A step into a YAML document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathStep {
    Key(String),
    Index(usize),
}

impl From<&str> for PathStep {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for PathStep {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Whether the last key of a path is meant, or the value behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Key,
    Value,
}

/// The way from a document's root to one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(pub Vec<PathStep>);

impl Path {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn to(&self, step: impl Into<PathStep>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }
}

/// A position in a file; line and column count from 1, and are 0 where there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
    /// The text of that line, to be shown with a caret.
    pub text: String,
}

impl Place {
    /// A file as a whole.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            text: String::new(),
        }
    }

    /// Line and column count from 1.
    pub fn new(file: impl Into<PathBuf>, source: &str, line: usize, column: usize) -> Self {
        let text = source.lines().nth(line.saturating_sub(1)).unwrap_or("");
        Self {
            file: file.into(),
            line,
            column,
            text: text.trim_end().to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// One thing that is wrong with a topology.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub struct TopologyError {
    pub place: Place,
    pub message: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if self.place.line > 0 && !self.place.text.is_empty() {
            let indent = self.place.column.saturating_sub(1);
            write!(f, "\n    {}\n    {:indent$}^", self.place.text, "")?;
        }
        Ok(())
    }
}

/// All that is wrong with a topology, in the order of the files; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct TopologyErrors(pub Vec<TopologyError>);

impl fmt::Display for TopologyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}
