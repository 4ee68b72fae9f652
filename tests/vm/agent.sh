#!/usr/bin/env bash
# The guest side of dst-vm, started by dst-agent.service: installs the payload, runs each test with a time
# limit, cleans up after it, looks for splats in the kernel log, and tells the host by lines "@@ WORD …" on
# the second serial port (read by tests/harness/src/protocol.rs). All it remembers lies on the results disk,
# so it goes on where it was after a reset. Never runs outside the throwaway VM.
set -uo pipefail
PAYLOAD=/dst/payload
RESULTS=/dst/results
HERE=$PAYLOAD/tests/vm
PORT=/dev/ttyS1
export LVM_SUPPRESS_FD_WARNINGS=1 STATE=$RESULTS/state T=/var/lib/dst/test TRACE=/dev/null
export CGROUP
CGROUP=/sys/fs/cgroup$(cut -d: -f3- /proc/self/cgroup)
# shellcheck source=tests/vm/cleanup.sh
source "$HERE/cleanup.sh"
# shellcheck source=tests/vm/klog.sh
source "$HERE/klog.sh"
# shellcheck source=tests/vm/checks.sh
source "$HERE/checks.sh"

tell() { printf '@@ %s\n' "$*" >&3; }

# The reasons go to the host and stay in the test's log.
tell_why() {
    local line
    while IFS= read -r line; do
        tell "why ${line:0:400}"
    done
}

install_payload() {
    local file
    mkdir -p "$STATE" "$RESULTS/logs"
    if [[ -n $(ls -A $PAYLOAD/bin) ]]; then install -m 755 -t /usr/local/bin $PAYLOAD/bin/*; fi
    for file in "$PAYLOAD"/udev/*; do
        case $file in
        *.rules) install -m 644 -t /etc/udev/rules.d "$file" ;;
        *) install -m 755 -t /usr/lib/udev "$file" ;;
        esac
    done
    for file in "$PAYLOAD"/systemd/*; do
        [[ -e $file ]] && install -m 644 -t /etc/systemd/system "$file"
    done
    udevadm control --reload
    systemctl daemon-reload
}

have_module() { modinfo dm-dst >/dev/null 2>&1; }

# power_cycle HOW: clean (systemd shuts down) or crash (as if the power failed; only the results are saved).
power_cycle() {
    sync -f "$RESULTS"
    tell "reboot $1"
    if [[ $1 == clean ]]; then
        systemctl reboot
        sleep 60 # the shutdown stops us long before
    fi
    echo b >/proc/sysrq-trigger
    sleep 60
}

power_off() {
    sync -f "$RESULTS"
    tell "done $1" # dst-vm may pull the plug from here on
    systemctl poweroff --force --force
    sleep 60
}

# Puts a test's processes into a group of their own, so that cleanup finds every one of them.
in_test_group() { (
    echo "$BASHPID" >"$CGROUP/test/cgroup.procs"
    exec "$@" 3>&- 4<&-
); }

# What was stuck where: the only witness of a test that ran out of time.
diagnose() {
    {
        echo "--- processes in state D"
        ps -eo pid,stat,wchan:32,args | awk 'NR == 1 || $2 ~ /D/'
        timeout 10 dmsetup info -c
        timeout 10 dmsetup status --noflush
    } >>"$RESULTS/logs/$1.log" 2>&1
    echo w >/proc/sysrq-trigger
}

# A test before it, in which the VM died, left files that speak of namespaces which aren't there any more.
begin_test() {
    rm -rf "$T" "$STATE/deferred"
    echo 0 >"$STATE/phase"
    klog_mark "$1"
}

# run_test NAME FILE FUNCTION TIMEOUT EXPECT: one test, from its start to its verdict.
run_test() {
    local name=$1 limit=$(($4 * SLOWNESS)) expect=$5 log=$RESULTS/logs/$1.log began status
    printf '%s\n' "$name" >"$STATE/current"
    [[ -s $STATE/phase ]] || begin_test "$name"
    sync -f "$STATE" # else a VM that dies now would run this test again, for ever
    tell "start $name $limit"
    began=$EPOCHREALTIME
    mkdir -p "$T"
    export TRACE=$RESULTS/logs/$name.trace
    in_test_group timeout --kill-after=5 "$limit" \
        bash "$HERE/run-one.sh" "$HERE/$2" "$3" >>"$log" 2>&1 </dev/null
    status=$?
    case $status in
    0 | 77) ;;
    88)
        echo $(($(<"$STATE/phase") + 1)) >"$STATE/phase"
        klog_save "$name"
        power_cycle "$(<"$STATE/reboot")"
        ;;
    124 | 137)
        echo "still running after $limit s" >>"$STATE/why"
        diagnose "$name"
        ;;
    esac
    finish_test "$name" "$status" "$expect" "$began"
}

# Cleanup and the kernel log can still fail a test that passed.
finish_test() {
    local name=$1 status=$2 expect=$3 began=$4 dirty=0 file
    for file in "$T"/nodes/*/log; do
        [[ -s $file ]] && { echo "--- ${file#"$T"/} (its end)" && tail -n 40 "$file"; } >>"$RESULTS/logs/$name.log"
    done
    if ! cleanup >>"$RESULTS/logs/$name.log" 2>"$STATE/left"; then
        { echo "left behind after cleanup:" && cat "$STATE/left"; } >>"$STATE/why"
        status=1 dirty=1
    fi
    grep -h "^figure: " "$log" >&3
    klog_save "$name"
    if klog_splats "$name" >"$STATE/splats"; then
        { echo "kernel log:" && head -n 12 "$STATE/splats"; } >>"$STATE/why"
        status=1
    fi
    # the tests that follow are to be checked, too
    if spent_checks | sed 's/^/from here on /' | grep . >>"$RESULTS/logs/$name.log"; then dirty=1; fi
    verdict "$name" "$status" "$expect" "$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')"
    echo "$name" >>"$STATE/finished"
    rm -f "$STATE"/{current,phase,why,skip,left,splats,reboot,allowed}
    sync -f "$RESULTS"
    ((dirty == 0)) || power_cycle crash
}

