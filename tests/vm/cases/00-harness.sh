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
    assert_eq "$(scratch 0)" /dev/vde "the first scratch disk"
    assert_eq "$(blockdev --getsize64 "$(scratch 3)")" $((3 << 30)) "size of a scratch disk"
}

# A failed assertion fails its test and says what was got and what was expected.
# @expect-fail sum: got '4', expected '5'
test_planted_assertion() {
    assert_eq $((2 + 2)) 5 "sum"
}

# Any command that fails ends the test, and the report names file, line and command.
# @expect-fail 'cat /nowhere/at/all' ended with status 1
test_planted_command() {
    cat /nowhere/at/all
    echo "not reached"
}

# A test that hangs is ended at its own time limit, deaf to SIGTERM or not.
# @timeout 3
# @expect-fail still running after
test_planted_hang() {
    trap '' TERM
    while :; do sleep 1 || true; done
}

# A warning in the kernel's log fails a test that did all else right.
# @expect-fail WARNING: planted
test_planted_kernel_warning() {
    echo "WARNING: planted by the harness's own test" >/dev/kmsg
}

# A splat that the test allows does not fail it; the test reads the kernel's log since its start.
test_allowed_kernel_warning() {
    allow_klog 'BUG: allowed by'
    echo "BUG: allowed by the harness's own test" >/dev/kmsg
    assert_contains "$(klog)" "BUG: allowed by" "the kernel's log"
    assert_not_contains "$(klog)" "WARNING: planted" "the kernel's log"
}

# The warning that ended an earlier test is not held against this one.
test_earlier_warning_is_not_ours() {
    assert_not_contains "$(klog)" "planted" "the kernel's log"
}

# A test can say that something it needs is not there.
test_skip_is_reported() {
    skip "on purpose: shows how a skipped test looks"
}

# wait_until names what it waited for.
# @expect-fail waited in vain for: a file that nobody makes
test_planted_wait() {
    wait_until 1 "a file that nobody makes" test -e "$T/never"
}

# One node of each kind, each at an address of its own, serves what lies in its image, over IPv4 and IPv6.
# @only faults
test_three_servers() {
    local name
    for name in one two three; do
        make_file "$(make_image "$name" 1M)" 1M
    done
    start_nbdkit one
    start_qemu_nbd two
    start_nbd_server three
    for name in one two three; do
        assert_ok nbdcopy "$(node_uri "$name")" "$T/$name.copy"
        assert_same_bytes "$T/$name.copy" "$(node_image "$name")"
        assert_ok nbdinfo --size "$(node_uri6 "$name")"
        assert_eq "$OUT" 1048576 "size of $name over IPv6"
    done
    [[ $(node_addr one) != $(node_addr two) && $(node_addr two) != $(node_addr three) ]] ||
        fail "nodes share an address"
}

# A server can be stopped, killed, started again at the same address, and cut off the network.
# @only faults
test_servers_stop_and_start() {
    local name uri
    for name in one two three; do make_image "$name" 1M; done
    start_nbdkit one
    start_qemu_nbd two
    start_nbd_server three
    uri=$(node_uri two)
    stop_node one
    kill_node two
    kill_node three
    assert_fails "onnect" nbdinfo --size "$uri"
    start_qemu_nbd two
    assert_eq "$(node_uri two)" "$uri" "address after the restart"
    assert_ok nbdinfo --size "$uri"
    cut_node two
    run timeout 2 nbdinfo --size "$uri"
    assert_eq "$RC" 124 "status of a client of a node that was cut off"
    heal_node two
    wait_until 20 "the healed node" nbdinfo --size "$uri"
    start_unix_nbdkit four memory 1M
    assert_ok nbdinfo --size "$(node_uri four)"
}

# Cleanup takes away what a test leaves behind: LVM on crypt on a mapped disk, mounted, busy, and servers.
test_leaves_much_behind() {
    local disk
    disk=$(scratch 0)
    dmsetup create harness-linear --table "0 2097152 linear $disk 4096"
    pvcreate -q /dev/mapper/harness-linear
    vgcreate -q harness_vg /dev/mapper/harness-linear
    lvcreate -q -y -n lv -L 100M harness_vg
    mkfs.ext4 -q /dev/harness_vg/lv
    mkdir -p "$T/mnt"
    mount /dev/harness_vg/lv "$T/mnt"
    setsid sh -c "cd '$T/mnt' && exec sleep 1000" &
    dmsetup create harness-suspended --table "0 2048 linear $(scratch 1) 0"
    dmsetup suspend harness-suspended
    start_nbdkit left memory 1M
    modprobe nbd
    nbd-client -unix /nowhere /dev/nbd0 || true
    defer "echo deferred ran >/var/tmp/harness-deferred"
}

# Nothing of that is left, and the scratch disk is empty again.
test_nothing_was_left() {
    assert_contains "$(dmsetup ls)" "No devices found"
    assert_eq "$(ip netns list)" "" "namespaces"
    assert_eq "$(pgrep -c nbdkit || true)" 0 "nbdkit processes"
    assert_eq "$(cat /var/tmp/harness-deferred)" "deferred ran" "what the deferred command wrote"
    assert_ok cmp -n $((16 << 20)) "$(scratch 0)" /dev/zero
    assert_not_contains "$(pvs 2>&1)" harness_vg
    rm /var/tmp/harness-deferred
}

# What cleanup can't take away fails the test, and the next test gets a fresh boot.
# @expect-fail left behind after cleanup
test_planted_leftover() {
    mkdir -p /run/harness-held
    dmsetup create harness-held --table "0 2097152 linear $(scratch 2) 0"
    mkfs.ext4 -q /dev/mapper/harness-held
    mount /dev/mapper/harness-held /run/harness-held
    # outside the test's group: nobody will end it
    systemd-run --quiet --collect sh -c 'cd /run/harness-held && exec sleep 100000'
    wait_until 10 "the process that holds the mount" sh -c 'fuser -m /run/harness-held'
}

# The disks keep what was written before a reboot; the same function goes on after it.
# @timeout 200
# @only faults
test_reboot_keeps_the_disks() {
    if ! after_reboot; then
        cat /proc/sys/kernel/random/boot_id >/var/tmp/harness-boot-id
        echo "before the reboot" | dd of="$(scratch 3)" conv=sync,fsync bs=512 status=none
        defer "rm -f /var/tmp/harness-boot-id"
        reboot_vm
    fi
    assert_eq "$(phase)" 1 "number of reboots"
    [[ $(cat /proc/sys/kernel/random/boot_id) != $(cat /var/tmp/harness-boot-id) ]] || fail "it did not reboot"
    assert_eq "$(head -n 1 "$(scratch 3)")" "before the reboot" "content of the scratch disk"
}

# After a crash what was synced is there and what was not is lost, as after a power failure.
# @timeout 200
# @only faults
test_crash_loses_only_the_unsynced() {
    if ! after_reboot; then
        echo kept >/var/tmp/harness-kept
        sync
        crash_vm
    fi
    assert_eq "$(cat /var/tmp/harness-kept)" kept
    rm /var/tmp/harness-kept
}

# A VM that dies during a test fails that test, not the run.
# @timeout 20
# @expect-fail the VM died or was reset during this test
# @only faults
test_planted_death() {
    make_node_net alpha
    sync
    echo b >/proc/sysrq-trigger
    sleep 60
}

# What the dead VM left on disk says that alpha has a namespace.
# @only faults
test_death_leaves_no_nodes() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    assert_ok test -e /run/netns/n-alpha
}
