//! The YAML topology: its types, its validation, its errors.
//! Called by table, plan and cli. Never asks a node or the kernel anything.