verdict() {
    local name=$1 status=$2 expect=$3 seconds=$4
    if [[ $expect != - && $status != 77 ]]; then
        if [[ $status != 0 ]] && grep -qF -- "$expect" "$STATE/why"; then
            status=0
            sed 's/^/expected failure: /' "$STATE/why" >>"$RESULTS/logs/$name.log"
        else
            echo "this test had to fail with '$expect' (status $status)" >>"$STATE/why"
            status=1
        fi
    fi
    case $status in
    0) tell "ok $name $seconds" ;;
    77) tell "skip $name $(<"$STATE/skip")" ;;
    *)
        tell "fail $name $seconds"
        tee -a "$RESULTS/logs/$name.log" <"$STATE/why" | tell_why
        ;;
    esac
}

# A boot counts as a test: the kernel's log so far must be clean and our module must load.
check_boot() {
    grep -qsx vm.boot "$STATE/finished" && return
    tell "start vm.boot $((60 * SLOWNESS))"
    : >"$STATE/why"
    local status=0
    if have_module && ! modprobe dm-dst >>"$STATE/why" 2>&1; then status=1; fi
    dmesg >"$RESULTS/logs/vm.boot.klog"
    if klog_splats vm.boot >>"$STATE/why"; then status=1; fi
    if spent_checks | grep . >>"$STATE/why"; then status=1; fi
    verdict vm.boot "$status" - "$(cut -d. -f1 /proc/uptime)"
    echo vm.boot >>"$STATE/finished"
    rm -f "$STATE/why"
}

# Between two files the module must go and come back: a node or link that leaked would keep it busy. What it, or anybody
# in the kernel on its behalf, left unreachable is found when it is gone.
reload_module() {
    local topic=$1 limit=$((60 * SLOWNESS))
    have_module || return 0
    tell "start $topic.unload $((2 * limit))"
    klog_mark "$topic.unload"
    : >"$STATE/why"
    local status=0
    module_symbols dm_dst >"$STATE/symbols"
    if ! timeout "$limit" modprobe -r dm-dst >>"$STATE/why" 2>&1; then status=1; fi
    leaks | with_symbols "$STATE/symbols" >"$STATE/leaks"
    if [[ -s $STATE/leaks ]]; then
        cp "$STATE/leaks" "$RESULTS/logs/$topic.unload.leaks"
        { echo "leaked since the last unload:" && head -n 40 "$STATE/leaks"; } >>"$STATE/why"
        status=1
    fi
    if spent_checks | grep . >>"$STATE/why"; then status=1; fi
    if ! timeout "$limit" modprobe dm-dst >>"$STATE/why" 2>&1; then status=1; fi
    klog_save "$topic.unload"
    if klog_splats "$topic.unload" >>"$STATE/why"; then status=1; fi
    if ((status)); then
        verdict "$topic.unload" 1 - 0
        rm -f "$STATE/why"
        power_cycle crash
    fi
    rm -f "$STATE/why"
}

