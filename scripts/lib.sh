#!/usr/bin/env bash
# Owns what the set-up scripts share: messages, Debian packages on demand, the cache outside the tree.
# Sourced by every script in scripts/; never run by itself, never changes the host's kernel.
# Everything made goes to a temporary directory first and gets its name by one rename under a lock,
# so an interrupted or doubled run leaves either the whole thing or nothing.

# shellcheck disable=SC2034  # used by those who source this
CACHE=${DST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dst}
MIRROR=${DST_MIRROR:-http://deb.debian.org/debian}
SECURITY_MIRROR=${DST_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
PATH=$PATH:/usr/sbin:/sbin # debugfs, mke2fs and depmod, also where a user's PATH has none of it

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# Exit status 77 means "can't be had here": the callers report it as skipped, never as passed.
skip_kernel() {
    say "SKIPPED kernel $1: $2"
    exit 77
}

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# need WHY PACKAGE... installs the packages that are missing; silent when none is.
need() {
    local why=$1 pkg missing=()
    shift
    for pkg in "$@"; do
        installed "$pkg" || missing+=("$pkg")
    done
    ((${#missing[@]})) || return 0
    say "installing from Debian, $why: ${missing[*]}"
    ((EUID == 0)) || die "these packages are missing and only root can install them: ${missing[*]}"
    mkdir -p "$CACHE"
    (
        flock 9
        local log=$CACHE/apt.log
        { apt-get -qq update || true; } >"$log" 2>&1
        apt-get -qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}" \
            >>"$log" 2>&1 </dev/null || {
            tail -n 20 "$log" >&2
            die "apt-get could not install ${missing[*]} (whole log: $log)"
        }
    ) 9>"$CACHE/apt.lock"
}

# content_key FILE_OR_STRING... prints a short hash of the files' contents and the strings.
content_key() {
    local arg
    for arg in "$@"; do
        if [[ -f $arg ]]; then cat "$arg"; else printf '%s\n' "$arg"; fi
    done | sha256sum | cut -c1-16
}

# build_once PATH FUNCTION ARG...: unless PATH exists, lets FUNCTION fill an empty directory (its first
# argument) and renames that to PATH.
build_once() {
    local final=$1 fn=$2
    shift 2
    [[ -e $final ]] && return 0
    mkdir -p "$(dirname "$final")" "$CACHE/tmp" "$CACHE/locks"
    exec 8>"$CACHE/locks/$(content_key "path $final")"
    flock 8
    if [[ ! -e $final ]]; then
        BUILD_TMP=$(mktemp -d "$CACHE/tmp/build.XXXXXX")
        trap 'rm -rf --one-file-system "$BUILD_TMP"' EXIT
        chmod 755 "$BUILD_TMP"
        "$fn" "$BUILD_TMP" "$@"
        mv -T "$BUILD_TMP" "$final"
        trap - EXIT
    fi
    exec 8>&-
}
