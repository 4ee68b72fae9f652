//! A handshake that breaks off at each byte, in each way: the server forgets it and serves the next client.

use nbdpeer::handshake::{encode_option, info_data, meta_data};
use nbdpeer::{Mode, Session, proto::*};

use crate::support::{Server, Setup, pattern};

const SIZE: u64 = 1 << 20;

/// All that a DST client says until it is in the transmission phase, and a request.
fn conversation() -> Vec<u8> {
    let session = Session {
        client: [7; 16],
        nonce: [9; 16],
        export: "disk".to_owned(),
        ..Session::default()
    };
    [
        (FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec(),
        encode_option(OPT_LIST, b""),
        encode_option(OPT_EXTENDED_HEADERS, b""),
        encode_option(OPT_SET_META, &meta_data(b"disk", &["base:allocation"])),
        encode_option(OPT_INFO, &info_data(b"disk", &[INFO_NAME, INFO_BLOCK_SIZE])),
        encode_option(OPT_FENCE, &session.fence().encode()),
        encode_option(
            OPT_SESSION,
            &Session {
                generation: 1,
                ..session
            }
            .encode(),
        ),
        encode_option(OPT_GO, &info_data(b"disk", &[INFO_BLOCK_SIZE])),
        nbdpeer::Request::write(0, vec![0xcc; 64]).encode(Mode::Extended),
    ]
    .concat()
}

#[test]
fn an_end_at_any_byte_leaves_nothing_behind() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let bytes = conversation();
    for cut in 0..bytes.len() {
        for end in 0..4 {
            let mut peer = match end {
                0 => server.connect(),
                _ => server.connect_tcp(),
            };
            // The server may have hung up: that is its right.
            let _ = peer.send(&bytes[..cut]);
            match end {
                0 | 1 => drop(peer),
                2 => peer.reset(),
                _ => {
                    peer.half_close().unwrap();
                    peer.receive_to_end().unwrap();
                }
            }
        }
    }
    server.wait_connections(0);
    assert!(
        server.contents("disk") == pattern(0, SIZE as usize),
        "a part of a write was applied"
    );
    // The session that came and went in thousands of links holds nothing: it was lost, not disconnected, so
    // its own client comes back at once.
    let mut peer = server.hello();
    let session = Session {
        client: [7; 16],
        nonce: [9; 16],
        generation: 2,
        export: "disk".to_owned(),
        ..Session::default()
    };
    peer.session(&session).unwrap();
    assert!(!peer.go("disk").unwrap().has(READ_ONLY));
    peer.write(0, &[1; 512]).unwrap();
}

#[test]
fn all_options_at_once_in_one_segment_are_answered_in_order() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let mut peer = server.connect();
    assert_eq!(peer.receive(18).unwrap().len(), 18);
    peer.send(&conversation()).unwrap();
    assert_eq!(peer.replies(OPT_LIST).unwrap().len(), 1);
    peer.replies(OPT_EXTENDED_HEADERS).unwrap();
    assert_eq!(peer.replies(OPT_SET_META).unwrap().len(), 1);
    assert_eq!(peer.told(OPT_INFO).unwrap().size, SIZE);
    peer.replies(OPT_FENCE).unwrap();
    assert_eq!(peer.replies(OPT_SESSION).unwrap().len(), 1);
    assert_eq!(peer.told(OPT_GO).unwrap().size, SIZE);
    peer.mode = Mode::Extended;
    assert_eq!(peer.answer().unwrap().error, 0);
    assert_eq!(peer.read(0, 64).unwrap(), [0xcc; 64]);
}
