#!/usr/bin/env bash
# The daemon: it connects what was lost, adopts what it finds, tells systemd, and its death harms nothing. And
# what the commands beside it say: status --json, plan's exit statuses, a second apply. How it is upgraded: docs/operations.md.
# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"

# Device dev: 8 MiB of alpha with four links, then 4 MiB of beta.
start_two_nodes() {
    make_file "$(make_image alpha 8M)" 8M
    make_file "$(make_image beta 4M)" 4M
    start_nbdkit alpha
    start_nbdkit beta
    cat >"$T/t.yaml" <<END
version: 1
nodes:
  alpha: {uri: "$(node_uri alpha)", links: 4}
  beta: {uri: "$(node_uri beta)", links: 1}
devices:
  dev: {table: [{dst: {node: alpha, length: 8MiB}}, {dst: {node: beta, length: 4MiB}}]}
END
}

# start_daemon: dstd run in the background; returns when it is ready. Sets DAEMON.
start_daemon() {
    : >"$T/dstd.log"
    dstd run "$T/t.yaml" >>"$T/dstd.log" 2>&1 9>&- &
    DAEMON=$!
    wait_until 30 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    let_udev_scan dev
}

is_live() { node_says "$1" '"\(.state) \(.live)"' "live $2"; }
gone() { ! kill -0 "$1"; }

# read_at MIB: one block of the device, in the background. Sets READ.
read_at() {
    timeout 60 dd if=/dev/mapper/dev of="$T/read$1" bs=64k count=1 skip=$(($1 * 16)) iflag=direct status=none &
    READ=$!
}

same_as_images() {
    assert_ok blockdev --flushbufs /dev/mapper/dev
    cat "$(node_image alpha)" "$(node_image beta)" | cmp - /dev/mapper/dev || fail "the device differs from the images"
}

# A server dies under I/O: what was in flight and what comes later waits for the daemon to connect again, and the
# other node's extents notice nothing.
test_server_killed_under_io() {
    local waiting reading
    start_two_nodes
    defer "pkill -KILL -x dstd; dstd fail-pending alpha; dmsetup remove --retry dev"
    start_daemon
    assert_ok is_live alpha 4
    pause_node alpha
    read_at 0
    reading=$READ
    wait_until 10 "the read in flight" node_says alpha .in_flight 1
    kill_node alpha
    wait_until 10 "the node's loss" node_says alpha .state lost
    wait_until 10 "the read, which was in flight, in the queue" node_says alpha .queued 1
    make_file "$T/new" 64K
    timeout 100 dd if="$T/new" of=/dev/mapper/dev bs=64k seek=3 oflag=direct status=none &
    waiting=$!
    wait_until 10 "the write in the queue" node_says alpha .queued 2
    read_at 9
    wait $READ || fail "a read of the other node failed"
    assert_ok cmp -n 65536 "$T/read9" "$(node_image beta)" 0 $((1 << 20))
    assert_ok kill -0 $waiting
    start_nbdkit alpha
    wait_until 60 "the daemon to connect again" is_live alpha 4
    wait $waiting || fail "the write that had waited failed"
    wait $reading || fail "the read that was in flight failed"
    assert_ok cmp -n 65536 "$T/read0" "$(node_image alpha)"
    assert_ok cmp -n 65536 "$T/new" "$(node_image alpha)" 0 $((3 << 16))
    assert_ok node_says alpha '"\(.queued) \(.in_flight) \(.errors) \(.reconnects)"' "0 0 0 4"
    assert_ok node_says beta '"\(.errors) \(.reconnects) \(.generation)"' "0 0 1"
    same_as_images
}

