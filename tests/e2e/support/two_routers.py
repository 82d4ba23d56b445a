# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two routers, each with a chain of its own, between a client and a server: one behind the other,
or one in the place of the other.

::

    client --- ca [ingress]  a  [egress] as --- server
           --- cb [ingress]  b  [egress] bs ---
                             a --- b (ab [egress], ba [ingress])

Which way packets go is a matter of routes: via("a"), via("b"), or along("a", "b").
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import types
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netns, sysctls
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import SECONDS, Tcp
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig

CLIENT, SERVER, PORT = "10.77.0.1", "10.77.9.1", 8080
ROUTERS = ("a", "b")
#: The networks of the links of each router.
NETWORKS = {
    "a": ["10.77.1.1/24", "10.77.3.1/24", "10.77.5.1/24", "10.77.0.254/24"],
    "b": ["10.77.2.1/24", "10.77.4.1/24", "10.77.5.2/24", "10.77.9.254/24"],
}
_HOOKS = {
    "a": [("a-client", "ingress"), ("a-server", "egress"), ("a-b", "egress")],
    "b": [("b-client", "ingress"), ("b-server", "egress"), ("b-a", "ingress")],
}


class TwoRouters:
    """The lab; a context manager."""

    def __init__(self) -> None:
        """Build it, and load both chains."""
        self.tag = f"f{random.randrange(1 << 20):05x}"
        self._sockets: list[socket.socket] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lab_converge.converge, topology.absent(self.tag))
            lab_converge.converge(topology.parse(self._description()))
            for where, address in (("client", CLIENT), ("server", SERVER)):
                self.ip(where, "address", "add", f"{address}/32", "dev", "lo")
            for where in ROUTERS:
                with netns.entered(self.ns(where)):
                    sysctls.write_sysctl("net/ipv4/ip_forward", "1")
            self.chains = {name: undo.enter_context(ChainRig(table_size=4096)) for name in ROUTERS}
            for name in ROUTERS:
                undo.callback(self._attach, name, "absent")
                self._attach(name, "present")
            self._undo = undo.pop_all()

    def __enter__(self) -> TwoRouters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        while self._sockets:
            self._sockets.pop().close()
        self._undo.close()

    def ns(self, where: str) -> str:
        """Return the name of a namespace: of the client, of the server, of a router."""
        return f"{self.tag}{where}"

    def _description(self) -> dict[str, t.Any]:
        def link(one: str, two: str, number: int) -> dict[str, t.Any]:
            ends = ((one, two, 1), (two, one, 2))
            return {
                "ends": [
                    {
                        "netns": self.ns(mine),
                        "name": f"{mine}-{other}",
                        "addresses": [f"10.77.{number}.{host}/24"],
                    }
                    for mine, other, host in ends
                ]
            }

        pairs = (("a", "client"), ("b", "client"), ("a", "server"), ("b", "server"), ("a", "b"))
        return {
            "name": self.tag,
            "namespaces": [{"name": self.ns(where)} for where in ("client", "server", *ROUTERS)],
            "links": [link(one, two, number) for number, (one, two) in enumerate(pairs, 1)],
        }

    def _attach(self, name: str, state: str) -> None:
        interfaces = [
            {"name": interface, "netns": self.ns(name), "program": hook}
            for interface, hook in _HOOKS[name]
        ]
        attach.converge(
            state, interfaces, "native", False, self.chains[name].paths.pin_root, check_mode=False
        )

    def ip(self, where: str, *words: str) -> None:
        """Run ip(8) in a namespace."""
        subprocess.run(["ip", "-n", self.ns(where), *words], check=True)

    # ------------------------------------------------------------ the way
    def along(self, *routers: str) -> None:
        """Let packets from client to server go through these routers, one after the other, and back
        the same way.
        """
        way = ["client", *routers, "server"]
        for at, where in enumerate(way):
            for address, step in ((SERVER, 1), (CLIENT, -1)):
                if 0 <= at + step < len(way):
                    other = way[at + step]
                    via = f"10.77.{self._number(where, other)}.{1 if other < where else 2}"
                    src = {"client": ["src", CLIENT], "server": ["src", SERVER]}.get(where, [])
                    self.ip(where, "route", "replace", f"{address}/32", "via", via, *src)

    @staticmethod
    def _number(one: str, two: str) -> int:
        pairs = (("a", "client"), ("b", "client"), ("a", "server"), ("b", "server"), ("a", "b"))
        return pairs.index(t.cast("tuple[str, str]", tuple(sorted((one, two))))) + 1

    # ------------------------------------------------------------ traffic
    def open(self, where: str) -> socket.socket:
        """Return a TCP socket in a namespace."""
        with netns.entered(self.ns(where)):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(SECONDS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets.append(made)
        return made

    def connect(self, sport: int) -> Tcp:
        """Return a connection from the client to PORT of the server."""
        listener, client = self.open("server"), self.open("client")
        listener.bind((SERVER, PORT))
        listener.listen(1)
        client.bind((CLIENT, sport))
        client.connect((SERVER, PORT))
        server, dummy = listener.accept()
        server.settimeout(SECONDS)
        self._sockets.append(server)
        listener.close()
        return Tcp(client, server)

    # ------------------------------------------------------------ what was tracked
    def pin_root(self, name: str) -> str:
        """Return where a router's chain is pinned."""
        return self.chains[name].paths.pin_root

    def records(self, name: str, sport: int) -> list[flow.Record]:
        """Return a router's flows of the connection from this port."""
        return [
            one
            for one in self.chains[name].records()
            if sport in (one["orig"].get("sport"), one["reply"].get("sport"))
        ]

    def counters(self, name: str) -> dict[str, int]:
        """Return a chain's counters by name."""
        return self.chains[name].tables.counters()
