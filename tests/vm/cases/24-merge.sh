#!/usr/bin/env bash
# Contiguous requests that wait for one link are merged into one wire request while they are gathered: whole, in pieces, where
# the server says no to one of them, where the link is lost in the middle, and where a suspend takes some. Each test proves by
# the tracepoint that there were such requests. One node, spoken to directly (dst-nlpoke), no daemon.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/proxy.sh
source "$(dirname "${BASH_SOURCE[0]}")/../proxy.sh"

SIZE=8388608
GENERATION=0

# make_dev [WORD...]: device dev, all of alpha, whose server runs; merges are traced from here on.
make_dev() {
    defer "give_up alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "0 $((SIZE / 512)) dst 1 alpha 0 $((SIZE / 512))"
    give_link "$@"
    assert_ok udevadm settle --timeout=30
    tracing || skip "no tracing here"
    EVENTS=$TRACING/events/dm_dst
    defer "echo 0 >$EVENTS/enable; echo 0 >$EVENTS/dmdst_send/filter; echo >$TRACING/trace"
    echo 'merged == 1' >"$EVENTS/dmdst_send/filter" || fail "the kernel doesn't know the field"
    echo >"$TRACING/trace"
    echo 1 >"$EVENTS/dmdst_send/enable"
    echo 1 >"$EVENTS/dmdst_requeue/enable"
}
# give_link [WORD...]: a fresh link in slot 0, which takes the other's place.
give_link() {
    GENERATION=$((GENERATION + 1))
    assert_ok dst-nlpoke links node=alpha "export=$SIZE" wanted=1 "$@" "link=0:$GENERATION:nbd@$(node_uri alpha)"
}

# assert_merged OP...: since the last time, such requests have been in another's wire request.
assert_merged() {
    local op
    for op; do
        grep -q "dmdst_send: .* op=$op .* merged=1" "$TRACING/trace" || fail "no merged $op"
    done
    echo >"$TRACING/trace"
}

# batches RW [OPTION...]: 4 KiB each, 32 of them in one system call, then all their ends are waited for.
batches() {
    run timeout 300 fio --name=batches --filename=/dev/mapper/dev --allow_file_create=0 --direct=1 --ioengine=libaio --bs=4k \
        --iodepth=32 --iodepth_batch_submit=32 --iodepth_batch_complete_min=32 --rw="$1" "${@:2}" --output="$T/fio"
    OUT+=$'\n'$(<"$T/fio")
}
verified_batches() {
    batches write --verify=crc32c --size=2m "$@"
    ((RC == 0)) || fail "fio: $OUT"
}

# assert_image_is_dev: what the server has is what dev reads.
assert_image_is_dev() {
    assert_ok blockdev --flushbufs /dev/mapper/dev
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
    assert_ok node_says alpha .state live
}

# Over TCP, copied and not; and with a socket that takes, and gives, a little at a time.
# @timeout 400
test_batches() {
    local wmem rmem
    wmem=$(sysctl -n net.ipv4.tcp_wmem)
    rmem=$(sysctl -n net.ipv4.tcp_rmem)
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    make_dev
    verified_batches
    assert_merged READ WRITE
    give_link zero=1
    verified_batches --offset=2m
    assert_merged READ WRITE
    defer "sysctl -w net.ipv4.tcp_wmem='$wmem' net.ipv4.tcp_rmem='$rmem'"
    assert_ok sysctl -w net.ipv4.tcp_wmem="4096 4608 4608" net.ipv4.tcp_rmem="4096 6144 6144"
    give_link zero=1
    verified_batches --offset=4m --size=1m
    assert_merged READ WRITE
    assert_image_is_dev
}

# traced EVENT: which requests, in order of their cookies.
traced() {
    sed -nE "s/.* dmdst_$1: .* (cookie=[^ ]+ op=[^ ]+ offset=[^ ]+ length=[^ ]+) .*/\1/p" "$TRACING/trace" | sort
}

# Over a Unix socket, where payloads are received otherwise. What rides is in the trace like all others: sent and answered,
# with a cookie of its own.
test_batches_over_unix() {
    make_image alpha $SIZE >/dev/null
    start_unix_nbdkit alpha
    make_dev
    echo 1 >"$EVENTS/dmdst_reply/enable"
    verified_batches
    assert_eq "$(traced send | cut -d" " -f1 | uniq --repeated)" "" "cookies that were given twice"
    assert_eq "$(comm -23 <(traced send) <(traced reply))" "" "requests that ride, and no reply"
    assert_merged READ WRITE
    assert_image_is_dev
}

