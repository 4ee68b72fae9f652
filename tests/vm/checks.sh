#!/usr/bin/env bash
# What the debug kernel's checks know and don't say in the log: memory that nobody can reach any more, and whether
# they still check (lockdep and kmemleak switch themselves off after some reports). Sourced by agent.sh, and by tests
# of the checks. On a stock kernel there is nothing to ask, and all is well.

KMEMLEAK=/sys/kernel/debug/kmemleak

have_checks() { [[ -e $KMEMLEAK ]]; }

# spent_checks: what is off, one a line.
spent_checks() {
    have_checks || return 0
    [[ $(awk '/debug_locks:/ { print $2 }' /proc/lockdep_stats) == 1 ]] || echo "lockdep is off"
    # it says no more than that it has nothing to report, but refuses to scan
    { echo scan=off >$KMEMLEAK; } 2>/dev/null || echo "kmemleak is off"
}

# forget_leaks: what is lost by now is not held against what comes.
forget_leaks() {
    have_checks || return 0
    { echo scan && echo clear; } >$KMEMLEAK
}

# leaks: prints what nobody can reach. An object must be 5 s old and the same in two scans; a third one takes
# back what only passed from hand to hand during the others.
leaks() {
    have_checks || return 0
    sleep 5
    echo scan >$KMEMLEAK || return
    echo scan >$KMEMLEAK
    [[ -n $(head -c 1 $KMEMLEAK) ]] || return 0
    echo scan >$KMEMLEAK
    cat $KMEMLEAK
}

# The module's symbols, to be saved while it is loaded; with_symbols FILE then puts them to the backtraces that it left.
module_symbols() { awk -v m="[$1]" '$4 == m && $2 ~ /[tT]/ { print $1, $3 }' /proc/kallsyms | sort; }
with_symbols() {
    awk '
        NR == FNR { at[n] = $1; name[n++] = $2; next }
        length($NF) == 18 && $NF ~ /^0x[0-9a-f]+$/ { # mawk knows no {16}
            address = substr($NF, 3)
            for (i = n - 1; i >= 0 && at[i] > address; i--) continue
            if (i >= 0) $0 = $0 " " name[i]
        }
        { print }' "$1" -
}
