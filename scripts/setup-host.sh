#!/usr/bin/env bash
# setup-host.sh [build|lint|vm|modules|kernel|interop|bench]...: makes a bare Debian 12 able to build dstd (build), to run
# the test VM (vm), to build dm-dst.ko (modules) or the debug kernel (kernel), to lint (lint), to run the node server's
# interop tests (interop) and its bench (bench); all without an argument. Called by the Makefile, dst-vm, kernel-debug.sh.
# Installs only what is missing, says so, and never touches the host's kernel.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

RUST_NEEDED=1.89

# A Rust toolchain on PATH (rustup's, Debian's) is used if it is new enough; else Debian's cargo-web and
# rustc-web (bookworm-security), which put cargo and rustc into /usr/bin.
setup_rust() {
    local have
    have=$(cargo --version 2>/dev/null | awk '{print $2}') || have=
    if [[ -n $have ]] && printf '%s\n' "$RUST_NEEDED" "$have" | sort -V -C; then return 0; fi
    [[ -z $have ]] || say "cargo $have is older than $RUST_NEEDED; taking Debian's cargo-web"
    need "Rust $RUST_NEEDED or newer" cargo-web rustc-web
    have=$(/usr/bin/cargo --version | awk '{print $2}')
    printf '%s\n' "$RUST_NEEDED" "$have" | sort -V -C ||
        die "Debian's cargo-web is $have, older than $RUST_NEEDED; is bookworm-security among the apt sources?"
}

setup_build() {
    need "to build dstd" gcc libc6-dev make pkg-config libdevmapper-dev libclang-dev ca-certificates
    setup_rust
}

setup_vm() {
    need "to run the test VM" qemu-utils nbdkit mmdebstrap e2fsprogs kmod busybox-static cpio \
        xz-utils zstd util-linux debian-archive-keyring
}

setup_modules() {
    need "to build the kernel module" gcc make sparse pahole kmod xz-utils zstd libelf1 mmdebstrap debian-archive-keyring
}

setup_kernel() {
    need "to build the debug kernel" gcc libc6-dev make flex bison bc perl-base libelf-dev libssl-dev cpio kmod \
        xz-utils zstd debian-archive-keyring
}

setup_bench() {
    need "to measure dstd export" fio nbdkit nbd-server qemu-utils
}

setup_interop() {
    need "to test dstd export with real clients" fio libnbd-bin nbdkit nbd-server procps python3 python3-libnbd \
        qemu-utils qemu-system-x86 e2fsprogs busybox-static cpio kmod xz-utils zstd
}

# The linters of the toolchain in use: rustup brings its own, Debian's are packages.
setup_lint() {
    need "to check scripts" shellcheck
    cargo clippy --version >/dev/null 2>&1 || need "to lint Rust" rust-web-clippy
    cargo fmt --version >/dev/null 2>&1 || need "to check Rust's formatting" rustfmt-web
}

(($#)) || set -- build lint vm modules kernel interop bench
for part in "$@"; do
    case $part in
    build | lint | vm | modules | kernel | interop | bench) "setup_$part" ;;
    *) die "unknown part '$part': build, lint, vm, modules, kernel, interop or bench" ;;
    esac
done
