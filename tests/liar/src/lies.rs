//! The kinds of lies, which of them leave a link believable, and what a lie says in place of the right reply.
//! Pure but for the dice. Used by serve. Never touches data or sockets.

use fastrand::Rng;
use nbdpeer::proto;

/// Errors that NBD knows, and numbers that it doesn't.
const ERRORS: [u32; 13] = [
    proto::EPERM,
    proto::EIO,
    proto::ENOMEM,
    proto::EINVAL,
    proto::ENOSPC,
    proto::EOVERFLOW,
    proto::ENOTSUP,
    2,
    28 << 8,
    255,
    1000,
    0x8000_0000,
    u32::MAX,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    // The link goes on.
    /// An error of any number. The request may have been done.
    Error,
    /// The right reply, a byte a segment.
    Crumbs,
    /// The right reply, after those of all requests that came later.
    Order,
    /// The right reply to a write, before its payload was read.
    Early,
    /// The right reply, together with the next ones.
    Late,
    // The link ends.
    /// ESHUTDOWN: unanswered, and the server goes.
    Shutdown,
    Magic,
    /// A structured reply, which was not negotiated: as it should be, too long, too short, empty, an error.
    Chunk,
    /// A cookie of no slot, no generation, no sequence, or none at all.
    CookieSlot,
    CookieGeneration,
    CookieSequence,
    CookieRandom,
    /// The right reply, twice.
    Twice,
    /// A reply to a request that has been answered before.
    Freed,
    /// A payload where none belongs: behind a write's reply, or behind an error.
    PayloadForWrite,
    PayloadForError,
    /// A part of a payload, of a header, or nothing; then the end.
    ShortPayload,
    HalfHeader,
    /// Half a header, an urgent byte, another one; then the end.
    Urgent,
    Close,
    Reset,
    /// Random bytes for as long as anybody reads.
    Garbage,
    /// The right reply, with random bytes behind it.
    Tail,
}

impl Lie {
    pub const ALL: [(Lie, &'static str); 23] = [
        (Lie::Error, "error"),
        (Lie::Crumbs, "crumbs"),
        (Lie::Order, "order"),
        (Lie::Early, "early"),
        (Lie::Late, "late"),
        (Lie::Shutdown, "shutdown"),
        (Lie::Magic, "magic"),
        (Lie::Chunk, "chunk"),
        (Lie::CookieSlot, "cookie-slot"),
        (Lie::CookieGeneration, "cookie-generation"),
        (Lie::CookieSequence, "cookie-sequence"),
        (Lie::CookieRandom, "cookie-random"),
        (Lie::Twice, "twice"),
        (Lie::Freed, "freed"),
        (Lie::PayloadForWrite, "payload-for-write"),
        (Lie::PayloadForError, "payload-for-error"),
        (Lie::ShortPayload, "short-payload"),
        (Lie::HalfHeader, "half-header"),
        (Lie::Urgent, "urgent"),
        (Lie::Close, "close"),
        (Lie::Reset, "reset"),
        (Lie::Garbage, "garbage"),
        (Lie::Tail, "tail"),
    ];

    pub fn name(self) -> &'static str {
        let known = Lie::ALL.iter().find(|(lie, _)| *lie == self);
        known.map_or("", |(_, name)| name)
    }

    pub fn parse(name: &str) -> Result<Self, String> {
        let known = Lie::ALL.iter().find(|(_, known)| *known == name);
        known
            .map(|(lie, _)| *lie)
            .ok_or_else(|| format!("there is no lie `{name}`"))
    }

    /// A client can't believe the link any more, or it is gone.
    pub fn is_fatal(self) -> bool {
        self > Lie::Late
    }

    /// The client may take the request for done.
    pub fn acknowledges(self) -> bool {
        matches!(self, Lie::Twice | Lie::PayloadForWrite | Lie::Tail)
    }

    /// Whether it can be told of such a request at all.
    fn fits(self, command: u16, has_past: bool) -> bool {
        match self {
            Lie::PayloadForWrite => command == proto::WRITE,
            Lie::ShortPayload | Lie::PayloadForError => command == proto::READ,
            Lie::Freed => has_past,
            _ => true,
        }
    }

    /// One for a request of this kind; `fatal`: one that ends the link. EARLY is chosen before, by the reader.
    pub fn choose(
        among: &[Lie],
        fatal: bool,
        command: u16,
        has_past: bool,
        random: &mut Rng,
    ) -> Option<Lie> {
        let fitting: Vec<Lie> = among
            .iter()
            .copied()
            .filter(|lie| {
                lie.is_fatal() == fatal && *lie != Lie::Early && lie.fits(command, has_past)
            })
            .collect();
        random.choice(fitting)
    }
}

/// One reply as it goes over the wire.
pub fn reply(magic: u32, error: u32, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + payload.len());
    out.extend(magic.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(payload);
    out
}

pub fn error(random: &mut Rng) -> u32 {
    ERRORS[random.usize(..ERRORS.len())]
}

