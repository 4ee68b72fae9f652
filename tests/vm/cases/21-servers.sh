#!/usr/bin/env bash
# Nodes of every kind: the servers people run, their block sizes and payload limits, read-only exports, and
# servers that lack a command. Each device's contents are compared with what the server holds.
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

# copy_of NODE [URI]: NODE=IMAGE, the image being read by another client.
copy_of() {
    nbdcopy "${2:-$(node_uri "$1")}" "$T/$1.copy" || fail "nbdcopy could not read $1"
    echo "$1=$T/$1.copy"
}

talks_ipv6() { [[ -n $(ss -Htn state established dst "[fd77:$(cat "$(node_dir "$1")/number")::2]:$NODE_PORT") ]]; }

# nbdkit from memory and from a file, qemu-nbd raw and qcow2, nbd-server; over IPv4, IPv6 and a Unix socket.
# Seven nodes, one device: what is written is what each server holds, as other clients read it.
test_every_server() {
    local name with=()
    for name in file raw old unix six; do make_image "$name" 2M >/dev/null; done
    qemu-img create -q -f qcow2 "$T/cow.qcow2" 2M
    start_nbdkit mem memory 2M
    start_nbdkit file
    start_nbdkit six
    start_qemu_nbd raw
    start_qemu_nbd cow --format=qcow2 "$T/cow.qcow2"
    start_nbd_server old
    start_unix_nbdkit unix
    topology
    for name in mem file raw cow old unix; do node "$name" "" "links: 2"; done
    node six "$(node_uri6 six)" "links: 2"
    device dev
    for name in cow six mem old unix file raw; do extent "$name" 3 1501; done
    for name in raw old six unix mem cow file; do extent "$name" 2001 2090; done
    apply
    assert_ok talks_ipv6 six
    random_fill
    for name in mem file raw cow old unix six; do
        assert_eq "$(node_field "$name" 2)" live "state of $name"
        with+=("$(copy_of "$name")")
    done
    assert_images_match "${with[@]}"
}

# A server that makes its contents up: the device reads as any other client reads it. In blocks of 4096: what
# this plugin makes up for less depends on where the request begins.
test_sparse_random() {
    start_nbdkit made sparse-random 16M seed=42 percent=50 runlength=49152
    topology
    node made "" "links: 4"
    device dev "read_only: true" "block_size: 4096"
    extent made 16392 7784
    extent made 8 16008
    apply
    mapfile -t with < <(copy_of made)
    assert_images_match "${with[@]}"
    assert_fails "" cmp -n $((7777 * 512)) /dev/mapper/dev /dev/zero
}

# Fails any request that breaks the block sizes, instead of mending it.
strict_blocks() {
    local name=$1
    shift
    start_nbdkit "$name" --filter=log --filter=blocksize-policy file "$(node_image "$name")" \
        "logfile=$T/$name.log" blocksize-error-policy=error "$@"
}

# A node that takes blocks of 4096 bytes and one of 512, under a device of block size 4096.
test_block_sizes_mixed() {
    make_image big $((4 * 1024 * 1024 + 4096)) >/dev/null
    make_image small $((4 * 1024 * 1024 + 512)) >/dev/null
    strict_blocks big blocksize-minimum=4096
    strict_blocks small blocksize-minimum=512
    topology
    node big
    node small
    device dev "block_size: 4096"
    extent small 8 4008
    extent big 4096
    extent small 4104
    extent big 0 4000
    apply
    assert_eq "$(blockdev --getss --getpbsz /dev/mapper/dev | paste -sd' ')" "4096 4096" "block sizes"
    random_fill
    assert_fails "Invalid argument" dd if=/dev/zero of=/dev/mapper/dev bs=512 count=1 oflag=direct
    make_file "$T/block" 4096
    assert_ok dd if="$T/block" of=/dev/mapper/dev bs=4096 seek=501 count=1 oflag=direct status=none
    assert_ok cmp -n 4096 -i $((501 * 4096)):0 /dev/mapper/dev "$T/block"
    mapfile -t with < <(images big small)
    assert_images_match "${with[@]}"
    assert_eq "$(node_field big 7) $(node_field small 7)" "0 0" "errors"
    grep -q 'Write' "$T/big.log" || fail "the log of big shows no write"
}

