//! A QEMU plugin (API version 3, QEMU 9.1 and later): counts the instructions that the guest executes, by the address of the
//! translated block they are in. Loaded by dst-vm bench --profile; tests/bench-vm/src/profile.rs reads what it writes.
//!
//! Whenever the guest executes a cpuid of leaf MARK (dst-mark), all counts so far are appended to the file: a line `mark`,
//! then lines `ADDRESS COUNT` in hexadecimal, of all CPUs together. What lies between two marks is for the reader to subtract.
#![allow(unsafe_code)] // QEMU calls us, and we call it

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, Once};

/// The leaf, in `mov eax, MARK` right before the cpuid (as dst-mark's compiler writes it).
const MARK: u32 = 0x4453_5431;
const MOV_EAX: u8 = 0xb8;
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// No x86 instruction is longer.
const INSTRUCTION_MAX: usize = 15;
const INLINE_ADD_U64: c_int = 0;
/// What a guest of the bench executes in a run is a tenth of that.
const BLOCKS_MAX: usize = 1 << 20;
const CB_NO_REGS: c_int = 0;

type Id = u64;
type OnTranslate = extern "C" fn(Id, *mut c_void);
type OnExecute = extern "C" fn(c_uint, *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: OnTranslate);
    fn qemu_plugin_scoreboard_new(element: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(counter: Counter) -> u64;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        block: *mut c_void,
        operation: c_int,
        counter: Counter,
        value: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut c_void,
        callback: OnExecute,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const c_void) -> u64;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(instruction: *const c_void, to: *mut c_void, room: usize) -> usize;
}

/// A place in every CPU's part of a scoreboard (qemu_plugin_u64).
#[repr(C)]
#[derive(Clone, Copy)]
struct Counter {
    board: *mut c_void,
    offset: usize,
}

/// One scoreboard holds every block's counter, for as long as QEMU runs.
struct Counters {
    board: *mut c_void,
    /// which counter is a block's, by its address
    of: HashMap<u64, usize>,
    file: File,
}

// SAFETY: the board is only handed back to QEMU, which lets any of its threads do that.
unsafe impl Send for Counters {}

impl Counters {
    /// None: there are more blocks than counters, which is said once.
    fn counter(&mut self, address: u64) -> Option<Counter> {
        if let Some(index) = self.of.get(&address) {
            return Some(self.at(*index));
        }
        let next = self.of.len();
        if next == BLOCKS_MAX {
            SPENT.call_once(|| {
                eprintln!("dst-profile: more than {BLOCKS_MAX} blocks; the rest isn't counted")
            });
            return None;
        }
        self.of.insert(address, next);
        Some(self.at(next))
    }

    fn at(&self, index: usize) -> Counter {
        Counter {
            board: self.board,
            offset: index * size_of::<u64>(),
        }
    }
}

static SPENT: Once = Once::new();
static COUNTERS: Mutex<Option<Counters>> = Mutex::new(None);

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 3;

/// The one argument is `out=FILE`.
///
/// # Safety
/// Called by QEMU, with `argc` C strings in `argv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let mut file = None;
    for n in 0..argc.max(0) as usize {
        // SAFETY: QEMU passes that many strings.
        let text = unsafe { CStr::from_ptr(*argv.add(n)) }.to_string_lossy();
        if let Some(path) = text.strip_prefix("out=") {
            file = File::create(path).ok();
        }
    }
    let Some(file) = file else {
        eprintln!("dst-profile: out=FILE is missing, or can't be written");
        return -1;
    };
    // SAFETY: QEMU lets a plugin make its scoreboards while it is installed.
    let board = unsafe { qemu_plugin_scoreboard_new(BLOCKS_MAX * size_of::<u64>()) };
    if let Ok(mut counters) = COUNTERS.lock() {
        let of = HashMap::new();
        *counters = Some(Counters { board, of, file });
    }
    // SAFETY: the id is ours, the callback lives as long as QEMU.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

extern "C" fn translated(_id: Id, block: *mut c_void) {
    // SAFETY: the block is valid during this call.
    let (address, count) = unsafe { (qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block)) };
    let Ok(mut counters) = COUNTERS.lock() else {
        return;
    };
    let Some(counters) = counters.as_mut() else {
        return;
    };
    if let Some(counter) = counters.counter(address) {
        // SAFETY: the counter lies within its board, which is never freed.
        unsafe {
            qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
                block,
                INLINE_ADD_U64,
                counter,
                count as u64,
            );
        }
    }
    let mut marked = false;
    for n in 0..count {
        let mut bytes = [0_u8; INSTRUCTION_MAX];
        // SAFETY: the index is in range, and QEMU copies no more than there is room for.
        let (instruction, size) = unsafe {
            let instruction = qemu_plugin_tb_get_insn(block, n);
            let room = bytes.as_mut_ptr().cast();
            (
                instruction,
                qemu_plugin_insn_data(instruction, room, bytes.len()),
            )
        };
        let bytes = bytes.get(..size).unwrap_or_default();
        if marked && bytes == CPUID {
            // SAFETY: as above; the callback needs no data.
            unsafe {
                let none = std::ptr::null_mut();
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, mark, CB_NO_REGS, none);
            }
        }
        marked |=
            bytes.first() == Some(&MOV_EAX) && bytes.get(1..) == Some(&MARK.to_le_bytes()[..]);
    }
}

extern "C" fn mark(_cpu: c_uint, _data: *mut c_void) {
    let Ok(mut counters) = COUNTERS.lock() else {
        return;
    };
    let Some(counters) = counters.as_mut() else {
        return;
    };
    let mut text = String::from("mark\n");
    for (address, index) in &counters.of {
        // SAFETY: the counter lies within its board.
        let count = unsafe { qemu_plugin_u64_sum(counters.at(*index)) };
        if count > 0 {
            text += &format!("{address:x} {count:x}\n");
        }
    }
    if counters.file.write_all(text.as_bytes()).is_err() {
        eprintln!("dst-profile: the file can't be written any more");
    }
}
