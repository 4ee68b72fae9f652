//! Every pair of holder and newcomer, in every state of the holder, against the table of docs/writer-role.md;
//! and the pairs that the table doesn't hold. Drives the state machine without sockets.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::Instant;

use super::RoleError;
use super::machine::{Anonymous, LinkId, Machine, Newcomer, Outcome, RoleConfig};
use crate::export::link::End;
use crate::units::{Id, Session};

const TIMEOUT: Duration = Duration::from_secs(30);
const DOC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/writer-role.md");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Session,
    AnonymousWriter,
    /// Connected, and hasn't written.
    AnonymousReader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connected,
    LostRecently,
    LostLongAgo,
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comer {
    SameSession,
    SameClient,
    Other,
    OtherStealing,
    Anonymous,
}

pub fn session(client: u8, nonce: u8) -> Session {
    Session {
        client: Id([client; 16]),
        nonce: Id([nonce; 16]),
    }
}

pub fn newcomer(session: Session, slot: u32, generation: u64) -> Newcomer {
    Newcomer {
        session,
        slot,
        generation,
        steal: false,
        read_only: false,
        peer: "192.0.2.1:40000".to_owned(),
    }
}

fn machine(shared: bool) -> Machine {
    Machine::new(RoleConfig {
        shared,
        holder_timeout: TIMEOUT,
    })
}

fn joined(outcome: Result<Outcome, RoleError>) -> LinkId {
    match outcome {
        Ok(Outcome::Joined(link)) => link,
        other => panic!("{other:?}"),
    }
}

/// The holder comes, does what makes it one, and leaves as `state` says.
fn settle(
    machine: &mut Machine,
    begin: Instant,
    holder: Holder,
    state: State,
) -> (LinkId, Instant) {
    let link = match holder {
        Holder::Session => joined(machine.join(begin, newcomer(session(1, 1), 0, 1))),
        _ => match machine.join_anonymous(begin, "192.0.2.9:1".to_owned()) {
            Anonymous::Lazy(link) => link,
            other => panic!("{other:?}"),
        },
    };
    if holder == Holder::AnonymousWriter {
        assert!(machine.claim(begin, link));
    }
    let (why, later) = match state {
        State::Connected => return (link, begin),
        State::LostRecently => (End::Lost, TIMEOUT - Duration::from_millis(1)),
        State::LostLongAgo => (End::Lost, TIMEOUT),
        State::Disconnected => (End::Disconnected, Duration::ZERO),
    };
    machine.ended(begin, link, why);
    (link, begin + later)
}

fn request_of(comer: Comer) -> Newcomer {
    let (client, nonce) = match comer {
        Comer::SameSession => (1, 1),
        Comer::SameClient => (1, 2),
        _ => (2, 1),
    };
    Newcomer {
        steal: comer == Comer::OtherStealing,
        ..newcomer(session(client, nonce), 1, 2)
    }
}

/// What the newcomer gets, in the words of the table. Checks on the way that a probe tells and changes nothing.
fn meet(machine: &mut Machine, now: Instant, held: Option<LinkId>, comer: Comer) -> &'static str {
    let before = format!("{machine:?}");
    let probed = machine.identify(now, request_of(comer).session);
    assert_eq!(format!("{machine:?}"), before, "a probe changes nothing");
    if comer == Comer::Anonymous {
        return match machine.join_anonymous(now, "192.0.2.8:1".to_owned()) {
            Anonymous::Lazy(link) if machine.claim(now, link) => "writes",
            Anonymous::ReadOnly => "read-only",
            other => panic!("{other:?}"),
        };
    }
    match machine.join(now, request_of(comer)) {
        Ok(Outcome::Joined(_)) => {
            assert!(!probed.by_other || comer == Comer::OtherStealing);
            "writes"
        }
        Ok(Outcome::Waits(ticket, cut)) => {
            assert_eq!(probed.by_other, comer == Comer::OtherStealing);
            assert_eq!(cut, [held.unwrap()]);
            assert_eq!(machine.poll(now, ticket), Ok(None), "not before the end");
            machine.ended(now, cut[0], End::Cut);
            assert!(matches!(machine.poll(now, ticket), Ok(Some(_))));
            "takes over"
        }
        Err(RoleError::Held(text)) => {
            assert!(probed.by_other);
            assert_eq!(text, probed.text, "a refusal names whom a probe names");
            "refused"
        }
        Err(other) => panic!("{other}"),
    }
}