# One wire request has no more than the server takes; a server that says no to the length would end nothing but itself.
test_no_larger_than_the_server_takes() {
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha --filter=blocksize-policy file "$(node_image alpha)" blocksize-minimum=512 blocksize-preferred=4096 \
        blocksize-maximum=12288 blocksize-error-policy=error
    make_dev max=12288
    verified_batches
    assert_eq "$(grep -c "dmdst_requeue" "$TRACING/trace")" 0 "requests that were sent again"
    assert_merged READ WRITE
    assert_image_is_dev
}

# The server fails one block of many: that one fails, and only that. A file with a hole in a file system that is full: the
# hole can't be written.
test_one_bad_block() {
    mkdir "$T/small"
    assert_ok mount -t tmpfs -o size=4m tmpfs "$T/small"
    defer "umount --lazy $T/small"
    SIZE=1048576
    assert_ok dd if=/dev/zero of="$T/small/image" bs=4k count=17 status=none
    assert_ok dd if=/dev/zero of="$T/small/image" bs=4k seek=18 count=238 status=none
    run dd if=/dev/zero of="$T/small/rest" bs=4k status=none
    assert_contains "$OUT" "No space left" "what fills the file system"
    start_export alpha "alpha=$T/small/image"
    make_dev
    batches write --size=128k --buffer_pattern=0x5a
    assert_merged WRITE
    assert_eq "$(grep "^fio: io_u error" <<<"$OUT")" \
        "fio: io_u error on file /dev/mapper/dev: No space left on device: write offset=69632, buflen=4096" "what failed"
    head -c 131072 /dev/zero | tr '\0' Z >"$T/expected"
    assert_ok dd if=/dev/zero of="$T/expected" bs=4k seek=17 count=1 conv=notrunc status=none
    assert_ok cmp -n 131072 "$T/expected" "$T/small/image"
    assert_ok node_says alpha '"\(.state) \(.reconnects) \(.errors)"' "live 0 1"
}

# The link is lost in the middle of a payload that only a merged request has: what was merged is replayed, each by itself, and
# nothing is lost or wrong. Behind byte 9000 there is nothing but the third of a wire request. (Not nbdkit: its threads can die
# of a lost connection, "Assertion `sock >= 0'".)
# @timeout 600
test_link_lost_in_the_middle() {
    local place rule pass=0
    make_image alpha $SIZE >/dev/null
    start_export alpha "alpha=$(node_image alpha)"
    start_proxy alpha
    sed -i "s/:$NODE_PORT/:$PROXY_PORT/" "$(node_dir alpha)/uri"
    make_dev
    for place in "request write when payload 9000 do rst" "reply read when payload 9000 do rst" \
        "request write nth 2 when payload 70000 do fin" "reply read nth 2 when payload 50000 do rst client"; do
        # shellcheck disable=SC2086 # words of an order
        rule=$(order alpha arm $place)
        verified_batches --size=1m --offset=${pass}m &
        order alpha wait "$rule" fired 60 >/dev/null
        wait_until 60 "the loss to be seen" node_says alpha .state lost
        give_link
        assert_ok dst-nlpoke fenced node=alpha force
        wait $! || fail "a merged request was lost: $(cat "$T/fio")"
        assert_merged READ WRITE
        pass=$((pass + 1))
    done
    assert_image_is_dev
}

# Each merged write that a lost link may still apply has a guard of its own.
# @timeout 400
test_each_is_guarded() {
    local load
    make_image alpha $SIZE >/dev/null
    start_export alpha "alpha=$(node_image alpha)"
    make_dev
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    pause_node alpha
    verified_batches --size=512k &
    load=$!
    wait_until 30 "a batch on the link" node_says alpha ".in_flight >= 32" true
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 30 "the loss to be seen" node_says alpha ".queued >= 32" true
    assert_ok node_says alpha .ambiguous 32
    assert_merged WRITE
    resume_node alpha
    give_link
    assert_ok dst-nlpoke fenced node=alpha force
    wait $load || fail "a merged request was lost: $(cat "$T/fio")"
    assert_image_is_dev
}

# A noflush suspend takes merged requests off a link whose server stands still: what was sent is answered later, to nobody.
# @timeout 400
test_suspend() {
    local load
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    make_dev
    pause_node alpha
    verified_batches --size=512k &
    load=$!
    wait_until 30 "a batch on the link" node_says alpha ".in_flight >= 32" true
    assert_ok timeout 60 dmsetup suspend --noflush dev
    assert_eq "$(grep -c "dmdst_requeue: .* op=WRITE .* why=detached" "$TRACING/trace")" 32 "writes that were taken off the link"
    assert_ok dmsetup resume --noudevsync dev
    resume_node alpha
    wait $load || fail "fio: $(cat "$T/fio")"
    assert_merged WRITE
    assert_image_is_dev
}
