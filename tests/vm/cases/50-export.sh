#!/usr/bin/env bash
# The node server as a node: dm-dst, nbd.ko and other clients over `dstd export` of files, disks and DST devices;
# disks that fail, fill up or stall; the server killed. What a single request does is tested natively.
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

MIB=$((1024 * 1024))

# dm_disk NAME TARGET...: a device of N sectors over the scratch disk, for the server to serve; removed by cleanup.
dm_disk() { assert_ok dmsetup create "$1" --table "$2"; }

# switch_disk NAME TABLE: another table under a server that goes on.
switch_disk() {
    assert_ok dmsetup suspend --noflush --nolockfs "$1"
    assert_ok dmsetup load "$1" --table "$2"
    assert_ok dmsetup resume "$1"
}

# Two files on two servers, four links each, beside nbdkit: what is written is what the files hold.
test_placement() {
    make_image alpha $((6 * MIB + 512)) >/dev/null
    make_image beta $((5 * MIB + 2560)) >/dev/null
    make_image gamma $((3 * MIB + 1536)) >/dev/null
    start_export alpha
    start_export beta
    start_nbdkit gamma
    topology
    node alpha "" "links: 4"
    node beta "$(node_uri6 beta)" "links: 4"
    node gamma
    device dev
    extent beta 3 8001
    extent alpha
    extent gamma
    extent beta 9000 1000
    apply
    random_fill
    mapfile -t with < <(images alpha beta gamma)
    assert_images_match "${with[@]}"
    assert_eq "$(node_field alpha 3) $(node_field beta 3)" "4/4 4/4" "links"
    assert_eq "$(node_field alpha 7) $(node_field beta 7)" "0 0" "errors"
}

# Discards are real holes in the file, and write-zeroes with and without them reads as zeros.
test_holes() {
    make_image alpha $((16 * MIB)) >/dev/null
    start_export alpha
    topology
    node alpha
    device dev
    extent alpha
    apply
    random_fill
    local full
    full=$(stat -c %b "$(node_image alpha)")
    assert_ok blkdiscard --offset $((4 * MIB)) --length $((8 * MIB)) /dev/mapper/dev
    (($(stat -c %b "$(node_image alpha)") <= full - 8 * 2048)) || fail "the discard made no hole"
    assert_ok blkdiscard --zeroout --offset 0 --length $((4 * MIB)) /dev/mapper/dev
    sync_device
    assert_ok cmp -n $((12 * MIB)) /dev/mapper/dev /dev/zero
    assert_ok cmp -i $((12 * MIB)) /dev/mapper/dev "$T/data"
    mapfile -t with < <(images alpha)
    assert_images_match "${with[@]}"
}

# A disk of the machine, served whole; read-only for another name at the same time is refused, as it is in use.
test_block_device() {
    local disk
    disk=$(scratch 1)
    dm_disk disk "0 65537 linear $disk 2048"
    start_export alpha alpha=/dev/mapper/disk
    topology
    node alpha "" "links: 2"
    device dev
    extent alpha
    apply
    random_fill
    assert_ok dd if=/dev/zero of=/dev/mapper/dev bs=1M count=4 oflag=direct status=none
    stop_node alpha
    assert_ok dstd fail-pending alpha
    assert_ok dstd remove dev
    assert_ok cmp -n $((4 * MIB)) /dev/mapper/disk /dev/zero
    assert_ok cmp -i $((4 * MIB)) /dev/mapper/disk "$T/data"
}

# Storages form trees: a device over two servers is exported again, and another one is made of it and a third.
test_tree() {
    make_image one $((24 * MIB + 512)) >/dev/null
    make_image two $((20 * MIB)) >/dev/null
    make_image three $((28 * MIB)) >/dev/null
    start_export one
    start_export two
    start_export three
    topology
    node one "" "links: 2"
    node two "" "links: 2"
    device lower
    extent one
    extent two
    assert_ok dstd apply "$T/t.yaml"
    start_export trunk trunk=/dev/mapper/lower
    {
        printf 'version: 1\nnodes:\n'
        printf '  trunk: {uri: "%s", links: 2}\n  three: {uri: "%s", links: 2}\n' "$(node_uri trunk)" "$(node_uri three)"
        printf 'devices:\n  dev:\n    table:\n      - dst: {node: trunk}\n      - dst: {node: three}\n'
    } >"$T/upper.yaml"
    assert_ok dstd apply "$T/upper.yaml"
    assert_ok mkfs.ext4 -q -b 4096 /dev/mapper/dev
    mkdir -p "$T/mnt"
    assert_ok mount /dev/mapper/dev "$T/mnt"
    assert_ok cp -a /usr/share/zoneinfo/Europe /usr/lib/python3.11/encodings "$T/mnt"
    make_file "$T/big" $((40 * MIB))
    assert_ok cp "$T/big" "$T/mnt/big"
    assert_ok umount "$T/mnt"
    sync_device
    assert_ok fsck.ext4 -f -n /dev/mapper/dev
    assert_ok mount -o ro /dev/mapper/dev "$T/mnt"
    assert_ok diff -r --no-dereference /usr/share/zoneinfo/Europe "$T/mnt/Europe"
    assert_same_bytes "$T/big" "$T/mnt/big"
    assert_ok umount "$T/mnt"
    # the same bytes lie at the bottom
    stop_node trunk
    assert_ok cmp -n $((24 * MIB + 512)) /dev/mapper/lower "$(node_image one)"
    assert_ok dstd fail-pending trunk
    assert_ok dstd remove dev
    assert_ok dstd remove lower
}

