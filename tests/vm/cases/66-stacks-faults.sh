#!/usr/bin/env bash
# Faults below md, LVM, multipath and ext4: each finds in DST what it builds upon. md is told at once of a node that is gone and
# takes it back, and so does a RAID LV, which is also repaired without it; pvmove goes on where it was; multipath goes over to the
# other path without a stale write; ext4 under `queue` sees only a pause.

# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/power.sh
source "$(dirname "${BASH_SOURCE[0]}")/../power.sh"

# files DIR: a program that writes files there and fsyncs each, in the background until stop_files; sets FILES.
files() {
    rm -f "$T/stop"
    dst-durable run --target "$1" --ledger "$T/ledger" --batch 4 --stop-file "$T/stop" >"$T/said" 2>&1 9>&- &
    export FILES=$!
    wait_until 120 "files" confirmed_at_least 8
}
confirmed() { cut -d' ' -f2 "$T/ledger"; }
confirmed_at_least() { [[ -s $T/ledger ]] && (($(confirmed) >= $1)); }
# more_files: some more are confirmed than now.
more_files() { wait_until 240 "more files" confirmed_at_least $(($(confirmed) + 8)); }
# stop_files: it ends, and has seen no error.
stop_files() {
    touch "$T/stop"
    wait "$FILES" || fail "$(cat "$T/said")"
    assert_contains "$(cat "$T/said")" ": stopped" "what the program saw"
}

# holds_files DISK [OPTION]: its file system is whole, with all that the program was told is durable.
holds_files() {
    assert_ok e2fsck -f -n "$1"
    assert_ok mount -o "ro${2:+,$2}" "$1" "$T/mnt"
    assert_ok dst-durable verify --target "$T/mnt/files" --ledger "$T/ledger"
    assert_ok umount "$T/mnt"
}

# ---- md ----

md_name() { basename "$(readlink -f /dev/md/mirror)"; }
md_says() { [[ $(<"/sys/block/$(md_name)/md/$1") == "$2" ]]; }
leg_is() { mdadm --detail /dev/md/mirror | grep "/dev/$(basename "$(readlink -f "/dev/mapper/$1")")\$" | grep -q "$2"; }
whole() { md_says degraded 0 && md_says sync_action idle; }

# A mirror over two nodes with policy error: when one is gone the array goes on with the other, at once; the node comes back,
# is added again and brought up to date; then it alone holds everything.
# @timeout 600
test_raid1_loses_a_node_and_gets_it_back() {
    local name
    need_module raid1
    topology
    for name in alpha beta; do
        make_image $name 24M >/dev/null
        start_export $name
        node $name "" "policy: error"
    done
    device left
    extent alpha
    device right
    extent beta
    keep
    assert_ok mdadm --create /dev/md/mirror --run --homehost=any --level=1 --raid-devices=2 --metadata=1.2 \
        --bitmap=internal /dev/mapper/left /dev/mapper/right
    wait_until 120 "the first resync" whole
    assert_ok mkfs.ext4 -q -b 4096 /dev/md/mirror
    mkdir "$T/mnt"
    assert_ok mount /dev/md/mirror "$T/mnt"
    mkdir "$T/mnt/files"
    files "$T/mnt/files"
    kill_node alpha
    wait_until 30 "the array to go on with one leg" md_says degraded 1
    assert_ok leg_is left faulty
    more_files
    start_export alpha
    wait_until 120 "alpha to come back" is_live alpha
    assert_ok mdadm /dev/md/mirror --remove /dev/mapper/left
    assert_ok mdadm /dev/md/mirror --re-add /dev/mapper/left
    wait_until 120 "the resync" whole
    more_files
    stop_files
    echo check >"/sys/block/$(md_name)/md/sync_action"
    wait_until 120 "the end of md's check" md_says sync_action idle
    assert_eq "$(<"/sys/block/$(md_name)/md/mismatch_cnt")" 0 "sectors that differ between the legs"
    assert_ok mdadm /dev/md/mirror --fail /dev/mapper/right
    assert_ok umount "$T/mnt"
    echo 3 >/proc/sys/vm/drop_caches
    holds_files /dev/md/mirror
}

# ---- LVM ----