# A 4096 node doesn't fit a device of block size 512: dstd says so and leaves nothing; by hand the node is a mismatch.
test_block_size_misfit() {
    make_image big 4M >/dev/null
    strict_blocks big blocksize-minimum=4096
    topology
    node big
    device dev
    extent big
    assert_fails "block_size" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "4096"
    assert_contains "$OUT" "big"
    assert_eq "$(dmsetup ls)" "No devices found" "devices"

    misfit_by_hand "0 8192 dst 1 big 0 8192" big "minimum block is 4096 bytes"
    sed -i 's/  dev:/&\n    block_size: 4096/' "$T/t.yaml"
    apply
    random_fill
    assert_same_bytes "$T/data" "$(node_image big)"
}

# misfit_by_hand LINE NODE REASON: under a device made by hand the node is a mismatch for that reason. The
# device is taken away again, as whatever looks at it waits; $T/t.yaml then has a device dev of the whole node.
misfit_by_hand() {
    assert_ok dmsetup create dev --table "$1"
    topology
    node "$2"
    assert_fails "$2" dstd apply "$T/t.yaml"
    assert_eq "$(node_field "$2" 2)" mismatch "state of $2"
    assert_contains "$(node_field "$2" 9)" "${3// /_}" "the reason in dmsetup status"
    assert_ok dstd status
    assert_match "$OUT" "$2 +mismatch.*$3"
    assert_eq "$(node_field "$2" 3)" "0/1" "links of $2"
    assert_ok dmsetup remove dev
    device dev
    extent "$2"
}

# A server that takes at most 64 KiB at once gets larger bios in parts.
test_small_payload() {
    make_image tiny 8M >/dev/null
    make_image wide 8M >/dev/null
    strict_blocks tiny blocksize-minimum=512 blocksize-preferred=4096 blocksize-maximum=64K
    start_nbdkit wide
    topology
    node tiny "" "links: 2"
    node wide
    device dev
    extent tiny 1 7001
    extent wide 3 4001
    extent tiny 7777
    apply
    random_fill
    assert_ok dd if=/dev/mapper/dev of="$T/back" bs=4M iflag=direct status=none
    assert_same_bytes "$T/data" "$T/back"
    mapfile -t with < <(images tiny wide)
    assert_images_match "${with[@]}"
    assert_largest_is_64k tiny
}

assert_largest_is_64k() {
    local counts
    mapfile -t counts < <(sed -n 's/.* \(Write\|Read\) id=.* count=\(0x[0-9a-f]*\) .*/\2/p' "$T/$1.log")
    assert_eq "$(printf '%d\n' "${counts[@]}" | sort -n | tail -n 1)" 65536 "the largest request of $1"
}

queued_at_least() { (($(node_field "$1" 5) >= $2)); }

# Writes that were queued before the node's limits were known go out in parts, too.
test_small_payload_learnt_late() {
    make_image tiny 8M >/dev/null
    strict_blocks tiny blocksize-minimum=512 blocksize-preferred=4096 blocksize-maximum=64K
    assert_ok dmsetup create dev --table "0 16000 dst 1 tiny 13 16000"
    make_file "$T/data" $((4 * 1024 * 1024))
    dd if="$T/data" of=/dev/mapper/dev bs=4M count=1 oflag=direct,dsync status=none &
    wait_until 20 "the write in the node's queue" queued_at_least tiny 1
    topology
    node tiny
    apply
    wait $! || fail "the queued write failed"
    sync_device
    assert_ok cmp -n $((4 * 1024 * 1024)) "$T/data" /dev/mapper/dev
    assert_ok cmp -n $((4 * 1024 * 1024)) -i 0:$((13 * 512)) "$T/data" "$(node_image tiny)"
    assert_largest_is_64k tiny
    sync_device
    dd if=/dev/mapper/dev bs=4M count=1 iflag=direct status=none | cmp - "$T/data" || fail "a large read differs"
}