# One of four links is cut: the node is degraded, its I/O goes on, and the daemon makes that one link again.
# @only faults
test_one_of_four_links_cut() {
    local port
    start_two_nodes
    start_daemon
    dst-nlpoke listen >"$T/events" &
    wait_until 10 "the listener" grep -q listening "$T/events"
    port=$(ss -Htn state established "dst $(node_addr alpha)" | awk 'NR == 1 { sub(/.*:/, "", $3); print $3 }')
    run ss -K dst "$(node_addr alpha)" sport = ":$port"
    wait_until 20 "news of the loss" grep -q "^link alpha .* Lost" "$T/events"
    assert_eq "$(grep -c "^link alpha .* Lost" "$T/events")" 1 "links lost ($(cat "$T/events"))"
    assert_contains "$(cat "$T/events")" "node alpha Degraded: " "the events"
    wait_until 60 "the fourth link" is_live alpha 4
    assert_ok node_says alpha '"\(.errors) \(.reconnects) \(.generation)"' "0 1 5"
    assert_eq "$(grep -c "^node alpha" "$T/events")" 2 "states of the node ($(cat "$T/events"))"
    assert_not_contains "$(cat "$T/events")" "beta"
    same_as_images
}

# What an adopting daemon must not touch.
untouched() {
    snapshot
    klog | grep 'device-mapper: dst' || true
}

# verify_both_nodes: I/O goes on both from here on, until stop_verify.
verify_both_nodes() {
    start_verify "$(direct_job 12m)"
    wait_until 30 "I/O on the nodes" node_says beta '.links[0].received > 1000000' true
    assert_ok udevadm settle --timeout=30
}

# The daemon is killed under load: I/O goes on, and the next one adopts everything and changes nothing.
test_daemon_killed_under_load() {
    local before sent
    start_two_nodes
    start_daemon
    verify_both_nodes
    before=$(untouched)
    kill -KILL $DAEMON
    wait $DAEMON || true
    sent=$(dst-nlpoke get node=alpha | jq '.links[0].sent')
    wait_until 10 "I/O without a daemon" node_says alpha ".links[0].sent > $sent" true
    start_daemon
    assert_eq "$(untouched)" "$before" "what the new daemon changed"
    assert_not_contains "$(cat "$T/dstd.log")" "connected" "its log"
    verify_goes_on
    stop_verify
    assert_eq "$(untouched)" "$before" "what the new daemon changed later"
    same_as_images
    # once more without I/O (whose end makes uevents): the next one causes none
    assert_ok udevadm settle --timeout=30
    before=$(untouched && cat /sys/kernel/uevent_seqnum)
    kill -KILL $DAEMON
    wait $DAEMON || true
    start_daemon
    assert_eq "$(untouched && cat /sys/kernel/uevent_seqnum)" "$before" "what a daemon changed that found all right"
    # and it does work
    kill_node beta
    start_nbdkit beta
    wait_until 30 "the adopting daemon to connect again" is_live beta 1
}

# ---- an upgrade ----

PAYLOAD=/dst/payload

# as_a_service: the real dstd.service keeps the topology; returns when it has said that it is ready.
as_a_service() {
    mkdir -p /etc/dst
    defer "rm -rf /etc/dst; systemctl reset-failed dstd.service"
    defer "systemctl stop dstd.service"
    cp "$T/t.yaml" /etc/dst/dev.yaml
    assert_ok timeout 120 systemctl start dstd.service
    let_udev_scan dev
}
main_pid() { systemctl show -P MainPID dstd.service; }

# listen_for_pauses: from here on the kernel tells of each link that changes and of each request that waits, is taken back or
# has to be fenced; pauses prints it. The debug kernel has no tracing: there only counters tell.
listen_for_pauses() {
    local event
    tracing || return 0
    defer "echo 0 >$TRACING/events/dm_dst/enable; echo >$TRACING/trace"
    echo >"$TRACING/trace"
    for event in link wait requeue fence; do echo 1 >"$TRACING/events/dm_dst/dmdst_$event/enable"; done
}
pauses() { if mountpoint -q "$TRACING"; then sed -n 's/.* dmdst_/dmdst_/p' "$TRACING/trace"; fi; }

