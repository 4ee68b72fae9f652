#!/usr/bin/env bash
# Lost links: what they carried goes on, old writes can't undo new ones, and nothing waits longer than it must. One
# node, spoken to directly (dst-nlpoke), no daemon; its server can be told to take its time for a write.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

NEVER=4294967295

# make_slow_node: 4 MiB, two links. While $T/slow exists a write sleeps 10 s before it is done, and $T/began tells.
make_slow_node() {
    defer "dstd fail-pending alpha; dmsetup remove --retry dev"
    make_image alpha 4M >/dev/null
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit alpha eval get_size='echo 4194304' thread_model='echo parallel' \
        pread="dd if=$T/alpha.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="if [ -e $T/slow ]; then touch $T/began; sleep 10; fi; dd of=$T/alpha.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none" \
        flush="true"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    set_links 1 2
    assert_ok udevadm settle --timeout=30
}

# set_links GENERATION GENERATION [WORD...]: fresh links in slots 0 and 1.
set_links() {
    local first=$1 second=$2
    shift 2
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=2 \
        "link=0:$first:nbd@$(node_uri alpha)" "link=1:$second:nbd@$(node_uri alpha)" "$@"
}

piece() { head -c 4096 /dev/zero | tr '\0' "$1" >"$T/$1"; }
# write_piece LETTER [BLOCK]
write_piece() {
    piece "$1"
    timeout 100 dd if="$T/$1" of=/dev/mapper/dev bs=4k seek="${2:-0}" oflag=direct conv=notrunc status=none
}
image_holds() { cmp -s -n 4096 "$T/$1" "$(node_image alpha)"; }
field_is() { [[ $(node_field alpha "$1") == "$2" ]]; }

# lose_slow_write: writes A slowly, and cuts its link when the server has it; A is then replayed, and done. Sets SLOT,
# GENERATION to the old link's.
lose_slow_write() {
    local writer
    : >"$T/slow"
    write_piece A &
    writer=$!
    wait_until 20 "the server to have the write" test -e "$T/began"
    rm "$T/slow"
    read -r SLOT GENERATION < <(dst-nlpoke get node=alpha | jq -r '.links[] | select(.in_flight == 1) | "\(.slot) \(.generation)"')
    assert_ok dst-nlpoke drop node=alpha force "link=$SLOT::"
    wait $writer || fail "the write whose link was cut failed"
    assert_ok image_holds A
    assert_ok field_is 6 1
}

# A write is replayed at once; a new one to its range waits for quiesce, others and reads don't; the old server's copy,
# which comes in between, undoes nothing.
# @timeout 240
test_guard_until_quiesce() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha quiesce=20000
    lose_slow_write
    write_piece B &
    wait_until 10 "the new write at the guard" field_is 13 1
    assert_ok write_piece C 16
    assert_ok dd if=/dev/mapper/dev of="$T/read" bs=4k count=1 iflag=direct status=none
    assert_ok cmp "$T/A" "$T/read"
    assert_ok field_is 13 1
    wait $! || fail "the write that waited failed"
    assert_ok image_holds B
    assert_ok field_is 6 0
    assert_contains "$(klog)" "quiesce is over"
}

# The same without a guard worth its name, to see that the test above can fail: the old copy comes last.
# @timeout 240
test_without_quiesce_the_old_write_wins() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    lose_slow_write
    assert_ok dst-nlpoke set node=alpha quiesce=0
    assert_ok write_piece B
    assert_ok image_holds B
    wait_until 20 "the old write" image_holds A
}

# FENCED lifts the guard of the link it names, and no other; FORCE lifts all.
# @timeout 240
test_fenced() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    lose_slow_write
    write_piece B &
    wait_until 10 "the new write at the guard" field_is 13 1
    run dst-nlpoke fenced node=alpha link=0:99:
    assert_contains "$OUT" "refused: ENOENT: the node never had this link"
    run dst-nlpoke fenced node=alpha
    assert_contains "$OUT" "refused: EINVAL: which old link?"
    assert_ok dst-nlpoke fenced node=alpha "link=$((1 - SLOT)):$((3 - GENERATION)):"
    assert_ok field_is 6 1
    # that one was live: a fence ends a link, and the node has none now
    set_links 3 4
    assert_ok kill -0 $!
    assert_ok dst-nlpoke fenced node=alpha "link=$SLOT:$GENERATION:"
    wait $! || fail "the write that waited failed"
    assert_ok field_is 6 0
    rm -f "$T/began"
    sleep 11
    lose_slow_write
    assert_ok dst-nlpoke fenced node=alpha force
    assert_ok field_is 6 0
}

