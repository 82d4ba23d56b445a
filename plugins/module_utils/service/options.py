# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the service is told: by the command ``ct run``, by its unit, and by the module that writes
the unit.

Apart from what it then does, for a module that only writes the unit need not import that: most of
what a module takes on a target is its imports.
"""

from __future__ import annotations

import dataclasses
import grp
import ipaddress
import os
import typing as t

from ..core import safe_path
from ..core.errors import bad_value
from ..kernel import bpffs

UNIT = "ct.service"
#: Brings the chain back when UNIT starts; the variable in whose environment UNIT finds its name.
RESTORE_UNIT, RESTORE_VARIABLE = "ct-restore.service", "CT_RESTORE_UNIT"
SOCKET = os.path.join(bpffs.RUN_DIR, "ct.sock")
#: sizeof(sun_path) in include/uapi/linux/un.h, less the byte that ends it.
_SOCKET_PATH_BYTES = 107
ON_STOP = ("keep", "remove")
SWEEP_SECONDS = (1, 86400)


class Address(t.NamedTuple):
    """Where to listen.

    :ivar socket: path of a unix socket; "" for TCP.
    :ivar group: name of the group that may read from the socket besides root; "" for root alone.
    :ivar host: loopback address, for TCP.
    :ivar port: 0 for any that is free.
    """

    socket: str = SOCKET
    group: str = ""
    host: str = ""
    port: int = 0


def parse_address(
    path: str | None = None, listen: str | None = None, group: str | None = None
) -> Address:
    """Return where to listen: on a unix socket where nothing else is said.

    :param path: of the unix socket.
    :param listen: ``ADDRESS:PORT`` in its place.
    :param group: whose members may read from the socket.
    :raises ConntrackError: naming the option and the mend.
    """
    if listen is None:
        where = SOCKET if path is None else path
        mend = f"give the absolute path of a socket, of {_SOCKET_PATH_BYTES} bytes at most"
        safe_path.check_text("socket", where, mend)
        if len(os.fsencode(where)) > _SOCKET_PATH_BYTES:
            raise bad_value("socket", where, mend)
        if group:
            group_id(group)
        return Address(where, group or "")
    if path is not None:
        raise bad_value("socket", path, "it and listen exclude each other; give one of them")
    if group:
        raise bad_value(
            "group",
            group,
            "only a socket has one: every user of this host can connect to a TCP port; leave one of"
            " the two out",
        )
    host, dummy, port = listen.rpartition(":")
    host = (
        "127.0.0.1"
        if host == "localhost"
        else host[1:-1]
        if host.startswith("[") and host.endswith("]")
        else host
    )
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or "%" in host:  # a scope, of which anything may be part
        raise bad_value(
            "listen",
            listen,
            "give a loopback address and a port, as 127.0.0.1:9477 or [::1]:9477; for other hosts,"
            " put a proxy in front of it",
        )
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise bad_value("listen", listen, "give a port from 0 to 65535 behind the address")
    return Address("", "", host, int(port))


def group_id(name: str) -> int:
    """Return a group's number.

    :raises ConntrackError: there is none of that name.
    """
    if not all(sign.isalnum() or sign in "_.-@$" for sign in name):
        raise bad_value("group", name, "give the name of a group, of letters, digits and _.-@$")
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise bad_value(
            "group", name, f"there is no such group; make it: groupadd --system {name}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Options:
    """What the service is to do.

    :ivar paths: where the chain is pinned and written down.
    :ivar sweep_interval: seconds from the end of one sweep to the next.
    :ivar on_stop: one of ON_STOP: what becomes of the chain when the service is told to stop.
    :ivar address: where it answers over HTTP; None where it does not.
    """

    paths: bpffs.Paths
    sweep_interval: int = 30
    on_stop: str = "keep"
    address: Address | None = Address()


def check(options: Options) -> None:
    """:raises ConntrackError: naming the option that is out of range, or a path that is none."""
    bpffs.check_text(options.paths)
    if options.address is not None and options.address.socket:
        safe_path.check_text("socket", options.address.socket, "give the absolute path of a socket")
    low, high = SWEEP_SECONDS
    if not low <= options.sweep_interval <= high:
        raise bad_value("sweep_interval", options.sweep_interval, f"give {low} to {high} seconds")
    if options.on_stop not in ON_STOP:
        raise bad_value("on_stop", options.on_stop, f"give one of {', '.join(ON_STOP)}")
