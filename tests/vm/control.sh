#!/usr/bin/env bash
# What the tests of control share: all that dstd could have changed, as text; refusals, which must change none
# of it; verified I/O for as long as something takes. Sourced by their files. Needs dst-nlpoke.

# Devices, their tables, nodes, their links and generations (but not what I/O counts).
snapshot() {
    dmsetup info -c --noheadings -o name,uuid,major,minor,suspended,segments --sort name
    dmsetup table
    dmsetup table --inactive
    dst-nlpoke dump | jq -S 'del(.in_flight, .queued, .barred, .writes, .merged, .queue_time, .latency, .unfenced[].quiet_in_ms, .links[].received, .links[].sent, .links[].in_flight)'
}

# calm_snapshot: also sees a table that was switched for an equal one (a resume makes a uevent). Only while nobody
# writes: the end of a writer makes one, too.
calm_snapshot() {
    udevadm settle --timeout=30
    snapshot
    cat /sys/kernel/uevent_seqnum
}

# refused STATUS TEXT COMMAND...: it ends with both, and nothing has changed.
refused() { leaves calm_snapshot "devices, nodes and uevents" "$@"; }

# refused_in_use STATUS TEXT COMMAND...: the same, while others write.
refused_in_use() { leaves snapshot "devices and nodes" "$@"; }

# leaves SNAPSHOT WHAT STATUS TEXT COMMAND...: the command ends with both, and that snapshot, of WHAT, is the same.
leaves() {
    local snapshot=$1 what=$2 status=$3 text=$4 before
    shift 4
    before=$("$snapshot")
    run "$@"
    assert_eq "$RC" "$status" "the status of '$*' ($OUT)"
    assert_contains "$OUT" "$text" "the text of '$*'"
    assert_eq "$("$snapshot")" "$before" "$what after '$*'"
}

# node_says NODE JQ VALUE: whether the kernel says that of the node.
node_says() { [[ $(dst-nlpoke get "node=$1" | jq -r "$2") == "$3" ]]; }

# A time in milliseconds that is never over.
# shellcheck disable=SC2034 # of those who source this
NEVER=4294967295

# on_links: requests that alpha's links have not been answered, also those that no bio waits for any more.
on_links() { dst-nlpoke get node=alpha | jq '[.links[].in_flight] | add'; }
on_links_are() { [[ $(on_links) == "$1" ]]; }

# piece LETTER [BYTES]: $T/LETTER, by default 4 KiB of that letter.
piece() { head -c "${2:-4096}" /dev/zero | tr '\0' "$1" >"$T/$1"; }

# read_bytes BYTES OFFSET: of dev, direct, to $T/read.
read_bytes() { timeout 150 dd if=/dev/mapper/dev of="$T/read" bs="$1" count=1 skip="$2" iflag=direct,skip_bytes status=none; }

# let_udev_scan DEVICE: udev has read it, as it does once all its nodes have been live. That it has settled alone can
# mean that it hasn't heard of it yet; later its read would be one more in flight.
let_udev_scan() {
    wait_until 30 "udev to have scanned $1" scanned "/dev/mapper/$1"
    assert_ok udevadm settle --timeout=30
}
scanned() { udevadm info "$1" | grep -q '^E: DST_WAS_READY=1'; }

# start_verify JOBS: fio verifies device dev by these jobs, pass after pass, until stop_verify; sets VERIFY.
start_verify() {
    printf '%s\n' '[global]' filename=/dev/mapper/dev rw=randwrite verify=crc32c loops=2 group_reporting allow_file_create=0 "$1" >"$T/jobs"
    rm -f "$T/stop"
    : >"$T/passes"
    verify_passes &
    VERIFY=$!
}

verify_passes() {
    while [[ ! -e $T/stop ]]; do
        fio --output="$T/fio" "$T/jobs" >>"$T/passes" 2>&1 || exit
        echo "pass" >>"$T/passes"
    done
}

# verify_goes_on: no error so far.
verify_goes_on() { kill -0 "$VERIFY" 2>/dev/null || fail "I/O failed: $(cat "$T/passes" "$T/fio")"; }

# stop_verify: the last pass ends; nothing may have failed.
stop_verify() {
    touch "$T/stop"
    wait "$VERIFY" || fail "I/O failed: $(cat "$T/passes" "$T/fio")"
    assert_contains "$(cat "$T/passes")" pass "what fio did"
}

# direct_job SIZE: one direct job at depth 16 on the first SIZE of the device; no two writes under way overlap.
direct_job() {
    printf '%s\n' '[direct]' direct=1 ioengine=libaio iodepth=16 bsrange=512-128k blockalign=512 serialize_overlap=1 "size=$1"
}
