#!/usr/bin/env bash
# Clients that stall, vanish or won't read, a server that is killed, a disk that is full.
# shellcheck source=tests/interop/server.sh
source "$INTEROP/server.sh"

# A thousand connections that stall at four places of the handshake: a client that is in goes on working, and a new
# one gets in: at once from another address, from the same one at the latest when the stalled ones' time is up.
# @broken one-at-a-time
# @broken slow
# @timeout 180
test_stalled_handshakes() {
    lacks qemu-nbd "a newcomer waits 74 s"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    script "$URI" "$SERVER_PID" "$T/disk" <<'PY'
import subprocess, sys, time
from check import *
from raw import *
uri, pid, disk = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tcp = uri.startswith("nbd:")
many_files()
client = connect(uri)
before = usage(pid)
stalled = []
patience = 20
for n in range(1000):
    try:
        s = plug(uri, "127.0.0.2" if tcp else None)
        stalled.append(s)
        s.settimeout(0.3)
        if n % 4 > 0 and patience > 0:
            greet(s)
        if n % 4 == 2:
            s.sendall(MAGIC_OPTION[:5])
        if n % 4 == 3:
            s.sendall(MAGIC_OPTION + struct.pack(">II", 7, 200) + b"half of its data")
    except TimeoutError:
        patience -= 1
    except (OSError, EOFError):
        pass # turned away: the server's right
begin = time.monotonic()
for n in range(200):
    data = os.urandom(4096)
    client.pwrite(data, n * 4096)
    same(bytes(client.pread(4096, n * 4096)), data, "the client that was in")
    working = time.monotonic() - begin
    same(working < 5, True, f"{n} writes and reads took {working:.1f} s beside them")
held = sum(not closed(s) for s in stalled)
now = usage(pid)
limit = 5 if tcp else 60
def newcomer():
    left = begin + limit - time.monotonic()
    try:
        return subprocess.run(["nbdcopy", uri, "null:"], timeout=left, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False
begin = time.monotonic()
wait_for(limit, "a newcomer's copy", newcomer)
print(f"figure: {held} of 1000 stalled connections held, {now['rss'] - before['rss']:.0f} MiB and "
      f"{now['threads'] - before['threads']} threads for them; a newcomer waits {time.monotonic() - begin:.1f} s")
PY
}

# Ten thousand connections that come and go in six ways: nothing of them stays, and clients are served throughout.
# @broken few-clients
# @broken stock
# @timeout 300
test_ten_thousand_connections() {
    lacks nbdkit "1.32 dies of an assertion (raw_send_socket) when a client vanishes with requests on their way"
    make_file "$T/disk" 4M
    serve disk="$T/disk"
    script "$URI" "$SERVER_PID" "$T/disk" <<'PY'
import sys, time
from check import *
from raw import *
uri, pid, disk = sys.argv[1], int(sys.argv[2]), sys.argv[3]
want = file_bytes(disk, 4096)
def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
def come_and_go(n):
    if n % 6 == 0:
        s = plug(uri)
    elif n % 6 == 1:
        s = plug(uri)
        reset(s)
    elif n % 6 == 2:
        s = plug(uri)
        greet(s)
        s.sendall(MAGIC_OPTION + struct.pack(">II", OPT_ABORT, 0))
    elif n % 6 == 3:
        s = enter(uri)
        s.sendall(request(CMD_READ, 7, 0, 4096))
        same(reply(s), (7, 0), "a reply")
        same(read_exactly(s, 4096), want, "what is read")
    elif n % 6 == 4: # with sixteen requests on their way
        s = enter(uri)
        s.sendall(b"".join(request(CMD_READ, c, 0, 65536) for c in range(16)))
        reset(s)
    else: # in the middle of a write's payload
        s = enter(uri)
        s.sendall(request(CMD_WRITE, 1, MIB, 65536) + bytes(1000))
    s.close()
for n in range(60):
    come_and_go(n)
time.sleep(0.5) # what the server keeps for later, it has now
before = usage(pid)
begin = time.monotonic()
for n in range(10000):
    try:
        come_and_go(n)
    except (OSError, EOFError) as error:
        raise SystemExit(f"connection {n} of kind {n % 6}: {error}") from None
took = time.monotonic() - begin
def settled():
    now = usage(pid)
    return now if now["files"] <= before["files"] and now["threads"] <= before["threads"] + 8 else None
after = wait_for(30, f"files and threads as before ({before})", settled)
grown = after["rss"] - before["rss"]
same(grown < 64, True, f"memory grew by {grown:.0f} MiB")
same(bytes(connect(uri).pread(4096, 0)), want, "a client after them")
print(f"figure: 10000 connections in {took:.1f} s, {1e6 * (after['cpu'] - before['cpu']) / 1e4:.0f} us of CPU each; "
      f"memory grew by {grown:.1f} MiB")
PY
}

# A hundred clients ask for 64 MiB each and don't read it: memory stays bounded, no CPU is burnt, others are served;
# when they read at last, they get what they asked for.
# @broken forgets
# @broken few-clients
# @timeout 180
test_slow_readers() {
    lacks nbdkit "1.32 dies of an assertion (raw_send_socket) when they vanish"
    lacks qemu-nbd "it serves 64 clients here"
    make_file "$T/disk" 64M
    serve disk="$T/disk"
    script "$URI" "$SERVER_PID" "$T/disk" <<'PY'
import sys, time
from check import *
from raw import *
uri, pid, disk = sys.argv[1], int(sys.argv[2]), sys.argv[3]
before = usage(pid)
slow = []
for _ in range(100):
    s = enter(uri)
    s.sendall(b"".join(request(CMD_READ, n, n * MIB, MIB) for n in range(64)))
    slow.append(s)
most = wait_for(30, "the server to have read ahead what it will", lambda: rests(pid))
print(f"figure: 100 slow readers of 64 MiB each: {most - before['rss']:.0f} MiB more memory")
same(most - before["rss"] < 1152, True, f"{most - before['rss']:.0f} MiB for them is bounded by a gibibyte")
begin = time.monotonic()
client = connect(uri)
for n in range(50):
    same(bytes(client.pread(65536, n * MIB)), file_bytes(disk, 65536, n * MIB), "another client")
client.pwrite(b"x" * 4096, 63 * MIB)
took = time.monotonic() - begin
same(took < 10, True, f"another client took {took:.1f} s for 50 reads and a write")
for s in slow[::25]:
    s.settimeout(30)
    seen = set()
    for _ in range(64):
        cookie, error = reply(s)
        same(error, 0, "error")
        got = read_exactly(s, MIB)
        if cookie != 63:
            same(got, file_bytes(disk, MIB, cookie * MIB), f"read {cookie} of a slow reader")
        seen.add(cookie)
    same(len(seen), 64, "replies of a slow reader")
for s in slow:
    s.close()
after = wait_for(30, "the server to rest when they are gone", lambda: rests(pid))
print(f"figure: {after - before['rss']:.0f} MiB more when they are gone")
same(after - before["rss"] < 256, True, f"{after - before['rss']:.0f} MiB are kept for clients that are gone")
PY
}

# A hundred clients announce a write of 16 MiB and stop after the first: memory stays bounded, others are served.
# @broken stock
# @timeout 180
test_slow_writers() {
    lacks nbdkit "it takes the whole payload of each into memory"
    lacks qemu-nbd "it serves 64 clients here"
    make_file "$T/disk" 64M
    serve disk="$T/disk"
    script "$URI" "$SERVER_PID" "$T/disk" <<'PY'
import sys, time
from check import *
from raw import *
uri, pid, disk = sys.argv[1], int(sys.argv[2]), sys.argv[3]
before = usage(pid)
slow = []
for n in range(100):
    s = enter(uri)
    s.settimeout(1)
    try:
        s.sendall(request(CMD_WRITE, n, 32 * MIB, 16 * MIB) + bytes(MIB))
    except TimeoutError:
        pass # the server doesn't take all of it now
    slow.append(s)
most = wait_for(30, "the server to rest", lambda: rests(pid))
print(f"figure: 100 stalled writers of 16 MiB each: {most - before['rss']:.0f} MiB more memory")
same(most - before["rss"] < 1152, True, f"{most - before['rss']:.0f} MiB for them is bounded by a gibibyte")
begin = time.monotonic()
client = connect(uri)
for n in range(50):
    data = os.urandom(65536)
    client.pwrite(data, n * 65536)
    same(bytes(client.pread(65536, n * 65536)), data, "another client")
took = time.monotonic() - begin
same(took < 10, True, f"another client took {took:.1f} s for 50 writes and reads")
PY
}

# kill -9 of the server under load, three times: whatever it acknowledged is there when it is back.
# @broken forgets
# @broken in-memory
# @timeout 180
test_killed_under_load() {
    lacks nbd-server "its connections outlive it"
    local round
    truncate -s 16M "$T/disk"
    serve disk="$T/disk"
    for round in 1 2 3; do
        script "$URI" "$T/state.json" write "$SERVER_PID" "$round" <"$INTEROP/acknowledged.py"
        wait_until 10 "the killed server's end" server_gone
        serve disk="$T/disk"
        script "$URI" "$T/state.json" verify <"$INTEROP/acknowledged.py"
    done
}

# A full disk: ENOSPC for the write, nothing else breaks, and writes work again when there is room.
# @broken in-memory
# @broken errors
test_disk_full() {
    mkdir "$T/small"
    mount -t tmpfs -o size=8m dst-interop "$T/small" 2>/dev/null || skip "no right to mount a small file system"
    defer "umount -l $T/small"
    lacks nbd-server "it has no way to make room again"
    truncate -s 64M "$T/small/disk"
    serve disk="$T/small/disk"
    nbdsh_on "$URI" <<'PY'
data = os.urandom(MIB)
written = 0
try:
    while written < 64:
        h.pwrite(data, written * MIB)
        written += 1
except nbd.Error as error:
    same(error.errno, "ENOSPC", "the error of a full disk")
same(6 <= written <= 8, True, f"{written} MiB fit on 8")
refused("ENOSPC", h.pwrite, data, 40 * MIB)
for n in range(written):
    same(bytes(h.pread(MIB, n * MIB)), data, f"MiB {n}, written before")
h.pwrite(data[::-1], 0)
same(bytes(h.pread(MIB, 0)), data[::-1], "what is overwritten needs no room")
h.trim(4 * MIB, MIB)
h.pwrite(data, 50 * MIB)
same(bytes(h.pread(MIB, 50 * MIB)), data, "written after a trim")
h.flush()
PY
}

# SIGTERM with clients connected, idle and busy: the server ends, its status is 0, and what it acknowledged is there.
# @timeout 120
test_sigterm_with_clients() {
    lacks nbdkit "its end with clients is its own affair"
    lacks qemu-nbd "its end with clients is its own affair"
    lacks nbd-server "its end with clients is its own affair"
    truncate -s 16M "$T/disk"
    serve disk="$T/disk"
    script "$URI" "$T/state.json" write "$SERVER_PID" 1 TERM <"$INTEROP/acknowledged.py"
    wait_until 20 "the server's end after SIGTERM" server_gone
    wait "$SERVER_PID" || fail "the server ended with status $?"
    serve disk="$T/disk"
    script "$URI" "$T/state.json" verify <"$INTEROP/acknowledged.py"
}
