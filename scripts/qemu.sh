#!/usr/bin/env bash
# qemu.sh: puts Debian trixie's qemu-system-x86_64 into the cache and prints the path of a launcher for it, which needs
# nothing of the host's. Called by dst-vm. The host's own QEMU is never used for VMs with several CPUs: before 8.1 a CPU
# could translate code that another one was just patching, and keep the stale copy. What the guest then executed was
# the int3 that Linux puts there for that moment (text_poke_bp): an Oops whenever a tracepoint or a kprobe was switched
# on at the wrong time, and some boots that died without a word.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

SUITE=trixie

# The packages are only unpacked, never set up: QEMU runs from there with its own libraries and firmware.
unpack() {
    say "qemu: unpacking Debian $SUITE's (half a minute, 170 MB, once)"
    mmdebstrap --quiet --mode=root --variant=extract --include=qemu-system-x86 --dpkgopt='path-exclude=/usr/share/doc/*' \
        "$SUITE" "$1/root" "$MIRROR" >"$CACHE/qemu.log" 2>&1 || {
        tail -n 5 "$CACHE/qemu.log" >&2
        die "mmdebstrap could not unpack QEMU (whole log: $CACHE/qemu.log)"
    }
    rm -rf "$1"/root/var/cache/apt/* "$1"/root/var/lib/apt/lists/*
    write_launcher "$1/qemu-system-x86_64" "$2/root"
}

# write_launcher FILE ROOT: its process becomes QEMU, so that a signal to it reaches QEMU.
write_launcher() {
    cat >"$1" <<LAUNCHER
#!/bin/sh
exec "$2/usr/lib64/ld-linux-x86-64.so.2" --library-path "$2/usr/lib/x86_64-linux-gnu" \\
    "$2/usr/bin/qemu-system-x86_64" -L "$2/usr/share/qemu" -L "$2/usr/share/seabios" "\$@"
LAUNCHER
    chmod 755 "$1"
}

need "to unpack QEMU" mmdebstrap debian-archive-keyring
dir=$CACHE/qemu/$(content_key "$here/qemu.sh" "$MIRROR")
build_once "$dir" unpack "$dir"
echo "$dir/qemu-system-x86_64"
