#!/usr/bin/env bash
# Four nodes with four links each, kept by a daemon, and traffic on them that proves what it reads, while a test hurts
# them. Owns servers of each kind, the daemon, the load and its figures, and the ways to hurt a node. Sourced by the
# cases of faults (62, 63). A node counts as healthy again when its status says so, never after a time.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/devices.sh"
# shellcheck source=tests/vm/proxy.sh
source "$(dirname "${BASH_SOURCE[0]}")/proxy.sh"

NODES=(alpha beta gamma delta)
# Of each node in sectors: what dst-checker has, and what fio has behind it.
LOW=6144
HIGH=2048
DISK_PORT=10811
# How long a node may take to be lost or healthy again. A link with a FLUSH has ten times the time-out; when it is lost
# the FLUSH goes to the next, for one time-out each, if nothing was heard of the node meanwhile.
PATIENCE=240
declare -A KIND
TRIES=0

# --- nodes

# start_server NODE: of its kind, on its image, where it was before.
start_server() { start_on "$(node_image "$1")" "$1"; }

# start_on IMAGE NODE: the same on another image; with READ_ONLY set it takes no writes.
start_on() {
    local image=$1 name=$2
    case ${KIND[$name]} in
    export) start_export "$name" ${READ_ONLY:+--read-only} "$name=$image" ;;
    qemu) start_qemu_nbd "$name" --shared=64 ${READ_ONLY:+--read-only} --format=raw "$image" ;;
    nbd-server) start_nbd_server "$name" "exportname = $image" ${READ_ONLY:+"readonly = true"} ;;
    nbdkit) start_lasting_nbdkit "$name" ${READ_ONLY:+--readonly} file "$image" ;;
    slow-qemu) start_qemu_nbd "$name" --shared=64 --format=raw "$(start_disk "$name" "$image")" ;;
    slow-nbdkit) start_lasting_nbdkit "$name" nbd "$(start_disk "$name" "$image")" shared=true ;;
    esac
    [[ -z ${PROXIED:-} ]] || aim_at_proxy "$name"
}

# 1.32 now and then dies of an assertion when a client goes: one more fault.
start_lasting_nbdkit() {
    make_node_net "$1"
    # shellcheck disable=SC2016 # the inner shell expands it
    launch "$1" "" bash -c 'while :; do nbdkit --foreground --port "$@"; done' nbdkit "$NODE_PORT" "${@:2}"
}

# start_disk NODE IMAGE: another server behind dst-proxy, in the same place; its orders hold up the node's storage. Prints
# its address.
start_disk() {
    local name=$1 image=$2
    make_node_net "$name"
    beside "$name" ".*listening on" dstd export --listen "127.0.0.1:$DISK_PORT" "disk=$image"
    start_proxy "$name" "$DISK_PORT"
    echo "nbd://127.0.0.1:$PROXY_PORT/disk"
}

# What a stock server can't tell has to be waited for.
node_options() {
    case ${KIND[$1]} in
    export) echo "links: 4, quiesce: never, ${OPTIONS:-timeout: 30s}" ;;
    *) echo "links: 4, quiesce: ${QUIESCE:-3s}, ${OPTIONS:-timeout: 30s}" ;;
    esac
}

