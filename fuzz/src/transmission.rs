//! A link that was negotiated well, then requests: each is checked against a model of the export's contents, or, in
//! raw mode, any bytes.
#![no_main]

use std::sync::Mutex;

use dst_fuzz::SIZE;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use nbdpeer::{Answer, Chunk, Mode, Peer, PeerError, Request, proto::*};

fuzz_target!(|data: &[u8]| {
    let _ = run(Unstructured::new(data));
    dst_fuzz::settle();
});

/// What the export holds, as far as the last conversation left it known.
static KNOWN: Mutex<Option<Vec<u8>>> = Mutex::new(None);

fn run(mut input: Unstructured) -> Result<()> {
    let mode = *input.choose(&Mode::ALL)?;
    let raw = input.ratio(1, 4)?;
    let mut peer = dst_fuzz::connect();
    peer.greet(FIXED_NEWSTYLE | NO_ZEROES).expect("a greeting");
    peer.negotiate(mode).expect("a mode");
    let mapped = mode != Mode::Simple && input.arbitrary()?;
    if mapped {
        peer.allocation("disk").expect("base:allocation");
    }
    peer.go("disk").expect("an export");
    let known = KNOWN.lock().expect("nobody panics and goes on").take();
    if raw {
        let bytes = input.take_rest();
        if peer.send(bytes).is_ok() && peer.half_close().is_ok() {
            let end = peer.receive_to_end();
            assert!(
                !matches!(end, Err(PeerError::Silent)),
                "the server never ended"
            );
        }
        return Ok(());
    }
    let mut model = known.unwrap_or_else(|| peer.read(0, SIZE).expect("all of it"));
    let whole_check = input.ratio(1, 8)?;
    let mut batch = Vec::new();
    while !input.is_empty() {
        let request = request(&mut input, mode)?;
        batch.push(request);
        // Requests that overlap may be done in any order, so a batch that writes is checked only as a whole.
        if batch.len() > 20 || input.ratio(1, 3)? {
            converse(
                &mut peer,
                mode,
                mapped,
                &mut model,
                std::mem::take(&mut batch),
            );
        }
    }
    converse(&mut peer, mode, mapped, &mut model, batch);
    if whole_check {
        let contents = peer.read(0, SIZE).expect("all of it");
        assert!(contents == model, "the contents");
    }
    peer.disconnect().expect("an end in order");
    *KNOWN.lock().expect("nobody panics and goes on") = Some(model);
    Ok(())
}

fn number(input: &mut Unstructured) -> Result<u64> {
    let near: u64 = *input.choose(&[
        0,
        512,
        4096,
        65536,
        SIZE,
        32 << 20,
        1 << 32,
        1 << 63,
        u64::MAX,
    ])?;
    Ok(match input.int_in_range(0..=3u8)? {
        0 => near
            .wrapping_add(input.int_in_range(0..=2)?)
            .wrapping_sub(1),
        1 => input.int_in_range(0..=4096)?,
        _ => input.int_in_range(0..=SIZE)?,
    })
}

fn request(input: &mut Unstructured, mode: Mode) -> Result<Request> {
    let kind = match input.int_in_range(0..=20u16)? {
        kind @ 0..=7 if kind != DISC => kind,
        8..=12 => READ,
        13..=17 => WRITE,
        _ => input.int_in_range(8..=u16::MAX)?,
    };
    let flags = match input.int_in_range(0..=5u8)? {
        0 => 1 << input.int_in_range(0..=15u8)?,
        1 => input.arbitrary()?,
        _ => 0,
    };
    let (offset, mut length) = (number(input)?, number(input)?);
    if mode != Mode::Extended {
        length = length.min(u64::from(u32::MAX));
    }
    let mut request = Request::new(kind, offset, length).flags(flags);
    let carries = match mode {
        Mode::Extended => flags & PAYLOAD_LEN != 0 || kind == WRITE,
        _ => kind == WRITE,
    };
    if carries {
        // What is announced is sent, else the stream can't be followed.
        request.length = length.min(SIZE + 512);
        request.payload = vec![input.arbitrary()?; request.length as usize];
    }
    Ok(request)
}

