#!/usr/bin/env bash
# dst-proxy before a node's server, in the node's namespace, and the orders that it takes. Sourced by the cases that act
# at a byte of a message, after lib.sh; starts nothing by itself.

PROXY_PORT=10810

# beside NAME READY COMMAND...: in the node's namespace, its output in $T/NAME.COMMAND, until cleanup ends the nodes;
# returns when a line of that begins with READY.
beside() {
    local name=$1 ready=$2
    shift 2
    (
        trap - ERR
        to_node_group
        exec setsid --fork nsenter --net="/run/netns/n-$name" -- "$@" >"$T/$name.$1" 2>&1 </dev/null 9>&-
    )
    wait_until 30 "'$ready' from $1" grep -q "^$ready" "$T/$name.$1"
}

# start_proxy NAME [PORT]: before the node's server, or what else listens there. order NAME WORD...: prints what it answers.
start_proxy() {
    beside "$1" listening dst-proxy serve --listen "[::]:$PROXY_PORT" --to "127.0.0.1:${2:-$NODE_PORT}" --control "$T/$1.ctl"
}
order() {
    local name=$1
    shift
    dst-proxy ctl "$T/$name.ctl" "$@" || fail "the proxy said no to '$*'"
}
