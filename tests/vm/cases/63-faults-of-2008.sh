#!/usr/bin/env bash
# What the DST of 2008 got wrong, a test for each that no other file has (docs/testing.md lists all eleven). One node,
# spoken to directly (dst-nlpoke), no daemon. What a bad kernel would do is found by what arrives, not by how soon.

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

SIZE=16777216

# make_dev [ZERO]: device dev, 16 MiB of alpha, whose server runs; one link, in slot 0.
make_dev() {
    defer "give_up alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "0 $((SIZE / 512)) dst 1 alpha 0 $((SIZE / 512))"
    give_link 1
    assert_ok udevadm settle --timeout=30
}
# give_link GENERATION [WORD...]: a fresh link in slot 0.
give_link() {
    assert_ok dst-nlpoke links node=alpha "export=$SIZE" wanted=1 "${@:2}" "link=0:$1:nbd@$(node_uri alpha)"
}

# Each of 4 KiB at BLOCK, direct.
read_at() { timeout 100 dd if=/dev/mapper/dev of="$T/read" bs=4k count=1 skip="$1" iflag=direct status=none; }
write_at() { timeout 100 dd if="$T/piece" of=/dev/mapper/dev bs=4k count=1 seek="$1" oflag=direct conv=notrunc status=none; }

# Remote errors were lost: here each error of the server is the application's, and only that request's.
test_remote_errors_arrive() {
    make_image alpha $SIZE >/dev/null
    make_file "$T/piece" 4096
    start_nbdkit alpha --filter=error file "$(node_image alpha)" error-pread=ENOSPC error-pwrite=EIO error-zero=EPERM \
        error-trim=EIO error-rate=100% error-file="$T/now"
    make_dev
    assert_ok write_at 3
    touch "$T/now"
    assert_fails "No space left on device" read_at 3
    assert_fails "Input/output error" write_at 3
    assert_fails "failed" blkdiscard --offset 12288 --length 4096 /dev/mapper/dev
    assert_fails "failed" blkdiscard --zeroout --offset 12288 --length 4096 /dev/mapper/dev
    rm "$T/now"
    assert_ok read_at 3
    assert_same_bytes "$T/read" "$T/piece"
    assert_ok node_says alpha '"\(.state) \(.reconnects)"' "live 0"
}

# Headers of resends were swapped twice: here what is sent again arrives as what it was, where it was to go. The offset
# has another value in each byte order, and so has the length.
test_resends_are_the_same() {
    local write read
    make_file "$(make_image alpha $SIZE)" $SIZE
    start_nbdkit alpha
    start_proxies_for_alpha
    make_dev
    make_file "$T/piece" 4096
    order alpha arm request write "do" hold >/dev/null
    order alpha arm request read at $((1234 * 4096)) $((1234 * 4096)) "do" hold >/dev/null
    write_at 2571 &
    write=$!
    read_at 1234 &
    read=$!
    wait_until 30 "both in flight" node_says alpha .in_flight 2
    assert_ok dst-nlpoke drop node=alpha force
    give_link 2
    wait $write || fail "the write failed"
    wait $read || fail "the read failed"
    assert_ok cmp -n 4096 "$T/read" "$(node_image alpha)" 0 $((1234 * 4096))
    assert_ok cmp -n 4096 "$T/piece" "$(node_image alpha)" 0 $((2571 * 4096))
}
start_proxies_for_alpha() {
    PROXIED=1
    start_proxy alpha
    aim_at_proxy alpha
}

# Every message was corked for 200 ms by a flag that was always set: here nothing is ever sent by the timer that ends
# such a wait. (It is the one for a closed window, too; the server reads all the time.)
test_nothing_is_corked() {
    local events=$TRACING/events/kprobes
    make_image alpha $SIZE >/dev/null
    make_file "$T/piece" 4096
    start_nbdkit alpha
    make_dev
    tracing || skip "no tracing here"
    echo 'p:kprobes/dst_corked tcp_send_probe0' >"$TRACING/kprobe_events" || skip "no kprobes here"
    defer "echo 0 >$events/dst_corked/enable; echo >$TRACING/kprobe_events"
    echo 1 >"$events/dst_corked/enable"
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=60 iflag=direct status=none
    assert_ok dd if=/dev/urandom of=/dev/mapper/dev bs=4k count=40 oflag=direct conv=notrunc status=none
    echo 0 >"$events/dst_corked/enable"
    assert_eq "$(grep -c dst_corked "$TRACING/trace")" 0 "messages that had to wait for a timer"
}

