#!/usr/bin/env bash
# What dm-dst does while nobody asks anything of it: nothing. Uses devices.sh.

# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

# Prints the calls of dm-dst's functions from second $1 of the trace on; a call's line has its time before the colon.
calls_since() {
    awk -v from="$1" '!/^#/ { for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+:$/) { if (began == "") began = $i + 0
        if ($i - began >= from) print } }' "$TRACING/trace"
}

# An idle device of two links for a minute: no function of the module runs, after the seconds that it takes to see
# that there is nothing to wait for. What it slept through it does when it is asked again: a server that hangs is noticed.
# @timeout 400
# @only faults
test_nothing_runs_for_a_minute() {
    make_image alpha 10485760
    start_nbdkit alpha
    topology
    node alpha "" "links: 2, timeout: 2s"
    device dev
    extent alpha
    apply
    wait_until 30 "udev to have scanned it" state_is alpha live
    assert_ok udevadm settle --timeout=30
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct
    tracing || skip "no tracing here"
    defer "echo nop >$TRACING/current_tracer; echo >$TRACING/set_ftrace_filter"
    echo ':mod:dm_dst' >"$TRACING/set_ftrace_filter" || skip "no function tracer here"
    echo function >"$TRACING/current_tracer" || skip "no function tracer here"
    # the clock of the trace begins with this
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct
    sleep 70 # what is measured, not a wait for something
    assert_match "$(calls_since 0)" dmdst_map "the trace"
    assert_eq "$(calls_since 10)" "" "what ran on an idle device"
    pause_node alpha
    dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct &
    local reader=$!
    wait_until 30 "the loss of the links" state_is alpha lost
    resume_node alpha
    wait_until 60 "new links" dstd apply "$T/t.yaml"
    wait $reader || fail "the read for which the server hung failed"
}
