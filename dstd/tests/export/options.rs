//! Each option with right and with wrong data; after a refusal the handshake goes on.

use nbdpeer::handshake::{info_data, meta_data, string};
use nbdpeer::{Mode, Peer, Request, Session, proto::*};

use crate::support::{Server, Setup, pattern};

const SIZE: u64 = 1 << 20;

fn server() -> Server {
    let setup = Setup::new().image("disk", SIZE).image("other", 2 * SIZE);
    Server::start(setup)
}

/// The type of the error reply, and that the next option is understood.
fn refusal(peer: &mut Peer, option: u32, data: &[u8]) -> u32 {
    let error = match peer.option(option, data) {
        Ok(replies) => panic!("option {option:#x} with {data:x?} was taken: {replies:x?}"),
        Err(error) => error,
    };
    let kind = error.refusal();
    let kind = kind.unwrap_or_else(|| panic!("option {option:#x} with {data:x?}: {error}"));
    assert_eq!(
        peer.list().unwrap(),
        ["disk", "other"],
        "after option {option:#x}"
    );
    kind
}

#[test]
fn the_greeting_is_fixed_newstyle_without_zeroes() {
    let server = server();
    let mut peer = server.connect();
    let flags = peer.greet(FIXED_NEWSTYLE | NO_ZEROES).unwrap();
    assert_eq!(u32::from(flags), FIXED_NEWSTYLE | NO_ZEROES);
}

#[test]
fn client_flags_that_nobody_knows_end_the_connection() {
    let server = server();
    for flags in [4, 1 << 31, u32::MAX, 0x0300_0000] {
        let mut peer = server.connect();
        peer.greet(flags).unwrap();
        assert!(peer.is_closed_by_server(), "{flags:#x}");
    }
}

#[test]
fn export_name_enters_with_and_without_zeroes_and_hangs_up_on_unknown_names() {
    let server = server();
    for flags in [FIXED_NEWSTYLE, FIXED_NEWSTYLE | NO_ZEROES] {
        let mut peer = server.connect();
        peer.greet(flags).unwrap();
        let told = peer.export_name(b"disk").unwrap();
        assert_eq!(told.size, SIZE);
        assert!(told.has(HAS_FLAGS) && !told.has(SEND_DF));
        assert!(peer.read(512, 512).unwrap() == pattern(512, 512));
        let mut peer = server.connect();
        peer.greet(flags).unwrap();
        peer.send_option(OPT_EXPORT_NAME, b"nodisk").unwrap();
        assert!(peer.is_closed_by_server());
    }
}

#[test]
fn a_magic_number_that_isnt_ends_the_connection() {
    let server = server();
    for bit in 0..64 {
        let mut peer = server.hello();
        let mut bytes = nbdpeer::handshake::encode_option(OPT_LIST, b"");
        bytes[bit / 8] ^= 1 << (bit % 8);
        peer.send(&bytes).unwrap();
        assert!(peer.is_closed_by_server(), "bit {bit}");
    }
}

#[test]
fn unknown_options_are_unsupported_whatever_they_carry() {
    let server = server();
    let mut peer = server.hello();
    for option in [0, 4, 12, 99, 0x4453_5400, 0x4453_5403, 1 << 31, u32::MAX] {
        for data in [vec![], vec![0; 1], vec![0x49; 5000], vec![0; 60_000]] {
            assert_eq!(refusal(&mut peer, option, &data), ERR_UNSUP, "{option:#x}");
        }
    }
    // Nothing may be kept ready for what is only announced.
    let mut peer = server.hello();
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(99u32.to_be_bytes());
    bytes.extend(u32::MAX.to_be_bytes());
    peer.send(&bytes).unwrap();
    peer.half_close().unwrap();
    let left = peer.receive_to_end();
    assert!(
        left.is_ok_and(|left| left.len() <= 4200),
        "an endless option isn't answered with more than an error"
    );
}

#[test]
fn tls_is_refused_in_order() {
    let server = server();
    let mut peer = server.hello();
    let kind = refusal(&mut peer, OPT_STARTTLS, b"");
    assert!([ERR_UNSUP, ERR_POLICY].contains(&kind), "{kind:#x}");
    let kind = refusal(&mut peer, OPT_STARTTLS, b"data");
    assert!(
        [ERR_UNSUP, ERR_POLICY, ERR_INVALID].contains(&kind),
        "{kind:#x}"
    );
    assert_eq!(peer.go("disk").unwrap().size, SIZE);
}