fn rows() -> Vec<(&'static str, Holder, State)> {
    use Holder::*;
    use State::*;
    vec![
        ("a session with a link", Session, Connected),
        (
            "a session, last link lost less than `holder_timeout` ago",
            Session,
            LostRecently,
        ),
        ("a session, last link lost longer ago", Session, LostLongAgo),
        (
            "a session that said DISC on its last link",
            Session,
            Disconnected,
        ),
        (
            "anonymous clients that wrote and are connected",
            AnonymousWriter,
            Connected,
        ),
        (
            "anonymous clients that wrote and were lost",
            AnonymousWriter,
            LostRecently,
        ),
        (
            "anonymous clients that wrote and said DISC",
            AnonymousWriter,
            Disconnected,
        ),
        (
            "anonymous clients that never wrote",
            AnonymousReader,
            Connected,
        ),
    ]
}

fn table() -> String {
    let comers = [
        ("same session", Comer::SameSession),
        ("same client, new session", Comer::SameClient),
        ("other client", Comer::Other),
        ("other client, `steal`", Comer::OtherStealing),
        ("anonymous, writing", Comer::Anonymous),
    ];
    let mut text = "| held by | ".to_owned();
    text += &comers.map(|(name, _)| name).join(" | ");
    text += " |\n| --- | --- | --- | --- | --- | --- |\n";
    for (name, holder, state) in rows() {
        write!(text, "| {name} |").unwrap();
        for (_, comer) in comers {
            let mut machine = machine(false);
            let (link, now) = settle(&mut machine, Instant::now(), holder, state);
            let held = (state == State::Connected).then_some(link);
            write!(text, " {} |", meet(&mut machine, now, held, comer)).unwrap();
        }
        text += "\n";
    }
    text
}

#[test]
fn each_pair_gets_what_the_documents_table_says() {
    let table = table();
    let document = std::fs::read_to_string(DOC).unwrap();
    assert!(
        document.contains(&table),
        "docs/writer-role.md doesn't hold this table:\n{table}"
    );
}

/// The table's cells once more, independent of the document.
#[test]
fn the_tables_cells_are_these() {
    let cells: Vec<String> = table()
        .lines()
        .skip(2)
        .map(|line| {
            line.split('|')
                .skip(2)
                .map(str::trim)
                .collect::<Vec<_>>()
                .join(",")
        })
        .collect();
    let expected = [
        "writes,takes over,refused,takes over,read-only,",
        "writes,writes,refused,writes,read-only,",
        "writes,writes,writes,writes,writes,",
        "writes,writes,writes,writes,writes,",
        "refused,refused,refused,takes over,writes,",
        "writes,writes,writes,writes,writes,",
        "writes,writes,writes,writes,writes,",
        "writes,writes,writes,writes,writes,",
    ];
    assert_eq!(cells, expected);
}

#[test]
fn an_anonymous_client_that_was_there_first_and_never_wrote_may_not_begin_under_a_session() {
    let now = Instant::now();
    let mut machine = machine(false);
    let (idle, _) = settle(&mut machine, now, Holder::AnonymousReader, State::Connected);
    let link = joined(machine.join(now, newcomer(session(1, 1), 0, 1)));
    assert!(!machine.claim(now, idle));
    machine.ended(now, link, End::Disconnected);
    assert!(machine.claim(now, idle), "free again");
}

#[test]
fn all_anonymous_clients_together_are_one_writer_until_the_last_that_wrote_has_ended() {
    let now = Instant::now();
    let mut machine = machine(false);
    let (first, _) = settle(&mut machine, now, Holder::AnonymousWriter, State::Connected);
    let (second, _) = settle(&mut machine, now, Holder::AnonymousWriter, State::Connected);
    let (_idle, _) = settle(&mut machine, now, Holder::AnonymousReader, State::Connected);
    machine.ended(now, first, End::Lost);
    assert!(machine.join(now, newcomer(session(1, 1), 0, 1)).is_err());
    machine.ended(now, second, End::Lost);
    joined(machine.join(now, newcomer(session(1, 1), 0, 1)));
}

#[test]
fn a_session_keeps_the_role_while_any_of_its_links_lives() {
    let now = Instant::now();
    let mut machine = machine(false);
    let links = [0, 1, 2].map(|slot| joined(machine.join(now, newcomer(session(1, 1), slot, 1))));
    machine.ended(now, links[0], End::Disconnected);
    machine.ended(now, links[1], End::Lost);
    let later = now + 100 * TIMEOUT;
    let refused = machine
        .join(later, newcomer(session(2, 1), 0, 1))
        .unwrap_err();
    let text = refused.to_string();
    let holder = "client 01010101010101010101010101010101 from 192.0.2.1:40000, connected for 50m";
    assert!(text.contains(holder), "{text}");
    assert!(text.contains("`steal` takes it at once"), "{text}");
    machine.ended(later, links[2], End::Lost);
    let refused = machine
        .join(later, newcomer(session(2, 1), 0, 1))
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("lost 0s ago") && text.contains("free in 30s"),
        "{text}"
    );
    joined(machine.join(later + TIMEOUT, newcomer(session(2, 1), 0, 1)));
}

