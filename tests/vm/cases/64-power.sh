#!/usr/bin/env bash
# Servers that lose power: what fsync has confirmed is there, or an fsync said EIO on each device, once. The nodes are
# machines with disks that forget what wasn't flushed (power.sh); dstd keeps the links. One test shows what a
# server that can't say who it is may lose silently, and so that the others can fail.

# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/power.sh
source "$(dirname "${BASH_SOURCE[0]}")/../power.sh"

# two_devices SERVER [OPTIONS]: left and right, 4 MiB each, on one node.
two_devices() {
    make_machine alpha $((8 * MIB)) "$1"
    topology
    node alpha "" "${2:-}"
    device left
    extent alpha 0 8192
    device right
    extent alpha 8192 8192
    keep
}

# put DEVICE BLOCK LETTER: 4 KiB of it, acknowledged, not flushed.
put() {
    head -c 4096 /dev/zero | tr '\0' "$3" >"$T/$3"
    assert_ok dd if="$T/$3" of="/dev/mapper/$1" bs=4k seek="$2" oflag=direct conv=notrunc,nocreat status=none
}
# holds DEVICE BLOCK LETTER
holds() {
    dd if="/dev/mapper/$1" bs=4k skip="$2" count=1 iflag=direct status=none | cmp - "$T/$3" ||
        fail "$1 does not hold $3 in block $2"
}

# told_once DEVICE...: each fails one flush, and only one.
told_once() {
    local dev
    for dev; do assert_fails "Input/output error" sync "/dev/mapper/$dev"; done
    for dev; do assert_ok sync "/dev/mapper/$dev"; done
}

# dirty_both: B is durable nowhere, A is; Z is what was there before.
dirty_both() {
    local dev
    head -c 4096 /dev/zero >"$T/Z"
    for dev in left right; do
        put "$dev" 0 A
        assert_ok sync "/dev/mapper/$dev"
    done
    assert_eq "$(unflushed alpha)" 0 "unflushed writes after the flush"
    for dev in left right; do put "$dev" 8 B; done
    assert_eq "$(unflushed alpha)" 2 "unflushed writes"
}

# A machine loses power with unflushed writes of two devices: each fails its next flush, once, also when its table was
# loaded anew meanwhile; what was flushed is there. With nothing unflushed nobody is told anything.
# @timeout 300
test_each_device_is_told_once() {
    local dev
    two_devices export
    dirty_both
    outage alpha
    assert_contains "$(klog)" "2 acknowledged writes are lost"
    wait_until 20 "the daemon to say so" grep -q "acknowledged" "$T/dstd.log"
    for dev in left right; do
        assert_ok dmsetup load "$dev" --table "$(dmsetup table "$dev")"
        assert_ok dmsetup suspend --noflush "$dev"
        assert_ok dmsetup resume "$dev"
    done
    told_once left right
    for dev in left right; do
        holds "$dev" 0 A
        # the machine did forget it: else this test would show nothing
        holds "$dev" 8 Z
        put "$dev" 8 C
        assert_ok sync "/dev/mapper/$dev"
    done
    outage alpha
    for dev in left right; do
        assert_ok sync "/dev/mapper/$dev"
        holds "$dev" 0 A
        holds "$dev" 8 C
    done
    assert_eq "$(losses)" 1 "losses"
}

# A server restart on a machine that goes on loses nothing, and nobody is told anything.
# @only faults
# @timeout 300
test_a_restart_is_no_loss() {
    two_devices export
    dirty_both
    kill_node alpha
    wait_until 60 "the loss of alpha" is_lost alpha
    start_machine_server alpha
    wait_until 120 "alpha to come back" is_live alpha
    assert_ok sync /dev/mapper/left
    assert_ok sync /dev/mapper/right
    holds left 8 B
    holds right 8 B
    assert_eq "$(losses)" 0 "losses"
}

# A stock server can't say that its machine lost power. Trusted, it loses acknowledged writes and nobody hears of it
# (which also shows that the other tests' machines do lose them); with unknown_restart eio each device is told, once.
# @only faults
# @timeout 400
test_stock_server_trusted_or_not() {
    two_devices nbdkit "unknown_restart: trust"
    dirty_both
    assert_eq "$(node_field alpha 12 left)" trust "how a restart would be seen"
    outage alpha
    assert_ok sync /dev/mapper/left
    assert_ok sync /dev/mapper/right
    holds left 8 Z
    holds left 0 A
    assert_eq "$(losses)" 0 "losses seen with trust"

    sed -i "s/unknown_restart: trust/unknown_restart: eio/" "$T/t.yaml"
    kill -HUP "$DAEMON"
    wait_until 30 "the change" node_is_not_trusted
    dirty_both
    outage alpha
    told_once left right
    holds left 0 A
    assert_eq "$(losses)" 1 "losses"
    # nothing unflushed, nothing to tell
    outage alpha
    assert_ok sync /dev/mapper/left
    assert_ok sync /dev/mapper/right
}
node_is_not_trusted() { [[ $(node_field alpha 12 left) == eio ]]; }

# ---- programs that live by fsync ----