#[test]
fn options_without_data_refuse_data() {
    let server = server();
    let mut peer = server.hello();
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        assert_eq!(refusal(&mut peer, option, b"x"), ERR_INVALID, "{option}");
    }
}

#[test]
fn info_and_go_refuse_data_that_doesnt_add_up() {
    let server = server();
    let good = info_data(b"disk", &[INFO_BLOCK_SIZE]);
    for option in [OPT_INFO, OPT_GO] {
        let mut peer = server.hello();
        for cut in 0..good.len() {
            assert_eq!(
                refusal(&mut peer, option, &good[..cut]),
                ERR_INVALID,
                "{cut}"
            );
        }
        let longer = [&good[..], b"x"].concat();
        assert_eq!(refusal(&mut peer, option, &longer), ERR_INVALID);
        let mut huge = good.clone();
        huge[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(refusal(&mut peer, option, &huge), ERR_INVALID);
        assert_eq!(peer.ask(option, b"disk").unwrap().size, SIZE);
    }
}

#[test]
fn names_that_are_no_export_are_unknown_and_reach_no_file() {
    let server = server();
    let image = server.file("disk");
    let image = image.to_str().unwrap();
    let long = "x".repeat(4097);
    let names: [&[u8]; 14] = [
        b"",
        b"nodisk",
        b"Disk",
        b"disk ",
        b"disk\0",
        b"disk\0other",
        b"../disk",
        b"./disk",
        b"/dev/null",
        image.as_bytes(),
        b"disk/../disk",
        b"\xff\xfe",
        &long.as_bytes()[..4096],
        long.as_bytes(),
    ];
    let mut peer = server.hello();
    for name in names {
        let shown = String::from_utf8_lossy(&name[..name.len().min(80)]);
        // What isn't text, or longer than the protocol's strings, isn't a name at all.
        let malformed = std::str::from_utf8(name).is_err() || name.len() > 4096;
        let fits =
            |kind| kind == ERR_UNKNOWN || (malformed && [ERR_INVALID, ERR_TOO_BIG].contains(&kind));
        for option in [OPT_INFO, OPT_GO] {
            let kind = refusal(&mut peer, option, &info_data(name, &[]));
            assert!(fits(kind), "{shown}: {kind:#x}");
        }
        peer.structured().unwrap();
        for option in [OPT_LIST_META, OPT_SET_META] {
            let data = [string(name), 0u32.to_be_bytes().to_vec()].concat();
            let kind = refusal(&mut peer, option, &data);
            assert!(fits(kind), "{shown}: {kind:#x}");
        }
        peer = server.hello();
        peer.send_option(OPT_EXPORT_NAME, name).unwrap();
        assert!(peer.is_closed_by_server(), "{shown}");
        peer = server.hello();
    }
}

#[test]
fn the_only_export_is_the_default() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    assert_eq!(server.hello().go("").unwrap().size, SIZE);
    assert_eq!(server.hello().export_name(b"").unwrap().size, SIZE);
}

#[test]
fn go_tells_all_there_is_to_know() {
    let server = server();
    let told = server.hello().go("other").unwrap();
    assert_eq!(told.size, 2 * SIZE);
    assert_eq!(told.name.as_deref(), Some("other"));
    let (minimum, preferred, payload) = told.block.unwrap();
    assert_eq!((minimum, payload), (1, 32 << 20));
    assert!(preferred.is_power_of_two() && preferred >= 512);
    let always = HAS_FLAGS
        | SEND_FLUSH
        | SEND_FUA
        | SEND_TRIM
        | SEND_WRITE_ZEROES
        | CAN_MULTI_CONN
        | SEND_CACHE;
    assert_eq!(told.flags & always, always, "{:#x}", told.flags);
    assert!(
        !told.has(READ_ONLY) && !told.has(SEND_DF),
        "{:#x}",
        told.flags
    );
    let mut peer = server.hello();
    peer.structured().unwrap();
    assert!(peer.go("disk").unwrap().has(SEND_DF));
    // INFO promises nothing: the same connection may ask for another and enter a third.
    let mut peer = server.hello();
    assert_eq!(peer.info("other").unwrap().size, 2 * SIZE);
    assert_eq!(peer.go("disk").unwrap().size, SIZE);
    assert!(peer.read(0, 512).unwrap() == pattern(0, 512));
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let server = server();
    let mut peer = server.hello();
    peer.option(OPT_ABORT, b"").unwrap();
    assert!(peer.is_closed_by_server());
    server.wait_connections(0);
}

