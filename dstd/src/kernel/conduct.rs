//! How a node treats a loss: the settings that NODE_SET takes, and their defaults in the kernel.
//! Shared by real and simulated kernels, the planner and status. Plain data: no effects.

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::units::Millis;

/// What I/O of a node without a live link does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    Queue,
    /// It waits so long from the loss of the last link, then fails.
    QueueFor(Millis),
    Error,
}

/// What a server that doesn't say who it is counts as, after a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownRestart {
    /// The one it was.
    #[default]
    Trust,
    /// One that may have lost what was not flushed.
    Eio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Conduct {
    #[schemars(with = "PolicyJson")]
    pub policy: Policy,
    /// `None`: never.
    #[serde(rename = "quiesce_ms")]
    #[schemars(with = "Option<u32>")]
    pub quiesce: Option<Millis>,
    pub eof_fences: bool,
    pub unknown_restart: UnknownRestart,
    /// `None`: never.
    #[serde(rename = "timeout_ms")]
    #[schemars(with = "Option<u32>")]
    pub timeout: Option<Millis>,
}

/// What `Policy` looks like in JSON, for its schema.
#[allow(dead_code)]
#[derive(JsonSchema)]
#[schemars(rename = "Policy", rename_all = "snake_case")]
enum PolicyJson {
    Queue,
    QueueForMs(u32),
    Error,
}

/// A node's in the kernel before anybody has set them; the reasons are in docs/failures.md.
impl Default for Conduct {
    fn default() -> Self {
        Self {
            policy: Policy::Queue,
            quiesce: Some(Millis::seconds(10)),
            eof_fences: false,
            unknown_restart: UnknownRestart::Trust,
            timeout: Some(Millis::seconds(30)),
        }
    }
}

/// As in a topology, but for the unit: `"queue"`, `{"queue_for_ms": 300000}`, `"error"`.
impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Queue => serializer.serialize_str("queue"),
            Self::QueueFor(time) => serializer.collect_map([("queue_for_ms", time)]),
            Self::Error => serializer.serialize_str("error"),
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue => f.pad("queue"),
            Self::QueueFor(time) => f.pad(&format!("queue_for {time}")),
            Self::Error => f.pad("error"),
        }
    }
}

pub fn time_or_never(time: Option<Millis>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| time.to_string())
}

impl Conduct {
    /// Each setting by its name in a topology, as words.
    pub fn words(&self) -> [(&'static str, String); 5] {
        let restart = match self.unknown_restart {
            UnknownRestart::Trust => "trust",
            UnknownRestart::Eio => "eio",
        };
        [
            ("policy", self.policy.to_string()),
            ("quiesce", time_or_never(self.quiesce)),
            (
                "eof_fences",
                if self.eof_fences { "yes" } else { "no" }.to_owned(),
            ),
            ("unknown_restart", restart.to_owned()),
            ("timeout", time_or_never(self.timeout)),
        ]
    }

    /// What is another in `to`, like a diff: "policy queue -> error".
    pub fn changes(&self, to: &Self) -> Vec<String> {
        let pairs = self.words().into_iter().zip(to.words());
        pairs
            .filter(|((_, old), (_, new))| old != new)
            .map(|((name, old), (_, new))| format!("{name} {old} -> {new}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_changes_and_nothing_else() {
        let was = Conduct::default();
        assert!(was.changes(&was).is_empty());
        let now = Conduct {
            policy: Policy::QueueFor(Millis::seconds(300)),
            quiesce: None,
            ..was
        };
        assert_eq!(
            was.changes(&now),
            ["policy queue -> queue_for 5m", "quiesce 10s -> never"]
        );
        let all = Conduct {
            policy: Policy::Error,
            quiesce: Some(Millis(1500)),
            eof_fences: true,
            unknown_restart: UnknownRestart::Eio,
            timeout: Some(Millis::seconds(1)),
        };
        let expected = [
            "policy queue_for 5m -> error",
            "quiesce never -> 1s 500ms",
            "eof_fences no -> yes",
            "unknown_restart trust -> eio",
            "timeout 30s -> 1s",
        ];
        assert_eq!(now.changes(&all), expected);
    }

    #[test]
    fn json_has_the_topologys_words() {
        let json = |policy| {
            serde_json::to_value(Conduct {
                policy,
                ..Conduct::default()
            })
            .unwrap()
        };
        let plain = json(Policy::Queue);
        assert_eq!(
            plain,
            serde_json::json!({
                "policy": "queue", "quiesce_ms": 10000, "eof_fences": false,
                "unknown_restart": "trust", "timeout_ms": 30000
            })
        );
        let timed = json(Policy::QueueFor(Millis(5)));
        assert_eq!(timed["policy"], serde_json::json!({"queue_for_ms": 5}));
    }
}
