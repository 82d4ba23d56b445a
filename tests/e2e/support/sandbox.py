# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine of one's own for the time of a call: network, mounts, /run, /var/lib and BPF file
system of a process that ends with it.
"""

from __future__ import annotations

import collections.abc as c
import ctypes
import os
import pickle
import signal
import subprocess
import traceback
import typing as t

T = t.TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_PR_SET_PDEATHSIG = 1
#: What a host has before anything of ours is on it; a new network namespace takes the machine's
#: present IPv4 settings for its own.
_FRESH = {
    "net/ipv4/conf/all/forwarding": "0",
    "net/ipv4/conf/all/accept_redirects": "1",
    "net/ipv6/conf/all/forwarding": "0",
}
_SETUP = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/lock
mount --bind /run/netns /run/netns
mount --make-shared /run/netns
mount -t tmpfs tmpfs /var/lib
umount -R -l /sys
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
"""


def shell(script: str) -> str:
    """Run a script; return what it printed.

    :raises AssertionError: a command of it failed; with all that was printed.
    """
    done = subprocess.run(
        ["/bin/sh", "-euc", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


def _enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    shell(_SETUP)
    for name, value in _FRESH.items():
        with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(value)


def sandboxed(*bodies: c.Callable[[], T]) -> list[T]:
    """Return what functions return when they run at the same time, each on a machine of its own;
    nothing but their results comes back.

    :raises AssertionError: one of them raised; with its traceback.
    """
    __tracebackhide__ = True
    readers = [_start(body) for body in bodies]
    told = []
    for reader in readers:
        with open(reader, "rb") as source:
            told.append(source.read())
    for dummy in readers:
        os.wait()
    results = []
    for raw in told:
        assert raw, "the process died"
        good, result = pickle.loads(raw)
        assert good, result
        results.append(result)
    return results


def _start(body: c.Callable[[], T]) -> int:
    """Run a function in a process on a machine of its own; return the file descriptor through which
    it will tell the result.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return reader
    try:
        _enter()
        told: tuple[bool, t.Any] = (True, body())
    except BaseException:
        told = (False, traceback.format_exc())
    try:
        with open(writer, "wb") as out:
            pickle.dump(told, out)
    finally:
        os._exit(0)
