# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lab speaks to a namespace: an rtnetlink socket in it, and a descriptor of it."""

from __future__ import annotations

import errno
import os
import typing as t

from ..kernel import netlink, netns, rtnetlink


class Channel(netlink.Socket):
    """An rtnetlink socket in the calling thread's namespace, and a descriptor of that namespace."""

    def __init__(self) -> None:
        self.netns_fd = netns.current_fd()
        super().__init__(strict=True)

    def close(self) -> None:
        """Let go of the namespace."""
        super().close()
        os.close(self.netns_fd)

    def request(self, message: t.Any, kind: int, flags: int = 0) -> None:
        """Send one of pyroute2's messages and wait for the kernel's answer.

        :raises NetlinkError: the kernel refused it.
        """
        message.encode()
        self.change(kind, bytes(message.data[netlink.HEADER.size :]), flags)

    def get_link(self, index: int = 0, name: str = "") -> netlink.Message | None:
        """Return one link's message, or None when there is no such link."""
        wanted = netlink.attribute(rtnetlink.IFLA_IFNAME, name.encode() + b"\0") if name else b""
        request = rtnetlink.IFINFO.pack(0, 0, index, 0, 0) + rtnetlink.WITHOUT_STATS + wanted
        try:
            return self.ask(rtnetlink.GETLINK, request)
        except netlink.NetlinkError as exc:
            if exc.errno != errno.ENODEV:
                raise
            return None
