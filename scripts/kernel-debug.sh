#!/usr/bin/env bash
# kernel-debug.sh: builds the debug kernel (KASAN, lockdep, kmemleak, object debugging, fault injection; debug.config)
# from Debian's linux-source in the cache, and prints the directory: vmlinuz, release, lib/modules/REL and
# usr/src/linux-headers-REL, which builds modules with this machine's gcc, as kernel.sh does for stock kernels.
# Called by kernel.sh. The first time takes half an hour on two cores and 3 GiB of room until it is done.
# Exit status 77 and a line "SKIPPED kernel debug: why" when Debian can't be asked for the source.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"
# shellcheck source=scripts/apt.sh
source "$here/apt.sh"

NAME=debug
SUITE=bookworm
SOURCE=linux-source-6.12
CONFIG=$here/debug.config
LOG=$CACHE/kernel-debug.log

fetch_source() {
    mkdir "$1/deb"
    (cd "$1/deb" && ask_archive "$SUITE" && apt-get -qq download "$SOURCE") ||
        skip_kernel "$NAME" "can't download $SOURCE from Debian's archive"
    dpkg -x "$1"/deb/*.deb "$1/deb"
    mkdir "$1/tree"
    tar -xf "$1/deb/usr/src/$SOURCE.tar.xz" -C "$1/tree" --strip-components=1
    rm -rf "${1:?}/deb"
}

# configure TREE: tinyconfig and ours; an option that did not come true is an error, as its check would be missed
# without a word.
configure() {
    local tree=$1 line missing=()
    make -s -C "$tree" tinyconfig
    grep -E '^(CONFIG_|# CONFIG_.* is not set$)' "$CONFIG" >>"$tree/.config"
    make -s -C "$tree" olddefconfig 2>>"$LOG"
    while read -r line; do
        case $line in
        CONFIG_*) grep -qxF -- "$line" "$tree/.config" || missing+=("$line") ;;
        '# CONFIG_'*) ! grep -q "^$(cut -d' ' -f2 <<<"$line")=" "$tree/.config" || missing+=("$line") ;;
        esac
    done <"$CONFIG"
    ((!${#missing[@]})) || die "$SOURCE has not, or not with the rest of debug.config: ${missing[*]}"
}

# prune TREE: leaves what `make -C TREE M=DIR modules` needs.
prune() {
    local tree=$1
    (
        cd "$tree"
        mv tools/objtool/objtool objtool.keep
        rm -rf Documentation drivers sound fs net mm block crypto security samples certs init io_uring ipc \
            lib kernel virt usr rust LICENSES vmlinux* System.map .tmp_* modules.* arch/x86/boot tools
        find arch -mindepth 1 -maxdepth 1 ! -name x86 ! -name Kconfig -exec rm -rf {} +
        find . -name '*.[aoS]' -delete -o -name '*.ko' -delete -o -name '.*.cmd' ! -path './scripts/*' -delete
        find arch/x86 -name '*.c' -delete
        mkdir -p tools/objtool
        mv objtool.keep tools/objtool/objtool
    )
}

build() {
    local out=$1 tree=$1/tree rel
    say "kernel $NAME: downloading $SOURCE"
    fetch_source "$out"
    : >"$LOG"
    configure "$tree"
    say "kernel $NAME: building it; this takes half an hour, once (log: $LOG)"
    make -C "$tree" -j"$(nproc)" bzImage modules >>"$LOG" 2>&1 || {
        grep -E 'error|\*\*\*' "$LOG" >&2 || tail -n 20 "$LOG" >&2
        die "the debug kernel does not build"
    }
    rel=$(make -s -C "$tree" kernelrelease) # it knows our suffix only when it has been built
    make -s -C "$tree" INSTALL_MOD_PATH="$out/usr" modules_install >>"$LOG" 2>&1
    mkdir -p "$out/usr/src"
    ln -s usr/lib "$out/lib"
    rm -f "$out/lib/modules/$rel"/{build,source}
    cp "$tree/arch/x86/boot/bzImage" "$out/vmlinuz"
    cp "$tree/.config" "$out/config"
    prune "$tree"
    mv "$tree" "$out/usr/src/linux-headers-$rel"
    echo "$rel" >"$out/release"
}

main() {
    local version dir last=$CACHE/kernels/$NAME.last
    "$here/setup-host.sh" kernel
    mkdir -p "$CACHE/kernels"
    ask_archive "$SUITE"
    version=$(apt-cache --no-all-versions show "$SOURCE" 2>/dev/null | sed -n 's/^Version: //p')
    exec 7>&- # others need not wait while this one builds
    if [[ -z $version ]]; then
        [[ -s $last && -d $(<"$last") ]] || skip_kernel "$NAME" "Debian's archive can't be reached or has no $SOURCE"
        cat "$last"
        return
    fi
    dir=$CACHE/kernels/${NAME}_${version}_$(content_key "$here/kernel-debug.sh" "$CONFIG")
    build_once "$dir" build
    echo "$dir" | tee "$last"
}
main "$@"
