#!/usr/bin/env bash
# The demo: four servers and a local disk become one device; ext4 and LVM live on it. Run by agent.sh in the
# VM for `make demo`, its output goes to the person's terminal. Ends with status 1 at the first surprise.
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/vm/lib.sh
source "$here/lib.sh"
trap 'echo; echo "The demo failed at line $LINENO: $BASH_COMMAND"' ERR

DEV=/dev/mapper/archive
STEP=0

step() {
    STEP=$((STEP + 1))
    printf '\n%2d. %s\n' "$STEP" "$*"
}

# Shows a command as an operator would type it, and what it says.
show() {
    printf '    $ %s\n' "$*"
    "$@" 2>&1 | sed 's/^/    /'
}

quiet() { "$@" >/dev/null 2>&1; }

start_nodes() {
    step "Four servers, each in a network namespace of its own, each with an image of an odd size:"
    make_image alpha $((150001 * 512)) >/dev/null
    make_image beta $((180011 * 512)) >/dev/null
    make_image gamma $((120007 * 512)) >/dev/null
    make_image delta $((90019 * 512)) >/dev/null
    start_nbdkit alpha --export-name alpha file "$(node_image alpha)"
    start_qemu_nbd beta
    start_nbd_server gamma
    start_export delta
    for node in alpha beta gamma delta; do
        printf '    %-6s %-28s %9s bytes  %s\n' "$node" "nbd://$(node_addr $node):10809/$node" \
            "$(stat -c %s "$(node_image $node)")" "$(ps -o comm= -p "$(node_pid $node)")"
    done
    echo "    and a local disk: $(scratch 0), of which 64 MiB are used"
}

make_device() {
    step "What should exist is one file (dmsetup-tables/demo.yaml):"
    sed 's/^/    | /' "$TABLES/demo.yaml"
    step "dstd makes it so: tables, connections, sockets handed to the kernel."
    show dstd apply "$TABLES/demo.yaml"
    step "What an operator looks at:"
    show dstd status
    show dmsetup table archive
    show lsblk -o NAME,SIZE,TYPE,RO $DEV
    step "Asked again, there is nothing to do:"
    show dstd plan "$TABLES/demo.yaml"
}

# Where the parts meet, in sectors of the device.
boundaries() { dmsetup table archive | awk '$3 == "dst" { at = $1; for (i = 0; i < $4; i++) { at += $(7 + 3 * i); print at } }'; }

cross_boundaries() {
    step "Writes of 8 KiB straddling each boundary, found in two images each:"
    local b part=$T/straddle
    for b in $(boundaries); do
        head -c 8192 /dev/urandom >"$part"
        dd if="$part" of=$DEV bs=512 seek=$((b - 7)) oflag=direct status=none
        dd if=$DEV bs=512 skip=$((b - 7)) count=16 iflag=direct status=none | cmp - "$part"
        echo "    sectors $((b - 7))..$((b + 8)): written, read back, the same"
    done
    dd if=$DEV bs=512 skip=$((150001 - 7)) count=7 iflag=direct status=none |
        cmp - <(tail -c 3584 "$(node_image alpha)")
    dd if=$DEV bs=512 skip=150001 count=9 iflag=direct status=none |
        cmp - <(head -c 4608 "$(node_image beta)")
    echo "    the first straddling write: 7 sectors end alpha's image, 9 begin beta's"
}

use_ext4() {
    step "ext4 over all of it, with a real tree of files, compared and checked:"
    show mkfs.ext4 -q $DEV
    mkdir -p "$T/mnt"
    mount $DEV "$T/mnt"
    cp -a /usr/share /usr/lib/x86_64-linux-gnu "$T/mnt/"
    umount "$T/mnt" && mount $DEV "$T/mnt"
    diff -r --no-dereference /usr/share "$T/mnt/share"
    diff -r --no-dereference /usr/lib/x86_64-linux-gnu "$T/mnt/x86_64-linux-gnu"
    show df -h --output=size,used,target "$T/mnt"
    echo "    $(find "$T/mnt" -type f | wc -l) files copied and compared, none differs; on the nodes:"
    for node in alpha beta gamma delta; do
        echo "    $(du -h "$(node_image $node)" | awk '{print $1}') in $node's image"
    done
    umount "$T/mnt"
    show fsck.ext4 -fn $DEV
}

use_lvm() {
    step "The same device as an LVM physical volume: a linear LV, a live extension, a snapshot:"
    wipefs -qa $DEV
    show pvcreate -q $DEV
    show vgcreate -q store $DEV
    show lvcreate -q -L 120m -n data store
    mkfs.ext4 -q /dev/store/data
    mount /dev/store/data "$T/mnt"
    cp -a /usr/share/doc "$T/mnt/"
    show lvextend -q -L +60m store/data
    show resize2fs /dev/store/data
    show df -h --output=size,used,target "$T/mnt"
    sync
    show lvcreate -q -s -L 40m -n before store/data
    rm -rf "$T/mnt/doc"
    cp -a /usr/share/doc "$T/mnt/again"
    diff -r --no-dereference /usr/share/doc "$T/mnt/again"
    mkdir -p "$T/snap"
    mount -o ro /dev/store/before "$T/snap"
    diff -r --no-dereference /usr/share/doc "$T/snap/doc"
    echo "    the snapshot still has what was removed; the grown file system holds the new copy"
    show lvs -o lv_name,lv_size,origin,data_percent store
    umount "$T/snap" "$T/mnt"
}

tear_down() {
    step "Teardown:"
    show vgremove -q -f store
    # udev looks at a volume that was just released, and has it open for that moment
    quiet udevadm settle
    show dstd remove archive
    show dstd status
}

echo "DST on Linux $(uname -r), in a throwaway VM: systemd $(systemctl --version | awk 'NR==1 {print $2}'), udev, LVM $(lvm version | awk '/LVM version/ {print $3}')"
start_nodes
make_device
cross_boundaries
use_ext4
use_lvm
tear_down
printf '\nDone: one block device out of four machines and a local disk, %s s inside the VM.\n' "$SECONDS"
