#!/usr/bin/env bash
# Every command, each of its flags and errors, as nbdsh (libnbd) sends them. Errors that libnbd would find itself are
# sent all the same (lenient); after each the link must go on.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# READ and WRITE at odd offsets and lengths, across the end, at the very end.
# @broken bytes
# @broken cow
# @broken errors
test_read_and_write() {
    lacks qemu-nbd "its sizes are whole sectors"
    make_file "$T/disk" 3000001
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
disk = "$T/disk"
for offset, length in ((0, 1), (511, 2), (4095, 4097), (1, 2 * MIB), (3000000, 1), (2999000, 1001)):
    same(bytes(h.pread(length, offset)), file_bytes(disk, length, offset), f"read {length} at {offset}")
    new = os.urandom(length)
    h.pwrite(new, offset)
    same(file_bytes(disk, length, offset), new, f"written {length} at {offset}")
    h.pwrite(os.urandom(length), offset, nbd.CMD_FLAG_FUA)
    same(bytes(h.pread(length, offset)), file_bytes(disk, length, offset), f"read again {length} at {offset}")
h.flush()
PY
}

# What lies beyond the end, or wraps around: EINVAL for what reads, ENOSPC for what writes.
# @broken errors
test_beyond_the_end() {
    lacks nbd-server "it hangs up or says EINVAL"
    lacks qemu-nbd "it says EINVAL to writers too"
    make_file "$T/disk" 1M
    cp "$T/disk" "$T/before"
    serve disk="$T/disk"
    nbdsh_on "$URI" --base-allocation <<'PY'
lenient(h)
for offset, length in ((MIB, 512), (MIB - 512, 1024), (1 << 62, 512), ((1 << 63) - 512, 512)):
    refused("EINVAL", h.pread, length, offset)
    refused("ENOSPC EINVAL", h.pwrite, b"x" * length, offset)
    refused("ENOSPC EINVAL", h.trim, length, offset)
    refused("ENOSPC EINVAL", h.zero, length, offset)
    refused("EINVAL", h.cache, length, offset)
    refused("EINVAL", h.block_status, length, offset, lambda *a: 0)
refused("ENOSPC", h.pwrite, b"x" * 512, MIB)
refused("ENOSPC", h.zero, 512, MIB)
same(len(h.pread(512, MIB - 512)), 512)
PY
    assert_same_bytes "$T/disk" "$T/before"
}

# Nothing at all: answered, by success or EINVAL, and the link goes on.
# @broken errors
test_zero_length() {
    lacks nbd-server "it answers as it likes"
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    nbdsh_on "$URI" --base-allocation <<'PY'
lenient(h)
for call, args in ((h.pread, (0, 0)), (h.pwrite, (b"", 0)), (h.trim, (0, 0)), (h.zero, (0, 0)), (h.cache, (0, 0))):
    try:
        call(*args)
    except nbd.Error as error:
        same(error.errno in ("EINVAL", "ENOSPC"), True, f"{call.__name__}: {error.errno}")
refused("EINVAL", h.block_status, 0, 0, lambda *a: 0)
same(len(h.pread(512, 0)), 512)
PY
}