# A read-only export makes a read-only device; a line that doesn't say read_only gets no link to it.
test_read_only_export() {
    make_file "$T/fixed.img" 4M
    make_image free 4M >/dev/null
    start_nbdkit fixed -r file "$T/fixed.img"
    start_nbdkit free
    topology
    node fixed "" "links: 2"
    node free
    device dev
    extent free
    extent fixed
    apply
    assert_eq "$(blockdev --getro /dev/mapper/dev)" 1 "read-only"
    assert_contains "$(dmsetup table dev)" "block_size 512 read_only"
    mapfile -t with < <(images fixed free)
    assert_images_match "${with[@]}"
    assert_ok cmp -n $((4 << 20)) -i $((4 << 20)):0 /dev/mapper/dev "$T/fixed.img"
    assert_fails "not permitted" dd if=/dev/zero of=/dev/mapper/dev bs=4k count=1 oflag=direct
    assert_fails "" blkdiscard -f /dev/mapper/dev
    run blockdev --setrw /dev/mapper/dev # may say yes, and changes nothing
    assert_fails "not permitted" dd if=/dev/zero of=/dev/mapper/dev bs=4k count=1 oflag=direct
    assert_ok cmp -n $((4 << 20)) -i $((4 << 20)):0 /dev/mapper/dev "$T/fixed.img"
    assert_ok dstd remove dev
    misfit_by_hand "0 8192 dst 1 fixed 0 8192" fixed "export is read-only"
}

# A server that can read and write and nothing else: no FLUSH, FUA, TRIM, WRITE_ZEROES or multi-conn.
start_bare() {
    make_image bare 512K >/dev/null
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit bare --filter=log --filter=nozero eval "logfile=$T/bare.log" zeromode=none \
        get_size='echo 524288' \
        pread="dd if=$T/bare.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="dd of=$T/bare.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none"
}

# The target answers "not supported", which the block layer keeps from whoever discards: the node counts it.
refused_discard() {
    assert_eq "$(node_field "$1" 7)" 0 "errors of $1 before the discard"
    run blkdiscard -f -o 0 -l 65536 /dev/mapper/dev
    ((RC == 0)) || assert_contains "$OUT" "not supported" "the discard"
    assert_eq "$(node_field "$1" 7)" 1 "errors of $1 after the discard"
}

wire_has() { grep -q " $2 id=" "$T/$1.log"; }

# Each missing command has its consequence: write-through, refused discards, zeroes by writing, one link.
test_server_that_only_reads_and_writes() {
    start_bare
    topology
    node bare "" "links: 4"
    device dev
    extent bare
    apply
    assert_contains "$OUT" "one link instead of 4: its server doesn't announce multi-conn"
    assert_eq "$(node_field bare 3) $(node_field bare 10)" "1/1 write_through" "links and cache"
    assert_ok grep -q "flush=0 rotational=0 trim=0 zero=0 fua=0" "$T/bare.log"
    random_fill
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=64k count=2 oflag=direct,dsync status=none
    assert_ok sync /dev/mapper/dev
    refused_discard bare
    assert_ok cmp "$T/data" /dev/mapper/dev
    assert_same_bytes "$T/data" "$(node_image bare)"
    assert_ok blkdiscard -f -z -o 131072 -l 65536 /dev/mapper/dev
    assert_eq "$(node_field bare 7)" 2 "errors of bare after zeroing that was not supported"
    sync_device
    dd if=/dev/zero of="$T/data" bs=64k seek=2 count=1 conv=notrunc status=none
    assert_ok cmp "$T/data" /dev/mapper/dev
    assert_same_bytes "$T/data" "$(node_image bare)"
    for op in Flush Trim Zero; do
        if wire_has bare "$op"; then fail "$op was sent to a server that lacks it"; fi
    done
    if grep -q 'fua=1' "$T/bare.log"; then fail "FUA was sent to a server that lacks it"; fi
}

# nbd-server with everything switched off that can be: its own files are right all the same.
# @only faults
test_nbd_server_without_options() {
    make_image old 4M >/dev/null
    start_nbd_server old "flush = false" "fua = false" "trim = false"
    topology
    node old
    device dev
    extent old
    apply
    assert_eq "$(node_field old 10)" write_through "cache"
    random_fill
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=64k count=2 oflag=direct,dsync status=none
    refused_discard old
    sync_device
    assert_ok cmp "$T/data" /dev/mapper/dev
    assert_same_bytes "$T/data" "$(node_image old)"
}
