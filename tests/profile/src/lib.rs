//! A QEMU plugin (API version 1, as in QEMU 7.2): counts the instructions that the guest executes, by the address of the
//! translated block they are in. Loaded by dst-vm bench --profile; tests/bench-vm/src/profile.rs reads what it writes.
//!
//! Whenever the guest executes a cpuid of leaf MARK (dst-mark), all counts so far are appended to the file: a line `mark`,
//! then lines `ADDRESS COUNT` in hexadecimal. What lies between two marks is for the reader to subtract. The guest must have
//! one CPU: the counters are plain memory that QEMU's own code adds to.
#![allow(unsafe_code)] // QEMU calls us, and we call it

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The leaf, in `mov eax, MARK` right before the cpuid (as dst-mark's compiler writes it).
const MARK: u32 = 0x4453_5431;
const MOV_EAX: u8 = 0xb8;
const CPUID: [u8; 2] = [0x0f, 0xa2];
const INLINE_ADD_U64: c_int = 0;
const CB_NO_REGS: c_int = 0;

type Id = u64;
type OnTranslate = extern "C" fn(Id, *mut c_void);
type OnExecute = extern "C" fn(c_uint, *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: OnTranslate);
    fn qemu_plugin_register_vcpu_tb_exec_inline(
        block: *mut c_void,
        operation: c_int,
        counter: *mut c_void,
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
    fn qemu_plugin_insn_data(instruction: *const c_void) -> *const c_void;
    fn qemu_plugin_insn_size(instruction: *const c_void) -> usize;
}

/// Where the counters lie, by the block's address; they stay where they are for as long as QEMU runs.
struct Counters {
    of: HashMap<u64, &'static AtomicU64>,
    file: Option<File>,
}

static COUNTERS: Mutex<Option<Counters>> = Mutex::new(None);

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

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
    if file.is_none() {
        eprintln!("dst-profile: out=FILE is missing, or can't be written");
        return -1;
    }
    let of = HashMap::new();
    if let Ok(mut counters) = COUNTERS.lock() {
        *counters = Some(Counters { of, file });
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
    let counter: &'static AtomicU64 = counters
        .of
        .entry(address)
        .or_insert_with(|| Box::leak(Box::default()));
    // SAFETY: the counter is never freed; nobody else writes it, and it is read by `mark` on the only CPU's own thread.
    unsafe {
        qemu_plugin_register_vcpu_tb_exec_inline(
            block,
            INLINE_ADD_U64,
            counter.as_ptr().cast(),
            count as u64,
        );
    }
    let mut marked = false;
    for n in 0..count {
        // SAFETY: the index is in range, and the bytes of an instruction are as many as it says.
        let (instruction, bytes) = unsafe {
            let instruction = qemu_plugin_tb_get_insn(block, n);
            let data = qemu_plugin_insn_data(instruction).cast::<u8>();
            let size = qemu_plugin_insn_size(instruction);
            (instruction, std::slice::from_raw_parts(data, size))
        };
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
    let Some(Counters {
        of,
        file: Some(file),
    }) = counters.as_mut()
    else {
        return;
    };
    let mut text = String::from("mark\n");
    for (address, counter) in of.iter() {
        let count = counter.load(Ordering::Relaxed);
        if count > 0 {
            text += &format!("{address:x} {count:x}\n");
        }
    }
    if file.write_all(text.as_bytes()).is_err() {
        eprintln!("dst-profile: the file can't be written any more");
    }
}
