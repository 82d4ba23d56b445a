# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the lines of ``expect``: makes their traffic with sockets in the namespaces, and looks
what the tracker has of it.

A made conversation has a server in the one namespace and a client in the other, both sockets of
this process, and is kept as it is until the flow was seen in its state.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import random
import socket
import struct
import time
import typing as t

from ..core.errors import ConntrackError
from ..flows import codec as flow
from ..flows import filter as flow_filter
from ..flows import read as flow_read
from ..flows import table as flow_table
from ..kernel import bpffs, netns
from . import observe as lab_observe
from .expectation import ECHO, PING, UNTRACKED, Line, resolved, untracked

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25  # seconds between two looks at the table
_ROUND = 0.5  # seconds to wait for an answer that may be lost
_DATA = b"expected"
_TOKEN_BYTES = 8
_MOST = 10_000  # flows between two addresses to look through
_ECHO_TYPES = {"icmp": (8, 0), "icmpv6": (128, 129)}  # request, answer
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a line.

    :ivar passed: None when it was not checked.
    :ivar seen: what was seen, for people.
    """

    line: Line
    passed: bool | None
    seen: str

    def as_dict(self) -> dict[str, t.Any]:
        """Return the form in which the module returns it."""
        return {
            "line": self.line.title,
            "passed": self.passed,
            "seen": self.seen,
            "expect": self.line.as_dict(),
        }


#: The tables of the chains in which a flow may be.
Tables = t.Sequence[flow_table.FlowTables]


def check(lines: t.Sequence[Line], *pin_roots: str) -> list[Outcome]:
    """Check each line after the one before; what stayed untracked is told last.

    :param pin_roots: of the chains. A flow has to be in the tables of one of them, and what stays
        untracked is added up.
    :raises ConntrackError: a line that can not be checked: no such namespace or address, no chain.
        No traffic was made then.
    """
    known = (
        {name: addresses(name) for name in netns.names()[0]}
        if any(line.kind != UNTRACKED for line in lines)
        else {}
    )
    lines = [resolved(line, known, "on this host") for line in lines]
    with contextlib.ExitStack() as stack:
        tables = []
        for pin_root in pin_roots if any(line.kind != PING for line in lines) else ():
            bpffs.check(pin_root)
            tables.append(stack.enter_context(flow_table.FlowTables(pin_root)))
        before = _counters(tables)
        outcomes = [_check(line, tables, known) for line in lines]
        after = _counters(tables)
    return [
        _untracked(one.line, untracked(before, after)) if one.line.kind == UNTRACKED else one
        for one in outcomes
    ]


def foretell(lines: t.Iterable[Line]) -> list[Outcome]:
    """Return what a check run says: nothing was looked at."""
    return [Outcome(line, None, "not checked in check mode") for line in lines]


def addresses(name: str) -> list[str]:
    """Return the addresses of a namespace that others can speak to."""
    with contextlib.suppress(ConntrackError):  # it went away since it was listed
        return lab_observe.unicast_addresses(name)
    return []


def _counters(tables: Tables) -> dict[str, int]:
    """Return the counters of all chains, added up."""
    total: collections.Counter[str] = collections.Counter()
    for one in tables:
        total.update(one.counters())
    return dict(total)


def _untracked(line: Line, found: t.Mapping[str, int]) -> Outcome:
    total = sum(found.values())
    reasons = ", ".join(f"{name} {number}" for name, number in found.items())
    return Outcome(
        line, total <= line.most, f"{total} untracked{f': {reasons}' if reasons else ''}"
    )


def _check(line: Line, tables: Tables, known: t.Mapping[str, t.Sequence[str]]) -> Outcome:
    if line.kind == PING:
        return _ping(line)
    if line.kind == UNTRACKED:
        return Outcome(line, None, "")
    return _flow(line, tables, _words(line, known))


# ---------------------------------------------------------------- looking
def _words(line: Line, known: t.Mapping[str, t.Sequence[str]]) -> dict[str, t.Any]:
    """Return the filters of any flow that the line can mean."""
    words: dict[str, t.Any] = {
        "proto": line.proto,
        "dport": line.port,
        "src": [one for one in known[line.source] if (":" in one) == (":" in line.address)],
    }
    return {
        **words,
        "dst": (
            line.address
            if line.make
            else [one for one in known[line.target] if (":" in one) == (":" in line.address)]
        ),
    }


def _flow(line: Line, tables: Tables, words: dict[str, t.Any]) -> Outcome:
    began = time.monotonic()
    deadline = began + line.within
    trouble, before = "", _counters(tables)
    found: list[dict[str, t.Any]] = []
    try:
        with _talk(line, deadline) if line.make else contextlib.nullcontext(Talk()) as talk:
            pause = _FIRST_PAUSE
            while True:
                talk.push()
                found = _find(tables, {**words, **talk.words}, talk.ident)
                there = [record for record in found if record["state"] == line.state]
                if there:
                    return Outcome(
                        line,
                        True,
                        f"{_describe_flow(there[0])}, after {time.monotonic() - began:.2f} s",
                    )
                if time.monotonic() >= deadline:
                    break
                time.sleep(_left(deadline, pause))
                pause = min(2 * pause, _LONGEST_PAUSE)
            trouble = talk.trouble
    except OSError as exc:
        trouble = _describe_error(line, exc)
        found = _find(tables, words, None)
    seen = f"{_describe_flow(found[0])}" if found else "no such flow in the table"
    more = [words for words in (trouble, _refused(before, _counters(tables))) if words]
    return Outcome(
        line, False, "; ".join([f"{seen} after {time.monotonic() - began:.2f} s", *more])
    )


def _refused(before: t.Mapping[str, int], after: t.Mapping[str, int]) -> str:
    """Return as what frames were counted meanwhile that belong to no flow; "" where none was.

    >>> _refused({"invalid_checksum": 1}, {"invalid_checksum": 3})
    'the chain counted meanwhile: invalid_checksum 2'
    """
    counts = {name: after[name] - before[name] for name in after if name.startswith("invalid_")}
    counts.update(
        (f"untracked_{name}", number) for name, number in untracked(before, after).items()
    )
    told = ", ".join(f"{name} {number}" for name, number in counts.items() if number > 0)
    return f"the chain counted meanwhile: {told}" if told else ""


def _find(
    tables: Tables, words: t.Mapping[str, t.Any], ident: int | None
) -> list[dict[str, t.Any]]:
    query = flow_filter.parse_query({**words, "limit": _MOST})
    found = [record for one in tables for record in flow_read.read(one, query, summary=False).flows]
    return [
        record for record in found if ident is None or record.get("icmp", {}).get("id") == ident
    ]


def _describe_flow(record: t.Mapping[str, t.Any]) -> str:
    there, back = record["orig"]["packets"], record["reply"]["packets"]
    return f"{record['state']} with {there} packet{'s' if there != 1 else ''} there and {back} back"


def _describe_error(line: Line, exc: OSError) -> str:
    """Return what went wrong with the traffic."""
    if isinstance(exc, _Astray):
        return str(exc)
    if isinstance(exc, socket.timeout):
        return f"no answer from {line.address} within {line.within:g} s"
    if exc.errno == errno.EADDRINUSE:
        return (
            f"port {line.port} of {line.target} is taken by another program: give another port, or"
            " make: false"
        )
    return f"the traffic failed: {exc.strerror or exc}"


def _ping(line: Line) -> Outcome:
    began = time.monotonic()
    deadline = began + line.within
    try:
        with _echo(dataclasses.replace(line, proto=ECHO[line.family]), deadline) as talk:
            while True:
                sent = time.monotonic()
                talk.push()
                if not talk.trouble:
                    return Outcome(
                        line,
                        True,
                        f"an answer from {line.address} after"
                        f" {1000 * (time.monotonic() - sent):.1f} ms",
                    )
                if time.monotonic() >= deadline:
                    return Outcome(
                        line, False, f"no answer from {line.address} within {line.within:g} s"
                    )
    except OSError as exc:
        return Outcome(line, False, _describe_error(line, exc))


# ---------------------------------------------------------------- traffic
class _Astray(OSError):
    """Traffic was answered, but not by the server that was to do it."""


@dataclasses.dataclass
class Talk:
    """A conversation that is going on.

    :ivar words: the filters that tell its flow from others.
    :ivar ident: the identifier of its echo requests.
    :ivar push: drives it on; called before each look.
    :ivar trouble: what is wrong with it, "" as long as nothing is.
    """

    words: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    ident: int | None = None
    push: t.Callable[[], None] = lambda: None
    trouble: str = ""


def _talk(line: Line, deadline: float) -> t.ContextManager[Talk]:
    return {"tcp": _tcp, "udp": _udp}.get(line.proto, _echo)(line, deadline)


def _left(deadline: float, most: float = float("inf")) -> float:
    """Return the seconds that are left; never 0, which a socket takes for not waiting at all."""
    return max(min(deadline - time.monotonic(), most), 0.001)


def _socket(
    stack: contextlib.ExitStack, place: str, family: str, kind: int, proto: int = 0
) -> socket.socket:
    """Return a socket that belongs to the namespace; the stack closes it."""
    with netns.entered(place):
        return stack.enter_context(socket.socket(_FAMILIES[family], kind, proto))


def _server(stack: contextlib.ExitStack, line: Line, kind: int, deadline: float) -> socket.socket:
    """Return a socket bound to the line's port, once it is free: another run may be checking the
    same line.
    """
    made = _socket(stack, line.target, line.family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
    while True:
        try:
            made.bind((line.address, line.port))
            return made
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(_left(deadline, 0.05))


def _translated(line: Line, peer: t.Sequence[t.Any], client: socket.socket) -> str:
    """Return that the server saw other ends than the client has; "" where they are the same."""
    own = client.getsockname()[:2]
    if tuple(peer[:2]) == own:
        return ""
    saw, has = (flow.endpoint(str(end[0]), int(end[1])) for end in (peer, own))
    return (
        f"the server in {line.target} was reached, by {saw} and not by {has}: addresses are"
        " translated on the way (NAT)"
    )


def _ends(client: socket.socket) -> dict[str, t.Any]:
    address, port = client.getsockname()[:2]
    return {"src": address, "sport": port}


@contextlib.contextmanager
def _tcp(line: Line, deadline: float) -> t.Iterator[Talk]:
    """Connect, exchange data, and close as far as the state wants it."""
    with contextlib.ExitStack() as stack:
        listener = _server(stack, line, socket.SOCK_STREAM, deadline)
        listener.listen(8)
        client = _socket(stack, line.source, line.family, socket.SOCK_STREAM)
        for one in (listener, client):
            one.settimeout(_left(deadline))
        client.connect((line.address, line.port))
        talk = Talk(_ends(client))
        server = _accepted(stack, line, listener, client, deadline, talk)
        server.settimeout(_left(deadline))
        server.sendall(_DATA)
        client.recv(len(_DATA))
        if line.state in ("CLOSE_WAIT", "TIME_WAIT"):
            client.shutdown(socket.SHUT_WR)
            server.recv(1)
        if line.state == "TIME_WAIT":
            server.shutdown(socket.SHUT_WR)
            client.recv(1)
        if line.state == "CLOSE":
            # so that closing resets
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            client.close()
        yield talk


def _accepted(
    stack: contextlib.ExitStack,
    line: Line,
    listener: socket.socket,
    client: socket.socket,
    deadline: float,
    talk: Talk,
) -> socket.socket:
    """Return the server's end of the client's connection. It is known by what the client sends:
    behind NAT its address is another one.

    :raises _Astray: where it does not come, though the client has been answered.
    """
    token = os.urandom(_TOKEN_BYTES)
    client.sendall(token)
    while True:
        listener.settimeout(_left(deadline))
        try:
            server, peer = listener.accept()
            stack.enter_context(server)
            server.settimeout(_left(deadline, _ROUND))
            if server.recv(_TOKEN_BYTES, socket.MSG_WAITALL) == token:
                talk.trouble = _translated(line, peer, client)
                return server
        except (socket.timeout, ConnectionError):  # of somebody who connects and says nothing
            if time.monotonic() >= deadline:
                raise _Astray(
                    f"{line.address} port {line.port} answered, but the connection did not arrive"
                    f" in {line.target}: another one answers in its place"
                ) from None


@contextlib.contextmanager
def _udp(line: Line, deadline: float) -> t.Iterator[Talk]:
    """Ask, and answer unless the state wants none, at each look anew: a stream becomes one in the
    course of time.
    """
    with contextlib.ExitStack() as stack:
        server = _server(stack, line, socket.SOCK_DGRAM, deadline)
        client = _socket(stack, line.source, line.family, socket.SOCK_DGRAM)
        client.connect((line.address, line.port))
        talk, token = Talk(_ends(client)), os.urandom(_TOKEN_BYTES)

        def push() -> None:
            for one in (server, client):
                one.settimeout(_left(deadline, _ROUND))
            try:
                client.send(token)
                talk.trouble = f"nothing arrived in {line.target}"
                while True:
                    data, peer = server.recvfrom(64)
                    if data == token:  # behind NAT its sender is another one
                        break
                translated = _translated(line, peer, client)
                if line.state != "NEW":
                    talk.trouble = (
                        "the answer did not arrive in"
                        f" {line.source}{'; ' if translated else ''}{translated}"
                    )
                    server.sendto(_DATA, peer)
                    client.recv(64)
                talk.trouble = translated
            except (socket.timeout, ConnectionRefusedError):
                pass

        talk.push = push
        yield talk


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def _echo(line: Line, deadline: float) -> t.Iterator[Talk]:
    """Send an echo request at each look, and wait for its answer."""
    request, answer = _ECHO_TYPES[line.proto]
    ident, number = random.randrange(1 << 16), 0
    with contextlib.ExitStack() as stack:
        client = _socket(
            stack,
            line.source,
            line.family,
            socket.SOCK_RAW,
            socket.IPPROTO_ICMP if line.family == "ipv4" else socket.IPPROTO_ICMPV6,
        )
        client.connect((line.address, 0))
        talk = Talk({"src": client.getsockname()[0]}, ident)

        def push() -> None:
            nonlocal number
            number = number + 1 & 0xFFFF
            body = struct.pack("!HH", ident, number) + _DATA
            total = (
                _checksum(struct.pack("!BBH", request, 0, 0) + body) if line.family == "ipv4" else 0
            )  # the kernel makes ICMPv6's
            wait = time.monotonic() + _left(deadline, _ROUND)
            talk.trouble = "no answer came"
            try:
                client.send(struct.pack("!BBH", request, 0, total) + body)
                while talk.trouble:
                    client.settimeout(_left(wait))
                    packet = client.recv(1 << 16)
                    told = packet[(packet[0] & 0xF) * 4 :] if line.family == "ipv4" else packet
                    if told[:1] == bytes([answer]) and told[4:] == body:
                        talk.trouble = ""
                    elif time.monotonic() >= wait:
                        return
            except socket.timeout:
                pass

        talk.push = push
        yield talk


def failures(outcomes: t.Sequence[Outcome]) -> str:
    """Return what failed, for people; "" when nothing did."""
    failed = [f"{one.line.title}: {one.seen}" for one in outcomes if one.passed is False]
    return (
        f"{len(failed)} of {len(outcomes)} lines do not hold.{os.linesep}{os.linesep.join(failed)}"
        if failed
        else ""
    )
