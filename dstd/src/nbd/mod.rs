//! Wire helper: replace this file (keep `uri::NbdUri`).
pub mod uri;