# Short sends were taken for whole ones: here a socket that takes a little at a time gets all of it, copied or not.
test_short_sends() {
    local memory
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    memory=$(sysctl -n net.ipv4.tcp_wmem)
    defer "sysctl -w net.ipv4.tcp_wmem='$memory'"
    assert_ok sysctl -w net.ipv4.tcp_wmem="4096 4608 4608"
    make_dev
    short_sends
    # takes the other's place; without a link udev's read-ahead would fail
    give_link 2 zero=1
    short_sends
    assert_ok node_says alpha '"\(.state) \(.errors)"' "live 0"
}
short_sends() {
    make_file "$T/data" 4M
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=4M oflag=direct conv=notrunc status=none
    assert_ok cmp -n 4194304 "$T/data" "$(node_image alpha)"
}

# Read-only was enforced by the client only: here a client that takes an export for writable is refused by the server.
test_the_server_enforces_read_only() {
    make_file "$(make_image alpha $SIZE)" $SIZE
    make_file "$T/piece" 4096
    cp "$(node_image alpha)" "$T/before"
    start_export alpha --read-only "alpha=$(node_image alpha)"
    make_dev
    assert_ok read_at 3
    run write_at 3
    ((RC != 0)) || fail "a write to a read-only export succeeded"
    assert_fails "failed" blkdiscard --zeroout --offset 0 --length 4096 /dev/mapper/dev
    assert_same_bytes "$T/before" "$(node_image alpha)"
}

# A half-open peer blocked its own reconnect: here a client whose old connections the server takes for alive is let in
# at once, and its old links are fenced.
# @timeout 240
test_half_open_peer_comes_back() {
    local ports
    make_image alpha $SIZE >/dev/null
    start_export alpha
    defer "pkill -KILL -x dstd; dstd fail-pending alpha; dmsetup remove --retry dev"
    topology
    node alpha "" "links: 2, quiesce: never, timeout: 2s"
    device dev
    extent alpha
    : >"$T/dstd.log"
    run_daemon
    wait_until 60 "the daemon to be ready" grep -q "ready: " "$T/dstd.log"
    assert_ok udevadm settle --timeout=30
    make_file "$T/piece" 4096
    ports=$(ss -Htn state established "dst $(node_addr alpha)" | awk '{ sub(/.*:/, "", $3); print $3 }' | paste -sd,)
    in_node alpha nft "table inet cut { chain i { type filter hook input priority 0; tcp sport { $ports } drop; }
        chain o { type filter hook output priority 0; tcp dport { $ports } drop; }; }"
    # done on a new link, when its own has been given up
    assert_ok write_at 3
    wait_until 60 "both links, and no fence open" both_live
    assert_contains "$(klog)" "fenced by its server"
    assert_contains "$(in_node alpha nft list table inet cut)" "drop"
    assert_ok cmp -n 4096 "$T/piece" "$(node_image alpha)" 0 12288
}
both_live() { node_says alpha '"\(.state) \(.live) \(.ambiguous)"' "live 2 0"; }

# The send lock was held while receiving: here an answer arrives while requests wait for a socket that takes no more.
test_answers_arrive_while_sending_is_stuck() {
    local reader writer rule
    make_file "$(make_image alpha $SIZE)" $SIZE
    start_nbdkit alpha
    start_proxies_for_alpha
    make_dev
    make_file "$T/data" 8M
    rule=$(order alpha arm reply read when before "do" stall down)
    read_at 3 &
    reader=$!
    order alpha wait "$rule" fired 30
    order alpha on all stall up
    dd if="$T/data" of=/dev/mapper/dev bs=8M seek=1 oflag=direct conv=notrunc status=none &
    writer=$!
    wait_until 30 "the socket to be full" stuck
    assert_ok kill -0 $reader
    order alpha heal all down
    wait $reader || fail "the read failed"
    assert_ok kill -0 $writer
    assert_ok stuck
    assert_ok cmp -n 4096 "$T/read" "$(node_image alpha)" 0 12288
    order alpha heal all up
    wait $writer || fail "the write failed"
    assert_ok cmp -n 8388608 "$T/data" "$(node_image alpha)" 0 8388608
}
# Much is unsent, and it doesn't become less.
stuck() {
    local unsent
    unsent=$(ss -Htn state established "dst $(node_addr alpha)" | awk '{ n += $2 } END { print n + 0 }')
    ((unsent > 100000))
}
