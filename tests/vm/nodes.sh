#!/usr/bin/env bash
# Starts and stops the servers that a test uses as nodes: nbdkit, qemu-nbd, nbd-server, dstd export, each in a network
# namespace of its own (n-NAME) behind a veth pair with addresses of its own, serving $T/NAME.img. Sourced by lib.sh. Servers run
# in sessions of their own, so they outlive the test's own processes until cleanup.sh has removed the devices.

NODE_PORT=10809

# make_image NAME BYTES: a sparse backing file; prints its path.
make_image() {
    truncate -s "$2" "$T/$1.img"
    echo "$T/$1.img"
}

node_dir() { echo "$T/nodes/$1"; }
node_image() { echo "$T/$1.img"; }
node_addr() { cat "$(node_dir "$1")/addr"; }
node_uri() { cat "$(node_dir "$1")/uri"; }
node_uri6() { sed "s/$(node_addr "$1")/[fd77:$(cat "$(node_dir "$1")/number")::2]/" "$(node_dir "$1")/uri"; }
node_pid() { cat "$(node_dir "$1")/pid"; }
node_log() { echo "$(node_dir "$1")/log"; }

# in_node NAME COMMAND...: runs a command in the node's network namespace.
in_node() {
    local name=$1
    shift
    nsenter --net="/run/netns/n-$name" -- "$@" 9>&-
}

# A node keeps its namespace and number when its server is stopped and started again.
make_node_net() {
    local name=$1 dir number
    dir=$(node_dir "$name")
    [[ ! -e $dir/number ]] || return 0
    mkdir -p "$dir"
    number=$(($(find "$T/nodes" -mindepth 1 -maxdepth 1 -type d | wc -l)))
    echo "$number" >"$dir/number"
    echo "10.77.$number.2" >"$dir/addr"
    ip netns add "n-$name"
    ip link add "vh$number" type veth peer name eth0 netns "n-$name"
    ip addr add "10.77.$number.1/24" dev "vh$number"
    ip addr add "fd77:$number::1/64" dev "vh$number" nodad
    ip link set "vh$number" up
    in_node "$name" sh -c "ip link set lo up; ip link set eth0 up; \
        ip addr add 10.77.$number.2/24 dev eth0; ip addr add fd77:$number::2/64 dev eth0 nodad"
}

# A socket that listens is not yet a server that talks: on a busy host nbd-server now and then leaves its
# first clients without a greeting for more than ten seconds.
greets() { [[ $(timeout 3 head -c 8 <"/dev/tcp/$(node_addr "$1")/$NODE_PORT") == NBDMAGIC ]]; }
listens() { [[ -n $(in_node "$1" ss -Hltn "sport = :$NODE_PORT") ]]; }

write_uri() { printf 'nbd://%s:%s/%s\n' "$(node_addr "$1")" "$NODE_PORT" "$2" >"$(node_dir "$1")/uri"; }

# Servers have a process group of their own: cleanup ends them last, when no device needs them any more.
to_node_group() { echo "$BASHPID" >"$CGROUP/nodes/cgroup.procs"; }

# detach NAME COMMAND...: in a session of its own, its output in node_log, its end no error of the test's. Init
# adopts it (--fork) before it runs: a child of the test's shell gets a SIGTERM when that ends, and nbdkit then
# answers cleanup's I/O with errors.
detach() {
    local name=$1 dir
    dir=$(node_dir "$name")
    shift
    rm -f "$dir/pid"
    (
        trap - ERR
        to_node_group
        # shellcheck disable=SC2016 # the inner shell expands it
        exec setsid --fork bash -c 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"' \
            "$dir/pid" "$@" >>"$dir/log" 2>&1 </dev/null 9>&-
    )
    wait_until 10 "the pid of $name's server" test -s "$dir/pid"
}

# launch NAME EXPORT COMMAND...: the server in the node's namespace; returns when it listens.
launch() {
    local name=$1
    write_uri "$name" "$2"
    shift 2
    detach "$name" nsenter --net="/run/netns/n-$name" -- "$@"
    wait_until 30 "server of node $name" listens "$name"
}

