#!/usr/bin/env bash
# The setups that `make bench` measures: each makes one block device, $DEVICE, of two RAM disks of its own. Sourced by
# steps.sh: setup_up SETUP CONNECTIONS, setup_down SETUP, and both may fail. Everything runs on the loopback interface.
# Servers and clients are as they come, but for: the RAM disks' and clients' scheduler (none, which is cheapest), no
# writer rules at dstd export, and dm-dst's zero_copy, which is what it is towards another machine (BENCH_ZERO_COPY).

RAM_KIB=65536
SETUPS=(brd nbdko+nbdkit nbdko+nbdserver nbdko+qemu nbdko+export nvmetcp iscsi dmdst+nbdkit dmdst+nbdserver dmdst+export tcp)
SCALE_KIB=131072 # of the nodes of a scale setup, all together
NVMET=/sys/kernel/config/nvmet
LIO=/sys/kernel/config/target
HOSTNQN=nqn.2014-08.org.nvmexpress:uuid:6bc8c3c4-1d35-4a0c-9d2d-2d8a1f5b3f10
IQN=iqn.2026-11.dst.bench

index_of() {
    local i
    for i in "${!SETUPS[@]}"; do [[ ${SETUPS[i]} != "$1" ]] || echo "$i"; done
}
ram() { echo "/dev/ram$(($(index_of "$1") * 2 + $2))"; }
port() { echo $((11000 + $(index_of "$1") * 2 + $2)); }
nbd() { echo "/dev/nbd$(($(index_of "$1") * 2 - 2 + $2))"; }
# dm-dst's nodes and devices are named after the setup; neither likes a plus sign.
name() { echo "${1/+/-}"; }

make_ram_disks() {
    modprobe brd rd_nr=$((2 * ${#SETUPS[@]})) rd_size=$RAM_KIB max_part=1
    modprobe nbd nbds_max=8 max_part=0
    # no writes behind the back of a job: run.sh empties the page cache after each
    sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_background_ratio=80 vm.dirty_ratio=90
}

content() { yes "a page that is not empty" 2>/dev/null || true; }

# Every page is there, with content.
fill() {
    local disk
    for disk in "$(ram "$1" 0)" "$(ram "$1" 1)"; do
        dd of="$disk" bs=1M iflag=fullblock conv=fsync status=none count=$((RAM_KIB / 1024)) < <(content)
    done
}

# What servers in user space read is in the page cache, as it is where they have served for a while: with the last user
# of a disk goes its page cache, so this is read when they have opened it, and one of them does that for its first client.
warm() { cat "$(ram "$1" 0)" "$(ram "$1" 1)" >/dev/null; }

# no_scheduler DEVICE...: where it has one.
no_scheduler() {
    local disk
    for disk; do
        disk=/sys/block/$(basename "$(readlink -f "$disk")")/queue/scheduler
        [[ ! -e $disk ]] || echo none >"$disk"
    done
}

# join SETUP DISK DISK: one device of two disks.
join() {
    local first second
    first=$(blockdev --getsz "$2") second=$(blockdev --getsz "$3")
    dmsetup create "$(name "$1")" <<TABLE
0 $first linear $2 0
$first $second linear $3 0
TABLE
}

# join_when_there SETUP SECONDS DISK: the same of two that come by themselves; DISK N prints where they are.
join_when_there() {
    local n disks=()
    for n in 0 1; do
        wait_until "$2" "$1's disk $n" "$3" $n
        disks+=("$("$3" $n)")
    done
    no_scheduler "${disks[@]}"
    join "$1" "${disks[@]}"
}

# serve SETUP N SERVER: the server of RAM disk N, on the setup's port N.
serve() {
    local node disk port
    node=$(name "$1")-$2 disk=$(ram "$1" "$2") port=$(port "$1" "$2")
    mkdir -p "$(node_dir "$node")"
    case $3 in
    nbdkit) detach "$node" nbdkit --foreground --ip-addr=127.0.0.1 --port="$port" file "$disk" ;;
    qemu)
        detach "$node" qemu-nbd --persistent --shared=8 --cache=writeback --discard=unmap --export-name=disk \
            --bind=127.0.0.1 --port="$port" --format=raw "$disk"
        ;;
    export) detach "$node" dstd export disk="$disk" --listen "127.0.0.1:$port" --shared ;;
    nbdserver)
        printf '%s\n' '[generic]' 'listenaddr = 127.0.0.1' "port = $port" 'allowlist = true' '[disk]' "exportname = $disk" \
            'flush = true' 'fua = true' 'trim = true' >"$(node_dir "$node")/conf"
        (to_node_group && nbd-server -C "$(node_dir "$node")/conf" -p "$(node_dir "$node")/pid" >>"$(node_log "$node")" 2>&1)
        ;;
    esac
    wait_until 60 "greeting of $node" greeting "$port"
}
greeting() { [[ $(timeout 10 head -c 8 <"/dev/tcp/127.0.0.1/$1") == NBDMAGIC ]]; }

