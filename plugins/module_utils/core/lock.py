# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time: a lock that goes with the process that holds it, and that nobody but root can
take.

Whoever may read a file or directory may lock it, flock(2) asks for no more. So a directory that
others may read is locked by a file beside the facts of this boot, which only root can open; one
that only root can read is locked itself. Where a run cannot have the lock in time, the error names
the process that holds it.

Releases before this one lock every directory itself. So that their runs and those of this one keep
out of each other's way, that lock is taken too, as a shared one. It is waited for where a process
of root has it; where any other one has it, that is no run, and nobody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import typing as t

from . import safe_path
from .calendar import utc
from .errors import ConntrackError, bad_value

#: How long a run waits for another one, unless it is told otherwise.
SECONDS = 60
#: Facts about this boot; a tmpfs. It is there while something is in it.
RUN_DIR = "/run/ebpf_conntrack"
#: How the names of lock files end.
SUFFIX = ".lock"
_POLL_SECONDS = 0.05
#: As much of a command line as a message carries.
_SHOWN = 160
#: As much of a directory's name as that of its lock file has, for people.
_NAME_CHARACTERS = 40
#: The option of every module that takes a lock, see the documentation fragment ``lock``.
OPTION: dict[str, dict[str, t.Any]] = {"lock_timeout": {"type": "int", "default": SECONDS}}


class Busy(ConntrackError):
    """Another run has the lock."""


class _Patience(t.NamedTuple):
    """How long to wait for the lock of ``directory``: ``seconds``, until ``deadline`` of the
    monotonic clock.
    """

    directory: str
    seconds: float
    deadline: float

    def busy(self, who: str) -> Busy:
        """Return the error that names who has it."""
        waited = (
            f"after {self.seconds:g} s {who} still holds it" if self.seconds else f"{who} holds it"
        )
        return Busy(
            f"{self.directory}: another run has the lock: {waited}. Wait for it or end it, then try"
            " again; lock_timeout says how long to wait."
        )


@contextlib.contextmanager
def held(directory: str, seconds: float = SECONDS, make: int | None = None) -> t.Iterator[None]:
    """Keep other runs out of ``directory`` while the ``with`` block works, which may remove it.

    :param seconds: how long to wait for another run; 0 does not wait.
    :param make: make the directory, with these permissions, where it is missing.
    :raises FileNotFoundError: where it is missing.
    :raises ConntrackError: where somebody else than root may change it.
    :raises Busy: when another run holds it for longer; it says which.
    """
    if seconds < 0:
        raise bad_value("lock_timeout", seconds, "give the seconds to wait for another run, or 0")
    patience = _Patience(directory, seconds, time.monotonic() + seconds)
    while True:
        with contextlib.ExitStack() as afterwards, contextlib.ExitStack() as stack:
            try:
                if make is not None:
                    safe_path.make_dirs(directory, make)
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                if make is None:
                    raise
                continue  # the run before took it away
            stack.callback(os.close, fd)
            found = os.fstat(fd)
            safe_path.refuse_foreign(directory, found, sticky=True)
            # nobody else can open it
            if found.st_uid == os.geteuid() and not found.st_mode & 0o044:
                _wait(fd, patience)
            else:
                afterwards.callback(tidy)
                stack.enter_context(_file_held(_file_of(directory), patience))
                _wait_for_old(fd, patience)
            if _is_at(fd, directory):
                yield
                return


def _wait(fd: int, patience: _Patience) -> None:
    """Lock an open file."""
    while not _taken(fd, fcntl.LOCK_EX):
        if time.monotonic() >= patience.deadline:
            who = holder(fd)
            if _taken(fd, fcntl.LOCK_EX):  # it was held for no longer than tidy() takes
                return
            raise patience.busy(who)
        time.sleep(_POLL_SECONDS)


def _wait_for_old(fd: int, patience: _Patience) -> None:
    """Wait for a run of a release before this one, and keep others out. Any user may hold this
    lock, for as long as he likes: he is not waited for.
    """
    while not _taken(fd, fcntl.LOCK_SH):
        runs = [pid for pid in _holders(fd) if _is_roots(pid)]
        if not runs:
            return
        if time.monotonic() >= patience.deadline:
            raise patience.busy(process(runs[0]))
        time.sleep(_POLL_SECONDS)


def _taken(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Return whether what was locked is what is at that path: the run before may have removed it,
    and another one may have made it again.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(fd))
    return False


