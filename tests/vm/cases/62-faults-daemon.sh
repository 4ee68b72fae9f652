#!/usr/bin/env bash
# The fault matrix, daemon and device-mapper: dstd killed at random while links go, and the cable pulled during suspend,
# reload, remove. Four nodes with four links each, dst-checker and fio on them all the while (faults.sh).

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

# dstd is killed 50 times, each time at another moment of its work, and started again, while links are reset and servers
# killed.
# @timeout 1800
# @only faults
test_killed_fifty_times() {
    local killer i
    start "${MIXED[@]}"
    kill_daemons &
    killer=$!
    for ((i = 0; ; i++)); do
        kill -0 $killer 2>/dev/null || break
        reset_one "${NODES[i % 4]}"
        ((i % 10 != 5)) || kill_and_restart "${NODES[RANDOM % 4]}"
        load_goes_on
    done
    wait $killer || fail "the killer of daemons"
    TRIES=50
    recover
    stop_load
}
# The last one stays.
kill_daemons() {
    local i
    for ((i = 0; i < 50; i++)); do
        kill -KILL "$DAEMON"
        wait "$DAEMON" 2>/dev/null || true
        run_daemon
        sleep "$((RANDOM % 3)).$((RANDOM % 10))"
    done
}

# The cable is pulled, and the device suspended: without flush it ends although nothing answers, with flush it waits for
# the cable; after resume and the cable all goes on.
# @timeout 900
# @only faults
test_cable_pulled_during_suspend() {
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 2 suspend_in_the_dark
    hurt 2 flush_in_the_dark
    stop_load
}
suspend_in_the_dark() {
    cut_node "$1"
    assert_ok timeout 60 dmsetup suspend --noflush dev
    assert_ok dmsetup resume --noudevsync dev
    heal_node "$1"
}
flush_in_the_dark() {
    local suspend
    cut_node "$1"
    wait_until 60 "requests in flight" in_flight "$1"
    dmsetup suspend dev &
    suspend=$!
    wait_until 60 "the suspend under way" suspending
    heal_node "$1"
    wait $suspend || fail "the suspend failed"
    assert_ok dmsetup resume --noudevsync dev
}
in_flight() { (($(node_field "$1" 4) > 0)); }
# Whoever suspends hangs in the kernel until all has been answered.
suspending() { pgrep -x dmsetup >/dev/null && grep -qsE "dm_wait_for_completion|__dm_suspend|dm_suspend|io_schedule" /proc/"$(pgrep -x dmsetup | head -n 1)"/stack; }

# The cable is pulled, and the table switched for an equal one and, by the daemon, for a longer one and back to its length.
# @timeout 900
# @only faults
test_cable_pulled_during_reload() {
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 4 reload_in_the_dark
    stop_load
}
reload_in_the_dark() {
    cut_node "$1"
    assert_ok dmsetup load dev --table "$(dmsetup table dev)"
    assert_ok timeout 60 dmsetup suspend --noflush dev
    assert_ok dmsetup resume --noudevsync dev
    heal_node "$1"
}

# The cable is pulled, and the device removed: refused while it is in use; with --force what waits fails, and it goes.
# An idle one goes at once. Made again, it holds what it held.
# @timeout 900
# @only faults
test_cable_pulled_during_remove() {
    local node reader
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 1 refused_in_the_dark
    stop_load
    assert_ok sync /dev/mapper/dev
    assert_ok dd if=/dev/mapper/dev of="$T/before" bs=1M iflag=direct status=none
    kill -KILL "$DAEMON"
    assert_ok udevadm settle --timeout=30
    for node in "${NODES[@]}"; do cut_node "$node"; done
    timeout 100 dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct status=none &
    reader=$!
    wait_until 30 "the read" in_flight alpha
    assert_fails "in use" dstd remove dev
    # whoever has it open may take a moment to go
    wait_until 30 "the device to go" dstd remove --force dev
    if wait $reader; then fail "removed by force, and the read succeeded"; fi
    for node in "${NODES[@]}"; do heal_node "$node"; done
    run_daemon
    wait_until $PATIENCE "the device" healthy
    assert_ok dd if=/dev/mapper/dev of="$T/after" bs=1M iflag=direct status=none
    assert_ok cmp "$T/before" "$T/after"
}
refused_in_the_dark() {
    cut_node "$1"
    assert_fails "in use" dstd remove dev
    heal_node "$1"
}
