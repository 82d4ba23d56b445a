# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hear of interfaces that come, change or go, in the host's namespace and in named ones, and of
namespaces that come and go.

A socket keeps its namespace alive, so it is closed as soon as the namespace loses its name:
inotify(7) tells that at once. That a new name has become a namespace it does not tell, for a mount
is no change of the file: look() has to be called again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import typing as t

from ..core.errors import ConntrackError
from . import netns

_RTMGRP_LINK = 1
_HEADER = struct.Struct("=IHHII")
_IFINFO_BYTES = 16
_ATTR = struct.Struct("=HH")
_IFLA_IFNAME, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 3, 52, 53
_RECEIVE = 1 << 16
#: inotify(7): files are made, deleted, moved away or there; and the flags of inotify_init1(2).
_IN_CREATE, _IN_DELETE, _IN_MOVED = 0x100, 0x200, 0xC0
_IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


def names_in(data: bytes) -> set[str]:
    """Return the names of the interfaces that netlink messages are about, alternative ones
    included.
    """
    found, offset = set(), 0
    while offset + _HEADER.size <= len(data):
        length = _HEADER.unpack_from(data, offset)[0]
        if length < _HEADER.size:
            break
        found |= _names(
            data, offset + _HEADER.size + _IFINFO_BYTES, min(offset + length, len(data))
        )
        offset += (length + 3) & ~3
    return found


def _names(data: bytes, at: int, end: int) -> set[str]:
    """Return the names among the attributes of one message."""
    found = set()
    while at + _ATTR.size <= end:
        size, kind = _ATTR.unpack_from(data, at)
        if size < _ATTR.size:
            break
        # the numbers of one enum, also in the list
        if kind & 0x3FFF in (_IFLA_IFNAME, _IFLA_ALT_IFNAME):
            found.add(
                data[at + _ATTR.size : min(at + size, end)].rstrip(b"\0").decode("utf-8", "replace")
            )
        elif kind & 0x3FFF == _IFLA_PROP_LIST:
            found |= _names(data, at + _ATTR.size, min(at + size, end))
        at += (size + 3) & ~3
    return found


class LinkEvents:
    """The namespaces that are listened to; a context manager."""

    def __init__(self) -> None:
        self._sockets: dict[str | None, tuple[int | None, socket.socket]] = {}
        self._names = -1

    def __enter__(self) -> LinkEvents:
        return self

    def __exit__(self, *dummy: object) -> None:
        for name in list(self._sockets):
            self._close(name)
        if self._names >= 0:
            os.close(self._names)

    def files(self) -> list[int]:
        """Return what to wait for, by poll(2)."""
        return [sock.fileno() for dummy, sock in self._sockets.values()] + (
            [self._names] if self._names >= 0 else []
        )

    def look(self, namespaces: t.Collection[str | None]) -> bool:
        """Listen in these namespaces, as far as they exist, and in no others.

        :param namespaces: their names, None for the one that the process runs in.
        :return: whether one is listened to that was not before.
        """
        if self._names < 0 and any(namespaces):
            self._names = _watch(netns.RUN_DIR)
        there = {name: netns.inode(name) for name in namespaces}
        for name, (inode, dummy) in list(self._sockets.items()):
            if there.get(name) != inode:
                self._close(name)
        new = [
            name for name, inode in there.items() if inode is not None and name not in self._sockets
        ]
        for name in new:
            with contextlib.suppress(ConntrackError), netns.entered(name):  # gone since
                sock = socket.socket(
                    socket.AF_NETLINK,
                    socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                    socket.NETLINK_ROUTE,
                )
                sock.bind((0, _RTMGRP_LINK))
                self._sockets[name] = (there[name], sock)
        return bool(new)

    def _close(self, name: str | None) -> None:
        self._sockets.pop(name)[1].close()

    def read(self) -> tuple[set[str], bool]:
        """Return the names of the interfaces that something happened to, and whether a namespace
        came or went, or some were missed.
        """
        found, more = set(), False
        for dummy, sock in self._sockets.values():
            while True:
                try:
                    found |= names_in(sock.recv(_RECEIVE))
                except BlockingIOError:
                    break
                except OSError as exc:
                    if exc.errno != errno.ENOBUFS:
                        raise
                    more = True
        if self._names >= 0:
            with contextlib.suppress(BlockingIOError):
                more = bool(os.read(self._names, _RECEIVE)) or more
        return found, more


def _watch(directory: str) -> int:
    """Return an inotify instance for a directory; -1 where there is none to be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(_IN_FLAGS))
    if (
        fd >= 0
        and libc.inotify_add_watch(fd, directory.encode(), _IN_CREATE | _IN_DELETE | _IN_MOVED) < 0
    ):
        os.close(fd)
        return -1
    return fd
