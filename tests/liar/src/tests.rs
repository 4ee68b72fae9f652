//! The liar and a client of our own: honest answers are right, each lie is the one it is called, contents stay right
//! through all of them, and the same seed tells the same.

use std::collections::BTreeSet;

use fastrand::Rng;
use nbdpeer::{Address, Answer, Mode, Peer, PeerError, Request, proto};
use tempfile::TempDir;

use super::*;

const SIZE: usize = 64 * 1024;

struct Bench {
    store: Arc<Store>,
    address: Address,
    _dir: TempDir,
}

fn manner_of(seed: u64, lies: u32, fatal: u32, only: &[Lie]) -> Manner {
    let all = || Lie::ALL.iter().map(|(lie, _)| *lie).collect();
    Manner {
        seed,
        lies,
        fatal,
        among: if only.is_empty() {
            all()
        } else {
            only.to_vec()
        },
        exchanges: u64::MAX,
    }
}

impl Bench {
    fn new(manner: Manner) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path.display().to_string()).expect("a listener");
        let store = Arc::new(Store::new(SIZE, manner));
        let served = store.clone();
        std::thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                let store = served.clone();
                std::thread::spawn(move || serve::serve(&store, stream));
            }
        });
        Self {
            store,
            address: Address::Unix(path),
            _dir: dir,
        }
    }

    fn peer(&self) -> Peer {
        let mut peer = Peer::hello(&self.address).expect("a greeting");
        peer.go("any").expect("an export");
        peer
    }
}

#[test]
fn without_lies_it_is_a_right_server() -> nbdpeer::Result<()> {
    let bench = Bench::new(manner_of(1, 0, 0, &[]));
    let mut peer = Peer::hello(&bench.address)?;
    assert_eq!(peer.list()?, [""]);
    for option in [
        proto::OPT_STRUCTURED_REPLY,
        proto::OPT_SESSION,
        proto::OPT_STARTTLS,
    ] {
        let refusal = peer.option(option, b"").expect_err("refused").refusal();
        assert_eq!(refusal, Some(proto::ERR_UNSUP));
    }
    let told = peer.info("x")?;
    assert_eq!(
        (told.size, told.flags, told.block),
        (SIZE as u64, 0x16d, Some((1, 4096, 32 << 20)))
    );
    assert_eq!(peer.go("x")?.size, SIZE as u64);
    peer.write(512, &[7; 1024])?;
    peer.flush()?;
    assert_eq!(
        peer.read(0, 2048)?,
        [vec![0; 512], vec![7; 1024], vec![0; 512]].concat()
    );
    peer.call(Request::new(proto::WRITE_ZEROES, 512, 512))?
        .ok()?;
    peer.call(Request::new(proto::TRIM, 1024, 256))?.ok()?;
    assert_eq!(peer.read(512, 1024)?, [vec![0; 768], vec![7; 256]].concat());
    let beyond = peer.call(Request::new(proto::READ, SIZE as u64 - 1, 2))?;
    assert_eq!(beyond.error, proto::EINVAL);
    assert_eq!(bench.store.report()["mutated"], 0);
    peer.disconnect()
}

#[test]
fn export_name_enters_too() -> nbdpeer::Result<()> {
    for flags in [
        proto::FIXED_NEWSTYLE,
        proto::FIXED_NEWSTYLE | proto::NO_ZEROES,
    ] {
        let bench = Bench::new(manner_of(1, 0, 0, &[]));
        let mut peer = Peer::connect(&bench.address)?;
        peer.greet(flags)?;
        assert_eq!(peer.export_name(b"x")?.size, SIZE as u64);
        peer.write(0, &[1; 512])?;
        assert_eq!(peer.read(0, 512)?, [1; 512]);
    }
    Ok(())
}

/// What a client gets that sends one request.
fn one_answer(lie: Lie, request: Request) -> (nbdpeer::Result<Answer>, Vec<u8>) {
    let bench = Bench::new(manner_of(3, 0, 1000, &[lie]));
    bench.store.lying.store(false, Ordering::Relaxed);
    let mut peer = bench.peer();
    peer.write(0, &[9; 2048]).expect("an honest write");
    bench.store.lying.store(true, Ordering::Relaxed);
    let cookie = peer.submit(request).expect("sent");
    let answer = peer
        .answer()
        .and_then(|answer| match answer.cookie == cookie {
            true => Ok(answer),
            false => Err(PeerError::Protocol(format!(
                "cookie {:#x} for {cookie:#x}",
                answer.cookie
            ))),
        });
    assert_eq!(bench.store.report()["kinds"][lie.name()], 1, "{lie:?}");
    // A reset loses what wasn't read; the test only wants what was.
    (answer, peer.receive_to_end().unwrap_or_default())
}

