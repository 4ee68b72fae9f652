//! Sizes, names and numbers as types of their own, so that sectors are never taken for bytes.
//! Used everywhere. Arithmetic is checked; sizes are exact, never rounded.
//! Pure: never reads the system.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

/// Bytes in a sector, as everywhere in device-mapper.
pub const SECTOR_SIZE: u64 = 512;
/// Longest node or device name, in bytes.
pub const NAME_MAX: usize = 63;
/// Links a node can have; slots are 0..SLOTS_MAX.
pub const SLOTS_MAX: u32 = 32;

/// A count of 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Sectors(pub u64);

impl Sectors {
    pub const ZERO: Self = Self(0);

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// None where the bytes would not fit 64 bits.
    pub fn bytes(self) -> Option<Bytes> {
        self.0.checked_mul(SECTOR_SIZE).map(Bytes)
    }

    /// Whether it is a multiple of a block of `block` bytes.
    pub fn is_aligned_to(self, block: BlockSize) -> bool {
        self.0.is_multiple_of(block.sectors())
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A count of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The whole sectors it holds; a rest shorter than a sector is not usable.
    pub fn whole_sectors(self) -> Sectors {
        Sectors(self.0 / SECTOR_SIZE)
    }

    /// None where it is no multiple of a sector.
    pub fn exact_sectors(self) -> Option<Sectors> {
        self.0
            .is_multiple_of(SECTOR_SIZE)
            .then_some(Sectors(self.0 / SECTOR_SIZE))
    }
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl fmt::Display for Bytes {
    /// For people: the largest unit that is exact or leaves two decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = UNITS
            .into_iter()
            .find(|(_, unit)| self.0 >= *unit)
            .unwrap_or(("B", 1));
        if self.0.is_multiple_of(unit) {
            return f.pad(&format!("{}{name}", self.0 / unit));
        }
        let hundredths = u128::from(self.0) * 100 / u128::from(unit);
        f.pad(&format!(
            "{}.{:02}{name}",
            hundredths / 100,
            hundredths % 100
        ))
    }
}

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    #[error(
        "`{0}` is no size: write sectors (`2097152s`) or a whole number of KiB, MiB, GiB or TiB (`1GiB`)"
    )]
    Syntax(String),
    #[error("`{0}` has no unit: write `{0}s` for sectors, or KiB, MiB, GiB or TiB")]
    NoUnit(String),
    #[error(
        "`{found}` uses the unit `{unit}`: use KiB, MiB, GiB, TiB (powers of 1024) or s (sectors of 512 bytes)"
    )]
    Unit { found: String, unit: String },
    #[error("`{0}` is larger than a device can be")]
    TooLarge(String),
}

