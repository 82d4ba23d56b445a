# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's own tracker, fed one frame at a time.

A network namespace without a name holds a router between two TAP devices, ``side-a`` and
``side-b``. Writing a frame to a TAP runs the whole receive path before write(2) returns, so the
table can be read at once: no waiting, no race. What comes in at one side leaves at the other,
whatever its addresses, and nothing in the namespace answers. All of it is gone when the last
descriptor closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import types
import typing as t

from . import frames, view

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
NLM_REQUEST, NLM_ACK, NLM_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NETLINK_NETFILTER = 12
CT_DELETE, NFT_GETOBJ_RESET = (1 << 8) | 2, (10 << 8) | 21
SIDES = ("a", "b")

TAGS = (frames.ETH_VLAN.to_bytes(2, "big"), frames.ETH_QINQ.to_bytes(2, "big"))
SHORTEST = 18  # Ethernet header and one tag

#: One counter for each answer of nft's ``ct state``, read after the tracker has seen the packet.
COUNTERS = ("invalid", "new", "established", "related", "untracked")
RULES = "\n".join(
    ["table inet oracle {"]
    + [f"counter {name} {{ }}" for name in COUNTERS]
    + ["chain seen {", "type filter hook prerouting priority mangle;"]
    + [f'iifname "side-*" ct state {name} counter name {name}' for name in COUNTERS]
    + ["}", "}", ""]
)
LINKS = "\n".join(
    [
        "link set dev lo up",
        *(
            f"link set dev side-{side} address {frames.ROUTER_MAC.hex(':')} arp off mtu 65521 up"
            for side in SIDES
        ),
        "",
    ]
)
ROUTES = "\n".join(
    [f"rule add iif side-{side} lookup {table}" for table, side in ((100, "a"), (101, "b"))]
    + [
        f"route add default dev side-{side} table {table}"
        for table, side in ((100, "b"), (101, "a"))
    ]
    + [""]
)
SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/icmp_ratelimit": 0,
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv6/conf/default/addr_gen_mode": 1,
    "net/ipv6/conf/all/forwarding": 1,
}


