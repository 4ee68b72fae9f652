"""What the nbdsh scripts of cases/ say: refused, extents, chunks. Imported by nbdsh_on; connects to nothing itself."""

import errno
import os

import nbd

KIB = 1024
MIB = 1024 * KIB


def same(got, want, what="value"):
    """Fails unless they are equal; long byte strings are told apart by their first difference."""
    if got == want:
        return
    if isinstance(want, (bytes, bytearray)) and isinstance(got, (bytes, bytearray)):
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise SystemExit(f"{what}: {len(got)} bytes for {len(want)}, the first other at {at}: "
                         f"{bytes(got[at:at + 8]).hex()} for {bytes(want[at:at + 8]).hex()}")
    raise SystemExit(f"{what}: {got!r}, expected {want!r}")


def refused(want, call, *args, **kwargs):
    """The call must fail with one of the errors `want` ("EINVAL" or "EINVAL EOVERFLOW") and the link must stay."""
    name = f"{call.__name__}{args[1:] if args and isinstance(args[0], (bytes, bytearray)) else args}"
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        if error.errno not in want.split():
            raise SystemExit(f"{name}: {error.errno}, expected {want} ({error.string})") from None
        return
    raise SystemExit(f"{name} succeeded, expected {want}")


def extents(h, length, offset, flags=0):
    """block_status as a list of (length, state), neighbours of one state merged."""
    found = []

    def note(context, _offset, entries, _error):
        same(context, nbd.CONTEXT_BASE_ALLOCATION, "meta context")
        found.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, note, flags)
    merged = []
    for length, state in found:
        if merged and merged[-1][1] == state:
            merged[-1] = (merged[-1][0] + length, state)
        else:
            merged.append((length, state))
    return merged


def all_extents(h, size):
    """The same for the whole export, asked as often as needed."""
    found = []
    at = 0
    while at < size:
        for length, state in extents(h, size - at, at):
            length = min(length, size - at)
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + length, state)
            else:
                found.append((length, state))
            at += length
    return found


def chunks(h, length, offset, flags=0):
    """A structured read: its bytes and its chunks as (offset, length, is_hole)."""
    found = []

    def note(data, at, kind, _error):
        found.append((at, len(data), kind == nbd.READ_HOLE))

    data = h.pread_structured(length, offset, note, flags)
    return bytes(data), sorted(found)


def lenient(h):
    """libnbd is to send what it would refuse itself; what it adds by itself (PAYLOAD_LEN) stays right."""
    h.set_strict_mode(getattr(nbd, "STRICT_AUTO_FLAG", 0))


def file_bytes(path, length, offset=0):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def file_kib(path):
    return os.stat(path).st_blocks // 2


def connect(uri, **settings):
    """One more connection; settings as structured=False, contexts=False."""
    h = nbd.NBD()
    if not settings.get("structured", True):
        h.set_request_structured_replies(False)
        if hasattr(h, "set_request_extended_headers"):
            h.set_request_extended_headers(False)
    if settings.get("contexts"):
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h
