#!/usr/bin/env bash
# What a guest test calls: skip/fail, assertions, waiting, reboot, scratch disks; nodes.sh has the servers.
# Sourced by run-one.sh before the test's file. Everything a test makes goes to $T (a directory that is
# removed afterwards) or is cleaned by the agent; what cleanup.sh can't know goes through `defer`.

# shellcheck source=tests/vm/nodes.sh
source "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"

export TABLES=/dst/payload/dmsetup-tables

fail() {
    [[ -s $STATE/why ]] || printf '%s\n' "$*" >"$STATE/why"
    exit 1
}

skip() {
    printf '%s\n' "$*" >"$STATE/skip"
    exit 77
}

# tracing: whether the kernel has it, at TRACING.
TRACING=/sys/kernel/tracing
tracing() { mountpoint -q $TRACING || mount -t tracefs tracefs $TRACING; }

# run COMMAND...: never fails; its output (both streams) is then in OUT, its status in RC.
run() {
    RC=0
    OUT=$("$@" 2>&1) || RC=$?
    printf '%s\n' "$ $* -> $RC" "$OUT"
}

assert_eq() { [[ $1 == "$2" ]] || fail "${3:-values differ}: got '$1', expected '$2'"; }
assert_contains() { [[ $1 == *"$2"* ]] || fail "${3:-text} does not contain '$2': '$1'"; }
assert_not_contains() { [[ $1 != *"$2"* ]] || fail "${3:-text} contains '$2': '$1'"; }
assert_match() { [[ $1 =~ $2 ]] || fail "${3:-text} does not match '$2': '$1'"; }
assert_same_bytes() { cmp "$1" "$2" || fail "$1 and $2 differ"; }

# assert_ok COMMAND... / assert_fails TEXT COMMAND...: the latter must fail and say TEXT.
assert_ok() {
    run "$@"
    ((RC == 0)) || fail "'$*' ended with $RC: $OUT"
}
assert_fails() {
    local text=$1
    shift
    run "$@"
    ((RC != 0)) || fail "'$*' succeeded but had to fail with '$text': $OUT"
    assert_contains "$OUT" "$text" "the error of '$*'"
}

# wait_until SECONDS WHAT COMMAND...: polls until COMMAND succeeds; fails after SECONDS (longer on the slow debug
# kernel), naming WHAT.
wait_until() {
    local deadline=$((SECONDS + $1 * ${SLOWNESS:-1})) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "waited in vain for: $what ('$*')"
        sleep 0.1
    done
}

# defer COMMAND: a shell line that cleanup runs after the test, last one first, also after a reboot.
defer() { printf '%s\n' "$*" >>"$STATE/deferred"; }

# scratch N: the path of the empty local disk N (0-3, 3 GiB, discards).
scratch() { readlink -f "/dev/disk/by-id/virtio-scratch$1"; }

# make_file PATH BYTES: a file of random bytes.
make_file() { head -c "$2" /dev/urandom >"$1"; }

# A test that survives a reboot calls reboot_vm (or crash_vm) in its first part; the same function then
# runs again with after_reboot true. phase tells how many reboots there were.
phase() { cat "$STATE/phase"; }
after_reboot() { (($(phase) > 0)); }
reboot_vm() {
    sync
    echo clean >"$STATE/reboot"
    exit 88
}
crash_vm() {
    echo crash >"$STATE/reboot"
    exit 88
}

# klog: the kernel's log since the test began. allow_klog REGEX: a splat that this test provokes on purpose.
klog() { dmesg | awk -v mark="dst-test: $(<"$STATE/current") starts" 'index($0, mark) { n = 0 } { l[n++] = $0 } END { for (i = 0; i < n; i++) print l[i] }'; }
allow_klog() { printf '%s\n' "$1" >>"$STATE/allowed"; }

need_module() { modinfo "$1" >/dev/null 2>&1 || skip "no module $1 here"; }
need_command() { command -v "$1" >/dev/null || skip "no $1 here"; }
