# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab of its own, with the chain on its router's links and the kernel's own tracker behind them.

::

    client --- ns1-lan [XDP ingress]  router  [XDP egress] ns2-lan --- server --- (MTU 1280) --- far

The router is a namespace too, so nothing touches the host's network. Both trackers see the same
packets: the chain as they come in, and nf_conntrack as the router forwards them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
import subprocess
import time
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import netfilter, netns, sysctls
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import converge as lab_converge
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.tests.oracle.rig import nf, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig, viewed

CLIENT, SERVER, FAR = "172.20.56.105", "172.30.56.105", "10.99.3.2"
NOBODY = "10.99.3.77"  # routed over the server, but not there
PORT = 8080
NARROW = 1280
SECONDS = 5  # to wait for what must come
RULES = (
    "table ip both { chain seen { type filter hook prerouting priority 0; ct state invalid counter;"
    " }; }"
)
SYSCTLS = {
    "router": {"net/netfilter/nf_conntrack_acct": "1"},
    "server": {"net/ipv4/icmp_ratelimit": "0", "net/ipv4/ip_forward": "1"},
}
#: Both clocks are read one after the other, on a machine that may be busy.
TIMEOUT_SLACK = 2


def read(end: socket.socket, size: int) -> None:
    """Read so many bytes. (MSG_WAITALL does not wait on a socket with a timeout.)"""
    while size:
        got = len(end.recv(min(size, 1 << 20)))
        assert got, f"the connection ended, {size} bytes too early"
        size -= got


@dataclasses.dataclass
class Tcp:
    """Both ends of a connection."""

    client: socket.socket
    server: socket.socket

    def exchange(self, request: int = 300, response: int = 1200) -> None:
        """Send so many bytes there and so many back."""
        for sender, receiver, size in (
            (self.client, self.server, request),
            (self.server, self.client, response),
        ):
            sender.sendall(bytes(size))
            read(receiver, size)

    def close(self, *order: socket.socket) -> None:
        """Close one direction after the other, each once the other end has seen the one before."""
        for one in order or (self.client, self.server):
            other = self.server if one is self.client else self.client
            one.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""