fn noise(random: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// What a fatal lie sends, the right answer being `payload`, or an error. `past`: cookies that were answered before.
pub fn fatal(lie: Lie, cookie: u64, payload: &[u8], past: &[u64], random: &mut Rng) -> Vec<u8> {
    let simple = proto::SIMPLE_MAGIC;
    let right = |cookie| reply(simple, 0, cookie, payload);
    let bytes = 1 + random.usize(..4096);
    match lie {
        Lie::Shutdown => reply(simple, proto::ESHUTDOWN, cookie, b""),
        Lie::Magic => reply(wrong_magic(random), 0, cookie, payload),
        Lie::Chunk => chunk(cookie, payload, random),
        // The kernel's cookie: generation, sequence, slot. What is not of this link must not be believed.
        Lie::CookieSlot => right(cookie | 0xffff),
        Lie::CookieGeneration => right(cookie ^ 1 << random.u32(48..64)),
        Lie::CookieSequence => right(cookie ^ 1 << random.u32(16..48)),
        Lie::CookieRandom => right(random.u64(..)),
        Lie::Twice => [right(cookie), right(cookie)].concat(),
        Lie::Freed => right(
            past.get(random.usize(..past.len().max(1)))
                .copied()
                .unwrap_or(!cookie),
        ),
        Lie::PayloadForWrite => [right(cookie), noise(random, bytes)].concat(),
        Lie::PayloadForError => [reply(simple, proto::EIO, cookie, payload)].concat(),
        Lie::ShortPayload => {
            let some = random.usize(..payload.len().max(1));
            reply(simple, 0, cookie, &payload[..some])
        }
        Lie::HalfHeader => right(cookie)[..random.usize(1..16)].to_vec(),
        Lie::Urgent => right(cookie)[..8].to_vec(),
        Lie::Tail => [right(cookie), noise(random, bytes)].concat(),
        _ => Vec::new(),
    }
}

fn wrong_magic(random: &mut Rng) -> u32 {
    let wrong = [
        0,
        proto::REQUEST_MAGIC,
        proto::SIMPLE_MAGIC.swap_bytes(),
        proto::SIMPLE_MAGIC ^ 1 << random.u32(..32),
        (proto::REPLY_MAGIC >> 32) as u32,
    ];
    wrong[random.usize(..wrong.len())]
}

fn chunk(cookie: u64, payload: &[u8], random: &mut Rng) -> Vec<u8> {
    let extended = random.bool();
    let magic = if extended {
        proto::CHUNK_MAGIC_EXT
    } else {
        proto::CHUNK_MAGIC
    };
    let kinds = [
        proto::CHUNK_NONE,
        proto::CHUNK_DATA,
        proto::CHUNK_HOLE,
        proto::CHUNK_STATUS,
        proto::CHUNK_ERROR_BIT | 1,
        random.u16(..),
    ];
    let length = match random.u8(..4) {
        0 => 0,
        1 => payload.len() as u32 + 8,
        2 => random.u32(..16),
        _ => u32::MAX,
    };
    let mut out = magic.to_be_bytes().to_vec();
    out.extend(random.u16(..2).to_be_bytes());
    out.extend(kinds[random.usize(..kinds.len())].to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0; 8]);
    out.extend(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lie_has_a_name_of_its_own() {
        for (lie, name) in Lie::ALL {
            assert_eq!(Lie::parse(name), Ok(lie));
            assert_eq!(lie.name(), name);
        }
        assert!(Lie::parse("truth").is_err());
    }

    /// What must differ from the right reply does, whatever the dice say.
    #[test]
    fn fatal_lies_are_lies() {
        let (cookie, payload) = (0x0001_0000_0007_0003, [5; 512]);
        let right = reply(proto::SIMPLE_MAGIC, 0, cookie, &payload);
        for seed in 0..500 {
            let mut random = Rng::with_seed(seed);
            for (lie, name) in Lie::ALL.iter().filter(|(lie, _)| lie.is_fatal()) {
                let said = fatal(
                    *lie,
                    cookie,
                    &payload,
                    &[0x0001_0000_0006_0003],
                    &mut random,
                );
                assert_ne!(said, right, "{name}");
            }
        }
    }

    #[test]
    fn a_lie_is_chosen_that_fits() {
        let mut random = Rng::with_seed(1);
        let all: Vec<Lie> = Lie::ALL.iter().map(|(lie, _)| *lie).collect();
        for _ in 0..2_000 {
            let fatal = random.bool();
            let chosen = Lie::choose(&all, fatal, proto::FLUSH, false, &mut random);
            assert_eq!(chosen.map(Lie::is_fatal), Some(fatal));
            let unfit = [
                Lie::PayloadForWrite,
                Lie::ShortPayload,
                Lie::PayloadForError,
                Lie::Freed,
                Lie::Early,
            ];
            assert!(!unfit.iter().any(|lie| Some(*lie) == chosen), "{chosen:?}");
        }
        assert_eq!(
            Lie::choose(&[Lie::Freed], true, proto::READ, false, &mut random),
            None
        );
        assert_eq!(
            Lie::choose(&[Lie::Freed], true, proto::READ, true, &mut random),
            Some(Lie::Freed)
        );
    }
}
