//! Tests of `nbd::client` against scripted servers in the same process: what is sent, what
//! is read (no byte too many), how each refusal and each lie is told. No real sockets.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::client::{Deadline, Handshake};
use super::error::NbdError;
use super::proto::{self, Info, ReplyHeader};
use crate::export::wire;
use crate::kernel::{Attach, NbdFlags, Negotiated};
use crate::units::{Generation, Id, Session, Slot};

const FIXED: u16 = proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES;
pub const FLAGS: NbdFlags = NbdFlags(NbdFlags::HAS_FLAGS | NbdFlags::SEND_FLUSH);
const GIB: u64 = 1 << 30;

type Answers = Box<dyn FnMut(u32, &[u8]) -> Vec<u8> + Send>;

/// A server that says what its script says; `cut` hangs up after that many bytes.
pub struct Script {
    greeting: Vec<u8>,
    answers: Answers,
    pub cut: usize,
    /// The script answers SESSION and FENCE too; else they are unknown, and neither counted nor heard.
    pub sessions: bool,
}

/// What a script's server was told: the client's flags and the options with their data.
pub type Heard = (u32, Vec<(u32, Vec<u8>)>);

fn greeting(flags: u16) -> Vec<u8> {
    [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat()
}

pub fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    let header = ReplyHeader {
        magic: proto::REPLY_MAGIC,
        option,
        kind,
        length,
    };
    [&header.encode()[..], data].concat()
}

pub fn infos(option: u32, infos: &[Info]) -> Vec<u8> {
    let mut out = Vec::new();
    for info in infos {
        out.extend(reply(option, proto::REP_INFO, &info.encode()));
    }
    out.extend(reply(option, proto::REP_ACK, b""));
    out
}

fn good_infos() -> Vec<Info> {
    vec![
        Info::Other(77),
        Info::Export {
            size: GIB,
            flags: FLAGS,
        },
        Info::Name("disk".into()),
        Info::Description("a\tdisk".into()),
        Info::BlockSize {
            minimum: 4096,
            preferred: 65536,
            maximum: 1 << 20,
        },
    ]
}

/// Answers GO and INFO well, then says "LATER"; everything else is unknown to it.
pub fn good(option: u32, _: &[u8]) -> Vec<u8> {
    match option {
        proto::OPT_GO => [infos(option, &good_infos()), b"LATER".to_vec()].concat(),
        proto::OPT_INFO => infos(option, &good_infos()),
        _ => reply(option, proto::REP_ERR_UNSUP, b""),
    }
}

pub fn script(answers: impl FnMut(u32, &[u8]) -> Vec<u8> + Send + 'static) -> Script {
    Script {
        greeting: greeting(FIXED),
        answers: Box::new(answers),
        cut: usize::MAX,
        sessions: false,
    }
}

async fn serve(mut script: Script, mut stream: DuplexStream) -> Heard {
    let mut heard = (0, Vec::new());
    let mut left = script.cut;
    let mut flags = [0; 4];
    let mut header = [0; 16];
    if !say(&mut stream, &script.greeting, &mut left).await
        || stream.read_exact(&mut flags).await.is_err()
    {
        return heard;
    }
    heard.0 = u32::from_be_bytes(flags);
    while stream.read_exact(&mut header).await.is_ok() {
        if &header[..8] != b"IHAVEOPT" {
            heard.1.push((u32::MAX, header.to_vec()));
            break;
        }
        let option = proto::u32_at(&header, 8);
        let mut data = vec![0; proto::u32_at(&header, 12) as usize];
        if stream.read_exact(&mut data).await.is_err() {
            break;
        }
        if !script.sessions && (option == wire::OPT_SESSION || option == wire::OPT_FENCE) {
            let unknown = reply(option, proto::REP_ERR_UNSUP, b"");
            if stream.write_all(&unknown).await.is_err() {
                break;
            }
            continue;
        }
        let answer = (script.answers)(option, &data);
        heard.1.push((option, data));
        if !say(&mut stream, &answer, &mut left).await {
            break;
        }
    }
    heard
}

async fn say(stream: &mut DuplexStream, bytes: &[u8], left: &mut usize) -> bool {
    let now = bytes.len().min(*left);
    *left -= now;
    stream.write_all(&bytes[..now]).await.is_ok() && now == bytes.len()
}

/// `segment`: bytes on the way at a time.
pub fn start(script: Script, segment: usize) -> (DuplexStream, JoinHandle<Heard>) {
    let (client, server) = duplex(segment);
    (client, tokio::spawn(serve(script, server)))
}

pub fn soon() -> Deadline {
    Deadline::new(Duration::from_secs(10))
}

