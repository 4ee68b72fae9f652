//! Each rule for requests, command by command and flag by flag.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn rules(mode: ReplyMode) -> Rules {
    Rules {
        mode,
        size: 64 * MIB,
        min_block: 512,
        max_payload: 32 << 20,
        read_only: false,
        flags: NbdFlags(
            NbdFlags::SEND_FLUSH
                | NbdFlags::SEND_FUA
                | NbdFlags::SEND_TRIM
                | NbdFlags::SEND_WRITE_ZEROES
                | SEND_DF
                | SEND_CACHE
                | SEND_FAST_ZERO,
        ),
        block_status: true,
    }
}

fn header(command: u16, flags: u16, offset: u64, length: u64) -> Header {
    Header {
        flags,
        command,
        cookie: 7,
        offset,
        length,
    }
}

/// The error that a request is refused with; `None`: it is served.
fn errno(rules: &Rules, header: Header) -> Option<u32> {
    match rules.judge(&header) {
        Verdict::Serve(_) => None,
        Verdict::Refuse { refusal, .. } => Some(refusal.errno),
        other => panic!("{header:?}: {other:?}"),
    }
}

const ALL: [u16; 6] = [
    CMD_READ,
    CMD_WRITE,
    CMD_TRIM,
    CMD_CACHE,
    CMD_WRITE_ZEROES,
    CMD_BLOCK_STATUS,
];

#[test]
fn ranges_are_checked_for_each_command() {
    let rules = rules(ReplyMode::Structured);
    for command in ALL {
        let at = |offset, length| errno(&rules, header(command, 0, offset, length));
        let beyond = match command {
            CMD_WRITE | CMD_WRITE_ZEROES => ENOSPC,
            _ => EINVAL,
        };
        assert_eq!(at(0, 4096), None, "{command}");
        assert_eq!(at(64 * MIB - 512, 512), None, "{command}: the last block");
        assert_eq!(
            at(64 * MIB - 512, 1024),
            Some(beyond),
            "{command}: across the end"
        );
        assert_eq!(at(64 * MIB, 512), Some(beyond), "{command}: behind the end");
        assert_eq!(
            at(u64::MAX - 511, 512),
            Some(beyond),
            "{command}: the sum wraps"
        );
        assert_eq!(at(0, 0), Some(EINVAL), "{command}: no length");
        assert_eq!(at(1, 512), Some(EINVAL), "{command}: offset unaligned");
        assert_eq!(at(512, 100), Some(EINVAL), "{command}: length unaligned");
    }
}

#[test]
fn read_only_exports_take_no_change() {
    let rules = Rules {
        read_only: true,
        ..rules(ReplyMode::Simple)
    };
    for command in ALL {
        let expected = match command {
            CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES => Some(EPERM),
            _ => None,
        };
        assert_eq!(
            errno(&rules, header(command, 0, 0, 512)),
            expected,
            "{command}"
        );
    }
    assert_eq!(errno(&rules, header(CMD_FLUSH, 0, 0, 0)), None);
}

#[test]
fn flags_belong_to_their_commands() {
    let rules = rules(ReplyMode::Structured);
    let allowed = |command| match command {
        CMD_READ => FLAG_DF,
        CMD_WRITE_ZEROES => FLAG_NO_HOLE | FLAG_FAST_ZERO,
        CMD_BLOCK_STATUS => FLAG_REQ_ONE,
        _ => 0,
    };
    for command in ALL {
        for bit in 0..16 {
            let flag = 1 << bit;
            let fits = flag == FLAG_FUA || allowed(command) & flag != 0;
            let expected = (!fits).then_some(EINVAL);
            let found = errno(&rules, header(command, flag, 0, 512));
            assert_eq!(found, expected, "command {command}, flag bit {bit}");
        }
    }
}

#[test]
fn what_was_not_offered_is_refused() {
    let rules = Rules {
        flags: NbdFlags(NbdFlags::HAS_FLAGS),
        block_status: false,
        ..rules(ReplyMode::Structured)
    };
    for command in [CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS] {
        assert_eq!(
            errno(&rules, header(command, 0, 0, 512)),
            Some(EINVAL),
            "{command}"
        );
    }
    assert_eq!(errno(&rules, header(CMD_FLUSH, 0, 0, 0)), Some(EINVAL));
    assert_eq!(
        errno(&rules, header(CMD_WRITE, FLAG_FUA, 0, 512)),
        Some(EINVAL)
    );
    assert_eq!(
        errno(&rules, header(CMD_READ, FLAG_DF, 0, 512)),
        Some(EINVAL)
    );
    assert_eq!(errno(&rules, header(CMD_READ, 0, 0, 512)), None);
    assert_eq!(errno(&rules, header(CMD_WRITE, 0, 0, 512)), None);
}

