"""NBD by hand, for clients that misbehave; and what a server uses. Imported by the fault tests' scripts."""

import os
import resource
import socket
import struct
import time
from urllib.parse import parse_qs, urlsplit

MAGIC_OPTION = b"IHAVEOPT"
OPT_EXPORT_NAME, OPT_ABORT = 1, 2
CMD_READ, CMD_WRITE = 0, 1


def many_files():
    """As many sockets as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plug(uri, source=None):
    """A connected socket, nothing said yet; `source` is an own address for TCP."""
    parts = urlsplit(uri)
    if parts.scheme == "nbd+unix":
        s = socket.socket(socket.AF_UNIX)
        s.connect(parse_qs(parts.query)["socket"][0])
        return s
    s = socket.socket()
    if source:
        s.bind((source, 0))
    s.connect((parts.hostname, parts.port))
    return s


def read_exactly(s, length):
    data = bytearray()
    while len(data) < length:
        part = s.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError(f"the server hung up after {len(data)} of {length} bytes")
        data += part
    return bytes(data)


def greet(s):
    """Both sides' greetings."""
    assert read_exactly(s, 16) == b"NBDMAGIC" + MAGIC_OPTION
    read_exactly(s, 2)
    s.sendall(struct.pack(">I", 3))


def enter(uri, source=None):
    """A link in transmission by EXPORT_NAME: simple replies."""
    s = plug(uri, source)
    greet(s)
    name = urlsplit(uri).path.lstrip("/").encode()
    s.sendall(MAGIC_OPTION + struct.pack(">II", OPT_EXPORT_NAME, len(name)) + name)
    read_exactly(s, 10)
    return s


def request(command, cookie, offset, length, flags=0):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def reply(s):
    """A simple reply's cookie and error."""
    magic, error, cookie = struct.unpack(">IIQ", read_exactly(s, 16))
    assert magic == 0x67446698, hex(magic)
    return cookie, error


def family(pid):
    """The process and its descendants."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                children.setdefault(int(file.read().rsplit(") ", 1)[1].split()[1]), []).append(int(name))
        except OSError:
            pass
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def usage(pid):
    """Of a server and its children: RSS in MiB, descriptors, threads, CPU seconds."""
    rss = files = threads = ticks = 0
    for one in family(pid):
        try:
            with open(f"/proc/{one}/status") as file:
                status = dict(line.split(":", 1) for line in file)
            with open(f"/proc/{one}/stat") as file:
                ticks += sum(int(field) for field in file.read().rsplit(") ", 1)[1].split()[11:15])
            if "VmRSS" not in status: # a zombie
                raise OSError
            files += len(os.listdir(f"/proc/{one}/fd"))
            rss += int(status["VmRSS"].split()[0]) / 1024
            threads += int(status["Threads"])
        except OSError:
            if one == pid:
                raise SystemExit("the server has ended") from None
    return {"rss": rss, "files": files, "threads": threads, "cpu": ticks / os.sysconf("SC_CLK_TCK")}


def rests(pid):
    """The RSS of a server that uses hardly any CPU for a second; else None: it works, or it burns CPU for nothing."""
    before = usage(pid)["cpu"]
    time.sleep(1)
    now = usage(pid)
    return now["rss"] if now["cpu"] - before <= 0.05 else None


def wait_for(seconds, what, condition):
    """Polls until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)


def closed(s):
    """Whether the server has hung up; what it sent is thrown away."""
    s.setblocking(False)
    try:
        while s.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        s.setblocking(True)
