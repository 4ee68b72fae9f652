#!/usr/bin/env bash
# LVM on dst devices with the lvm.conf that Debian ships, udev's part in it, and a reboot with dstd as a service.
# What an operator is told about it: docs/lvm.md. Uses trees.sh.

# shellcheck source=tests/vm/trees.sh
source "$(dirname "${BASH_SOURCE[0]}")/../trees.sh"

# What the log of a test should end with when udev and LVM were to do something by themselves.
JOURNAL="journalctl -b --no-pager -t dstd -t lvm -t systemd-udevd | tail -n 40"

lv_devices() { lvs --noheadings -o devices "$1" | tr -d ' '; }
active() { dmsetup info "$1" >/dev/null 2>&1; }

# A volume group over two devices: linear LV, snapshot, growth under a mounted file system, pvmove, off and on.
# @timeout 200
test_volume_group() {
    three_nodes $((48 * MIB))
    topology "$(device one alpha beta)" "$(device two gamma)"
    assert_ok dstd apply "$T/t.yaml"
    assert_ok pvcreate /dev/mapper/one /dev/mapper/two
    assert_ok vgcreate vg /dev/mapper/one /dev/mapper/two
    assert_ok lvcreate -y -n lv -L 32M vg /dev/mapper/two
    assert_ok mkfs.ext4 -q -b 4096 /dev/vg/lv
    mount_at /dev/vg/lv "$T/mnt"
    copy_trees "$T/mnt/trees"
    operator_sees
    snapshot_keeps_the_old -L 8M
    grow_mounted
    move_mounted
    off_and_on
    grow_the_device
}

# lsblk takes the type of a device from its UUID, and nothing is listed twice.
operator_sees() {
    assert_ok lsblk -o NAME,TYPE,SIZE,RO,FSTYPE,MOUNTPOINTS,DISC-GRAN,DISC-MAX,LOG-SEC,PHY-SEC,MIN-IO,OPT-IO,ROTA,SCHED
    assert_eq "$(lsblk -nrdo TYPE,FSTYPE /dev/mapper/one)" "dst LVM2_member" "type and content in lsblk"
    assert_ok pvs -a -o pv_name,vg_name,pv_size,dev_size
    assert_eq "$(pvs --noheadings -o pv_name 2>&1 | tr -d ' ' | paste -sd ' ')" "/dev/mapper/one /dev/mapper/two" "what pvs lists"
    assert_ok udevadm info /dev/mapper/one
    assert_contains "$OUT" "DM_UUID=DST-one"
    assert_contains "$OUT" "disk/by-id/lvm-pv-uuid-"
    assert_ok ls -l /dev/disk/by-id
}

# snapshot_keeps_the_old LVCREATE_ARG...: what is changed on the origin is as before in the snapshot.
snapshot_keeps_the_old() {
    assert_ok lvcreate -y -s -n snap "$@" vg/lv
    rm -r "$T/mnt/trees/usr/lib/python3.11/encodings"
    find "$T/mnt/trees/usr/share" -type f -exec sh -c 'echo changed >"$1"' - {} \;
    sync -f "$T/mnt"
    mount_at /dev/vg/snap "$T/snap" -o ro
    assert_trees "$T/snap/trees"
    assert_ok umount "$T/snap"
    assert_ok lvremove -y vg/snap
    rm -r "$T/mnt/trees"
    copy_trees "$T/mnt/trees"
}

# The file that is added doesn't fit into the old size, and ends on the other device.
grow_mounted() {
    assert_ok lvextend -L 80M vg/lv
    assert_ok resize2fs /dev/vg/lv
    make_file "$T/big" $((40 * MIB))
    assert_ok cp "$T/big" "$T/mnt/big"
    assert_contains "$(lv_devices vg/lv)" /dev/mapper/one
    assert_contains "$(lv_devices vg/lv)" /dev/mapper/two
}

# All of it moves to device one while it is mounted; then device two can be scribbled over.
move_mounted() {
    assert_ok pvmove -i 1 /dev/mapper/two
    assert_not_contains "$(lv_devices vg/lv)" /dev/mapper/two
    assert_eq "$(pvs --noheadings -o pv_used --units b --nosuffix /dev/mapper/two | tr -d ' ')" 0 "bytes used on device two"
    assert_ok vgreduce vg /dev/mapper/two
    assert_ok pvremove /dev/mapper/two
    assert_ok dd if=/dev/urandom of=/dev/mapper/two bs=1M count=44 oflag=direct status=none
    assert_ok umount "$T/mnt"
    assert_ok fsck.ext4 -f -n /dev/vg/lv
}