# servers SETUP: both, of the kind that stands behind the plus sign.
servers() {
    serve "$1" 0 "${1#*+}"
    serve "$1" 1 "${1#*+}"
}
stop_servers() {
    stop_node "$(name "$1")-0"
    stop_node "$(name "$1")-1"
}

# Without GO: nbd-client doesn't ask for block sizes, and dstd export wants that of who says GO to a block device.
up_nbdko() {
    local n
    servers "$1"
    for n in 0 1; do
        assert_ok nbd-client 127.0.0.1 "$(port "$1" $n)" "$(nbd "$1" $n)" -name disk -connections "$2" -no-optgo
        assert_eq "$(blockdev --getsize64 "$(nbd "$1" $n)")" $((RAM_KIB * 1024)) "size of $(nbd "$1" $n)"
    done
    no_scheduler "$(nbd "$1" 0)" "$(nbd "$1" 1)"
    join "$1" "$(nbd "$1" 0)" "$(nbd "$1" 1)"
}
down_nbdko() {
    dmsetup remove "$(name "$1")"
    nbd-client -d "$(nbd "$1" 0)"
    nbd-client -d "$(nbd "$1" 1)"
    stop_servers "$1"
}

up_dmdst() {
    local name n
    name=$(name "$1")
    servers "$1"
    {
        printf 'version: 1\nnodes:\n'
        for n in 0 1; do
            printf '  %s-%s: {uri: "nbd://127.0.0.1:%s/disk", links: %s, zero_copy: %s}\n' \
                "$name" $n "$(port "$1" $n)" "$2" "$BENCH_ZERO_COPY"
        done
        printf 'devices:\n  %s:\n    table:\n' "$name"
        printf '      - dst: {node: %s}\n' "$name-0" "$name-1"
    } >"$T/$name.yaml"
    assert_ok dstd apply "$T/$name.yaml"
}
down_dmdst() {
    dstd remove "$(name "$1")"
    stop_servers "$1"
}

