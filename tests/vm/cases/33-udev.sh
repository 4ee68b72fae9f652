#!/usr/bin/env bash
# Names that udev gives to devices in /dev/disk/by-id: there when a device is ready, gone when it isn't or is removed.
# That scanners leave a device alone which isn't ready: 31-lvm.sh. What an operator is told about it: docs/lvm.md.
# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

BY_ID=/dev/disk/by-id

# links TEXT: the links in by-id whose names hold TEXT, one a line.
links() { find $BY_ID -name "*$1*" -printf '%f\n' | sort; }
no_links() { [[ -z $(links "$1") ]]; }
number() { dmsetup info -c --noheadings -o blkdevname "$1"; }
leads_to() { [[ $(readlink -f "$BY_ID/$1") == "/dev/$(number "$2")" ]]; }

# nothing_by_id DEVICE TEXT: udev knows the device, and there is no link, also not when it is asked to look again.
nothing_by_id() {
    local action
    for action in change add; do
        assert_ok udevadm trigger --settle --action=$action "/sys/block/$(number "$1")"
        assert_eq "$(links "$2")" "" "links of $1 in by-id"
    done
}

# A device has no link while one of its nodes has never answered. Then it has one of its name, which follows a rename, and
# one of its UUID, which doesn't change; what was ready keeps both while it is suspended; both go with it.
# @timeout 400
test_by_id() {
    make_image alpha 6M >/dev/null
    make_image beta 4M >/dev/null
    start_nbdkit alpha
    start_nbdkit beta
    stop_node beta
    topology
    node alpha
    node beta
    device dev
    extent alpha 0 12288
    extent beta 0 8192
    dstd run "$T/t.yaml" >"$T/dstd.log" 2>&1 </dev/null 9>&- &
    local daemon=$!
    wait_until 60 "the device, without its second node" test -b /dev/mapper/dev
    nothing_by_id dev dev
    start_nbdkit beta
    wait_until 60 "the link of the UUID" leads_to dm-uuid-DST-dev dev
    assert_eq "$(links dev)" $'dm-name-dev\ndm-uuid-DST-dev' "links in by-id"
    assert_ok leads_to dm-name-dev dev
    kill $daemon
    wait $daemon || true
    contents_through_the_link
    links_of_a_renamed_device
    assert_ok dstd remove other
    wait_until 20 "the links to go" no_links DST-dev
    wait_until 20 "the links to go" no_links other
}

contents_through_the_link() {
    make_file "$T/data" 10M
    assert_ok dd if="$T/data" of=$BY_ID/dm-uuid-DST-dev bs=1M oflag=direct status=none
    sync_device
    assert_same_bytes "$T/data" $BY_ID/dm-uuid-DST-dev
    assert_same_bytes <(head -c 6M "$T/data") "$(node_image alpha)"
    assert_same_bytes <(tail -c 4M "$T/data") "$(node_image beta)"
}

links_of_a_renamed_device() {
    sed -i 's/^  dev:/  other:/' "$T/t.yaml"
    assert_ok dstd rename dev other
    wait_until 20 "the link of the name to follow" leads_to dm-name-other other
    assert_eq "$(links dm-name-dev)" "" "the link of the old name"
    assert_ok leads_to dm-uuid-DST-dev other
    assert_same_bytes "$T/data" $BY_ID/dm-name-other
    assert_ok dmsetup suspend --noflush other
    assert_ok udevadm trigger --settle --action=change "/sys/block/$(number other)"
    assert_ok leads_to dm-uuid-DST-dev other
    assert_ok leads_to dm-name-other other
    assert_ok dmsetup resume other
}

# Without a live table there is no link, nor for what has always been suspended since its nodes came, whatever makes
# udev look; the first resume brings it.
test_no_by_id_before_the_first_resume() {
    assert_ok dmsetup create bare --notable --uuid DST-bare
    nothing_by_id bare bare
    assert_ok dmsetup load bare --table "0 8 zero"
    nothing_by_id bare bare
    assert_ok dmsetup resume bare
    wait_until 20 "the link of the UUID" leads_to dm-uuid-DST-bare bare
    assert_ok dmsetup remove bare
    wait_until 20 "the links to go" no_links bare

    make_image alpha 4M >/dev/null
    start_nbdkit alpha
    topology
    node alpha
    assert_ok dmsetup create hand --table "0 8192 dst 1 alpha 0 8192"
    nothing_by_id hand hand
    assert_ok dmsetup suspend --noflush hand
    apply
    assert_eq "$(node_field alpha 2 hand)" live "the node's state"
    assert_ok dmsetup rename hand held
    nothing_by_id held h[ae][nl]d
    assert_ok dmsetup resume held
    wait_until 20 "the link of the name" leads_to dm-name-held held
    assert_eq "$(udevadm info --query=property --property=SYSTEMD_READY --value /dev/mapper/held)" 1 "SYSTEMD_READY"
}
