//! Colours for plans on terminals: what comes green, what goes red, what changes yellow.
//! Used by plan and apply. Never where standard output is no terminal, nor where NO_COLOR is set.

use std::io::IsTerminal;

use clap::ValueEnum;

/// When to use colours
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

/// Whether standard output is one that knows what escape sequences are.
pub fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stdout().is_terminal() && !dumb
}

impl Color {
    pub fn is_on(self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => is_terminal() && !set("NO_COLOR"),
        }
    }

    /// A plan, or steps of one, in colours by the sign at the begin of each line.
    pub fn paint(self, text: &str) -> String {
        if !self.is_on() {
            return text.to_owned();
        }
        let lines = text.split_inclusive('\n');
        lines.map(paint_line).collect()
    }
}

fn paint_line(line: &str) -> String {
    let code = match line.trim_start().get(..2) {
        Some("+ ") => "32",
        Some("- ") => "31",
        Some("~ ") => "33",
        Some("! ") => "1;31",
        Some("# ") => "2",
        _ => return line.to_owned(),
    };
    let text = line.trim_end_matches('\n');
    format!("\x1b[{code}m{text}\x1b[0m{}", &line[text.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_has_its_colour_and_other_lines_none() {
        let text = "  + create\n    - 0 8 zero\n      0 8 linear\n  ! no\n1 step.\n";
        let painted = "\x1b[32m  + create\x1b[0m\n\x1b[31m    - 0 8 zero\x1b[0m\n      0 8 linear\n\x1b[1;31m  ! no\x1b[0m\n1 step.\n";
        assert_eq!(Color::Always.paint(text), painted);
        assert_eq!(Color::Never.paint(text), text);
    }
}
