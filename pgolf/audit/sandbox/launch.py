"""Starts a program inside a sandbox: `python -I launch.py PLAN`, PLAN a JSON file (see Plan in process.py).

It imports nothing of pgolf and replaces itself by the program, so that nothing of it is left in the process.

Namespaces (user_namespaces(7)): the process sees no network, no other process, no shared memory, and of the file system
only what the plan lists, read-only, with a fresh /tmp and /dev/shm. System call filter (seccomp_unotify(2)): every file it
opens and every connection is reported to the auditor, whichever library asks for it.
"""

import ctypes
import json
import os
import platform
import socket
import struct
import sys

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
READONLY, NOSUID, NODEV, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
SET_NO_NEW_PRIVS, SET_PDEATHSIG, SET_SECUREBITS = 38, 1, 28
# NOROOT, its lock, NO_SETUID_FIXUP and its lock: the user 0 of the namespace has no capabilities after exec
NO_CAPABILITIES = 0b1111
DEVICES = ("null", "zero", "full", "random", "urandom")
# what libraries ask about the machine where a fresh /proc is not allowed
MACHINE = ("/proc/cpuinfo", "/proc/meminfo")

# ---- the filter: numbers of system calls that are reported, and of those that are refused

ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {"open": 2, "creat": 85, "openat": 257, "openat2": 437, "connect": 42},
        {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "open_by_handle_at": 304, "io_uring_setup": 425},
        {"seccomp": 317, "mount_setattr": 442},
    ),
    "aarch64": (
        0xC00000B7,
        {"openat": 56, "openat2": 437, "connect": 203},
        {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "open_by_handle_at": 265, "io_uring_setup": 425},
        {"seccomp": 277, "mount_setattr": 442},
    ),
}
NEW_LISTENER = 8
NOTIFY, REFUSE, ALLOW = 0x7FC00000, 0x00050001, 0x7FFF0000  # REFUSE: the call fails with EPERM
LOAD, JUMP_EQUAL, JUMP_ABOVE, RETURN = 0x20, 0x15, 0x25, 0x06
# x86-64's second numbering (x32) begins here
FOREIGN = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments) -> int:
    result = function(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    encoded = [value.encode() if value is not None else None for value in (source, target, kind, data)]
    call(libc.mount, encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def end_with(auditor: int) -> None:
    """However it ends. To be asked for again by every process, and after every change of its rights, which takes it back."""
    call(libc.prctl, SET_PDEATHSIG, 9)
    if os.getppid() != auditor:  # it ended before the line above
        os._exit(128 + 9)


def enter_namespaces(auditor: int) -> None:
    user, group = os.getuid(), os.getgid()
    call(libc.unshare, NEWUSER | NEWNS | NEWNET | NEWIPC | NEWUTS | NEWPID)
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    end_with(auditor)
    # the first child is the new process namespace's first process: with it all others end
    child = os.fork()
    if child:
        os.closerange(0, 3)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    call(libc.prctl, SET_PDEATHSIG, 9)


def bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            open(target, "w").close()
    mount(source, target, flags=BIND | RECURSIVE)


def read_only(target: str) -> None:
    """Everything below, other mounts included: mount_setattr(AT_RECURSIVE), which Linux 5.12 has."""
    attributes = struct.pack("QQQQ", READONLY | NOSUID, 0, 0, 0)
    number = ARCHITECTURES[platform.machine()][3]["mount_setattr"]
    call(libc.syscall, number, -100, target.encode(), 0x8000, attributes, len(attributes))


def overlay(path: str, root: str) -> bool:
    """A folder that can be written to without a trace outside: compilers keep what they made beside the source."""
    upper, work = (f"{root}/.layers/{kind}{path}" for kind in ("upper", "work"))
    for folder in (upper, work, root + path):
        os.makedirs(folder, exist_ok=True)
    try:
        mount("overlay", root + path, "overlay", NOSUID | NODEV, f"lowerdir={path},upperdir={upper},workdir={work}")
    except OSError:
        return False
    return True


def build_root(plan: dict) -> None:
    """The file system that the program sees: `visible` paths at their own names, or all of the system's, read-only."""
    mount(None, "/", flags=RECURSIVE | PRIVATE)
    if plan["everything"]:
        read_only("/")
        return
    root = plan["root"]
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "mode=755")
    for folder in ("tmp", "dev/shm", "proc"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    mount("tmpfs", f"{root}/tmp", "tmpfs", NOSUID | NODEV, "mode=1777")
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777")
    for path in plan["visible"]:
        if os.path.islink(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            if not os.path.lexists(root + path):
                os.symlink(os.readlink(path), root + path)
        elif path in plan["layered"] and overlay(path, root):
            continue
        else:
            bind(path, root + path)
            read_only(root + path)
    for name in (*DEVICES, *plan["devices"]):
        if os.path.exists(f"/dev/{name}"):
            bind(f"/dev/{name}", f"{root}/dev/{name}")
    try:
        mount("proc", f"{root}/proc", "proc", NOSUID | NODEV)
    except OSError:
        for path in MACHINE:
            bind(path, root + path)
    os.chroot(root)
    os.makedirs(plan["inside"])
    os.chdir(plan["inside"])


def install_filter(report_to: socket.socket) -> None:
    """Reported calls wait until the auditor has seen them; refused ones fail with EPERM."""
    architecture, reported, refused, others = ARCHITECTURES[platform.machine()]
    verdicts = [(number, NOTIFY) for number in reported.values()] + [(number, REFUSE) for number in refused.values()]
    program = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, 0)]
    program += [(JUMP_ABOVE, 0, 1, FOREIGN - 1), (RETURN, 0, 0, REFUSE)]
    for number, verdict in verdicts:
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, verdict)]
    program.append((RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    call(libc.prctl, SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = call(libc.syscall, others["seccomp"], 1, NEW_LISTENER, header)
    # the message itself is no reported call
    socket.send_fds(report_to, [b"."], [listener])
    os.close(listener)


def main() -> None:
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    report_to = socket.socket(fileno=plan["report_to"]) if plan["report_to"] is not None else None
    if plan["namespaces"]:
        enter_namespaces(plan["parent"])
        build_root(plan)
        call(libc.prctl, SET_SECUREBITS, NO_CAPABILITIES, 0, 0, 0)
    else:
        end_with(plan["parent"])
        os.chdir(plan["folder"])
    if report_to is not None:
        install_filter(report_to)
        report_to.close()
    os.execve(plan["command"][0], plan["command"], plan["environment"])


if __name__ == "__main__":
    main()
