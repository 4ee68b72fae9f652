//! The real kernel behind the traits of `kernel`. Wire helper: replace this file with
//! `RealKernel: Kernel` (`RealKernel::open() -> Result<Self, KernelError>`) and `RealConnector: Connector`.
