#!/usr/bin/env bash
# Owns the kernel log of a test: marks its start, saves what came since, finds splats in it.
# Sourced by agent.sh; a test may allow one it provokes with allow_klog (lib.sh).

# What no test may cause, whoever's fault it is.
SPLATS='BUG:|WARNING:|Oops|general protection|kernel panic|KASAN|KCSAN|KFENCE|UBSAN|kmemleak|lockdep'
SPLATS+='|possible recursive locking|possible circular locking|suspicious RCU|inconsistent lock state'
SPLATS+='|blocked for more than|soft lockup|hard LOCKUP|rcu: (INFO|.* starved)|scheduling while atomic'
SPLATS+='|sleeping function called|refcount_t|list_(add|del) corruption|[Ll]eak|Bad page state|bad page map'
SPLATS+='|waiting for .* to become free|page allocation failure|double free|Objects remaining'
SPLATS+='|Unable to handle|stack-protector|use-after-free|out-of-bounds|still allocated|hung_task'
SPLATS+='|ODEBUG|DEBUG_LOCKS_WARN_ON'

# Our own mark, and what the debug kernel says when all is well; leaks are asked for, with their backtraces, in checks.sh.
BENIGN='dst-test: .* starts|Kernel memory leak detector initialized|RCU lockdep checking is enabled|new suspected memory leaks|use-after-free debug is enabled'

klog_mark() { echo "dst-test: $1 starts" >/dev/kmsg; }

# Appends what the kernel said since the mark (after a reset: since the boot).
klog_save() {
    dmesg | awk -v mark="dst-test: $1 starts" '
        index($0, mark) { n = 0 }
        { line[n++] = $0 }
        END { for (i = 0; i < n; i++) print line[i] }' >>"$RESULTS/logs/$1.klog"
}

# Prints the splats of a test's saved log, except those it allowed; true if there are any.
klog_splats() {
    grep -E "$SPLATS" "$RESULTS/logs/$1.klog" | grep -vE "$BENIGN" | grep -vEf <(cat "$STATE/allowed" 2>/dev/null || echo '^$') | grep .
}
