//! Holders of an export in words for people, who read them in error replies and in `dstd probe`.
//!
//! Called by the state machine of the roles. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::machine::Holder;

/// Addresses shown of anonymous writers.
const PEERS_SHOWN: usize = 3;

pub fn client(holder: &Holder) -> String {
    format!("client {} from {}", holder.session.client, holder.peer)
}

pub fn holder(now: Instant, holder: &Holder, timeout: Duration) -> String {
    let since = seconds(now.duration_since(holder.since));
    let client = client(holder);
    match holder.lost {
        None => format!("{client}, connected for {since}"),
        Some(lost) => {
            let gone = now.duration_since(lost);
            format!(
                "{client}, whose last link was lost {} ago; unless it comes back, the export is free in {}",
                seconds(gone),
                seconds(timeout.saturating_sub(gone) + Duration::from_millis(999)),
            )
        }
    }
}

pub fn taking(now: Instant, holder: &Holder) -> String {
    let since = seconds(now.duration_since(holder.since));
    format!(
        "{}, which has been taking over for {since} and waits for older requests to finish",
        client(holder)
    )
}

pub fn anonymous(peers: &[&str]) -> String {
    let shown = peers[..peers.len().min(PEERS_SHOWN)].join(", ");
    let more = match peers.len().saturating_sub(PEERS_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("clients without a session that write, from {shown}{more}")
}

pub fn nobody() -> String {
    "another client, a moment ago; try again".to_owned()
}

fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}
