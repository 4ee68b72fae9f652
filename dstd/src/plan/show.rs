//! A plan as text, like a diff: + appears, ~ changes, - goes, ! is refused.
//! Called by cli. Pure.

use std::fmt;

use super::{Action, Connect, Plan, Refusal, Step};
use crate::kernel::Access;
use crate::table::Line;
use crate::units::{DeviceName, Slot};

/// Characters of a table line that are shown.
const LINE_SHOWN: usize = 400;

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create {
                device,
                uuid,
                access,
            } => {
                write!(f, "+ create device {device} (UUID {})", uuid.0)?;
                if *access == Access::ReadOnly {
                    f.write_str(", read-only")?;
                }
                Ok(())
            }
            Self::Load {
                device,
                live,
                lines,
                access,
            } => {
                let access = if *access == Access::ReadOnly {
                    " read-only"
                } else {
                    ""
                };
                write!(f, "~ load a{access} table for device {device}")?;
                show_lines(f, live, lines)
            }
            Self::Clear { device } => write!(f, "~ clear the inactive table of device {device}"),
            Self::Suspend { device } => write!(
                f,
                "~ suspend device {device} (pauses its I/O until it is resumed)"
            ),
            Self::Resume { device } => write!(f, "~ resume device {device}"),
            Self::Remove { device } => write!(f, "- remove device {device}"),
            Self::Connect(connect) => connect.fmt(f),
            Self::SetWanted { node, wanted } => write!(f, "~ set node {node} to {wanted} links"),
            Self::SetConduct { node, from, to } => {
                write!(f, "~ set node {node}: {}", from.changes(to).join(", "))
            }
        }
    }
}

/// A new table whole; one that takes another's place as what goes, what comes, and what stays.
fn show_lines(f: &mut fmt::Formatter<'_>, live: &[Line], lines: &[Line]) -> fmt::Result {
    if live.is_empty() {
        for line in lines {
            write!(f, "\n      {}", cut(&line.to_string()))?;
        }
        return Ok(());
    }
    // Lines lie one behind the other, so both are in the order of their sectors.
    for line in live.iter().filter(|line| !lines.contains(line)) {
        write!(f, "\n    - {}", cut(&line.to_string()))?;
    }
    for line in lines {
        let sign = if live.contains(line) { ' ' } else { '+' };
        write!(f, "\n    {sign} {}", cut(&line.to_string()))?;
    }
    Ok(())
}

/// Lines with thousands of extents are cut: `dstd table` shows them whole.
fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_SHOWN) {
        Some((cut, _)) => format!("{}... ({} more characters)", &line[..cut], line.len() - cut),
        None => line.to_owned(),
    }
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots: Vec<_> = self.slots.iter().map(Slot::to_string).collect();
        let sign = if self.replace.is_some() { '~' } else { '+' };
        write!(
            f,
            "{sign} connect node {}, slot {}",
            self.node,
            slots.join(" ")
        )?;
        if self.steal {
            f.write_str(", taking the writer role from whoever has it")?;
        }
        if self.same_data {
            f.write_str(", whatever export it is now")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The reason goes behind the first line, also where more follow.
        let action = self.action.to_string();
        match action.split_once('\n') {
            Some((first, rest)) => write!(f, "{first}: {}\n{rest}", self.why),
            None => write!(f, "{action}: {}", self.why),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "! {}: {}", self.subject, self.reason)?;
        match &self.flag {
            Some(flag) => write!(f, " ({flag} allows it)"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "  {refusal}")?;
        }
        for note in &self.notes {
            writeln!(f, "  # {note}")?;
        }
        let paused: Vec<_> = self.pauses().into_iter().map(DeviceName::as_str).collect();
        let count =
            |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
        match (self.steps.len(), self.refusals.len()) {
            (0, 0) => writeln!(f, "Nothing to do."),
            (steps, 0) => writeln!(f, "{}.", count(steps, "step", "steps")),
            (steps, refused) => {
                writeln!(
                    f,
                    "{}, {} refused.",
                    count(steps, "step", "steps"),
                    count(refused, "change", "changes")
                )
            }
        }?;
        match paused.as_slice() {
            [] => Ok(()),
            devices => writeln!(f, "I/O pauses for a moment on {}.", devices.join(", ")),
        }
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
