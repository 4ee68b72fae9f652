#!/usr/bin/env bash
# kernel.sh NAME (6.1 | 6.12 | sid | debug): finds the newest stock Debian cloud kernel of that line, unpacks it
# into the cache and prints the directory: vmlinuz, release, lib/modules/REL (plain .ko, depmod run) and
# what builds modules for it: usr/src (headers, this machine's gcc) or chroot/ (sid, with sid's own gcc).
# Called by build-module.sh, initrd.sh and dst-vm; debug is kernel-debug.sh's. Never installs a kernel on the host,
# never pins a version. Exit status 77 and a line "SKIPPED kernel NAME: why" when Debian can't be asked for it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"
# shellcheck source=scripts/apt.sh
source "$here/apt.sh"

# The newest release that has both an image and headers.
newest_release() {
    apt-cache search --names-only "^linux-(image|headers)-$1.*-cloud-amd64\$" |
        sed -nE 's/^linux-(image|headers)-([0-9][^ ]*) .*/\2/p' | sort -V | uniq -d | tail -n 1
}

version_of() { apt-cache --no-all-versions show "linux-image-$1" | sed -n 's/^Version: //p'; }

# The packages of one kernel: the image is split differently from suite to suite, so follow Depends.
kernel_packages() {
    local rel=$1 what=$2 base=${1%-cloud-amd64}
    base=${base//./\\.} base=${base//+/\\+}
    apt-cache --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances depends "linux-$what-$rel" |
        grep -oE "^linux-[a-z]+-$base(-cloud-amd64|-common)?\$|^linux-kbuild-.*" | sort -u
}

unpack() {
    local out=$1 rel=$2 pkgs deb
    say "kernel $NAME: downloading and unpacking $rel"
    mkdir -p "$out/debs" "$out/usr/lib"
    ln -s usr/lib "$out/lib"
    pkgs=$(kernel_packages "$rel" image)
    [[ $SUITE == sid ]] || pkgs+=" $(kernel_packages "$rel" headers)"
    # shellcheck disable=SC2086  # a list of package names
    (cd "$out/debs" && apt-get -qq download $pkgs) ||
        skip_kernel "$NAME" "can't download $rel from Debian's archive"
    for deb in "$out"/debs/*.deb; do dpkg -x "$deb" "$out"; done
    rm -rf "${out:?}/debs" "${out:?}/usr/share"
    find "$out/boot" "$out/lib/modules" -name 'vmlinuz*' -type f -exec mv {} "$out/vmlinuz" \; 2>/dev/null || true
    [[ -s $out/vmlinuz ]] || die "the packages of $rel hold no vmlinuz"
    rm -rf "${out:?}/boot"
    find "$out/lib/modules" -name '*.ko.xz' -print0 | xargs -0r -n 64 -P "$(nproc)" xz -d
    find "$out/lib/modules" -name '*.ko.zst' -print0 | xargs -0r -n 64 -P "$(nproc)" zstd -q --rm -d
    rm -f "$out/lib/modules/$rel"/{build,source}
    depmod -b "$out" "$rel"
    if [[ $SUITE == sid ]]; then build_chroot "$out/chroot" "$rel"; else localise_headers "$out" "$rel"; fi
    echo "$rel" >"$out/release"
}

# The headers' Makefile names /usr/src; make it find its sibling wherever the cache lies.
localise_headers() {
    # shellcheck disable=SC2016  # make's variables, not ours
    sed -i 's#^include /usr/src/#include $(dir $(realpath $(lastword $(MAKEFILE_LIST))))../#' \
        "$1/usr/src/linux-headers-$2/Makefile"
}

build_chroot() {
    say "kernel $NAME: making a build chroot with $SUITE's compiler"
    sources_of "$SUITE" | env -u APT_CONFIG mmdebstrap --quiet --mode=root --variant=essential \
        --include="linux-headers-$2,make,sparse" --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$SUITE" "$1" - >"$1.log" 2>&1 || {
        tail -n 15 "$1.log" >&2
        skip_kernel "$NAME" "mmdebstrap could not make the build chroot for $2"
    }
}

main() {
    NAME=${1:?usage: kernel.sh 6.1|6.12|sid|debug}
    local pattern rel dir last
    [[ $NAME != debug ]] || exec "$here/kernel-debug.sh"
    case $NAME in
    6.1 | 6.12) SUITE=bookworm pattern=${NAME/./\\.}'\.' ;;
    sid) SUITE=sid pattern='[0-9]' ;;
    *) die "unknown kernel '$NAME': 6.1, 6.12, sid or debug" ;;
    esac
    need "for kernels" kmod xz-utils zstd mmdebstrap debian-archive-keyring
    mkdir -p "$CACHE/kernels"
    ask_archive "$SUITE"
    rel=$(newest_release "$pattern")
    last=$CACHE/kernels/$NAME.last
    if [[ -z $rel ]]; then
        [[ -s $last && -d $(cat "$last") ]] || skip_kernel "$NAME" "Debian's archive can't be reached or has no such kernel"
        cat "$last"
        return
    fi
    dir=$CACHE/kernels/${rel}_$(version_of "$rel")_$(content_key "$here/kernel.sh")
    build_once "$dir" unpack "$rel"
    echo "$dir" | tee "$last"
}
main "$@"