up_nvmetcp() {
    local n nqn sub
    modprobe nvme-core multipath=N # a layer less
    modprobe -a nvmet-tcp nvme-tcp
    mkdir "$NVMET/ports/1"
    for n in addr_trtype:tcp addr_adrfam:ipv4 addr_traddr:127.0.0.1 addr_trsvcid:4420; do
        echo "${n#*:}" >"$NVMET/ports/1/${n%%:*}"
    done
    for n in 0 1; do
        nqn=nqn.2026-11.dst.bench:$n sub=$NVMET/subsystems/nqn.2026-11.dst.bench:$n
        mkdir "$sub" "$sub/namespaces/1"
        echo 1 >"$sub/attr_allow_any_host"
        ram "$1" $n >"$sub/namespaces/1/device_path"
        echo 1 >"$sub/namespaces/1/enable"
        ln -s "$sub" "$NVMET/ports/1/subsystems/$nqn"
        echo "transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn=$nqn,hostnqn=$HOSTNQN,hostid=${HOSTNQN##*:},nr_io_queues=$2" >/dev/nvme-fabrics
    done
    join_when_there "$1" 30 nvme_disk
}
# With native multipath the disk hangs below the subsystem, under the same name.
nvme_disk() {
    local controller disk
    for controller in /sys/class/nvme/nvme*; do
        [[ $(<"$controller/subsysnqn") == "nqn.2026-11.dst.bench:$1" ]] || continue
        for disk in "$controller"/nvme*n1; do
            disk=${disk##*/}
            disk=/dev/${disk/c[0-9]*n/n}
            [[ -b $disk ]] && echo "$disk" && return
        done
    done
    return 1
}
down_nvmetcp() {
    local n
    dmsetup remove "$(name "$1")"
    for n in /sys/class/nvme/nvme*/delete_controller; do echo 1 >"$n"; done
    rm "$NVMET"/ports/1/subsystems/*
    for n in 0 1; do
        rmdir "$NVMET/subsystems/nqn.2026-11.dst.bench:$n/namespaces/1" "$NVMET/subsystems/nqn.2026-11.dst.bench:$n"
    done
    rmdir "$NVMET/ports/1"
}

# Two targets with a disk each; anybody may log in (it is a loopback interface in a throwaway VM).
up_iscsi() {
    local n group store
    modprobe -a target_core_mod target_core_iblock iscsi_target_mod iscsi_tcp
    for n in 0 1; do
        store=$LIO/core/iblock_$n/disk$n group=$LIO/iscsi/$IQN:$n/tpgt_1
        mkdir -p "$store" "$group/lun/lun_0" "$group/np/127.0.0.1:$((3260 + n))"
        echo "udev_path=$(ram "$1" $n)" >"$store/control"
        echo 1 >"$store/enable"
        for attribute in authentication:0 generate_node_acls:1 demo_mode_write_protect:0 cache_dynamic_acls:1; do
            echo "${attribute#*:}" >"$group/attrib/${attribute%%:*}"
        done
        ln -s "$store" "$group/lun/lun_0/disk"
        echo 1 >"$group/enable"
    done
    start_iscsid
    for n in 0 1; do
        iscsiadm --mode node --op new --targetname "$IQN:$n" --portal "127.0.0.1:$((3260 + n))"
        iscsiadm --mode node --targetname "$IQN:$n" --portal "127.0.0.1:$((3260 + n))" --login
    done
    join_when_there "$1" 60 iscsi_disk
}
start_iscsid() {
    mkdir -p /run/lock/iscsi "$(node_dir iscsid)"
    echo "InitiatorName=$IQN:initiator" >/etc/iscsi/initiatorname.iscsi
    detach iscsid iscsid --foreground
    wait_until 30 "iscsid" iscsid_answers
}
# It has no session to show yet, and says so with status 21.
iscsid_answers() { iscsiadm --mode session || [[ $? == 21 ]]; }
iscsi_disk() { readlink -e "/dev/disk/by-path/ip-127.0.0.1:$((3260 + $1))-iscsi-$IQN:$1-lun-0"; }
down_iscsi() {
    local n group
    dmsetup remove "$(name "$1")"
    iscsiadm --mode node --logoutall=all
    stop_node iscsid
    for n in 0 1; do
        group=$LIO/iscsi/$IQN:$n/tpgt_1
        echo 0 >"$group/enable"
        rm "$group/lun/lun_0/disk"
        rmdir "$group/lun/lun_0" "$group/np/127.0.0.1:$((3260 + n))" "$group" "$LIO/iscsi/$IQN:$n" "$LIO/core/iblock_$n/disk$n"
    done
}

# What many nodes or extents cost: one server with so many exports, on files in memory, and one device of all of them.
# The extents of one node lie in it the wrong way round, so that none goes with its neighbour.
up_scale() {
    local nodes=1 extents=1 n size dir exports=()
    case $1 in
    scale-x*) extents=${1#scale-x} ;;
    scale-n*) nodes=${1#scale-n} ;;
    esac
    dir=/dev/shm/$1 size=$((SCALE_KIB * 2 / nodes / extents / 8 * 8)) # sectors of an extent
    mkdir -p "$dir" "$(node_dir "$1")"
    for ((n = 0; n < nodes; n++)); do
        head -c $((SCALE_KIB * 1024 / nodes)) >"$dir/$n" < <(content)
        exports+=("e$n=$dir/$n")
    done
    detach "$1" dstd export "${exports[@]}" --listen 127.0.0.1:11100 --shared
    wait_until 60 "greeting of $1" greeting 11100
    {
        printf 'version: 1\nnodes:\n'
        for ((n = 0; n < nodes; n++)); do
            printf '  %s-%s: {uri: "nbd://127.0.0.1:11100/e%s", zero_copy: %s}\n' "$1" $n $n "$BENCH_ZERO_COPY"
        done
        printf 'devices:\n  %s:\n    table:\n' "$1"
        for ((n = nodes * extents - 1; n >= 0; n--)); do
            printf '      - dst: {node: %s-%s, offset: %ss, length: %ss}\n' "$1" $((n / extents)) $((n % extents * size)) "$size"
        done
    } >"$T/$1.yaml"
    assert_ok dstd apply --quiet "$T/$1.yaml"
}
down_scale() {
    dstd remove "$1"
    stop_node "$1"
    rm -r "/dev/shm/$1"
}

# setup_up SETUP CONNECTIONS: makes $DEVICE.
setup_up() {
    [[ $1 == tcp ]] && return
    [[ $1 == scale-* ]] || fill "$1"
    case $1 in
    scale-*) up_scale "$1" ;;
    brd) join "$1" "$(ram "$1" 0)" "$(ram "$1" 1)" ;;
    nvmetcp | iscsi) "up_$1" "$1" "$2" ;;
    *)
        "up_${1%%+*}" "$1" "$2"
        warm "$1"
        ;;
    esac
    wait_until 30 "$(device_of "$1")" test -b "$(device_of "$1")"
    [[ $1 == scale-* ]] || assert_eq "$(blockdev --getsize64 "$(device_of "$1")")" $((2 * RAM_KIB * 1024)) "size of $1"
    udevadm settle
}

setup_down() {
    udevadm settle
    case $1 in
    tcp) ;;
    scale-*) down_scale "$1" ;;
    brd) dmsetup remove "$(name "$1")" ;;
    *) "down_${1%%+*}" "$1" ;;
    esac
}

device_of() { echo "/dev/mapper/$(name "$1")"; }