class Wire:
    """The lab. Use as a context manager."""

    def __init__(self, mode: str = "native", **compiled: t.Any) -> None:
        """Build it, load the chain and attach it.

        :param mode: in which mode it is attached.
        :param compiled: what is compiled in, see ChainRig.
        """
        self.mode = mode
        self.tag = f"e{random.randrange(1 << 20):05x}"
        self._sockets: list[socket.socket] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lab_converge.converge, topology.absent(self.tag))
            lab_converge.converge(topology.parse(self._description()))
            for where, values in SYSCTLS.items():
                with netns.entered(self.ns(where)):
                    if where == "router":
                        subprocess.run(["nft", RULES], check=True)
                        # else no such chain may be attached where nf_conntrack tracks
                        if compiled.get("forward", "off") != "off":
                            sysctls.write_sysctl(netfilter.LIBERAL, "1")
                    for name, value in values.items():
                        sysctls.write_sysctl(name, value)
            self.chain = undo.enter_context(ChainRig(**compiled))
            undo.callback(self.attach, "absent")
            self.attach()
            self._undo = undo.pop_all()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._undo.close()

    def ns(self, where: str) -> str:
        """Return the name of ``client``'s, ``router``'s, ``server``'s or ``far``'s namespace."""
        return f"{self.tag}{where}"

    def _description(self) -> dict[str, t.Any]:
        def link(*ends: tuple[str, str, str], mtu: int = 1500) -> dict[str, t.Any]:
            return {
                "ends": [
                    {"netns": self.ns(where), "name": name, "addresses": [address], "mtu": mtu}
                    for where, name, address in ends
                ]
            }

        default = {"client": "172.20.56.1", "server": "172.30.56.1", "far": "10.99.3.1"}
        return {
            "name": self.tag,
            "router": self.ns("router"),
            "routes": [{"dst": "10.99.3.0/24", "via": SERVER}],
            "namespaces": [
                {"name": self.ns(where), "routes": [{"dst": "default", "via": via}]}
                for where, via in default.items()
            ],
            "links": [
                link(
                    ("client", "ns1-wan", f"{CLIENT}/24"), ("router", "ns1-lan", "172.20.56.1/24")
                ),
                link(
                    ("server", "ns2-wan", f"{SERVER}/24"), ("router", "ns2-lan", "172.30.56.1/24")
                ),
                link(
                    ("server", "ns3-lan", "10.99.3.1/24"),
                    ("far", "ns3-wan", f"{FAR}/24"),
                    mtu=NARROW,
                ),
            ],
        }

    def attach(self, state: str = "present", far_ends: bool = False) -> dict[str, t.Any]:
        """Attach the chain to the router's links, or detach it.

        :param far_ends: whether the other ends of the links get the program that lets them take
            redirected frames.
        :return: the result of ``xdp_attach``.
        """
        hooks = [("router", "ns1-lan", "ingress"), ("router", "ns2-lan", "egress")]
        if far_ends:
            hooks += [("client", "ns1-wan", "pass"), ("server", "ns2-wan", "pass")]
        interfaces = [
            {"name": name, "netns": self.ns(where), "program": hook} for where, name, hook in hooks
        ]
        return attach.converge(
            state, interfaces, self.mode, False, self.chain.paths.pin_root, check_mode=False
        )[0]

    # ------------------------------------------------------------ traffic
    def run(self, where: str, *argv: str) -> str:
        """Run a command in a namespace; return what it printed, whatever its exit status."""
        # the child is born in the thread's namespace, and sees /sys/fs/bpf
        with netns.entered(self.ns(where)):
            return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def open(
        self, where: str, kind: int, proto: int = 0, family: int = socket.AF_INET
    ) -> socket.socket:
        """Return a socket in a namespace; the end of the test closes it."""
        with netns.entered(self.ns(where)):
            made = socket.socket(family, kind, proto)
        made.settimeout(SECONDS)
        self._sockets.append(made)
        return made

    def udp(self, where: str, port: int = 0) -> socket.socket:
        """Return a UDP socket bound to the port."""
        made = self.open(where, socket.SOCK_DGRAM)
        made.bind(("", port))
        return made

    def raw(self, where: str) -> socket.socket:
        """Return a socket that sends whole IPv4 packets."""
        return self.open(where, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def capture(self, where: str, interface: str) -> socket.socket:
        """Return a socket that sees, and can send, the interface's frames."""
        made = self.open(where, socket.SOCK_RAW, socket.htons(0x0003), socket.AF_PACKET)
        made.bind((interface, 0x0003))
        return made

    def connect(self, sport: int = 0) -> Tcp:
        """Return a connection from the client to PORT of the server."""
        listener, client = (
            self.open("server", socket.SOCK_STREAM),
            self.open("client", socket.SOCK_STREAM),
        )
        for one in (listener, client):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, PORT))
        listener.listen(1)
        client.bind((CLIENT, sport))
        client.connect((SERVER, PORT))
        server, dummy = listener.accept()
        self._sockets.append(server)
        server.settimeout(SECONDS)
        listener.close()
        return Tcp(client, server)

    # ------------------------------------------------------------ what was tracked
    def reset(self) -> None:
        """Close the sockets and empty both trackers, with the kernel's default timeouts."""
        while self._sockets:
            self._sockets.pop().close()
        self.chain.settings()
        self.flush()

    def flush(self) -> None:
        """Empty both trackers."""
        self.chain.flush()
        self.run("router", "conntrack", "-F")

    def kernel(self) -> list[view.Flow]:
        """Return nf_conntrack's flows."""
        with (
            netns.entered(self.ns("router")),
            open("/proc/thread-self/net/nf_conntrack", encoding="ascii") as lines,
        ):
            return [nf.parse(line) for line in lines]

    def records(self, proto: str) -> list[flow.Record]:
        """Return the chain's flows of a protocol."""
        return [record for record in self.chain.records() if record["proto"] == proto]

    def counters(self) -> dict[str, int]:
        """Return the chain's counters by name."""
        return dict(zip(chain_counters.COUNTERS, self.chain.counters()))

    def only(self, proto: str, **fields: object) -> flow.Record:
        """Wait until both trackers hold the same one flow of the protocol, with these fields;
        return its record.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            mine = self.records(proto)
            theirs = [one for one in self.kernel() if one.proto == proto]
            good = (
                len(mine) == 1
                and fields.items()
                <= {key: value for key, value in mine[0].items() if key in fields}.items()
            )
            if (good and same(map(viewed, mine), theirs)) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        assert (
            {key: mine[0][key] for key in fields} == fields if len(mine) == 1 else len(mine) == 1
        ), mine
        assert same(map(viewed, mine), theirs), (
            f"{viewed(mine[0])}\nnf_conntrack: {', '.join(map(str, theirs))}"
        )
        return mine[0]


def same(mine: t.Iterable[view.Flow], theirs: t.Iterable[view.Flow]) -> bool:
    """Tell whether both trackers say the same, but for a moment between their clocks."""
    pairs = list(zip(list(mine), list(theirs), strict=True))
    return all(
        dataclasses.replace(one, timeout=other.timeout) == other
        and abs(one.timeout - other.timeout) <= TIMEOUT_SLACK
        for one, other in pairs
    )
