"""Writes numbered blocks over four connections, ends the server meanwhile, and later finds every acknowledged one.

acknowledged.py URI STATE write PID SEED [TERM]: writes until the server, ended by SIGKILL (or SIGTERM), is gone.
acknowledged.py URI STATE verify: each block holds its last acknowledged number, or the one that was on its way.
"""

import json
import os
import random
import signal
import struct
import sys
import threading
import time

import nbd

from check import connect

BLOCK = 4096
LINKS = 4
DEPTH = 32


def content(block, number):
    return struct.pack(">QQ", block, number) * (BLOCK // 16)


def load(path, blocks):
    if not os.path.exists(path):
        return {"acknowledged": [0] * blocks, "sent": [0] * blocks}
    with open(path) as file:
        return json.load(file)


def write_some(h, own, state, draw):
    """Keeps DEPTH writes on their way, one for a block at most; ends when the link does."""
    acknowledged, sent = state["acknowledged"], state["sent"]
    idle = own[:]
    draw.shuffle(idle)
    cookies = {}
    try:
        while True:
            while len(cookies) < DEPTH:
                at = draw.randrange(len(idle))
                idle[at], idle[-1] = idle[-1], idle[at]
                block = idle.pop()
                sent[block] = sent[block] + 1
                data = nbd.Buffer.from_bytearray(bytearray(content(block, sent[block])))
                cookies[h.aio_pwrite(data, block * BLOCK)] = block, data
            h.poll(-1)
            for cookie in list(cookies):
                if h.aio_command_completed(cookie):
                    block, _ = cookies.pop(cookie)
                    acknowledged[block] = sent[block]
                    idle.append(block)
    except nbd.Error:
        # Answers that came with the end count too; a number that failed may or may not be there.
        for cookie, (block, _) in cookies.items():
            try:
                if h.aio_command_completed(cookie):
                    acknowledged[block] = sent[block]
            except nbd.Error:
                pass


def write(uri, path, pid, seed, how):
    links = [connect(uri) for _ in range(LINKS)]
    blocks = links[0].get_size() // BLOCK
    state = load(path, blocks)
    threads = []
    for n, h in enumerate(links):
        args = (h, list(range(n, blocks, LINKS)), state, random.Random(seed * 10 + n))
        threads.append(threading.Thread(target=write_some, args=args))
    for thread in threads:
        thread.start()
    time.sleep(1 + random.Random(seed).random())
    os.kill(pid, how)
    for thread in threads:
        thread.join(60)
        if thread.is_alive():
            os._exit("a link is still there a minute after the server's end" and 1)
    with open(path, "w") as file:
        json.dump(state, file)
    done = sum(state["acknowledged"])
    doubtful = sum(a != s for a, s in zip(state["acknowledged"], state["sent"]))
    print(f"figure: {done} writes acknowledged, {doubtful} blocks in doubt")
    if done < 1000:
        raise SystemExit(f"only {done} writes were acknowledged: no load")


def verify(uri, path):
    h = connect(uri)
    blocks = h.get_size() // BLOCK
    state = load(path, blocks)
    for block in range(blocks):
        data = bytes(h.pread(BLOCK, block * BLOCK))
        last, next_ = state["acknowledged"][block], state["sent"][block]
        allowed = [content(block, number)[:16] for number in range(last, next_ + 1)]
        if last == 0:
            allowed.append(bytes(16))
        for at in range(0, BLOCK, 16):
            if data[at:at + 16] not in allowed:
                raise SystemExit(f"block {block}, byte {at}: {data[at:at + 16].hex()}; acknowledged was number {last}, "
                                 f"on its way {next_}")
    # What was in doubt is known now: the next round goes on from there.
    for block in range(blocks):
        if state["acknowledged"][block] != state["sent"][block]:
            state["sent"][block] += 1
            h.pwrite(content(block, state["sent"][block]), block * BLOCK)
            state["acknowledged"][block] = state["sent"][block]
    with open(path, "w") as file:
        json.dump(state, file)


if sys.argv[3] == "write":
    how = signal.SIGTERM if sys.argv[6:] == ["TERM"] else signal.SIGKILL
    write(sys.argv[1], sys.argv[2], int(sys.argv[4]), int(sys.argv[5]), how)
else:
    verify(sys.argv[1], sys.argv[2])
