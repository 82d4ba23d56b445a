# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Giving network namespaces their names, as C(ip netns) does, and taking them away.

A name can be claimed before its namespace is mounted: the file that carries the mount holds the
owner's mark from the moment it exists, so what a killed run leaves behind can be told from
everybody else's files.
"""

from __future__ import annotations

import contextlib
import errno
import os

from ..core import safe_path
from ..core.errors import ConntrackError
from ..kernel import netns, private_netns

_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2
_CLAIM_SIZE = 512  # bytes; longer than any mark


def prepare_run_dir() -> None:
    """Make /run/netns a shared mount, as C(ip netns add) does, so that every mount namespace sees
    what is mounted there.
    """
    safe_path.make_dirs(netns.RUN_DIR, 0o755)
    where = netns.RUN_DIR.encode()
    try:
        private_netns.call("mount", b"none", where, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        private_netns.call("mount", where, where, b"none", _MS_BIND | _MS_REC, None)
        private_netns.call("mount", b"none", where, b"none", _MS_SHARED | _MS_REC, None)


def claim_of(name: str) -> str:
    """Return the text in a bare file of /run/netns: the mark of a run that was killed, or somebody
    else's nothing.
    """
    try:
        with open(netns.path(name), "rb") as file:
            return file.read(_CLAIM_SIZE).decode("utf-8", "replace").strip()
    except OSError:
        return ""


class Claims:
    """Gives namespaces their names, each name claimed with the mark before the namespace is mounted
    on it.

    One unnamed file holds the mark; every name is a hard link to it, so no name ever exists without
    the mark. (A file each would do too, but the kernel takes the longer for one the more names
    there are.) /run/netns is made a shared mount first.

    :param mark: the owner's, one line.
    """

    def __init__(self, mark: str) -> None:
        prepare_run_dir()
        self._mark = mark
        self._directory = os.open(netns.RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = os.open(netns.RUN_DIR, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o444)
        os.write(self._file, mark.encode() + b"\n")

    def close(self) -> None:
        """Let go of the file; names that are links to it stay."""
        os.close(self._file)
        os.close(self._directory)

    def mount(self, handle: int, name: str) -> None:
        """Give the namespace of an open descriptor a name. A bare file with the same mark is what
        an earlier run left: it is used.

        :raises ConntrackError: somebody else holds the name.
        """
        try:
            os.link(
                f"/proc/self/fd/{self._file}", name, dst_dir_fd=self._directory
            )  # with a dir_fd Python uses linkat(2), which follows the first
        except FileExistsError:
            if netns.exists(name) or claim_of(name) != self._mark:
                raise ConntrackError(
                    f"{netns.path(name)} exists and is not ours: remove it, or choose another name."
                ) from None
        try:
            private_netns.call(
                "mount",
                f"/proc/self/fd/{handle}".encode(),
                netns.path(name).encode(),
                b"none",
                _MS_BIND,
                None,
            )
        except OSError:
            os.unlink(netns.path(name))
            raise


def remove(name: str) -> None:
    """Take the name away; the namespace and the links in it vanish as soon as no process uses it. A
    missing name is no error.
    """
    target = netns.path(name)
    try:
        private_netns.call("umount2", target.encode(), _MNT_DETACH)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOENT):  # EINVAL: a bare file
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
