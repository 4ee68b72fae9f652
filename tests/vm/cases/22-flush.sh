#!/usr/bin/env bash
# What goes over the wire besides data: FLUSH to exactly the nodes that were written since their last one, FUA,
# TRIM and NO_HOLE where due. Read in the log of the servers themselves (nbdkit's log filter).
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/wire.sh
source "$(dirname "${BASH_SOURCE[0]}")/../wire.sh"

# start_logged NAME [FILTER...]: nbdkit that logs each request to $T/NAME.log before any other filter sees it.
# On a Unix socket: quicker to start than a network of its own.
start_logged() {
    local name=$1
    shift
    make_image "$name" 4M >/dev/null
    start_unix_nbdkit "$name" --filter=log "$@" file "$(node_image "$name")" "logfile=$T/$name.log"
    wait_until 20 "nbdkit for $name" grep -q Ready "$T/$name.log"
}

# three: dev is 4 MiB (0x400000) each of alpha, beta and gamma, and all logs are read up to here.
three() {
    local name
    topology
    for name in alpha beta gamma; do
        start_logged "$name"
        node "$name" "" "links: ${1:-1}"
    done
    device dev
    for name in alpha beta gamma; do extent "$name"; done
    apply
    udevadm settle
    for name in alpha beta gamma; do
        assert_ok grep -q "flush=1 rotational=0 trim=1 zero=2 fua=2" "$T/$name.log"
        assert_wire "$name" "" "a new device"
    done
}

# put OFFSET_KIB COUNT_KIB [DD_ARG...]: one direct write of random bytes that the images are later held against.
put() {
    local at=$1 count=$2
    shift 2
    [[ -e $T/data ]] || truncate -s 12M "$T/data"
    make_file "$T/piece" $((count << 10))
    dd if="$T/piece" of="$T/data" bs="${count}K" seek=$((at << 10)) oflag=seek_bytes conv=notrunc status=none
    assert_ok dd if="$T/piece" of=/dev/mapper/dev bs="${count}K" seek=$((at << 10)) oflag=seek_bytes,direct status=none "$@"
}
flush() { assert_ok sync /dev/mapper/dev; }

assert_three_match() {
    sync_device
    assert_ok cmp "$T/data" /dev/mapper/dev
    cat "$(node_image alpha)" "$(node_image beta)" "$(node_image gamma)" | cmp - "$T/data" || fail "the images differ from the data"
}

# A FLUSH goes to the nodes that were written since their last one, to no other, and once.
test_flush_goes_where_writes_went() {
    three 2
    flush
    for name in alpha beta gamma; do assert_wire "$name" "" "a flush of a clean device"; done

    put 64 4
    assert_wire alpha "Write 0x10000+0x1000 fua=0" "a write"
    flush
    assert_wire alpha Flush "the flush after it"
    flush
    for name in alpha beta gamma; do assert_wire "$name" "" "a second flush"; done

    put 4092 8
    put 8192 4
    put 8196 4
    flush
    assert_wire alpha "Write 0x3ff000+0x1000 fua=0; Flush" "a write over two nodes, two to a third"
    assert_wire beta "Write 0x0+0x1000 fua=0; Flush" "a write over two nodes, two to a third"
    assert_wire gamma "Write 0x0+0x1000 fua=0; Write 0x1000+0x1000 fua=0; Flush" "a write over two nodes, two to a third"

    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=1M count=12 iflag=direct status=none
    flush
    for name in alpha beta gamma; do assert_wire "$name" "" "a flush after reads"; done
    assert_three_match
}

# fsync after writes from many threads: nodes get no more FLUSHes than there were fsyncs, and stay clean at the end.
test_flush_of_a_busy_device() {
    three 2
    assert_ok fio --name=busy --filename=/dev/mapper/dev --direct=1 --ioengine=psync --rw=randwrite --bs=4k \
        --size=8m --io_size=128k --numjobs=4 --thread --fsync=4 --output="$T/fio.out"
    assert_contains "$(cat "$T/fio.out")" "err= 0" "what fio says"
    flush
    local seen
    seen=$(wire alpha)
    [[ $seen == *Flush ]] || fail "the last request to alpha is no FLUSH: '${seen: -60}'"
    assert_contains "$(wire beta)" "Flush"
    assert_wire gamma "" "writes to the others"
}

# FUA is on the wire where the server has it, on every node of the write, and needs no FLUSH after it.
test_fua() {
    three
    put 4092 8 oflag=dsync
    assert_wire alpha "Write 0x3ff000+0x1000 fua=1" "a FUA write over two nodes"
    assert_wire beta "Write 0x0+0x1000 fua=1" "a FUA write over two nodes"
    flush
    for name in alpha beta gamma; do assert_wire "$name" "" "a flush after FUA writes"; done
    put 0 4
    put 4 4 oflag=dsync
    assert_wire alpha "Write 0x0+0x1000 fua=0; Write 0x1000+0x1000 fua=1; Flush" "FUA behind a plain write"
    assert_three_match
}

