#!/usr/bin/env bash
# A virtual machine whose disk is an export: qemu's block layer as the client, a guest's ext4 above it.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# guest_files: what the guest's file system holds afterwards, read from the served file.
guest_files() {
    local name
    for name; do debugfs -R "cat /$name" "$T/disk" 2>>"$T/debugfs.log"; done
}

# The guest copies, deletes (with discards), writes and syncs; afterwards the file is a whole ext4 with those bytes.
# @timeout 300
# @broken forgets
# @broken bytes
# @broken write-errors
test_disk_of_a_vm() {
    need_command qemu-system-x86_64
    local kernel initrd full
    kernel=$("$ROOT/scripts/kernel.sh" 6.12) || skip "no kernel to boot"
    initrd=$("$ROOT/scripts/initrd.sh" "$kernel")
    mkdir -p "$T/tree/in" "$T/tree/gone"
    make_file "$T/tree/in/one" 6M
    make_file "$T/tree/in/two" 3M
    make_file "$T/tree/gone/it" 24M
    truncate -s 96M "$T/disk"
    assert_ok mke2fs -q -t ext4 -d "$T/tree" "$T/disk"
    full=$(kib "$T/disk")
    serve disk="$T/disk"
    run timeout 240 qemu-system-x86_64 -accel tcg -cpu qemu64 -m 256 -nodefaults -display none -no-reboot \
        -kernel "$kernel/vmlinuz" -initrd "$initrd" -append "console=ttyS0 dst.disk panic=-1 quiet" \
        -drive "file=$URI,format=raw,if=none,id=work,cache=none,discard=unmap" \
        -device virtio-blk-pci,drive=work,serial=work -serial "file:$T/console.log"
    assert_contains "$(<"$T/console.log")" DST-DISK-OK "the guest"
    stop_server TERM
    assert_ok e2fsck -f -n "$T/disk"
    guest_files in/one in/two | cmp - <(cat "$T/tree/in/one" "$T/tree/in/two") || fail "the old files have changed"
    guest_files out/one out/two | cmp - <(cat "$T/tree/in/one" "$T/tree/in/two") || fail "the copies differ"
    assert_eq "$(guest_files new | sha256sum | cut -d' ' -f1)" "$(guest_files sums | awk '$2 == "new" { print $1 }')" "the new file"
    # 24 MiB came, 9 were copied, 24 went and were discarded
    (($(kib "$T/disk") <= full + 12 * 1024)) || fail "$(kib "$T/disk") KiB, were $full: nothing was discarded"
}
