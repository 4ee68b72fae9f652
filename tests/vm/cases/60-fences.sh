#!/usr/bin/env bash
# Lost links: what they carried goes on, old writes can't undo new ones, and nothing waits longer than it must. One
# node, spoken to directly (dst-nlpoke), no daemon; its server can be told to take its time for a write.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

LEAVE_NOTHING="give_up alpha; dmsetup remove --retry dev"

# make_slow_node: 4 MiB, two links. While $T/slow exists a write sleeps 10 s before it is done, and $T/began tells.
make_slow_node() {
    make_node
    set_links 1 2
    let_udev_scan dev
}

# The same without links.
make_node() {
    defer "$LEAVE_NOTHING"
    make_image alpha 4M >/dev/null
    start_slow_server
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
}

start_slow_server() {
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit alpha eval get_size='echo 4194304' thread_model='echo parallel' \
        pread="dd if=$T/alpha.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="if [ -e $T/slow ]; then touch $T/began; sleep $((10 * SLOWNESS)); fi; dd of=$T/alpha.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none" \
        flush="true"
}

# set_links GENERATION GENERATION [WORD...]: fresh links in slots 0 and 1.
set_links() {
    local first=$1 second=$2
    shift 2
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=2 \
        "link=0:$first:nbd@$(node_uri alpha)" "link=1:$second:nbd@$(node_uri alpha)" "$@"
}

# write_piece LETTER [BLOCK]
write_piece() {
    piece "$1"
    timeout "${LIMIT:-$((100 * SLOWNESS))}" dd if="$T/$1" of=/dev/mapper/dev bs=4k seek="${2:-0}" oflag=direct conv=notrunc,nocreat status=none
}
image_holds() { cmp -s -n 4096 "$T/$1" "$(node_image alpha)"; }
field_is() { [[ $(node_field alpha "$1") == "$2" ]]; }

# stays SECONDS WHAT CMD...: it does for so long.
stays() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    while ((SECONDS < end)); do
        "$@" || fail "$what: not any more"
        sleep 1
    done
}

# begin_slow_write LETTER: in the background, WRITER, and the server has it.
begin_slow_write() {
    rm -f "$T/began"
    : >"$T/slow"
    write_piece "$1" &
    WRITER=$!
    wait_until 20 "the server to have the write" test -e "$T/began"
    # what udev reads when a writer closes the device
    assert_ok udevadm settle --timeout=30
}

# lose_slow_write: writes A slowly, and cuts its link when the server has it; A is then replayed, and done. Sets SLOT,
# GENERATION to the old link's.
lose_slow_write() {
    begin_slow_write A
    rm "$T/slow"
    read -r SLOT GENERATION < <(dst-nlpoke get node=alpha | jq -r '.links[] | select(.in_flight == 1) | "\(.slot) \(.generation)"')
    assert_ok dst-nlpoke drop node=alpha force "link=$SLOT::"
    wait $WRITER || fail "the write whose link was cut failed"
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
    lose_slow_write
    assert_ok dst-nlpoke fenced node=alpha force
    assert_ok field_is 6 0
}

# What is ambiguous outlives a failed write, and the table: a device made again waits, too.
# @timeout 240
test_guard_outlives_request_and_table() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    begin_slow_write A
    assert_ok dst-nlpoke fail node=alpha
    if wait $WRITER; then fail "fail-pending, and the write succeeded"; fi
    rm "$T/slow"
    wait_until 10 "the guard" field_is 6 1
    assert_ok dmsetup remove --retry dev
    assert_contains "$(klog)" "removed while 1 ranges are ambiguous"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    # and so does what was set: by default it would be taken as fenced after 10 s
    set_links 3 4
    assert_ok field_is 6 1
    write_piece B &
    wait_until 10 "the new write at the guard" field_is 13 1
    stays $((14 * SLOWNESS)) "the new write at the guard" field_is 13 1
    assert_ok dst-nlpoke fenced node=alpha force
    wait $! || fail "the write that waited failed"
}

