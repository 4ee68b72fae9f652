#!/usr/bin/env bash
# The daemon's part in losses: it has lost links fenced by their server, takes no other export for the one before, and
# keeps the kernel's settings as the topology says. `dstd fence` does what no server can say.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

# start_daemon OPTIONS: device dev on node alpha, which has these; dstd keeps it. Sets DAEMON.
start_daemon() {
    defer "pkill -KILL -x dstd; dstd fail-pending alpha; dmsetup remove --retry dev"
    write_topology "$1"
    : >"$T/dstd.log"
    dstd run "$T/t.yaml" >>"$T/dstd.log" 2>&1 9>&- &
    DAEMON=$!
    wait_until 30 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    let_udev_scan dev
}

write_topology() {
    topology
    node alpha "" "$1"
    device dev
    extent alpha 0 8192
}

is_live() { node_says alpha '"\(.state) \(.live)"' "live $1"; }
field_is() { [[ $(node_field alpha "$1") == "$2" ]]; }

# write_piece LETTER: 4 KiB of it at the device's beginning.
write_piece() {
    head -c 4096 /dev/zero | tr '\0' "$1" >"$T/$1"
    timeout 100 dd if="$T/$1" of=/dev/mapper/dev bs=4k oflag=direct conv=notrunc status=none
}

reads_as() {
    sync_device
    cmp -n 4096 "$T/$1" /dev/mapper/dev
}

# lose_write: A is under way when its server stops, and all links are cut. Sets WRITER.
lose_write() {
    pause_node alpha
    write_piece A &
    WRITER=$!
    wait_until 10 "the write in flight" node_says alpha .in_flight 1
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 10 "the guard" field_is 6 1
}

# Nobody but the server's word can lift the guard: quiesce is never, and nobody asks the operator.
# @timeout 240
test_our_server_fences() {
    make_image alpha 4M >/dev/null
    start_export alpha
    start_daemon "links: 2, quiesce: never"
    lose_write
    resume_node alpha
    wait $WRITER || fail "the write whose link was cut failed"
    wait_until 60 "the fence" field_is 6 0
    assert_contains "$(cat "$T/dstd.log")" "is fenced by its server"
    assert_contains "$(klog)" "fenced by its server"
    assert_ok write_piece B
    assert_ok reads_as B
    assert_ok is_live 2
}

# A daemon that is killed while the link is unfenced: the next one asks.
# @timeout 240
test_a_later_daemon_fences() {
    make_image alpha 4M >/dev/null
    start_export alpha
    start_daemon "quiesce: never"
    lose_write
    kill -KILL $DAEMON
    resume_node alpha
    start_daemon "quiesce: never"
    wait $WRITER || fail "the write whose link was cut failed"
    wait_until 60 "the fence" field_is 6 0
    assert_ok write_piece B
    assert_ok reads_as B
}

# Stock servers can't say it: dstd fence does, and only when it is told to for sure.
# @timeout 240
test_the_operator_fences() {
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    # zero copy: the lost write itself would wait for the fence, too
    start_daemon "quiesce: never, zero_copy: off"
    lose_write
    resume_node alpha
    wait $WRITER || fail "the write whose link was cut failed"
    write_piece B &
    WRITER=$!
    wait_until 20 "the new write at the guard" field_is 13 1
    run dstd fence alpha </dev/null
    assert_eq "$RC" 3 "the status of fence without --yes ($OUT)"
    assert_contains "$OUT" "Lost links of node alpha that may still write"
    assert_ok field_is 13 1
    assert_contains "$(dstd status)" "UNFENCED LINK OF"
    assert_ok dstd fence alpha --yes
    wait $WRITER || fail "the write that waited failed"
    assert_ok field_is 6 0
    assert_ok reads_as B
    assert_contains "$(dstd fence alpha --yes)" "Nothing to do"
}

# Another export at the address is not taken, whatever its size; the right one is, when it is back.
# @timeout 240
test_another_export_is_not_taken() {
    make_image alpha 4M >/dev/null
    make_image other 4M >/dev/null
    start_export alpha
    start_daemon ""
    write_piece A
    kill_node alpha
    wait_until 20 "the loss" node_says alpha .state lost
    start_export alpha "alpha=$(node_image other)"
    wait_until 60 "the refusal" grep -q "dstd apply --same-data alpha" "$T/dstd.log"
    assert_ok node_says alpha .live 0
    kill_node alpha
    start_export alpha
    wait_until 60 "the links" is_live 1
    assert_ok reads_as A
}

# Settings change while the node is used, and come back with a node that was made anew.
# @timeout 240
test_settings_follow_the_topology() {
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    start_daemon "policy: {queue_for: 5m}, timeout: 20s"
    assert_ok node_says alpha '"\(.policy.queue_for_ms) \(.timeout_ms)"' "300000 20000"
    write_topology "policy: error, quiesce: 3s"
    kill -HUP $DAEMON
    wait_until 20 "the change" node_says alpha '"\(.policy) \(.quiesce_ms) \(.timeout_ms)"' "error 3000 30000"
    kill_node alpha
    wait_until 20 "the policy's end" node_says alpha .state failed
    assert_fails "error" timeout 20 dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct
    start_nbdkit alpha
    wait_until 60 "the links" is_live 1
    assert_ok dmsetup remove --retry dev
    wait_until 60 "the device and its links" is_live 1
    assert_ok node_says alpha '"\(.policy) \(.quiesce_ms)"' "error 3000"
}
