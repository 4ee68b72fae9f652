#!/usr/bin/env bash
# install.sh [--remove] PREFIX: installs DST on this host: module through DKMS (so that a new kernel gets it,
# too), dstd, man pages and completions below PREFIX, udev rule and systemd unit. The one script that changes
# the host's kernel; called by `make install` and nothing else. Doing it again replaces what is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"
root=$here/..
VERSION=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' "$root/dm-target/dkms.conf")
SOURCE=/usr/src/dm-dst-$VERSION
RULES=/etc/udev/rules.d/56-dm-dst.rules
READY=/usr/lib/udev/dst-ready
UNITS=/etc/systemd/system
UNIT=$UNITS/dstd.service

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
    rm -rf "$SOURCE"
    mkdir -p "$SOURCE"
    (cd "$root/dm-target" && find . -type f ! -name '*.o' ! -name '*.ko' ! -name '*.cmd' ! -name '*.mod*' -print0 |
        tar --null -cf - -T -) | tar -xf - -C "$SOURCE"
    dkms install "dm-dst/$VERSION"
}

install_files() {
    local prefix=$1
    install -D -m 755 "$root/target/release/dstd" "$prefix/bin/dstd"
    mkdir -p "$prefix/share/man/man8" /etc/dst "$prefix/share/bash-completion/completions"
    "$prefix/bin/dstd" man "$prefix/share/man/man8"
    "$prefix/bin/dstd" completions bash >"$prefix/share/bash-completion/completions/dstd"
    install -D -m 644 "$root/dm-target/udev/56-dm-dst.rules" "$RULES"
    install -D -m 755 "$root/dm-target/udev/dst-ready" "$READY"
    sed "s|/usr/local/bin/dstd|$prefix/bin/dstd|" "$root/dstd/systemd/dstd.service" >"$UNIT"
    sed "s|ExecStart=dstd|ExecStart=$prefix/bin/dstd|" "$root/dstd/systemd/dstd-export.service" >"$UNITS/dstd-export.service"
    install -m 644 "$root/dstd/systemd/dstd-export.socket" "$UNITS/dstd-export.socket"
    udevadm control --reload 2>/dev/null || true
    systemctl daemon-reload 2>/dev/null || true
}

remove_all() {
    local prefix=$1
    systemctl disable --now dstd.service dstd-export.socket dstd-export.service 2>/dev/null || true
    rm -f "$prefix/bin/dstd" "$prefix"/share/man/man8/dstd*.8 "$prefix/share/bash-completion/completions/dstd" \
        "$RULES" "$READY" "$UNIT" "$UNITS"/dstd-export.{service,socket}
    modprobe -r dm-dst 2>/dev/null || say "the module is in use: it stays loaded until the next boot"
    dkms remove "dm-dst/$VERSION" --all 2>/dev/null || true
    rm -rf "$SOURCE"
}

if [[ ${1:-} == --remove ]]; then
    remove_all "${2:-/usr/local}"
    exit
fi
check_host
install_module
install_files "${1:-/usr/local}"
say "installed: put topologies into /etc/dst and run 'systemctl enable --now dstd' (docs/dstd.md)"