# End of file is a fence where the node says so; a reset, after which a reader finds end of file, too, is none.
# @timeout 240
test_eof_fences_and_a_reset_does_not() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER" eof_fences=1
    begin_slow_write A
    in_node alpha ss -K state established >/dev/null
    wait_until 10 "the loss of both links" state_is alpha lost
    assert_contains "$(klog)" "receive failed (-104)"
    assert_ok field_is 6 1
    rm "$T/slow"
    set_links 3 4
    wait $WRITER || fail "the write whose link was reset failed"
    assert_ok dst-nlpoke fenced node=alpha force

    # one link only: with two the write would go from the one that is closed first to the other, and that is then reset
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=1 "link=0:5:nbd@$(node_uri alpha)"
    wait_until 10 "one link" node_says alpha '.links | length' 1
    begin_slow_write B
    kill_node alpha
    wait_until 10 "the loss of the link" state_is alpha lost
    assert_contains "$(klog)" "the server closed the connection"
    assert_ok field_is 6 0
    rm "$T/slow"
    start_slow_server
    set_links 6 7
    wait $WRITER || fail "the write whose server ended failed"
    assert_ok image_holds B
}

# Zero copy: a write whose pages a stopped server has yet to read ends only when that link is fenced, although another
# server has done its replay: else the first would write what the page holds by then.
# @timeout 240
test_pages_in_a_stopped_server() {
    defer "$LEAVE_NOTHING"
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    start_nbdkit beta file "$(node_image alpha)"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    assert_ok dst-nlpoke links node=alpha export=4194304 zero=1 wanted=2 "link=0:1:nbd@$(node_uri alpha)"
    let_udev_scan dev
    piece A
    pause_node alpha
    python3 - "$T/written" <<'END' &
import mmap, os, sys
page = mmap.mmap(-1, 4096)
page[:] = b"A" * 4096
os.pwrite(os.open("/dev/mapper/dev", os.O_RDWR | os.O_DIRECT), page, 0)
page[:] = b"N" * 4096
open(sys.argv[1], "w").close()
while not os.path.exists(sys.argv[1] + "2"): os.sched_yield()
END
    wait_until 20 "the write on its way" node_says alpha .in_flight 1
    assert_ok dst-nlpoke links node=alpha export=4194304 zero=1 wanted=2 "link=1:2:nbd@$(node_uri beta)"
    assert_ok dst-nlpoke drop node=alpha force link=0::
    wait_until 20 "the replay" image_holds A
    # without the pin it ends instead, and the page gets other bytes
    wait_until 20 "the write to wait, or to end" waits_or_ended
    resume_node alpha
    stop_node alpha
    assert_ok image_holds A
    assert_ok test ! -e "$T/written"
    assert_ok dst-nlpoke fenced node=alpha force
    wait_until 20 "the end of the write" test -e "$T/written"
    touch "$T/written2"
    wait $! || fail "the write failed"
    assert_ok image_holds A
}

waits_or_ended() { field_is 13 1 || test -e "$T/written"; }

# More losses than a node can tell apart, all unfenced: they are merged, none is forgotten, and a dump has room for all.
# @timeout 240
# @only faults
test_more_losses_than_places() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 10 "the loss of both links" state_is alpha lost
    write_piece A &
    assert_ok dst-nlpoke flap alpha 4194304 3 70
    set_links 73 74
    wait $! || fail "the write failed"
    assert_ok image_holds A
    assert_ok field_is 6 1
    assert_ok dst-nlpoke dump
    write_piece B &
    wait_until 10 "the new write at the guard" field_is 13 1
    assert_ok dst-nlpoke fenced node=alpha force
    wait $! || fail "the write that waited failed"
    assert_ok image_holds B
    assert_eq "$(klog | grep -c "fenced by the operator")" 63 "old links that were told apart"
}