# raid_lv [NODE]: vg/lv, a mirror of 32 MiB over two nodes with policy error, in sync and with files being written on it; NODE's
# device is one more in the group.
raid_lv() {
    local name
    need_module dm-raid
    topology
    for name in alpha beta "$@"; do
        make_image "$name" 40M >/dev/null
        start_export "$name"
        node "$name" "" "policy: error"
    done
    for name in alpha beta "$@"; do
        device "on-$name"
        extent "$name"
    done
    keep
    assert_ok vgcreate -s 1M vg /dev/mapper/on-alpha /dev/mapper/on-beta "${@/#//dev/mapper/on-}"
    assert_ok lvcreate -y --type raid1 -m 1 -n lv -L 32M vg /dev/mapper/on-alpha /dev/mapper/on-beta
    wait_until 120 "the first resync" raid_whole
    assert_ok mkfs.ext4 -q -b 4096 /dev/vg/lv
    mkdir "$T/mnt"
    assert_ok mount /dev/vg/lv "$T/mnt"
    mkdir "$T/mnt/files"
    files "$T/mnt/files"
}

# legs_are LETTERS: one for each leg in dm-raid's status: A alive, a alive and not in sync, D dead.
legs_are() { [[ $(dmsetup status vg-lv | awk '{ print $6 }') == "$1" ]]; }
raid_whole() { dmsetup status vg-lv | awk '{ split($7, in_sync, "/"); exit !($6 == "AA" && $8 == "idle" && in_sync[1] == in_sync[2]) }'; }
lv_health() { lvs --noheadings -o lv_health_status vg/lv 2>/dev/null | tr -d ' '; }

# The program has seen no error, and the legs are the same to md's scrub. Then the LV is switched off.
raid_is_right() {
    more_files
    stop_files
    assert_ok lvchange --syncaction check vg/lv
    wait_until 120 "the end of the check" raid_whole
    assert_eq "$(lvs --noheadings -o raid_mismatch_count vg/lv | tr -d ' ')" 0 "sectors that differ between the legs"
    assert_ok umount "$T/mnt"
    assert_ok vgchange -an vg
}

