#!/usr/bin/env bash
# Faults below stacks: what md-raid1, dm-multipath and ext4 see of a node that goes and comes back. The daemon keeps the
# links; dst-checker, or a file system's check, proves what they hold.

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

# start_stack OPTIONS NODE...: a `dstd export` of 8 MiB each, and a device of the same name on each.
start_stack() {
    local options=$1 node
    shift
    NODES=("$@")
    trap show_all EXIT
    defer "pkill -KILL -x dst-checker; pkill -KILL -x dstd; $(leave_nothing | sed 's/dmsetup remove.*//')true"
    for node; do
        make_image "$node" 8M >/dev/null
        KIND[$node]="export"
        start_server "$node"
    done
    topology
    for node; do node "$node" "" "links: 2, quiesce: never, $options"; done
    for node; do
        device "$node"
        extent "$node"
    done
    : >"$T/dstd.log"
    run_daemon
    wait_until 60 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    assert_ok udevadm settle --timeout=30
}
# start_checker_on DEVICE
start_checker_on() {
    dst-checker --device "$1" --hot 512 --regions 4 --threads 6 --stop-file "$T/stop" >"$T/report" 2>"$T/checker" &
    CHECKER=$!
    wait_until 90 "the checker to be running" grep -q running "$T/checker"
}
checker_goes_on() { kill -0 "$CHECKER" 2>/dev/null || fail "the checker: $(cat "$T/report" "$T/checker")"; }
stop_checker() {
    touch "$T/stop"
    wait "$CHECKER" || fail "the checker: $(cat "$T/report" "$T/checker")"
    assert_eq "$(jq -r '"\(.ok) \(.failed)"' "$T/report")" "true 0" "the checker's verdict and failed operations"
    echo "figure: $(jq -r '"\(.ops) operations, \(.bytes_verified) bytes verified, longest stall \(.longest_stall_ms) ms, seed \(.seed)"' "$T/report")"
}
node_is() { node_says "$1" '"\(.state) \(.live)"' "$2"; }

md_state() { cat "/sys/block/$(basename "$(readlink -f /dev/md/mirror)")/md/$1"; }
md_says() { [[ $(md_state "$1") == "$2" ]]; }

# md-raid1 on two nodes under `error`: one's loss degrades the array at once and nothing above notices; when it is back,
# a re-add makes both the same again.
# @timeout 400
# @only faults
test_md_degrades_and_resyncs() {
    need_module raid1
    start_stack "policy: error" left right
    assert_ok mdadm --create /dev/md/mirror --run --homehost=any --level=1 --raid-devices=2 --metadata=1.2 \
        --bitmap=internal /dev/mapper/left /dev/mapper/right
    wait_until 90 "the first sync" md_says sync_action idle
    start_checker_on /dev/md/mirror
    kill_node right
    wait_until 60 "the degraded array" md_says degraded 1
    checker_goes_on
    start_server right
    wait_until 60 "the node" node_is right "live 2"
    checker_goes_on
    assert_ok mdadm /dev/md/mirror --remove faulty
    assert_ok mdadm /dev/md/mirror --re-add /dev/mapper/right
    wait_until 120 "the resync" md_says degraded 0
    wait_until 60 "its end" md_says sync_action idle
    checker_goes_on
    stop_checker
    echo check >"/sys/block/$(basename "$(readlink -f /dev/md/mirror)")/md/sync_action"
    wait_until 60 "md's check" md_says sync_action idle
    assert_eq "$(md_state mismatch_cnt)" 0 "sectors that differ between the legs"
}

# dm-multipath over two paths to one export. One writer at a time: the path that has it loses its links under a write
# that is held up on its way; the other one takes over, the server lets nothing old in, and nothing goes back in time.
# @timeout 600
# @only faults
test_multipath_fails_over() {
    local round path other
    need_module dm-multipath
    make_image alpha 8M >/dev/null
    KIND[alpha]="export"
    start_server alpha
    start_proxy alpha "$NODE_PORT"
    NODES=(one two)
    trap show_all EXIT
    defer "pkill -KILL -x dst-checker; pkill -KILL -x dstd; dmsetup remove --retry paths; $(leave_nothing | sed 's/dmsetup remove.*//')true"
    topology
    aim_at_proxy alpha
    for path in one two; do node $path "$(node_uri alpha)" "links: 2, quiesce: never, policy: error"; done
    for path in one two; do
        device $path
        extent $path 0 16384
    done
    : >"$T/dstd.log"
    run_daemon
    wait_until 90 "one path with the export" one_path_lives
    assert_ok udevadm settle --timeout=30
    assert_ok dmsetup create paths --table "0 16384 multipath 3 queue_if_no_path queue_mode bio 0 2 1 \
        round-robin 0 1 1 /dev/mapper/one 1 round-robin 0 1 1 /dev/mapper/two 1"
    reinstate_paths &
    start_checker_on /dev/mapper/paths
    for round in 1 2 3 4 5 6; do
        echo "round $round"
        path=$(living_path)
        if [[ $path == one ]]; then other=two; else other=one; fi
        GENERATION=$(generation "$other")
        RULE=$(order alpha arm request write nth $((RANDOM % 8 + 1)) "do" hold and rst client)
        order alpha wait "$RULE" fired 100
        assert_ok dst-nlpoke drop "node=$path" force
        wait_until $PATIENCE "a path with the export" one_path_lives
        order alpha release "$RULE"
        checker_goes_on
    done
    stop_checker
}
living_path() { dst-nlpoke dump | jq -r 'select(.live > 0) | .name' | head -n 1; }
one_path_lives() { [[ -n $(living_path) ]]; }
# What multipathd does: a path that works again is used again.
reinstate_paths() {
    local path
    while [[ ! -e $T/stop ]]; do
        path=$(living_path)
        [[ -z $path ]] || dmsetup message paths 0 reinstate_path "$(dmsetup info -c --noheadings -o major,minor --separator : "$path")" || true
        sleep 0.5
    done
}

# ext4 under `queue`: a node that goes for a while is a pause; no error reaches it, and it is clean at the end.
# @timeout 400
# @only faults
test_ext4_sees_only_a_pause() {
    local writer
    start_stack "policy: queue" left
    assert_ok mkfs.ext4 -q -b 4096 /dev/mapper/left
    mkdir -p "$T/mnt"
    assert_ok mount -o errors=remount-ro /dev/mapper/left "$T/mnt"
    make_file "$T/data" 1M
    (
        for i in 1 2 3 4 5; do cp "$T/data" "$T/mnt/$i" && sync "$T/mnt/$i" || exit 1; done
    ) &
    writer=$!
    wait_until 60 "writes" node_says left '.writes > 0 or .in_flight > 0' true
    kill_node left
    wait_until 60 "what waits" node_says left '.queued > 0' true
    assert_ok kill -0 $writer
    start_server left
    wait $writer || fail "a write or fsync failed"
    assert_ok umount "$T/mnt"
    assert_ok fsck.ext4 -f -n /dev/mapper/left
    assert_ok mount -o ro /dev/mapper/left "$T/mnt"
    for i in 1 2 3 4 5; do assert_same_bytes "$T/data" "$T/mnt/$i"; done
    assert_not_contains "$(klog)" "EXT4-fs error"
    assert_not_contains "$(klog)" "I/O error"
}
