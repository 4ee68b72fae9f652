#!/usr/bin/env bash
# Tables of devices that are in use: switched a hundred times under verified I/O, grown, and what is refused.
# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"

# Three nodes of odd sizes with several links each.
start_three_nodes() {
    make_image alpha $((9 * 1024 * 1024 + 512)) >/dev/null
    make_image beta $((9 * 1024 * 1024 + 1024)) >/dev/null
    make_image gamma $((12 * 1024 * 1024)) >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    start_nbd_server gamma
}

# topology NUMBER: the device as it is after that many applies: a little longer, no_discard on and off.
topology() {
    local more=
    if (($1 > 0)); then more="      - dst: {node: gamma, offset: 10MiB, length: $(($1 * 64))KiB}"; fi
    cat >"$T/t.yaml" <<END
version: 1
nodes:
  alpha: {uri: "$(node_uri alpha)", links: 3}
  beta: {uri: "$(node_uri beta)", links: 2}
  gamma: {uri: "$(node_uri gamma)"}
devices:
  dev:
    no_discard: $( (($1 % 2)) && echo true || echo false)
    table:
      - dst: {node: alpha}
      - dst: {node: beta}
      - dst: {node: gamma, offset: 1MiB, length: 8MiB}
$more
END
}

# Eight jobs, each on 3 MiB of its own, half of them direct; they leave the CPU time to reload a table.
eight_jobs() {
    local n
    for n in {0..7}; do
        printf '%s\n' "[j$n]" "bs=$((16 << (n / 2)))k" "offset=$((n * 3))m" size=3m loops=1 thinktime=10ms
        if ((n % 2)); then printf '%s\n' direct=1 ioengine=libaio iodepth=8; fi
    done
}

# reload_again N: the same table once more, with and without flushing.
reload_again() {
    dmsetup load dev "$T/table"
    if (($1 % 2)); then dmsetup suspend --noflush dev; else dmsetup suspend dev; fi
    dmsetup resume --noudevsync dev
}

# Thirty times the table is switched under eight verifying processes, by dmsetup (the same table, flushing
# and not) and by dstd (features change, the device grows): no error, no loss.
# @timeout 400
test_reloads_under_io() { reloads_under_io 3; }

# The same a hundred times.
# @timeout 900
# @only faults
test_hundred_reloads_under_io() { reloads_under_io 10; }

# reloads_under_io EACH: dstd changes the table ten times, each time after EACH - 1 reloads by dmsetup.
reloads_under_io() {
    local n each=$1
    start_three_nodes
    topology 0
    assert_ok dstd apply "$T/t.yaml"
    dmsetup table dev >"$T/table"
    start_verify "$(eight_jobs)"
    for ((n = 1; n <= 10 * each; n++)); do
        verify_goes_on
        if ((n % each)); then
            reload_again "$n"
        else
            topology $((n / each))
            assert_ok dstd apply --quiet "$T/t.yaml"
            dmsetup table dev >"$T/table"
        fi
    done
    stop_verify
    assert_eq "$(dst-nlpoke dump | jq -r '"\(.name) \(.state) \(.live) \(.errors) \(.reconnects)"' | sort | xargs)" \
        "alpha live 3 0 0 beta live 2 0 0 gamma live 1 0 0" "the nodes"
    assert_eq "$(dmsetup table dev | cut -d' ' -f 4-)" \
        "4 alpha 0 18433 beta 0 18434 gamma 2048 16384 gamma 20480 1280 2 block_size 512" "the table"
    same_as_images
}

# The device holds what the images hold, extent by extent.
same_as_images() {
    assert_ok blockdev --flushbufs /dev/mapper/dev
    {
        cat "$(node_image alpha)" "$(node_image beta)"
        dd if="$(node_image gamma)" bs=1M skip=1 count=8 status=none
        dd if="$(node_image gamma)" bs=64K skip=160 count=10 status=none
    } | cmp - /dev/mapper/dev || fail "the device differs from the images"
}

# items ITEM...: a topology of dev over alpha and beta with these items.
items() {
    printf 'version: 1\nnodes:\n  alpha: {uri: "%s"}\n  beta: {uri: "%s", links: 2}\ndevices:\n  dev:\n    table:\n' \
        "$(node_uri alpha)" "$(node_uri beta)" >"$T/t.yaml"
    printf '      - dst: {node: %s}\n' "$@" >>"$T/t.yaml"
}

size_is() { assert_eq "$(blockdev --getsize64 /dev/mapper/dev)" "$1" "the device's size"; }

start_two_nodes() {
    make_file "$(make_image alpha 4M)" 4M
    make_file "$(make_image beta $((2 * 1024 * 1024 + 512)))" $((2 * 1024 * 1024 + 512))
    start_nbdkit alpha
    start_nbdkit beta
}

