#!/usr/bin/env bash
# clients.sh: makes a root directory with a newer Debian's NBD clients (libnbd with extended headers, qemu 10, fio)
# in the cache and prints its path; exit status 77 where it can't be had. Called by tests/interop/run, which enters
# it with the tree mounted on /dst; nothing is ever written to it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

SUITE=trixie
PACKAGES=libnbd-bin,python3-libnbd,qemu-utils,fio,nbdkit,nbd-server,procps

make_root() {
    say "clients: making a root directory with Debian $SUITE's NBD clients (a minute, 250 MB, once)"
    mmdebstrap --quiet --mode=root --variant=required --include="$PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$SUITE" "$1/root" "$MIRROR" >"$CACHE/clients.log" 2>&1 || {
        tail -n 5 "$CACHE/clients.log" >&2
        say "SKIPPED clients of $SUITE: mmdebstrap could not make the root directory"
        exit 77
    }
    mkdir "$1/root/dst" "$1/root/dst-bin"
    rm -rf "$1"/root/var/cache/apt/* "$1"/root/var/lib/apt/lists/*
}

need "for newer NBD clients" mmdebstrap debian-archive-keyring
dir=$CACHE/clients/$(content_key "$here/clients.sh" "$MIRROR")
build_once "$dir" make_root
echo "$dir/root"
