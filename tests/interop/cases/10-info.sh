#!/usr/bin/env bash
# What the server says of its exports, as nbdinfo shows it.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# The size, to the byte.
# @broken short
test_size() {
    truncate -s 1234567 "$T/disk"
    serve disk="$T/disk"
    # qemu-nbd rounds up to whole sectors
    lacks qemu-nbd "its sizes are whole sectors"
    assert_eq "$(nbdinfo --size "$URI")" 1234567
}

# nbdinfo --json: everything that the export can do, and the block sizes.
# @broken no-fua
# @broken no-cache
test_json() {
    lacks nbd-server "it can't all of this"
    lacks qemu-nbd "it has no multi-conn when writable"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    nbdinfo --json "$URI" | tee "$T/json" # newer ones have warnings on standard error
    "$PYTHON" - "$T/json" <<'PY' || fail "nbdinfo --json is not as expected"
import json, os, sys
info = json.load(open(sys.argv[1]))
assert info["protocol"] == "newstyle-fixed" and not info["TLS"], info
assert info["structured"], info
export = info["exports"][0]
yes = ["can_cache", "can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
if os.environ["SERVER"] != "nbdkit": # its file plugin promises none
    yes.append("can_fast_zero")
want = {key: True for key in yes} | {"is_read_only": False}
want["export-size"] = 4 << 20
for key, value in want.items():
    assert export[key] == value, f"{key}: {export[key]}, expected {value}"
assert "base:allocation" in export["contexts"], export["contexts"]
low, best, high = (export.get(f"block_size_{s}") for s in ("minimum", "preferred", "maximum"))
if low is not None:
    assert low & (low - 1) == 0 and best & (best - 1) == 0 and low <= 512 <= best <= high, (low, best, high)
PY
}

# dstd tells the block sizes in words that nbdinfo understands.
test_block_sizes() {
    lacks nbdkit "file plugin 1.32 tells none"
    lacks nbd-server "it tells none"
    lacks qemu-nbd "others than ours"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    nbdsh_on "$URI" <<'PY'
sizes = [h.get_block_size(kind) for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
same(sizes, [1, 4096, 32 * MIB], "block sizes")
PY
}

# nbdinfo --list: every export with its name and size, and what each can do.
# @broken any-name
test_list() {
    lacks nbd-server "it tells no sizes in a list"
    truncate -s 1M "$T/one"
    truncate -s 2M "$T/two"
    serve one="$T/one" two="$T/two"
    run nbdinfo --list --json "$(uri_of "")"
    ((RC == 0)) || fail "nbdinfo --list: $OUT"
    assert_eq "$("$PYTHON" -c 'import json, sys
print(sorted((e["export-name"], e["export-size"]) for e in json.loads(sys.argv[1])["exports"]))' "$OUT")" \
        "[('one', 1048576), ('two', 2097152)]" "exports"
    assert_eq "$(nbdinfo --size "$(uri_of two)")" 2097152 "size of the second"
}

# nbdinfo --map: data and holes where the file has them.
# @broken no-extents
# @broken short
test_map() {
    lacks nbd-server "it has no block status"
    sparse_file "$T/disk"
    serve disk="$T/disk"
    run nbdinfo --map "$URI"
    assert_eq "$(awk 'NF { print $1, $2, $3 }' <<<"$OUT")" "0 65536 0
65536 983040 3
1048576 65536 0
1114112 7274496 3
8388608 65536 0
8454144 58589184 3
67043328 65536 0" "map"
}

# nbdinfo --is and --can end with 0 for yes and 2 for no.
# @broken no-multi-conn
# @broken no-fua
test_is_and_can() {
    local can
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    for can in connect flush fua multi-conn read trim write zero cache df structured-reply; do
        case $SERVER:$can in
        qemu-nbd:multi-conn | nbd-server:cache | nbd-server:df | nbd-server:structured-reply) continue ;;
        nbd-server:zero | nbd-server:multi-conn) continue ;;
        esac
        assert_ok nbdinfo --can "$can" "$URI"
    done
    run nbdinfo --is read-only "$URI"
    assert_eq "$RC" 2 "nbdinfo --is read-only"
    run nbdinfo --is tls "$URI"
    assert_eq "$RC" 2 "nbdinfo --is tls"
}

# A read-only export says so, and refuses what would change it.
# @broken writable
test_read_only() {
    lacks qemu-nbd "it says EINVAL"
    make_file "$T/disk" 1M
    cp "$T/disk" "$T/before"
    serve --read-only disk="$T/disk"
    assert_ok nbdinfo --is read-only "$URI"
    nbdsh_on "$URI" <<'PY'
lenient(h)
refused("EPERM", h.pwrite, b"x" * 4096, 0)
refused("EPERM", h.trim, 4096, 0)
refused("EPERM", h.zero, 4096, 0)
same(len(h.pread(4096, 0)), 4096)
PY
    assert_fails "" qemu-io -f raw -c "write 0 4k" "$URI"
    assert_same_bytes "$T/disk" "$T/before"
}

# A name that isn't served is refused, however it looks; the connection can ask for another.
# @broken any-name
test_unknown_names() {
    lacks nbdkit "with one file it takes any name"
    lacks nbd-server "it hangs up on an unknown name"
    make_file "$T/disk" 1M
    serve disk="$T/disk"
    nbdsh_on "$URI" --opt-mode <<PY
for name in ("other", "disk ", "/etc/passwd", "../disk", "$T/disk", "x" * 4096):
    h.set_export_name(name)
    refused("ENOENT EINVAL EPERM", h.opt_info)
h.set_export_name("disk")
h.opt_go()
same(h.get_size(), MIB, "size")
PY
}
