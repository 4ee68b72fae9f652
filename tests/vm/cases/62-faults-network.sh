#!/usr/bin/env bash
# The fault matrix, network: black holes, one way too; delay, reorder, duplicates, loss; flapping; all at once. Four
# nodes with four links each under the daemon, each in a network namespace behind a veth pair; dst-checker and fio on
# them all the while (faults.sh).

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

# Every packet of a node is swallowed, for less than the time-outs: nothing is lost but time.
# @timeout 600
# @only faults
test_short_black_hole() {
    start "${MIXED[@]}"
    hurt 2 cut_for 2
    hurt 2 hole_for 2 in
    hurt 2 hole_for 2 out
    assert_not_contains "$(klog)" " lost: " "links"
    stop_load
}

# The same for longer: links are lost, new ones come when the network is back; the servers find the old ones dead or not.
# @timeout 1800
# @only faults
test_long_black_hole() {
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 4 cut_until_lost
    assert_contains "$(klog)" "no answer in time"
    stop_load
}

# Only what clients say is swallowed, or only what servers say: then they get requests whose answers nobody hears.
# @timeout 1800
# @only faults
test_one_way_black_hole() {
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    hurt 2 hole_until_lost in
    hurt 4 hole_until_lost out
    stop_load
}

# All nodes in a black hole at once; and the hole opens for moments only, too short for all to come back.
# @timeout 1200
# @only faults
test_all_in_a_black_hole() {
    local node i
    OPTIONS="timeout: 2s"
    start "${MIXED[@]}"
    for i in 1 2 3; do
        for node in "${NODES[@]}"; do cut_node "$node"; done
        for node in "${NODES[@]}"; do wait_until $PATIENCE "the loss of $node" state_is "$node" lost; done
        for node in "${NODES[@]}"; do heal_node "$node"; done
        for node in "${NODES[@]}"; do cut_for 1 "$node"; done
        recover
        TRIES=$((TRIES + 1))
    done
    stop_load
}

# Delay with jitter, reordering, duplicates, loss, all together: both ways, on all nodes, while so much has to get
# through; connections are reset in it.
# @timeout 1800
# @only faults
test_bad_network() {
    local words
    start "${MIXED[@]}"
    for words in "delay 20ms 15ms" "delay 10ms reorder 30% 50%" "duplicate 20%" "loss 3%" \
        "delay 5ms 5ms loss 1% duplicate 5% reorder 10%"; do
        bad_network "$words"
        goes_on 100000
        hurt 1 reset_one
        hurt 1 reset_by_server
        good_network
        recover
    done
    stop_load
}

# One link after the other is cut, a hundred times, without a pause; then the node's cable comes and goes.
# @timeout 1800
# @only faults
test_flapping() {
    local i
    start "${MIXED[@]}"
    for ((i = 0; i < 100; i++)); do reset_one "${NODES[i % 4]}"; done
    recover
    for ((i = 0; i < 100; i++)); do flap "${NODES[i % 4]}"; done
    recover
    TRIES=200
    stop_load
}
# The address of the next hop is forgotten with the carrier, so that packets wait for it, too.
flap() {
    in_node "$1" ip link set eth0 down
    in_node "$1" ip link set eth0 up
}
