"""The auditor's end of the system call filter: writes down what a process opens and connects to.

Each reported call waits for an answer; the answer is always to go on (seccomp_unotify(2)). A process that cannot be isolated
is refused what is not its own, which another of its threads could get around by changing the path in between: then the
finding is observed, not proved.
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import threading
from collections.abc import Callable

from pgolf.audit.sandbox.launch import ARCHITECTURES

RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# a reported call: id, pid, flags, then number, architecture, instruction and six arguments
NOTICE = struct.Struct("QIIiIQ6Q")
ANSWER = struct.Struct("QqiI")
HERE = -100
LONGEST_PATH = 4096
# whom the C library asks for the names of users and hosts
LOCAL_SERVICES = ("/var/run/nscd/socket", "/run/nscd/socket", "/run/systemd/userdb/io.systemd.DynamicUser")


class Watch:
    """Runs in a thread until the process and all its children are gone.

    refused  whether a call that opens this path, to write or not, is refused; the path is absolute
    """

    def __init__(self, socket: socket.socket, refused: Callable[[str, bool], bool]):
        self.opened: set[str] = set()
        self.created: set[str] = set()
        self.connected: set[str] = set()
        self._socket, self._refused = socket, refused
        names = ARCHITECTURES[platform.machine()][1]
        self._names = {number: name for name, number in names.items()}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            _, descriptors, *_ = socket.recv_fds(self._socket, 1, 1)
        except OSError:
            return
        finally:
            self._socket.close()
        if not descriptors:
            return
        listener = descriptors[0]
        notice = bytearray(NOTICE.size)
        try:
            while self._one(listener, notice):
                pass
        finally:
            os.close(listener)

    def _one(self, listener: int, notice: bytearray) -> bool:
        notice[:] = bytes(len(notice))
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
        except OSError as error:
            # ENOENT: the process was killed while it waited; anything else: nobody is left
            return error.errno in (errno.ENOENT, errno.EINTR) and alive(listener)
        identity, pid, _, number, _, _, *arguments = NOTICE.unpack(notice)
        name = self._names.get(number, "")
        path = self._seen(name, pid, arguments)
        flags = flags_of(name, pid, arguments) if path else 0
        refuse = bool(path) and self._refused(path, bool(flags & CHANGES))
        if flags & os.O_CREAT and not refuse:
            self.created.add(path)
        answer = ANSWER.pack(identity, 0, -errno.EACCES if refuse else 0, 0 if refuse else CONTINUE)
        try:
            fcntl.ioctl(listener, SEND, answer)
        except OSError:
            pass
        return True

    def _seen(self, name: str, pid: int, arguments: list[int]) -> str:
        """Note the call; the path that it opens, if it opens one."""
        if name == "connect":
            where = address(read(pid, arguments[1], min(arguments[2], 128)))
            if where not in LOCAL_SERVICES:
                self.connected.add(where)
            return ""
        folder, place = (arguments[0], 1) if name in ("openat", "openat2") else (HERE, 0)
        path = absolute(text(pid, arguments[place]), pid, ctypes.c_int32(folder).value)
        self.opened.add(path)
        return path


def flags_of(name: str, pid: int, arguments: list[int]) -> int:
    """O_RDONLY, O_CREAT, ..."""
    flags = {"open": arguments[1], "openat": arguments[2], "creat": os.O_CREAT}.get(name)
    if flags is None:
        flags = int.from_bytes(read(pid, arguments[2], 8), "little")  # the first field of openat2's struct
    return flags


def alive(listener: int) -> bool:
    """Whether any process still uses the filter: poll reports a hang-up when the last one is gone."""
    import select

    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return not any(event & select.POLLHUP for _, event in poll.poll(0))


def read(pid: int, address: int, count: int) -> bytes:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(count)
    except (OSError, ValueError, OverflowError):
        return b""


def text(pid: int, address: int) -> str:
    """A string that ends with a zero; it may end with the last page that can be read."""
    data = b""
    while len(data) < LONGEST_PATH and b"\0" not in data:
        more = read(pid, address + len(data), 4096 - (address + len(data)) % 4096)
        if not more:
            break
        data += more
    return os.fsdecode(data.partition(b"\0")[0])


def absolute(path: str, pid: int, folder: int) -> str:
    if path.startswith("/"):
        return os.path.normpath(path)
    try:
        base = os.readlink(f"/proc/{pid}/cwd" if folder == HERE else f"/proc/{pid}/fd/{folder}")
    except OSError:
        base = "?"
    return os.path.normpath(os.path.join(base, path))


def address(data: bytes) -> str:
    if len(data) < 2:
        return "?"
    family = struct.unpack("H", data[:2])[0]
    if family == socket.AF_INET and len(data) >= 8:
        return f"{socket.inet_ntoa(data[4:8])}:{struct.unpack('>H', data[2:4])[0]}"
    if family == socket.AF_INET6 and len(data) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, data[8:24])}]:{struct.unpack('>H', data[2:4])[0]}"
    if family == socket.AF_UNIX:
        return os.fsdecode(data[2:].partition(b"\0")[0]) or "an abstract socket"
    return f"a socket of family {family}"
