#!/usr/bin/env bash
# The tracepoints, as tracefs shows them (docs/operations.md, "Tracepoints"): what became of a bio can be read off them, step by
# step. Nodes spoken to directly (dst-nlpoke), no daemon; udev rests, so that what is traced is what the tests do.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

# make_device TABLE: dev, on nodes of 4 MiB.
make_device() {
    defer "touch $T/go; give_up alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "$1"
    DEV=$(dmsetup info -c --noheadings --separator , -o major,minor dev)
}

# set_link NODE GENERATION: a fresh one, the node's only.
set_link() { assert_ok dst-nlpoke links node="$1" export=4194304 wanted=1 "link=0:$2:nbd@nbd://$(node_addr "$1"):$NODE_PORT/"; }

# listen: to all events, from here on.
listen() {
    tracing || skip "no tracing here"
    let_udev_scan dev
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
    defer "echo 0 >$TRACING/events/dm_dst/enable; echo >$TRACING/trace"
    echo >"$TRACING/trace"
    echo 1 >"$TRACING/events/dm_dst/enable" || fail "the kernel doesn't know the events"
}

# traced EVENT [KEY=VALUE...]: the fields of each such event, with a space around each.
traced() {
    local lines word
    lines=$(sed -n "s/.* dmdst_$1: \(.*\)/ \1 /p" "$TRACING/trace")
    for word in "${@:2}"; do lines=$(grep -F " $word " <<<"$lines" || true); done
    printf '%s' "$lines"
}

# once EVENT [KEY=VALUE...]: the one that there has been.
once() {
    local line
    line=$(traced "$@")
    [[ -n $line && $line != *$'\n'* ]] || fail "events that are '$*': '$line', expected one; all: $(grep dmdst_ "$TRACING/trace")"
    printf '%s\n' "$line"
}
has_been() { [[ -n $(traced "$@") ]]; }
assert_once() { once "$@" >/dev/null; }

# identity FIELDS: sets ID, what tells a request on the wire from all others.
identity() { mapfile -t ID < <(grep -oE '\<(node|slot|generation|cookie|op|offset|length)=[^ ]+' <<<"$1"); }

# assert_answered FIELDS: that were sent; by one reply, which tells how long it took.
assert_answered() {
    local reply
    identity "$1"
    assert_eq "${#ID[@]}" 7 "what identifies '$1'"
    reply=$(once reply "${ID[@]}" error=0)
    assert_match "$reply" ' latency=[1-9][0-9]* ' "the reply to '$1'"
}

# assert_sent DEVICE OP SECTOR NODE FIELDS: that request was sent once, to that node's link, holds the fields, was answered.
assert_sent() {
    local request
    request=$(once send "dev=$1" "op=$2" ${3:+"sector=$3"})
    assert_contains "$request" " node=$4 slot=0 generation=1 "
    assert_contains "$request" " $5 "
    assert_answered "$request"
}

# unaccounted: bios without their part on a node or their end, requests without an answer that weren't sent again.
unaccounted() {
    awk '{
        event = ""
        split("", f)
        for (i = 1; i <= NF; i++) {
            p = index($i, "=")
            if ($i ~ /^dmdst_[a-z]+:$/) event = substr($i, 7, length($i) - 7)
            else if (event != "" && p) f[substr($i, 1, p - 1)] = substr($i, p + 1)
        }
        bio = f["dev"] " " f["op"] " " f["sector"]
        request = f["node"] " " f["slot"] " " f["generation"] " " f["cookie"] " " f["op"] " " f["offset"] " " f["length"]
        if (event == "submit") whole[bio " " f["nr_sector"]]
        if (event == "split") first[bio " " f["nr_sector"]] = f["first"]
        if (event == "send") { part[bio " " f["length"] / 512]; sent[request] }
        if (event == "reply" || event == "requeue") over[request]
        if (event == "end") ended[bio " " f["nr_sector"]]
    }
    END {
        for (key in whole) {
            split(key, w, " ")
            one = w[1] " " w[2] " " w[3] " " (key in first ? first[key] : w[4])
            if (w[2] != "FLUSH" && !(one in part)) print "no request for " one
            if (!(one in ended)) print "no end of " one
        }
        for (key in sent) if (!(key in over)) print "neither reply to nor requeue of " key
    }' "$TRACING/trace"
}

# write_piece LETTER: at the begin of dev.
write_piece() {
    piece "$1"
    timeout 150 dd if="$T/$1" of=/dev/mapper/dev bs=4k count=1 oflag=direct conv=notrunc,nocreat status=none
}
field_is() { [[ $(node_field alpha "$1") == "$2" ]]; }