# leg_holds N NODE: what lies in the file behind NODE, where leg N is, is the whole file system with all that was confirmed.
leg_holds() {
    local where first
    where=$(lvs -a --noheadings -o seg_pe_ranges "vg/lv_rimage_$1" | tr -d ' ')
    assert_eq "${where%:*}" "/dev/mapper/on-$2" "where leg $1 lies"
    first=${where##*:}
    first=$((${first%-*} + $(pvs --noheadings --units m --nosuffix -o pe_start "${where%:*}" | tr -d ' ' | cut -d. -f1)))
    assert_ok dd if="$(node_image "$2")" of="$T/leg" bs=1M skip=$first count=32 status=none
    holds_files "$T/leg" loop
}

# One node dies and the LV goes on with the other; the node comes back, LVM says that the LV wants a refresh, and that brings the
# leg up to date.
# @timeout 600
# @only faults
test_raid_lv_loses_a_node_and_gets_it_back() {
    raid_lv
    kill_node alpha
    wait_until 30 "the LV to go on with one leg" legs_are DA
    more_files
    start_export alpha
    wait_until 120 "alpha to come back" is_live alpha
    more_files
    assert_ok legs_are DA
    assert_eq "$(lv_health)" refreshneeded "health of the LV"
    assert_ok lvchange --refresh vg/lv
    wait_until 120 "the resync" raid_whole
    assert_eq "$(lv_health)" "" "health of the LV after the resync"
    raid_is_right
    leg_holds 0 alpha
    leg_holds 1 beta
}

# A node dies for good: LVM puts another one's device in its place under I/O, and lets the dead one's go.
# @timeout 600
# @only faults
test_raid_lv_is_repaired_without_the_dead_node() {
    raid_lv gamma
    kill_node beta
    wait_until 30 "the LV to go on with one leg" legs_are AD
    more_files
    assert_eq "$(lv_health)" partial "health of the LV"
    assert_ok lvconvert -y --repair vg/lv /dev/mapper/on-gamma
    wait_until 120 "the resync" raid_whole
    assert_ok vgreduce --removemissing vg
    assert_eq "$(pvs --noheadings -o pv_name -S vg_name=vg 2>/dev/null | xargs)" "/dev/mapper/on-alpha /dev/mapper/on-gamma" "what the group has"
    raid_is_right
    leg_holds 0 alpha
    leg_holds 1 gamma
}

# An LV is moved off a node that dies in the midst of it and comes back: under `queue` pvmove waits and goes on, and then nothing
# needs that node any more.
# @timeout 400
# @only faults
test_pvmove_off_a_dying_node() {
    local name moving
    topology
    for name in alpha beta; do make_image $name 40M >/dev/null; done
    start_nbdkit alpha
    # slow, else the move would be over before the node can die
    slow_beta
    for name in alpha beta; do node $name; done
    for name in alpha beta; do
        device on-$name
        extent $name
    done
    keep
    assert_ok vgcreate -s 1M vg /dev/mapper/on-alpha /dev/mapper/on-beta
    assert_ok lvcreate -y -n lv -L 32M vg /dev/mapper/on-beta
    assert_ok mkfs.ext4 -q -b 4096 /dev/vg/lv
    mkdir "$T/mnt"
    assert_ok mount /dev/vg/lv "$T/mnt"
    mkdir "$T/mnt/files"
    files "$T/mnt/files"
    timeout 300 pvmove -i 1 /dev/mapper/on-beta >"$T/pvmove" 2>&1 9>&- &
    moving=$!
    wait_until 60 "the move to have copied something" has_copied
    kill_node beta
    wait_until 60 "I/O that waits for beta" waits_for_beta
    assert_ok moves
    slow_beta
    wait $moving || fail "pvmove failed: $(cat "$T/pvmove")"
    assert_eq "$(lvs --noheadings -o devices vg/lv | tr -d ' ')" "/dev/mapper/on-alpha(0)" "where the LV lies"
    assert_ok vgreduce vg /dev/mapper/on-beta
    kill_node beta
    more_files
    stop_files
    assert_ok umount "$T/mnt"
    holds_files /dev/vg/lv
}
slow_beta() { start_nbdkit beta --filter=delay file "$(node_image beta)" rdelay=200ms; }
moves() { dmsetup info vg-pvmove0; }
# dm-mirror's status: the regions that are done, of all.
has_copied() { dmsetup status vg-pvmove0 | grep -qE ' [1-9][0-9]*/[0-9]+ '; }
waits_for_beta() { (($(node_field beta 5 on-beta) > 0)); }

# ---- multipath ----

# two_paths [ARG...]: one dstd export (with these arguments), reached as node one over one network and as node two over
# another; device mp goes over either.
two_paths() {
    need_module dm-multipath
    need_module dm-round-robin
    make_image alpha 4M >/dev/null
    start_export alpha "alpha=$(node_image alpha)" "$@"
    ip link add vh99 type veth peer name eth1 netns n-alpha
    ip addr add 10.78.1.1/24 dev vh99
    ip link set vh99 up
    in_node alpha ip link set eth1 up
    in_node alpha ip addr add 10.78.1.2/24 dev eth1
    # one after the other: each has been live once, so that its policy counts
    paths one
    keep
    paths one two
    kill -HUP "$DAEMON"
    wait_until 60 "the second path to take over" is_live two
    [[ $* == --shared ]] || wait_until 60 "the end of the first" is_lost one
    modprobe dm-round-robin
    defer "dmsetup message mp 0 fail_if_no_path; dmsetup remove --retry mp"
    assert_ok dmsetup create mp --table "0 8192 multipath 3 queue_if_no_path queue_mode bio 0 2 1 \
        round-robin 0 1 1 $(number via-one) 1 round-robin 0 1 1 $(number via-two) 1"
    assert_ok udevadm settle --timeout=60
}

# paths NODE...: a topology of these, each with its device.
paths() {
    local name address
    address=$(node_addr alpha)
    topology
    for name; do
        node "$name" "nbd://$address/alpha" "policy: error, timeout: 2s"
        address=10.78.1.2
    done
    for name; do
        device "via-$name"
        extent "$name"
    done
}
number() { dmsetup info -c --noheadings --separator : -o major,minor "$1"; }

# What multipathd does: a path whose node has links again may be used again.
check_paths() {
    until [[ -e $T/stop ]]; do
        if is_live one; then dmsetup message mp 0 reinstate_path "$(number via-one)" || true; fi
        if is_live two; then dmsetup message mp 0 reinstate_path "$(number via-two)" || true; fi
        sleep 0.3
    done
}

# fail_over ROUNDS: the network of the path in use delays what is sent by ten seconds, so that its link times out and its writes
# arrive when the other path has long been used; again and again, under the checker. Ends with the checker's status.
fail_over() {
    local round active checker paths sent queued
    rm -f "$T/stop"
    dst-checker --device /dev/mapper/mp --hot 256 --regions 4 --threads 8 --stop-file "$T/stop" >"$T/verdict" 2>&1 9>&- &
    checker=$!
    check_paths &
    paths=$!
    for ((round = 1; round <= $1; round++)); do
        wait_until 120 "a live path with requests" find_active
        active=$ACTIVE
        assert_ok tc qdisc add dev "$active" root netem delay 10s limit 10000
        wait_until 120 "the other path" other_is_busy "$active"
        # what is delayed comes in its own time, behind newer writes, and must do nothing
        read -r sent queued < <(packets "$active")
        wait_until 60 "the delayed packets to arrive" has_sent "$active" $((sent + queued))
        assert_ok tc qdisc del dev "$active" root
        kill -0 $checker 2>/dev/null || break
    done
    touch "$T/stop"
    RC=0
    wait $checker || RC=$?
    cat "$T/verdict"
    wait $paths
    FAILED=$(klog | grep -c "Failing path" || true)
}
path_is_busy() { is_live "$1" && (($(node_field "$1" 4 "via-$1") > 0)); }
# find_active: sets ACTIVE to the network of the path in use.
find_active() { { path_is_busy one && ACTIVE=vh1; } || { path_is_busy two && ACTIVE=vh99; }; }
other_is_busy() { if [[ $1 == vh1 ]]; then path_is_busy two; else path_is_busy one; fi; }
# packets DEVICE: those that its qdisc has sent, and has yet to send.
packets() { tc -s -j qdisc show dev "$1" root | jq -r '.[0] | "\(.packets) \(.qlen)"'; }
has_sent() { (($(packets "$1" | cut -d' ' -f1) >= $2)); }

# Two paths to one `dstd export`: the one that takes over has the other's links cut and waits for what they carried, so nothing
# that comes late over the old path changes anything.
# @only faults
# @timeout 600
test_multipath_fails_over() {
    two_paths
    fail_over 4
    assert_eq "$RC" 0 "the checker's verdict ($(tail -c 600 "$T/verdict"))"
    ((FAILED >= 4)) || fail "only $FAILED paths failed"
    echo "figure: $FAILED times over to the other path: $(grep -o '"ops":[0-9]*\|"bytes_verified":[0-9]*\|"longest_stall_ms":[0-9]*' "$T/verdict" | paste -sd' ')"
}

# The same with an export that is `shared`, where no path takes over from the other: the late writes count, and the
# checker sees it. (Shows that the test above can fail, and why docs/failures.md says "not shared".)
# @only faults
# @timeout 600
test_multipath_over_a_shared_export_is_stale() {
    two_paths --shared
    fail_over 4
    assert_eq "$RC" 1 "the checker's verdict ($(tail -c 600 "$T/verdict"))"
}

# ---- ext4 ----

# ext4 under policy queue sees a server that dies, and comes back, only as a pause.
# @timeout 400
test_ext4_sees_only_a_pause() {
    make_image alpha 40M >/dev/null
    start_export alpha
    topology
    node alpha "" "links: 2"
    device dev
    extent alpha
    keep
    assert_ok mkfs.ext4 -q -b 4096 /dev/mapper/dev
    mkdir "$T/mnt"
    assert_ok mount /dev/mapper/dev "$T/mnt"
    mkdir "$T/mnt/files"
    files "$T/mnt/files"
    for _ in 1 2 3; do
        kill_node alpha
        wait_until 30 "I/O that waits" something_waits
        start_export alpha
        wait_until 120 "alpha to come back" is_live alpha
        more_files
    done
    stop_files
    assert_ok umount "$T/mnt"
    holds_files /dev/mapper/dev
    if klog | grep -E "EXT4-fs (error|warning)|JBD2:.*error|I/O error"; then fail "ext4 saw more than a pause"; fi
    assert_eq "$(losses)" 0 "losses"
}
something_waits() { (($(node_field alpha 5) > 0)); }