# upgrade N: a dstd with N bytes more that mean nothing is installed as by `make install`, but for the module, which needs DKMS,
# a compiler and headers. What runs goes on in its old file until systemd is told to restart it.
upgrade() {
    local old
    old=$(main_pid)
    { cat $PAYLOAD/bin/dstd && head -c "$1" /dev/zero; } >"$T/upgrade"
    chmod 755 "$T/upgrade"
    cp "/proc/$old/exe" "$T/before"
    assert_ok env MODULE=no DSTD="$T/upgrade" $PAYLOAD/scripts/install.sh /usr/local
    assert_eq "$(main_pid)" "$old" "the process after the installation"
    assert_same_bytes "$T/before" "/proc/$old/exe"
    assert_ok timeout 120 systemctl restart dstd.service
    if kill -0 "$old" 2>/dev/null; then fail "the old one, $old, still runs"; fi
    assert_eq "$(readlink "/proc/$(main_pid)/exe")" /usr/local/bin/dstd "what runs now"
    assert_same_bytes "$T/upgrade" "/proc/$(main_pid)/exe"
}

# A person's upgrade under I/O: another dstd is installed over the one that runs, then dstd.service is restarted. No request waits or
# is taken back, no link changes, and the new one does the daemon's work from then on.
# @timeout 400
# @only faults
test_upgraded_under_io() {
    local before sent
    defer "install -m 755 -t /usr/local/bin $PAYLOAD/bin/dstd; install -m 644 -t /etc/systemd/system $PAYLOAD/systemd/*; systemctl daemon-reload"
    defer "rm -rf /usr/local/share/man/man1/dstd* /usr/local/share/bash-completion/completions/dstd"
    start_two_nodes
    as_a_service
    listen_for_pauses
    verify_both_nodes
    before=$(untouched)
    upgrade 1
    sent=$(dst-nlpoke get node=alpha | jq '.links[0].sent')
    wait_until 30 "I/O under the new daemon" node_says alpha ".links[0].sent > $sent" true
    verify_goes_on
    stop_verify
    assert_eq "$(pauses)" "" "links that changed, requests that waited"
    assert_eq "$(untouched)" "$before" "what the new daemon changed"
    same_as_images
    # once more without I/O, whose end makes uevents
    before=$(calm_snapshot)
    upgrade 2
    assert_eq "$(calm_snapshot)" "$before" "devices, nodes and uevents after an upgrade without I/O"
    kill_node beta
    start_nbdkit beta
    wait_until 60 "the new daemon to connect again" is_live beta 1
    if mountpoint -q "$TRACING"; then assert_contains "$(pauses)" "dmdst_link: node=beta" "what is traced"; fi
}

# start_unit: dstd as a unit of type notify; returns when systemd was told READY.
start_unit() {
    assert_ok timeout 60 systemd-run --quiet --unit=dstd-test --property=Type=notify --property=WatchdogSec=20 \
        "$(command -v dstd)" run "$T/t.yaml"
}

# systemd hears READY when all is live; SIGTERM ends the daemon and leaves devices, links and I/O as they are.
test_systemd_notify_and_sigterm() {
    local before
    start_two_nodes
    start_unit
    # READY is not said before
    assert_ok is_live alpha 4
    assert_ok is_live beta 1
    assert_eq "$(systemctl show -P StatusText dstd-test)" "1 devices, 2 nodes" "what it told systemd"
    let_udev_scan dev
    before=$(snapshot)
    assert_ok timeout 20 systemctl stop dstd-test
    assert_contains "$(journalctl --no-pager -o cat -u dstd-test)" "Deactivated successfully" "how it ended"
    assert_eq "$(snapshot)" "$before" "devices and nodes after SIGTERM"
    same_as_images
    # a node that doesn't answer holds nobody up, and is named
    kill_node beta
    wait_until 10 "the node's loss" node_says beta .state lost
    start_unit
    assert_contains "$(systemctl show -P StatusText dstd-test)" "1 not fully connected: beta" "what it told systemd"
    assert_eq "$(systemctl is-active dstd-test)" active
}

