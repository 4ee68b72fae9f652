#!/usr/bin/env bash
# Makes devices over nodes that run already, and compares their contents with the backing files. Sourced by
# those cases that need it, after lib.sh; works on one topology, $T/t.yaml. Starts no server.

# topology: begins $T/t.yaml; then node NAME [URI] [OPTIONS], then device NAME [OPTION...], then extent …
topology() { printf 'version: 1\nnodes:\n' >"$T/t.yaml"; }
node() { printf '  %s: {uri: "%s"%s}\n' "$1" "${2:-$(node_uri "$1")}" "${3:+, $3}" >>"$T/t.yaml"; }
device() {
    grep -q '^devices:' "$T/t.yaml" || echo 'devices:' >>"$T/t.yaml"
    printf '  %s:\n' "$1" >>"$T/t.yaml"
    [[ -z ${2:-} ]] || printf '    %s\n' "${@:2}" >>"$T/t.yaml"
    echo '    table:' >>"$T/t.yaml"
}
# extent NODE [OFFSET [LENGTH]]: in sectors.
extent() { printf '      - dst: {node: %s%s%s}\n' "$1" "${2:+, offset: $2s}" "${3:+, length: $3s}" >>"$T/t.yaml"; }

apply() { assert_ok dstd apply "$T/t.yaml"; }

# node_field NODE N [DEVICE]: field N of a node in the status of DEVICE (docs/table-line.md), dev by default.
node_field() {
    dmsetup status --noflush "${3:-dev}" |
        awk -v name="$1" -v n="$2" '{ for (i = 6; i < NF; i += $5) if ($i == name) print $(i + n - 1) }'
}
state_is() { [[ $(node_field "$1" 2) == "$2" ]]; }

# images NODE...: NODE=IMAGE for dst-poke, of nodes that serve raw files.
images() {
    local name
    for name; do echo "$name=$(node_image "$name")"; done
}

# assert_images_match NODE=IMAGE...: the images hold, extent by extent, what dev reads.
assert_images_match() {
    sync_device
    dmsetup table dev >"$T/table"
    dst-poke assemble --table "$T/table" "$@" | cmp - /dev/mapper/dev || fail "the images differ from the device"
}

# Reads after this come from the nodes.
sync_device() { assert_ok blockdev --flushbufs /dev/mapper/dev; }

# fill FILE: dev gets FILE's bytes, in direct writes of 1 MiB and a rest, and reads as them.
fill() {
    assert_ok dd if="$1" of=/dev/mapper/dev bs=1M oflag=direct status=none
    sync_device
    assert_ok cmp "$1" /dev/mapper/dev
}
random_fill() {
    make_file "$T/data" "$(blockdev --getsize64 /dev/mapper/dev)"
    fill "$T/data"
}
