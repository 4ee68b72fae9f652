#!/usr/bin/env bash
# Owns what tests of stacks share: a topology out of the nodes that run, a real tree of files, and proofs
# that files or devices hold what they should. Sourced by cases of file systems, LVM, crypt and md, after lib.sh.
# Starts no server and removes nothing: that is nodes.sh's and cleanup.sh's.

MIB=$((1024 * 1024))

# Small files, links, directories and some megabytes of binaries.
TREES=(/usr/share/zoneinfo/Europe /usr/lib/python3.11/encodings /usr/lib/python3.11/lib-dynload)

# topology DEVICE_LINE...: writes $T/t.yaml with every node that has a server, and these lines below "devices:".
topology() {
    local dir
    {
        echo "version: 1"
        echo "nodes:"
        for dir in "$T"/nodes/*; do echo "  ${dir##*/}: {uri: \"$(<"$dir/uri")\", links: 2}"; done
        (($# == 0)) || printf '%s\n' "devices:" "$@"
    } >"$T/t.yaml"
}

# device NAME NODE...: a line for topology: whole nodes, end to end.
device() {
    local name=$1 items="" node
    shift
    for node; do items+="${items:+, }{dst: {node: $node}}"; done
    echo "  $name: {table: [$items]}"
}

# three_nodes BYTES: alpha, beta and gamma, one of each kind, of about this size and all of different odd ones.
three_nodes() {
    make_image alpha $(($1 + 512)) >/dev/null
    make_image beta $(($1 + 5 * MIB + 1536)) >/dev/null
    make_image gamma $(($1 - 3 * MIB + 2560)) >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    start_nbd_server gamma
}

# mount_at DEVICE DIR [OPTION...]
mount_at() {
    local dev=$1 dir=$2
    shift 2
    mkdir -p "$dir"
    assert_ok mount "$@" "$dev" "$dir"
}

copy_trees() {
    mkdir -p "$1"
    assert_ok cp -a --parents "${TREES[@]}" "$1"
}

# assert_trees DIR: DIR holds the trees, byte for byte, with nothing added or missing.
assert_trees() {
    local tree
    for tree in "${TREES[@]}"; do
        assert_ok diff -r --no-dereference "$tree" "$1$tree"
    done
    assert_eq "$(find "$1" -type f | wc -l)" "$(find "${TREES[@]}" -type f | wc -l)" "number of files in $1"
}

# used NODE: bytes of the node's image that are allocated.
used() {
    sync -f "$(node_image "$1")"
    echo $(($(stat -c '%b * %B' "$(node_image "$1")")))
}

dm_of() { basename "$(readlink -f "/dev/mapper/$1")"; }

# udev_of DEVICE PROPERTY: what udev's database has, empty if nothing.
udev_of() { udevadm info --query=property --property="$2" --value "/dev/mapper/$1" 2>/dev/null; }
udev_is() { [[ $(udev_of "$1" "$2") == "$3" ]]; }

# start_daemon: dstd run on $T/t.yaml, in the test's group.
start_daemon() { dstd run "$T/t.yaml" </dev/null 9>&- & }