# wanted NAME: whether the test is this guest's (TOPICS: no topic is all of them) and was asked for.
wanted() {
    [[ -z ${TOPICS:-} || " $TOPICS " == *" ${1%%.*} "* ]] || return 1
    [[ -z ${FILTER:-} ]] && return 0
    local part
    while IFS= read -r part; do
        [[ $1 == *"$part"* ]] && return 0
    done <<<"$FILTER"
    return 1
}

# The test that was running when the VM died without having asked for it.
report_interrupted() {
    [[ -s $STATE/current ]] || return 0
    local name expect
    name=$(<"$STATE/current")
    if [[ -s $STATE/reboot ]]; then return 0; fi
    expect=$(awk -F'\t' -v n="$name" '$1 == n { print $5 }' "$STATE/tests")
    echo "the VM died or was reset during this test; see console.log" >>"$STATE/why"
    verdict "$name" 1 "$expect" 0
    echo "$name" >>"$STATE/finished"
    rm -f "$STATE"/{current,phase,why,skip,left,splats,reboot,allowed}
}

run_tests() {
    local name file fn limit expect only left_out=0 topic=
    bash "$HERE/list.sh" >"$STATE/tests"
    report_interrupted
    check_boot
    forget_leaks
    while IFS=$'\t' read -r name file fn limit expect only _ <&4; do
        wanted "$name" || continue
        # shellcheck disable=SC2153 # of run.env
        if [[ " $ONLY " != *" $only "* ]]; then
            left_out=$((left_out + 1))
            continue
        fi
        grep -qsxF "$name" "$STATE/finished" && continue
        # shellcheck disable=SC2153 # of run.env
        if [[ -n $UNTIL && ! -s $STATE/current ]] && ((EPOCHSECONDS > UNTIL)); then
            tell "skip $name no time was left for it"
            continue
        fi
        if [[ -n $topic && $topic != "${name%%.*}" ]]; then reload_module "$topic"; fi
        topic=${name%%.*}
        run_test "$name" "$file" "$fn" "$limit" "$expect"
    done 4<"$STATE/tests"
    [[ -z $topic ]] || reload_module "$topic"
    ((left_out == 0)) || [[ $ONLY != - ]] || echo "$left_out fault tests left out: dst-vm run --faults has them" >&3
    power_off 0
}

run_demo() {
    local status=0
    if have_module; then modprobe dm-dst; fi
    mkdir -p "$T"
    in_test_group bash "$HERE/demo.sh" >"$PORT" 2>&1 </dev/null || status=$?
    dmesg >"$RESULTS/logs/demo.klog"
    if klog_splats demo >"$STATE/splats"; then
        tell "fail demo 0"
        tell_why <"$STATE/splats"
        ((status)) || status=1
    fi
    power_off "$status"
}

# The plan's runs, which leave their figures with the logs; bench/run.sh tells the host of each.
run_bench() {
    local status=0
    mkdir -p "$T"
    in_test_group bash "$HERE/bench/run.sh" >"$PORT" 2>&1 </dev/null || status=$?
    power_off "$status"
}

# A root shell on the console; leaving it powers the guest off. lib.sh is there to be sourced.
run_shell() {
    mkdir -p "$T"
    if have_module; then modprobe dm-dst; fi
    in_test_group systemd-run --quiet --unit=dst-shell -p StandardInput=tty -p StandardOutput=tty \
        -p StandardError=tty -p TTYPath=/dev/ttyS0 -p WorkingDirectory="$HERE" \
        -p ExecStopPost="/bin/systemctl poweroff --force --force" \
        -E TERM=vt220 -E T="$T" -E STATE="$STATE" -E CGROUP="$CGROUP" bash -i
}

main() {
    stty -F $PORT raw -echo
    exec 3>$PORT
    mkdir -p "$CGROUP"/{agent,test,nodes}
    echo $$ >"$CGROUP/agent/cgroup.procs"
    install_payload
    # shellcheck source=/dev/null
    source $PAYLOAD/run.env
    tell "boot $(uname -r)"
    case $MODE in
    tests) run_tests ;;
    demo) run_demo ;;
    bench) run_bench ;;
    shell) run_shell ;;
    esac
}
main
