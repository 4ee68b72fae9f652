#!/usr/bin/env bash
# Data over devices made by dstd: what is written at a sector is at that sector, through odd extents of
# up to 16 nodes, in bios of every size, and lies in the backing files where the table says.
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

# Three servers of different kinds and odd sizes become one device; what is written is where it belongs.
test_three_servers() {
    make_image alpha $((5 * 1024 * 1024 + 512)) >/dev/null
    make_image beta $((6 * 1024 * 1024 + 1024)) >/dev/null
    make_image gamma $((4 * 1024 * 1024 + 2560)) >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    start_nbd_server gamma
    topology
    node alpha "" "links: 4"
    node beta "" "links: 2"
    node gamma
    device dev
    extent alpha
    extent beta
    extent gamma
    apply
    assert_ok dstd status
    random_fill
    cat "$(node_image alpha)" "$(node_image beta)" "$(node_image gamma)" | cmp - "$T/data" || fail "the images differ from the data"
    assert_ok dmsetup status dev
    assert_ok dstd remove dev
}

# Sizes from 512 bytes to 4 MiB, each a multiple of a sector, and offsets that ignore every boundary: four jobs on
# regions of their own cover the device; each block is read back and its checksum held against what was written.
fio_verify() {
    local size sectors
    size=$(blockdev --getsize64 /dev/mapper/dev)
    sectors=$((size / 512 / 4))
    assert_ok fio --name=verify --filename=/dev/mapper/dev --direct=1 --ioengine=libaio --iodepth=32 \
        --rw=randwrite --bssplit=512/25:2560/20:7680/20:33280/15:132608/14:1049088/4:4m/2 --blockalign=512 \
        --numjobs=4 --size=$((sectors * 512)) --offset_increment=$((sectors * 512)) \
        --io_size="$1" --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --group_reporting \
        --thread --output="$T/fio.out"
    assert_contains "$(cat "$T/fio.out")" "err= 0" "what fio says"
    assert_match "$(cat "$T/fio.out")" "read: IOPS" "what fio says"
}

# fio over two nodes, in extents of odd sizes that take turns.
test_fio_two_nodes() {
    make_image alpha 24M >/dev/null
    make_image beta 24M >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    topology
    node alpha "" "links: 2"
    node beta
    device dev
    extent beta 7 20011
    extent alpha 1 12345
    extent beta 20021 3
    extent alpha 20001 23457
    apply
    fio_verify 4m
    mapfile -t with < <(images alpha beta)
    assert_images_match "${with[@]}"
    assert_eq "$(node_field alpha 7) $(node_field beta 7)" "0 0" "errors of the nodes"
}

# The same over three kinds of servers, with several links.
# @only faults
test_fio_three_nodes() {
    local name
    for name in alpha beta gamma; do make_image "$name" 16M >/dev/null; done
    start_nbdkit alpha
    start_qemu_nbd beta
    start_nbd_server gamma
    topology
    node alpha "" "links: 3"
    node beta "" "links: 2"
    node gamma
    device dev
    extent gamma 3 9999
    extent alpha 13 11111
    extent beta 1 1
    extent gamma 20000 7777
    extent beta 5 31111
    extent alpha 20001 1023
    apply
    fio_verify 4m
    mapfile -t with < <(images alpha beta gamma)
    assert_images_match "${with[@]}"
}

# sixteen: n0 to n15 are exports of two servers, TCP and Unix; device dev has two extents of each, of odd sizes.
sixteen() {
    local i
    mkdir "$T/pool"
    for i in {0..15}; do truncate -s 4M "$T/pool/n$i"; done
    start_nbdkit tcp file "dir=$T/pool"
    start_unix_nbdkit unix file "dir=$T/pool"
    topology
    for i in {0..7}; do node "n$i" "$(node_uri tcp)n$i" "links: 2"; done
    for i in {8..15}; do node "n$i" "nbd+unix:///n$i?socket=$T/unix.sock"; done
    device dev
    for i in {15..0}; do extent "n$i" $((2 * i + 1)) $((1001 + 97 * i)); done
    for i in {0..15}; do extent "n$i" $((4001 - i)) $((2999 - 101 * i)); done
    apply
}

# sixteen_images: NODE=IMAGE of all.
sixteen_images() {
    local i
    for i in {0..15}; do echo "n$i=$T/pool/n$i"; done
}

# fio over sixteen nodes: a large bio falls apart over four or five extents.
# @only faults
test_fio_sixteen_nodes() {
    sixteen
    fio_verify 4m
    mapfile -t with < <(sixteen_images)
    assert_images_match "${with[@]}"
}

