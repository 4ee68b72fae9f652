#!/usr/bin/env bash
# The server under test and what a test asks of it: serve, uri_of, stop_server, nbdsh_on. Sourced by each file of
# cases/ (which run-one.sh sources after tests/vm/lib.sh with its assertions). SERVER and TRANSPORT say what to
# start; files and logs go to $T. A test sees no difference between servers but through `lacks`.

PYTHON=/usr/bin/python3 # Debian's: the one that python3-libnbd is for

# serve [--read-only] NAME=FILE...: starts the server; returns when it talks. Sets URI (of the first export) and
# SERVER_PID. Once more after stop_server: at the same address.
# shellcheck disable=SC2153 # SERVER comes from run
serve() {
    local args=("$@")
    READ_ONLY=
    if [[ $1 == --read-only ]]; then
        READ_ONLY=1
        shift
    fi
    SOCKET=$T/socket
    [[ -n ${PORT:-} ]] || PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    URI=$(uri_of "${1%%=*}")
    rm -f "$SOCKET"
    case $SERVER in
    dstd) serve_dstd "$@" ;;
    nbdkit) serve_nbdkit "$@" ;;
    qemu-nbd) serve_qemu_nbd "$@" ;;
    nbd-server) serve_nbd_server "$@" ;;
    broken-*) serve_broken "${SERVER#broken-}" "$@" ;;
    *) fail "SERVER=$SERVER is none of dstd, nbdkit, qemu-nbd, nbd-server" ;;
    esac
    defer "kill -9 $SERVER_PID"
    wait_until 30 "$SERVER to serve ${args[*]}" talks
}

# uri_of NAME: of one export of several.
uri_of() {
    case $TRANSPORT in
    unix) echo "nbd+unix:///$1?socket=$SOCKET" ;;
    tcp) echo "nbd://127.0.0.1:$PORT/$1" ;;
    esac
}

# A server that has ended can't be waited for.
talks() {
    kill -0 "$SERVER_PID" 2>/dev/null || fail "the server has ended: $(tail -n 5 "$T/server.log")"
    nbdinfo --can connect "$URI"
}

# stop_server SIGNAL: and waits until it is gone.
stop_server() {
    kill -s "$1" "$SERVER_PID"
    wait_until 30 "the server's end after $1" server_gone
}
server_gone() { ! kill -0 "$SERVER_PID" 2>/dev/null || [[ $(ps -o stat= -p "$SERVER_PID") == Z* ]]; }

# lacks SERVER... WHY: skips the test for these stock servers, which can't do what it is about.
lacks() {
    local why=${*: -1} server
    for server in "${@:1:$#-1}"; do
        [[ $SERVER != "$server" ]] || skip "$server: $why"
    done
}

# start COMMAND...: in the background, its output in server.log.
start() {
    "$@" >>"$T/server.log" 2>&1 </dev/null 9>&- &
    SERVER_PID=$!
}

serve_dstd() {
    local listen name_file args=()
    case $TRANSPORT in
    unix) listen=unix:$SOCKET ;;
    tcp) listen=127.0.0.1:$PORT ;;
    esac
    for name_file; do args+=("$name_file"); done
    [[ -z $READ_ONLY ]] || args+=(--read-only)
    start "$DSTD" export "${args[@]}" --listen "$listen"
}

# nbdkit_listens: its arguments for the transport.
nbdkit_listens() {
    case $TRANSPORT in
    unix) NBDKIT=(nbdkit --foreground --unix "$SOCKET") ;;
    tcp) NBDKIT=(nbdkit --foreground --ip-addr 127.0.0.1 --port "$PORT") ;;
    esac
    [[ -z $READ_ONLY ]] || NBDKIT+=(--read-only)
}

# One file under any name, or a directory whose files are the exports.
serve_nbdkit() {
    local name_file
    nbdkit_listens
    if (($# == 1)); then
        start "${NBDKIT[@]}" file "${1#*=}"
        return
    fi
    rm -rf "$T/exports"
    mkdir "$T/exports"
    for name_file; do ln "${name_file#*=}" "$T/exports/${name_file%%=*}"; done
    start "${NBDKIT[@]}" file dir="$T/exports"
}

serve_qemu_nbd() {
    local args=(--persistent --shared=64 --format=raw --discard=unmap --export-name="${1%%=*}")
    (($# == 1)) || skip "qemu-nbd serves one export"
    case $TRANSPORT in
    unix) args+=(--socket="$SOCKET") ;;
    tcp) args+=(--bind=127.0.0.1 --port="$PORT") ;;
    esac
    [[ -z $READ_ONLY ]] || args+=(--read-only)
    start qemu-nbd "${args[@]}" "${1#*=}"
}

# A daemon: with -d it would end after one connection.
serve_nbd_server() {
    local name_file
    {
        echo "[generic]"
        case $TRANSPORT in
        unix) echo "unixsock = $SOCKET" ;;
        tcp) printf 'listenaddr = 127.0.0.1\nport = %s\n' "$PORT" ;;
        esac
        echo "allowlist = true"
        for name_file; do
            printf '[%s]\nexportname = %s\n' "${name_file%%=*}" "${name_file#*=}"
            printf 'flush = true\nfua = true\ntrim = true\n'
            [[ -z $READ_ONLY ]] || echo "readonly = true"
        done
    } >"$T/nbd-server.conf"
    rm -f "$T/pid"
    nbd-server -C "$T/nbd-server.conf" -p "$T/pid" >>"$T/server.log" 2>&1 9>&-
    wait_until 10 "nbd-server's pid" test -s "$T/pid"
    SERVER_PID=$(<"$T/pid")
}