#[test]
fn a_session_that_lost_the_role_with_its_words_unsaid_needs_steal_to_come_back() {
    let now = Instant::now();
    for takers in [Comer::OtherStealing, Comer::Anonymous] {
        let mut machine = machine(false);
        let (_, now) = settle(&mut machine, now, Holder::Session, State::LostLongAgo);
        meet(&mut machine, now, None, takers);
        let mut again = newcomer(session(1, 1), 0, 2);
        let error = machine.join(now, again.clone()).unwrap_err();
        assert!(matches!(error, RoleError::Over(_)), "{error}");
        assert!(
            error.to_string().contains("would overwrite newer data"),
            "{error}"
        );
        // Also when the taker has gone.
        let machine = &mut machine;
        for number in 0..10 {
            machine.ended(now, link_number(number), End::Disconnected);
        }
        assert!(machine.is_idle());
        assert!(matches!(
            machine.join(now, again.clone()),
            Err(RoleError::Over(_))
        ));
        // A new session of the same client has nothing old to write.
        let fresh = joined(machine.join(now, newcomer(session(1, 9), 0, 1)));
        machine.ended(now, fresh, End::Disconnected);
        again.steal = true;
        let link = joined(machine.join(now, again.clone()));
        machine.ended(now, link, End::Lost);
        again.steal = false;
        joined(machine.join(now, again));
    }
}

/// Links are numbered from 1.
fn link_number(number: u64) -> LinkId {
    LinkId::for_tests(number)
}

#[test]
fn one_that_said_disc_may_come_back_after_others_held_the_export() {
    let now = Instant::now();
    let mut machine = machine(false);
    settle(&mut machine, now, Holder::Session, State::Disconnected);
    let other = joined(machine.join(now, newcomer(session(2, 1), 0, 1)));
    machine.ended(now, other, End::Disconnected);
    joined(machine.join(now, newcomer(session(1, 1), 0, 2)));
}

#[test]
fn an_older_session_of_a_client_does_not_take_back_from_its_newer_one_that_lives() {
    let now = Instant::now();
    let mut machine = machine(false);
    settle(&mut machine, now, Holder::Session, State::LostRecently);
    let newer = joined(machine.join(now, newcomer(session(1, 2), 0, 1)));
    let error = machine
        .join(now, newcomer(session(1, 1), 0, 2))
        .unwrap_err();
    assert!(matches!(error, RoleError::Superseded(_)), "{error}");
    // Two starts of dstd at once can leave the older one's session in the kernel: it isn't locked out for ever.
    machine.ended(now, newer, End::Lost);
    joined(machine.join(now, newcomer(session(1, 1), 0, 2)));
    let error = machine
        .join(now, newcomer(session(1, 2), 0, 2))
        .unwrap_err();
    assert!(matches!(error, RoleError::Superseded(_)), "{error}");
}

#[test]
fn while_one_takes_over_nobody_else_gets_in_and_a_thief_takes_its_turn() {
    let now = Instant::now();
    let mut machine = machine(false);
    let (old, _) = settle(&mut machine, now, Holder::Session, State::Connected);
    let Ok(Outcome::Waits(first, cut)) = machine.join(now, newcomer(session(1, 2), 0, 1)) else {
        panic!("it waits for the older session's link");
    };
    assert_eq!(cut, [old]);
    assert!(matches!(
        machine.join_anonymous(now, String::new()),
        Anonymous::ReadOnly
    ));
    let error = machine
        .join(now, newcomer(session(2, 1), 0, 1))
        .unwrap_err();
    assert!(
        error.to_string().contains("has been taking over for 0s"),
        "{error}"
    );
    // A further link of the same session waits beside the first; nothing is cut twice.
    let Ok(Outcome::Waits(second, cut)) = machine.join(now, newcomer(session(1, 2), 1, 2)) else {
        panic!("it waits too");
    };
    assert_eq!(cut, []);
    let Ok(Outcome::Waits(thief, _)) = machine.join(now, request_of(Comer::OtherStealing)) else {
        panic!("the old link is still there");
    };
    assert!(matches!(machine.poll(now, first), Err(RoleError::Held(_))));
    machine.ended(now, old, End::Cut);
    assert!(matches!(machine.poll(now, second), Err(RoleError::Held(_))));
    assert!(matches!(machine.poll(now, thief), Ok(Some(_))));
}

#[test]
fn a_joiner_that_gives_up_leaves_the_role_where_it_was() {
    let now = Instant::now();
    let mut machine = machine(false);
    let (old, _) = settle(&mut machine, now, Holder::Session, State::Connected);
    let Ok(Outcome::Waits(ticket, _)) = machine.join(now, request_of(Comer::OtherStealing)) else {
        panic!("it waits");
    };
    machine.withdraw(ticket);
    assert!(machine.poll(now, ticket).is_err());
    // Its links are cut; the session itself may go on at once.
    joined(machine.join(now, newcomer(session(1, 1), 0, 2)));
    machine.ended(now, old, End::Cut);
    assert!(matches!(
        machine.join(now, newcomer(session(2, 1), 0, 1)),
        Err(RoleError::Held(_))
    ));
}