# The kernel's own client: on a disk of 512-byte sectors, though it doesn't ask for block sizes; with a file system on it.
test_nbd_client() {
    need_command nbd-client
    need_module nbd
    modprobe nbd
    make_image alpha $((64 * MIB)) >/dev/null
    dm_disk disk "0 8192 linear $(scratch 1) 0"
    start_export alpha "alpha=$(node_image alpha)" disk=/dev/mapper/disk
    assert_ok nbd-client "$(node_addr alpha)" "$NODE_PORT" /dev/nbd1 -name disk
    make_file "$T/pattern" 4M
    assert_ok dd if="$T/pattern" of=/dev/nbd1 bs=64k oflag=direct status=none
    assert_ok nbd-client -d /dev/nbd1
    assert_ok cmp "$T/pattern" /dev/mapper/disk
    assert_ok nbd-client "$(node_addr alpha)" "$NODE_PORT" /dev/nbd0 -name alpha -connections 4
    assert_ok mkfs.ext4 -q /dev/nbd0
    mkdir -p "$T/mnt"
    assert_ok mount -o discard /dev/nbd0 "$T/mnt"
    assert_ok cp -a /usr/share/zoneinfo/Europe "$T/mnt"
    assert_ok fstrim "$T/mnt"
    assert_ok umount "$T/mnt"
    assert_ok mount -o ro /dev/nbd0 "$T/mnt"
    assert_ok diff -r --no-dereference /usr/share/zoneinfo/Europe "$T/mnt/Europe"
    assert_ok umount "$T/mnt"
    assert_ok nbd-client -d /dev/nbd0
    assert_ok fsck.ext4 -f -n "$(node_image alpha)"
}

# read_sector N / write_sector N: by a stock client, with the error's own words.
read_sector() { qemu-io -r -f raw -c "read $(($1 * 512)) 512" "$(node_uri alpha)"; }
write_sector() { qemu-io -t none -f raw -c "write -P 0x5a $(($1 * 512)) 4096" "$(node_uri alpha)"; }

# A disk with bad sectors: those requests end with EIO, the others with their bytes.
test_disk_errors() {
    local disk
    disk=$(scratch 1)
    dm_disk disk "0 4096 linear $disk 0
4096 64 error
4160 4096 linear $disk 4160"
    start_export alpha alpha=/dev/mapper/disk
    assert_ok read_sector 4000
    assert_fails "Input/output error" read_sector 4100
    assert_ok read_sector 5000
    assert_eq "$(node_gone alpha && echo gone || echo serves)" serves "the server"
}

# What a failed write-back lost stays lost: no later flush may say that all is well, until an operator re-opens.
test_failed_flush_is_remembered() {
    local disk good bad
    disk=$(scratch 1)
    good="0 32768 linear $disk 0" bad="0 32768 error"
    dm_disk disk "$good"
    start_export alpha alpha=/dev/mapper/disk
    local before
    before=$(dstd probe "$(node_uri alpha)" --json | jq -r .incarnation)
    assert_match "$before" '^[0-9a-f-]{32,36}$' "the incarnation"
    assert_ok qemu-io -f raw -c "write -P 1 0 64k" -c flush "$(node_uri alpha)"
    switch_disk disk "$bad"
    assert_fails "Input/output error" qemu-io -f raw -c "write -P 2 0 64k" -c flush "$(node_uri alpha)"
    switch_disk disk "$good"
    assert_fails "Input/output error" qemu-io -f raw -c "write -P 2 0 64k" -c flush "$(node_uri alpha)"
    assert_fails "Input/output error" qemu-io -f raw -c "write -f -P 3 0 64k" "$(node_uri alpha)"
    # opened again it is another incarnation, and good
    stop_node alpha
    start_export alpha alpha=/dev/mapper/disk
    local after
    after=$(dstd probe "$(node_uri alpha)" --json | jq -r .incarnation)
    [[ $after != "$before" ]] || fail "the incarnation is the same after data was lost: $after"
    assert_ok qemu-io -f raw -c "write -P 4 0 64k" -c flush "$(node_uri alpha)"
}