# What is ambiguous outlives a failed write, and the table: a device made again waits, too.
# @timeout 240
test_guard_outlives_request_and_table() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    : >"$T/slow"
    write_piece A &
    wait_until 20 "the server to have the write" test -e "$T/began"
    assert_ok dst-nlpoke fail node=alpha
    if wait $!; then fail "fail-pending, and the write succeeded"; fi
    rm "$T/slow"
    wait_until 10 "the guard" field_is 6 1
    assert_ok dmsetup remove --retry dev
    assert_contains "$(klog)" "removed while 1 ranges are ambiguous"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    set_links 3 4
    assert_ok field_is 6 1
    write_piece B &
    wait_until 10 "the new write at the guard" field_is 13 1
    assert_ok dst-nlpoke fenced node=alpha force
    wait $! || fail "the write that waited failed"
}

# A noflush suspend ends although the server is stopped; what it had is pushed back and done after resume.
# @timeout 240
test_noflush_suspend_with_a_stopped_server() {
    local reader writer began
    make_slow_node
    assert_ok dst-nlpoke set node=alpha quiesce=1000
    pause_node alpha
    timeout 100 dd if=/dev/mapper/dev of="$T/read" bs=4k count=1 skip=8 iflag=direct status=none &
    reader=$!
    write_piece A &
    writer=$!
    wait_until 10 "both in flight" node_says alpha .in_flight 2
    began=$(date +%s%N)
    assert_ok timeout 30 dmsetup suspend --noflush dev
    echo "the suspend took $((($(date +%s%N) - began) / 1000000)) ms"
    assert_ok field_is 6 1
    assert_ok dmsetup resume dev
    resume_node alpha
    set_links 3 4
    wait $reader || fail "the read failed"
    wait $writer || fail "the write failed"
    assert_ok image_holds A
}

# Policies: error fails at once, queue_for after its time, and a change of mind brings the node back.
test_policies() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha policy=2
    kill_node alpha
    wait_until 10 "the policy's end" state_is alpha failed
    assert_fails "Input/output error" dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct
    assert_ok dst-nlpoke set node=alpha policy=1 policy_ms=3600000
    assert_ok state_is alpha lost
    timeout 100 dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct status=none &
    wait_until 10 "the read in the queue" field_is 5 1
    assert_ok dst-nlpoke set node=alpha policy_ms=1000
    wait_until 10 "the policy's end" state_is alpha failed
    if wait $!; then fail "a read of a failed node succeeded"; fi
    assert_ok field_is 11 queue_for:1000
}

# A server that is stopped for longer than the time-out loses its links; what they carried is done on the next ones.
# @timeout 240
test_time_out() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha timeout=2000
    pause_node alpha
    timeout 100 dd if=/dev/mapper/dev of="$T/read" bs=4k count=1 iflag=direct status=none &
    wait_until 20 "the loss of the busy link" state_is alpha degraded
    wait_until 20 "the loss of the other, which has it now" state_is alpha lost
    assert_contains "$(klog)" "no answer in time"
    resume_node alpha
    set_links 3 4
    wait $! || fail "the read failed"
    assert_ok cmp -n 4096 "$T/read" "$(node_image alpha)"
}

# A new incarnation while writes are not durable: each device fails one flush, also over a reload; a clean node none.
test_incarnation() {
    local dev
    make_slow_node
    defer "dmsetup remove --retry other"
    assert_ok dmsetup create other --table "0 2048 dst 1 alpha 4096 2048"
    set_links 3 4 incarnation=one
    assert_ok field_is 12 known
    assert_ok write_piece A
    set_links 5 6 incarnation=one
    assert_ok sync /dev/mapper/dev
    assert_ok write_piece B
    set_links 7 8 incarnation=two
    assert_contains "$(klog)" "1 acknowledged writes are lost"
    assert_ok dmsetup load dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dmsetup suspend --noflush dev
    assert_ok dmsetup resume dev
    for dev in dev other; do
        assert_fails "Input/output error" sync "/dev/mapper/$dev"
        assert_ok sync "/dev/mapper/$dev"
    done
    set_links 9 10 incarnation=three
    for dev in dev other; do assert_ok sync "/dev/mapper/$dev"; done
}
