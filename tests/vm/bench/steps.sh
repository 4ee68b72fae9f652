#!/usr/bin/env bash
# What run.sh does to a setup: up and down (setups.sh), a job, and the calm after it. Sourced by run-one.sh, one function of
# it a process. A job leaves fio.json, or what looks like it, and the two counts around it (count.sh) in its directory.

BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export BENCH_COUNT=$BENCH/count.sh
# shellcheck source=tests/vm/bench/setups.sh
source "$BENCH/setups.sh"

# Where fio leaves what it says of a section; dst-tcp does as fio does.
job() {
    local setup=$1 job=$2 dir=$3 before
    cd "$dir" || return
    before=$(dst_counts "$setup")
    case $setup/$job in
    tcp/*) dst-tcp "$BENCH/jobs.fio" "$job" >fio.json ;;
    */untar) untar "$setup" ;;
    *) BENCH_DEVICE=$(device_of "$setup") fio --section="$job" --output-format=json --output=fio.json "$BENCH/jobs.fio" ;;
    esac
    [[ -z $before ]] || printf 'dst-before %s\ndst %s\n' "$before" "$(dst_counts "$setup")" >>postrun.txt
}

# dst_counts SETUP: requests that dm-dst's nodes have answered, and how many of them were merged into others. Too much work to
# be counted as a job's, so it is done outside.
dst_counts() {
    [[ $1 != dmdst* ]] || dstd status --json |
        jq -r '[.nodes[] | [.latency.read.count + .latency.write.count, .merged]] | transpose | map(add) | @tsv'
}

# A tree of files into a new ext4, until it is all on the nodes. An I/O is a file or directory here.
untar() {
    local device began ended entries
    device=$(device_of "$1")
    mkdir -p "$T/mnt"
    [[ -s $T/tree.tar ]] || tar -C /usr/lib -cf "$T/tree.tar" python3.11 systemd udev
    entries=$(tar -tf "$T/tree.tar" | wc -l)
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$device"
    mount "$device" "$T/mnt"
    sh "$BENCH_COUNT" prerun
    began=$EPOCHREALTIME
    tar -C "$T/mnt" -xf "$T/tree.tar"
    sync -f "$T/mnt"
    ended=$EPOCHREALTIME
    sh "$BENCH_COUNT" postrun
    umount "$T/mnt"
    printf '{"jobs": [{"error": 0, "mixed": {"total_ios": %s, "io_bytes": %s, "runtime": %s}}]}\n' \
        "$entries" "$(stat -c %s "$T/tree.tar")" "$(awk -v a="$began" -v b="$ended" 'BEGIN { print (b - a) * 1000 }')" >fio.json
}

# Nothing of a job is left for the next one to do.
settle() {
    [[ $1 == tcp ]] && return
    blockdev --flushbufs "$(device_of "$1")"
    sync
}
