# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a connection, and whether anybody still is.

A unix socket tells both: SO_PEERCRED (unix(7)), and a peer that has only said that it sends no more
is told from one that is gone. TCP tells neither. But the other end of a connection on a loopback
address is a socket of this host, and the kernel knows whose it is: sock_diag(7). A socket that no
process has any more has inode 0 there.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import typing as t

_CREDENTIALS = struct.Struct("=iII")
#: struct nlmsghdr; struct inet_diag_req_v2 and struct inet_diag_msg in
#: include/uapi/linux/inet_diag.h: up to the id, the id's numbers, and what follows it.
_HEADER = struct.Struct("=IHHII")
_REQUEST, _PORTS, _ADDRESS, _REST = (
    struct.Struct("=BBBBI"),
    struct.Struct("!HH"),
    struct.Struct("!16s16s"),
    struct.Struct("=III"),
)
_ANSWER, _ANSWER_TAIL = struct.Struct("=BBBB"), struct.Struct("=IIIII")
_ID_BYTES = _PORTS.size + _ADDRESS.size + _REST.size
_BY_FAMILY, _REQUEST_FLAG, _NO_COOKIE = 20, 1, 0xFFFFFFFF
_SECONDS = 1.0
Name = tuple[t.Any, ...]


class Owner(t.NamedTuple):
    """The process behind a socket: its user, and whether there is one."""

    uid: int
    there: bool


def request(family: int, mine: Name, others: Name) -> bytes:
    """Return the message that asks for the TCP socket with these names."""
    source, destination = (
        socket.inet_pton(family, name[0]).ljust(16, b"\0") for name in (mine, others)
    )
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _NO_COOKIE)
    body += (
        _PORTS.pack(mine[1], others[1])
        + _ADDRESS.pack(source, destination)
        + _REST.pack(0, _NO_COOKIE, _NO_COOKIE)
    )
    return _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST_FLAG, 1, 0) + body


def parse(data: bytes) -> Owner | None:
    """Return what an answer says; None where there is no such socket."""
    if (
        len(data) < _HEADER.size + _ANSWER.size + _ID_BYTES + _ANSWER_TAIL.size
        or _HEADER.unpack_from(data)[1] != _BY_FAMILY
    ):
        return None
    dummy, dummy, dummy, uid, inode = _ANSWER_TAIL.unpack_from(
        data, _HEADER.size + _ANSWER.size + _ID_BYTES
    )
    return Owner(uid, inode != 0)


def owner(connection: socket.socket) -> Owner | None:
    """Return who has the other end of a connection over TCP on this host; None where the kernel
    does not say.
    """
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4) as asked,
    ):  # NETLINK_SOCK_DIAG
        asked.settimeout(_SECONDS)
        asked.sendto(
            request(connection.family, connection.getpeername(), connection.getsockname()), (0, 0)
        )
        return parse(asked.recv(4096))
    return None


def uid(connection: socket.socket) -> int | None:
    """Return the user at the other end; None where it is not known."""
    if connection.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):
            return int(
                _CREDENTIALS.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )[1]
            )
        return None
    found = owner(connection)
    return found.uid if found is not None else None


class Peer(t.NamedTuple):
    """Whom limits are for.

    :ivar name: the same for all connections of one user, or, where that is not known, of one
        address.
    :ivar trusted: root, and whoever runs the server: they could end it.
    """

    name: str
    trusted: bool


def of(connection: socket.socket, address: t.Any) -> Peer:
    """Return whom a connection's limits are for.

    :param address: of the other end, as accept() gave it.
    """
    number = uid(connection)
    if number is None:
        return Peer(f"address {address[0] if isinstance(address, tuple) else ''}", False)
    return Peer(f"uid {number}", number in (0, os.geteuid()))


def gone(connection: socket.socket) -> bool:
    """Whether nobody is there any more who could take an answer. One who only sends no more is
    still there.
    """
    poll = select.poll()
    try:
        poll.register(connection, select.POLLRDHUP)
        events = sum(found for dummy, found in poll.poll(0))
    except (OSError, ValueError):  # it is closed
        return True
    if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
        return True
    if not events or connection.family == socket.AF_UNIX:
        return False
    found = owner(connection)
    return found is None or not found.there