# ---------------------------------------------------------------- files that only root can open
def _file_of(directory: str) -> str:
    """Return the path of a directory's lock file. It never lies in a directory of somebody else's,
    as /run/netns, where a file is taken for a namespace.
    """
    real = os.path.realpath(directory)
    if os.geteuid() != 0:  # no run on a target: the cache of objects of the user who runs Ansible
        return os.path.join(real, SUFFIX)
    return os.path.join(
        RUN_DIR,
        f"{os.path.basename(real)[:_NAME_CHARACTERS]}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}{SUFFIX}",
    )


@contextlib.contextmanager
def _file_held(path: str, patience: _Patience) -> t.Iterator[None]:
    """Hold a lock file, which is made, and goes afterwards."""
    while True:
        fd = _open(path)
        if fd is None:
            continue  # its directory went, as in tidy()
        try:
            _wait(fd, patience)
            if _is_at(fd, path):
                try:
                    yield
                    return
                finally:
                    with contextlib.suppress(OSError):  # tidy() of another run takes it away
                        os.unlink(path)
        finally:
            os.close(fd)


def _open(path: str) -> int | None:
    directory = os.path.dirname(path)
    try:
        safe_path.make_dirs(directory, 0o755)
        safe_path.refuse_foreign(directory)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None


def tidy() -> None:
    """Remove the lock files that killed runs left, and RUN_DIR where nothing is in it then."""
    with contextlib.suppress(OSError):  # not there, of another user, in use, or a mount point
        for name in os.listdir(RUN_DIR):
            if name.endswith(SUFFIX):
                _remove_unused(os.path.join(RUN_DIR, name))
        fd = os.open(RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # a run of a release before this one has the lock before it puts anything there
            if _taken(fd, fcntl.LOCK_EX) or not any(map(_is_roots, _holders(fd))):
                os.rmdir(RUN_DIR)
        finally:
            os.close(fd)


def _remove_unused(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _taken(fd, fcntl.LOCK_EX) and _is_at(fd, path):
                os.unlink(path)
        finally:
            os.close(fd)


# ---------------------------------------------------------------- who holds it
def _listed(found: os.stat_result, device: str = "") -> list[int]:
    """Return the processes that took the lock on a file, as /proc/locks has it (proc(5);
    fs/locks.c).

    :param device: as it has that; some file systems have another one for stat(2), so without it all
        files of that number count.
    """
    with open("/proc/locks", encoding="ascii") as lines:
        entries = [
            (fields[4], *fields[5].rpartition(":")[::2])
            for fields in map(str.split, lines)
            if fields[1:2] == ["FLOCK"]
        ]
    return [
        int(pid)
        for pid, where, inode in entries
        if inode == str(found.st_ino) and where.startswith(device)
    ]


def _holders(fd: int) -> list[int]:
    """Return the processes that hold the lock on an open file, as far as they are seen from here.

    The one that took it may have ended since, and left it to a child: its number can belong to any
    process by now. So only who has the file open counts.
    """
    found = os.fstat(fd)
    return [pid for pid in _listed(found) if _has_locked(pid, found)]


def _has_locked(pid: int, found: os.stat_result) -> bool:
    """Tell whether a process has a file open, and locked by flock(2): proc(5), /proc/pid/fdinfo."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or is another user's
        return False
    for number in numbers:
        with contextlib.suppress(OSError):  # closed since
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), found):
                with open(
                    f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace"
                ) as lines:
                    if any(line.startswith("lock:") and "FLOCK" in line for line in lines):
                        return True
    return False


def _is_roots(pid: int) -> bool:
    """Tell whether a process is root's: by all of its user's numbers, since one of a program with
    set-user-ID has others besides (credentials(7)).
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            return (
                next((line.split()[1:] for line in lines if line.startswith("Uid:")), [])
                == ["0"] * 4
            )
    except OSError:
        return False


def holder(fd: int) -> str:
    """Return who holds the lock on an open file, for people."""
    found = os.fstat(fd)
    pids = _holders(fd) or _listed(
        found, f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    )
    return process(pids[0]) if pids else "a process that can not be seen from here"


def process(pid: int) -> str:
    """Return a process as people tell it from others: its number, its command line, and when it
    began.
    """
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            command = " ".join(file.read().split("\0")).strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid}, which has ended"
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return f"process {pid} ({command[:_SHOWN]}), which runs since {utc(began)},"
