#!/usr/bin/env bash
# build-module.sh NAME [--sparse] [--source DIR]: builds dm-target/ for a kernel of kernel.sh, in a copy so
# that the tree stays clean, with W=1, and prints the path of the .ko in the cache (keyed by the sources
# and the kernel). Fails on any warning from our files; --sparse also on anything sparse says about them.
# Called by dst-vm and the Makefile. Exit status 77: the kernel can't be had.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

sources() { (cd "$SOURCE" && find . -type f \( -name '*.[chS]' -o -name 'Kbuild*' -o -name 'Makefile*' -o -name '*.sh' \) ! -name '*.mod.c' | LC_ALL=C sort); }

# run_make OBJDIR ARG...: in the kernel's own surroundings (sid: the chroot, where OBJDIR lies).
run_make() {
    local dir=$1 rel
    shift
    rel=$(<"$KERNEL/release")
    if [[ -d $KERNEL/chroot ]]; then
        # objtool wants /proc; a mount namespace of its own leaves nothing behind
        # shellcheck disable=SC2016  # expanded by the inner bash
        unshare --mount --propagation private bash -c 'mount -t proc proc "$1/proc" && exec chroot "$@"' - \
            "$KERNEL/chroot" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
            make -C "/usr/src/linux-headers-$rel" M="${dir#"$KERNEL/chroot"}" "$@"
    else
        make -C "$KERNEL/usr/src/linux-headers-$rel" M="$dir" "$@"
    fi
}

# The lines of a build log that are about our files.
complaints() { grep -E "^(${1#"$KERNEL/chroot"}/|$1/|\./)?[A-Za-z0-9_/.-]+: *([0-9]+: *)*(warning|error):|^(WARNING|ERROR): modpost" "$2" | grep -vE '^/usr/src|/usr/src/linux-headers|^\./(include|arch)/'; }

compile() {
    local out=$1 dir args=(W=1 -j"$(nproc)" modules)
    dir=$(mktemp -d "${KERNEL_TMP}/module.XXXXXX")
    # shellcheck disable=SC2064  # the directory of now
    trap "rm -rf '$dir' '$out'" EXIT
    (cd "$SOURCE" && sources | tar -cf - -T -) | tar -xf - -C "$dir"
    # not C=1: Debian's 7.2 headers lack the script that C=1 asks whether sparse works
    ((!SPARSE)) || args=(KBUILD_CHECKSRC=1 CHECK=sparse "${args[@]}")
    if ! run_make "$dir" "${args[@]}" >"$out/build.log" 2>&1; then
        grep -E 'error|\*\*\*' "$out/build.log" >&2 || tail -n 30 "$out/build.log" >&2
        die "dm-target does not build for $NAME ($(<"$KERNEL/release"))"
    fi
    if complaints "$dir" "$out/build.log" >&2; then
        die "dm-target builds for $NAME ($(<"$KERNEL/release")) only with the warnings above"
    fi
    if ((SPARSE)) && ! grep -q '^  CHECK ' "$out/build.log"; then die "sparse did not run; see its version and the headers"; fi
    cp "$dir"/*.ko "$out/"
    rm -rf "$dir"
}

main() {
    local key
    SPARSE=0 SOURCE=$here/../dm-target NAME=
    while (($#)); do
        case $1 in
        --sparse) SPARSE=1 ;;
        --source) SOURCE=${2:?--source needs a directory} && shift ;;
        *) NAME=$1 ;;
        esac
        shift
    done
    [[ -n $NAME ]] || die "usage: build-module.sh 6.1|6.12|sid|debug [--sparse]"
    "$here/setup-host.sh" modules
    KERNEL=$("$here/kernel.sh" "$NAME") # its own exit status, 77 too, is ours
    KERNEL_TMP=$CACHE/tmp
    mkdir -p "$KERNEL_TMP"
    [[ ! -d $KERNEL/chroot ]] || KERNEL_TMP=$KERNEL/chroot/tmp
    key=$(cd "$SOURCE" && sources | xargs sha256sum)
    key=$(content_key "$here/build-module.sh" "$key" "$KERNEL" "sparse $SPARSE")
    build_once "$CACHE/modules/$key" compile
    find "$CACHE/modules/$key" -name '*.ko'
}
main "$@"