# A device grows under running I/O: by another node, and by an export that grew.
test_grow_under_io() {
    start_two_nodes
    items alpha
    assert_ok dstd apply "$T/t.yaml"
    size_is $((4 << 20))
    start_verify "$(direct_job 4m)"
    wait_until 30 "I/O on the node" node_says alpha '.links[0].received > 1000000' true
    items alpha beta
    assert_ok dstd apply "$T/t.yaml"
    size_is $((6 * 1024 * 1024 + 512))
    assert_eq "$(dmsetup table dev)" "0 12289 dst 2 alpha 0 8192 beta 0 4097 2 block_size 512" "the table"
    # the second node's export grows, and so does the device that has all of it
    truncate -s 3M "$(node_image beta)"
    assert_ok dstd apply "$T/t.yaml"
    size_is $((7 << 20))
    stop_verify
    make_file "$T/new" 3M
    assert_ok dd if="$T/new" of=/dev/mapper/dev bs=1M seek=4 oflag=direct status=none
    assert_same_bytes "$T/new" "$(node_image beta)"
    assert_ok blockdev --flushbufs /dev/mapper/dev
    cat "$(node_image alpha)" "$T/new" | cmp - /dev/mapper/dev || fail "the device differs from the images"
    assert_ok node_says alpha '"\(.state) \(.errors) \(.reconnects)"' "live 0 0"
    assert_ok node_says beta '"\(.state) \(.live)/\(.wanted) \(.errors)"' "live 2/2 0"
}

# Less or other data is refused in clear words and changes nothing; the flag that the words name allows it.
test_shrink_and_reorder_need_a_flag() {
    start_two_nodes
    items alpha beta
    assert_ok dstd apply "$T/t.yaml"
    items alpha
    refused 3 "it would shrink from 12289 to 8192 sectors" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "--allow-shrink dev" "the refusal"
    refused 3 "it would shrink from 12289 to 8192 sectors" dstd plan "$T/t.yaml"
    refused 3 "it would shrink" dstd apply --allow-other-data dev "$T/t.yaml"
    assert_ok dstd apply --allow-shrink dev "$T/t.yaml"
    size_is $((4 << 20))
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
    assert_eq "$(dst-nlpoke dump | jq -r .name)" alpha "the nodes that are left"
    items beta alpha
    refused 3 "sector 0 and what follows would show other data. Now: \`0 8192 dst 1 alpha" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "--allow-other-data dev" "the refusal"
    refused 3 "would show other data" dstd apply --allow-shrink dev "$T/t.yaml"
    assert_ok dstd apply --allow-other-data dev "$T/t.yaml"
    cat "$(node_image beta)" "$(node_image alpha)" | cmp - /dev/mapper/dev || fail "the device isn't beta, then alpha"
    sed -i 's/^    table:/    block_size: 4096\n    table:/' "$T/t.yaml"
    refused 3 "block_size" dstd apply --allow-other-data dev --allow-shrink dev "$T/t.yaml"
}

# A device is renamed under verified I/O: the topology first, which is refused until `dstd rename` has done it; then all is
# right, and a new device of the old name can be made.
test_rename_under_io() {
    start_three_nodes
    topology 0
    assert_ok dstd apply "$T/t.yaml"
    let_udev_scan dev
    start_verify "$(direct_job 12m)"
    # what is open stays so; what opens it later uses a name that stays
    sed -i "s|/dev/mapper/dev|$(readlink -f /dev/mapper/dev)|" "$T/jobs"
    sed -i 's/^  dev:/  other:/' "$T/t.yaml"
    refused_in_use 3 "\`dstd rename dev other\` if it is the same" dstd apply "$T/t.yaml"
    assert_ok dstd rename dev other
    assert_eq "$(dmsetup info -c --noheadings -o name,uuid)" "other:DST-dev" "name and UUID"
    [[ -b /dev/mapper/other ]] || fail "there is no /dev/mapper/other"
    refused_in_use 0 "Nothing to do." dstd apply "$T/t.yaml"
    verify_goes_on
    stop_verify
    cat >>"$T/t.yaml" <<END
  dev: {table: ["0 8 zero"]}
END
    assert_ok dstd apply "$T/t.yaml"
    assert_eq "$(dmsetup info -c --noheadings -o uuid dev)" "DST-dev.2" "the new device's UUID"
    assert_ok dstd remove dev other
}

# A udev that hangs keeps nobody for longer than the wait for it: the device has its new name. Its link is udev's, and late.
# @timeout 200
# @only faults
test_rename_while_udev_hangs() {
    start_three_nodes
    topology 0
    assert_ok dstd apply "$T/t.yaml"
    let_udev_scan dev
    sed -i 's/^  dev:/  other:/' "$T/t.yaml"
    defer "pkill -CONT -x systemd-udevd"
    pkill -STOP -x systemd-udevd
    assert_ok timeout 120 dstd rename dev other
    assert_eq "$(dmsetup info -c --noheadings -o name,uuid)" "other:DST-dev" "name and UUID"
    pkill -CONT -x systemd-udevd
    wait_until 60 "udev to make the link" test -b /dev/mapper/other
    [[ ! -e /dev/mapper/dev ]] || fail "there is still a /dev/mapper/dev"
    refused_in_use 0 "Nothing to do." dstd apply "$T/t.yaml"
    assert_ok dstd remove other
}