#[test]
fn each_fatal_lie_is_what_it_is_called() {
    let protocol = |answer: &nbdpeer::Result<Answer>, text: &str| match answer {
        Err(PeerError::Protocol(said)) => said.contains(text),
        _ => false,
    };
    let done = |answer: &nbdpeer::Result<Answer>| answer.as_ref().is_ok_and(|a| a.error == 0);
    for (lie, name) in Lie::ALL.iter().filter(|(lie, _)| lie.is_fatal()) {
        let request = match lie {
            Lie::PayloadForWrite => Request::write(512, vec![1; 512]),
            _ => Request::new(proto::READ, 512, 512),
        };
        let (answer, rest) = one_answer(*lie, request);
        let as_named = match lie {
            Lie::Shutdown => answer.as_ref().is_ok_and(|a| a.error == proto::ESHUTDOWN),
            Lie::Magic | Lie::Chunk => protocol(&answer, "reply magic"),
            // Behind a cookie that this client doesn't know comes data that it doesn't expect.
            Lie::CookieSlot
            | Lie::CookieGeneration
            | Lie::CookieSequence
            | Lie::CookieRandom
            | Lie::Freed => protocol(&answer, "cookie") && rest == [9; 512],
            Lie::Twice => done(&answer) && rest.len() == 16 + 512,
            Lie::PayloadForWrite | Lie::Tail => done(&answer) && !rest.is_empty(),
            Lie::PayloadForError => {
                answer.as_ref().is_ok_and(|a| a.error == proto::EIO) && rest == [9; 512]
            }
            Lie::ShortPayload | Lie::HalfHeader | Lie::Urgent | Lie::Close | Lie::Reset => {
                answer.as_ref().is_err_and(|error| error.is_closed())
            }
            Lie::Garbage => protocol(&answer, "reply magic") && rest.len() > 64 * 1024,
            _ => false,
        };
        assert!(as_named, "{name}: {answer:?} and {} bytes", rest.len());
    }
}

/// What a client knows of each byte: its value, or that it is one of two.
struct Model {
    bytes: Vec<BTreeSet<u8>>,
}

impl Model {
    fn wrote(&mut self, request: &Request, done: bool) {
        let start = request.offset as usize;
        for (i, byte) in self.bytes[start..start + request.length as usize]
            .iter_mut()
            .enumerate()
        {
            let new = request.payload.get(i).copied().unwrap_or(0);
            if done {
                byte.clear();
            }
            byte.insert(new);
        }
    }

    /// What was read is known from then on.
    fn read(&mut self, offset: u64, data: &[u8]) {
        for (i, (byte, got)) in self.bytes[offset as usize..]
            .iter_mut()
            .zip(data)
            .enumerate()
        {
            assert!(
                byte.contains(got),
                "byte {}: {got}, and it can be {byte:?}",
                offset as usize + i
            );
            *byte = [*got].into();
        }
    }
}

fn request(random: &mut Rng) -> Request {
    let length = random.u64(1..=2048);
    let offset = random.u64(..SIZE as u64 - length);
    match random.u8(..10) {
        0..4 => Request::new(proto::READ, offset, length),
        4..8 => Request::write(offset, vec![random.u8(1..); length as usize]),
        8 => Request::new(proto::WRITE_ZEROES, offset, length),
        _ => Request::new(proto::FLUSH, 0, 0),
    }
}