# The module goes within a moment although guards are left.
# @timeout 240
# @only faults
test_unload_with_guards_left() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    lose_slow_write
    assert_ok dmsetup remove --retry dev
    assert_ok timeout 30 rmmod dm_dst
    assert_ok modprobe dm-dst
}

# Links that flap under verified I/O: nothing is lost, nothing is stale, nothing hangs.
# @timeout 900
# @only faults
test_flapping_links() {
    local i
    make_image alpha 4M >/dev/null
    defer "$LEAVE_NOTHING"
    # not nbdkit: 1.32 now and then dies of an assertion when a client goes
    start_export alpha
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dst-nlpoke set node=alpha quiesce=100
    set_links 1 2
    let_udev_scan dev
    start_verify "$(direct_job 2M)"
    for ((i = 1; i <= ${FLAPS:-30}; i++)); do
        verify_goes_on
        assert_ok dst-nlpoke drop node=alpha force
        set_links $((2 * i + 1)) $((2 * i + 2))
        wait_until 60 "an answer" node_says alpha '([.links[].received] | add) > 0' true
    done
    stop_verify
    wait_until 60 "the last fence" field_is 6 0
}

# Policies: error fails at once, queue_for after its time, and a change of mind brings the node back.
test_policies() {
    make_slow_node
    assert_ok dst-nlpoke set node=alpha policy=2
    kill_node alpha
    wait_until 10 "the policy's end" state_is alpha failed
    assert_fails "Link has been severed" dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct
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

# klog_time TEXT: when the kernel said the last line with that, in whole seconds since boot.
klog_time() { klog | sed -nE "s/^\[ *([0-9]+)\..*$1.*/\1/p" | tail -n 1; }

# A stopped server gets its long time for a FLUSH once, not on each link.
# @timeout 240
test_time_out_of_a_flush() {
    local stopped first
    make_slow_node
    assert_ok dst-nlpoke set node=alpha timeout=2000
    # The writer's end would have udev read the device.
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
    assert_ok write_piece A
    pause_node alpha
    stopped=$(cut -d. -f1 /proc/uptime)
    timeout 100 sync /dev/mapper/dev &
    wait_until 60 "the loss of the busy link" state_is alpha degraded
    first=$(klog_time "no answer in time")
    ((first - stopped >= 19)) || fail "the FLUSH had only $((first - stopped)) of 20 s"
    wait_until 60 "the loss of the other, which has it now" state_is alpha lost
    (($(klog_time "no answer in time") - first < 10)) || fail "it had its long time again: $(klog)"
    resume_node alpha
    set_links 3 4
    wait $! || fail "the FLUSH failed"
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

# A writer's end has udev read the device: from here on not, also because its reads would keep the next writer waiting.
quiet_udev() {
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
}
# fsync_dev N: in the background; $T/fsync.N then says how it ended.
fsync_dev() {
    {
        run sync /dev/mapper/dev
        echo "$RC $OUT" >"$T/ending.$1"
        mv "$T/ending.$1" "$T/fsync.$1"
    } &
}
# Writes and flushes that the device has been given and hasn't ended.
under_way_are() { [[ $(awk '{ print $2 }' "/sys/block/$(basename "$(readlink -f /dev/mapper/dev)")/inflight") == "$1" ]]; }

# One fail-pending ends every fsync: the one whose FLUSH the stopped server has, and one that waits for its turn.
# @timeout 240
test_fail_pending_ends_every_fsync() {
    local n
    make_slow_node
    quiet_udev
    assert_ok write_piece A
    pause_node alpha
    fsync_dev 1
    wait_until 20 "the first fsync" under_way_are 1
    fsync_dev 2
    wait_until 20 "the second fsync" under_way_are 2
    assert_ok dst-nlpoke fail node=alpha
    for n in 1 2; do
        wait_until 20 "the end of fsync $n" test -e "$T/fsync.$n"
        assert_contains "$(<"$T/fsync.$n")" "Link has been severed" "fsync $n"
    done
    resume_node alpha
    set_links 3 4
    assert_ok sync /dev/mapper/dev
    assert_ok node_says alpha .writes 0
}

# A device's one error for a loss of data outlives a noflush suspend that takes its flushes back: alpha has no link, so
# the flush that would find out of beta's loss goes back, and comes again.
# @timeout 240
test_loss_is_told_after_a_suspend() {
    defer "$LEAVE_NOTHING"
    defer "dst-nlpoke fail node=beta"
    local name
    for name in alpha beta; do
        make_image $name 2M >/dev/null
        start_nbdkit $name
    done
    assert_ok dmsetup create dev --table "0 8192 dst 2 alpha 0 4096 beta 0 4096"
    assert_ok dst-nlpoke links node=alpha export=2097152 wanted=1 "link=0:1:nbd@$(node_uri alpha)"
    assert_ok dst-nlpoke links node=beta export=2097152 wanted=1 "link=0:1:nbd@$(node_uri beta)" incarnation=one
    let_udev_scan dev
    quiet_udev
    assert_ok write_piece A
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 10 "the loss of alpha" state_is alpha lost
    fsync_dev 1
    wait_until 20 "the first fsync" under_way_are 1
    assert_ok write_piece B 600
    assert_ok dst-nlpoke links node=beta export=2097152 wanted=1 "link=0:2:nbd@$(node_uri beta)" incarnation=two
    assert_contains "$(klog)" "1 acknowledged writes are lost"
    fsync_dev 2
    wait_until 20 "the second fsync" under_way_are 2
    assert_ok timeout 60 dmsetup suspend --noflush dev
    assert_ok dst-nlpoke links node=alpha export=2097152 wanted=1 "link=0:2:nbd@$(node_uri alpha)"
    assert_ok dmsetup resume --noudevsync dev
    wait_until 20 "the end of the first fsync" test -e "$T/fsync.1"
    wait_until 20 "the end of the second fsync" test -e "$T/fsync.2"
    assert_eq "$(cat "$T"/fsync.? | grep -c "Input/output error" || true)" 1 "fsyncs that were told"
    assert_ok sync /dev/mapper/dev
}

# A node whose next links can't FLUSH (flags=361) while acknowledged writes are not durable: none makes them so. One
# error, and from there on it is write-through.
test_flush_command_is_gone() {
    make_slow_node
    assert_ok write_piece A
    set_links 3 4 flags=361
    assert_contains "$(klog)" "1 acknowledged writes are lost"
    assert_fails "Input/output error" sync /dev/mapper/dev
    assert_ok sync /dev/mapper/dev
    assert_ok field_is 10 write_through
    assert_ok write_piece B
    assert_ok sync /dev/mapper/dev
    assert_ok node_says alpha '"\(.writes) \(.errors)"' "0 0"
}

# Where a server can't say who it is, eio takes who is there after the last link has gone for another, also if nothing
# was lost with the links; not where new ones take the place of live ones, and trust never.
test_eio_counts_what_was_drained() {
    make_slow_node
    assert_ok write_piece A
    assert_ok dst-nlpoke drop node=alpha
    wait_until 10 "the end of the links" node_says alpha '.links | length' 0
    set_links 3 4
    assert_ok sync /dev/mapper/dev
    assert_ok dst-nlpoke set node=alpha unknown_restart=1
    assert_ok write_piece B
    assert_ok dst-nlpoke drop node=alpha
    wait_until 10 "the end of the links" node_says alpha '.links | length' 0
    set_links 6 7
    assert_fails "Input/output error" sync /dev/mapper/dev
    assert_ok sync /dev/mapper/dev
    assert_ok write_piece B
    set_links 8 9
    assert_ok sync /dev/mapper/dev
}
