# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time: a lock on a directory, which goes with the process that holds it.

Where a run can not have the lock in time, the error names the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import typing as t

from .clock import utc
from .errors import ConntrackError, bad_value

#: How long a run waits for another one, unless it is told otherwise.
SECONDS = 60
_POLL_SECONDS = 0.05
#: As much of a command line as a message carries.
_SHOWN = 160

#: The option of every module that takes a lock, see the documentation fragment ``lock``.
OPTION: dict[str, dict[str, t.Any]] = {"lock_timeout": {"type": "int", "default": SECONDS}}


class Busy(ConntrackError):
    """Another run has the lock."""


@contextlib.contextmanager
def held(directory: str, seconds: float = SECONDS, make: int | None = None) -> t.Iterator[None]:
    """Keep other runs out of ``directory`` while the ``with`` block works, which may remove it.

    :param seconds: how long to wait for another run; 0 does not wait.
    :param make: make the directory, with these permissions, where it is missing.
    :raises FileNotFoundError: where it is missing.
    :raises Busy: when another run holds it for longer; it says which.
    """
    if seconds < 0:
        raise bad_value("lock_timeout", seconds, "give the seconds to wait for another run, or 0")
    deadline = time.monotonic() + seconds
    while True:
        try:
            if make is not None:
                os.makedirs(directory, mode=make, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if make is None:
                raise
            continue  # the run before took it away
        try:
            _wait(fd, directory, deadline, seconds)
            if _still_there(fd, directory):
                yield
                return
        finally:
            os.close(fd)


def _wait(fd: int, directory: str, deadline: float, seconds: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                waited = f"after {seconds:g} s {holder(fd)} still holds it" if seconds else f"{holder(fd)} holds it"
                raise Busy(
                    f"{directory}: another run has the lock: {waited}. Wait for it or end it, then try again; lock_timeout says how long to wait."
                ) from None
            time.sleep(_POLL_SECONDS)


def _still_there(fd: int, directory: str) -> bool:
    """Return whether the locked directory is the one of that name: the run before may have removed it, and another one may have made it anew."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(directory), os.fstat(fd))
    return False


def holder(fd: int) -> str:
    """Return who holds the lock on an open file, for people; the kernel tells it in /proc/locks (proc(5))."""
    found = os.fstat(fd)
    where = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with open("/proc/locks", encoding="ascii") as lines:
        pids = [fields[4] for fields in map(str.split, lines) if fields[1:2] == ["FLOCK"] and fields[5] == where]
    return process(int(pids[0])) if pids and pids[0].isdigit() else "a process that can not be seen from here"


def process(pid: int) -> str:
    """Return a process as people tell it from others: its number, its command line, and when it began."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            command = " ".join(file.read().split("\0")).strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid}, which has ended"
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return f"process {pid} ({command[:_SHOWN]}), which runs since {utc(began)},"
