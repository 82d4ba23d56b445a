# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of a fleet look at on its hosts, and the traffic that they send between them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import typing as t

from ansible_collections.ebpf.conntrack.tests.fleet.fleet import Fleet

INTERFACES = [{"name": "eth1", "program": "ingress"}, {"name": "eth2", "program": "egress"}]
SIZES = {
    f"xdp_ct_{name}": 4096
    for name in ("table_size", "table_size6", "half_open_size", "half_open_size6")
}
PORT, FLOWS = 5300, 64
#: A cut-off host is told within: three keepalives of three seconds, and a connection that is tried
#: again for ten, and the time of a task.
CUT_SECONDS = 30
#: Writes of systemd, sshd and Ansible itself below a host's root, of which the collection's are
#: none.
NOT_OURS = (
    "var/log/",
    "var/lib/systemd/",
    "root/.ansible",
    "home/ops/",
    "var/lib/private",
    "etc/.pwd.lock",
    "etc/.updated",
    "var/.updated",
    "var/tmp/",
    "var/cache/",
    "etc/machine-id",
)
ECHO = """
import collections, socket, sys
server, seen = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), collections.Counter()
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
server.bind(("0.0.0.0", int(sys.argv[1])))
while True:
    data, peer = server.recvfrom(16)
    if data == b"end":
        break
    seen[peer[1]] += 1
    server.sendto(data, peer)
print(__import__("json").dumps(seen))
"""
#: Sends one datagram on each flow in turn, a thousand a second, until it is told to end.
SEND = """
import select, socket, sys, time
sockets = []
for number in range(int(sys.argv[3])):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    one.connect((sys.argv[1], int(sys.argv[2])))
    sockets.append(one)
sent = 0
while not select.select([sys.stdin], [], [], 0.008)[0]:
    for dummy in range(8):
        sockets[sent % len(sockets)].send(b"x")
        sent += 1
time.sleep(0.5)
back = 0
for one in sockets:
    one.setblocking(False)
    while True:
        try:
            back += len(one.recv(16))
        except BlockingIOError:
            break
# a flow of its own
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"end", (sys.argv[1], int(sys.argv[2])))
print(sent, back)
"""


def status(fleet: Fleet, name: str) -> dict[str, t.Any]:
    return t.cast(
        "dict[str, t.Any]",
        json.loads(fleet.ssh(name, "ct", "status", "-o", "json", check=False) or "{}"),
    )


def well(fleet: Fleet, name: str) -> bool:
    """Whether both interfaces of a host run the chain and nothing is wrong with it."""
    found = status(fleet, name)
    return bool(found.get("healthy")) and {
        one["interface"]: one["program"] for one in found["interfaces"]
    } == {"eth1": "ingress", "eth2": "egress"}


def not_well(fleet: Fleet) -> list[str]:
    return [name for name in fleet.hosts() if not well(fleet, name)]


def within(seconds: float, what: t.Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def nobody(fleet: Fleet) -> dict[str, int]:
    """What a run tells that changed nothing on any host."""
    return dict.fromkeys(fleet.hosts(), 0)


def left_on(fleet: Fleet, name: str) -> dict[str, str]:
    """Return what a host has that the collection could leave: files it wrote, pins, units, links
    with programs, what is in /run.
    """
    shown = {what: fleet.ssh(name, "sh", "-c", command) for what, command in LOOK.items()}
    files = [path for path in fleet.host(name).written() if not path.startswith(NOT_OURS)]
    return {**shown, "files": "\n".join(files)}


LOOK = {
    "pins": "find /sys/fs/bpf",
    "run": (
        "find /run -not -path '/run/systemd/*' -not -path '/run/host/*' -not -path '/run/user*'"
        " -not -path '/run/log/*' -not -path '/run/utmp' | sort"
    ),
    "units": (
        "systemctl list-units --type=service,socket,timer,path --state=active,failed --plain"
        " --no-legend | awk '{print $1}' | grep -v -e '^user'"
    ),
    "unit files": "systemctl list-unit-files --no-legend | grep -v -e '^session' -e '^run-'",
    "links": (
        "ip -j -d link | python3 -c \"import json, sys; print([(x['ifname'], x.get('xdp')) for x in"
        ' json.load(sys.stdin)])"'
    ),
    "processes": (
        "ps -eo comm= | sort -u | grep -v -e '^ps$' -e '^sort$' -e '^grep$' -e '^sh$' -e '^sshd' -e"
        " '^find$'"
    ),
}


class Traffic:
    """Datagrams from one host to another and back for as long as the context lasts.

    :ivar sent: how many were sent there.
    :ivar lost: how many of these did not come back.
    :ivar flows: of how many flows.
    :ivar unseen: how many the server got that its chain did not count in their flow.
    :ivar kept: how many flows the chain of the server has with all their packets.
    """

    def __init__(self, fleet: Fleet, client: str, server: str) -> None:
        self._fleet, self._client, self._server = fleet, client, server
        self.sent = self.lost = self.flows = self.unseen = self.kept = 0

    def __enter__(self) -> Traffic:
        fleet, address = self._fleet, self._fleet.address(self._server, 1)
        fleet.ssh(self._server, "ct", "flush", "--all", "--yes")
        pipe: dict[str, t.Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._receiving = subprocess.Popen(
            fleet.ssh_argv(self._server, "python3", "-c", ECHO, str(PORT)), **pipe
        )
        assert within(20, lambda: f":{PORT} " in fleet.ssh(self._server, "ss", "-Hlun"))
        self._sending = subprocess.Popen(
            fleet.ssh_argv(self._client, "python3", "-c", SEND, address, str(PORT), str(FLOWS)),
            **pipe,
        )
        assert within(20, lambda: self._tracked() != {})
        return self

    def _tracked(self) -> dict[int, int]:
        """Return the packets that the server's chain counted, by the client's port."""
        listed = json.loads(
            self._fleet.ssh(
                self._server, "ct", "list", "--proto", "udp", "--dport", str(PORT), "-o", "json"
            )
        )
        return {flow["orig"]["sport"]: flow["orig"]["packets"] for flow in listed}

    def __exit__(self, kind: object, *dummy: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            told = self._sending.communicate("end\n", timeout=60)[0]
        if kind is not None:
            self._receiving.kill()
            self._receiving.wait()
            return
        self.sent, back = map(int, told.split())
        self.lost = self.sent - back
        got = {
            int(port): number
            for port, number in json.loads(self._receiving.communicate(timeout=60)[0]).items()
        }
        tracked = self._tracked()
        self.flows = len(got)
        self.unseen = sum(number - tracked.get(port, 0) for port, number in got.items())
        self.kept = sum(tracked.get(port) == number for port, number in got.items())
