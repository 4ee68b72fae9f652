#!/usr/bin/env bash
# The fault matrix, servers and connections: killed, stopped, replaced, slow; cut at each byte. Four nodes with four links
# each under the daemon, dst-checker and fio on them all the while (faults.sh). Each test hurts nodes in one way until all
# have had it, waits until the status says that all is well, and proves at the end that nothing was lost, stale or
# stuck. Nodes are `dstd export` (quiesce never: only its own word fences) and stock servers.

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

# Servers die under I/O and come back, one after the other: ours, and stock ones.
# @timeout 600
# @only faults
test_server_killed() {
    start "${MIXED[@]}"
    hurt 4 kill_and_restart
    stop_load
}

# The same more often, and with a server that stays away until the loss is seen.
# @timeout 1800
# @only faults
test_server_killed_often() {
    start export
    hurt 4 kill_and_restart
    hurt 4 kill_and_stay_away
    stop_load
}
kill_and_stay_away() {
    kill_node "$1"
    wait_until $PATIENCE "the loss of $1" state_is "$1" lost
    start_server "$1"
}

# A server stands still for less than the time-out (nothing is lost), and for more (all links are), and goes on.
# @timeout 1200
# @only faults
test_server_stopped() {
    start export
    hurt 2 stop_for 2
    assert_not_contains "$(klog)" "no answer in time" "stops that are short"
    OPTIONS="timeout: 2s"
    change_options
    hurt 4 stop_until_lost
    stop_load
}
# The topology with other OPTIONS, which the daemon reads.
change_options() {
    write_topology
    kill -HUP "$DAEMON"
    wait_until 30 "the options in force" options_in_force
}
options_in_force() { [[ $(dst-nlpoke dump | jq -s 'map(.timeout_ms) | unique == [2000]') == true ]]; }

# The same with stock servers, which can't fence: the stop is part of no quiesce, as a stopped server answers nothing.
# @timeout 1200
# @only faults
test_stock_server_stopped() {
    OPTIONS="timeout: 2s"
    start qemu nbd-server nbdkit qemu
    hurt 2 stop_for 1
    hurt 4 stop_until_lost
    stop_load
}

# Connections are reset by the server's side, by the client's side, one or all of a node.
# @timeout 600
# @only faults
test_reset() {
    start "${MIXED[@]}"
    hurt 1 reset_one
    hurt 4 reset_by_server
    hurt 3 reset_by_client
    stop_load
}

# A reset in the middle of a header and of a payload, of requests and of replies, heard by both sides, by the client
# only, and by the server only.
# @timeout 900
# @only faults
test_reset_mid_message() {
    # a side that hears nothing of a cut waits for it
    OPTIONS="timeout: 2s"
    start_behind_proxies export
    cut_everywhere "rst" "rst client" "rst server"
    stop_load
}

# The same, and each end of a connection that isn't a reset, with stock servers.
# @timeout 1800
# @only faults
test_cut_mid_message() {
    OPTIONS="timeout: 2s"
    start_behind_proxies "${MIXED[@]}"
    cut_everywhere "rst" "fin" "half" "fin client"
    stop_load
}

# cut_everywhere ACTION...: each at each place.
cut_everywhere() {
    local action place
    for action; do
        for place in "request write when header 9" "request write when payload 77" \
            "reply read when header 5" "reply read when payload 77"; do
            # not always the first after a heal: by then others are under way
            hurt 1 cut_at "${place/ when/ nth $((RANDOM % 8 + 1)) when} do $action"
        done
    done
}

# One of four links is cut while a write is held back before the server, which gets what is left of it when newer
# writes may have come. Our server's word fences it, at once.
# @timeout 900
# @only faults
test_stalled_write() {
    start_behind_proxies export
    hurt 4 stall_a_write
    assert_contains "$(klog)" "fenced by its server"
    assert_not_contains "$(klog)" "quiesce is over"
    stop_load
}
# stall_a_write NODE: of one link, which is cut; it goes on when the node has a new link.
stall_a_write() {
    hold_a_write "$1"
    wait_until $PATIENCE "a new link" has_newer_link "$1"
    # most times the server has cut that link for its fence
    dst-proxy ctl "$T/$1.ctl" release "$RULE" || true
}

# The same with stock servers and no quiesce: the newer write is seen to wait until the operator says that the old one
# has gone.
# @timeout 1200
# @only faults
test_stalled_write_waits_for_the_operator() {
    QUIESCE=never
    start_behind_proxies qemu nbd-server nbdkit qemu
    LATE=0
    hurt 4 stall_until_the_operator_says
    ((LATE > 0)) || fail "no old write has come late"
    echo "figure: $LATE old writes came late"
    stop_load
}
stall_until_the_operator_says() {
    hold_a_write "$1"
    hold_until_barred "$1"
    if let_go "$1" "$RULE"; then LATE=$((LATE + 1)); fi
    assert_ok dstd fence "$1" --yes
}
# hold_until_barred NODE: until a newer write waits, and then for as long as a default quiesce takes.
hold_until_barred() {
    wait_until $PATIENCE "a newer write at the guard" barred "$1"
    stays_barred 12 "$1"
}
barred() { (($(node_field "$1" 13) > 0)); }
stays_barred() {
    local end=$((SECONDS + $1))
    while ((SECONDS < end)); do
        barred "$2" || fail "$2 is fenced without the operator"
        sleep 1
    done
}

