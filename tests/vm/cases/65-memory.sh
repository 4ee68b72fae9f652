#!/usr/bin/env bash
# Little memory: a guest of 256 MiB floods a slow device with dirty pages, and swaps on one, while its links break. The
# node is outside of the guest (10.0.2.9, a file of the host's served by nbdkit, 20 ms a write; dst-vm starts it), for a
# server inside would need the very memory that its own device's write-back is to free. dstd, which makes the links
# anew, is inside.

# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/power.sh
source "$(dirname "${BASH_SOURCE[0]}")/../power.sh"

# outside OFFSET LENGTH: device dev on so much of the node outside, in MiB; dstd keeps it.
outside() {
    local total
    total=$(memory MemTotal)
    # The network card's driver fills its ring from wherever it is polled, and says so when it has to try again later. Nothing of
    # ours asks for memory like this.
    allow_klog 'page allocation failure: order:0, mode:0x820\(GFP_ATOMIC\)'
    ((total < 300 * 1024)) || fail "this guest has $total KiB of memory: too much to show anything"
    assert_ok modprobe virtio_net
    wait_until 20 "the network card" test -e /sys/class/net/eth0
    assert_ok ip link set eth0 up
    assert_ok ip addr replace 10.0.2.15/24 dev eth0
    topology
    node alpha nbd://10.0.2.9:10809 "links: 2"
    device dev
    extent alpha $(($1 * 2048)) $(($2 * 2048))
    keep
    assert_ok is_live alpha
}

memory() { awk -v field="$1:" '$1 == field { print $2 }' /proc/meminfo; }

# break_links: both at once, with requests on them; returns when they are back.
break_links() {
    local before
    wait_until 120 "requests on the links" node_is_busy
    before=$(reconnects)
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 240 "new links" reconnected_since "$before"
}
node_is_busy() { (($(node_field alpha 4) > 0)); }
reconnects() { node_field alpha 8; }
reconnected_since() { (($(reconnects) >= $1 + 2)); }

# 1 GiB of dirty pages into a guest with a quarter of that, its links broken in the midst of it: all of it arrives.
# @only small
# @timeout 1500
test_flood_of_dirty_pages() {
    local least turn writer job=(--name=flood --filename=/dev/mapper/dev --rw=write --bs=1M --size=1G --ioengine=psync
        --thread --verify=crc32c --verify_pattern=0 --end_fsync=1)
    outside 0 1100
    fio "${job[@]}" --do_verify=0 --output="$T/fio" 9>&- &
    writer=$!
    for turn in 1 2 3; do
        wait_until 240 "dirty pages" dirty_at_least 8192
        break_links
        least=$(memory MemAvailable)
        echo "figure: after break $turn: $least KiB available, $(memory Dirty) dirty, $(memory Writeback) under write-back"
    done
    wait $writer || fail "the flood failed: $(cat "$T/fio")"
    echo 3 >/proc/sys/vm/drop_caches
    assert_ok fio "${job[@]}" --verify_only=1 --output="$T/fio"
    assert_contains "$(cat "$T/fio")" "err= 0" "what fio says"
    echo "figure: 1073741824 bytes verified, $(reconnects) new links"
}
dirty_at_least() { (($(memory Dirty) + $(memory Writeback) >= $1)); }

# Swap on the device, and a program that uses more memory than there is, while the links break: what it finds is
# what it put there.
# @only small
# @timeout 1500
test_swap_on_the_device() {
    local turn hog
    outside 1200 800
    assert_ok mkswap /dev/mapper/dev
    assert_ok swapon /dev/mapper/dev
    dst-hog 320 2 >"$T/hog" 2>&1 9>&- &
    hog=$!
    for turn in 1 2 3; do
        wait_until 240 "$((turn * 40)) MiB in swap" swapped_at_least $((turn * 40 * 1024))
        break_links
        echo "figure: after break $turn: $(($(memory SwapTotal) - $(memory SwapFree))) KiB in swap, $(memory MemAvailable) available"
    done
    wait $hog || fail "the program's memory: $(cat "$T/hog")"
    assert_contains "$(cat "$T/hog")" "bytes verified"
    echo "figure: $(tail -n 1 "$T/hog"), $(reconnects) new links"
    assert_ok swapoff /dev/mapper/dev
}
swapped_at_least() { (($(memory SwapTotal) - $(memory SwapFree) >= $1)); }
