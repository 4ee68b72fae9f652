//! Random topologies and histories, with the daemon dying between any two calls, against the simulated kernel.
//! Whatever happened, a later apply arrives at the topology, changes nothing more, and no sector ever showed other data.