#[test]
fn a_hundred_exports_are_listed_and_each_is_itself() {
    let setup = (0..100).fold(Setup::new(), |setup, n| {
        setup.sparse(&format!("disk{n:02}"), 4096 * (n + 1))
    });
    let server = Server::start(setup);
    let names: Vec<_> = (0..100).map(|n| format!("disk{n:02}")).collect();
    assert_eq!(server.hello().list().unwrap(), names);
    let mut peer = server.hello();
    for (n, name) in names.iter().enumerate() {
        assert_eq!(peer.info(name).unwrap().size, 4096 * (n as u64 + 1));
        let mut link = server.link(name, Mode::Simple);
        link.write(0, &[n as u8 + 1; 4096]).unwrap();
    }
    for (n, name) in names.iter().enumerate() {
        assert_eq!(server.contents(name)[..4096], [n as u8 + 1; 4096]);
    }
}

#[test]
fn meta_contexts_need_structured_replies() {
    let server = server();
    let mut peer = server.hello();
    for option in [OPT_LIST_META, OPT_SET_META] {
        let data = meta_data(b"disk", &["base:allocation"]);
        assert_eq!(refusal(&mut peer, option, &data), ERR_INVALID);
    }
}

#[test]
fn meta_contexts_are_listed_and_chosen_as_asked() {
    let server = server();
    let mut peer = server.hello();
    peer.structured().unwrap();
    let names = |contexts: Vec<(u32, String)>| -> Vec<String> {
        contexts.into_iter().map(|(_, name)| name).collect()
    };
    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["qemu:dirty-bitmap:x", "base:allocation"], true),
        (&["base:allocation", "base:allocation"], true),
        (&["base:allocatio"], false),
        (&["base:allocation "], false),
        (&["BASE:allocation"], false),
        (&["qemu:"], false),
        (&[""], false),
        (&[":"], false),
    ] {
        let listed = names(peer.meta(OPT_LIST_META, "disk", queries).unwrap());
        let expected: &[&str] = if found { &["base:allocation"] } else { &[] };
        assert_eq!(listed, expected, "LIST {queries:?}");
        // A choice names its contexts: nothing is chosen by leaving it out.
        let chosen = names(peer.meta(OPT_SET_META, "disk", queries).unwrap());
        let expected = match queries.contains(&"base:allocation") {
            true => expected,
            false => &[],
        };
        assert_eq!(chosen, expected, "SET {queries:?}");
    }
}

#[test]
fn malformed_meta_queries_are_refused() {
    let server = server();
    let mut peer = server.hello();
    peer.structured().unwrap();
    let good = meta_data(b"disk", &["base:allocation", "x:y"]);
    for option in [OPT_LIST_META, OPT_SET_META] {
        for cut in 0..good.len() {
            assert_eq!(
                refusal(&mut peer, option, &good[..cut]),
                ERR_INVALID,
                "{cut}"
            );
        }
        let longer = [&good[..], b"x"].concat();
        assert_eq!(refusal(&mut peer, option, &longer), ERR_INVALID);
        let mut many = string(b"disk");
        many.extend(u32::MAX.to_be_bytes());
        assert_eq!(refusal(&mut peer, option, &many), ERR_INVALID);
    }
}

/// What BLOCK_STATUS is answered with on a link that went through these choices.
fn status_after(server: &Server, mode: Mode, choices: &[(&str, &[&str])]) -> u32 {
    let mut peer = server.hello();
    peer.negotiate(mode).unwrap();
    for (export, queries) in choices {
        peer.meta(OPT_SET_META, export, queries).unwrap();
    }
    peer.go("disk").unwrap();
    let answer = peer.call(Request::new(BLOCK_STATUS, 0, 4096)).unwrap();
    assert!(peer.read(0, 512).unwrap() == pattern(0, 512));
    answer.error
}

