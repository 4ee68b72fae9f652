//! A bar below what `apply` prints, while it waits; on terminals only, elsewhere there are just the lines.
//! Used by apply. Drawn again with each thing that is told, never by a clock, and gone before anything else is printed.

use std::io::{Stdout, Write, stdout};

use super::color::is_terminal;

/// To the begin of the line, and nothing behind it.
const ERASE: &str = "\r\x1b[K";
const WIDTH: usize = 20;
/// Where a terminal doesn't tell.
const COLUMNS: u16 = 80;

#[derive(Debug)]
pub struct Bar<W> {
    out: W,
    /// None: no terminal, no bar.
    columns: Option<u16>,
    drawn: bool,
}

impl Bar<Stdout> {
    pub fn on_stdout(quiet: bool) -> Self {
        let columns = || match rustix::termios::tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 => size.ws_col,
            _ => COLUMNS,
        };
        Self::new(stdout(), (!quiet && is_terminal()).then(columns))
    }
}

/// A lost standard output is no reason to stop half-way.
impl<W: Write> Bar<W> {
    pub fn new(out: W, columns: Option<u16>) -> Self {
        Self {
            out,
            columns,
            drawn: false,
        }
    }

    /// Text that stays; it ends with a line's end.
    pub fn line(&mut self, text: &str) {
        self.clear();
        let _ = self.out.write_all(text.as_bytes());
    }

    /// How many of what are done, in place of what was shown before. One line, as a longer one couldn't be erased.
    pub fn show(&mut self, done: usize, of: usize, what: &str) {
        let Some(columns) = self.columns else {
            return;
        };
        let full = WIDTH * done / of.max(1);
        let text = format!(
            "[{}{}] {done} of {of} {what}",
            "=".repeat(full),
            " ".repeat(WIDTH.saturating_sub(full))
        );
        let fits = usize::from(columns).saturating_sub(1);
        let text: String = text.chars().take(fits).collect();
        let _ = write!(self.out, "{ERASE}{text}").and_then(|()| self.out.flush());
        self.drawn = true;
    }

    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = self.out.write_all(ERASE.as_bytes());
            let _ = self.out.flush();
        }
    }

    #[cfg(test)]
    pub fn into_inner(self) -> W {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fits_into_its_line_and_is_erased_before_the_next_text() {
        let mut bar = Bar::new(Vec::new(), Some(31));
        bar.show(1, 2, "nodes have answered");
        bar.line("text\n");
        bar.line("more\n");
        bar.clear();
        let text = String::from_utf8(bar.into_inner()).unwrap();
        let shown = "[==========          ] 1 of 2 n";
        assert_eq!(text, format!("{ERASE}{}{ERASE}text\nmore\n", &shown[..30]));
    }
}
