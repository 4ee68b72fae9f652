//! What the kernel counts of a block device's I/O, from sysfs.
//! Called by status and metrics. Needs no privilege: the device isn't opened, and nothing waits for it.

use std::fs;

use schemars::JsonSchema;
use serde::Serialize;

use crate::units::{Bytes, DeviceNumber, SECTOR_SIZE};

/// Since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceIo {
    pub reads: u64,
    pub read: Bytes,
    /// Milliseconds that all reads took, together.
    pub read_ms: u64,
    /// Flushes, too: the kernel counts those apart only for devices with a request queue, which dm's have not.
    pub writes: u64,
    pub written: Bytes,
    pub write_ms: u64,
    pub discards: u64,
    pub discarded: Bytes,
    pub discard_ms: u64,
    /// Requests that aren't answered yet.
    pub in_flight: u64,
}

/// None where there is no such device any more.
pub fn device_io(device: DeviceNumber) -> Option<DeviceIo> {
    let text = fs::read_to_string(format!("/sys/dev/block/{device}/stat")).ok()?;
    parse(&text)
}

/// The columns of Documentation/block/stat.rst.
fn parse(text: &str) -> Option<DeviceIo> {
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [
        reads,
        _,
        read,
        read_ms,
        writes,
        _,
        written,
        write_ms,
        in_flight,
        _,
        _,
        rest @ ..,
    ] = numbers.as_slice()
    else {
        return None;
    };
    let sectors = |n: u64| Bytes(n.saturating_mul(SECTOR_SIZE));
    let later = |i: usize| rest.get(i).copied().unwrap_or_default();
    Some(DeviceIo {
        reads: *reads,
        read: sectors(*read),
        read_ms: *read_ms,
        writes: *writes,
        written: sectors(*written),
        write_ms: *write_ms,
        discards: later(0),
        discarded: sectors(later(2)),
        discard_ms: later(3),
        in_flight: *in_flight,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_the_kernels() {
        let text = "  10 1 80 7  20 2 160 9  3 33 44  5 6 40 8  11 12\n";
        let expected = DeviceIo {
            reads: 10,
            read: Bytes(80 * 512),
            read_ms: 7,
            writes: 20,
            written: Bytes(160 * 512),
            write_ms: 9,
            discards: 5,
            discarded: Bytes(40 * 512),
            discard_ms: 8,
            in_flight: 3,
        };
        assert_eq!(parse(text), Some(expected));
        // As kernels before discards were counted.
        let old = parse("10 1 80 7 20 2 160 9 3 33 44").unwrap();
        assert_eq!((old.reads, old.discards), (10, 0));
        assert_eq!(parse("10 1 80"), None);
    }
}
