//! Tests of what the client says to a server that knows sessions, and of what it makes of each answer.
//! Scripted servers in the same process, as in `client_tests`.

use super::client::Handshake;
use super::client_tests::{
    ATTACH, FLAGS, Heard, assert_good, good, infos, reply, script, soon, start,
};
use super::error::NbdError;
use super::proto::{self, Info};
use crate::export::wire::{self, FenceRequest, SessionReply, SessionRequest};
use crate::kernel::{Attach, Fence, Negotiated, Probed, Writer};
use crate::units::{Generation, Id, Session, Slot};

const GREETING: usize = 18;

type Attached = Result<Negotiated, NbdError>;

fn told(holder: Option<&str>) -> SessionReply {
    SessionReply {
        held_by_other: holder.is_some(),
        identity: Id([1; 16]),
        incarnation: Id([2; 16]),
        holder: holder.unwrap_or("").to_owned(),
    }
}

fn session_reply(reply_: &SessionReply) -> Vec<u8> {
    [
        reply(wire::OPT_SESSION, wire::REP_SESSION, &reply_.encode()),
        reply(wire::OPT_SESSION, proto::REP_ACK, b""),
    ]
    .concat()
}

/// Knows sessions, and that nobody holds the export.
fn ours(option: u32, data: &[u8]) -> Vec<u8> {
    match option {
        wire::OPT_SESSION => session_reply(&told(None)),
        wire::OPT_FENCE => reply(option, proto::REP_ACK, b""),
        _ => good(option, data),
    }
}

async fn attach_with(
    attach: Attach,
    answers: impl FnMut(u32, &[u8]) -> Vec<u8> + Send + 'static,
) -> (Attached, Heard) {
    let mut script = script(answers);
    script.sessions = true;
    let (mut stream, server) = start(script, 4096);
    let result = Handshake::new(&mut stream, soon())
        .attach("disk", &attach)
        .await;
    drop(stream);
    (result, server.await.unwrap())
}

async fn probe_with(
    answers: impl FnMut(u32, &[u8]) -> Vec<u8> + Send + 'static,
) -> (Result<Probed, NbdError>, Heard) {
    let mut script = script(answers);
    script.sessions = true;
    let (mut stream, server) = start(script, 4096);
    let handshake = Handshake::new(&mut stream, soon());
    let result = handshake.probe("disk", ATTACH.session.client).await;
    drop(stream);
    (result, server.await.unwrap())
}

/// Answers one option so, everything else well.
fn but(option: u32, answer: Vec<u8>) -> impl FnMut(u32, &[u8]) -> Vec<u8> + Send + 'static {
    move |asked, data| match asked {
        asked if asked == option => answer.clone(),
        proto::OPT_LIST => reply(asked, proto::REP_ACK, b""),
        _ => ours(asked, data),
    }
}

fn options(heard: &Heard) -> Vec<u32> {
    heard.1.iter().map(|(option, _)| *option).collect()
}

#[tokio::test]
async fn the_session_is_told_then_the_export_asked_for() {
    let (result, heard) = attach_with(ATTACH, ours).await;
    let negotiated = result.unwrap();
    assert_eq!(negotiated.identity, Some(Id([1; 16])));
    assert_eq!(negotiated.incarnation, Some(Id([2; 16])));
    assert_good(&negotiated);
    assert_eq!(options(&heard), [wire::OPT_SESSION, proto::OPT_GO]);
    let session = SessionRequest {
        steal: false,
        identify_only: false,
        slot: 2,
        generation: 9,
        session: ATTACH.session,
        export: "disk".to_owned(),
    };
    assert_eq!(SessionRequest::decode(&heard.1[0].1), Ok(session));
}

#[tokio::test]
async fn steal_is_said_when_told() {
    let attach = Attach {
        steal: true,
        ..ATTACH
    };
    let (result, heard) = attach_with(attach, ours).await;
    result.unwrap();
    assert!(SessionRequest::decode(&heard.1[0].1).unwrap().steal);
}

#[tokio::test]
async fn to_a_stock_server_nothing_else_changes() {
    let (result, heard) = attach_with(ATTACH, good).await;
    let negotiated = result.unwrap();
    assert_good(&negotiated);
    assert_eq!((negotiated.identity, negotiated.incarnation), (None, None));
    let request = proto::encode_info_request("disk", &[2, 3]);
    assert_eq!(options(&heard), [wire::OPT_SESSION, proto::OPT_GO]);
    assert_eq!(heard.1[1], (proto::OPT_GO, request));
    let (probed, heard) = probe_with(good).await;
    assert_eq!(probed.unwrap().writer, None);
    assert_eq!(
        options(&heard),
        [wire::OPT_SESSION, proto::OPT_INFO, proto::OPT_ABORT]
    );
}