#[test]
fn fenced_numbers_stay_fenced_and_others_do_not_notice() {
    let now = Instant::now();
    let mut machine = machine(false);
    let links = [(0, 5), (0, 6), (1, 7)]
        .map(|(slot, n)| joined(machine.join(now, newcomer(session(1, 1), slot, n))));
    assert_eq!(machine.fence(session(1, 1), 0, 5), [links[0]]);
    assert!(!machine.is_fenced(session(1, 1), 0, 5));
    machine.ended(now, links[0], End::Cut);
    assert!(machine.is_fenced(session(1, 1), 0, 5));
    let error = machine
        .join(now, newcomer(session(1, 1), 0, 5))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "generation 5 of the link in slot 0 is fenced: connect with a newer one"
    );
    joined(machine.join(now, newcomer(session(1, 1), 1, 5)));
    // Of another session, and of one that nobody has heard of: known from then on.
    assert_eq!(machine.fence(session(3, 3), 0, 9), []);
    assert!(machine.is_fenced(session(3, 3), 0, 9));
    machine.fence(session(3, 3), 0, 2);
    let stealing = Newcomer {
        steal: true,
        ..newcomer(session(3, 3), 0, 9)
    };
    assert!(matches!(
        machine.join(now, stealing),
        Err(RoleError::Fenced { .. })
    ));
}

#[test]
fn the_role_lost_and_its_links_still_running_a_session_can_be_fenced() {
    let now = Instant::now();
    let mut machine = machine(false);
    let (old, _) = settle(&mut machine, now, Holder::Session, State::Connected);
    let Ok(Outcome::Waits(ticket, _)) = machine.join(now, request_of(Comer::OtherStealing)) else {
        panic!("it waits");
    };
    assert_eq!(machine.fence(session(1, 1), 0, 1), [], "cut already");
    assert!(!machine.is_fenced(session(1, 1), 0, 1));
    machine.ended(now, old, End::Cut);
    assert!(machine.is_fenced(session(1, 1), 0, 1));
    assert!(matches!(machine.poll(now, ticket), Ok(Some(_))));
}

#[test]
fn a_read_only_link_takes_no_role_and_can_be_fenced() {
    let now = Instant::now();
    let mut machine = machine(false);
    let reader = Newcomer {
        read_only: true,
        ..newcomer(session(1, 1), 0, 1)
    };
    let link = joined(machine.join(now, reader.clone()));
    joined(machine.join(now, newcomer(session(2, 1), 0, 1)));
    joined(machine.join(
        now,
        Newcomer {
            generation: 2,
            ..reader.clone()
        },
    ));
    assert_eq!(machine.fence(session(1, 1), 0, 1), [link]);
    machine.ended(now, link, End::Cut);
    assert!(matches!(
        machine.join(now, reader),
        Err(RoleError::Fenced { .. })
    ));
}

#[test]
fn shared_means_no_rules_but_fences() {
    let now = Instant::now();
    let mut machine = machine(true);
    let first = joined(machine.join(now, newcomer(session(1, 1), 0, 1)));
    joined(machine.join(now, newcomer(session(1, 2), 0, 1)));
    joined(machine.join(now, newcomer(session(2, 1), 0, 1)));
    assert_eq!(machine.join_anonymous(now, String::new()), Anonymous::Free);
    let held = machine.identify(now, session(7, 7));
    assert!(!held.by_other, "{}", held.text);
    assert_eq!(machine.fence(session(1, 1), 0, 1), [first]);
    machine.ended(now, first, End::Cut);
    assert!(matches!(
        machine.join(now, newcomer(session(1, 1), 0, 1)),
        Err(RoleError::Fenced { .. })
    ));
}

#[test]
fn what_is_remembered_has_an_end_and_sessions_in_use_are_kept() {
    let now = Instant::now();
    let mut machine = machine(true);
    let kept = session(9, 9);
    joined(machine.join(now, newcomer(kept, 0, 5)));
    machine.fence(kept, 0, 4);
    for number in 0..2000u32 {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&number.to_be_bytes());
        let other = Session {
            client: Id([1; 16]),
            nonce: Id(nonce),
        };
        machine.fence(other, 0, 1);
    }
    assert_eq!(machine.remembered(), super::sessions::REMEMBERED);
    assert!(matches!(
        machine.join(now, newcomer(kept, 0, 4)),
        Err(RoleError::Fenced { .. })
    ));
}
