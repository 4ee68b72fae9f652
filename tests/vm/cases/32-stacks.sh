#!/usr/bin/env bash
# dm-crypt and md on dst devices, with ext4 on top: contents, what the nodes see of them, and md's own scrub.
# Uses trees.sh.

# shellcheck source=tests/vm/trees.sh
source "$(dirname "${BASH_SOURCE[0]}")/../trees.sh"

open_luks() { cryptsetup open --key-file "$T/key" /dev/mapper/dev secret; }

# LUKS across three servers: what is read is what was written, and no node ever sees a word of it.
test_crypt() {
    local word="a text that no node may see in clear"
    need_module dm-crypt
    three_nodes $((20 * MIB))
    topology "$(device dev alpha beta gamma)"
    assert_ok dstd apply "$T/t.yaml"
    make_file "$T/key" 64
    assert_ok cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/mapper/dev "$T/key"
    assert_ok open_luks
    assert_ok mkfs.ext4 -q -b 4096 /dev/mapper/secret
    mount_at /dev/mapper/secret "$T/mnt"
    copy_trees "$T/mnt/trees"
    yes "$word" | head -c $((20 * MIB)) >"$T/big" || true
    assert_ok cp "$T/big" "$T/mnt/big"
    assert_ok umount "$T/mnt"
    assert_fails "in use" dstd remove dev
    assert_ok cryptsetup close secret
    assert_ok dstd remove dev
    if grep -qF "$word" "$(node_image alpha)" "$(node_image beta)" "$(node_image gamma)"; then fail "a node sees the text in clear"; fi
    assert_ok dstd apply "$T/t.yaml"
    assert_ok open_luks
    assert_ok fsck.ext4 -f -n /dev/mapper/secret
    mount_at /dev/mapper/secret "$T/mnt" -o ro
    assert_trees "$T/mnt/trees"
    assert_same_bytes "$T/big" "$T/mnt/big"
}

# md FIELD: what mdadm and sysfs say of the array under test.
md_name() { basename "$(readlink -f /dev/md/mirror)"; }
md_clean() { [[ $(mdadm --detail /dev/md/mirror | awk -F' : ' '/State :/ { print $2 }') =~ ^clean\ *$ ]]; }
md_idle() { [[ $(cat "/sys/block/$(md_name)/md/sync_action") == idle ]]; }

# scrub: md compares both legs; prints how many sectors differ.
scrub() {
    echo check >"/sys/block/$(md_name)/md/sync_action"
    wait_until 60 "the end of md's check" md_idle
    cat "/sys/block/$(md_name)/md/mismatch_cnt"
}

# mirror LEG LEG: makes the array with a real first sync, puts the trees on it and scrubs.
mirror() {
    assert_ok mdadm --create /dev/md/mirror --run --homehost=any --level=1 --raid-devices=2 --metadata=1.2 "$@"
    mdadm --wait /dev/md/mirror || true # its status is 1 when there was nothing to wait for
    wait_until 60 "a clean array" md_clean
    assert_ok mkfs.ext4 -q -b 4096 /dev/md/mirror
    mount_at /dev/md/mirror "$T/mnt"
    copy_trees "$T/mnt/trees"
    sync -f "$T/mnt"
    assert_eq "$(scrub)" 0 "sectors that differ between the legs"
}

remount_mirror() {
    assert_ok umount "$T/mnt"
    assert_ok fsck.ext4 -f -n /dev/md/mirror
    mount_at /dev/md/mirror "$T/mnt" -o ro
    assert_trees "$T/mnt/trees"
    assert_ok umount "$T/mnt"
}

md_made_by_udev() { [[ -n $(md_found) && $(cat "/sys/block/$(md_found)/md/array_state") == @(clean|active|read-auto) ]]; }
md_found() { awk '/^md/ { print $1; exit }' /proc/mdstat; }

# A mirror of two devices on different servers; udev assembles it again when the devices come back, each leg
# alone holds everything, and the scrub sees a byte changed behind md's back on one node.
# @timeout 200
# @only faults
test_raid1_of_two() {
    need_module raid1
    three_nodes $((24 * MIB))
    topology "$(device left alpha)" "$(device right gamma)"
    assert_ok dstd apply "$T/t.yaml"
    mirror /dev/mapper/left /dev/mapper/right
    remount_mirror
    assert_ok mdadm --stop /dev/md/mirror
    assert_ok dstd remove left right
    assert_ok dstd apply "$T/t.yaml"
    wait_until 30 "udev to assemble the mirror" md_made_by_udev
    mount_at "/dev/$(md_found)" "$T/mnt" -o ro
    assert_trees "$T/mnt/trees"
    assert_ok umount "$T/mnt"
    scrub_sees_a_changed_byte
}

scrub_sees_a_changed_byte() {
    assert_eq "$(scrub)" 0 "sectors that differ after the array was stopped"
    printf '\xa5' | dd of="$(node_image gamma)" bs=1 seek=$((15 * MIB + 77)) conv=notrunc status=none
    printf '\x5a' | dd of="$(node_image alpha)" bs=1 seek=$((15 * MIB + 77)) conv=notrunc status=none
    (($(scrub) > 0)) || fail "the scrub did not see that the legs differ"
}

# A mirror of a device over three nodes and a local disk; then the local disk fails and the nodes serve alone.
# @timeout 200
# @only faults
test_raid1_with_local() {
    need_module raid1
    three_nodes $((8 * MIB))
    topology "$(device dev alpha beta gamma)"
    assert_ok dstd apply "$T/t.yaml"
    mirror /dev/mapper/dev "$(scratch 0)"
    assert_ok mdadm /dev/md/mirror --fail "$(scratch 0)"
    remount_mirror
}