# The same, but the operator says so before it is true: the checker sees what that does.
# @timeout 600
# @only faults
test_checker_sees_an_operator_who_is_wrong() {
    QUIESCE=never
    start_behind_proxies nbdkit
    until hold_a_write alpha && fence_too_early && let_go alpha "$RULE"; do load_goes_on; done
    # before anybody reads it, it can be written again
    if ! timeout 20 tail --pid="$CHECKER" -f /dev/null; then touch "$T/stop"; fi
    if wait "$CHECKER"; then fail "the checker has seen nothing: $(cat "$T/report")"; fi
    assert_match "$(jq -r .violation.what "$T/report")" "old value|take turns|lost"
    stop_verify
}
# Dozens of newer writes go to each sector before the old one comes.
fence_too_early() {
    wait_until $PATIENCE "a newer write at the guard" barred alpha
    assert_ok dstd fence alpha --yes
    written >"$T/written"
    wait_until $PATIENCE "many newer writes" written_above $(($(<"$T/written") + 1500000))
}
written() { dst-nlpoke get node=alpha | jq '[.links[].sent] | add'; }
written_above() { (($(written) > $1)); }

# A stock server with a worker that is stuck in its storage while all its others go on: qemu-nbd and nbdkit on a disk
# that is another server behind dst-proxy. Connections are reset under a write that is stuck for less than quiesce.
# @timeout 900
# @only faults
test_stuck_worker() {
    QUIESCE=15s
    start slow-qemu slow-nbdkit slow-qemu slow-nbdkit
    hurt 4 reset_under_a_stuck_write
    assert_contains "$(klog)" "quiesce is over"
    stop_load
}
reset_under_a_stuck_write() {
    hold_only_a_write "$1"
    # not the connection to its storage
    reset_by_client "$1"
    wait_until $PATIENCE "a new link" has_newer_link "$1"
    wait_until $PATIENCE "a newer write at the guard" barred "$1"
    assert_ok let_go "$1" "$RULE"
}

# The same for longer than any quiesce would be: the guard is seen to hold until the operator fences.
# @timeout 1200
# @only faults
test_stuck_worker_and_operator() {
    QUIESCE=never
    start slow-qemu slow-nbdkit slow-qemu slow-nbdkit
    hurt 4 reset_and_stay_stuck
    stop_load
}
reset_and_stay_stuck() {
    hold_only_a_write "$1"
    # not the connection to its storage
    reset_by_client "$1"
    hold_until_barred "$1"
    assert_ok let_go "$1" "$RULE"
    assert_ok dstd fence "$1" --yes
}

# All servers at once: killed, stopped until all is lost, reset.
# @timeout 900
# @only faults
test_all_at_once() {
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 2 all kill_node start_server
    hurt 2 all pause_node ask wait_for_loss resume_node
    hurt 2 all reset_by_server
    stop_load
}
# all COMMAND... NODE: each command of all nodes, one command after the other.
all() {
    local command node
    for command in "${@:1:$#-1}"; do
        for node in "${NODES[@]}"; do "$command" "$node"; done
    done
}
# A read of the node's first sectors, whenever it comes: all of the load may wait for the other nodes, and a link that owes no
# answer is not lost.
ask() {
    local i
    for i in "${!NODES[@]}"; do
        [[ ${NODES[i]} != "$1" ]] || dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 skip=$((i * LOW / 8)) iflag=direct status=none &
    done
}
wait_for_loss() { wait_until $PATIENCE "the loss of $1" state_is "$1" lost; }

# A server is replaced by one of another size, by one that can only be read, and ours by another export: the node is not
# live and the status says why, until the right one is back; the others' traffic goes on.
# @timeout 1200
# @only faults
test_replaced() {
    start "${MIXED[@]}"
    hurt 4 replace by_a_smaller_one
    hurt 4 replace by_a_read_only_one
    replace by_another_export alpha
    recover
    stop_load
}
# replace HOW NODE
replace() {
    kill_node "$2"
    "$1" "$2"
    others_go_on "$2"
    kill_node "$2"
    start_server "$2"
}
by_a_smaller_one() {
    truncate -s $((LOW * 512)) "$T/other.img"
    start_on "$T/other.img" "$1"
    # ours says by itself that it is another export
    if [[ ${KIND[$1]} == export ]]; then
        wait_until 60 "the refusal" refused_identity "$1"
    else
        wait_until 60 "the mismatch" mismatch "$1" "the_export_has_$((LOW * 512))_bytes"
    fi
}
by_a_read_only_one() {
    READ_ONLY=1 start_on "$(node_image "$1")" "$1"
    wait_until 60 "the mismatch" mismatch "$1" "read"
}
by_another_export() {
    truncate -s $(((LOW + HIGH) * 512)) "$T/other.img"
    start_on "$T/other.img" "$1"
    wait_until 60 "the refusal" refused_identity "$1"
}
mismatch() { [[ $(node_field "$1" 2) == mismatch && $(node_field "$1" 9) == *$2* ]]; }
refused_identity() {
    grep -q "dstd apply --same-data $1" "$T/dstd.log" && [[ $(node_field "$1" 3) == 0/* ]]
}
# The other nodes answer, this one doesn't.
others_go_on() {
    local before
    before=$(dst-nlpoke get "node=$1" | jq '.live')
    assert_eq "$before" 0 "links of $1"
    dst-nlpoke dump | jq -s "map(select(.name != \"$1\")) | map(.state) | unique | tostring" >"$T/states"
    assert_eq "$(<"$T/states")" '"[\"live\"]"' "states of the others"
}
