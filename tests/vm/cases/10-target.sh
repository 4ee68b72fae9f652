#!/usr/bin/env bash
# The table line and the target on their own: no server, no daemon, no link.

# refused LINE TEXT: the constructor must refuse LINE with TEXT in the kernel log, and leave no device.
refused() {
    run dmsetup create bad --table "$1"
    ((RC != 0)) || fail "the line '$1' was taken"
    assert_contains "$(klog | tail -n 4)" "$2" "the kernel log after '$1'"
    assert_eq "$(dmsetup ls | grep -c '^bad')" 0 "devices left by '$1'"
}

# Wrong table lines: each is refused with a text of its own, and leaves nothing behind.
test_bad_lines() {
    refused "0 100 dst 1 a 0 50" "add up to less"
    refused "0 100 dst 1 a 0 101" "add up to more"
    refused "0 100 dst 2 a 0 50 a 49 50" "overlap"
    refused "0 100 dst 2 a 0 100" "Fewer extents"
    refused "0 100 dst 0" "Invalid number of extents"
    refused "0 100 dst x a 0 100" "Invalid number of extents"
    refused "0 100 dst 1 a/b 0 100" "Invalid node name"
    refused "0 100 dst 1 $(printf 'n%.0s' {1..64}) 0 100" "Invalid node name"
    refused "0 100 dst 1 a -1 100" "offset or length"
    refused "0 100 dst 1 a 18446744073709551615 100" "offset or length"
    refused "0 100 dst 1 a 0 100 1 fast" "Unknown feature"
    refused "0 100 dst 1 a 0 100 2 block_size 1000" "block_size must be"
    refused "0 100 dst 1 a 0 100 2 block_size 8192" "block_size must be"
    refused "0 100 dst 1 a 0 100 1 block_size" "block_size must be"
    refused "0 100 dst 1 a 0 100 2 block_size 4096" "multiple of block_size"
    refused "0 104 dst 1 a 4 104 2 block_size 4096" "multiple of block_size"
    refused "0 100 dst 1 a 0 100 1 read_only" "read-only table"
    refused "0 100 dst 1 a 0 100 1 no_discard extra" "More words"
    assert_ok modprobe -r dm-dst
    assert_ok modprobe dm-dst
}

# What the constructor took is what the table prints, features and all.
test_table_round_trip() {
    local line="0 4000 dst 3 alpha 8 1000 be.ta-_1 16 2000 alpha 2000 1000 3 block_size 4096 no_discard"
    assert_ok dmsetup create dev --notable
    assert_ok dmsetup load dev --table "$line"
    assert_eq "$(dmsetup table --inactive dev)" "$line" "the table"
    assert_eq "$(dmsetup table --inactive dev | dmsetup load dev && dmsetup table --inactive dev)" "$line" "the table, fed back"
}

# A device with a node that was never live: its status says so, and nothing hangs that needn't.
test_waiting_device() {
    assert_ok dmsetup create dev --table "0 2048 dst 2 alpha 0 1024 beta 0 1024"
    assert_eq "$(dmsetup status --noflush dev)" \
        "0 2048 dst 2 13 alpha waiting 0/1 0 0 0 0 0 - unknown queue trust 0 beta waiting 0/1 0 0 0 0 0 - unknown queue trust 0" "the status"
    assert_ok udevadm settle --timeout=20
    assert_contains "$(udevadm info /dev/mapper/dev)" "SYSTEMD_READY=0"
    assert_not_contains "$(udevadm info /dev/mapper/dev)" "ID_FS_TYPE"
    assert_eq "$(awk '{print $1 + $5}' "/sys/block/$(basename "$(readlink -f /dev/mapper/dev)")/stat")" 0 "bios the scanners sent"
    assert_ok dmsetup remove dev
}

queued_is() { [[ $(dmsetup status --noflush dev | awk '{print $10}') == "$1" ]]; }

# A read of a node without links queues; a noflush suspend takes it back at once; fail-pending ends it.
test_queue_and_push_back() {
    assert_ok dmsetup create dev --table "0 2048 dst 1 alpha 0 2048"
    dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct status=none &
    wait_until 10 "the read in the node's queue" queued_is 1
    assert_ok timeout 20 dmsetup suspend --noflush dev
    assert_ok queued_is 0
    assert_ok dmsetup resume dev
    wait_until 10 "the read in the queue again" queued_is 1
    assert_ok dstd fail-pending alpha
    if wait $!; then fail "the read succeeded"; fi
    assert_ok queued_is 0
    assert_ok dmsetup remove dev
}

# A line of 10,000 extents is taken, printed and found through.
test_ten_thousand_extents() {
    seq 0 9999 | awk '{ line = line " n" $1 % 64 " " int($1 / 64) * 3 " 3" } END { print "0 30000 dst 10000" line }' >"$T/table"
    assert_ok dmsetup create dev --notable
    assert_ok dmsetup load dev "$T/table"
    assert_eq "$(dmsetup table --inactive dev)" "$(cat "$T/table") 2 block_size 512" "the table"
    assert_ok dmsetup remove dev
}
