#!/usr/bin/env bash
# Data over devices made by dstd: contents at every offset, on every kind of server.

# Three servers of different kinds and odd sizes become one device; what is written is where it belongs.
test_three_servers() {
    make_image alpha $((40 * 1024 * 1024 + 512)) >/dev/null
    make_image beta $((50 * 1024 * 1024 + 1024)) >/dev/null
    make_image gamma $((30 * 1024 * 1024 + 2560)) >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    start_nbd_server gamma
    cat >"$T/t.yaml" <<END
version: 1
nodes:
  alpha: {uri: "$(node_uri alpha)", links: 4}
  beta: {uri: "$(node_uri beta)", links: 2}
  gamma: {uri: "$(node_uri gamma)"}
devices:
  dev:
    table:
      - dst: {node: alpha}
      - dst: {node: beta}
      - dst: {node: gamma}
END
    assert_ok dstd apply "$T/t.yaml"
    assert_ok dstd status
    assert_ok dmsetup table dev
    assert_ok dmsetup status dev
    make_file "$T/data" "$(blockdev --getsize64 /dev/mapper/dev)"
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=1M oflag=direct status=none
    assert_ok blockdev --flushbufs /dev/mapper/dev
    assert_ok cmp "$T/data" /dev/mapper/dev
    cat "$(node_image alpha)" "$(node_image beta)" "$(node_image gamma)" | cmp - "$T/data" || fail "the images differ from the data"
    assert_ok dmsetup status dev
    assert_ok dstd remove dev
}
