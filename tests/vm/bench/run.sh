#!/usr/bin/env bash
# The guest side of `make bench`, started by agent.sh: walks through the plan that tests/bench-vm made, line by line,
#     run SETUP CONNECTIONS JOB ROUND      the setup is made when it isn't there yet
#     down SETUP CONNECTIONS               and taken away
# and leaves what each run said in $RESULTS/logs/bench/SETUP/cCONNECTIONS/JOB/ROUND. It talks to dst-vm as agent.sh does.
# What lies there already is left out, so that it goes on where it was when the VM died. Judges nothing.
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RESULTS=${STATE%/state}
OUT=$RESULTS/logs/bench
LIMIT=600 # of one run, in seconds of the host
export BENCH_MSECS BENCH_ZERO_COPY T STATE TRACE=$OUT/trace
declare -A IS_UP=()

tell() { printf '@@ %s\n' "$*"; }

# One line each for the table's head: what was measured, and with what.
describe() {
    printf 'kernel\t%s\n' "$(uname -r)"
    printf 'cpus\t%s\n' "$(nproc)"
    printf 'clock\t%s\n' "$(</sys/devices/system/clocksource/clocksource0/current_clocksource)"
    printf 'fio\t%s\n' "$(fio --version)"
    printf 'nbdkit\t%s\n' "$(nbdkit --version)"
    printf 'nbd-server\t%s\n' "$(nbd-server -V 2>&1 | head -n 1)"
    printf 'qemu-nbd\t%s\n' "$(qemu-nbd --version | head -n 1)"
    printf 'dstd\t%s\n' "$(dstd --version)"
    printf 'zero_copy\t%s\n' "$BENCH_ZERO_COPY"
    printf 'msecs\t%s\n' "$BENCH_MSECS"
}

# attempt FUNCTION ARG...: one of steps.sh, in a process of its own, so that whatever fails in it ends only that; the
# reason is then in WHY.
attempt() {
    local status=0
    rm -f "$STATE/why"
    bash "$here/../run-one.sh" "$here/steps.sh" "$@" >"$T/said" 2>&1 </dev/null 4<&- || status=$?
    WHY=
    ((status)) || return 0
    WHY="$* ended with $status: $(cat "$STATE/why" 2>/dev/null) $(tail -n 3 "$T/said" | tr '\n' ' ')"
    return 1
}

# The setup is up, or the reason why it isn't is in WHY: it is tried once.
bring_up() {
    local key=$1/$2
    case ${IS_UP[$key]:-} in
    yes) return 0 ;;
    "")
        if attempt setup_up "$1" "$2"; then
            IS_UP[$key]=yes
            return 0
        fi
        IS_UP[$key]=$WHY
        ;;
    *) WHY=${IS_UP[$key]} ;;
    esac
    return 1
}

take_down() {
    [[ ${IS_UP[$1/$2]:-} == yes ]] || return 0
    unset "IS_UP[$1/$2]"
    attempt setup_down "$1" || tell "why $1 can't be taken down: $WHY"
}

run_one() {
    local setup=$1 connections=$2 job=$3 round=$4 name=$1/c$2/$3/$4 dir=$OUT/$1/c$2/$3/$4 began=$SECONDS
    [[ ! -e $dir/done ]] || return 0
    tell "start $name $LIMIT"
    mkdir -p "$dir"
    if [[ -e $dir/began ]]; then
        WHY="the VM died in it"
    else
        touch "$dir/began"
        sync -f "$RESULTS"
        if bring_up "$setup" "$connections" && attempt job "$setup" "$job" "$dir"; then
            attempt settle "$setup" || true
        fi
    fi
    if [[ -z $WHY ]]; then
        tell "ok $name $((SECONDS - began))"
    else
        printf '%s\n' "$WHY" >"$dir/why"
        tell "fail $name $((SECONDS - began))"
        tell "why ${WHY:0:600}"
    fi
    touch "$dir/done"
}

mkdir -p "$OUT" "$T"
describe >"$OUT/versions"
attempt make_ram_disks || tell "why $WHY"
while read -r what setup connections job round <&4; do
    case $what in
    run) run_one "$setup" "$connections" "$job" "$round" ;;
    down) take_down "$setup" "$connections" ;;
    esac
done 4</dst/payload/plan
cp /proc/cpuinfo "$OUT/cpuinfo"
grep -H . /sys/module/nvme_core/parameters/multipath /proc/sys/net/ipv4/tcp_[rw]mem >"$OUT/settings" 2>&1 || true
[[ -z ${BENCH_PROFILE:-} ]] || cp /proc/kallsyms "$OUT/kallsyms"
dmesg >"$OUT/klog"
