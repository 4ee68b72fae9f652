#!/usr/bin/env bash
# The debug kernel finds bugs, and the harness fails the test that they show in: each is planted once (tests/planted),
# and must be found. On stock kernels, which find none of them, all are skipped. A report that switches lockdep off makes
# the agent reset the VM, so that the tests that follow are checked again.

# shellcheck source=tests/vm/checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/../checks.sh"

plant() {
    have_checks || skip "a stock kernel"
    assert_ok modprobe dst-planted "bug=$1"
    defer "modprobe -r dst-planted"
}

# All checks are on, and a boot does not spend them.
test_checks_are_on() {
    have_checks || skip "a stock kernel"
    assert_eq "$(spent_checks)" "" "checks that are off"
    local option
    for option in KASAN PROVE_LOCKING DEBUG_ATOMIC_SLEEP DEBUG_KMEMLEAK DEBUG_OBJECTS_WORK FAILSLAB FAIL_PAGE_ALLOC; do
        assert_ok zgrep -qx "CONFIG_$option=y" /proc/config.gz
    done
}

# Memory is read after it was freed.
# @expect-fail KASAN: slab-use-after-free
test_use_after_free() { plant use_after_free; }

# Memory is read behind its end.
# @expect-fail KASAN: slab-out-of-bounds
test_out_of_bounds() { plant out_of_bounds; }

# Memory is freed twice.
# @expect-fail KASAN: double-free
test_double_free() { plant double_free; }

# Two locks are taken in both orders.
# @timeout 200
# @expect-fail possible circular locking dependency
test_lock_inversion() { plant lock_inversion; }

# After that report the VM was reset: another one is seen, too.
# @timeout 200
# @expect-fail inconsistent lock state
test_lock_in_softirq() { plant lock_in_softirq; }

# Somebody sleeps who holds a spinlock.
# @expect-fail sleeping function called from invalid context
test_sleep_in_atomic() { plant sleep_in_atomic; }

# What holds a timer is freed while the timer runs.
# @expect-fail ODEBUG: free active
test_free_armed_timer() { plant free_armed_timer; }

# What holds a work item is freed while that is queued.
# @expect-fail ODEBUG: free active
test_free_queued_work() { plant free_queued_work; }

# An entry leaves its list twice.
# @expect-fail list_del corruption
test_list_twice() { plant list_twice; }

# A reference is given back that nobody had.
# @expect-fail refcount_t: decrement hit 0
test_refcount_below_zero() { plant refcount_below_zero; }

# Memory that nobody can reach is reported with the function that allocated it, also after its module has gone.
test_leak() {
    allow_klog 'dst-planted: leak gave' # it holds the word
    plant leak
    module_symbols dst_planted >"$T/symbols"
    assert_ok modprobe -r dst-planted
    leaks | with_symbols "$T/symbols" >"$T/leaks"
    assert_contains "$(cat "$T/leaks")" "unreferenced object" "what kmemleak reports"
    assert_contains "$(cat "$T/leaks")" " leak" "the backtrace"
    forget_leaks
    assert_eq "$(leaks)" "" "leaks, now that they are forgotten"
}