off_and_on() {
    assert_fails "in use" dstd remove one
    assert_ok vgchange -an vg
    if active vg-lv; then fail "vg-lv is still there after vgchange -an"; fi
    assert_ok dstd remove one two
    assert_not_contains "$(vgs 2>&1)" " vg "
    assert_ok dstd apply "$T/t.yaml"
    # pvscan, started by udev, activates it: vgchange is only for those who turned that off
    wait_until 30 "udev and LVM to activate vg" test -b /dev/vg/lv
    assert_ok vgchange -an vg
    assert_ok vgchange -ay vg
    mount_at /dev/vg/lv "$T/mnt"
    assert_trees "$T/mnt/trees"
    assert_same_bytes "$T/big" "$T/mnt/big"
}

# One more node at the end of the device, with the file system on it mounted all the time.
grow_the_device() {
    make_image delta $((30 * MIB + 512)) >/dev/null
    start_nbdkit delta
    topology "$(device one alpha beta delta)" "$(device two gamma)"
    assert_ok dstd apply "$T/t.yaml"
    assert_ok pvresize /dev/mapper/one
    assert_ok lvextend -l +100%FREE vg/lv
    assert_ok resize2fs /dev/vg/lv
    make_file "$T/more" $((60 * MIB))
    assert_ok cp "$T/more" "$T/mnt/more"
    assert_ok umount "$T/mnt"
    assert_ok fsck.ext4 -f -n /dev/vg/lv
    mount_at /dev/vg/lv "$T/mnt" -o ro
    assert_same_bytes "$T/more" "$T/mnt/more"
    assert_same_bytes "$T/big" "$T/mnt/big"
    (($(used delta) > 4 * MIB)) || fail "little of it lies on the new node: $(used delta) bytes"
}

# A thin pool over three nodes, with a volume larger than it: a snapshot, what is freed is freed on the nodes, and all of it
# is there after the pool was checked by LVM's own tool on its way up.
# @timeout 400
# @only faults
test_thin_pool() {
    local before
    need_module dm-thin-pool
    need_command thin_check
    three_nodes $((40 * MIB))
    topology "$(device one alpha beta gamma)"
    assert_ok dstd apply "$T/t.yaml"
    assert_ok vgcreate vg /dev/mapper/one
    assert_ok lvcreate -y --type thin-pool -n pool -L 96M -c 64k --poolmetadatasize 4M vg
    assert_ok lvcreate -y -n lv -V 256M --thinpool pool vg
    assert_ok mkfs.ext4 -q -b 4096 /dev/vg/lv
    mount_at /dev/vg/lv "$T/mnt"
    copy_trees "$T/mnt/trees"
    snapshot_keeps_the_old -kn
    make_file "$T/mnt/big" $((48 * MIB))
    sync -f "$T/mnt"
    before=$(used_by_all)
    ((before > 48 * MIB)) || fail "the nodes hold $before bytes"
    rm "$T/mnt/big"
    sync -f "$T/mnt"
    assert_ok fstrim "$T/mnt"
    (($(used_by_all) < before - 40 * MIB)) || fail "of $before bytes the nodes still hold $(used_by_all) when 48 MiB are freed"
    assert_ok umount "$T/mnt"
    assert_ok vgchange -an vg
    assert_ok dstd remove one
    assert_ok dstd apply "$T/t.yaml"
    wait_until 60 "udev and LVM to activate vg" test -b /dev/vg/lv
    assert_ok fsck.ext4 -f -n /dev/vg/lv
    mount_at /dev/vg/lv "$T/mnt" -o ro
    assert_trees "$T/mnt/trees"
}
used_by_all() { echo $(($(used alpha) + $(used beta) + $(used gamma))); }