#[tokio::test]
async fn a_refusal_names_the_holder_and_the_way_to_take_the_role() {
    let holder = "client cc from 10.0.0.7:4000, connected for 3m";
    let answers = move |option: u32, data: &[u8]| match option {
        wire::OPT_SESSION => session_reply(&told(Some(holder))),
        proto::OPT_GO => reply(
            option,
            proto::REP_ERR_POLICY,
            b"the export is held by client cc",
        ),
        _ => ours(option, data),
    };
    let text = attach_with(ATTACH, answers)
        .await
        .0
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("export `disk` has one writer at a time"),
        "{text}"
    );
    assert!(text.contains("the export is held by client cc"), "{text}");
    assert!(text.contains("`dstd apply --steal NODE`"), "{text}");
    // An allow list's refusal has nothing to do with it.
    let go = reply(proto::OPT_GO, proto::REP_ERR_POLICY, b"not from there");
    let text = attach_with(ATTACH, but(proto::OPT_GO, go))
        .await
        .0
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("policy forbids export `disk`; the server says: not from there"),
        "{text}"
    );
    assert!(!text.contains("steal"), "{text}");
}

#[tokio::test]
async fn each_refusal_of_the_session_is_told() {
    let cases = [
        (proto::REP_ERR_UNKNOWN, "has no export `disk`"),
        (proto::REP_ERR_POLICY, "policy forbids export `disk`"),
        (
            proto::REP_ERR_INVALID,
            "refused the SESSION option: it says the request is malformed; the server says: why",
        ),
        (proto::REP_ERR_SHUTDOWN, "is shutting down"),
    ];
    for (kind, expected) in cases {
        let answer = reply(wire::OPT_SESSION, kind, b"why");
        let (result, heard) = attach_with(ATTACH, but(wire::OPT_SESSION, answer.clone())).await;
        let text = result.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!options(&heard).contains(&proto::OPT_GO));
        let text = probe_with(but(wire::OPT_SESSION, answer))
            .await
            .0
            .unwrap_err()
            .to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn lies_in_the_answer_to_session_are_named() {
    let option = wire::OPT_SESSION;
    let mut short = told(None).encode();
    short.pop();
    let cases = [
        (
            reply(option, proto::REP_ACK, b""),
            "it doesn't tell what the export is",
        ),
        (
            reply(option, wire::REP_SESSION, &short),
            "has 39 bytes, it should have 40",
        ),
        (
            reply(option, proto::REP_SERVER, b""),
            "reply type 2 doesn't belong",
        ),
        (
            reply(option, wire::REP_SESSION, &told(None).encode()).repeat(65),
            "without an end",
        ),
    ];
    for (answer, expected) in cases {
        let error = attach_with(ATTACH, but(option, answer))
            .await
            .0
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

const FENCE: Fence = Fence {
    session: ATTACH.session,
    identity: Id([1; 16]),
    incarnation: Id([2; 16]),
    slot: Slot(2),
    generation: Generation(8),
};

async fn fence_with(
    answers: impl FnMut(u32, &[u8]) -> Vec<u8> + Send + 'static,
) -> (Result<(), NbdError>, Heard) {
    let mut script = script(answers);
    script.sessions = true;
    let (mut stream, server) = start(script, 4096);
    let handshake = Handshake::new(&mut stream, soon());
    let result = handshake.fence("disk", &FENCE).await;
    drop(stream);
    (result, server.await.unwrap())
}

#[tokio::test]
async fn a_fence_is_asked_of_the_export_that_had_the_link() {
    let (result, heard) = fence_with(ours).await;
    result.unwrap();
    assert_eq!(
        options(&heard),
        [wire::OPT_SESSION, wire::OPT_FENCE, proto::OPT_ABORT]
    );
    assert!(SessionRequest::decode(&heard.1[0].1).unwrap().identify_only);
    let asked = FenceRequest {
        slot: 2,
        generation: 8,
        session: ATTACH.session,
        export: "disk".to_owned(),
    };
    assert_eq!(FenceRequest::decode(&heard.1[1].1), Ok(asked));
}

#[tokio::test]
async fn another_export_is_not_believed() {
    let other = SessionReply {
        identity: Id([9; 16]),
        ..told(None)
    };
    let (result, heard) = fence_with(but(wire::OPT_SESSION, session_reply(&other))).await;
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains(&"09".repeat(16)) && text.contains(&"01".repeat(16)),
        "{text}"
    );
    assert_eq!(options(&heard), [wire::OPT_SESSION], "it isn't even asked");
}

#[tokio::test]
async fn another_machine_with_the_same_storage_is_not_believed() {
    let other = SessionReply {
        incarnation: Id([9; 16]),
        ..told(None)
    };
    let (result, heard) = fence_with(but(wire::OPT_SESSION, session_reply(&other))).await;
    let error = result.unwrap_err();
    assert!(
        matches!(error, NbdError::OtherIncarnation { .. }),
        "{error}"
    );
    assert_eq!(options(&heard), [wire::OPT_SESSION], "it isn't even asked");
}

#[tokio::test]
async fn nothing_but_an_ack_is_a_fence() {
    let invalid = reply(wire::OPT_FENCE, proto::REP_ERR_INVALID, b"why");
    let cases = [
        (
            reply(wire::OPT_FENCE, proto::REP_ERR_UNSUP, b""),
            "knows no fences",
        ),
        (
            invalid,
            "refused the FENCE option: it says the request is malformed; the server says: why",
        ),
        (
            reply(wire::OPT_FENCE, proto::REP_SERVER, b""),
            "reply type 2 doesn't belong",
        ),
    ];
    for (answer, expected) in cases {
        let text = fence_with(but(wire::OPT_FENCE, answer))
            .await
            .0
            .unwrap_err()
            .to_string();
        assert!(text.contains(expected), "{text}");
    }
    let text = fence_with(good).await.0.unwrap_err().to_string();
    assert!(text.contains("knows no fences"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_fence_that_is_not_answered_is_none() {
    let (result, _) = fence_with(but(wire::OPT_FENCE, Vec::new())).await;
    let text = result.unwrap_err().to_string();
    let expected =
        "no answer within 10 s: the server still works on requests of the lost link in slot 2";
    assert!(text.starts_with(expected), "{text}");
}

#[tokio::test]
async fn a_probe_asks_who_holds_the_export_and_takes_nothing() {
    let answers = |option: u32, data: &[u8]| match option {
        wire::OPT_SESSION => session_reply(&told(Some("client cc"))),
        _ => ours(option, data),
    };
    let (probed, heard) = probe_with(answers).await;
    let probed = probed.unwrap();
    assert_good(&probed.negotiated);
    assert_eq!(probed.negotiated.identity, Some(Id([1; 16])));
    let writer = Writer {
        other: true,
        text: "client cc".to_owned(),
    };
    assert_eq!(probed.writer, Some(writer));
    assert_eq!(
        options(&heard),
        [wire::OPT_SESSION, proto::OPT_INFO, proto::OPT_ABORT]
    );
    let asked = SessionRequest::decode(&heard.1[0].1).unwrap();
    assert!(asked.identify_only && !asked.steal);
    let client = ATTACH.session.client;
    assert_eq!(
        asked.session,
        Session {
            client,
            nonce: Id::default()
        }
    );
}

#[tokio::test]
async fn an_empty_export_of_our_own_server_is_probed_without_entering_it() {
    let empty = |option: u32, data: &[u8]| match option {
        proto::OPT_INFO => infos(
            option,
            &[Info::Export {
                size: 0,
                flags: FLAGS,
            }],
        ),
        _ => ours(option, data),
    };
    let (probed, heard) = probe_with(empty).await;
    assert_eq!(probed.unwrap().negotiated.size.0, 0);
    assert!(!options(&heard).contains(&proto::OPT_GO));
}

#[tokio::test]
async fn a_hang_up_at_any_byte_of_the_new_answers_is_an_error() {
    let whole = ours(wire::OPT_SESSION, b"").len();
    for cut in 0..whole {
        let mut script = script(ours);
        script.sessions = true;
        script.cut = GREETING + cut;
        let (mut stream, server) = start(script, 4096);
        let handshake = Handshake::new(&mut stream, soon());
        let error = handshake.attach("disk", &ATTACH).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(
                "closed the connection while waiting for the answer to the SESSION option"
            ),
            "{cut}: {text}"
        );
        drop(stream);
        assert_eq!(options(&server.await.unwrap()), [wire::OPT_SESSION]);
    }
}
