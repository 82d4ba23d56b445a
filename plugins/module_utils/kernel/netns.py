# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Named network namespaces as C(ip netns) keeps them: bind mounts of nsfs files in /run/netns.

Namespaces are entered in-process with setns(2). C(ip netns exec) also mounts another /sys, which
hides the pins in /sys/fs/bpf, and a helper process per namespace costs ten milliseconds each.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import typing as t

from ..core.errors import ConntrackError, bad_value

RUN_DIR = "/run/netns"
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> str:
    """Return the path under which C(ip netns) knows the namespace.

    :raises ConntrackError: it is no name: the path would lead somewhere else.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise bad_value("netns", name, "give the name of a namespace, as ip netns list has it")
    return f"{RUN_DIR}/{name}"


def _nsfs_device() -> int:
    return os.stat("/proc/self/ns/net").st_dev


def current_fd() -> int:
    """Open the calling thread's namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def inode(name: str | None) -> int | None:
    """Return the inode number that identifies the namespace until reboot (None: the current one),
    or None when there is no such namespace.
    """
    try:
        found = os.stat("/proc/thread-self/ns/net" if name is None else path(name))
    except FileNotFoundError:
        return None
    return found.st_ino if found.st_dev == _nsfs_device() else None


def exists(name: str) -> bool:
    """Say whether a namespace is mounted under the name (a bare file is none)."""
    return inode(name) is not None


def names() -> tuple[dict[str, int], list[str]]:
    """Return the mounted namespaces (name to inode) and the names of files in /run/netns that are
    none, both in name order.
    """
    device = _nsfs_device()
    mounted: dict[str, int] = {}
    bare: list[str] = []
    try:
        entries = sorted(os.listdir(RUN_DIR))
    except FileNotFoundError:
        return {}, []
    for name in entries:
        with contextlib.suppress(FileNotFoundError):  # removed by somebody since the listing
            found = os.stat(path(name))
            if found.st_dev == device:
                mounted[name] = found.st_ino
            else:
                bare.append(name)
    return mounted, bare


def canonical(wanted: t.Iterable[str | None]) -> dict[str | None, str | None]:
    """Return, by each name, the one name that is used for a namespace: None for that which the
    thread is in, else the first of its names in order.

    A name of no namespace stays as it is.
    """
    found: dict[str | None, str | None] = {name: name for name in wanted}
    if not any(found):
        return found
    first: dict[int, str | None] = {}
    for name, number in names()[0].items():
        first.setdefault(number, name)
    own = inode(None)
    if own is not None:
        first[own] = None
    for name in filter(None, found):
        there = inode(name)
        if there is not None:
            found[name] = first.get(there, name)
    return found


def kind_of_file(name: str) -> str:
    """Return what stands in /run/netns under a name that is no namespace: ``file`` or
    ``directory``.
    """
    return "directory" if os.path.isdir(path(name)) else "file"


def fd(name: str) -> int:
    """Open the namespace; the caller closes the descriptor.

    :raises ConntrackError: there is no namespace of that name.
    """
    try:
        handle = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConntrackError(
            f"netns: there is no namespace {name!r}: create it, or correct the name."
        ) from None
    if os.fstat(handle).st_dev != _nsfs_device():
        os.close(handle)
        raise ConntrackError(
            f"netns: {path(name)} is a plain {kind_of_file(name)} and no namespace: remove it, or"
            " correct the name."
        )
    return handle


def enter(handle: int) -> None:
    """Move the calling thread into the namespace of an open descriptor."""
    if libc.setns(handle, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        if code == errno.EPERM:
            raise ConntrackError(
                "Entering a network namespace needs root: run as root, with become for instance."
            )
        raise OSError(code, f"setns: {os.strerror(code)}")


@contextlib.contextmanager
def restoring() -> t.Iterator[None]:
    """Bring the calling thread back into its namespace at the end."""
    home = current_fd()
    try:
        yield
    finally:
        try:
            enter(home)
        except (OSError, ConntrackError):
            # once more, for here what is undone would be undone in the wrong place
            enter(home)
        os.close(home)


@contextlib.contextmanager
def entered(name: str | None) -> t.Iterator[None]:
    """Run the body inside the named namespace; None stays where the thread is.

    Only the calling thread moves. Sockets opened inside keep belonging to the namespace afterwards.

    :raises ConntrackError: there is no namespace of that name, or the caller is not root.
    """
    if name is None:
        yield
        return
    handle = fd(name)
    try:
        with restoring():
            enter(handle)
            yield
    finally:
        os.close(handle)


def _handles() -> t.Generator[int, None, None]:
    """Give each namespace that can be found, open: those with a name, then those that processes are
    in; some come twice. Each is closed when the next comes.
    """
    processes = (f"/proc/{pid}/ns/net" for pid in os.listdir("/proc") if pid.isdigit())
    for where in (*map(path, names()[0]), *processes):
        try:
            handle = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # gone since, or a process that has ended
            continue
        try:
            yield handle
        finally:
            os.close(handle)


@contextlib.contextmanager
def entered_where(fits: t.Callable[[int], bool]) -> t.Iterator[bool]:
    """Run the body inside the first namespace that fits, and say whether there is one; where there
    is none, the thread stays where it is.

    :param fits: is called with a namespace's descriptor, from the namespace that the thread is in.
    """
    tried = set()
    with contextlib.closing(_handles()) as handles:
        for handle in handles:
            number = os.fstat(handle).st_ino
            if number in tried or not fits(handle):
                tried.add(number)
                continue
            with restoring():
                enter(handle)
                yield True
                return
    yield False
