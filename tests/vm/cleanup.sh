#!/usr/bin/env bash
# Takes away everything a test can leave: daemon, mounts, volume groups, md, crypt and dm devices, servers,
# namespaces, loops, data on the scratch disks. Sourced by agent.sh, which runs cleanup() after each test;
# it fails and names what is left on standard error, and the agent then resets the VM.

# Runs what the test asked for with `defer`, last first.
run_deferred() {
    local command
    [[ -s $STATE/deferred ]] || return 0
    while IFS= read -r command; do
        echo "deferred: $command"
        timeout 60 bash -c "source $HERE/lib.sh; $command" || echo "failed: $command"
    done < <(tac "$STATE/deferred")
    rm -f "$STATE/deferred"
}

# Whoever would make devices again while they are taken away.
stop_daemons() {
    local unit
    for unit in $(systemctl list-units --plain --no-legend 'dstd*' | awk '{print $1}'); do
        timeout 30 systemctl stop "$unit"
    done
    pkill -CONT -x dstd && pkill -TERM -x dstd && pkill_wait dstd
    return 0
}

pkill_wait() {
    for _ in {1..50}; do
        pgrep -x "$1" >/dev/null || return 0
        sleep 0.1
    done
    pkill -KILL -x "$1"
}

unmount_all() {
    local dir
    swapoff -a
    while IFS= read -r dir; do
        timeout 30 umount "$dir" || timeout 10 umount -fl "$dir"
    done < <(findmnt -rno TARGET,SOURCE | awk -v t="$T" '$2 ~ "^/dev/(mapper/|dm-|md|nbd|loop)" || index($1, t "/") == 1 || index($1, "/mnt") == 1 { print $1 }' | tac)
}

# Suspended devices first: everything else would hang on them.
remove_dm_devices() {
    local name
    [[ $(dmsetup ls) == "No devices found" ]] && return 0
    for name in $(dmsetup info -c --noheadings -o name -S 'suspended=1' 2>/dev/null); do
        timeout 20 dmsetup resume "$name"
    done
    timeout 60 vgchange -q -an >/dev/null 2>&1
    for _ in {1..8}; do
        dmsetup ls | grep -q '^No devices' && return 0
        for name in $(dmsetup info -c --noheadings -o name -S 'open=0' 2>/dev/null); do
            timeout 20 dmsetup remove --retry "$name"
        done
    done
    for name in $(dmsetup info -c --noheadings -o name); do
        timeout 20 dmsetup remove --force "$name"
    done
}

# kill_group test|nodes: everything the test started, or the servers.
kill_group() {
    echo 1 >"$CGROUP/$1/cgroup.kill"
    for _ in {1..100}; do
        grep -q 'populated 0' "$CGROUP/$1/cgroup.events" && return 0
        sleep 0.1
    done
}

drop_nbd_and_loops() {
    local dev
    for dev in /sys/block/nbd*/pid; do
        [[ -e $dev ]] || continue
        dev=${dev%/pid}
        timeout 20 nbd-client -d "/dev/${dev##*/}"
    done
    losetup -D
}

drop_namespaces() {
    local name
    for name in $(ip netns list | awk '{print $1}'); do ip netns del "$name"; done
    for name in $(ip -o link show type veth | awk -F': |@' '{print $2}'); do ip link del "$name"; done
}

# Only disks that were written: a discard of 3 GiB costs nothing, but four of them after each test do.
wipe_scratch() {
    local link dev written
    for link in /dev/disk/by-id/virtio-scratch[0-9]; do
        dev=$(readlink -f "$link")
        written=$(awk '{print $5 + $12}' "/sys/block/${dev##*/}/stat")
        [[ $written == "$(cat "/run/dst-written-${dev##*/}" 2>/dev/null || echo 0)" ]] && continue
        blkdiscard -f "$dev"
        blockdev --flushbufs "$dev"
        awk '{print $5 + $12}' "/sys/block/${dev##*/}/stat" >"/run/dst-written-${dev##*/}"
    done
}

# What is still there, on standard error; true if nothing is.
check_nothing_left() {
    local left
    left=$(
        dmsetup ls | grep -v '^No devices' | sed 's/^/dm device: /'
        cat "$CGROUP"/{test,nodes}/cgroup.procs | xargs -r ps --no-headers -o pid,stat,wchan:24,args -p |
            sed 's/^/process: /'
        findmnt -rno TARGET,SOURCE | grep -E ' /dev/(mapper/|dm-|md|nbd)' | sed 's/^/mount: /'
        ip netns list | sed 's/^/namespace: /'
        grep -E '^md[0-9]' /proc/mdstat 2>/dev/null | sed 's/^/md: /'
        awk '$1 == "dm_dst" && $3 > 0 { print "module dm_dst still in use: " $3 }' /proc/modules
    )
    [[ -z $left ]] && return 0
    echo "$left" >&2
    return 1
}

cleanup() {
    echo "--- cleanup"
    {
        run_deferred
        stop_daemons
        kill_group test
        unmount_all
        [[ ! -e /proc/mdstat ]] || timeout 30 mdadm --stop --scan
        remove_dm_devices
        drop_nbd_and_loops
        kill_group nodes
        drop_namespaces
        wipe_scratch
        rm -rf "$T"
    } 2>&1
    check_nothing_left
}
