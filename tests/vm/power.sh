#!/usr/bin/env bash
# Nodes that can lose power: each is a "machine" with a disk of its own whose unflushed writes are lost with the power, and
# a boot id of its own. The disk is dm-log-writes (device srv-NAME), which keeps apart what a FLUSH or FUA made durable;
# to lose power is to bring the disk back to just that. Sourced by the cases of power loss, after lib.sh and
# devices.sh; knows nothing of what is written. cleanup.sh removes the srv- devices behind their servers.

export MIB=$((1024 * 1024))

# make_machine NAME BYTES [nbdkit]: a machine with an empty disk, on, and serving it as node NAME: by dstd export, or nbdkit.
make_machine() {
    need_module dm-log-writes
    make_node_net "$1"
    truncate -s "$2" "$T/$1.disk"
    echo "${3:-export}" >"$T/$1.server"
    power_on "$1"
}

power_on() {
    local name=$1 data log
    cp --sparse=always "$T/$name.disk" "$T/$name.durable"
    rm -f "$T/$name.log"
    truncate -s 8G "$T/$name.log"
    data=$(losetup --find --show "$T/$name.disk")
    log=$(losetup --find --show "$T/$name.log")
    echo "$data $log" >"$T/$name.loops"
    assert_ok dmsetup create "srv-$name" --table "0 $(blockdev --getsz "$data") log-writes $data $log"
    cat /proc/sys/kernel/random/uuid >"$T/$name.boot"
    start_machine_server "$name"
}

# Its server sees the machine's boot id, not the guest's. What is unmounted must be so there, too (slave).
start_machine_server() {
    local name=$1 server
    server=(nbdkit --foreground --port "$NODE_PORT" file "/dev/mapper/srv-$name")
    if [[ $(<"$T/$name.server") == export ]]; then
        server=(dstd export --listen "[::]:$NODE_PORT" "$name=/dev/mapper/srv-$name")
    fi
    # shellcheck disable=SC2016 # the inner shell expands it
    launch "$name" "$([[ ${server[0]} == nbdkit ]] || echo "$name")" unshare --mount --propagation slave \
        bash -c 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"' "$T/$name.boot" "${server[@]}"
}

# No thread of the server runs: nothing will be answered any more.
stands_still() { ! sed 's/.*) //' "/proc/$(node_pid "$1")"/task/*/stat | grep -qv '^[TtDXZ]'; }

# hold_machine NAME: its clients get no answer from here on; what it has answered, it has answered.
hold_machine() {
    pause_node "$1"
    wait_until 30 "all threads of $1's server to stand still" stands_still "$1"
}

# power_off NAME: what isn't durable at this moment is lost. Stood still first: what is durable a moment later must not
# have been answered either.
power_off() {
    local name=$1
    hold_machine "$name"
    assert_ok dmsetup message "srv-$name" 0 mark power-off
    kill_node "$name"
    assert_ok dmsetup remove --retry "srv-$name"
    xargs losetup --detach <"$T/$name.loops"
    assert_ok dst-log replay "$T/$name.log" "$T/$name.durable" --to-mark power-off
    mv "$T/$name.durable" "$T/$name.disk"
}

# ---- the client's side ----

# keep: dstd keeps $T/t.yaml. Sets DAEMON.
keep() {
    : >"$T/dstd.log"
    dstd run "$T/t.yaml" >>"$T/dstd.log" 2>&1 9>&- &
    export DAEMON=$!
    wait_until 60 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    assert_ok udevadm settle --timeout=60
}

is_live() { [[ $(dst-nlpoke get "node=$1" | jq -r .state) == live ]]; }
is_lost() { [[ $(dst-nlpoke get "node=$1" | jq -r .live) == 0 ]]; }

# outage NAME: the power fails and comes back, and the node is live again.
outage() {
    power_off "$1"
    wait_until 60 "the loss of $1" is_lost "$1"
    power_on "$1"
    wait_until 120 "$1 to come back" is_live "$1"
}

# unflushed NODE: acknowledged writes that no FLUSH has covered.
unflushed() { dst-nlpoke get "node=$1" | jq -r .writes; }

# held_while_dirty NODE: stops its machine, if some of what it has answered isn't durable; else lets it go on.
held_while_dirty() {
    hold_machine "$1"
    (($(unflushed "$1") > 0)) && return
    resume_node "$1"
    return 1
}

# losses: how often a node lost acknowledged writes since the test began.
losses() { klog | grep -c "acknowledged writes are lost" || true; }
