//! What a server may say of an export: size, flags, block sizes.
//!
//! Owns the check of these against the protocol, and the defaults where a server says
//! nothing. Called by the client. Pure; never trusts a server's number unchecked.

use super::error::NbdError;
use crate::kernel::NbdFlags;

/// Nothing smaller can be asked through a block device.
pub const SECTOR: u32 = 512;
/// The protocol's upper limit for a minimum block size.
pub const MIN_BLOCK_MAX: u32 = 64 * 1024;
/// What a client prefers where the server names nothing.
pub const DEFAULT_PREFERRED: u32 = 4096;
/// The payload every server must take, and the most that is ever asked of one.
pub const MAX_PAYLOAD: u32 = 32 * 1024 * 1024;
/// The server's word for "no inherent limit".
const UNLIMITED: u32 = u32::MAX;

/// Block sizes in bytes, ready for the kernel: `minimum` is at least a sector,
/// `maximum` a multiple of it and at most `MAX_PAYLOAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLimits {
    pub minimum: u32,
    pub preferred: u32,
    pub maximum: u32,
}

impl Default for BlockLimits {
    fn default() -> Self {
        BlockLimits {
            minimum: SECTOR,
            preferred: DEFAULT_PREFERRED,
            maximum: MAX_PAYLOAD,
        }
    }
}

impl BlockLimits {
    /// Checks a server's three numbers and makes them fit a block device.
    pub fn check(minimum: u32, preferred: u32, maximum: u32, size: u64) -> Result<Self, NbdError> {
        let bad = |why: String| {
            Err(NbdError::BadBlockSizes {
                minimum,
                preferred,
                maximum,
                why,
            })
        };
        if !minimum.is_power_of_two() {
            return bad(format!("minimum {minimum} isn't a power of two"));
        }
        if minimum > MIN_BLOCK_MAX {
            return bad(format!("minimum {minimum} is above {MIN_BLOCK_MAX}"));
        }
        if !preferred.is_power_of_two() {
            return bad(format!("preferred {preferred} isn't a power of two"));
        }
        // The protocol lets a preferred size of 4096 stand below a larger minimum.
        if preferred < minimum.min(DEFAULT_PREFERRED) {
            return bad(format!("preferred {preferred} is below minimum {minimum}"));
        }
        if maximum != UNLIMITED && !maximum.is_multiple_of(minimum) {
            return bad(format!(
                "maximum {maximum} isn't a multiple of minimum {minimum}"
            ));
        }
        if u64::from(maximum) < u64::from(preferred).min(size) {
            return bad(format!("maximum {maximum} is below preferred {preferred}"));
        }
        let minimum = minimum.max(SECTOR);
        let rounded = maximum.min(MAX_PAYLOAD) / minimum * minimum;
        if rounded == 0 {
            return bad(format!("maximum {maximum} is below one block of {minimum}"));
        }
        Ok(BlockLimits {
            minimum,
            preferred: preferred.max(minimum),
            maximum: rounded,
        })
    }
}

/// The size must be addressable and the flags be flags.
pub fn check_export(size: u64, flags: NbdFlags) -> Result<(), NbdError> {
    if size > i64::MAX as u64 {
        return Err(NbdError::ImpossibleSize(size));
    }
    if !flags.has(NbdFlags::HAS_FLAGS) {
        return Err(NbdError::NoFlags(flags.0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn sane_sizes_are_taken_and_fitted_to_a_block_device() {
        let limits =
            |a, b, c| BlockLimits::check(a, b, c, GIB).map(|l| (l.minimum, l.preferred, l.maximum));
        assert_eq!(
            limits(4096, 65536, 1 << 20).unwrap(),
            (4096, 65536, 1 << 20)
        );
        assert_eq!(
            limits(1, 4096, UNLIMITED).unwrap(),
            (512, 4096, MAX_PAYLOAD)
        );
        assert_eq!(limits(1, 1, 1_000_001).unwrap(), (512, 512, 999_936));
        assert_eq!(
            limits(65536, 65536, 64 << 20).unwrap(),
            (65536, 65536, MAX_PAYLOAD)
        );
        assert_eq!(
            limits(65536, 4096, 1 << 20).unwrap(),
            (65536, 65536, 1 << 20)
        );
    }

    #[test]
    fn each_lie_about_block_sizes_is_named() {
        let cases = [
            ((0, 4096, 1 << 20), "minimum 0 isn't a power of two"),
            ((513, 4096, 1 << 20), "minimum 513 isn't a power of two"),
            ((131072, 131072, 1 << 20), "minimum 131072 is above 65536"),
            ((512, 0, 1 << 20), "preferred 0 isn't a power of two"),
            ((512, 5000, 1 << 20), "preferred 5000 isn't a power of two"),
            ((4096, 512, 1 << 20), "preferred 512 is below minimum 4096"),
            (
                (512, 4096, 4097),
                "maximum 4097 isn't a multiple of minimum 512",
            ),
            ((512, 4096, 0), "maximum 0 is below preferred 4096"),
            ((512, 4096, 2048), "maximum 2048 is below preferred 4096"),
        ];
        for ((minimum, preferred, maximum), expected) in cases {
            let error = BlockLimits::check(minimum, preferred, maximum, GIB).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let error = BlockLimits::check(1, 256, 256, GIB).unwrap_err();
        assert!(
            error.to_string().contains("below one block of 512"),
            "{error}"
        );
    }

    #[test]
    fn an_export_must_be_addressable_and_have_flags() {
        let flags = NbdFlags(1);
        assert!(check_export(0, flags).is_ok());
        assert!(matches!(
            check_export(1 << 63, flags),
            Err(NbdError::ImpossibleSize(_))
        ));
        assert!(matches!(
            check_export(1, NbdFlags(6)),
            Err(NbdError::NoFlags(6))
        ));
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_the_result_fits_a_block_device(
            minimum: u32, preferred: u32, maximum: u32, shift in 0u32..32, size: u64,
        ) {
            for (a, b) in [(minimum, preferred), (1 << (shift % 18), 1 << shift)] {
                if let Ok(l) = BlockLimits::check(a, b, maximum, size) {
                    prop_assert!(l.minimum.is_power_of_two() && l.minimum >= SECTOR);
                    prop_assert!(l.preferred.is_power_of_two() && l.preferred >= l.minimum);
                    prop_assert!(l.maximum >= l.minimum && l.maximum <= MAX_PAYLOAD);
                    prop_assert_eq!(l.maximum % l.minimum, 0);
                }
            }
        }
    }
}
