//! dst-mark: tells the plugin of tests/profile that a job begins or ends, by an instruction that means nothing to anybody
//! else. Run by tests/vm/bench/count.sh in a guest that is profiled.
#![allow(unsafe_code)] // cpuid, which every x86-64 has

/// Known to tests/profile.
const MARK: u32 = 0x4453_5431;

fn main() {
    // SAFETY: every x86-64 has cpuid, and an unknown leaf has no effect.
    #[allow(unused_unsafe)]
    std::hint::black_box(unsafe { std::arch::x86_64::__cpuid(MARK) });
}
