#!/usr/bin/env bash
# kernel.sh NAME (6.1 | 6.12 | sid): finds the newest stock Debian cloud kernel of that line, unpacks it
# into the cache and prints the directory: vmlinuz, release, lib/modules/REL (plain .ko, depmod run) and
# what builds modules for it: usr/src (headers, this machine's gcc) or chroot/ (sid, with sid's own gcc).
# Called by build-module.sh, initrd.sh and dst-vm. Never installs a kernel on the host, never pins a
# version. Exit status 77 and a line "SKIPPED kernel NAME: why" when Debian can't be asked for it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

LISTS_MAX_AGE_MIN=${DST_LISTS_MAX_AGE_MIN:-720}

sources_of() {
    case $1 in
    bookworm)
        echo "deb [signed-by=$KEYRING] $MIRROR bookworm main"
        echo "deb [signed-by=$KEYRING] $SECURITY_MIRROR bookworm-security main"
        ;;
    sid) echo "deb [signed-by=$KEYRING] $MIRROR sid main" ;;
    esac
}

# A private apt: own sources, lists and dpkg status, so the host's apt never hears of foreign suites.
# sid's Valid-Until is not checked (a mirror may lag a week); the signatures are.
private_apt() {
    local dir=$CACHE/apt/$1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/empty.d"
    : >>"$dir/status"
    sources_of "$1" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/empty.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$dir/empty.d";
Dir::State::status "$dir/status";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures {"amd64";};
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
CONF
    export APT_CONFIG=$dir/apt.conf
}

refresh_lists() {
    local dir=$CACHE/apt/$1
    [[ -n $(find "$dir/stamp" -mmin "-$LISTS_MAX_AGE_MIN" 2>/dev/null) ]] && return 0
    say "kernel $NAME: asking Debian's archive ($1) for its newest version"
    if apt-get -qq -o APT::Update::Error-Mode=any update >"$dir/update.log" 2>&1; then
        touch "$dir/stamp"
    else
        say "kernel $NAME: apt-get update failed ($(tail -n 1 "$dir/update.log")); using what the cache has"
    fi
}

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
    NAME=${1:?usage: kernel.sh 6.1|6.12|sid}
    local pattern rel dir last
    case $NAME in
    6.1 | 6.12) SUITE=bookworm pattern=${NAME/./\\.}'\.' ;;
    sid) SUITE=sid pattern='[0-9]' ;;
    *) die "unknown kernel '$NAME': 6.1, 6.12 or sid" ;;
    esac
    need "for kernels" kmod xz-utils zstd mmdebstrap debian-archive-keyring
    mkdir -p "$CACHE/kernels" "$CACHE/apt"
    exec 7>"$CACHE/apt/$SUITE.lock"
    flock 7
    private_apt "$SUITE"
    refresh_lists "$SUITE"
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
