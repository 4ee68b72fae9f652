//! Replies byte by byte, as the standard writes them.

use super::*;

fn to(mode: ReplyMode) -> To {
    To {
        mode,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1000,
    }
}

fn bytes(fill: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
    let mut out = [0xee; 256];
    let len = fill(&mut out);
    out[..len].to_vec()
}

const COOKIE: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08";

#[test]
fn success_is_the_standards_bytes() {
    let simple = [b"\x67\x44\x66\x98\0\0\0\0", COOKIE].concat();
    for mode in [ReplyMode::Simple, ReplyMode::Structured] {
        assert_eq!(bytes(|out| done(out, to(mode))), simple);
    }
    let extended = [
        b"\x6e\x8a\x27\x8c\0\x01\0\0",
        COOKIE,
        b"\0\0\0\0\0\0\x10\0",
        &[0; 8],
    ]
    .concat();
    assert_eq!(bytes(|out| done(out, to(ReplyMode::Extended))), extended);
}

#[test]
fn data_headers_are_the_standards_bytes() {
    let head = |mode, done| bytes(|out| read_head(out, to(mode), 0x2000, 512, done));
    let simple = [b"\x67\x44\x66\x98\0\0\0\0", COOKIE].concat();
    assert_eq!(head(ReplyMode::Simple, true), simple);
    let structured = [
        b"\x66\x8e\x33\xef\0\x01\0\x01",
        COOKIE,
        b"\0\0\x02\x08",
        b"\0\0\0\0\0\0\x20\0",
    ]
    .concat();
    assert_eq!(head(ReplyMode::Structured, true), structured);
    assert_eq!(
        head(ReplyMode::Structured, false)[5],
        0,
        "not the last chunk"
    );
    let extended = [
        b"\x6e\x8a\x27\x8c\0\x01\0\x01",
        COOKIE,
        b"\0\0\0\0\0\0\x10\0",
        b"\0\0\0\0\0\0\x02\x08",
        b"\0\0\0\0\0\0\x20\0",
    ]
    .concat();
    assert_eq!(head(ReplyMode::Extended, true), extended);
    for mode in [
        ReplyMode::Simple,
        ReplyMode::Structured,
        ReplyMode::Extended,
    ] {
        assert_eq!(head(mode, true).len(), read_head_len(mode));
    }
}

#[test]
fn errors_carry_their_text_where_there_is_room() {
    let refusal = Refusal::new(ENOSPC, "full");
    let simple = [b"\x67\x44\x66\x98\0\0\0\x1c", COOKIE].concat();
    assert_eq!(
        bytes(|out| error(out, to(ReplyMode::Simple), refusal)),
        simple
    );
    let structured = [
        b"\x66\x8e\x33\xef\0\x01\x80\x01",
        COOKIE,
        b"\0\0\0\x0a",
        b"\0\0\0\x1c\0\x04full",
    ]
    .concat();
    assert_eq!(
        bytes(|out| error(out, to(ReplyMode::Structured), refusal)),
        structured
    );
    let long = Refusal::new(EIO, std::str::from_utf8(&[b'x'; 400]).unwrap());
    let found = bytes(|out| error(out, to(ReplyMode::Extended), long));
    assert!(found.len() <= SHORT_REPLY);
    assert_eq!(found.len(), 32 + 6 + 128);
}

#[test]
fn block_status_is_the_standards_bytes() {
    let runs = [
        Run {
            length: 4096,
            hole: true,
            zero: true,
        },
        Run {
            length: 512,
            hole: false,
            zero: false,
        },
    ];
    let structured = [
        b"\x66\x8e\x33\xef\0\x01\0\x05",
        COOKIE,
        b"\0\0\0\x14\0\0\0\x09",
        b"\0\0\x10\0\0\0\0\x03",
        b"\0\0\x02\0\0\0\0\0",
    ]
    .concat();
    let found = bytes(|out| block_status(out, to(ReplyMode::Structured), 9, &runs));
    assert_eq!(found, structured);
    assert_eq!(found.len(), block_status_len(ReplyMode::Structured, 2));
    let large = [Run {
        length: 1 << 40,
        hole: true,
        zero: true,
    }];
    let extended = [
        b"\x6e\x8a\x27\x8c\0\x01\0\x06",
        COOKIE,
        b"\0\0\0\0\0\0\x10\0",
        b"\0\0\0\0\0\0\0\x18",
        b"\0\0\0\x09\0\0\0\x01",
        b"\0\0\x01\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\x03",
    ]
    .concat();
    let found = bytes(|out| block_status(out, to(ReplyMode::Extended), 9, &large));
    assert_eq!(found, extended);
    assert_eq!(found.len(), block_status_len(ReplyMode::Extended, 1));
}

#[test]
fn the_systems_errors_become_the_protocols() {
    let table = [
        (Errno::EIO, EIO),
        (Errno::ENXIO, EIO),
        (Errno::EROFS, EPERM),
        (Errno::EACCES, EPERM),
        (Errno::EPERM, EPERM),
        (Errno::ENOSPC, ENOSPC),
        (Errno::EDQUOT, ENOSPC),
        (Errno::EFBIG, ENOSPC),
        (Errno::ENOMEM, ENOMEM),
        (Errno::EINVAL, EINVAL),
        (Errno::EOVERFLOW, EOVERFLOW),
        (Errno::EOPNOTSUPP, ENOTSUP),
        (Errno::ESHUTDOWN, ESHUTDOWN),
    ];
    for (errno, expected) in table {
        assert_eq!(refusal_of(&errno.into()).errno, expected, "{errno}");
    }
    let short = io::Error::from(io::ErrorKind::UnexpectedEof);
    assert_eq!(refusal_of(&short).errno, EIO);
}