# serve_broken KIND NAME=FILE...: nbdkit with something wrong on purpose, for TEETH=1. Each must be noticed.
serve_broken() {
    local kind=$1 file=${2#*=} size
    shift 2
    size=$(stat -Lc %s "$file")
    nbdkit_listens
    case $kind in
    bytes) start "${NBDKIT[@]}" --filter=swab file "$file" swab-bits=16 ;;
    forgets) start "${NBDKIT[@]}" null "$size" ;;
    cow) start "${NBDKIT[@]}" --filter=cow file "$file" ;;
    short) start "${NBDKIT[@]}" --filter=truncate file "$file" truncate=$((size / 2)) ;;
    errors) start "${NBDKIT[@]}" --filter=error file "$file" error=EPERM error-rate=100% ;;
    read-errors) start "${NBDKIT[@]}" --filter=error file "$file" error=EIO error-pread-rate=100% ;;
    write-errors) start "${NBDKIT[@]}" --filter=error file "$file" error=EIO error-pwrite-rate=100% ;;
    some-errors) start "${NBDKIT[@]}" --filter=error file "$file" error=EIO error-rate=5% ;;
    no-extents) start "${NBDKIT[@]}" --filter=noextents file "$file" ;;
    no-zero) start "${NBDKIT[@]}" --filter=nozero file "$file" zeromode=emulate ;;
    no-fua) start "${NBDKIT[@]}" --filter=fua file "$file" ;;
    no-cache) start "${NBDKIT[@]}" --filter=nocache file "$file" cachemode=none ;;
    no-multi-conn) start "${NBDKIT[@]}" --filter=multi-conn file "$file" multi-conn-mode=disable ;;
    writable)
        READ_ONLY=
        nbdkit_listens
        start "${NBDKIT[@]}" file "$file"
        ;;
    stock | any-name) start "${NBDKIT[@]}" file "$file" ;;
    few-clients) start "${NBDKIT[@]}" --filter=limit file "$file" limit=3 ;;
    one-at-a-time) start "${NBDKIT[@]}" --filter=noparallel file "$file" serialize=connections ;;
    in-memory) start "${NBDKIT[@]}" memory "$size" ;;
    slow) start "${NBDKIT[@]}" --filter=delay file "$file" rdelay=1 ;;
    *) fail "no broken server of kind $kind" ;;
    esac
}

# nbdsh_on URI [ARG...]: runs the script on standard input in nbdsh with h connected to URI; check.py's words are
# there. nbdsh does what its arguments say in their order.
nbdsh_on() {
    local uri=$1
    shift
    PYTHONPATH=$INTEROP assert_ok "$PYTHON" -m nbd "$@" -u "$uri" -c 'from check import *' -c -
}

# script ARG...: the Python script on standard input, with check.py in reach; it connects by itself.
script() { PYTHONPATH=$INTEROP assert_ok "$PYTHON" - "$@"; }

# kib FILE: KiB that it really takes.
kib() { du -k "$1" | cut -f1; }

# all_bytes FILE OFFSET LENGTH BYTE: the file has nothing else there.
all_bytes() {
    cmp <(tail -c "+$(($2 + 1))" "$1" | head -c "$3") \
        <(head -c "$3" /dev/zero | tr '\0' "\\$(printf %o "$4")") || fail "not all of $3 bytes at $2 are $4"
}

# sparse_file PATH: 64 MiB with data at 0, 1 MiB, 8 MiB and at the end, 64 KiB each; the rest are holes.
sparse_file() {
    local at
    truncate -s 64M "$1"
    for at in 0 16 128 1023; do
        dd if=/dev/urandom of="$1" bs=64k count=1 seek="$at" conv=notrunc status=none
    done
    sync "$1"
}
