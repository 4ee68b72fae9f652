//! The numbers of dm-target/include/uapi/linux/dm-dst.h, under the same names.
//!
//! Owns nothing else. Used by `message` and `family`. Append-only, as the header is;
//! `spec_tests` fails when a number differs or is missing here.

pub const FAMILY_NAME: &str = "dm-dst";
pub const FAMILY_VERSION: u32 = 1;
pub const MCGRP_EVENTS: &str = "events";

pub const NAME_MAX: u32 = 63;
pub const SESSION_LEN: u32 = 32;
pub const SLOTS_MAX: u32 = 32;
pub const INCARNATION_MAX: u32 = 64;
/// Of this module; another may tell more.
pub const LATENCY_BUCKETS: usize = 26;
/// For QUIESCE and TIMEOUT.
pub const NEVER: u32 = u32::MAX;

/// Declares the constants and, for the tests, the list of them.
macro_rules! numbers {
    ($(#[$doc:meta])* $module:ident: $type:ty { $($name:ident = $value:literal,)* }) => {
        $(#[$doc])*
        pub mod $module {
            $(pub const $name: $type = $value;)*
            #[cfg(test)]
            pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $value),)*];
        }
    };
}

numbers! {
    /// `enum dmdst_cmd`
    cmd: u8 {
        NODE_GET = 1,
        NODE_SET = 2,
        LINKS_SET = 3,
        LINKS_DROP = 4,
        FAIL_PENDING = 5,
        NODE_EVENT = 6,
        LINK_EVENT = 7,
        FENCED = 8,
        FENCE_EVENT = 9,
        DATA_LOST_EVENT = 10,
    }
}

numbers! {
    /// `enum dmdst_node_state`
    node: u32 {
        WAITING = 0,
        LIVE = 1,
        DEGRADED = 2,
        LOST = 3,
        FAILED = 4,
        MISMATCH = 5,
    }
}

numbers! {
    /// `enum dmdst_link_state`
    link: u32 {
        LIVE = 0,
        DRAINING = 1,
        LOST = 2,
        GONE = 3,
    }
}

numbers! {
    /// `enum dmdst_policy`
    policy: u32 {
        QUEUE = 0,
        QUEUE_FOR = 1,
        ERROR = 2,
    }
}

numbers! {
    /// `enum dmdst_restart`
    restart: u32 {
        TRUST = 0,
        EIO = 1,
    }
}

numbers! {
    /// `enum dmdst_attr`
    attr: u16 {
        PAD = 1,
        NODE = 2,
        STATE = 3,
        REASON = 4,
        SESSION = 5,
        SIZE = 6,
        FLAGS = 7,
        MIN_BLOCK = 8,
        PREF_BLOCK = 9,
        MAX_PAYLOAD = 10,
        WANTED = 11,
        ZERO_COPY = 12,
        LIVE = 13,
        IN_FLIGHT = 14,
        QUEUED = 15,
        ERRORS = 16,
        RECONNECTS = 17,
        GENERATION = 18,
        NEED_SIZE = 19,
        NEED_BLOCK = 20,
        NEED_WRITE = 21,
        LINK = 22,
        FORCE = 23,
        WRITES = 24,
        POLICY = 25,
        POLICY_MS = 26,
        QUIESCE = 27,
        EOF_FENCES = 28,
        UNKNOWN_RESTART = 29,
        TIMEOUT = 30,
        INCARNATION = 31,
        AMBIGUOUS = 32,
        BARRED = 33,
        UNFENCED = 34,
        READ_LATENCY = 35,
        WRITE_LATENCY = 36,
        MERGED = 37,
        QUEUE_WAITS = 38,
        QUEUE_NS = 39,
    }
}

numbers! {
    /// `enum dmdst_link_attr`
    link_attr: u16 {
        PAD = 1,
        SLOT = 2,
        FD = 3,
        GENERATION = 4,
        STATE = 5,
        ERRNO = 6,
        REASON = 7,
        IN_FLIGHT = 8,
        SENT = 9,
        RECEIVED = 10,
        AMBIGUOUS = 11,
        MERGED = 12,
        QUIET_IN = 13,
    }
}

numbers! {
    /// `enum dmdst_latency_attr`
    latency_attr: u16 {
        PAD = 1,
        SUM = 2,
        COUNTS = 3,
    }
}