# SIGHUP reads the topology again; one with errors is logged, and the last good one stays in force.
test_sighup() {
    local stamp
    start_two_nodes
    start_daemon
    # in place, same length, same time: nothing that the daemon would find by itself
    stamp=$(stat -c %y "$T/t.yaml")
    sed 's/links: 1/links: 2/' "$T/t.yaml" >"$T/new"
    cat "$T/new" >"$T/t.yaml"
    touch -d "$stamp" "$T/t.yaml"
    kill -HUP $DAEMON
    wait_until 20 "the second link" is_live beta 2
    assert_contains "$(cat "$T/dstd.log")" "topology read again"
    echo "  delta: nonsense" >>"$T/t.yaml"
    kill -HUP $DAEMON
    wait_until 20 "the error in the log" grep -q "the last good one stays in force" "$T/dstd.log"
    assert_match "$(cat "$T/dstd.log")" "t.yaml:7:[0-9]+: "
    # a changed file is found without a signal
    sed '/delta/d; s/length: 4MiB/length: 2MiB, offset: 1MiB/; s/links: 2/links: 1/' "$T/t.yaml" >"$T/new"
    cat "$T/new" >"$T/t.yaml"
    wait_until 20 "one link again" is_live beta 1
    # the same pass refuses other data
    wait_until 20 "the refusal in the log" grep -q "refused: .*device dev" "$T/dstd.log"
    assert_eq "$(dmsetup table dev)" "0 24576 dst 2 alpha 0 16384 beta 0 8192 2 block_size 512" "the table"
    same_as_images
    assert_ok kill -0 $DAEMON
}

# plan tells by its status what there is to do, apply does it, and the second apply does nothing.
test_plan_statuses_and_second_apply() {
    local before
    start_two_nodes
    refused 2 "+ create device dev (UUID DST-dev)" dstd plan "$T/t.yaml"
    assert_contains "$OUT" "0 24576 dst 2 alpha 0 16384 beta 0 8192 2 block_size 512" "the plan"
    assert_contains "$OUT" "+ connect node alpha, slot 0 1 2 3" "the plan"
    assert_ok dstd apply "$T/t.yaml"
    assert_contains "$OUT" "Done:"
    let_udev_scan dev
    refused 0 "" dstd plan "$T/t.yaml"
    refused 0 "Nothing to do." dstd apply "$T/t.yaml"
    sed -i 's/length: 4MiB/length: 3MiB/' "$T/t.yaml"
    refused 3 "would shrink" dstd plan "$T/t.yaml"
    sed -i 's/length: 3MiB/length: 3/' "$T/t.yaml"
    refused 4 "has no unit" dstd plan "$T/t.yaml"
    refused 64 "Usage" dstd plan --nonsense
}

# apply in a terminal shows a bar while it waits, and what stays is the same lines as without one.
test_apply_on_a_terminal() {
    local plain
    start_two_nodes
    dstd apply "$T/t.yaml" >"$T/plain"
    assert_not_contains "$(cat "$T/plain")" $'\e'
    assert_not_contains "$(cat "$T/plain")" $'\r'
    let_udev_scan dev
    assert_ok dstd remove dev
    TERM=linux NO_COLOR=1 script -qec "stty cols 100; dstd apply $T/t.yaml" "$T/typescript" >/dev/null </dev/null
    assert_contains "$(cat "$T/typescript")" "] 2 of 2 nodes have answered" "what was on the terminal"
    assert_contains "$(cat "$T/typescript")" "] 0 of 5 steps are done" "what was on the terminal"
    plain=$(sed '1d;$d; s/\r*$//; s/.*\r\x1b\[K//' "$T/typescript" | grep '^  [-+~]')
    assert_eq "$plain" "$(grep '^  [-+~]' "$T/plain")" "the steps that stay on it"
}

