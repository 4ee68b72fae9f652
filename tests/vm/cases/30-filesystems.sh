#!/usr/bin/env bash
# ext4 and xfs on devices that span nodes of three kinds: real trees of files, checks by the file systems' own
# tools, space given back to the nodes, and data that outlives the device. Uses trees.sh.

# shellcheck source=tests/vm/trees.sh
source "$(dirname "${BASH_SOURCE[0]}")/../trees.sh"

# fill_and_trim: a large file comes and goes on the mounted $T/mnt; its space must return to every node.
fill_and_trim() {
    local size=$1 node before=() after=() i=0
    make_file "$T/big" "$size"
    assert_ok cp "$T/big" "$T/mnt/big"
    assert_ok umount "$T/mnt"
    mount_at /dev/mapper/dev "$T/mnt"
    assert_same_bytes "$T/big" "$T/mnt/big"
    for node in alpha beta gamma; do before+=("$(used "$node")"); done
    rm "$T/mnt/big"
    sync -f "$T/mnt"
    assert_ok fstrim -v "$T/mnt"
    for node in alpha beta gamma; do after+=("$(used "$node")"); done
    echo "allocated before fstrim: ${before[*]}, after: ${after[*]}"
    local freed=$((before[0] + before[1] + before[2] - after[0] - after[1] - after[2]))
    ((freed > size * 9 / 10)) || fail "fstrim freed $freed bytes on the nodes, of a file of $size"
    for i in 0 1 2; do
        ((before[i] > after[i])) || fail "fstrim freed nothing on node number $i: ${before[i]} -> ${after[i]}"
    done
}

# ext4 across three servers: trees, fsck, fstrim, and all of it again after the device was removed and made anew.
test_ext4() {
    three_nodes $((24 * MIB))
    topology "$(device dev alpha beta gamma)"
    assert_ok dstd apply "$T/t.yaml"
    assert_ok mkfs.ext4 -q -b 4096 /dev/mapper/dev
    mount_at /dev/mapper/dev "$T/mnt"
    copy_trees "$T/mnt/trees"
    fill_and_trim $((44 * MIB))
    assert_fails "in use" dstd remove dev
    assert_ok umount "$T/mnt"
    assert_ok fsck.ext4 -f -n /dev/mapper/dev
    assert_ok dstd remove dev
    assert_contains "$(dmsetup ls)" "No devices found"
    assert_ok dstd apply "$T/t.yaml"
    mount_at /dev/mapper/dev "$T/mnt" -o ro
    assert_trees "$T/mnt/trees"
    cat "$(node_image alpha)" "$(node_image beta)" "$(node_image gamma)" >"$T/whole"
    assert_ok fsck.ext4 -f -n "$T/whole"
    mount_at "$T/whole" "$T/local" -o loop,ro,noload
    assert_trees "$T/local/trees"
}

# xfs across three servers: its log, its trees, xfs_repair and fstrim.
test_xfs() {
    three_nodes $((110 * MIB))
    topology "$(device dev alpha beta gamma)"
    assert_ok dstd apply "$T/t.yaml"
    assert_ok mkfs.xfs -q -d agcount=3 /dev/mapper/dev
    mount_at /dev/mapper/dev "$T/mnt"
    copy_trees "$T/mnt/trees"
    spread_files 5
    assert_ok umount "$T/mnt"
    assert_ok xfs_repair -n /dev/mapper/dev
    mount_at /dev/mapper/dev "$T/mnt"
    assert_trees "$T/mnt/trees"
    trim_spread
    assert_ok umount "$T/mnt"
    assert_ok xfs_repair -n /dev/mapper/dev
}

# xfs puts new directories into its allocation groups in turn, and the three of them lie on three nodes.
spread_files() {
    local i
    make_file "$T/big" $(($1 * MIB))
    for i in {1..8}; do
        mkdir "$T/mnt/d$i"
        cp "$T/big" "$T/mnt/d$i/big"
    done
}

trim_spread() {
    local i node
    for i in {1..8}; do assert_same_bytes "$T/big" "$T/mnt/d$i/big"; done
    declare -A held
    for node in alpha beta gamma; do held[$node]=$(used "$node"); done
    rm -r "$T"/mnt/d?
    # xfs gives an unlinked file's blocks back in the background (xfs_inodegc_queue), and only an unmount waits for that
    assert_ok umount "$T/mnt"
    mount_at /dev/mapper/dev "$T/mnt"
    assert_ok fstrim -v "$T/mnt"
    for node in alpha beta gamma; do
        ((${held[$node]} - $(used "$node") > 2 * MIB)) ||
            fail "fstrim freed too little on $node: ${held[$node]} -> $(used "$node")"
    done
}
