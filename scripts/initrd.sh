#!/usr/bin/env bash
# initrd.sh KERNEL_DIR: makes the small busybox initrd for a kernel that kernel.sh unpacked, in the cache,
# and prints its path. Its name is the hash of this script, its init and the kernel's directory.
# Called by dst-vm; holds nothing of ours but scripts/initrd/init.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

DRIVERS=(virtio_pci virtio_blk ext4)
APPLETS=(sh mount umount mkdir cat cp dd rm sync sha256sum grep insmod poweroff reboot sleep usleep switch_root)

make_initrd() {
    local out=$1 kernel=$2 rel tree applet ko
    rel=$(<"$kernel/release")
    tree=$out/tree
    mkdir -p "$tree"/{bin,dev,proc,sys,ko}
    cp /bin/busybox "$tree/bin/busybox"
    for applet in "${APPLETS[@]}"; do ln -s busybox "$tree/bin/$applet"; done
    install -m 755 "$here/initrd/init" "$tree/init"
    # crc32c is asked for by name at run time, so it is no dependency that modprobe could tell
    for ko in $(modprobe -d "$kernel" -S "$rel" --show-depends -a crc32c_generic "${DRIVERS[@]}" 2>/dev/null |
        awk '$1 == "insmod" && !seen[$2]++ {print $2}'); do
        cp "$ko" "$tree/ko/"
        echo "/ko/$(basename "$ko")" >>"$tree/modules"
    done
    [[ -s $tree/modules ]] || : >"$tree/modules"
    (cd "$tree" && find . -print0 | cpio -0 --quiet -R 0:0 -H newc -o) >"$out/initrd"
    rm -rf "$tree"
}

main() {
    local kernel=${1:?usage: initrd.sh KERNEL_DIR} key
    need "for the guest's initrd" busybox-static cpio kmod
    key=$(content_key "$here/initrd.sh" "$here/initrd/init" "$kernel")
    build_once "$CACHE/initrd/$key" make_initrd "$kernel"
    echo "$CACHE/initrd/$key/initrd"
}
main "$@"