# Flags that don't belong to a command, and one that nobody knows: EINVAL, nothing is done.
# @broken errors
test_wrong_flags() {
    lacks nbd-server "it ignores flags"
    lacks qemu-nbd "it ignores some flags"
    make_file "$T/disk" 1M
    cp "$T/disk" "$T/before"
    serve disk="$T/disk"
    nbdsh_on "$URI" --base-allocation <<'PY'
lenient(h)
unknown = 1 << 15
refused("EINVAL", h.pread, 512, 0, unknown)
refused("EINVAL", h.pwrite, b"x" * 512, 0, unknown)
refused("EINVAL", h.flush, unknown)
refused("EINVAL", h.trim, 512, 0, unknown)
refused("EINVAL", h.zero, 512, 0, unknown)
refused("EINVAL", h.cache, 512, 0, unknown)
refused("EINVAL", h.block_status, 512, 0, lambda *a: 0, unknown)
refused("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
refused("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_NO_HOLE)
refused("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
refused("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
same(len(h.pread(512, 0)), 512)
PY
    assert_same_bytes "$T/disk" "$T/before"
}

# Structured reads: their chunks are the range, holes are told as holes or sent as zeroes; with DF it is one chunk.
# @broken errors
# @broken bytes
test_structured_reads() {
    lacks nbd-server "it has simple replies only"
    sparse_file "$T/disk"
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
same(h.get_structured_replies_negotiated(), True, "structured replies")
disk = "$T/disk"
for offset, length in ((0, 2 * MIB), (60000, 20000), (3 * MIB, MIB), (8 * MIB - 5, 65536 + 10), (64 * MIB - 70000, 70000)):
    data, found = chunks(h, length, offset)
    same(data, file_bytes(disk, length, offset), f"structured read {length} at {offset}")
    at = offset
    for start, size, _hole in found:
        same(start, at, "a chunk's offset")
        at += size
    same(at, offset + length, "the end of the chunks")
    data, found = chunks(h, length, offset, nbd.CMD_FLAG_DF)
    same(data, file_bytes(disk, length, offset), f"read with DF {length} at {offset}")
    same(len(found), 1, "chunks of a read with DF")
lenient(h)
refused("EINVAL", h.pread_structured, 512, 64 * MIB, lambda *a: 0)
PY
}

# A client without structured replies: simple ones, no block status, no DF.
# @broken errors
# @broken bytes
test_simple_replies() {
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    script "$URI" "$T/disk" <<'PY'
import sys
from check import *
h = connect(sys.argv[1], structured=False)
same(h.get_structured_replies_negotiated(), False, "structured replies")
same(bytes(h.pread(MIB, 0)), file_bytes(sys.argv[2], MIB))
lenient(h)
refused("EINVAL", h.pread, MIB + 1, 0)
refused("EINVAL ENOTSUP", h.block_status, 512, 0, lambda *a: 0)
same(len(h.pread(512, 0)), 512)
PY
}

# Extended headers: lengths of more than 32 bits in one request, block status in 64 bits; READ and WRITE as before.
# @broken stock
test_extended_headers() {
    lacks nbdkit "it has no extended headers"
    lacks nbd-server "it has no extended headers"
    "$PYTHON" -c "import nbd; nbd.NBD.set_request_extended_headers" 2>/dev/null ||
        skip "this libnbd has no extended headers: CLIENTS=trixie"
    truncate -s 12G "$T/disk"
    serve disk="$T/disk"
    nbdsh_on "$URI" --base-allocation <<PY
GIB = 1024 * MIB
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
same(h.get_extended_headers_negotiated(), True, "extended headers")
def extents64(length, offset):
    found = []
    h.block_status_64(length, offset, lambda _context, _offset, entries, _error: found.extend(entries) or 0)
    return found
same(extents64(12 * GIB, 0), [(12 * GIB, hole)], "a hole of 12 GiB")
for at in (0, 6 * GIB, 12 * GIB - 4096):
    data = os.urandom(4096)
    h.pwrite(data, at, nbd.CMD_FLAG_FUA)
    same(bytes(h.pread(4096, at)), data, f"4096 bytes at {at}")
    same(file_bytes("$T/disk", 4096, at), data, "the file")
same(extents64(12 * GIB, 0)[0], (4096, 0), "the first extent")
h.zero(7 * GIB, 0)
same(bytes(h.pread(4096, 6 * GIB)), bytes(4096), "after zeroes of 7 GiB")
h.trim(5 * GIB, 7 * GIB)
same(bytes(h.pread(4096, 12 * GIB - 4096)), bytes(4096), "after a trim of 5 GiB")
same(extents64(12 * GIB, 0), [(12 * GIB, hole)], "a hole again")
same(file_kib("$T/disk") < 64, True, f"the file takes {file_kib('$T/disk')} KiB")
data, found = chunks(h, 2 * MIB, 6 * GIB)
same(data, bytes(2 * MIB), "a structured read of a hole")
lenient(h)
refused("ENOSPC EINVAL", h.zero, 7 * GIB, 6 * GIB)
refused("ENOSPC EINVAL", h.trim, 13 * GIB, 0)
refused("EINVAL", h.cache, 13 * GIB, 0)
refused("EINVAL EOVERFLOW ENOMEM", h.pread, 64 * MIB, 0)
same(len(h.pread(512, 0)), 512, "the link after them")
PY
}

# TRIM: the range reads as zeroes and no longer takes space; its neighbours are untouched.
# @broken cow
# @broken errors
test_trim() {
    lacks nbd-server "3.24 punches no hole here"
    make_file "$T/disk" 4M
    cp "$T/disk" "$T/want"
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
disk = "$T/disk"
h.trim(MIB, MIB)
same(bytes(h.pread(MIB, MIB)), bytes(MIB), "what was trimmed")
h.trim(65536, 3 * MIB, nbd.CMD_FLAG_FUA)
h.flush()
same(file_kib(disk), 4096 - 1024 - 64, "KiB that the file takes")
PY
    dd if=/dev/zero of="$T/want" bs=1M seek=1 count=1 conv=notrunc status=none
    dd if=/dev/zero of="$T/want" bs=64k seek=48 count=1 conv=notrunc status=none
    assert_same_bytes "$T/disk" "$T/want"
}

# WRITE_ZEROES: a hole by default, space that stays with NO_HOLE; odd ends are zeroed too.
# @broken cow
# @broken no-zero
test_write_zeroes() {
    lacks nbd-server "it has no WRITE_ZEROES"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
disk = "$T/disk"
def zeroed(offset, length, flags=0):
    around = max(offset - 100, 0)
    before, after = file_bytes(disk, offset - around, around), file_bytes(disk, 100, offset + length)
    h.zero(length, offset, flags)
    same(bytes(h.pread(length, offset)), bytes(length), f"zeroes of {length} at {offset}")
    same(file_bytes(disk, offset - around, around), before, "what is before")
    same(file_bytes(disk, 100, offset + length), after, "what is behind")
    h.flush()
zeroed(0, MIB)
same(file_kib(disk), 3072, "KiB after zeroes with a hole")
zeroed(MIB, MIB, nbd.CMD_FLAG_NO_HOLE)
same(file_kib(disk), 3072, "KiB after zeroes without a hole")
zeroed(2 * MIB + 123, 70001)
zeroed(3 * MIB + 5, 3, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
zeroed(4 * MIB - 10, 10)
PY
}

# FAST_ZERO: either done, or ENOTSUP with nothing changed.
# @broken in-memory
test_fast_zero() {
    lacks nbdkit "file plugin 1.32 promises none"
    lacks nbd-server "it has no FAST_ZERO"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
disk = "$T/disk"
same(h.can_fast_zero(), True, "can_fast_zero")
done = 0
for offset, length, flags in ((0, MIB, 0), (MIB, MIB, nbd.CMD_FLAG_NO_HOLE), (2 * MIB + 1, 1000, 0), (3 * MIB, 4096, nbd.CMD_FLAG_FUA)):
    old = file_bytes(disk, length, offset)
    try:
        h.zero(length, offset, flags | nbd.CMD_FLAG_FAST_ZERO)
        want = bytes(length)
        done += 1
    except nbd.Error as error:
        same(error.errno, "ENOTSUP", "a fast zero that isn't done")
        want = old
    same(bytes(h.pread(length, offset)), want, f"fast zero of {length} at {offset}")
    same(file_bytes(disk, length, offset), want, "the file")
same(done > 0, True, "a file has fast zeroes")
PY
}

# BLOCK_STATUS: the file's holes, in part, one extent at a time, after changes; refused without its context.
# @broken no-extents
# @broken errors
test_block_status() {
    lacks nbd-server "it has no block status"
    sparse_file "$T/disk"
    serve disk="$T/disk"
    nbdsh_on "$URI" --base-allocation <<'PY'
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
same(h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION), True, "base:allocation")
same(all_extents(h, 64 * MIB), [(65536, 0), (983040, hole), (65536, 0), (7274496, hole), (65536, 0), (58589184, hole), (65536, 0)])
same(extents(h, 32768, 49152, nbd.CMD_FLAG_REQ_ONE), [(16384, 0)], "REQ_ONE in data")
same(extents(h, 512, 131072, nbd.CMD_FLAG_REQ_ONE), [(512, hole)], "REQ_ONE in a hole")
h.pwrite(os.urandom(65536), 4 * MIB)
same(extents(h, MIB, 4 * MIB)[0], (65536, 0), "what was written")
h.trim(65536, 4 * MIB)
length, state = extents(h, MIB, 4 * MIB)[0]
same((length >= MIB, state), (True, hole), "what was trimmed")
PY
    nbdsh_on "$URI" <<'PY'
same(h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION), False, "base:allocation")
lenient(h)
refused("EINVAL", h.block_status, 512, 0, lambda *a: 0)
same(len(h.pread(512, 0)), 512)
PY
}

# LIST_META_CONTEXT and SET_META_CONTEXT: base:allocation by name, by namespace and unasked; others are unknown.
test_meta_contexts() {
    lacks nbd-server "it has no meta contexts"
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    nbdsh_on "$URI" --opt-mode <<'PY'
def listed(*queries):
    found = []
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    h.opt_list_meta_context(lambda name: found.append(name))
    return found
same("base:allocation" in listed(), True, "all contexts")
same(listed("base:"), ["base:allocation"], "contexts of base:")
same(listed("base:allocation"), ["base:allocation"], "the context itself")
same(listed("x-none:"), [], "contexts of a namespace that nobody knows")
same(listed("base:other"), [], "contexts that don't exist")
h.clear_meta_contexts()
h.add_meta_context("x-none:what")
h.add_meta_context("base:allocation")
h.opt_go()
same(h.can_meta_context("base:allocation"), True)
same(h.can_meta_context("x-none:what"), False)
same(all_extents(h, MIB), [(MIB, 0)])
PY
}

# CACHE does nothing that can be seen, and FLUSH succeeds.
# @broken no-cache
# @broken errors
test_cache_and_flush() {
    lacks nbd-server "it has no CACHE"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
h.cache(4 * MIB, 0)
h.cache(1, 12345)
h.flush()
same(bytes(h.pread(4 * MIB, 0)), file_bytes("$T/disk", 4 * MIB))
PY
}

# More than the largest payload: refused or done, never a hung link; the largest itself always works.
# @broken errors
test_large_requests() {
    lacks nbd-server "its largest is its own affair"
    truncate -s 80M "$T/disk"
    serve disk="$T/disk"
    nbdsh_on "$URI" <<PY
data = os.urandom(32 * MIB)
h.pwrite(data, 12345)
same(bytes(h.pread(32 * MIB, 12345)), data, "the largest payload")
lenient(h)
most = h.get_block_size(nbd.SIZE_MAXIMUM) or 32 * MIB
if most < 64 * MIB:
    try:
        h.pread(most + 1, 0)
    except nbd.Error as error:
        same(error.errno in ("EINVAL", "EOVERFLOW", "ENOMEM"), True, error.errno)
same(bytes(h.pread(512, 12345)), data[:512], "the link after it")
PY
}

# A thousand requests on their way at once over four connections, writes and reads mixed: each gets its own answer.
# @broken bytes
# @broken some-errors
test_many_at_once() {
    truncate -s 16M "$T/disk"
    serve disk="$T/disk"
    script "$URI" "$T/disk" <<'PY'
import sys
from check import *
links = [connect(sys.argv[1]) for _ in range(4)]
def settle(cookies):
    for h, cookie in cookies:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
data = os.urandom(16 * MIB)
writes = []
for n in range(4096):
    h = links[n % 4]
    buffer = nbd.Buffer.from_bytearray(bytearray(data[n * 4096:(n + 1) * 4096]))
    writes.append((h, h.aio_pwrite(buffer, n * 4096)))
settle(writes)
same(file_bytes(sys.argv[2], 16 * MIB), data, "the file")
reads = []
for n in range(4096):
    h = links[(n * 7) % 4]
    buffer = nbd.Buffer(4096)
    reads.append((h, h.aio_pread(buffer, n * 4096), buffer))
settle((h, cookie) for h, cookie, _ in reads)
for n, (_, _, buffer) in enumerate(reads):
    same(bytes(buffer.to_bytearray()), data[n * 4096:(n + 1) * 4096], f"block {n}")
for h in links:
    h.flush()
    h.shutdown()
PY
}

# CAN_MULTI_CONN is a promise: what one connection was told is written, the other reads, and its FLUSH covers it.
# @broken no-multi-conn
test_multi_conn() {
    lacks qemu-nbd "it has no multi-conn when writable"
    lacks nbd-server "it promises none"
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    script "$URI" <<'PY'
import sys
from check import *
a, b = connect(sys.argv[1]), connect(sys.argv[1])
same((a.can_multi_conn(), b.can_multi_conn()), (True, True), "multi-conn")
for n in range(200):
    data = os.urandom(4096)
    a.pwrite(data, n * 4096)
    same(bytes(b.pread(4096, n * 4096)), data, f"block {n} on the other connection")
b.flush()
a.shutdown()
same(bytes(b.pread(4096, 199 * 4096)), data, "after the writer has gone")
PY
}
