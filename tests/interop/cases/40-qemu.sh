#!/usr/bin/env bash
# qemu-img and qemu-io over the server.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# qemu-img info and map: size, and data and holes as of the file itself.
# @broken no-extents
# @broken short
test_info_and_map() {
    lacks nbd-server "it has no block status"
    local where
    sparse_file "$T/disk"
    where='import json, sys
print([(e["start"], e["length"], e["zero"], e["data"]) for e in json.load(sys.stdin)])'
    qemu-img map --output=json -f raw "$T/disk" | "$PYTHON" -c "$where" >"$T/want"
    serve disk="$T/disk"
    run qemu-img info --output=json -f raw "$URI"
    assert_match "$OUT" '"virtual-size": 67108864'
    qemu-img map --output=json -f raw "$URI" | "$PYTHON" -c "$where" >"$T/got"
    assert_same_bytes "$T/want" "$T/got"
}

# qemu-img convert to the server and back; sparse both ways.
# @broken bytes
# @broken cow
# @broken write-errors
test_convert() {
    sparse_file "$T/from"
    make_file "$T/disk" 64M
    serve disk="$T/disk"
    assert_ok qemu-img convert -n -f raw -O raw -m 8 -W "$T/from" "$URI"
    assert_same_bytes "$T/from" "$T/disk"
    assert_ok qemu-img convert -f raw -O qcow2 "$URI" "$T/to.qcow2"
    assert_ok qemu-img compare -f raw -F qcow2 "$T/from" "$T/to.qcow2"
    (($(kib "$T/to.qcow2") <= 1024)) || fail "the qcow2 takes $(kib "$T/to.qcow2") KiB, expected some 500"
}

# qemu-img compare sees no difference, and sees one changed byte.
# @broken bytes
# @broken read-errors
test_compare() {
    make_file "$T/disk" 16M
    cp "$T/disk" "$T/same"
    serve disk="$T/disk"
    assert_ok qemu-img compare -f raw -F raw "$URI" "$T/same"
    printf 'x' | dd of="$T/same" bs=1 seek=9999999 conv=notrunc status=none
    printf 'y' | dd of="$T/disk" bs=1 seek=9999999 conv=notrunc status=none
    assert_fails "Content mismatch" qemu-img compare -f raw -F raw "$URI" "$T/same"
}

# A qcow2 inside the export: written, trimmed and checked by qemu over the server, then read as a local file.
# @broken forgets
# @broken bytes
# @broken write-errors
test_qcow2_inside() {
    qemu-img create -q -f qcow2 "$T/disk" 64M
    truncate -s 80M "$T/disk"
    serve disk="$T/disk"
    assert_ok qemu-io -f qcow2 -c "write -P 0x11 0 1M" -c "write -P 0x22 20M 3M" -c "write -z 21M 1M" \
        -c "discard 0 64k" -c "write -f -P 0x33 63M 64k" -c "flush" "$URI"
    assert_ok qemu-img check -f qcow2 "$URI"
    assert_ok qemu-io -f qcow2 -c "read -P 0x11 64k 960k" -c "read -P 0x22 20M 1M" -c "read -P 0 21M 1M" \
        -c "read -P 0x33 63M 64k" "$URI"
    stop_server TERM
    assert_ok qemu-img check -f qcow2 "$T/disk"
    assert_ok qemu-io -r -f qcow2 -c "read -P 0x11 64k 960k" -c "read -P 0x22 22M 1M" "$T/disk"
}

# qemu-io by hand: patterns, odd ends, zeroes with and without unmap, discard, FUA, many at once.
# @broken forgets
# @broken errors
# @broken bytes
test_qemu_io() {
    make_file "$T/disk" 16M
    serve disk="$T/disk"
    assert_ok qemu-io -f raw -c "write -P 0xaa 0 64k" -c "read -P 0xaa 0 64k" -c "write -P 0xbb 513 1025" \
        -c "read -P 0xbb 513 1025" -c "read -P 0xaa 0 513" -c "write -f -P 0xcc 1M 1M" -c "write -z 2M 1M" \
        -c "read -P 0 2M 1M" -c "write -z -u 3M 1M" -c "read -P 0 3M 1M" -c "discard 4M 1M" \
        -c "aio_write -P 0xdd 8M 4M" -c "aio_write -P 0xee 12M 4M" -c "aio_flush" -c "flush" \
        -c "read -P 0xdd 8M 4M" -c "read -P 0xee 12M 4M" "$URI"
    all_bytes "$T/disk" 513 1025 0xbb
    all_bytes "$T/disk" $((8 << 20)) $((4 << 20)) 0xdd
}
