#!/usr/bin/env bash
# docs/quickstart.md, tried: its commands are taken out of the page itself and run in its order, each on its machine. The
# guest is the client, with the real dstd.service and fstab; alpha, beta and gamma are network namespaces with the page's
# addresses and a /srv of their own. What stands under "Install" needs a network: dstd/tests/install.rs looks at that.
# shellcheck source=tests/vm/trees.sh
source "$(dirname "${BASH_SOURCE[0]}")/../trees.sh"

PAGE=/dst/payload/docs/quickstart.md
MOUNTED=/srv/archive

# steps: the commands of the page, a file for each in $T/steps, the machines in its first line.
steps() {
    mkdir -p "$T/steps"
    awk -v dir="$T/steps" '
        function take() { file = sprintf("%s/%03d", dir, ++n); print where > file; print command > file; close(file); command = "" }
        !inside && /^```/ { inside = 1; where = ""; if ($1 == "```sh") { where = $0; sub(/^```sh */, "", where); if (where == "") bad() } next }
        function bad() { print "line " NR ": no machine is named" > "/dev/stderr"; failed = 1; exit 1 }
        /^```/ { inside = 0; if (command != "") bad(); next }
        !inside || where == "" { next }
        { command = command (command == "" ? "" : "\n") $0 }
        here != "" { if ($0 == here) { here = ""; take() } next }
        match($0, /<<.[A-Z]+/) { here = substr($0, RSTART + 3, RLENGTH - 3); next }
        !/\\$/ { take() }
        END { if (failed || inside || here != "") exit 1 }' $PAGE || fail "$PAGE can't be taken apart"
}

# machine NAME ADDRESS NUMBER: a namespace that the client (10.0.0.9) reaches, and its files.
machine() {
    mkdir -p "$T/nodes/$1" "$T/machines/$1"
    ip netns add "n-$1"
    ip link add "vh$3" type veth peer name eth0 netns "n-$1"
    ip addr add 10.0.0.9/32 dev "vh$3"
    ip link set "vh$3" up
    ip route add "$2/32" dev "vh$3" src 10.0.0.9
    in_node "$1" sh -c "ip link set lo up; ip link set eth0 up; ip addr add $2/24 dev eth0"
}

# on MACHINE COMMAND: sets AT to a command that runs it there, with the machine's network and its /srv.
# What the client unmounts must go there, too: hence slave.
on() {
    # shellcheck disable=SC2016 # the inner shell expands it
    AT=(nsenter "--net=/run/netns/n-$1" unshare --mount --propagation slave
        bash -c 'mount --bind "$1" /srv && exec bash -c "$2"' - "$T/machines/$1" "$2")
}

# try MACHINE COMMAND: as a person would type it there.
try() {
    local machine=$1 command=$2 wanted=0
    [[ $command =~ '# ends with status '([0-9]+) ]] && wanted=${BASH_REMATCH[1]}
    on "$machine" "$command"
    case $machine:$command in
    client:*) run bash -c "$command" ;;
    *:"dstd export "*)
        SERVERS+=("$machine")
        detach "$machine" "${AT[@]}"
        wait_until 30 "the server on $machine" listens "$machine"
        return
        ;;
    *:"rm "*)
        # the page says Ctrl-C
        stop_node "$machine" INT
        run "${AT[@]}"
        ;;
    *) run "${AT[@]}" ;;
    esac
    assert_eq "$RC" "$wanted" "the status of '$command' on $machine ($OUT)"
}

size() { df --output=size -B1 $MOUNTED | tail -n 1; }

# What must be so after some of the commands; LOOKED collects which of them the page still has.
look() {
    case $1 in
    "mount /dev/mapper/archive $MOUNTED")
        copy_trees $MOUNTED/trees
        SIZE=$(size)
        assert_eq "$(blockdev --getsize64 /dev/mapper/archive)" $((20 * 1024 * MIB)) "size of the device"
        ;;
    resize2fs*)
        (($(size) > SIZE * 14 / 10)) || fail "the file system didn't grow by a half: $SIZE, then $(size)"
        assert_eq "$(dmsetup table archive | tr ' ' '\n' | grep -E 'alpha|beta|gamma' | paste -sd ' ')" "alpha beta gamma" "nodes of the table"
        assert_trees $MOUNTED/trees
        ;;
    "mount $MOUNTED")
        assert_ok systemctl show -P After srv-archive.mount
        assert_contains "$OUT" remote-fs-pre.target "what the mount waits for"
        assert_trees $MOUNTED/trees
        make_file $MOUNTED/late 25000000
        ;;
    "dstd doctor") assert_contains "$OUT" "node gamma answers" ;;
    "dstd remove archive") [[ ! -e /dev/mapper/archive ]] || fail "/dev/mapper/archive is still there" ;;
    "rm /srv/disk0.img") assert_eq "$(find "$T/machines" -type f | wc -l)" $((${#SERVERS[@]} - ++REMOVED)) "images that are left" ;;
    *) return 0 ;;
    esac
    LOOKED+=" ${1%% *}"
}

# Every command of the quickstart, one after the other.
# @timeout 400
test_page() {
    local step machines machine command number=0
    SERVERS=() LOOKED="" REMOVED=0 SIZE=0
    steps
    machine alpha 10.0.0.1 1
    machine beta 10.0.0.2 2
    machine gamma 10.0.0.3 3
    mkdir -p /etc/dst
    defer "rm -rf /etc/dst; rmdir $MOUNTED"
    defer "systemctl disable --now dstd.service"
    defer "sed -i '\\|^/dev/mapper/archive |d' /etc/fstab; umount $MOUNTED; systemctl daemon-reload"
    for step in "$T"/steps/*; do
        machines=$(head -n 1 "$step")
        command=$(tail -n +2 "$step")
        [[ $machines != build && $machines != install ]] || continue
        for machine in $machines; do
            try "$machine" "$command"
            look "$command"
            number=$((number + 1))
        done
    done
    assert_eq "$LOOKED" " mount resize2fs mount dstd dstd rm rm rm" "commands of the page whose effects were looked at"
    assert_eq "$(dmsetup info -c --noheadings -o name)" "No devices found" "what is left"
    echo "figure: $number commands of docs/quickstart.md"
}
