#!/usr/bin/env bash
# Takes away everything a test can leave: daemon, mounts, volume groups, md, crypt and dm devices, servers,
# namespaces, loops, data on the scratch disks. Sourced by agent.sh, which runs cleanup() after each test;
# it fails and names what is left on standard error, and the agent then resets the VM. It looks before it
# calls a program: under TCG each one started costs some 30 ms, after each of a hundred tests.
shopt -s nullglob

any() { (($#)); }

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

# Whoever would make devices again while they are taken away; servers are needed until the devices are gone.
stop_daemons() {
    local unit
    for unit in /sys/fs/cgroup/system.slice/dstd*.service; do
        timeout 30 systemctl stop "${unit##*/}"
    done
    pgrep -f '(^|/)dstd run' >/dev/null || return 0
    pkill -CONT -f '(^|/)dstd run'
    pkill -TERM -f '(^|/)dstd run'
    for _ in {1..50}; do
        pgrep -f '(^|/)dstd run' >/dev/null || return 0
        sleep 0.1
    done
    pkill -KILL -f '(^|/)dstd run'
}

# kill_group test|nodes: everything the test started, or the servers.
kill_group() {
    echo 1 >"$CGROUP/$1/cgroup.kill"
    for _ in {1..100}; do
        [[ -n $(<"$CGROUP/$1/cgroup.procs") ]] || return 0
        sleep 0.1
    done
}

# The mounts that a test made, newest first.
test_mounts() {
    awk -v t="$T/" '$1 ~ "^/dev/(mapper/|dm-|md|nbd|loop)" || index($2, t) == 1 || index($2, "/mnt") == 1 {
        line[n++] = $2
    } END { while (n--) print line[n] }' /proc/self/mounts
}

unmount_all() {
    local dir
    [[ $(</proc/swaps) != *$'\n'* ]] || swapoff -a
    for dir in $(test_mounts); do
        timeout 30 umount "$dir" || timeout 10 umount -fl "$dir"
    done
}

# Whoever closes a member makes udev look at it and assemble the array again: so udev rests until the members
# say no longer that they are members.
stop_arrays() {
    local slave members=()
    any /sys/block/md* || return 0
    for slave in /sys/block/md*/slaves/*; do members+=("/dev/${slave##*/}"); done
    udevadm settle -t 10
    udevadm control --stop-exec-queue
    timeout 30 mdadm --stop --scan
    ! any "${members[@]}" || timeout 30 mdadm --zero-superblock "${members[@]}"
    udevadm control --start-exec-queue
    udevadm settle -t 10
}

# An array that udev began while its members went: it has no member any more, and only needs to be stopped.
stop_empty_arrays() {
    for _ in {1..10}; do
        any /sys/block/md* || return 0
        timeout 30 mdadm --stop --scan
        udevadm settle -t 10
    done
}

# A node without links makes whoever uses its device wait for ever, umount too: end what waits, and what comes.
fail_dead_nodes() {
    local node
    any /sys/block/dm-* || return 0
    for node in $(dmsetup status --noflush --target dst 2>/dev/null |
        awk '{ for (i = 0; i < $5; i++) if ($(8 + i * $6) !~ /^(live|degraded)$/) print $(7 + i * $6) }' | sort -u); do
        timeout 20 dst-nlpoke set node="$node" policy=2
        timeout 20 dst-nlpoke fail node="$node"
    done
}

# Before anything, LVM's tools too, scans them.
drop_unready_dst_devices() {
    local name
    for name in $(dmsetup status --noflush --target dst 2>/dev/null | awk -F': ' '/ (waiting|mismatch|lost|failed) /{ print $1 }'); do
        timeout 20 dmsetup remove "$name"
    done
}

# Suspended devices first: everything else would hang on them. The disks of servers (srv-*) go when those are gone.
remove_dm_devices() {
    local name
    any /sys/block/dm-* || return 0
    for name in $(dmsetup info -c --noheadings -o name -S 'suspended=1' 2>/dev/null); do
        timeout 20 dmsetup resume "$name"
    done
    drop_unready_dst_devices
    timeout 60 vgchange -q -an >/dev/null 2>&1
    for _ in {1..8}; do
        any /sys/block/dm-* || return 0
        for name in $(dmsetup info -c --noheadings -o name -S 'open=0 && name!~"^srv-"' 2>/dev/null); do
            timeout 20 dmsetup remove --retry "$name"
        done
    done
    for name in $(dmsetup info -c --noheadings -o name -S 'name!~"^srv-"' 2>/dev/null); do
        timeout 20 dmsetup remove --force "$name"
    done
}

# srv-*, and whatever else only a server had open. The end of one that had written makes udev open its disk once more.
remove_server_disks() {
    local name
    any /sys/block/dm-* || return 0
    for _ in {1..8}; do
        any /sys/block/dm-* || break
        udevadm settle -t 10
        for name in $(dmsetup info -c --noheadings -o name -S 'open=0' 2>/dev/null); do
            timeout 20 dmsetup remove --retry "$name"
        done
    done
    ! any /sys/block/loop*/loop/backing_file || losetup -D
}

drop_nbd_and_loops() {
    local dev
    for dev in /sys/block/nbd*/pid; do
        dev=${dev%/pid}
        timeout 20 nbd-client -d "/dev/${dev##*/}"
    done
    ! any /sys/block/loop*/loop/backing_file || losetup -D
}

drop_namespaces() {
    local path
    for path in /run/netns/*; do ip netns del "${path##*/}"; done
    for path in /sys/class/net/vh*; do ip link del "${path##*/}" 2>/dev/null; done
}

# How much was ever written to or discarded from a disk; only disks where that changed are wiped.
written_sectors() {
    local stat
    read -ra stat <"/sys/block/$1/stat"
    WRITTEN=$((stat[6] + stat[13]))
}

wipe_scratch() {
    local link dev
    for link in /sys/block/vd*/serial; do
        [[ $(<"$link") == scratch* ]] || continue
        dev=${link%/serial} dev=${dev##*/}
        written_sectors "$dev"
        [[ $WRITTEN != "$(cat "/run/dst-written-$dev" 2>/dev/null || echo 0)" ]] || continue
        blkdiscard -f "/dev/$dev"
        blockdev --flushbufs "/dev/$dev"
        written_sectors "$dev"
        echo "$WRITTEN" >"/run/dst-written-$dev"
    done
}

# What is still there, on standard error; true if nothing is.
check_nothing_left() {
    local left dev pids name used
    left=$(
        for dev in /sys/block/dm-*; do echo "dm device: $(<"$dev/dm/name")"; done
        for dev in /sys/block/md*; do echo "md: ${dev##*/}"; done
        for dev in /run/netns/*; do echo "namespace: ${dev##*/}"; done
        pids=$(cat "$CGROUP"/{test,nodes}/cgroup.procs)
        [[ -z $pids ]] || ps --no-headers -o pid,stat,wchan:24,args -p "${pids//$'\n'/,}" | sed 's/^/process: /'
        test_mounts | sed 's/^/mount: /'
        while read -r name _ used _; do
            [[ $name != dm_dst || $used == 0 ]] || echo "module dm_dst still in use: $used"
        done </proc/modules
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
        fail_dead_nodes
        unmount_all
        stop_arrays
        remove_dm_devices
        stop_empty_arrays
        drop_nbd_and_loops
        kill_group nodes
        remove_server_disks
        drop_namespaces
        wipe_scratch
        rm -rf "$T"
    } 2>&1
    check_nothing_left
}