/// Sends a batch in one piece; checks each answer, and the contents where the order of the batch can't matter.
fn converse(peer: &mut Peer, mode: Mode, mapped: bool, model: &mut Vec<u8>, batch: Vec<Request>) {
    let mut bytes = Vec::new();
    let mut waiting = Vec::new();
    for (number, request) in batch.into_iter().enumerate() {
        let request = request.cookie(number as u64 + (1 << 40));
        // The peer keeps room for a READ's data.
        let too_much = request.kind == READ && request.length > 64 << 20;
        let request = if too_much {
            Request {
                length: SIZE + 1,
                ..request
            }
        } else {
            request
        };
        peer.expect(&request);
        bytes.extend(request.encode(mode));
        waiting.push(Some(request));
    }
    peer.send(&bytes).expect("all of it is taken");
    let count = waiting.len();
    let writes = waiting
        .iter()
        .flatten()
        .filter(|request| modifies(request))
        .count();
    for _ in 0..count {
        let answer = peer.answer().expect("an answer");
        let number = answer.cookie.wrapping_sub(1 << 40) as usize;
        let request = waiting[number].take().expect("one answer each");
        judge(&request, &answer, mode, mapped);
        if answer.error == 0 && request.kind == READ && writes == 0 {
            let at = request.offset as usize;
            assert!(
                answer.data == model[at..at + request.length as usize],
                "{request:?}"
            );
        }
        if answer.error == 0 && modifies(&request) && count == 1 {
            apply(&request, model);
        }
    }
    if writes > 0 && count > 1 {
        *model = peer.read(0, SIZE).expect("all of it");
    }
}

fn modifies(request: &Request) -> bool {
    [WRITE, TRIM, WRITE_ZEROES].contains(&request.kind)
}

fn apply(request: &Request, model: &mut [u8]) {
    let place = &mut model[request.offset as usize..][..request.length as usize];
    match request.kind {
        WRITE => place.copy_from_slice(&request.payload),
        _ => place.fill(0),
    }
}

/// What the protocol asks of an answer, whatever the server does.
fn judge(request: &Request, answer: &Answer, mode: Mode, mapped: bool) {
    let ranged = request.kind != FLUSH;
    let end = request.offset.checked_add(request.length);
    let outside = ranged && end.is_none_or(|end| end > SIZE);
    let known = [READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES].contains(&request.kind)
        || (request.kind == BLOCK_STATUS && mapped);
    let flags = request.flags
        & !if mode == Mode::Extended && request.kind == WRITE {
            PAYLOAD_LEN
        } else {
            0
        };
    let allowed = FUA
        | match request.kind {
            READ if mode != Mode::Simple => DF,
            WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            BLOCK_STATUS => REQ_ONE,
            _ => 0,
        };
    if outside || !known || flags & !allowed != 0 {
        assert!(
            [EINVAL, ENOSPC, EOVERFLOW].contains(&answer.error),
            "{request:?}: {answer:?}"
        );
        return;
    }
    if request.kind == FLUSH {
        let plain = request.offset == 0 && request.length == 0;
        assert_eq!(answer.error == 0, plain, "{request:?}: {answer:?}");
        return;
    }
    if request.length == 0 {
        assert_eq!(answer.error, EINVAL, "{request:?}");
        return;
    }
    let fast = request.flags & FAST_ZERO != 0;
    assert!(
        answer.error == 0 || (fast && answer.error == ENOTSUP),
        "{request:?}: {answer:?}"
    );
    if request.kind == BLOCK_STATUS && answer.error == 0 {
        let [Chunk::Status(_, runs)] = &answer.chunks[..] else {
            panic!("{answer:?}");
        };
        let sum: u64 = runs.iter().map(|(length, _)| length).sum();
        let before: u64 = sum - runs.last().map_or(0, |(length, _)| *length);
        let one = request.flags & REQ_ONE != 0;
        assert!(
            !runs.is_empty() && before < request.length,
            "{request:?}: {runs:?}"
        );
        assert!(
            runs.iter().all(|(length, flags)| *length > 0 && *flags < 4),
            "{runs:?}"
        );
        assert!(
            !one || (runs.len() == 1 && sum <= request.length),
            "{request:?}: {runs:?}"
        );
    }
}
