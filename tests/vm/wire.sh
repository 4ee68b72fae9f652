#!/usr/bin/env bash
# Reads in the log of a server (nbdkit's log filter, $T/NODE.log) what a node was asked. Sourced by the cases of FLUSH,
# after lib.sh; starts no server.

# wire NODE: what the node was asked since the last time, reads apart: "Write 0x0+0x1000 fua=0; Flush".
# A zero's "trim=0" is the wire's NO_HOLE.
wire() {
    local log=$T/$1.log seen=0 lines
    [[ ! -s $T/$1.seen ]] || seen=$(<"$T/$1.seen")
    lines=$(wc -l <"$log")
    echo "$lines" >"$T/$1.seen"
    sed -n "$((seen + 1)),${lines}p" "$log" |
        sed -nE 's/.* (Write|Trim|Zero|Flush) id=[0-9]+ ?(.*) \.\.\.$/\1 \2/p; s/.* Flush id=[0-9]+ \.\.\.$/Flush/p' |
        sed -E 's/offset=(0x[0-9a-f]+) count=/\1+/; s/ fast=[01]//; s/ +$//' | paste -sd';' | sed 's/;/; /g'
}
assert_wire() { assert_eq "$(wire "$1")" "$2" "$3: what $1 was asked"; }