# status --json is JSON with the fields that docs/dstd.md lists, and their values are the kernel's.
test_status_json() {
    start_two_nodes
    assert_ok dstd apply "$T/t.yaml"
    dstd status --json >"$T/status" || fail "status failed"
    assert_eq "$(jq -cS '.devices[0] | del(.number, .io)' "$T/status")" \
        "$(jq -cSn '{name: "dev", uuid: "DST-dev", ours: true, sectors: 24576, state: "active", access: "read_write", open_count: 0,
            inactive_table: false, nodes: ["alpha", "beta"], table: [
            {start: 0, length: 16384, target: "dst", node: "alpha", offset: 0},
            {start: 16384, length: 8192, target: "dst", node: "beta", offset: 0}]}')" "the device"
    assert_eq "$(jq -r '.devices[0].io | "\(.writes) \(.discards)"' "$T/status")" "0 0" "what was written"
    assert_eq "$(jq -r '.devices[0].number' "$T/status")" "$(dmsetup info -c --noheadings -o major,minor --separator : dev)" "its number"
    assert_eq "$(jq -r '.nodes[] | "\(.name) \(.state) \(.live)/\(.wanted) \(.errors) \(.need_size) \(.negotiated.size) \(.links | length)"' "$T/status" | sort | xargs)" \
        "alpha live 4/4 0 8388608 8388608 4 beta live 1/1 0 4194304 4194304 1" "the nodes"
    assert_eq "$(jq -r '.nodes[0] | keys_unsorted | join(" ")' "$T/status")" \
        "name state reason negotiated zero_copy wanted live in_flight queued errors reconnects generation need_size need_block need_write writes links policy quiesce_ms eof_fences unknown_restart timeout_ms ambiguous barred latency merged queue_time unfenced" "a node's fields"
    assert_eq "$(jq -r '.nodes[0].links[0] | keys_unsorted | join(" ")' "$T/status")" "slot generation state in_flight sent received" "a link's fields"
    kill_node beta
    wait_until 10 "the loss in the status" status_tells_loss
    assert_ok dstd status
    assert_match "$OUT" "beta +lost +0/1"
    # what goes on, look by look, until nobody reads any more
    dd if=/dev/zero of=/dev/mapper/dev bs=1M count=4 oflag=direct status=none
    timeout 60 dstd status --json --watch=1 | head -n 2 >"$T/watch" || true
    assert_eq "$(jq -r 'has("rates")' "$T/watch" | xargs)" "false true" "rates, from the second look on"
    assert_eq "$(jq -r '.devices[0].io.written' "$T/watch" | xargs)" "4194304 4194304" "what was written"
    assert_eq "$(jq -r 'select(.rates).rates | .devices.dev.writes, .nodes.beta.sent' "$T/watch" | xargs)" "0 0" "the rates"
}

# scrape: what the daemon's metrics are now, in $T/page.
scrape() {
    exec 7<>/dev/tcp/127.0.0.1/9150
    printf 'GET /metrics HTTP/1.1\r\n\r\n' >&7
    cat <&7 >"$T/page"
    exec 7>&-
}
scraped() { scrape && grep -qxF "$1" "$T/page"; }

# Metrics tell what kernel and daemon count, and a node's loss.
test_metrics() {
    local counted
    start_two_nodes
    export DSTD_METRICS=127.0.0.1:9150
    start_daemon
    dd if=/dev/zero of=/dev/mapper/dev bs=1M count=4 oflag=direct status=none
    scrape
    assert_contains "$(cat "$T/page")" "HTTP/1.1 200 OK"
    assert_ok grep -qxF 'dst_device_written_bytes_total{device="dev"} 4194304' "$T/page"
    assert_ok grep -qxF 'dst_node_links_live{node="alpha"} 4' "$T/page"
    assert_ok grep -qxF 'dst_node_state{node="beta",state="live"} 1' "$T/page"
    assert_ok grep -qxF 'dst_failed_passes_total 0' "$T/page"
    counted=$(dst-nlpoke get node=alpha | jq .latency.write.count)
    ((counted > 0)) || fail "the kernel has counted no write"
    assert_ok grep -qxF "dst_node_latency_seconds_count{node=\"alpha\",op=\"write\"} $counted" "$T/page"
    kill_node beta
    wait_until 20 "the loss in the metrics" scraped 'dst_node_state{node="beta",state="lost"} 1'
    wait_until 20 "the daemon's word of it" scraped 'dst_wanting_nodes 1'
}