impl FromStr for Sectors {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let unit = unit.trim_start();
        if digits.is_empty() || unit.starts_with(['.', ',', '_']) {
            return Err(SizeError::Syntax(text.to_owned()));
        }
        let sectors_per_unit = match unit {
            "s" => 1,
            "KiB" => 2,
            "MiB" => 1 << 11,
            "GiB" => 1 << 21,
            "TiB" => 1 << 31,
            "" => return Err(SizeError::NoUnit(text.to_owned())),
            _ => {
                return Err(SizeError::Unit {
                    found: text.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        };
        let sectors = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(sectors_per_unit))
            .map(Self)
            .filter(|s| s.bytes().is_some());
        sectors.ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

/// A device's logical block size: 512, 1024, 2048 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BlockSize(u32);

impl BlockSize {
    pub const DEFAULT: Self = Self(512);

    pub fn new(bytes: u32) -> Option<Self> {
        matches!(bytes, 512 | 1024 | 2048 | 4096).then_some(Self(bytes))
    }

    pub fn bytes(self) -> u32 {
        self.0
    }

    pub fn sectors(self) -> u64 {
        u64::from(self.0) / SECTOR_SIZE
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{found}` is no {what} name: {why}; a name is 1 to 63 of A-Z a-z 0-9 . _ -")]
pub struct NameError {
    what: &'static str,
    found: String,
    why: String,
}

fn check_name(what: &'static str, text: &str) -> Result<(), NameError> {
    let bad = text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')));
    let why = match bad {
        _ if text.is_empty() => "it is empty".to_owned(),
        Some(c) => format!("`{c}` is not allowed"),
        None if text == "." || text == ".." => "it means a directory".to_owned(),
        None if text.len() > NAME_MAX => format!("it has {} characters", text.len()),
        None => return Ok(()),
    };
    Err(NameError {
        what,
        found: text.to_owned(),
        why,
    })
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// A node's name, the same in the topology, the table line and netlink.
    NodeName,
    "node"
);
name_type!(
    /// A device's name: `/dev/mapper/NAME`.
    DeviceName,
    "device"
);

/// A link's place in its node: 0..SLOTS_MAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link's number within its node; a newer link has a larger one. 0: no link yet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// None when the numbers are used up.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sixteen bytes that name something: a client, an export, an incarnation. Shown in hexadecimal.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One client's use of a node: who it is, and a number drawn anew when it begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Session {
    pub client: Id,
    pub nonce: Id,
}

/// Tells one node address from another, as far as four bytes can. 0: nobody has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressMark(pub u32);

impl AddressMark {
    /// Whether these are two addresses, where both are known.
    pub fn differs(self, other: Self) -> bool {
        self.0 != 0 && other.0 != 0 && self != other
    }
}

impl Session {
    /// A session whose first link has this generation and led to this address. The nonce holds both: what the kernel keeps
    /// of a session is all that a later dstd has to tell which old links are this session's, and so may be fenced in its
    /// name, and whether the live ones lead to where the topology now says.
    pub fn begin(client: Id, address: AddressMark, first: Generation) -> Self {
        let mut nonce: [u8; 16] = rand::random();
        nonce[8..12].copy_from_slice(&address.0.to_be_bytes());
        nonce[12..].copy_from_slice(&first.0.to_be_bytes());
        let nonce = Id(nonce);
        Session { client, nonce }
    }

    pub fn first(&self) -> Generation {
        let [.., a, b, c, d] = self.nonce.0;
        Generation(u32::from_be_bytes([a, b, c, d]))
    }

    pub fn address(&self) -> AddressMark {
        let [.., a, b, c, d, _, _, _, _] = self.nonce.0;
        AddressMark(u32::from_be_bytes([a, b, c, d]))
    }

    /// As the kernel keeps it: client id, then nonce.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&self.client.0);
        out[16..].copy_from_slice(&self.nonce.0);
        out
    }

    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let (mut client, mut nonce) = ([0; 16], [0; 16]);
        client.copy_from_slice(&bytes[..16]);
        nonce.copy_from_slice(&bytes[16..]);
        Session {
            client: Id(client),
            nonce: Id(nonce),
        }
    }
}

/// A length of time as the kernel takes it. `u32::MAX` means "never" there, so a length that is written is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Millis(pub u32);

impl Millis {
    pub const fn seconds(seconds: u32) -> Self {
        Self(seconds * 1000)
    }

    /// `None`: it isn't a whole number of milliseconds, or is none at all, or more than 49 days.
    pub fn exactly(length: Duration) -> Option<Self> {
        let millis = u32::try_from(length.as_millis()).ok()?;
        let whole = Duration::from_millis(millis.into()) == length;
        (whole && millis > 0 && millis < u32::MAX).then_some(Self(millis))
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0.into())
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.duration()).fmt(f)
    }
}

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        for (text, sectors) in [
            ("2097152s", 2_097_152),
            ("1GiB", 2_097_152),
            ("1 GiB", 2_097_152),
            ("3KiB", 6),
            ("0s", 0),
            ("2TiB", 1 << 32),
        ] {
            assert_eq!(text.parse(), Ok(Sectors(sectors)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        for (text, says) in [
            ("1GB", "unit `GB`"),
            ("4096", "write `4096s` for sectors"),
            ("1.5GiB", "whole number"),
            ("", "is no size"),
            ("-1s", "is no size"),
            ("99999999999999999999s", "larger than"),
            ("36028797018963968s", "larger than"),
        ] {
            let error = text.parse::<Sectors>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn names_hold_to_their_letters_and_length() {
        assert!("a.B_9-".parse::<NodeName>().is_ok());
        assert!("x".repeat(63).parse::<NodeName>().is_ok());
        for bad in ["", "a b", "a/b", "é", ".", "..", &"x".repeat(64)] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_session_is_client_then_nonce() {
        let session = Session {
            client: Id([0xab; 16]),
            nonce: Id([7; 16]),
        };
        let bytes = session.to_bytes();
        assert_eq!((bytes[15], bytes[16]), (0xab, 7));
        assert_eq!(Session::from_bytes(&bytes), session);
        assert_eq!(Id([0x0a; 16]).to_string(), "0a".repeat(16));
    }

    #[test]
    fn a_session_knows_its_first_link_and_no_two_are_alike() {
        let mark = AddressMark(0x0506_0708);
        let begin = || Session::begin(Id([1; 16]), mark, Generation(0x0102_0304));
        assert_eq!(begin().address(), mark);
        assert_eq!(begin().first(), Generation(0x0102_0304));
        assert_eq!(begin().client, Id([1; 16]));
        assert_ne!(begin().nonce, begin().nonce);
        let kept = Session::from_bytes(&begin().to_bytes());
        assert_eq!(kept.first(), Generation(0x0102_0304));
        assert!(kept.address().differs(AddressMark(1)));
        let unknown = Session::default().address();
        assert!(!unknown.differs(mark) && !mark.differs(unknown) && !mark.differs(mark));
    }

    #[test]
    fn lengths_of_time_are_whole_milliseconds_below_never() {
        let of = |micros| Millis::exactly(Duration::from_micros(micros));
        assert_eq!(of(1_000), Some(Millis(1)));
        assert_eq!((of(0), of(1_500)), (None, None));
        let most = u64::from(u32::MAX) - 1;
        assert_eq!(of(most * 1000), Some(Millis(u32::MAX - 1)));
        assert_eq!(of((most + 1) * 1000), None);
        assert_eq!(Millis::seconds(90).to_string(), "1m 30s");
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(Bytes(1 << 30).to_string(), "1GiB");
        assert_eq!(Bytes(1_610_612_736).to_string(), "1.50GiB");
        assert_eq!(Bytes(0).to_string(), "0B");
        assert_eq!(Bytes(777).to_string(), "777B");
    }
}