# workload NAME TARGET ROUND BATCH: in the background; its ledger is $T/NAME.ledger, what it ended with $T/NAME.said.
workload() {
    rm -f "$T/$1.ledger" "$T/stop"
    dst-durable run --target "$2" --ledger "$T/$1.ledger" --seed "$3" --batch "$4" --slots 128 --stop-file "$T/stop" \
        >"$T/$1.said" 2>&1 9>&- &
}
confirmed() { cut -d' ' -f2 "$T/$1.ledger"; }
has_confirmed() { [[ -s $T/$1.ledger ]] && (($(confirmed "$1") >= $2)); }
has_ended() { [[ -s $T/$1.said ]]; }

# Two devices of a node, each with a program that fsyncs, over power failures in the midst of it: each program is told
# of each, and nothing that was confirmed is missing.
# @only faults
# @timeout 900
test_fsync_of_two_devices() {
    local round dev
    two_devices export
    for round in 1 2 3; do
        for dev in left right; do workload "$dev" "/dev/mapper/$dev" "$round" 6; done
        for dev in left right; do wait_until 120 "records on $dev" has_confirmed "$dev" 24; done
        wait_until 120 "a moment with unflushed writes" held_while_dirty alpha
        outage alpha
        for dev in left right; do wait_until 120 "the program on $dev to be told" has_ended "$dev"; done
        wait_until 30 "the programs' ends" no_workload
        for dev in left right; do
            assert_contains "$(cat "$T/$dev.said")" "Input/output error" "what $dev's program was told"
            assert_ok dst-durable verify --target "/dev/mapper/$dev" --ledger "$T/$dev.ledger" --seed "$round" --slots 128
            assert_ok sync "/dev/mapper/$dev"
        done
        assert_eq "$(losses)" "$round" "losses"
    done
}
no_workload() { ! pgrep -x dst-durable; }

# ext4 with a program that fsyncs, over power failures: the file system stops at the first flush, none of the files that
# were confirmed is missing, and what e2fsck has to do is what it does by itself.
# @timeout 900
test_fsync_on_ext4() {
    local round past
    make_machine alpha $((40 * MIB))
    topology
    node alpha
    device dev
    extent alpha
    keep
    assert_ok mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/dev
    mkdir "$T/mnt"
    for round in 1 2; do
        assert_ok mount /dev/mapper/dev "$T/mnt"
        mkdir "$T/mnt/$round"
        # one file after the other: then each flush is one of the journal's, which stops at an error
        workload "$round" "$T/mnt/$round" "$round" 1
        wait_until 240 "files" has_confirmed "$round" 12
        wait_until 120 "a moment with unflushed writes" held_while_dirty alpha
        outage alpha
        wait_until 120 "the program to be told" has_ended "$round"
        wait_until 30 "the program's end" no_workload
        assert_match "$(cat "$T/$round.said")" "Input/output error|Read-only file system" "what the program was told"
        assert_contains "$(klog)" "Aborting journal on device"
        assert_ok umount "$T/mnt"
        run e2fsck -p /dev/mapper/dev
        ((RC <= 1)) || fail "e2fsck -p ended with $RC: $OUT"
        assert_ok e2fsck -f -n /dev/mapper/dev
        assert_ok mount /dev/mapper/dev "$T/mnt"
        for ((past = 1; past <= round; past++)); do
            assert_ok dst-durable verify --target "$T/mnt/$past" --ledger "$T/$past.ledger" --seed "$past"
        done
        assert_ok umount "$T/mnt"
        assert_eq "$(losses)" "$round" "losses"
    done
}

# The node's disk as it was at each FLUSH that reached it: ext4 mounts there, e2fsck finds nothing wrong, and each
# file is there that had been confirmed by then.
# @only faults
# @timeout 900
test_every_flush_point_mounts() {
    local points=0 at=0 entry flags text begin=0 known=0
    make_machine alpha $((24 * MIB))
    topology
    node alpha
    device dev
    extent alpha
    keep
    assert_ok mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/dev
    mkdir "$T/mnt" "$T/past"
    assert_ok mount /dev/mapper/dev "$T/mnt"
    mkdir "$T/mnt/files"
    assert_ok sync -f "$T/mnt"
    assert_ok dmsetup message srv-alpha 0 mark begin
    assert_ok dst-durable run --target "$T/mnt/files" --ledger "$T/ledger" --batch 3 --batches "${BATCHES:-8}" \
        --on-commit "dmsetup message srv-alpha 0 mark"
    echo "$OUT"
    assert_ok umount "$T/mnt"
    cp --sparse=always "$T/alpha.durable" "$T/replayed"
    power_off alpha
    dst-log list "$T/alpha.log" >"$T/list"
    while read -r entry _ _ flags text; do
        case $text in
        begin) begin=1 ;;
        power-off) break ;;
        [0-9]*) known=$text ;;
        esac
        [[ $flags == *flush* && $begin == 1 ]] || continue
        at=$(dst-log replay "$T/alpha.log" "$T/replayed" --from "$at" --to $((entry + 1)))
        flush_point_is_good "$known"
        points=$((points + 1))
    done <"$T/list"
    echo "figure: $points flush points, $known files"
    ((points >= known / 2)) || fail "only $points flush points for $known files"
    power_on alpha
    wait_until 120 "alpha to come back" is_live alpha
}

# flush_point_is_good FILES
flush_point_is_good() {
    cp --sparse=always "$T/replayed" "$T/copy"
    assert_ok mount -o loop "$T/copy" "$T/past"
    assert_ok dst-durable verify --target "$T/past/files" --ledger "$T/ledger" --upto "$1"
    assert_ok umount "$T/past"
    assert_ok e2fsck -f -n "$T/copy"
}