#[test]
fn the_last_choice_of_contexts_for_the_entered_export_counts() {
    let server = server();
    let base: &[&str] = &["base:allocation"];
    for mode in [Mode::Structured, Mode::Extended] {
        assert_eq!(status_after(&server, mode, &[]), EINVAL);
        assert_eq!(status_after(&server, mode, &[("disk", base)]), 0);
        assert_eq!(status_after(&server, mode, &[("disk", &["x:y"])]), EINVAL);
        let emptied = [("disk", base), ("disk", &[])];
        assert_eq!(
            status_after(&server, mode, &emptied),
            EINVAL,
            "an empty choice"
        );
        assert_eq!(
            status_after(&server, mode, &[("other", base)]),
            EINVAL,
            "another export's"
        );
        let both = [("disk", base), ("other", base)];
        assert_eq!(
            status_after(&server, mode, &both),
            EINVAL,
            "the last was another's"
        );
    }
    // LIST chooses nothing.
    let mut peer = server.hello();
    peer.structured().unwrap();
    peer.meta(OPT_LIST_META, "disk", base).unwrap();
    peer.go("disk").unwrap();
    let answer = peer.call(Request::new(BLOCK_STATUS, 0, 4096)).unwrap();
    assert_eq!(answer.error, EINVAL);
    // A choice that was refused has undone the one before it.
    let mut peer = server.hello();
    peer.structured().unwrap();
    peer.allocation("disk").unwrap();
    assert_eq!(
        refusal(&mut peer, OPT_SET_META, &meta_data(b"nodisk", base)),
        ERR_UNKNOWN
    );
    peer.go("disk").unwrap();
    let answer = peer.call(Request::new(BLOCK_STATUS, 0, 4096)).unwrap();
    assert_eq!(answer.error, EINVAL);
}

#[test]
fn extended_headers_include_structured_replies() {
    let server = server();
    let mut peer = server.hello();
    peer.extended().unwrap();
    peer.allocation("disk").unwrap();
    assert!(peer.go("disk").unwrap().has(SEND_DF));
    let mut peer = server.hello();
    peer.structured().unwrap();
    peer.extended().unwrap();
    peer.go("disk").unwrap();
    assert!(peer.read(0, 512).unwrap() == pattern(0, 512));
}

#[test]
fn private_options_refuse_data_that_doesnt_add_up() {
    let server = server();
    let session = Session {
        client: [1; 16],
        nonce: [2; 16],
        export: "disk".to_owned(),
        ..Session::default()
    };
    let good = session.encode();
    let mut peer = server.hello();
    for option in [OPT_SESSION, OPT_FENCE] {
        for cut in 0..good.len() {
            assert_eq!(
                refusal(&mut peer, option, &good[..cut]),
                ERR_INVALID,
                "{cut}"
            );
        }
        let longer = [&good[..], b"x"].concat();
        assert_eq!(refusal(&mut peer, option, &longer), ERR_INVALID);
        for (at, byte, what) in [(1, 2, "version"), (2, 0x80, "flags"), (4, 1, "slot")] {
            let mut wrong = good.clone();
            wrong[at] = byte;
            assert_eq!(refusal(&mut peer, option, &wrong), ERR_INVALID, "{what}");
        }
        let nodisk = Session {
            export: "nodisk".to_owned(),
            ..session.clone()
        };
        assert_eq!(refusal(&mut peer, option, &nodisk.encode()), ERR_UNKNOWN);
    }
    let mut stolen_fence = good.clone();
    stolen_fence[3] = 1;
    assert_eq!(refusal(&mut peer, OPT_FENCE, &stolen_fence), ERR_INVALID);
    peer.session(&session).unwrap();
    peer.go("disk").unwrap();
    peer.write(0, &pattern(0, 512)).unwrap();
}

#[test]
fn who_may_not_come_is_refused_and_sees_nothing() {
    let setup = Setup::new()
        .image("disk", SIZE)
        .image("secret", SIZE)
        .allow("secret", "10.99.0.0/16");
    let server = Server::start(setup);
    let mut peer = Peer::hello(&server.tcp()).unwrap();
    for option in [OPT_INFO, OPT_GO] {
        let refused = peer.ask(option, b"secret").unwrap_err();
        let kind = refused.refusal();
        assert!(
            [Some(ERR_POLICY), Some(ERR_UNKNOWN)].contains(&kind),
            "{refused}"
        );
    }
    peer.structured().unwrap();
    let refused = peer.allocation("secret").unwrap_err().refusal();
    assert!([Some(ERR_POLICY), Some(ERR_UNKNOWN)].contains(&refused));
    for option in [OPT_SESSION, OPT_FENCE] {
        let session = Session {
            client: [1; 16],
            export: "secret".to_owned(),
            ..Session::default()
        };
        let refused = peer
            .option(option, &session.encode())
            .unwrap_err()
            .refusal();
        assert!([Some(ERR_POLICY), Some(ERR_UNKNOWN)].contains(&refused));
    }
    let mut by_name = Peer::hello(&server.tcp()).unwrap();
    by_name.send_option(OPT_EXPORT_NAME, b"secret").unwrap();
    assert!(by_name.is_closed_by_server());
    assert_eq!(peer.go("disk").unwrap().size, SIZE);
}
