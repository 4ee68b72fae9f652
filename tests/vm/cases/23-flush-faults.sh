#!/usr/bin/env bash
# FLUSH joined, skipped and failed, in each way there is: read in the log of a server whose FLUSHes end when and how the
# test says. One node, spoken to directly (dst-nlpoke), no daemon.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/wire.sh
source "$(dirname "${BASH_SOURCE[0]}")/../wire.sh"

FULL=365 # HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN
NO_FUA=357
NO_FLUSH=353

# make_node [FLAGS]: 4 MiB, devices one and two on its halves, one link. The node's Nth FLUSH (from 0) makes $T/fN and
# ends when $T/fN/go is there (or $T/free), with EIO if $T/fN/fail is.
make_node() {
    defer "give_up alpha; dmsetup remove --retry one; dmsetup remove --retry two"
    FLAGS=${1:-$FULL} GENERATION=0
    make_image alpha 4M >/dev/null
    start_server
    assert_ok dmsetup create one --table "0 4096 dst 1 alpha 0 4096"
    assert_ok dmsetup create two --table "0 4096 dst 1 alpha 4096 4096"
    link
    assert_ok udevadm settle --timeout=30
    assert_wire alpha "" "a new device"
}

start_server() {
    rm -rf "$T"/f[0-9]*
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit alpha --filter=log eval "logfile=$T/alpha.log" get_size='echo 4194304' thread_model='echo parallel' \
        can_fua='echo native' \
        pread="dd if=$T/alpha.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="dd of=$T/alpha.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none" \
        flush="n=0; until mkdir $T/f\$n 2>/dev/null; do n=\$((n + 1)); done; until [ -e $T/f\$n/go ] || [ -e $T/free ]; do sleep 0.1; done; [ ! -e $T/f\$n/fail ] || { echo EIO full >&2; exit 1; }"
    : >"$T/alpha.seen"
}

# link: a new one, in place of the one that was lost.
link() {
    GENERATION=$((GENERATION + 1))
    assert_ok dst-nlpoke links node=alpha size=4194304 "flags=$FLAGS" min=1 pref=4096 max=33554432 zero=0 wanted=1 \
        "link=0:$GENERATION:nbd@$(node_uri alpha)"
}
drop_link() { assert_ok dst-nlpoke drop node=alpha force; }

# put DEVICE BLOCK [DD_FLAG]: 4 KiB, acknowledged.
put() {
    timeout 100 dd if=/dev/urandom of="/dev/mapper/$1" bs=4k seek="$2" count=1 oflag="direct${3:+,$3}" \
        conv=notrunc,nocreat status=none 9>&-
}
# sent N: the server has the Nth FLUSH. ends N [fail]: it answers it.
sent() { wait_until 30 "FLUSH number $1 at the server" test -d "$T/f$1"; }
ends() {
    [[ -z ${2:-} ]] || touch "$T/f$1/fail"
    touch "$T/f$1/go"
}
# begin_sync DEVICE: in the background, and it waits in the kernel; its process is SYNC.
begin_sync() {
    sync "/dev/mapper/$1" 2>"$T/sync.$1" 9>&- &
    SYNC=$!
    wait_until 30 "the fsync of $1 to wait" waits $SYNC
}
waits() { [[ $(sed 's/.*) //' "/proc/$1/stat") == D* ]]; }
good() { wait "$1" || fail "$2 failed"; }
bad() { if wait "$1"; then fail "$2 succeeded"; fi; }
unflushed() { dst-nlpoke get node=alpha | jq -r .writes; }

W="Write 0x0+0x1000 fua=0"

# An fsync joins the FLUSH that is under way if that was sent after its writes; else it has one of its own, which those that
# come meanwhile share; and where all is covered there is none.
test_joined_and_skipped() {
    local first joined late later
    make_node
    assert_ok put one 0
    begin_sync one
    first=$SYNC
    sent 0
    begin_sync two
    joined=$SYNC
    assert_ok put two 0
    begin_sync two
    late=$SYNC
    begin_sync one
    later=$SYNC
    ends 0
    good "$first" "the fsync that sent the FLUSH"
    good "$joined" "the fsync that joined it"
    sent 1
    assert_ok waits "$late"
    assert_wire alpha "$W; Flush; Write 0x200000+0x1000 fua=0; Flush" "two fsyncs before a write, and two after"
    ends 1
    good "$late" "the fsync after the write"
    good "$later" "the one beside it"
    assert_eq "$(unflushed)" 0 "unflushed writes"
    assert_ok sync /dev/mapper/one
    assert_ok sync /dev/mapper/two
    assert_wire alpha "" "fsyncs of what is durable"
}

# Who had joined a FLUSH that fails isn't told that all is well without another one; the node stays dirty until one succeeds.
# @only faults
test_failed_flush_leaves_all_dirty() {
    local first joined
    make_node
    assert_ok put one 0
    begin_sync one
    first=$SYNC
    sent 0
    begin_sync two
    joined=$SYNC
    ends 0 fail
    bad "$first" "the fsync whose FLUSH failed"
    assert_contains "$(cat "$T/sync.one")" "Input/output error"
    sent 1
    ends 1 fail
    bad "$joined" "the other fsync"
    assert_eq "$(unflushed)" 1 "unflushed writes"
    begin_sync two
    sent 2
    ends 2
    good "$SYNC" "the fsync whose FLUSH succeeded"
    assert_eq "$(unflushed)" 0 "unflushed writes"
    assert_wire alpha "$W; Flush; Flush; Flush" "three FLUSHes"
    assert_ok sync /dev/mapper/one
    assert_wire alpha "" "an fsync of what is durable by the other's FLUSH"
}

