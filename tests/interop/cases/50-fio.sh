#!/usr/bin/env bash
# fio's nbd engine with verification.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# fio_on URI ARG...: four connections, each with 16 MiB of its own.
fio_on() {
    local uri=$1
    shift
    cd "$T" || return # fio leaves files of its own where it stands
    assert_ok fio --name=job --ioengine=nbd --uri="$uri" --numjobs=4 --size=16m --offset_increment=16m \
        --iodepth=32 --group_reporting --randrepeat=0 "$@"
    assert_not_contains "$OUT" "verify: bad" "fio"
}

# Random writes of 4k over four connections, verified by crc32c; then by a new server from the file alone.
# @broken forgets
# @broken some-errors
# @timeout 180
test_verify() {
    truncate -s 64M "$T/disk"
    serve disk="$T/disk"
    fio_on "$URI" --rw=randwrite --bs=4k --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7
    stop_server TERM
    serve disk="$T/disk"
    fio_on "$URI" --rw=randwrite --bs=4k --verify=crc32c --verify_only --verify_fatal=1 --randseed=7
}

# Sizes from 512 bytes to 1 MiB, reads between the writes.
# @broken forgets
# @broken some-errors
# @timeout 180
test_verify_mixed_sizes() {
    truncate -s 64M "$T/disk"
    serve disk="$T/disk"
    fio_on "$URI" --rw=randrw --rwmixread=30 --bsrange=512-1m --bs_unaligned=0 --blockalign=512 \
        --verify=crc32c --do_verify=1 --verify_fatal=1
}

# Trims between writes.
# @broken errors
# @timeout 180
test_trims() {
    lacks nbd-server "3.24 answers a TRIM of fio's with an error"
    make_file "$T/disk" 64M
    serve disk="$T/disk"
    fio_on "$URI" --rw=randtrim --bs=64k --time_based --runtime=2
    fio_on "$URI" --rw=trimwrite --bs=64k
}
