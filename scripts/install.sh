#!/usr/bin/env bash
# install.sh [--remove] PREFIX: installs DST on this host: module through DKMS (so that a new kernel gets it,
# too), dstd, man pages and completions below PREFIX, udev rule and systemd units. The one script that changes
# the host's kernel; called by `make install`. Doing it again replaces what is there; a dstd that runs goes on until it is
# restarted. With DESTDIR it only puts files (the module's source, too) below that directory and takes them away again, as
# makers of packages and a test do. MODULE=no leaves the module alone; DSTD names another binary than that of the tree.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"
root=$here/..
VERSION=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' "$root/dm-target/dkms.conf")
DESTDIR=${DESTDIR:-}
DSTD=${DSTD:-$root/target/release/dstd}
SOURCE=$DESTDIR/usr/src/dm-dst-$VERSION
RULES=$DESTDIR/etc/udev/rules.d/56-dm-dst.rules
READY=$DESTDIR/usr/lib/udev/dst-ready
UNITS=$DESTDIR/etc/systemd/system
ENABLED=(dstd.service dstd-export.socket dstd-export.service dstd-export@.socket dstd-export@.service)

# Nothing is installed on a host whose kernel could not use it.
check_host() {
    ((EUID == 0)) || die "install needs root"
    [[ -e /proc/modules ]] || die "this host's kernel loads no modules"
    modprobe dm-mod 2>/dev/null || [[ -e /dev/mapper/control ]] ||
        die "this host's kernel ($(uname -r)) has no device-mapper; try 'make demo', which brings its own"
}

install_module() {
    need "to build the module for this kernel, and each new one" dkms "linux-headers-$(uname -r)"
    dkms status "dm-dst/$VERSION" | grep -q . && dkms remove "dm-dst/$VERSION" --all >/dev/null
    install_source
    dkms install "dm-dst/$VERSION"
}

install_source() {
    rm -rf "$SOURCE"
    mkdir -p "$SOURCE"
    (cd "$root/dm-target" && find . -type f ! -name '*.o' ! -name '*.ko' ! -name '*.cmd' ! -name '*.mod*' -print0 |
        tar --null -cf - -T -) | tar -xf - -C "$SOURCE"
}

# At each moment there is a whole dstd, the old or the new one: systemd may want to start it now, or this script may be
# cut short.
install_binary() {
    install -D -m 755 "$DSTD" "$1.new"
    mv -fT "$1.new" "$1"
}

install_files() {
    local prefix=$1 share=$DESTDIR$1/share unit
    install_binary "$DESTDIR$prefix/bin/dstd"
    mkdir -p "$share/man/man1" "$share/bash-completion/completions" "$UNITS" "$DESTDIR"/etc/{dst,dst-export}
    "$DSTD" man "$share/man/man1"
    "$DSTD" completions bash >"$share/bash-completion/completions/dstd"
    install -D -m 644 "$root/dm-target/udev/56-dm-dst.rules" "$RULES"
    install -D -m 755 "$root/dm-target/udev/dst-ready" "$READY"
    for unit in "$root"/dstd/systemd/*; do
        sed "s|^ExecStart=dstd |ExecStart=$prefix/bin/dstd |" "$unit" >"$UNITS/${unit##*/}"
    done
}

tell_daemons() {
    udevadm control --reload 2>/dev/null || true
    systemctl daemon-reload 2>/dev/null || true
}

# What operators wrote below /etc stays.
remove_files() {
    local prefix=$1 share=$DESTDIR$1/share unit
    rm -f "$DESTDIR$prefix/bin/dstd"{,.new} "$share"/man/man[18]/dstd{,-*}.1 "$share/bash-completion/completions/dstd" "$RULES" "$READY"
    for unit in "$root"/dstd/systemd/*; do rm -f "$UNITS/${unit##*/}"; done
    rmdir "$DESTDIR"/etc/{dst,dst-export} 2>/dev/null || true
    rm -rf "$SOURCE"
}

remove_all() {
    systemctl disable "${ENABLED[@]}" 2>/dev/null || true
    systemctl stop dstd.service 'dstd-export*' 2>/dev/null || true
    modprobe -r dm-dst 2>/dev/null || say "the module is in use: it stays loaded until the next boot"
    dkms remove "dm-dst/$VERSION" --all 2>/dev/null || true
    remove_files "$1"
    tell_daemons
}

task=install
if [[ ${1:-} == --remove ]]; then
    task=remove
    shift
fi
prefix=${1:-/usr/local}
case $task:$DESTDIR in
remove:) remove_all "$prefix" ;;
remove:*) remove_files "$prefix" ;;
install:)
    check_host
    [[ ${MODULE:-yes} == no ]] || install_module
    install_files "$prefix"
    tell_daemons
    say "installed: put topologies into /etc/dst and run 'systemctl enable --now dstd' (docs/dstd.md)"
    ;;
*)
    install_source
    install_files "$prefix"
    ;;
esac