# A byte written at offset X is at the computed offset of the computed node's file, and nowhere else.
# A damaged, misplaced or surplus sector is seen.
# @only faults
test_random_places() {
    local seed=$RANDOM$RANDOM
    sixteen
    dmsetup table dev >"$T/table"
    mapfile -t with < <(sixteen_images)
    assert_ok dst-poke write /dev/mapper/dev --table "$T/table" --seed "$seed" --count 4000
    assert_ok dst-poke check --table "$T/table" --seed "$seed" --count 4000 "${with[@]}"
    assert_contains "$OUT" "4000 sectors found"
    assert_images_match "${with[@]}"

    sed 's/ n3 3998 / n3 3997 /' "$T/table" >"$T/wrong"
    assert_fails " of $T/pool/n3 must " dst-poke check --table "$T/wrong" --seed "$seed" --count 4000 "${with[@]}"
    printf x | dd of="$T/pool/n3" bs=1 seek=$((4001 * 512 + 77)) conv=notrunc status=none
    assert_fails "sector 4001 of $T/pool/n3 must" dst-poke check --table "$T/table" --seed "$seed" --count 4000 "${with[@]}"
}

# One bio over three extents, the middle one a sector; and a device of nothing but one-sector extents.
test_one_sector_extents() {
    local i
    make_image alpha 4M >/dev/null
    make_image beta 4M >/dev/null
    start_nbdkit alpha --filter=log file "$(node_image alpha)" "logfile=$T/alpha.log"
    start_qemu_nbd beta
    topology
    node alpha
    node beta
    device dev
    extent alpha 5 1001
    extent beta 77 1
    extent alpha 2001 3
    extent beta 3 1
    extent alpha 1006 1
    for i in {1..300}; do
        extent beta $((5000 - 2 * i)) 1
        extent alpha $((7000 - 3 * i)) 1
    done
    apply
    random_fill
    mapfile -t with < <(images alpha beta)
    assert_images_match "${with[@]}"
    one_bio_over_three "${with[@]}"
}

# Sectors 1000 to 1004 belong to alpha, beta, alpha (3): one write of 5 sectors, then one read. A direct write
# of less than a page is one bio; alpha's log shows that it was cut at the boundaries.
one_bio_over_three() {
    make_file "$T/five" $((5 * 512))
    : >"$T/alpha.log"
    assert_ok dd if="$T/five" of=/dev/mapper/dev bs=2560 count=1 seek=$((1000 * 512)) oflag=direct,seek_bytes status=none
    assert_eq "$(sed -n 's/.* \(Write\) id=[0-9]* \(.*\) fua.*/\2/p' "$T/alpha.log" | sort)" \
        "offset=0x7da00 count=0x200"$'\n'"offset=0xfa200 count=0x600" "the writes alpha was sent"
    dd if="$T/five" of="$T/data" bs=2560 seek=$((1000 * 512)) oflag=seek_bytes conv=notrunc status=none
    dd if=/dev/mapper/dev of="$T/back" bs=2560 count=1 skip=$((1000 * 512)) iflag=direct,skip_bytes status=none
    assert_same_bytes "$T/five" "$T/back"
    sync_device
    assert_ok cmp "$T/data" /dev/mapper/dev
    assert_images_match "$@"
    cmp -n 512 -i $((77 * 512)):512 "$(node_image beta)" "$T/five" || fail "the middle extent lacks the second sector"
}

# Ten thousand extents in one line, those of the node in no order: each sector is where the table says.
# @timeout 180
# @only faults
test_ten_thousand_extents() {
    local seed=$RANDOM$RANDOM
    make_image alpha 20M >/dev/null
    make_image beta 20M >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    topology
    node alpha "" "links: 2"
    node beta
    device dev
    # 7919 is prime to 10,000: every place comes once
    seq 0 9999 | awk '{ at = $1 * 7919 % 10000; printf "      - dst: {node: %s, offset: %ds, length: %ds}\n",
        at % 2 ? "alpha" : "beta", at * 4 + 1, 1 + at % 3 }' >>"$T/t.yaml"
    apply
    dmsetup table dev >"$T/table"
    assert_eq "$(awk '{print NR, $4}' "$T/table")" "1 10000" "lines, and extents of the line"
    mapfile -t with < <(images alpha beta)
    assert_ok dst-poke write /dev/mapper/dev --table "$T/table" --seed "$seed" --count 2000
    assert_ok dst-poke check --table "$T/table" --seed "$seed" --count 2000 "${with[@]}"
    random_fill
    assert_images_match "${with[@]}"
}
