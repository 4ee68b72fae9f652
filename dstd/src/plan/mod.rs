//! Compares what should exist with what does and lists the steps between them.
//! Called by reconcile and cli. Pure: never talks to the kernel or a node.