/// A link of a session.
pub const ATTACH: Attach = Attach {
    session: Session {
        client: Id([0xaa; 16]),
        nonce: Id([0xbb; 16]),
    },
    slot: Slot(2),
    generation: Generation(9),
    steal: false,
    timeout: None,
};

async fn attach_to(
    stream: &mut DuplexStream,
    deadline: Deadline,
    export: &str,
) -> Result<Negotiated, NbdError> {
    let handshake = Handshake::new(stream, deadline);
    handshake.attach(export, &ATTACH).await
}

async fn attach(script: Script) -> (Result<Negotiated, NbdError>, Heard) {
    let (mut stream, server) = start(script, 4096);
    let result = attach_to(&mut stream, soon(), "disk").await;
    drop(stream);
    (result, server.await.unwrap())
}

async fn probe(script: Script) -> (Result<Negotiated, NbdError>, Heard) {
    let (mut stream, server) = start(script, 4096);
    let handshake = Handshake::new(&mut stream, soon());
    let result = handshake.probe("disk", ATTACH.session.client).await;
    drop(stream);
    (
        result.map(|probed| probed.negotiated),
        server.await.unwrap(),
    )
}

/// The text of the refusal of GO by one reply.
async fn refusal(kind: u32, text: &'static [u8]) -> String {
    let (result, _) = attach(script(move |option, _| match option {
        proto::OPT_GO => reply(option, kind, text),
        _ => reply(option, proto::REP_ACK, b""),
    }))
    .await;
    result.unwrap_err().to_string()
}

pub fn assert_good(negotiated: &Negotiated) {
    assert_eq!(negotiated.size.0, GIB);
    assert_eq!(negotiated.flags, FLAGS);
    let sizes = (
        negotiated.min_block,
        negotiated.pref_block,
        negotiated.max_payload,
    );
    assert_eq!(sizes, (4096, 65536, 1 << 20));
    assert_eq!(negotiated.description.as_deref(), Some("a disk"));
}