#[test]
fn flush_has_no_range_and_unknown_commands_are_invalid() {
    let rules = rules(ReplyMode::Simple);
    assert_eq!(errno(&rules, header(CMD_FLUSH, 0, 0, 0)), None);
    assert_eq!(errno(&rules, header(CMD_FLUSH, 0, 512, 0)), Some(EINVAL));
    assert_eq!(errno(&rules, header(CMD_FLUSH, 0, 0, 512)), Some(EINVAL));
    for command in [8, 9, 255, u16::MAX] {
        assert_eq!(errno(&rules, header(command, 0, 0, 512)), Some(EINVAL));
    }
}

#[test]
fn a_payload_too_large_is_drained_within_reason() {
    let compact = rules(ReplyMode::Simple);
    let write = |length| header(CMD_WRITE, 0, 0, length);
    let drained = compact.judge(&write((32 << 20) + 512));
    let Verdict::Refuse { refusal, payload } = drained else {
        panic!("{drained:?}");
    };
    assert_eq!((refusal.errno, payload), (EINVAL, (32 << 20) + 512));
    assert!(matches!(
        compact.judge(&write((64 << 20) + 512)),
        Verdict::Fatal(_)
    ));
    let extended = rules(ReplyMode::Extended);
    let write = header(CMD_WRITE, FLAG_PAYLOAD_LEN, 0, (32 << 20) + 512);
    assert!(matches!(extended.judge(&write), Verdict::Fatal(_)));
    let read = header(CMD_READ, 0, 0, (32 << 20) + 512);
    assert_eq!(errno(&compact, read), Some(EOVERFLOW));
}

#[test]
fn extended_payloads_are_what_the_flag_says() {
    let rules = rules(ReplyMode::Extended);
    let refused = |header: Header| match rules.judge(&header) {
        Verdict::Refuse { refusal, payload } => (refusal.errno, payload),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        errno(&rules, header(CMD_WRITE, FLAG_PAYLOAD_LEN, 0, 512)),
        None
    );
    // As qemu does it.
    let unsaid = header(CMD_WRITE, 0, 0, 512);
    assert_eq!(errno(&rules, unsaid), None);
    assert_eq!(unsaid.payload(ReplyMode::Extended), 512);
    for command in [CMD_READ, CMD_BLOCK_STATUS, CMD_TRIM, 77] {
        let header = header(command, FLAG_PAYLOAD_LEN, 0, 512);
        assert_eq!(refused(header), (EINVAL, 512), "{command}");
    }
    // A length beyond 32 bits is an effect, not a payload.
    let all = Rules {
        size: 1 << 40,
        ..rules
    };
    assert_eq!(errno(&all, header(CMD_TRIM, 0, 0, 1 << 40)), None);
}

#[test]
fn fua_counts_only_where_something_changes() {
    let rules = rules(ReplyMode::Simple);
    for command in ALL {
        let Verdict::Serve(request) = rules.judge(&header(command, FLAG_FUA, 0, 512)) else {
            panic!("{command}");
        };
        let modifies = matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        assert_eq!(request.fua, modifies, "{command}");
    }
}

fn encode(header: &Header, mode: ReplyMode) -> Vec<u8> {
    let mut out = Vec::new();
    let extended = mode == ReplyMode::Extended;
    let magic = if extended {
        EXTENDED_REQUEST_MAGIC
    } else {
        REQUEST_MAGIC
    };
    out.extend(magic.to_be_bytes());
    out.extend(header.flags.to_be_bytes());
    out.extend(header.command.to_be_bytes());
    out.extend(header.cookie.to_be_bytes());
    out.extend(header.offset.to_be_bytes());
    if extended {
        out.extend(header.length.to_be_bytes());
    } else {
        out.extend((header.length as u32).to_be_bytes());
    }
    out
}

proptest! {
    #[test]
    fn headers_survive_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        let header = Header { flags, command, cookie, offset, length: length.into() };
        for mode in [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended] {
            let bytes = encode(&header, mode);
            prop_assert_eq!(bytes.len(), header_len(mode));
            prop_assert_eq!(Header::decode(&bytes, mode), Some(header));
            let mut wrong = bytes;
            wrong[0] ^= 1;
            prop_assert_eq!(Header::decode(&wrong, mode), None);
        }
    }

    #[test]
    fn whatever_is_served_lies_within_the_export(
        flags in 0u16..64, command in 0u16..10, offset: u64, length: u64, read_only: bool,
    ) {
        for mode in [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended] {
            let rules = Rules { read_only, ..rules(mode) };
            let header = header(command, flags, offset % (65 * MIB), length % (65 * MIB));
            if let Verdict::Serve(request) = rules.judge(&header) {
                prop_assert!(request.offset + request.length <= rules.size);
                prop_assert!(!(read_only && request.command.modifies()));
            }
        }
    }
}
