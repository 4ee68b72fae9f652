//! Wire helper: replace this file.
