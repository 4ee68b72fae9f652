//! Carries out plans and repeats until nothing is left to do.
//! Called by cli. Never decides which steps: `plan` does.
