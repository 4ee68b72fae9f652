#!/usr/bin/env bash
# A noflush suspend takes requests off links that go on working: what servers still do with them can't harm, and none is
# lost. One node, spoken to directly (dst-nlpoke), no daemon.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/proxy.sh
source "$(dirname "${BASH_SOURCE[0]}")/../proxy.sh"

CUT="a suspend can't wait for a write's pages"

# make_devices: dev is 4 MiB of alpha, other the last MiB of that: it keeps the node while dev's table is another one.
make_devices() {
    defer "touch $T/go; give_up alpha; dmsetup remove --retry dev; dmsetup remove --retry other"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dmsetup create other --table "0 2048 dst 1 alpha 6144 2048"
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
}

# set_links SLOT:GENERATION... [-- WORD...]: fresh links there, to PORT.
set_links() {
    local links=()
    while (($#)) && [[ $1 != -- ]]; do
        links+=("link=$1:nbd@nbd://$(node_addr alpha):${PORT:-$NODE_PORT}/")
        shift
    done
    assert_ok dst-nlpoke links node=alpha export=4194304 "wanted=${#links[@]}" "${links[@]}" "${@:2}"
    quiet_udev
}

# Each end of a writer, and each resume, would have udev read the device: requests that the tests didn't make.
quiet_udev() {
    [[ ! -e $T/quiet ]] || return 0
    : >"$T/quiet"
    let_udev_scan dev
    let_udev_scan other
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
}

# write_at DEVICE LETTER BYTES OFFSET: in one request.
write_at() {
    piece "$2" "$3"
    timeout 150 dd if="$T/$2" of="/dev/mapper/$1" bs="$3" count=1 seek="$4" oflag=direct,seek_bytes conv=notrunc,nocreat status=none
}
# image_holds LETTER BYTES OFFSET
image_holds() { cmp -n "$2" "$T/$1" "$(node_image alpha)" 0 "$3"; }
field_is() { [[ $(node_field alpha "$1" other) == "$2" ]]; }
links_are() { [[ $(dst-nlpoke get node=alpha | jq -r '[.links[] | select(.state == "live") | "\(.slot):\(.generation)"] | sort | join(" ")') == "$1" ]]; }
sent_above() { (($(dst-nlpoke get node=alpha | jq '[.links[].sent] | add') > $1)); }

suspend_dev() { assert_ok timeout 60 dmsetup suspend --noflush dev; }
resume_dev() { assert_ok dmsetup resume --noudevsync dev; }

# unharmed SLOT:GENERATION...: the links are what they were, and nothing is left of what was.
unharmed() {
    wait_until 30 "the last fence" field_is 6 0
    assert_ok links_are "$*"
    assert_ok node_says alpha '"\(.state) \(.errors) \(.reconnects) \(.in_flight) \(.barred)"' "live 0 0 0 0"
    assert_ok on_links_are 0
}

# The server is stopped with a read, a write and a zeroing: they are pushed back, their slots stay taken; when it goes
# on all is done, on the same links.
# @timeout 240
test_stopped_server_keeps_its_links() {
    local reader writer zeroer
    make_file "$(make_image alpha 4M)" 4M
    start_nbdkit alpha
    make_devices
    set_links 0:1 1:2
    pause_node alpha
    read_bytes 65536 65536 &
    reader=$!
    write_at dev A 65536 0 &
    writer=$!
    # Both seek first, and fallocate would hold the lock that this needs (blkdev_llseek).
    wait_until 20 "two requests in flight" on_links_are 2
    timeout 150 fallocate --zero-range --keep-size --offset 131072 --length 65536 /dev/mapper/dev &
    zeroer=$!
    wait_until 20 "three requests in flight" on_links_are 3
    suspend_dev
    assert_ok on_links_are 3
    assert_ok field_is 6 2
    assert_ok node_says alpha .in_flight 0
    resume_dev
    wait_until 20 "the two that modify to wait for their guards" field_is 13 2
    resume_node alpha
    wait $reader || fail "the read failed"
    wait $writer || fail "the write failed"
    wait $zeroer || fail "the zeroing failed"
    assert_ok cmp -n 65536 "$T/read" "$(node_image alpha)" 0 65536
    assert_ok image_holds A 65536 0
    assert_ok cmp -n 65536 /dev/zero "$(node_image alpha)" 0 131072
    unharmed 0:1 1:2
}

# A write is detached and ends for good, since its range is another table's by then. The next write to that range, which
# finds the link as it was, waits until the server has done the first.
# @timeout 240
test_detached_write_comes_before_the_next() {
    local first second
    start_holding_server
    make_devices
    set_links 0:1 1:2
    : >"$T/hold"
    write_at dev A 4096 0 &
    first=$!
    wait_until 30 "the server to have the write" test -e "$T/held"
    assert_ok dmsetup load dev --table "0 8192 zero"
    suspend_dev
    assert_ok field_is 6 1
    resume_dev
    wait $first || fail "the write that another table got failed"
    assert_ok dmsetup load dev --table "0 8192 dst 1 alpha 0 8192"
    assert_ok dmsetup suspend dev
    resume_dev
    write_at dev B 4096 0 &
    second=$!
    wait_until 30 "the next write at the guard" field_is 13 1
    assert_ok write_at dev C 4096 8192
    assert_ok read_bytes 4096 0
    assert_ok cmp -n 4096 /dev/zero "$T/read"
    assert_ok kill -0 $second
    assert_ok on_links_are 1
    touch "$T/go"
    wait $second || fail "the next write failed"
    assert_ok image_holds B 4096 0
    assert_ok image_holds C 4096 8192
    unharmed 0:1 1:2
}

# A detached write whose link is lost then is as ambiguous as any: only that link's fence lifts its guard.
# @timeout 240
test_detached_write_whose_link_is_lost() {
    local writer
    start_holding_server
    make_devices
    set_links 0:1
    : >"$T/hold"
    write_at dev A 4096 0 &
    writer=$!
    wait_until 30 "the server to have the write" test -e "$T/held"
    suspend_dev
    resume_dev
    wait_until 30 "it, pushed back, at its own guard" field_is 13 1
    run dst-nlpoke fenced node=alpha force
    assert_ok field_is 13 1
    assert_ok dst-nlpoke drop node=alpha force link=0::
    wait_until 30 "the loss" node_says alpha '"\(.state) \(.ambiguous)"' "lost 1"
    set_links 0:2
    wait_until 30 "the write at the guard" field_is 13 1
    assert_ok write_at dev C 4096 8192
    touch "$T/go"
    wait_until 30 "the old server's write" image_holds A 4096 0
    assert_ok field_is 13 1
    assert_ok dst-nlpoke fenced node=alpha link=0:1:
    wait $writer || fail "the write failed"
    assert_ok field_is 6 0
    assert_ok links_are 0:2
}

# The server of a detached write ends in order, and the node says that this is a fence.
# @timeout 240
test_half_done_write_and_end_of_file() {
    local writer
    start_holding_server
    make_devices
    assert_ok dst-nlpoke set node=alpha eof_fences=1
    set_links 0:1
    : >"$T/hold"
    write_at dev A 4096 0 &
    writer=$!
    wait_until 30 "the server to have the write" test -e "$T/held"
    suspend_dev
    resume_dev
    wait_until 30 "it, pushed back, at its own guard" field_is 13 1
    kill_node alpha
    wait_until 30 "the fence, and the write in the queue" node_says alpha '"\(.state) \(.ambiguous) \(.barred) \(.queued)"' "lost 0 0 1"
    assert_contains "$(klog)" "the server closed the connection"
    start_holding_server
    set_links 0:2
    wait $writer || fail "the write failed"
    assert_ok image_holds A 4096 0
    assert_ok links_are 0:2
}

# A link that is replaced while it has a detached write drains: it is read until the answer has come.
# @timeout 240
test_detached_write_on_a_draining_link() {
    local writer
    start_holding_server
    make_devices
    set_links 0:1
    : >"$T/hold"
    write_at dev A 4096 0 &
    writer=$!
    wait_until 30 "the server to have the write" test -e "$T/held"
    suspend_dev
    resume_dev
    set_links 0:2
    wait_until 30 "it, pushed back, at its own guard" field_is 13 1
    assert_ok node_says alpha '[.links[] | "\(.generation) \(.state)"] | sort | join(", ")' "1 draining, 2 live"
    touch "$T/go"
    wait $writer || fail "the write failed"
    assert_ok image_holds A 4096 0
    wait_until 30 "the drained link's end" node_says alpha '.links | length' 1
    assert_not_contains "$(klog)" " lost: "
    assert_ok field_is 6 0
}

# An answer to a read stops in its payload. The read goes back; what comes of the payload later goes nowhere, and what
# comes behind it is understood.
# @timeout 240
test_read_detached_amid_its_payload() {
    local rule before reader
    make_file "$(make_image alpha 4M)" 4M
    start_nbdkit alpha
    start_proxy alpha
    make_devices
    PORT=$PROXY_PORT set_links 0:1
    before=$(dst-nlpoke get node=alpha | jq '.links[0].received')
    rule=$(order alpha arm reply read at 65536 66047 when payload 20000 "do" stall down)
    read_bytes 65536 65536 &
    reader=$!
    order alpha wait "$rule" fired 60
    # of the payload the socket may keep what isn't worth a wake-up
    wait_until 30 "the answer's beginning" node_says alpha ".links[0].received >= $((before + 16))" true
    suspend_dev
    assert_ok on_links_are 1
    assert_ok field_is 6 0
    resume_dev
    wait_until 30 "the read, again, on the link" on_links_are 2
    order alpha heal all
    wait $reader || fail "the read failed"
    assert_ok cmp -n 65536 "$T/read" "$(node_image alpha)" 0 65536
    assert_ok read_bytes 1048576 1048576
    assert_ok cmp -n 1048576 "$T/read" "$(node_image alpha)" 0 1048576
    unharmed 0:1
}

# small_buffers WRITE READ: of sockets that are made from here on; what we write to, what the server reads from.
small_buffers() {
    defer "echo '$(</proc/sys/net/ipv4/tcp_wmem)' >/proc/sys/net/ipv4/tcp_wmem"
    echo "4096 $1 $1" >/proc/sys/net/ipv4/tcp_wmem
    make_node_net alpha
    in_node alpha sh -c "echo '4096 $2 $2' >/proc/sys/net/ipv4/tcp_rmem"
}

# The socket takes no more amid a write of one device, and has requests of another behind that in the same batch. These
# leave, as if they had never come; the write stays whole.
# @timeout 240
test_unsent_requests_leave_the_batch() {
    local first second pids=()
    small_buffers 16384 16384
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    start_proxy alpha
    make_devices
    PORT=$PROXY_PORT set_links 0:1
    first=$(order alpha arm request write at 3145728 3146239 when payload 1000 "do" stall up)
    second=$(order alpha arm request write at 3407872 3408383 when payload 1000 "do" stall up)
    write_at other V 262144 0 &
    pids+=($!)
    order alpha wait "$first" fired 60
    write_at other W 262144 262144 &
    pids+=($!)
    wait_until 30 "the second write to follow" node_says alpha .in_flight 2
    write_at dev A 4096 0 &
    pids+=($!)
    read_bytes 4096 8192 &
    pids+=($!)
    wait_until 30 "both requests of dev to follow" node_says alpha .in_flight 4
    assert_ok on_links_are 1
    order alpha heal all
    order alpha wait "$second" fired 60
    wait_until 30 "the first write's end, and one batch of all else" on_links_are 3
    suspend_dev
    assert_ok on_links_are 1
    assert_ok field_is 6 0
    resume_dev
    wait_until 30 "both again" node_says alpha .in_flight 3
    order alpha heal all
    for first in "${pids[@]}"; do wait "$first" || fail "a request failed"; done
    assert_ok image_holds V 262144 3145728
    assert_ok image_holds W 262144 3407872
    assert_ok image_holds A 4096 0
    unharmed 0:1
}

# The server is stopped, and its socket takes no more, amid a write: that link ends, and only by that does the suspend.
# @timeout 240
test_half_sent_write_costs_the_link() {
    local writer
    small_buffers 16384 16384
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    make_devices
    set_links 0:1
    pause_node alpha
    write_at dev A 1048576 0 &
    writer=$!
    wait_until 30 "a part of it" sent_above 1000
    suspend_dev
    assert_contains "$(klog)" "link 0 generation 1 lost: $CUT"
    assert_ok field_is 6 1
    resume_dev
    wait_until 30 "the write in the queue" node_says alpha .queued 1
    resume_node alpha
    set_links 0:2
    wait_until 30 "the write at the guard" field_is 13 1
    assert_ok dst-nlpoke fenced node=alpha link=0:1:
    wait $writer || fail "the write failed"
    assert_ok image_holds A 1048576 0
    assert_ok links_are 0:2
}

# The socket has all of a write, and the stopped server's doesn't: where pages were spliced they are in a queue that only
# the link's end empties; where they were copied the link stays.
# @timeout 240
test_pages_in_the_send_queue() {
    local zero writer
    small_buffers 1048576 8192
    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    make_devices
    for zero in 0 1; do
        set_links "0:$((zero + 1))" -- "zero=$zero"
        pause_node alpha
        write_at dev A 131072 0 &
        writer=$!
        wait_until 30 "the socket to have all of it" sent_above 131072
        suspend_dev
        assert_ok field_is 6 1
        if ((zero)); then
            assert_contains "$(klog)" "link 0 generation 2 lost: $CUT"
        else
            assert_ok links_are 0:1
        fi
        resume_dev
        resume_node alpha
        if ((zero)); then
            set_links 0:3
            assert_ok dst-nlpoke fenced node=alpha link=0:2:
        fi
        wait $writer || fail "the write failed"
        assert_ok image_holds A 131072 0
        wait_until 30 "the last fence" field_is 6 0
    done
}

# Slots of what was detached stay taken until the server has answered: it never has more than a link's depth.
# @timeout 240
test_detached_requests_count() {
    local load
    make_file "$(make_image alpha 4M)" 4M
    start_nbdkit alpha
    make_devices
    set_links 0:1
    pause_node alpha
    timeout 150 fio --name=r --filename=/dev/mapper/dev --rw=read --bs=4k --size=2m --direct=1 --ioengine=libaio \
        --iodepth=256 --allow_file_create=0 --output="$T/fio" &
    load=$!
    wait_until 60 "a link full of reads" on_links_are 256
    suspend_dev
    assert_ok node_says alpha '"\(.in_flight) \(.links[0].in_flight)"' "0 256"
    resume_dev
    wait_until 30 "all reads again" node_says alpha .in_flight 256
    assert_ok on_links_are 256
    resume_node alpha
    wait $load || fail "a read failed: $(cat "$T/fio")"
    assert_ok read_bytes 1048576 0
    assert_ok cmp -n 1048576 "$T/read" "$(node_image alpha)"
    unharmed 0:1
}