# Without FUA at the server it is a write and a FLUSH behind it.
test_fua_emulated() {
    start_logged alpha --filter=fua
    start_logged beta
    topology
    node alpha
    node beta
    device dev
    extent alpha
    extent beta
    apply
    udevadm settle
    assert_ok grep -q "flush=1 .* fua=0" "$T/alpha.log"
    put 4092 8 oflag=dsync
    assert_wire alpha "Write 0x3ff000+0x1000 fua=0; Flush" "a FUA write over two nodes"
    assert_wire beta "Write 0x0+0x1000 fua=1" "a FUA write over two nodes"
    flush
    assert_wire alpha "" "a flush after it"
    assert_wire beta "" "a flush after it"
    assert_eq "$(node_field alpha 10)" write_back "cache"
    sync_device
    cat "$(node_image alpha)" "$(node_image beta)" | cmp -n 8M - "$T/data" || fail "the images differ from the data"
}

# Discards are TRIMs, cut at the extents, and a FLUSH makes them durable.
test_discard() {
    three
    put 0 64
    put 4032 128
    flush
    for name in alpha beta gamma; do wire "$name"; done
    assert_ok blkdiscard -f -o $((4032 << 10)) -l $((128 << 10)) /dev/mapper/dev
    assert_wire alpha "Trim 0x3f0000+0x10000 fua=0" "a discard over two nodes"
    assert_wire beta "Trim 0x0+0x10000 fua=0" "a discard over two nodes"
    flush
    assert_wire alpha Flush "the flush after it"
    assert_wire beta Flush "the flush after it"
    assert_wire gamma "" "a discard of the others"
    dd if=/dev/zero of="$T/data" bs=64k seek=63 count=2 conv=notrunc status=none
    assert_three_match
}

# Zeroing says NO_HOLE exactly where the caller wants the space kept; the rest stays as it is.
# fallocate (the program) syncs before it ends.
test_no_hole() {
    three
    put 3968 384
    flush
    for name in alpha beta gamma; do wire "$name"; done
    assert_ok blkdiscard -f -z -o $((3968 << 10)) -l $((64 << 10)) /dev/mapper/dev
    assert_wire alpha "Zero 0x3e0000+0x10000 trim=0 fua=0" "blkdiscard -z"
    assert_ok fallocate -z -o $((4032 << 10)) -l $((128 << 10)) /dev/mapper/dev
    assert_wire alpha "Zero 0x3f0000+0x10000 trim=0 fua=0; Flush" "fallocate -z over two nodes"
    assert_wire beta "Zero 0x0+0x10000 trim=0 fua=0; Flush" "fallocate -z over two nodes"
    assert_ok fallocate -p -o $((4160 << 10)) -l $((64 << 10)) /dev/mapper/dev
    assert_wire beta "Zero 0x10000+0x10000 trim=1 fua=0; Flush" "fallocate -p"
    assert_wire alpha "" "zeroing another"
    assert_wire gamma "" "zeroing the others"
    dd if=/dev/zero of="$T/data" bs=64k seek=62 count=4 conv=notrunc status=none
    assert_three_match
}

# A FLUSH that fails fails the fsync, leaves the node dirty, and doesn't touch the others.
test_flush_that_fails() {
    make_image sick 4M >/dev/null
    start_logged well
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit sick --filter=log eval "logfile=$T/sick.log" get_size='echo 4194304' \
        pread="dd if=$T/sick.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="dd of=$T/sick.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none" \
        flush="[ ! -e $T/fail ] || { echo EIO full >&2; exit 1; }"
    topology
    node sick
    node well
    device dev
    extent sick
    extent well
    apply
    : >"$T/fail"
    put 4092 8
    assert_fails "Input/output error" sync /dev/mapper/dev
    assert_wire sick "Write 0x3ff000+0x1000 fua=0; Flush" "the fsync that failed"
    assert_wire well "Write 0x0+0x1000 fua=0; Flush" "the fsync that failed"
    assert_fails "Input/output error" sync /dev/mapper/dev
    assert_wire sick Flush "the next fsync"
    assert_wire well "" "the next fsync"
    rm "$T/fail"
    flush
    assert_wire sick Flush "the fsync after the repair"
    flush
    assert_wire sick "" "a clean node"
    assert_eq "$(node_field sick 7) $(node_field well 7)" "2 0" "errors"
}