# With a devices file LVM sees what is in it and nothing else. A dst device is in it by its name.
# @only faults
test_devices_file() {
    local file=/etc/lvm/devices/dst.devices
    three_nodes $((16 * MIB))
    topology "$(device one alpha)" "$(device two beta)"
    assert_ok dstd apply "$T/t.yaml"
    mkdir -p /etc/lvm/devices
    defer "rm -f $file"
    assert_ok pvcreate /dev/mapper/two
    assert_ok pvcreate --devicesfile dst.devices /dev/mapper/one
    assert_match "$(cat $file)" "IDTYPE=devname IDNAME=/dev/mapper/one DEVNAME=/dev/mapper/one PVID=[A-Za-z0-9]+"
    assert_eq "$(pvs --devicesfile dst.devices --noheadings -o pv_name | tr -d ' ')" /dev/mapper/one "what pvs lists with the file"
    assert_eq "$(pvs --noheadings -o pv_name | tr -d ' ' | paste -sd ' ')" "/dev/mapper/one /dev/mapper/two" "what pvs lists without it"
    assert_ok vgcreate --devicesfile dst.devices vg /dev/mapper/one
    assert_ok lvcreate --devicesfile dst.devices -y -n lv -l 100%FREE vg
    make_file "$T/data" $((12 * MIB))
    assert_ok dd if="$T/data" of=/dev/vg/lv bs=1M oflag=direct status=none
    assert_ok vgchange --devicesfile dst.devices -an vg
    # a device under another name is found by its label
    assert_ok dstd rename one other
    assert_ok vgchange --devicesfile dst.devices -ay vg
    assert_ok cmp -n $((12 * MIB)) "$T/data" /dev/vg/lv
    assert_contains "$(lv_devices vg/lv)" /dev/mapper/other
}

# A device made by hand before any daemon runs: scanners leave it alone. `dstd apply` of a topology that has only
# its nodes gives it links; then udev knows what is on it.
test_by_hand_then_apply() {
    local uuid=0e4d1c84-5bb4-4b54-8a66-95c1b2f9d751
    by_hand_pair
    mkfs.ext4 -q -b 4096 -U "$uuid" -d /usr/lib/python3.11/encodings "$T/whole"
    split_whole
    dmsetup_by_hand
    assert_untouched "$uuid"
    assert_ok dstd apply "$T/t.yaml"
    wait_until 20 "udev to know the file system" udev_is hand ID_FS_TYPE ext4
    udev_knows "$uuid"
    mount_at "/dev/disk/by-uuid/$uuid" "$T/mnt" -o ro
    assert_ok diff -r -x lost+found /usr/lib/python3.11/encodings "$T/mnt"
    assert_fails "isn't dstd's" dstd remove hand
}

# The same with a volume group on it, and links that a daemon brings: the group comes up by itself.
# @only faults
test_by_hand_then_daemon() {
    by_hand_pair
    # not from the disk's beginning: there LVM would see the label twice
    dmsetup create whole --table "0 $((24 * MIB / 512)) linear $(scratch 0) 8192"
    assert_ok pvcreate /dev/mapper/whole
    assert_ok vgcreate handvg /dev/mapper/whole
    assert_ok lvcreate -y -n lv -l 100%FREE handvg
    assert_ok mkfs.ext4 -q -d /usr/lib/python3.11/encodings /dev/handvg/lv
    assert_ok vgchange -an handvg
    dd if=/dev/mapper/whole of="$T/whole" bs=1M status=none
    assert_ok dmsetup remove whole
    split_whole
    dmsetup_by_hand
    assert_untouched none
    if active handvg-lv; then fail "handvg is active without links"; fi
    start_daemon
    defer "udevadm info /dev/mapper/hand; $JOURNAL"
    wait_until 40 "udev and LVM to activate handvg" test -b /dev/handvg/lv
    mount_at /dev/handvg/lv "$T/mnt" -o ro
    assert_ok diff -r -x lost+found /usr/lib/python3.11/encodings "$T/mnt"
}

# Two nodes, alpha of 10 MiB less a sector, beta with the rest of 24 MiB; a topology that has only them.
by_hand_pair() {
    truncate -s $((24 * MIB)) "$T/whole"
    make_image alpha $((10 * MIB - 512)) >/dev/null
    make_image beta $((14 * MIB + 512)) >/dev/null
    start_nbdkit alpha
    start_qemu_nbd beta
    topology
}

split_whole() {
    head -c $((10 * MIB - 512)) "$T/whole" >"$(node_image alpha)"
    tail -c $((14 * MIB + 512)) "$T/whole" >"$(node_image beta)"
    rm "$T/whole"
}