/// Requests that don't overlap, in one send; answers in any order. False: the link is lost.
fn round(peer: &mut Peer, model: &mut Model, random: &mut Rng) -> bool {
    let mut requests: Vec<Request> = Vec::new();
    for _ in 0..random.usize(1..8) {
        let new = request(random);
        let apart = |old: &Request| {
            new.offset >= old.offset + old.length || old.offset >= new.offset + new.length
        };
        if requests.iter().all(apart) {
            requests.push(new);
        }
    }
    let mut sent: Vec<(u64, Request)> = Vec::new();
    for request in requests {
        match peer.submit(request.clone()) {
            Ok(cookie) => sent.push((cookie, request)),
            // It may have come.
            Err(_) => sent.push((0, request)),
        }
    }
    while !sent.is_empty() {
        let answer = peer.answer().ok();
        // ESHUTDOWN doesn't say whether it was done.
        let answer = answer.filter(|answer| answer.error != proto::ESHUTDOWN);
        let known = answer.and_then(|answer| {
            let at = sent
                .iter()
                .position(|(cookie, _)| *cookie == answer.cookie)?;
            Some((answer, sent.swap_remove(at).1))
        });
        let Some((answer, request)) = known else {
            break;
        };
        match request.kind {
            proto::READ if answer.error == 0 => model.read(request.offset, &answer.data),
            proto::WRITE | proto::WRITE_ZEROES => model.wrote(&request, answer.error == 0),
            _ => {}
        }
    }
    let lost = !sent.is_empty();
    for (_, request) in sent.iter().filter(|(_, r)| r.kind != proto::READ) {
        model.wrote(request, false);
    }
    !lost
}

/// As many rounds as it takes for so many lies; the report.
fn session(seed: u64, exchanges: u64, fatal: u32) -> serde_json::Value {
    let bench = Bench::new(Manner {
        exchanges,
        ..manner_of(seed, 50, fatal, &[])
    });
    let mut model = Model {
        bytes: vec![[0].into(); SIZE],
    };
    let mut random = Rng::with_seed(seed);
    let mut peer = bench.peer();
    while bench.store.report()["done"] == false {
        if !round(&mut peer, &mut model, &mut random) {
            // Whatever it still does, it does before the link ends.
            let _ = peer.receive_to_end();
            peer = bench.peer();
        }
    }
    let mut peer = bench.peer();
    let all = peer.read(0, SIZE as u64).expect("honest now");
    model.read(0, &all);
    bench.store.report()
}

#[test]
fn contents_are_right_through_all_lies() {
    for seed in 0..3 {
        let report = session(seed, 2_000, 100);
        let kinds = report["kinds"].as_object().expect("kinds");
        assert_eq!(kinds.len(), Lie::ALL.len(), "{report}");
        assert_eq!(
            report["mutated"],
            kinds.values().filter_map(|n| n.as_u64()).sum::<u64>()
        );
        assert!(report["connections"].as_u64() > Some(30), "{report}");
    }
}

/// A hundred thousand in a VM take a few minutes: here, some thousand take no time.
#[test]
fn lies_that_keep_the_link_need_no_new_ones() {
    let report = session(9, 5_000, 1);
    assert!(report["connections"].as_u64() < Some(100), "{report}");
}

#[test]
fn the_same_seed_tells_the_same() {
    let told = |seed| {
        let bench = Bench::new(manner_of(seed, 50, 0, &[Lie::Error]));
        let mut peer = bench.peer();
        let errors: Vec<u32> = (0..200)
            .map(|_| {
                peer.call(Request::new(proto::FLUSH, 0, 0))
                    .map_or(u32::MAX, |answer| answer.error)
            })
            .collect();
        errors
    };
    assert_eq!(told(5), told(5));
    assert_ne!(told(5), told(6));
    assert!(told(5).iter().collect::<BTreeSet<_>>().len() > 8);
}

#[test]
fn an_early_answer_comes_before_the_payload_and_nobody_sees_it() -> nbdpeer::Result<()> {
    let bench = Bench::new(manner_of(1, 100, 0, &[Lie::Early]));
    let mut peer = bench.peer();
    let mut early = 0;
    for byte in 1..=100u8 {
        let request = Request::write(0, vec![byte; 512]).cookie(u64::from(byte));
        let bytes = request.encode(Mode::Simple);
        peer.send(&bytes[..28])?;
        peer.time_limit(Duration::from_millis(5))?;
        let first = peer.answer();
        peer.time_limit(Duration::from_secs(20))?;
        early += u32::from(first.is_ok());
        peer.send(&bytes[28..])?;
        if first.is_err() {
            peer.answer()?.ok()?;
        }
        assert_eq!(bench.peer().read(0, 512)?, [byte; 512]);
    }
    assert!(early > 0);
    Ok(())
}

