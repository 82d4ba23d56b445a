# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces without a name."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import typing as t

from ..core.errors import ConntrackError
from . import netns


def call(name: str, *args: t.Any) -> None:
    """Make one libc call that returns 0, or raise OSError with its errno."""
    if getattr(netns.libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


@contextlib.contextmanager
def anonymous() -> t.Iterator[None]:
    """Run the body inside a new namespace without a name; it is gone when nothing uses it any more,
    also when the process is killed.

    :raises ConntrackError: the caller is not root, or the kernel has no network namespaces.
    """
    with netns.restoring():
        try:
            call("unshare", netns.CLONE_NEWNET)
        except OSError as exc:
            if exc.errno == errno.EPERM:
                raise ConntrackError(
                    "Creating a network namespace needs root: run as root, with become for"
                    " instance."
                ) from exc
            if exc.errno == errno.EINVAL:
                raise ConntrackError(
                    "This kernel has no network namespaces (CONFIG_NET_NS): boot one that has."
                ) from exc
            raise
        yield
