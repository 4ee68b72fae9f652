#!/bin/sh
# What the kernel has done so far, left in WHEN.txt of the working directory right before and right after a job (jobs.fio):
# count.sh prerun|postrun. Of a job's submitters the first one counts and the others don't: each costs what is measured. Run by
# /bin/sh, so that it costs little. Read by tests/bench-vm/src/counters.rs: /proc/stat (context switches, softirqs), TCP's
# segments, each disk's requests and merges, and the CPUs' idle time in nanoseconds, in which somebody waits for I/O or nobody.
set -C
true >"$1.txt" || exit 0
exec >|"$1.txt"
[ -z "$BENCH_PROFILE" ] || dst-mark
cat /proc/stat /proc/net/snmp /proc/diskstats
grep -E '(idle|iowait)_sleeptime|^now at' /proc/timer_list