/// An error doesn't say whether it was done: sometimes it was.
#[test]
fn what_failed_may_have_been_done() {
    let bench = Bench::new(manner_of(1, 100, 0, &[Lie::Error]));
    let mut peer = bench.peer();
    let mut done = [0; 2];
    for byte in 1..=50u8 {
        let failed = peer.call(Request::write(0, vec![byte; 512]));
        assert!(failed.is_ok_and(|answer| answer.error != 0));
        done[usize::from(bench.store.data()[0] == byte)] += 1;
    }
    assert!(done[0] > 5 && done[1] > 5, "{done:?}");
}

#[test]
fn answers_come_in_the_worst_order() {
    let bench = Bench::new(manner_of(1, 100, 0, &[Lie::Order]));
    let mut peer = bench.peer();
    let mut reversed = 0;
    for _ in 0..50 {
        let read = |cookie| Request::new(proto::READ, 0, 1).cookie(cookie);
        (1..=4).for_each(|cookie| peer.expect(&read(cookie)));
        let bytes: Vec<u8> = (1..=4)
            .flat_map(|cookie| read(cookie).encode(Mode::Simple))
            .collect();
        peer.send(&bytes).expect("sent");
        let order: Vec<u64> = (0..4)
            .map(|_| peer.answer().map_or(0, |answer| answer.cookie))
            .collect();
        reversed += u32::from(order == [4, 3, 2, 1]);
    }
    assert!(reversed > 0);
    assert!(bench.store.report()["kinds"]["order"].as_u64() >= Some(4));
}

/// FREED answers what was answered before: not what another reply, still withheld, is going to answer. A client would have to
/// believe that.
#[test]
fn what_is_withheld_was_not_answered_before() {
    const READS: u64 = 16;
    for seed in 0..100 {
        let bench = Bench::new(manner_of(seed, 80, 100, &[Lie::Late, Lie::Freed]));
        for sector in 0..READS {
            bench.store.data()[sector as usize * 512..][..512].fill(1 + sector as u8);
        }
        let mut peer = bench.peer();
        let read = |cookie| Request::new(proto::READ, cookie * 512, 512).cookie(cookie);
        (0..READS).for_each(|cookie| peer.expect(&read(cookie)));
        let bytes: Vec<u8> = (0..READS)
            .flat_map(|cookie| read(cookie).encode(Mode::Simple))
            .collect();
        peer.send(&bytes).expect("sent");
        let answers = std::iter::from_fn(|| peer.answer().ok()).take(READS as usize);
        for answer in answers {
            let own = 1 + answer.cookie as u8;
            assert!(
                answer.data.iter().all(|byte| *byte == own),
                "seed {seed}: {answer:?}"
            );
        }
    }
}

#[test]
fn a_reset_is_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = Address::Tcp(listener.local_addr().expect("its address").to_string());
    for (lie, resets) in [(Lie::Reset, 20), (Lie::Close, 0)] {
        let store = Arc::new(Store::new(SIZE, manner_of(1, 0, 1000, &[lie])));
        let mut reset = 0;
        for _ in 0..20 {
            let served = store.clone();
            let accepting = listener.try_clone().expect("a listener");
            let server = std::thread::spawn(move || {
                let stream = Stream::Tcp(accepting.accept()?.0);
                serve::serve(&served, stream)
            });
            let mut peer = Peer::hello(&address).expect("a greeting");
            peer.go("any").expect("an export");
            peer.submit(Request::new(proto::READ, 0, 512))
                .expect("sent");
            let end = peer.receive_to_end();
            let how = end.map_err(|error| error.to_string());
            reset += u32::from(how.is_err_and(|error| error.contains("reset")));
            server.join().expect("no panic").expect("no error");
        }
        assert!(reset >= resets, "{lie:?}: {reset} resets");
        assert!(lie == Lie::Reset || reset < 20, "{lie:?}: {reset} resets");
    }
}

#[test]
fn lies_can_be_forbidden_for_a_while() {
    let bench = Bench::new(manner_of(1, 100, 0, &[Lie::Error]));
    let error = |peer: &mut Peer| {
        peer.call(Request::new(proto::FLUSH, 0, 0))
            .map(|a| a.error != 0)
            .unwrap_or(true)
    };
    let mut peer = bench.peer();
    for lying in [true, false, true] {
        bench.store.lying.store(lying, Ordering::Relaxed);
        assert_eq!(error(&mut peer), lying);
    }
}