class NfRig:
    """A namespace with nf_conntrack between two sides: a context manager, or call ``close``."""

    def __init__(self) -> None:
        """Build the router.

        :raises OSError: without root, /dev/net/tun or nf_conntrack.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._taps: dict[str, int] = {}
        self._before: dict[tuple[str, view.Tuple], view.Flow] = {}
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self._libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            self._netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            for name, value in SYSCTLS.items():
                self._write(name, value)
            for side in SIDES:
                self._taps[side] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                fcntl.ioctl(
                    self._taps[side],
                    TUNSETIFF,
                    struct.pack("16sH22x", f"side-{side}".encode(), IFF_TAP | IFF_NO_PI),
                )
            for command, text in ((["ip"], LINKS), (["ip", "-4"], ROUTES), (["ip", "-6"], ROUTES)):
                subprocess.run([*command, "-batch", "-"], input=text, text=True, check=True)
            subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
            self._write("net/netfilter/nf_conntrack_acct", 1)
            self._proc = os.open("/proc/thread-self/net/nf_conntrack", os.O_RDONLY | os.O_CLOEXEC)
            self._snmp = os.open("/proc/thread-self/net/snmp", os.O_RDONLY | os.O_CLOEXEC)
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            self._netlink.bind((0, 0))
        finally:
            self._enter(home)
            os.close(home)
        # the first frame may meet a queue that is not up yet; it is no IP packet
        self.step("a", frames.frame(frames.V4.a))

    def __enter__(self) -> NfRig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace, which ends it."""
        self._netlink.close()
        for fd in (*self._taps.values(), self._proc, self._snmp, self._netns):
            os.close(fd)

    def _enter(self, netns: int) -> None:
        if self._libc.setns(netns, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    @contextlib.contextmanager
    def _inside(self) -> t.Iterator[None]:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._enter(self._netns)
        try:
            yield
        finally:
            self._enter(home)
            os.close(home)

    def set(self, name: str, value: int) -> int:
        """Set a sysctl of the namespace by its path under /proc/sys; return what it was."""
        with self._inside():
            with open(f"/proc/sys/{name}", encoding="ascii") as file:
                was = int(file.read())
            self._write(name, value)
        return was

    def voided(self) -> int:
        """Return how many datagrams of IPv4 were thrown away so far because a fragment did not fit
        the others: not for want of one that never came.
        """
        numbers = self._ip_counters()
        return numbers["ReasmFails"] - numbers["ReasmTimeout"]

    def timed_out(self) -> int:
        """Return how many datagrams of IPv4 were thrown away because the rest did not come in
        time.
        """
        return self._ip_counters()["ReasmTimeout"]

    def _ip_counters(self) -> dict[str, int]:
        os.lseek(self._snmp, 0, os.SEEK_SET)
        names, values = (
            line.split()[1:]
            for line in os.read(self._snmp, 1 << 16).decode("ascii").splitlines()
            if line.startswith("Ip:")
        )
        return dict(zip(names, map(int, values)))

    @staticmethod
    def _write(name: str, value: int) -> None:
        with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(str(value))

    def sysctl(self, name: str, value: int | None = None) -> int:
        """Set nf_conntrack's sysctl ``name`` (without ``nf_conntrack_``) in the namespace, or only
        read it; return what it was.
        """
        with self._inside():
            with open(f"/proc/sys/net/netfilter/nf_conntrack_{name}", encoding="ascii") as file:
                was = int(file.read())
            if value is not None:
                self._write(f"net/netfilter/nf_conntrack_{name}", value)
        return was

    # ------------------------------------------------------------ the table
    def flows(self) -> dict[tuple[str, view.Tuple], view.Flow]:
        """Return the table of the namespace, by (proto, orig)."""
        parts = []
        os.lseek(self._proc, 0, os.SEEK_SET)
        while True:
            part = os.read(self._proc, 1 << 20)
            if not part:
                break
            parts.append(part)
        found = [parse(line) for line in b"".join(parts).decode("ascii").splitlines()]
        return {(flow.proto, flow.orig): flow for flow in found}

    def flush(self) -> None:
        """Empty the table, flow by flow: a flush walks the host's whole hash."""
        for flow in self.flows().values():
            self._request(CT_DELETE, NLM_REQUEST | NLM_ACK, delete_body(flow))
        self._before = {}
        self._raised()

    # ------------------------------------------------------------ frames
    def look(self) -> None:
        """Note the table as it is now: time has passed."""
        self._before = self.flows()

    def send(self, side: str, frame: bytes) -> None:
        """Send one frame in at ``side``; it has gone its whole way when this returns.

        VLAN tags are taken off, as the VLAN devices of a router would: nf_conntrack never sees
        them.
        """
        while frame[12:14] in TAGS and len(frame) >= SHORTEST:
            frame = frame[:12] + frame[16:]
        # the kernel refuses what is shorter than an Ethernet header
        with contextlib.suppress(OSError):
            os.write(self._taps[side], frame)
        self._drain()

    def step(self, side: str, frame: bytes) -> view.Seen:
        """Send one frame in at ``side`` and return what the tracker made of it."""
        self.send(side, frame)
        verdict = self._verdict()
        flows = self.flows()
        was, self._before = self._before, flows
        outcome = verdict
        if verdict in ("new", "established"):
            # It was counted when a flow came, grew, went, or began anew.
            outcome = (
                "tracked"
                if {k: f.packets for k, f in was.items()}
                != {k: f.packets for k, f in flows.items()}
                else "ignored"
            )
        return view.Seen(outcome, flows, verdict)

    def _drain(self) -> None:
        """Throw away what the router forwarded, so that its queues never fill."""
        for fd in self._taps.values():
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.read(fd, 65536)

    def _verdict(self) -> str:
        """Return which of the counters the last frame raised; ``unseen`` where none."""
        raised = self._raised()
        if len(raised) > 1:
            raise AssertionError(f"one frame raised {raised}")
        return raised[0] if raised else "unseen"

    def _raised(self) -> list[str]:
        """Return the counters that are not 0, and set them back."""
        raised = []
        for body in self._request(
            NFT_GETOBJ_RESET, NLM_REQUEST | NLM_DUMP, b"\x01\0\0\0" + attribute(1, b"oracle\0")
        ):
            top = attributes(body[4:])
            if int.from_bytes(attributes(top[4])[2], "big"):
                raised.append(top[2].rstrip(b"\0").decode("ascii"))
        return raised

    def _request(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one netlink request and return the bodies of its answers.

        :raises OSError: as the kernel says; an object that is gone already is no error.
        """
        self._netlink.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answers: list[bytes] = []
        while True:
            data, at = self._netlink.recv(1 << 20), 0
            while at < len(data):
                length, type_ = struct.unpack_from("=IH", data, at)
                if type_ == NLMSG_ERROR:
                    error = -int(struct.unpack_from("=i", data, at + 16)[0])
                    if error not in (0, 2):
                        raise OSError(error, os.strerror(error))
                    return answers
                if type_ == NLMSG_DONE:
                    return answers
                answers.append(data[at + 16 : at + length])
                at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return one netlink attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the netlink attributes in ``data`` by number, without the flag bits."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def delete_body(flow: view.Flow) -> bytes:
    """Return the ctnetlink request body that names ``flow``
    (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
    """
    nested, six = 0x8000, flow.family == "ipv6"
    src, dst = frames.address(flow.orig[0]), frames.address(flow.orig[1])
    rest, number = flow.orig[2:], PROTO_NUMBERS.get(flow.proto) or int(flow.proto)
    proto = attribute(1, bytes([number]))
    if len(rest) == 3:  # type, code, id
        first = 7 if six else 4
        proto += (
            attribute(first, struct.pack(">H", rest[2]))
            + attribute(first + 1, bytes([rest[0]]))
            + attribute(first + 2, bytes([rest[1]]))
        )
    else:
        sport, dport = rest or (0, 0)
        proto += attribute(2, struct.pack(">H", sport)) + attribute(3, struct.pack(">H", dport))
    ends = attribute(3 if six else 1, src) + attribute(4 if six else 2, dst)
    tuple_ = attribute(1 | nested, ends) + attribute(2 | nested, proto)
    return struct.pack("BBBB", socket.AF_INET6 if six else socket.AF_INET, 0, 0, 0) + attribute(
        1 | nested, tuple_
    )


PROTO_NUMBERS = {
    "icmp": 1,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "icmpv6": 58,
    "sctp": 132,
    "udplite": 136,
}


def parse(line: str) -> view.Flow:
    """Return the flow of one line of /proc/net/nf_conntrack.

    >>> parse("ipv4 2 udp 17 29 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=38 "
    ...       "[UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=0 bytes=0 "
    ...       "mark=0 zone=0 use=2").state
    'NEW'
    """
    family, dummy, name, number, timeout, *words = line.split()
    marks = {word for word in words if word.startswith("[")}
    state = next(
        (word for word in words if word.isupper() and "=" not in word and word not in marks), ""
    )
    sides: list[dict[str, str]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if key == "src":
            sides.append({})
        if equals and sides:
            sides[-1].setdefault(key, value)
    proto = "icmpv6" if number == "58" else name if name in PROTO_NUMBERS else number
    replied, assured = "[UNREPLIED]" not in marks, "[ASSURED]" in marks
    keys = ("src", "dst", "sport", "dport", "type", "code", "id", "srckey", "dstkey")
    ends = [tuple(numbered(side, key) for key in keys if key in side) for side in sides]
    if proto == "gre" and not any(ends[0][2:]):  # only version 1 has keys
        ends = [end[:2] for end in ends]
    return view.Flow(
        family=family,
        proto=proto,
        orig=ends[0],
        reply=ends[1],
        state=state or ("ESTABLISHED" if assured else "REPLIED" if replied else "NEW"),
        assured=assured,
        seen_reply=replied,
        packets=(int(sides[0]["packets"]), int(sides[1]["packets"])),
        bytes=(int(sides[0]["bytes"]), int(sides[1]["bytes"])),
        timeout=int(timeout),
    )


def numbered(side: t.Mapping[str, str], key: str) -> str | int:
    """Return a tuple's field: addresses in their shortest form, all else as a number."""
    if key in ("src", "dst"):
        return frames.text(frames.address(side[key]))
    return int(side[key], 0)