# A FLUSH whose link is lost is asked again on the next one, and only its answer counts.
# @only faults
test_flush_whose_link_is_lost() {
    make_node
    assert_ok put one 0
    begin_sync one
    sent 0
    drop_link
    ends 0
    assert_ok waits "$SYNC"
    link
    sent 1
    assert_ok waits "$SYNC"
    ends 1
    good "$SYNC" "the fsync whose FLUSH was asked twice"
    assert_wire alpha "$W; Flush; Flush" "a FLUSH whose link was lost"
}

# A node that is down and dirty: an fsync is what the policy says, each time; one of a clean node is no matter of its links.
# Back again, it is still dirty.
test_down_and_dirty() {
    local turn
    make_node
    assert_ok dst-nlpoke set node=alpha policy=2
    assert_ok put one 0
    kill_node alpha
    wait_until 20 "the policy's end" node_says alpha .state failed
    for turn in first second third; do
        for dev in one two; do
            run sync "/dev/mapper/$dev"
            assert_contains "$OUT" "Link has been severed" "the $turn fsync of $dev"
        done
    done
    assert_ok dst-nlpoke set node=alpha policy=1 policy_ms=1000
    wait_until 20 "the policy's end" node_says alpha .state failed
    assert_fails "Link has been severed" sync /dev/mapper/one
    assert_ok dst-nlpoke set node=alpha policy=0
    begin_sync one
    start_server
    : >"$T/alpha.log"
    link
    sent 0
    ends 0
    good "$SYNC" "the fsync that waited for the node"
    assert_eq "$(unflushed)" 0 "unflushed writes"
    assert_wire alpha Flush "a node that came back dirty"
    kill_node alpha
    wait_until 20 "the loss" node_says alpha .state lost
    assert_ok timeout 20 sync /dev/mapper/one
    assert_ok timeout 20 sync /dev/mapper/two
}

# fail-pending ends an fsync whose FLUSH is under way; what it was about stays to be flushed.
# @only faults
test_fail_pending_of_a_flush() {
    make_node
    assert_ok put one 0
    begin_sync one
    sent 0
    assert_ok dst-nlpoke fail node=alpha
    bad "$SYNC" "the fsync under fail-pending"
    ends 0
    wait_until 20 "the links to be as they will" settled
    node_says alpha .live 1 || link
    assert_eq "$(unflushed)" 1 "unflushed writes"
    begin_sync one
    sent 1
    ends 1
    good "$SYNC" "the fsync after it"
    assert_eq "$(unflushed)" 0 "unflushed writes"
}
settled() { node_says alpha .in_flight 0; }

# FUA on a server without it: a write, then a FLUSH; where the link is lost between the two, both again. The FLUSH that
# the link had may be asked for again beside the write, but it doesn't count: it may be before it.
test_fua_whose_link_is_lost() {
    local writer again
    make_node $NO_FUA
    put one 0 dsync &
    writer=$!
    sent 0
    assert_wire alpha "$W; Flush" "FUA on a server without it"
    drop_link
    ends 0
    link
    touch "$T/free"
    good "$writer" "the write with FUA"
    again=$(wire alpha)
    [[ $again == *"$W"*Flush ]] || fail "after the loss the server was asked only: $again"
    assert_eq "$(unflushed)" 0 "unflushed writes"
}

# The FLUSH of a FUA write fails: so does the write.
# @only faults
test_fua_whose_flush_fails() {
    make_node $NO_FUA
    put one 0 dsync 2>"$T/said" &
    sent 0
    ends 0 fail
    bad $! "the write with FUA"
    assert_contains "$(cat "$T/said")" "Input/output error"
}

# A server without FLUSH is write-through: nothing is asked of it, for fsync or FUA, and the status says so.
# @only faults
test_server_without_flush() {
    make_node $NO_FLUSH
    assert_eq "$(node_field alpha 10 one)" write_through "cache"
    assert_ok put one 0
    assert_ok put one 0 dsync
    assert_ok sync /dev/mapper/one
    assert_wire alpha "$W; $W" "a write, one with FUA, and an fsync"
    assert_eq "$(unflushed)" 0 "unflushed writes"
    # and a loss with such a server loses nothing, also where its restarts aren't trusted
    assert_ok dst-nlpoke set node=alpha unknown_restart=1
    drop_link
    link
    assert_ok sync /dev/mapper/one
}

# Restarts of servers that can't say who they are: with eio a loss with unflushed writes fails one fsync of each device,
# with trust none, and without unflushed writes none.
# @only faults
test_unknown_restart() {
    local dev
    make_node
    touch "$T/free"
    assert_ok put one 0
    drop_link
    link
    assert_ok sync /dev/mapper/one
    assert_ok sync /dev/mapper/two
    assert_ok dst-nlpoke set node=alpha unknown_restart=1
    assert_ok put one 0
    drop_link
    link
    for dev in one two; do assert_fails "Input/output error" sync "/dev/mapper/$dev"; done
    for dev in one two; do assert_ok sync "/dev/mapper/$dev"; done
    drop_link
    link
    for dev in one two; do assert_ok sync "/dev/mapper/$dev"; done
    assert_contains "$(klog)" "1 acknowledged writes are lost"
}