dmsetup_by_hand() {
    assert_ok dmsetup create hand --table "0 49152 dst 2 alpha 0 20479 beta 0 28673"
    assert_ok udevadm settle --timeout=20
}

# No scanner has read it, also not when udev was asked again, and lsblk answers.
assert_untouched() {
    assert_ok udevadm trigger --settle --action=add "/dev/$(dm_of hand)"
    assert_ok udevadm trigger --settle --action=change "/dev/$(dm_of hand)"
    assert_eq "$(udev_of hand SYSTEMD_READY)" 0 "SYSTEMD_READY"
    assert_eq "$(udev_of hand ID_FS_TYPE)" "" "ID_FS_TYPE"
    # the filter that docs/lvm.md names keeps LVM's tools from waiting, too
    assert_ok timeout 20 pvs --config 'devices { global_filter = [ "r|^/dev/mapper/hand$|" ] }'
    assert_eq "$(awk '{print $1 + $5 + $9}' "/sys/block/$(dm_of hand)/stat")" 0 "bios the scanners sent"
    assert_match "$(dmsetup status --noflush hand)" "alpha waiting 0/1 0 0 .* beta waiting 0/1 0 0 "
    assert_ok timeout 10 lsblk "/dev/mapper/hand"
    if [[ -e /dev/disk/by-uuid/$1 ]]; then fail "/dev/disk/by-uuid/$1 is there before the links"; fi
}

udev_knows() {
    assert_ok udevadm settle --timeout=20
    assert_eq "$(readlink -f "/dev/disk/by-uuid/$1")" "/dev/$(dm_of hand)" "what by-uuid points to"
    assert_not_contains "$(udev_of hand SYSTEMD_READY)" 0 "SYSTEMD_READY"
    assert_eq "$(lsblk -nro FSTYPE,UUID /dev/mapper/hand)" "ext4 $1" "what lsblk shows"
}

# A mounted device whose table grows by a node that was never live stays what it was to systemd and udev:
# else systemd would take the mount away.
test_grown_while_mounted() {
    local uuid=5a0b8a57-2d7c-4c0c-9d0e-1b7a54c7f0a3
    by_hand_pair
    mkfs.ext4 -q -b 4096 -U "$uuid" -d /usr/lib/python3.11/encodings "$T/whole"
    split_whole
    dmsetup_by_hand
    assert_ok dstd apply "$T/t.yaml"
    wait_until 20 "udev to know the file system" udev_is hand ID_FS_TYPE ext4
    mkdir -p "$T/mnt"
    assert_ok systemd-mount --no-block "/dev/disk/by-uuid/$uuid" "$T/mnt"
    wait_until 20 "the mount" mountpoint "$T/mnt"
    assert_ok dmsetup load hand --table "0 49160 dst 3 alpha 0 20479 beta 0 28673 late 0 8"
    assert_ok dmsetup suspend --noflush hand
    assert_ok dmsetup resume hand
    assert_ok udevadm settle --timeout=20
    assert_ok systemctl show "$(systemd-escape -p --suffix=mount "$T/mnt")" -p ActiveState
    assert_contains "$OUT" "ActiveState=active"
    assert_not_contains "$(udev_of hand SYSTEMD_READY)" 0 "SYSTEMD_READY"
    assert_eq "$(readlink -f "/dev/disk/by-uuid/$uuid")" "/dev/$(dm_of hand)" "what by-uuid points to"
    assert_eq "$(awk '{print $9}' "/sys/block/$(dm_of hand)/stat")" 0 "bios in flight: a scanner reads the new end"
    mountpoint "$T/mnt" || fail "systemd took the mount away"
    assert_ok diff -r -x lost+found /usr/lib/python3.11/encodings "$T/mnt"
}

