# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand between a process and the kernel: see each system call that changes something, refuse it,
or kill the process there.

The process runs under a seccomp filter that asks a supervisor, its parent (seccomp_unotify(2)). So
the calls are the real ones, whoever makes them: Python, libbpf or bcc. None of the code under test
knows of it.
"""

from __future__ import annotations

import collections.abc as c
import ctypes
import dataclasses
import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
import traceback
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants

#: Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl,
#: include/uapi/asm-generic/unistd.h); old calls are missing on arm64.
_NUMBERS = {
    "x86_64": {
        "bpf": 321, "chmod": 90, "fchmod": 91, "fchmodat": 268, "flock": 73, "fsync": 74,
        "ftruncate": 77, "link": 86, "linkat": 265, "mkdir": 83, "mkdirat": 258, "mount": 165,
        "open": 2, "openat": 257, "pwrite64": 18, "rename": 82, "renameat": 264, "renameat2": 316,
        "rmdir": 84, "sendto": 44, "seccomp": 317, "setns": 308, "socket": 41, "symlink": 88,
        "symlinkat": 266, "truncate": 76, "umount2": 166, "unlink": 87, "unlinkat": 263,
        "unshare": 272, "write": 1, "writev": 20,
    },
    "aarch64": {
        "bpf": 280, "fchmod": 52, "fchmodat": 53, "flock": 32, "fsync": 82, "ftruncate": 46,
        "linkat": 37, "mkdirat": 34, "mount": 40, "openat": 56, "pwrite64": 68, "renameat": 38,
        "renameat2": 276, "sendto": 206, "seccomp": 277, "setns": 268, "socket": 198,
        "symlinkat": 36, "truncate": 45, "umount2": 39, "unlinkat": 35, "unshare": 97, "write": 64,
        "writev": 66,
    },
}  # fmt: skip
for _numbers in _NUMBERS.values():  # Linux 5.2 and later: the same everywhere
    _numbers.update(move_mount=429, fsopen=430, fsconfig=431, fsmount=432)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Which argument is the path that a call is about.
_PATH = {
    "chmod": 0, "fchmodat": 1, "link": 1, "linkat": 3, "mkdir": 0, "mkdirat": 1, "mount": 1,
    "move_mount": 3, "open": 0, "openat": 1, "rename": 1, "renameat": 3, "renameat2": 3, "rmdir": 0,
    "symlink": 1, "symlinkat": 2, "truncate": 0, "umount2": 0, "unlink": 0, "unlinkat": 1,
}  # fmt: skip

#: enum bpf_cmd (include/uapi/linux/bpf.h).
_BPF_COMMANDS = (
    "MAP_CREATE", "MAP_LOOKUP_ELEM", "MAP_UPDATE_ELEM", "MAP_DELETE_ELEM", "MAP_GET_NEXT_KEY",
    "PROG_LOAD", "OBJ_PIN", "OBJ_GET", "PROG_ATTACH", "PROG_DETACH", "PROG_TEST_RUN",
    "PROG_GET_NEXT_ID", "MAP_GET_NEXT_ID", "PROG_GET_FD_BY_ID", "MAP_GET_FD_BY_ID",
    "OBJ_GET_INFO_BY_FD", "PROG_QUERY", "RAW_TRACEPOINT_OPEN", "BTF_LOAD", "BTF_GET_FD_BY_ID",
    "TASK_FD_QUERY", "MAP_LOOKUP_AND_DELETE_ELEM", "MAP_FREEZE", "BTF_GET_NEXT_ID",
    "MAP_LOOKUP_BATCH", "MAP_LOOKUP_AND_DELETE_BATCH", "MAP_UPDATE_BATCH", "MAP_DELETE_BATCH",
    "LINK_CREATE", "LINK_UPDATE", "LINK_GET_FD_BY_ID", "LINK_GET_NEXT_ID", "ENABLE_STATS",
    "ITER_CREATE", "LINK_DETACH", "PROG_BIND_MAP",
)  # fmt: skip
#: What leaves nothing behind when the process dies after it: it reads, or makes what dies with the
#: process, or writes down what is there already.
_OF_THE_PROCESS = {
    *(
        f"bpf {command}"
        for command in _BPF_COMMANDS
        if "GET" in command or "LOOKUP_ELEM" in command or "LOOKUP_BATCH" in command
    ),
    "bpf MAP_CREATE", "bpf PROG_LOAD", "bpf BTF_LOAD", "bpf PROG_QUERY", "bpf TASK_FD_QUERY",
    "bpf ENABLE_STATS", "bpf ITER_CREATE",
    "flock", "fsconfig", "fsmount", "fsopen", "fsync", "setns", "socket", "unshare",
}  # fmt: skip

# id, pid, flags; seccomp_data: nr, arch, instruction pointer, arguments
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")  # id, value, error, flags
_RECV, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _MASK, _ABOVE, _RETURN = 0x20, 0x15, 0x45, 0x25, 0x06
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# the last one since Linux 5.6, the same everywhere
_NETLINK_ROUTE, _SO_PROTOCOL, _PIDFD_GETFD = (0, 38, 438)
_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_SUCH_MESSAGE = 0x7FFF  # a number that rtnetlink knows no message by
#: Seconds without a call after which a process is taken to hang.
_HANGS = 60


class Event(t.NamedTuple):
    """One system call that is about to be made.

    :ivar name: the call, for bpf(2) with its command, for netlink the number of the message.
    :ivar path: the path that it is about, "" for none.
    :ivar changes: whether it leaves something behind that outlives the process.
    """

    name: str
    path: str
    changes: bool

    def __str__(self) -> str:
        return f"{self.name} {self.path}".strip()


class Kill:
    """The answer that kills the process before the call is made."""


class Refuse(t.NamedTuple):
    """The answer that lets the call fail with this errno; None: a netlink request is spoilt, so
    that the kernel itself refuses it.
    """

    errno: int | None


Answer = Kill | Refuse | None


@dataclasses.dataclass
class Run:
    """A process that was watched.

    :ivar events: the calls it made, or was about to make.
    :ivar killed: whether it was killed.
    :ivar output: what it wrote to its standard output.
    """

    events: list[Event]
    killed: bool
    output: str


def _filter() -> bytes:
    """Return the classic BPF program that asks the supervisor about the calls of _NUMBERS, save
    those that open only to read and write to the terminal.
    """
    numbers = _NUMBERS[platform.machine()]
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[platform.machine()]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, 0),
    ]
    for name, number in numbers.items():
        if name == "seccomp":
            continue
        if name in ("open", "openat"):
            argument, test = (1 if name == "open" else 2), (_MASK, 0, 1, _WRITES)
        elif name in ("write", "writev", "pwrite64"):
            argument, test = 0, (_ABOVE, 0, 1, 2)
        elif name == "socket":
            argument, test = 0, (_EQUAL, 0, 1, socket.AF_NETLINK)
        else:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
            continue
        code += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, 16 + 8 * argument),
            test,
            (_RETURN, 0, 0, _ASK),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _install() -> int:
    """Put the calling process under the filter; return the file descriptor that the supervisor
    listens on.
    """
    code = _filter()
    program = ctypes.create_string_buffer(code, len(code))
    head = ctypes.create_string_buffer(
        struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(
        ctypes.c_long(_NUMBERS[platform.machine()]["seccomp"]),
        ctypes.c_ulong(_SET_MODE_FILTER),
        ctypes.c_ulong(_NEW_LISTENER),
        head,
    )
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return int(fd)


_NAMES = {number: name for name, number in _NUMBERS.get(platform.machine(), {}).items()}


class _Stopped:
    """A process that waits for the supervisor's answer.

    :param older: maps of higher ids were made by the process.
    """

    def __init__(self, raw: bytes, older: int) -> None:
        self._older = older
        self.id, self.pid, dummy, number, dummy, dummy, *self.arguments = _NOTIFICATION.unpack(raw)
        self._name = _NAMES[number]

    def _read(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", 0) as memory:
            memory.seek(address)
            return memory.read(size)

    def _text(self, address: int) -> str:
        """Return a string; it is read up to the end of its page, for the next may not be there."""
        room = 4096 - address % 4096
        raw = self._read(address, room)
        if b"\0" not in raw:
            raw += self._read(address + room, 4096)
        return os.fsdecode(raw.partition(b"\0")[0])

    def event(self) -> Event:
        name, path = self._name, ""
        if name == "bpf":
            name = f"bpf {_BPF_COMMANDS[self.arguments[0]]}"
            if name == "bpf MAP_UPDATE_ELEM":
                return Event(name, "", self._map_id() <= self._older)
        elif name == "sendto":
            message = struct.unpack("=H", self._read(self.arguments[1] + 4, 2))[0]
            protocol = self._protocol()
            name = (
                f"netlink {message}"
                if protocol == _NETLINK_ROUTE
                else f"netlink {protocol} {message}"
            )
            # RTM_GET* are at 4n + 2; of all else modules only read
            return Event(name, "", protocol == _NETLINK_ROUTE and message % 4 != 2)
        elif name in _PATH:
            address = self.arguments[_PATH[name]]
            path = self._text(address) if address else ""
        elif name in ("write", "writev", "pwrite64", "fchmod", "ftruncate"):
            path = os.readlink(f"/proc/{self.pid}/fd/{self.arguments[0]}")
        only_opened = name in ("open", "openat") and path.startswith(("/proc/", "/dev/"))
        # what a killed run leaves of its lock is looked at in the tests of locks
        return Event(
            name,
            path,
            name not in _OF_THE_PROCESS and not only_opened and not path.endswith(".lock"),
        )

    def _protocol(self) -> int:
        """Return the protocol of the socket that the call is about: NETLINK_ROUTE or another one of
        netlink(7).
        """
        pidfd = os.pidfd_open(self.pid)
        try:
            fd = _LIBC.syscall(_PIDFD_GETFD, pidfd, ctypes.c_int(self.arguments[0]), 0)
        finally:
            os.close(pidfd)
        with socket.socket(fileno=fd) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)

    def _map_id(self) -> int:
        """Return the id of the map that the call is about; union bpf_attr begins with its file
        descriptor.
        """
        (fd,) = struct.unpack("=I", self._read(self.arguments[1], 4))
        with open(f"/proc/{self.pid}/fdinfo/{fd}", encoding="ascii") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("map_id:")), 0)

    def spoil(self) -> None:
        """Change the number of the netlink message that is about to be sent."""
        with open(f"/proc/{self.pid}/mem", "r+b", 0) as memory:
            memory.seek(self.arguments[1] + 4)
            memory.write(struct.pack("=H", _NO_SUCH_MESSAGE))


def _respond(listener: int, stopped: _Stopped, refusal: int = 0) -> None:
    response = _RESPONSE.pack(stopped.id, 0, -refusal, 0 if refusal else _CONTINUE)
    fcntl.ioctl(listener, _SEND, response)


def watch(
    run: c.Callable[[], object],
    answer: c.Callable[[int, Event], Answer] = lambda dummy_number, dummy_event: None,
) -> Run:
    """Run a function in a process of its own, and answer each of its system calls.

    :param answer: called with the number (from 0) and the event of each call, before it is made.
    :raises TimeoutError: the process hangs.
    """
    ours, theirs = socket.socketpair()
    with ours:
        pid, output = start(lambda: (socket.send_fds(theirs, [b"f"], [_install()]), run()))
        theirs.close()
        (listener,) = socket.recv_fds(ours, 1, 1)[1]
    done = Run([], False, "")
    try:
        _supervise(pid, listener, answer, done)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(listener)
        done.output = finish(pid, output)
    return done


def at(
    fits: c.Callable[[Event], bool], turn: int, what: Answer
) -> c.Callable[[int, Event], Answer]:
    """Return what answers the ``turn``-th (from 1) of the calls that fit; all others are made."""
    left = turn

    def answer(dummy: int, event: Event) -> Answer:
        nonlocal left
        if not fits(event):
            return None
        left -= 1
        return None if left else what

    return answer


def is_call(name: str) -> c.Callable[[Event], bool]:
    """Return what tells the calls of one name."""
    return lambda event: event.name == name


def killed(run: c.Callable[[], object], fits: c.Callable[[Event], bool], turn: int = 1) -> bool:
    """Run a function in a process that is killed at the ``turn``-th of the calls that fit; whether
    it came to that.
    """
    return watch(run, at(fits, turn, Kill())).killed


def outcome(run: c.Callable[[], object], answer: c.Callable[[int, Event], Answer]) -> t.Any:
    """Run a function in a process of its own, as watch() does, and return what it returned, as JSON
    has it.

    :raises ConntrackError: what it raised.
    """

    def told() -> None:
        try:
            found: dict[str, t.Any] = {"value": run()}
        except ConntrackError as exc:
            found = {"message": exc.message, "facts": exc.facts}
        print(f"\n{json.dumps(found)}")

    output = watch(told, answer).output
    try:
        found = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        raise AssertionError(output) from None
    if "message" in found:
        raise ConntrackError(found["message"], **found["facts"])
    return found["value"]


def start(run: c.Callable[[], object]) -> tuple[int, int]:
    """Run a function in a process of its own; return the process's number, and an open file that
    holds what it writes.
    """
    output = os.memfd_create("output")
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8")
            run()
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    return pid, output


def finish(pid: int, output: int) -> str:
    """Wait for the end of a process that was started; return what it wrote."""
    os.waitpid(pid, 0)
    with open(output, "rb") as written:
        written.seek(0)
        return written.read().decode()


def _supervise(
    pid: int, listener: int, answer: c.Callable[[int, Event], Answer], done: Run
) -> None:
    """Answer each call until the process ends.

    The kernel makes some writes below /proc/sys again and again by itself, while others on the
    machine change their networks (restart_syscall(), where rtnl_trylock() fails). That is one call:
    what came of it depends on nobody but the process.
    """
    last: tuple[Event, list[int]] | None = None
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    with bpf.closing(bpf.map_create(bpf_constants.MAP_TYPES["array"], "mark", 4, 4, 1)) as fd:
        older = bpf.map_info(fd).id  # than the maps that the process makes
    while True:
        ready = poll.poll(_HANGS * 1000)
        if not ready:
            raise TimeoutError(
                f"the process made no system call for {_HANGS} s; its last ones:"
                f" {'; '.join(map(str, done.events[-5:]))}"
            )
        if not ready[0][1] & select.POLLIN:
            return  # it has ended
        raw = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECV, raw)
        except OSError as exc:
            if exc.errno == errno.ENOENT:  # it died meanwhile
                continue
            raise
        stopped = _Stopped(bytes(raw), older)
        event = stopped.event()
        again, last = (event, stopped.arguments) == last, (event, stopped.arguments)
        if again and event.path.startswith("/proc/sys/"):
            _respond(listener, stopped)
            continue
        done.events.append(event)
        what = answer(len(done.events) - 1, event)
        if isinstance(what, Kill):
            os.kill(pid, signal.SIGKILL)
            done.killed = True
            return
        if isinstance(what, Refuse) and what.errno is not None:
            _respond(listener, stopped, what.errno)
            continue
        if isinstance(what, Refuse):
            stopped.spoil()
        _respond(listener, stopped)