# A read over the end of an extent: it is split there, and each part goes to its node and is answered, and ends. A write;
# a flush, which goes where the write went, and is nobody's.
# @timeout 400
# @only faults
test_split_send_reply() {
    make_file "$(make_image alpha 4M)" 4M
    make_file "$(make_image beta 4M)" 4M
    start_nbdkit alpha
    start_nbdkit beta
    make_device "0 16384 dst 2 alpha 0 8192 beta 0 8192"
    set_link alpha 1
    set_link beta 1
    listen
    assert_ok read_bytes 131072 $((4194304 - 65536))
    assert_ok cmp -n 65536 "$T/read" "$(node_image alpha)" 0 $((4194304 - 65536))
    assert_ok cmp -n 65536 "$T/read" "$(node_image beta)" 65536 0
    assert_ok write_piece A
    assert_ok sync /dev/mapper/dev

    assert_once submit "dev=$DEV" op=READ sector=8064 nr_sector=256
    assert_once split "dev=$DEV" op=READ sector=8064 nr_sector=256 first=128 why=extent
    assert_sent "$DEV" READ "8064" alpha "offset=4128768 length=65536"
    assert_once end "dev=$DEV" op=READ sector=8064 nr_sector=128 error=0
    assert_once submit "dev=$DEV" op=READ sector=8192 nr_sector=128
    assert_sent "$DEV" READ "8192" beta "offset=0 length=65536"
    assert_once end "dev=$DEV" op=READ sector=8192 nr_sector=128 error=0

    assert_once submit "dev=$DEV" op=WRITE sector=0 nr_sector=8
    assert_sent "$DEV" WRITE "0" alpha "offset=0 length=4096"
    assert_once end "dev=$DEV" op=WRITE sector=0 nr_sector=8 error=0
    assert_once submit "dev=$DEV" op=FLUSH
    assert_sent 0,0 FLUSH "" alpha "offset=0 length=0"
    assert_once end "dev=$DEV" op=FLUSH error=0
    assert_eq "$(traced requeue)$(traced wait)" "" "what went another way"
    assert_eq "$(unaccounted)" "" "what the trace leaves open"
}

# A write's link is lost: that it is sent again, and why, and what the loss leaves behind. The next write to that range waits
# for the fence, and says so.
# @timeout 400
test_lost_link() {
    local first second writer
    start_holding_server
    make_device "0 8192 dst 1 alpha 0 8192"
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    set_link alpha 1
    listen
    : >"$T/hold"
    write_piece A &
    writer=$!
    wait_until 30 "the server to have the write" test -e "$T/held"
    assert_ok dst-nlpoke drop node=alpha force link=0::
    wait_until 30 "the write in the queue" node_says alpha .queued 1
    set_link alpha 2
    wait $writer || fail "the write whose link was lost failed"

    first=$(once send "dev=$DEV" op=WRITE sector=0 generation=1)
    identity "$first"
    assert_contains "${ID[*]}" "node=alpha slot=0 generation=1 cookie=0x"
    assert_eq "$(traced reply "${ID[@]}")" "" "replies to what was lost"
    assert_once requeue "${ID[@]}" "dev=$DEV" sector=0 "why=link lost"
    assert_once link node=alpha slot=0 generation=1 state=lost error=125 "why=dropped on request"
    # its last step comes after the write has moved on
    wait_until 20 "the end of the lost link" has_been link node=alpha slot=0 generation=1 state=gone
    assert_once fence node=alpha slot=0 generation=1 ambiguous=1 "why=dropped on request"
    assert_once wait node=alpha "dev=$DEV" op=WRITE sector=0 "why=no link"
    assert_once link node=alpha slot=0 generation=2 state=live error=0
    second=$(once send "dev=$DEV" op=WRITE sector=0 generation=2)
    assert_contains "$second" " offset=0 length=4096 "
    assert_answered "$second"
    assert_once end "dev=$DEV" op=WRITE sector=0 nr_sector=8 error=0

    write_piece B &
    writer=$!
    wait_until 30 "the next write at the guard" field_is 13 1
    assert_once wait node=alpha "dev=$DEV" op=WRITE sector=0 "why=ambiguous"
    assert_ok dst-nlpoke fenced node=alpha force
    wait $writer || fail "the next write failed"
    assert_once fence node=alpha slot=0 generation=1 ambiguous=0 "why=fenced by the operator"
    assert_eq "$(unaccounted)" "" "what the trace leaves open"
}

# A noflush suspend takes a read off its link, which goes on: back to device-mapper, and sent again; the server answers
# both.
# @timeout 400
test_suspend() {
    local first reader
    make_file "$(make_image alpha 4M)" 4M
    start_nbdkit alpha
    make_device "0 8192 dst 1 alpha 0 8192"
    set_link alpha 1
    listen
    pause_node alpha
    read_bytes 65536 65536 &
    reader=$!
    wait_until 20 "the read on the link" on_links_are 1
    assert_ok timeout 60 dmsetup suspend --noflush dev
    first=$(once send "dev=$DEV" op=READ sector=128)
    identity "$first"
    assert_once requeue "${ID[@]}" "dev=$DEV" sector=128 why=detached
    assert_once requeue node=alpha slot=-1 generation=0 op=READ "dev=$DEV" sector=128 why=suspend
    # EREMCHG: device-mapper's word for "later"
    assert_once end "dev=$DEV" op=READ sector=128 nr_sector=128 error=78
    assert_eq "$(traced reply)" "" "replies of a stopped server"
    assert_ok dmsetup resume --noudevsync dev
    resume_node alpha
    wait $reader || fail "the read failed"
    wait_until 20 "the answer to what was detached" on_links_are 0
    assert_answered "$first"
    identity "$first"
    assert_answered "$(traced send "dev=$DEV" op=READ sector=128 | grep -vF " ${ID[3]} ")"
    assert_once end "dev=$DEV" op=READ sector=128 nr_sector=128 error=0
    assert_eq "$(unaccounted)" "" "what the trace leaves open"
}