# start_nodes KIND...: of export, qemu, nbd-server, nbdkit; one for each node, or one for all.
start_nodes() {
    local i node
    for i in 0 1 2 3; do
        node=${NODES[i]}
        KIND[$node]=${!#}
        (($# < 4)) || KIND[$node]=${*:i+1:1}
        make_image "$node" $(((LOW + HIGH) * 512)) >/dev/null
        start_server "$node"
    done
}

# start_proxies: between all nodes that run and their clients.
start_proxies() {
    local node
    PROXIED=1
    for node in "${NODES[@]}"; do
        start_proxy "$node"
        aim_at_proxy "$node"
    done
}
aim_at_proxy() { sed -i "s/:$NODE_PORT/:$PROXY_PORT/" "$(node_dir "$1")/uri"; }

# --- the daemon

# start_daemon: on a device of the lower and then the upper parts of all nodes.
start_daemon() {
    trap show_all EXIT
    defer "pkill -KILL -x dst-checker; pkill -KILL -x fio; pkill -KILL -x dstd; give_up ${NODES[*]}; dmsetup remove --retry dev"
    write_topology
    : >"$T/dstd.log"
    run_daemon
    wait_until 60 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    # a node that is slow to answer holds up no daemon
    wait_until $PATIENCE "all links" healthy
    assert_ok udevadm settle --timeout=30
}

write_topology() {
    local node
    topology
    for node in "${NODES[@]}"; do node "$node" "" "$(node_options "$node")"; done
    device dev
    for node in "${NODES[@]}"; do extent "$node" 0 $LOW; done
    for node in "${NODES[@]}"; do extent "$node" $LOW $HIGH; done
}

# Sets DAEMON.
run_daemon() {
    dstd run "$T/t.yaml" >>"$T/dstd.log" 2>&1 9>&- &
    # shellcheck disable=SC2034 # for the cases
    DAEMON=$!
}

# For the log of a test that failed: what was the matter when it did.
show_all() {
    [[ -s $STATE/why ]] || return 0
    set +e
    echo "--- when it failed"
    timeout 20 dstd status
    timeout 10 dmsetup status --noflush
    cat "$T/report" "$T/checker" "$T/passes"
    tail -n 5 "$T"/*.dst-proxy
    echo "--- the daemon's log (its end)"
    tail -n 60 "$T/dstd.log"
}

# --- the load

# Under TCG the load would leave nothing for those who hurt and look.
fio() { nice -n 15 "$(type -P fio)" "$@"; }

# start_load: dst-checker on the lower parts, fio on the upper ones; returns when both are under way.
start_load() {
    start_verify "$(direct_job "$((4 * HIGH * 512))")
offset=$((4 * LOW * 512))
iodepth=4"
    nice -n 15 dst-checker --device /dev/mapper/dev --within $((4 * LOW)) --hot 512 --regions 4 --threads 8 \
        --stop-file "$T/stop" >"$T/report" 2>"$T/checker" &
    CHECKER=$!
    wait_until 90 "the checker to be running" grep -q running "$T/checker"
    load_goes_on
    goes_on 20000
}

load_goes_on() {
    verify_goes_on
    kill -0 "$CHECKER" 2>/dev/null || fail "the checker: $(cat "$T/report" "$T/checker")"
}

# goes_on BYTES: from now on, every node answers so much, on links of now or later.
goes_on() {
    dst-nlpoke dump | jq -s 'map({key: .name, value: (.links | map({key: "\(.slot) \(.generation)", value: .received}) |
        from_entries)}) | from_entries' >"$T/received"
    wait_until $PATIENCE "traffic on all nodes" grown "$1"
}
grown() {
    dst-nlpoke dump | jq -es --slurpfile before "$T/received" --argjson least "$1" 'all(.[]; .name as $name |
        ([.links[] | .received - ($before[0][$name]["\(.slot) \(.generation)"] // 0)] | add) >= $least)'
}

# healthy [NODE]: all links live, nothing ambiguous and nothing barred; of all nodes, or of one.
healthy() {
    dmsetup status --noflush dev | awk -v only="${1:-}" '
        { for (i = 6; i < NF; i += $5)
            if (only == "" || only == $i) {
                seen++
                if ($(i + 1) != "live" || $(i + 2) != "4/4" || $(i + 5) != 0 || $(i + 12) != 0) bad = 1
            } }
        END { exit bad || !seen }'
}
recover() {
    wait_until $PATIENCE "all nodes to be healthy again" healthy
    goes_on 20000
    load_goes_on
}

# hurt TIMES COMMAND...: with a node's name behind it, one node after the other; each time all is healthy again after it.
# ROUNDS: so much more of it.
hurt() {
    local times=$(($1 * ${ROUNDS:-1})) i
    shift
    for ((i = 0; i < times; i++)); do
        "$@" "${NODES[TRIES % 4]}"
        recover
        TRIES=$((TRIES + 1))
    done
}

# stop_load: both end, and nothing of theirs may have failed (udev's read-ahead may); the images hold what the device reads. Says what there was.
stop_load() {
    touch "$T/stop"
    wait "$CHECKER" || fail "the checker: $(cat "$T/report" "$T/checker")"
    stop_verify
    wait_until $PATIENCE "all nodes to be healthy" healthy
    assert_eq "$(jq -r '"\(.ok) \(.failed)"' "$T/report")" "true 0" "the checker's verdict and failed operations"
    mapfile -t with < <(images "${NODES[@]}")
    assert_images_match "${with[@]}"
    figure
}

figure() {
    local fio
    fio=$(grep -c pass "$T/passes")
    echo "figure: $TRIES tries, $(jq -r '"\(.ops) operations, \(.bytes_verified) bytes verified, longest stall \(.longest_stall_ms) ms, seed \(.seed)"' "$T/report"); fio: $fio passes, $((fio * 2 * 4 * HIGH * 512)) bytes verified"
}

# --- all of it

# shellcheck disable=SC2034 # for the cases
MIXED=(export qemu nbd-server nbdkit)

# start KIND...: nodes, daemon, load.
start() {
    start_nodes "$@"
    start_daemon
    start_load
}
# The same with dst-proxy before each node.
start_behind_proxies() {
    start_nodes "$@"
    start_proxies
    start_daemon
    start_load
}

# --- ways to hurt a node

kill_and_restart() {
    kill_node "$1"
    start_server "$1"
}

# stop_for SECONDS NODE: its server, which finds everything as it was.
stop_for() {
    pause_node "$2"
    sleep "$1"
    resume_node "$2"
}
stop_until_lost() {
    pause_node "$1"
    wait_until $PATIENCE "the loss of $1" state_is "$1" lost
    resume_node "$1"
}

reset_by_server() { in_node "$1" ss -K state established >/dev/null; }
reset_by_client() { ss -K dst "$(node_addr "$1")" >/dev/null; }
# One of the node's links, by chance.
reset_one() {
    local port
    port=$(ss -Htn state established "dst $(node_addr "$1")" | shuf -n 1 | awk '{ sub(/.*:/, "", $3); print $3 }')
    [[ -z $port ]] || ss -K dst "$(node_addr "$1")" sport = ":$port" >/dev/null
}

# hold_only_a_write NODE: one of dst-checker's, which the server gets only when it is released. Sets RULE and GENERATION
# (the newest link's before that). hold_a_write NODE: its link is cut, too.
hold_only_a_write() {
    local node=$1
    shift
    GENERATION=$(generation "$node")
    RULE=$(order "$node" arm request write at 0 $((LOW * 512 - 1)) nth $((RANDOM % 8 + 1)) "do" hold "$@")
    order "$node" wait "$RULE" fired 60
}
hold_a_write() { hold_only_a_write "$1" and rst client; }
# let_go NODE RULE: the write that is held back goes to the server and is answered there. False: it can't, as the link had
# ended in the middle of another message, or the server has cut it.
let_go() {
    dst-proxy ctl "$T/$1.ctl" release "$2" || return 1
    order "$1" wait "$2" answered 60
}
generation() { dst-nlpoke get "node=$1" | jq .generation; }
has_newer_link() { (($(generation "$1") > GENERATION)); }

# cut_at RULE NODE: arms the proxy; returns when it has fired.
cut_at() {
    local rule
    # shellcheck disable=SC2086 # RULE is words
    rule=$(order "$2" arm $1)
    order "$2" wait "$rule" fired 60
}

# hole in|out NODE: only that way the network swallows the node's packets.
hole() { in_node "$2" nft "table inet cut { chain c { type filter hook ${1}put priority 0; policy drop; }; }"; }
hole_for() {
    hole "$2" "$3"
    sleep "$1"
    heal_node "$3"
}
hole_until_lost() {
    hole "$1" "$2"
    wait_until $PATIENCE "the loss of $2" state_is "$2" lost
    heal_node "$2"
}
cut_for() {
    cut_node "$2"
    sleep "$1"
    heal_node "$2"
}
cut_until_lost() {
    cut_node "$1"
    wait_until $PATIENCE "the loss of $1" state_is "$1" lost
    heal_node "$1"
}

veth_of() { echo "vh$(<"$(node_dir "$1")/number")"; }
# bad_network "NETEM WORDS": on all nodes, both ways, until good_network.
bad_network() {
    local node
    for node in "${NODES[@]}"; do
        # shellcheck disable=SC2086 # words
        assert_ok tc qdisc replace dev "$(veth_of "$node")" root netem $1
        # shellcheck disable=SC2086
        assert_ok in_node "$node" tc qdisc replace dev eth0 root netem $1
    done
}
good_network() {
    local node
    for node in "${NODES[@]}"; do
        assert_ok tc qdisc del dev "$(veth_of "$node")" root
        assert_ok in_node "$node" tc qdisc del dev eth0 root
    done
}