# A full disk: ENOSPC arrives as such, by a stock client and through dm-dst, and the rest goes on.
test_disk_full() {
    mkdir -p "$T/small"
    assert_ok mount -t tmpfs -o size=8m tmpfs "$T/small"
    truncate -s 16M "$T/small/alpha.img"
    start_export alpha "alpha=$T/small/alpha.img"
    assert_fails "No space left on device" qemu-io -f raw -c "write -P 1 0 16M" "$(node_uri alpha)"
    assert_ok qemu-io -f raw -c "discard 0 16M" -c "write -P 2 0 4M" -c "read -P 2 0 4M" "$(node_uri alpha)"
    topology
    node alpha
    device dev
    extent alpha
    apply
    assert_fails "No space left on device" dd if=/dev/zero of=/dev/mapper/dev bs=1M count=16 oflag=direct status=none
    assert_ok dd if=/dev/zero of=/dev/mapper/dev bs=1M count=4 oflag=direct status=none
    assert_ok dstd remove dev
    stop_node alpha
}

# The server is killed and started again under the daemon: links come back, what was acknowledged is there.
test_killed_and_restarted() {
    make_image alpha $((16 * MIB)) >/dev/null
    start_export alpha
    topology
    node alpha "" "links: 4"
    device dev
    extent alpha
    (cd "$T" && exec dstd run "$T/t.yaml") >"$T/daemon" 2>&1 &
    wait_until 60 "the device" state_is alpha live
    random_fill
    local round
    for round in 1 2 3; do
        make_file "$T/part" $((2 * MIB))
        assert_ok dd if="$T/part" of=/dev/mapper/dev bs=1M seek=$((round * 2)) oflag=direct status=none
        dd if="$T/part" of="$T/data" bs=1M seek=$((round * 2)) conv=notrunc status=none
        kill_node alpha
        wait_until 30 "the loss" state_is alpha lost
        start_export alpha
        wait_until 60 "live again" state_is alpha live
        sync_device
        assert_ok cmp "$T/data" /dev/mapper/dev
    done
    assert_ok cmp "$T/data" "$(node_image alpha)"
}

# stall_server: alpha serves a disk whose reads we can stop. What lies in the page cache goes on; a write to a part of
# a page that doesn't waits in the server for the disk, until the disk is resumed.
STALLED=$((8 * 1024 * 1024))
WARM=$((2 * 1024 * 1024))
stall_server() {
    local disk
    disk=$(scratch 1)
    dm_disk disk "0 65536 delay $disk 0 20 $disk 0 20"
    start_export alpha alpha=/dev/mapper/disk
    assert_ok member 0 1 write "$WARM" 65536 1 disconnect
    defer "dmsetup resume disk"
    assert_ok dmsetup suspend --noflush --nolockfs disk
}

# member SLOT GENERATION COMMAND...: a link of client c1ie's session.
member() { dst-nbd --client c1 --nonce "${NONCE:-1}" --slot "$1" --generation "$2" "$(node_uri alpha)" -- "${@:3}"; }

# A link with a stalled write is cut: its fence is silent while the write can still happen, the session's other link
# goes on, and after the fence the old bytes never come back.
test_fence_of_a_stalled_write() {
    stall_server
    member 0 2 send-write "$STALLED" 512 17 hold 600 >"$T/old" &
    wait_until 30 "the stalled write" grep -q "^holding" "$T/old"
    member 1 2 fence 0 2 >"$T/fence" &
    local fence=$! n
    for n in 1 2 3 4 5; do
        assert_ok member 1 $((2 + n)) write "$WARM" 4096 "$n" read "$WARM" 4096
        assert_contains "$OUT" "0$n*4096" "what the other link reads"
    done
    kill -0 "$fence" || fail "the fence ended while the write was stalled: $(<"$T/fence")"
    assert_eq "$(<"$T/fence")" "" "what the fence said meanwhile"
    assert_ok dmsetup resume disk
    wait_until 60 "the fence" grep -q "^fenced 0 2" "$T/fence"
    assert_ok member 0 9 write "$STALLED" 512 34 read "$STALLED" 512 flush disconnect
    stop_node alpha
    assert_eq "$(od -An -v -tu1 -w1 -j "$STALLED" -N 512 /dev/mapper/disk | sort -u | tr -d ' ')" 34 "bytes on the disk"
}

# The client comes back as a new session while a write of its old one is stalled: it gets in when that has ended.
test_take_over_waits_for_a_stalled_write() {
    stall_server
    member 0 2 send-write "$STALLED" 512 17 reset >"$T/old"
    assert_contains "$(<"$T/old")" "sent" "the old session"
    NONCE=2 member 0 1 write "$STALLED" 512 34 flush disconnect >"$T/new" &
    wait_until 30 "the new session's hello" grep -q "^session" "$T/new"
    # somebody else is served meanwhile
    local n
    for n in 1 2 3 4 5; do
        assert_ok dst-nbd "$(node_uri alpha)" -- info read "$WARM" 4096
    done
    assert_not_contains "$(<"$T/new")" "go " "the new session while the old write is stalled"
    assert_ok dmsetup resume disk
    wait_until 60 "the new session" grep -q "^disconnected" "$T/new"
    stop_node alpha
    assert_eq "$(od -An -v -tu1 -w1 -j "$STALLED" -N 512 /dev/mapper/disk | sort -u | tr -d ' ')" 34 "bytes on the disk"
}
