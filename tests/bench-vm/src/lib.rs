//! What bench-vm (on the host) and dst-tcp (in the guest) both need: the jobs.

pub mod jobs;
