//! The lines that the guest's agent writes to its progress port: `@@ WORD …`; anything else is plain output
//! (the demo's). Pure parsing, used by supervise; tests/vm/agent.sh writes what is read here.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The agent runs; the kernel's release.
    Boot(String),
    Start {
        test: String,
        limit: Duration,
    },
    Ok {
        test: String,
        seconds: String,
    },
    Fail {
        test: String,
        seconds: String,
    },
    Skip {
        test: String,
        why: String,
    },
    /// One line about the failure just reported.
    Why(String),
    /// The guest resets itself; the running test goes on afterwards.
    Reboot,
    /// All is done (with the demo's exit status); the guest powers off.
    Done {
        status: u8,
    },
    Output(String),
}

impl Message {
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(rest) = line.strip_prefix("@@ ") else {
            return Self::Output(line.to_owned());
        };
        let (word, args) = rest.split_once(' ').unwrap_or((rest, ""));
        let (first, second) = args.split_once(' ').unwrap_or((args, ""));
        let (test, second) = (first.to_owned(), second.to_owned());
        match word {
            "boot" => Self::Boot(test),
            "start" => match second.parse() {
                Ok(seconds) => Self::Start {
                    test,
                    limit: Duration::from_secs(seconds),
                },
                Err(_) => Self::Output(line.to_owned()),
            },
            "ok" => Self::Ok {
                test,
                seconds: second,
            },
            "fail" => Self::Fail {
                test,
                seconds: second,
            },
            "skip" => Self::Skip { test, why: second },
            "why" => Self::Why(args.to_owned()),
            "reboot" => Self::Reboot,
            "done" => match first.parse() {
                Ok(status) => Self::Done { status },
                Err(_) => Self::Output(line.to_owned()),
            },
            _ => Self::Output(line.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_agent_writes() {
        let limit = Duration::from_secs(120);
        assert_eq!(
            Message::parse("@@ start a.b 120\r\n"),
            Message::Start {
                test: "a.b".into(),
                limit
            }
        );
        assert_eq!(
            Message::parse("@@ ok a.b 3.2"),
            Message::Ok {
                test: "a.b".into(),
                seconds: "3.2".into()
            }
        );
        assert_eq!(
            Message::parse("@@ skip a.b no such thing"),
            Message::Skip {
                test: "a.b".into(),
                why: "no such thing".into()
            }
        );
        assert_eq!(
            Message::parse("@@ why expected 1, got 2"),
            Message::Why("expected 1, got 2".into())
        );
        assert_eq!(Message::parse("@@ done 0"), Message::Done { status: 0 });
    }

    #[test]
    fn takes_everything_else_for_output() {
        for line in [
            "",
            "hello",
            "@@start a 1",
            "@@ start a soon",
            "@@ done",
            "@@ dance",
        ] {
            assert_eq!(
                Message::parse(line),
                Message::Output(line.into()),
                "{line:?}"
            );
        }
    }
}