# start_nbdkit NAME [ARG...]: nbdkit with these arguments (plugin, filters), by default serving $T/NAME.img.
start_nbdkit() {
    local name=$1
    shift
    (($#)) || set -- file "$(node_image "$name")"
    make_node_net "$name"
    launch "$name" "" nbdkit --foreground --port "$NODE_PORT" "$@"
}

# start_holding_server: alpha, 4 MiB, on which the next write stays while $T/hold exists at its begin and $T/go doesn't; $T/held tells.
start_holding_server() {
    make_image alpha 4M >/dev/null
    # The server expands what stands in quotes, not we.
    # shellcheck disable=SC2016
    start_nbdkit alpha eval get_size='echo 4194304' thread_model='echo parallel' \
        pread="dd if=$T/alpha.img iflag=skip_bytes,count_bytes skip=\$4 count=\$3 bs=1M status=none" \
        pwrite="if mv $T/hold $T/held 2>/dev/null; then for i in \$(seq 600); do [ ! -e $T/go ] || break; sleep 0.1; done; fi
            dd of=$T/alpha.img oflag=seek_bytes conv=notrunc seek=\$4 bs=1M iflag=fullblock status=none" \
        flush="true"
}

# start_qemu_nbd NAME [ARG...]: qemu-nbd, by default raw $T/NAME.img, shared by 8 clients; export NAME.
start_qemu_nbd() {
    local name=$1
    shift
    (($#)) || set -- --format=raw "$(node_image "$name")"
    make_node_net "$name"
    launch "$name" "$name" qemu-nbd --persistent --shared=8 --cache=writeback --discard=unmap \
        --detect-zeroes=off --export-name="$name" --bind=:: --port="$NODE_PORT" "$@"
}

# start_nbd_server NAME [CONFIG_LINE...]: nbd-server serving $T/NAME.img as export NAME, with these lines added.
start_nbd_server() {
    local name=$1 dir
    shift
    make_node_net "$name"
    dir=$(node_dir "$name")
    {
        printf '[generic]\nport = %s\nallowlist = true\n' "$NODE_PORT"
        printf '[%s]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n' "$name" "$(node_image "$name")"
        (($#)) && printf '%s\n' "$@"
    } >"$dir/nbd-server.conf"
    # as a daemon: with -d it would end after one connection
    write_uri "$name" "$name"
    (to_node_group && in_node "$name" nbd-server -C "$dir/nbd-server.conf" -p "$dir/pid" >>"$dir/log" 2>&1)
    wait_until 30 "server of node $name" listens "$name"
    wait_until 60 "greeting of node $name" greets "$name"
}

# start_export NAME [ARG...]: our own node server, by default serving $T/NAME.img as export NAME.
start_export() {
    local name=$1
    shift
    (($#)) || set -- "$name=$(node_image "$name")"
    make_node_net "$name"
    launch "$name" "$name" dstd export --listen "[::]:$NODE_PORT" "$@"
}

# start_unix_nbdkit NAME [ARG...]: nbdkit on the Unix socket $T/NAME.sock; no namespace.
start_unix_nbdkit() {
    local name=$1 dir
    shift
    (($#)) || set -- file "$(node_image "$name")"
    dir=$(node_dir "$name")
    mkdir -p "$dir"
    echo "nbd+unix:///?socket=$T/$name.sock" >"$dir/uri"
    detach "$name" nbdkit --foreground --unix "$T/$name.sock" "$@"
    wait_until 30 "server of node $name" test -S "$T/$name.sock"
}

# stop_node NAME [SIGNAL]: ends the server (and its children) and waits until it is gone.
stop_node() {
    local pid
    pid=$(node_pid "$1")
    kill -s "${2:-TERM}" -- "-$pid" 2>/dev/null || kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    wait_until 30 "end of node $1's server" node_gone "$1"
}
kill_node() { stop_node "$1" KILL; }
node_gone() { ! pgrep --session "$(node_pid "$1")" >/dev/null; }

# give_up NODE...: for the end of a test. All that waits on them fails, and so does what comes later (udev reads what is
# closed); no guard outlives the test.
give_up() {
    local node
    for node; do
        dst-nlpoke set node="$node" policy=2
        dst-nlpoke fail node="$node"
        dst-nlpoke fenced node="$node" force
    done
}

# pause_node / resume_node NAME: the server hangs without closing anything.
pause_node() { kill -STOP -- "-$(node_pid "$1")"; }
resume_node() { kill -CONT -- "-$(node_pid "$1")"; }

# cut_node / heal_node NAME: the network swallows every packet to and from the node.
cut_node() {
    in_node "$1" nft 'table inet cut {
        chain in { type filter hook input priority 0; policy drop; }
        chain out { type filter hook output priority 0; policy drop; }
    }'
}
heal_node() { in_node "$1" nft delete table inet cut; }
