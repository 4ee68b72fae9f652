#!/usr/bin/env bash
# nbdcopy in all directions.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# A file to the server over four connections: the same bytes, and its holes are holes.
# @broken cow
# @broken bytes
# @broken write-errors
test_to_server() {
    sparse_file "$T/from"
    truncate -s 64M "$T/disk"
    serve disk="$T/disk"
    assert_ok nbdcopy --connections=4 --flush "$T/from" "$URI"
    assert_same_bytes "$T/from" "$T/disk"
    [[ $SERVER == nbd-server ]] || # it has no WRITE_ZEROES
        assert_eq "$(kib "$T/disk")" 256 "KiB that the copy takes"
}

# The same onto a disk full of old bytes: they are gone, and what became zero is no longer stored.
# @broken no-zero
# @broken forgets
test_over_old_bytes() {
    lacks nbd-server "it has no WRITE_ZEROES"
    sparse_file "$T/from"
    make_file "$T/disk" 64M
    serve disk="$T/disk"
    assert_ok nbdcopy --connections=4 --flush "$T/from" "$URI"
    assert_same_bytes "$T/from" "$T/disk"
    sync "$T/disk"
    (($(kib "$T/disk") <= 512)) || fail "the copy takes $(kib "$T/disk") KiB, expected some 256"
}

# The server to a file over four connections: the same bytes, and holes stay holes.
# @broken bytes
# @broken short
# @broken read-errors
test_from_server() {
    sparse_file "$T/disk"
    serve disk="$T/disk"
    assert_ok nbdcopy --connections=4 "$URI" "$T/to"
    assert_same_bytes "$T/disk" "$T/to"
    (($(kib "$T/to") <= 512)) || fail "the copy takes $(kib "$T/to") KiB, expected some 256"
}

# Holes are asked for, not found by looking at zeroes: with --sparse=0 only block status can tell.
# @broken no-extents
test_holes_by_block_status() {
    lacks nbd-server "it has no block status"
    sparse_file "$T/disk"
    serve disk="$T/disk"
    assert_ok nbdcopy --sparse=0 "$URI" "$T/to"
    assert_same_bytes "$T/disk" "$T/to"
    (($(kib "$T/to") <= 1024)) || fail "the copy takes $(kib "$T/to") KiB, expected 1024 (whole requests of 256)"
}

# One export to another, and one request at a time.
# @broken forgets
test_between_exports() {
    sparse_file "$T/one"
    make_file "$T/two" 64M
    serve one="$T/one" two="$T/two"
    assert_ok nbdcopy "$(uri_of one)" "$(uri_of two)"
    assert_same_bytes "$T/one" "$T/two"
    make_file "$T/new" 64M
    assert_ok nbdcopy --synchronous "$T/new" "$(uri_of one)"
    assert_same_bytes "$T/new" "$T/one"
}
