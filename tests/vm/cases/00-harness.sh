#!/usr/bin/env bash
# The harness tests itself: a run that could not see failures would be worth nothing.
# Uses lib.sh and the three servers; needs neither dm-dst nor dstd.

# The guest is what the tests expect: systemd, udev, lvm2 and device-mapper run.
test_guest_is_real() {
    assert_eq "$(cat /proc/1/comm)" systemd "process 1"
    assert_ok udevadm control --ping
    assert_ok dmsetup version
    assert_contains "$OUT" "Driver version"
    assert_ok lvm version
}