#[tokio::test]
async fn go_negotiates_and_reads_no_byte_too_many() {
    for segment in [1, 7, 4096] {
        let (mut stream, server) = start(script(good), segment);
        let negotiated = attach_to(&mut stream, soon(), "disk").await.unwrap();
        assert_good(&negotiated);
        let mut later = [0; 5];
        stream.read_exact(&mut later).await.unwrap();
        assert_eq!(
            &later, b"LATER",
            "bytes after the handshake belong to the kernel"
        );
        drop(stream);
        let (flags, options) = server.await.unwrap();
        assert_eq!(flags, 3);
        let request = proto::encode_info_request("disk", &[2, 3]);
        assert_eq!(options, [(proto::OPT_GO, request)]);
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_at_any_byte_is_an_error() {
    let whole = greeting(FIXED).len() + good(proto::OPT_GO, b"").len() - b"LATER".len();
    for cut in 0..whole {
        let (result, _) = attach(Script {
            cut,
            ..script(good)
        })
        .await;
        let error = result.unwrap_err();
        let text = error.to_string();
        match cut {
            1..8 => assert!(matches!(error, NbdError::NotNbd(_)), "{cut}: {text}"),
            _ => assert!(text.contains("closed the connection"), "{cut}: {text}"),
        }
    }
    let (result, _) = attach(Script {
        cut: whole,
        ..script(good)
    })
    .await;
    assert_good(&result.unwrap());
}

#[tokio::test]
async fn a_probe_asks_and_leaves() {
    let (result, (_, options)) = probe(script(good)).await;
    assert_good(&result.unwrap());
    let asked: Vec<u32> = options.iter().map(|o| o.0).collect();
    assert_eq!(asked, [proto::OPT_INFO, proto::OPT_ABORT]);
}

#[tokio::test]
async fn a_probe_of_a_server_without_info_disconnects_in_order() {
    let (result, (_, options)) = probe(script(|option, _| match option {
        proto::OPT_GO => infos(option, &good_infos()),
        _ => reply(option, proto::REP_ERR_UNSUP, b""),
    }))
    .await;
    assert_good(&result.unwrap());
    assert_eq!(options[1].0, proto::OPT_GO);
    assert_eq!(
        options[2],
        (u32::MAX, proto::encode_disconnect()[..16].to_vec())
    );
}

#[tokio::test]
async fn a_size_of_zero_in_info_is_asked_again_by_go() {
    let (result, (_, options)) = probe(script(|option, _| match option {
        proto::OPT_INFO => infos(
            option,
            &[Info::Export {
                size: 0,
                flags: FLAGS,
            }],
        ),
        _ => infos(option, &good_infos()),
    }))
    .await;
    assert_good(&result.unwrap());
    assert_eq!(options[1].0, proto::OPT_GO);
}

/// EXPORT_NAME's answer has no header; `zeroes` as old servers send them.
fn export_name_server(flags: u16, zeroes: usize) -> Script {
    let answers = move |option: u32, _: &[u8]| match option {
        proto::OPT_EXPORT_NAME => {
            let mut out = GIB.to_be_bytes().to_vec();
            out.extend(FLAGS.0.to_be_bytes());
            out.extend(vec![0; zeroes]);
            out.extend(b"LATER");
            out
        }
        _ => reply(option, proto::REP_ERR_UNSUP, b""),
    };
    Script {
        greeting: greeting(flags),
        ..script(answers)
    }
}

#[tokio::test]
async fn servers_without_go_are_entered_by_export_name() {
    let cases = [
        (FIXED, 0, 2),
        (proto::FLAG_FIXED_NEWSTYLE, 124, 2),
        (0, 124, 1),
    ];
    for (flags, zeroes, asked) in cases {
        let (mut stream, server) = start(export_name_server(flags, zeroes), 4096);
        let negotiated = attach_to(&mut stream, soon(), "disk").await.unwrap();
        assert_eq!((negotiated.size.0, negotiated.flags), (GIB, FLAGS));
        let sizes = (
            negotiated.min_block,
            negotiated.pref_block,
            negotiated.max_payload,
        );
        assert_eq!(sizes, (512, 4096, 32 << 20), "the protocol's defaults");
        let mut later = [0; 5];
        stream.read_exact(&mut later).await.unwrap();
        assert_eq!(&later, b"LATER");
        drop(stream);
        let (client_flags, options) = server.await.unwrap();
        assert_eq!(client_flags, u32::from(flags));
        assert_eq!(
            options.len(),
            asked,
            "newstyle that isn't fixed takes no other option"
        );
        assert_eq!(
            options.last().unwrap(),
            &(proto::OPT_EXPORT_NAME, b"disk".to_vec())
        );
    }
}

#[tokio::test]
async fn a_refused_export_name_is_explained() {
    let (result, _) = attach(Script {
        cut: 18,
        ..export_name_server(0, 124)
    })
    .await;
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("export `disk`") && text.contains("can't say why"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_export_gets_the_servers_list() {
    let (result, (_, options)) = attach(script(|option, _| match option {
        proto::OPT_GO => reply(option, proto::REP_ERR_UNKNOWN, b"never \x1b[1mheard"),
        proto::OPT_LIST => {
            let mut out = reply(option, proto::REP_SERVER, b"\0\0\0\x05alpha");
            out.extend(reply(option, proto::REP_SERVER, b"\0\0\0\x04betaand words"));
            out.extend(reply(option, proto::REP_ACK, b""));
            out
        }
        _ => reply(option, proto::REP_ACK, b""),
    }))
    .await;
    let text = result.unwrap_err().to_string();
    assert_eq!(
        text,
        "the server has no export `disk`; the server says: never  [1mheard; exports: `alpha`, `beta`"
    );
    let asked: Vec<u32> = options.iter().map(|o| o.0).collect();
    assert_eq!(asked, [proto::OPT_GO, proto::OPT_LIST, proto::OPT_ABORT]);
}

#[tokio::test]
async fn an_endless_list_ends() {
    let (result, _) = attach(script(|option, _| match option {
        proto::OPT_GO => reply(option, proto::REP_ERR_UNKNOWN, b""),
        _ => reply(proto::OPT_LIST, proto::REP_SERVER, b"\0\0\0\x01x").repeat(3000),
    }))
    .await;
    let text = result.unwrap_err().to_string();
    assert!(text.ends_with("`x` and 990 more"), "{text}");
}

#[tokio::test]
async fn each_error_reply_is_told_with_the_servers_words() {
    let cases = [
        (
            proto::REP_ERR_POLICY,
            "the server's policy forbids export `disk`",
        ),
        (proto::REP_ERR_TLS_REQD, "TLS, which is not supported yet"),
        (proto::REP_ERR_SHUTDOWN, "the server is shutting down"),
        (
            proto::REP_ERR_INVALID,
            "refused NBD_OPT_GO: it says the request is malformed",
        ),
        (proto::REP_ERR_PLATFORM, "not possible on its platform"),
        (
            proto::REP_ERR_BLOCK_SIZE_REQD,
            "wants block sizes negotiated",
        ),
        (proto::REP_ERR_TOO_BIG, "too big"),
        (proto::REP_ERROR_BIT | 99, "error 0x80000063"),
    ];
    for (kind, expected) in cases {
        let text = refusal(kind, b"own words").await;
        assert!(text.contains(expected), "{text}");
        assert!(text.ends_with("; the server says: own words"), "{text}");
        assert!(!refusal(kind, b"").await.contains("says:"));
    }
}

#[tokio::test]
async fn strangers_are_told_by_their_greeting() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"SSH-2.0-OpenSSH_9.2",
            "it greeted with \"SSH-2.0-\" (53 53 48 2d 32 2e 30 2d)",
        ),
        (b"220", "only \"220\" (32 32 30)"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53", "oldstyle"),
        (b"NBDMAGICNONSENSE", "NBDMAGIC and then \"NONSENSE\""),
    ];
    for (greeting, expected) in cases {
        let stranger = Script {
            greeting: greeting.to_vec(),
            cut: greeting.len(),
            ..script(good)
        };
        let (mut stream, server) = start(stranger, 4096);
        server.abort();
        let _ = server.await;
        drop(stream);
        let (client, mut other) = duplex(4096);
        stream = client;
        other.write_all(greeting).await.unwrap();
        drop(other);
        let text = attach_to(&mut stream, soon(), "x")
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn lies_in_replies_are_named() {
    let huge = ReplyHeader {
        magic: proto::REPLY_MAGIC,
        option: 7,
        kind: 3,
        length: u32::MAX,
    };
    let cases: [(Vec<u8>, &str); 8] = [
        (
            [&b"NOTMAGIC"[..], &[0; 12]].concat(),
            "it begins with \"NOTMAGIC\"",
        ),
        (
            reply(proto::OPT_LIST, 1, b""),
            "it answers option 3 instead",
        ),
        (huge.encode().to_vec(), "it announces 4294967295 bytes"),
        (
            reply(7, proto::REP_SERVER, b""),
            "reply type 2 doesn't belong",
        ),
        (
            reply(7, proto::REP_INFO, b"\0\0\x01"),
            "doesn't fit its type",
        ),
        (infos(7, &[]), "doesn't tell the export's size"),
        (
            infos(
                7,
                &[Info::Export {
                    size: 1 << 63,
                    flags: FLAGS,
                }],
            ),
            "more than 2^63 - 1",
        ),
        (
            reply(7, proto::REP_INFO, &Info::Other(9).encode()).repeat(65),
            "without an end",
        ),
    ];
    for (answer, expected) in cases {
        let (result, _) = attach(script(move |_, _| answer.clone())).await;
        let text = result.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn insane_block_sizes_are_refused() {
    let infos_of = |minimum, preferred, maximum| {
        infos(
            proto::OPT_GO,
            &[
                Info::Export {
                    size: GIB,
                    flags: FLAGS,
                },
                Info::BlockSize {
                    minimum,
                    preferred,
                    maximum,
                },
            ],
        )
    };
    let answer = infos_of(3, 4096, 1 << 20);
    let (result, _) = attach(script(move |_, _| answer.clone())).await;
    let text = result.unwrap_err().to_string();
    assert!(text.contains("minimum 3 isn't a power of two"), "{text}");
    let answer = infos_of(1, 1, u32::MAX);
    let (result, _) = attach(script(move |_, _| answer.clone())).await;
    let negotiated = result.unwrap();
    let sizes = (
        negotiated.min_block,
        negotiated.pref_block,
        negotiated.max_payload,
    );
    assert_eq!(sizes, (512, 512, 32 << 20));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline_and_says_where() {
    let (client, _server) = duplex(4096);
    let mut stream = client;
    let error = attach_to(&mut stream, soon(), "x").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no answer within 10 s"), "{text}");
    assert!(text.contains("is it an NBD server?"), "{text}");

    let (mut stream, _server) = start(script(|_, _| Vec::new()), 4096);
    let limit = Deadline::new(Duration::from_millis(500));
    let error = attach_to(&mut stream, limit, "x").await.unwrap_err();
    let expected = "no answer within 0.5 s: waiting for the answer to NBD_OPT_GO";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_trickling_server_meets_the_same_deadline() {
    let (mut client, mut server) = duplex(4096);
    tokio::spawn(async move {
        let mut flags = [0; 4];
        server.write_all(&greeting(FIXED)).await.unwrap();
        server.read_exact(&mut flags).await.unwrap();
        let info = reply(proto::OPT_GO, proto::REP_INFO, &Info::Other(9).encode());
        for byte in info.iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if server.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    });
    let begin = tokio::time::Instant::now();
    let error = attach_to(&mut client, soon(), "x").await.unwrap_err();
    assert!(matches!(error, NbdError::Timeout { .. }), "{error}");
    assert_eq!(begin.elapsed().as_secs(), 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn garbage_never_panics_nor_hangs(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        keep in 0usize..200,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let honest = [greeting(FIXED), good(proto::OPT_GO, b"")].concat();
            let bytes = [&honest[..keep.min(honest.len())], &noise[..]].concat();
            let (mut client, mut server) = duplex(1 << 16);
            server.write_all(&bytes).await.unwrap();
            server.shutdown().await.unwrap();
            let _ = attach_to(&mut client, soon(), "x").await;
        });
    }
}