# passes_because CAUSE: how many the daemon made for it.
passes_because() { scrape && awk -v name="dst_passes_by_cause_total{cause=\"$1\"}" '$1 == name { print $2 }' "$T/page"; }
passed_because() { [[ $(passes_because "$1") -gt $2 ]]; }

plain_is_back() { [[ $(dmsetup table plain) == "0 8192 zero"* && $(dmsetup info -c --noheadings -o suspended plain) == Active ]]; }

# Somebody removes a device of the topology by hand, one without nodes, so that no event of a node tells of it. It is back
# because device-mapper does: the daemon says so before it takes the steps. The regular look is ten seconds away.
test_device_removed_by_hand() {
    local regular before
    start_two_nodes
    echo '  plain: {table: ["0 8192 zero"]}' >>"$T/t.yaml"
    export DSTD_METRICS=127.0.0.1:9150
    start_daemon
    assert_ok udevadm settle --timeout=30
    regular=$(passes_because time)
    wait_until 30 "a regular look" passed_because time "$regular"
    before=$(wc -l <"$T/dstd.log")
    assert_ok dmsetup remove --retry plain
    wait_until 60 "its table" plain_is_back
    assert_match "$(tail -n "+$((before + 1))" "$T/dstd.log" | grep -m 1 "steps to take")" \
        "looked because device-mapper told of a change" "why it was made again"
    # its own steps were told of, too, and led to no more
    regular=$(passes_because time)
    wait_until 30 "a regular look" passed_because time "$regular"
    assert_ok plain_is_back
    assert_eq "$(tail -n "+$((before + 1))" "$T/dstd.log" | grep -c "steps to take")" 1 "passes with steps"
    assert_ok is_live alpha 4
    same_as_images
}

# doctor finds nothing bad where all is right, and names a dead node and a suspended device.
test_doctor() {
    start_two_nodes
    start_daemon
    run dstd doctor "$T/t.yaml"
    assert_eq "$RC" 0 "its status ($OUT)"
    assert_not_contains "$OUT" "BAD"
    assert_contains "$OUT" "ok    the module dm-dst is loaded"
    assert_contains "$OUT" "ok    udev runs and has the rule of dm-dst"
    assert_contains "$OUT" "1 devices of dstd's and 2 nodes, all as they should be"
    assert_match "$OUT" "dstd run. is there \($DAEMON\), its memory is locked"
    assert_match "$OUT" "node alpha answers in [0-9.]+ ms: 8MiB, a stock server"
    kill $DAEMON
    wait $DAEMON || true
    kill_node beta
    wait_until 10 "the node's loss" node_says beta .state lost
    assert_ok dmsetup suspend --noflush dev
    run dstd doctor "$T/t.yaml"
    assert_eq "$RC" 1 "its status ($OUT)"
    assert_contains "$OUT" "BAD   device dev is suspended"
    assert_contains "$OUT" "BAD   node beta has no link"
    assert_contains "$OUT" "BAD   node beta can't be used"
    assert_contains "$OUT" "note  no \`dstd run\` is there"
    # udev may wait for the dead node with its scan
    assert_ok dmsetup resume --noudevsync dev
    assert_ok dstd fail-pending beta
}

status_tells_loss() { [[ $(dstd status --json | jq -r '.nodes[] | select(.name == "beta") | .state') == lost ]]; }