# After a reboot dstd.service makes two devices again, one of them before a node of it answers; udev and LVM
# activate the group on them when all nodes have come, and fstab mounts its file system.
# @timeout 240
test_reboot() {
    if ! after_reboot; then
        install_node_unit
        install_topology
        make_mounted_lv
        reboot_vm
    fi
    defer "udevadm info /dev/mapper/boot2; systemctl list-jobs; $JOURNAL"
    wait_until 60 "dstd.service" systemctl --quiet is-active dstd.service
    wait_until 100 "the mount of fstab" mountpoint /mnt/dst
    assert_trees /mnt/dst/trees
    assert_eq "$(lv_devices bootvg/lv | sort | paste -sd ' ')" "/dev/mapper/boot1(0) /dev/mapper/boot2(0)" "devices of the LV"
    assert_eq "$(dmsetup table boot2)" "0 81920 dst 2 late 0 40960 early 40961 40960 2 block_size 512" "table of boot2"
    assert_ok systemctl status dstd.service
    assert_contains "$OUT" "2 devices, 2 nodes"
    # the late node's server was started after dstd was ready, so boot2 had to wait for it
    assert_ok systemctl show -P ActiveEnterTimestampMonotonic dstd.service
    local ready=$OUT
    assert_ok systemctl show -P ActiveEnterTimestampMonotonic dst-test-node@10812.service
    ((OUT > ready)) || fail "the late node came at $OUT, dstd was ready at $ready"
    assert_ok systemctl stop mnt-dst.mount
    assert_ok fsck.ext4 -f -n /dev/bootvg/lv
    assert_ok vgchange -an bootvg
}

# Servers that a shutdown doesn't stop (nor their slice), as if on other machines; the late one starts after dstd.
install_node_unit() {
    local unit=/etc/systemd/system
    mkdir -p /var/lib/dst-test
    truncate -s $((41 * MIB + 512)) /var/lib/dst-test/10811.img /var/lib/dst-test/10812.img
    cat >"$unit/dst-test-node@.service" <<END
[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
Type=simple
Slice=system.slice
ExecStart=nbdkit --foreground --ipaddr 127.0.0.1 --port %i file /var/lib/dst-test/%i.img
END
    mkdir -p "$unit/dst-test-node@10812.service.d" "$unit/multi-user.target.wants"
    printf '[Unit]\nAfter=dstd.service\n' >"$unit/dst-test-node@10812.service.d/late.conf"
    ln -s ../dst-test-node@.service "$unit/multi-user.target.wants/dst-test-node@10811.service"
    ln -s ../dst-test-node@.service "$unit/multi-user.target.wants/dst-test-node@10812.service"
    defer "rm -rf $unit/dst-test-node@* $unit/multi-user.target.wants/dst-test-node@* /var/lib/dst-test; systemctl daemon-reload"
    defer "systemctl stop 'dst-test-node@*'"
    defer "vgchange -q -an; dmsetup remove --retry boot1; dmsetup remove --retry boot2"
    defer "systemctl stop dstd.service"
    systemctl daemon-reload
}

# Sizes are given, so boot2 can be made before the late node answers.
install_topology() {
    mkdir -p /etc/dst
    defer "systemctl disable dstd.service; rm -rf /etc/dst"
    cat >/etc/dst/boot.yaml <<END
version: 1
nodes:
  early: {uri: "nbd://127.0.0.1:10811"}
  late: {uri: "nbd://127.0.0.1:10812"}
devices:
  boot1: {table: [{dst: {node: early, offset: 1s, length: 20MiB}}]}
  boot2: {table: [{dst: {node: late, length: 20MiB}}, {dst: {node: early, offset: 40961s, length: 20MiB}}]}
END
    assert_ok systemctl enable dstd.service
    assert_ok systemctl start dst-test-node@10811.service
    assert_ok systemctl start dstd.service dst-test-node@10812.service
}

make_mounted_lv() {
    wait_until 30 "the late node" udev_is boot2 DST_READY 1
    assert_ok pvcreate /dev/mapper/boot1 /dev/mapper/boot2
    assert_ok vgcreate bootvg /dev/mapper/boot1 /dev/mapper/boot2
    assert_ok lvcreate -y -n lv -l 100%FREE bootvg
    assert_ok mkfs.ext4 -q -b 4096 /dev/bootvg/lv
    mkdir -p /mnt/dst
    defer "sed -i '/ .mnt.dst /d' /etc/fstab; systemctl daemon-reload"
    defer "systemctl stop mnt-dst.mount"
    echo "/dev/bootvg/lv /mnt/dst ext4 _netdev,nofail,x-systemd.device-timeout=2min 0 2" >>/etc/fstab
    systemctl daemon-reload
    assert_ok mount /mnt/dst
    copy_trees /mnt/dst/trees
}
