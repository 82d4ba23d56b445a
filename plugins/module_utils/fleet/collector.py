# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send lines to a collector: over TCP each ended by a line feed, over UDP each as a datagram.
Vector, Fluent Bit, Logstash and syslog-ng read both.
"""

from __future__ import annotations

import contextlib
import socket
import typing as t
import urllib.parse

from ..core.errors import ConntrackError, bad_value

#: How long to wait for a connection, and for a collector that does not read.
SECONDS = 30
#: How long to wait until it has read all, and closes.
_CLOSE_SECONDS = 5
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_FORM = "give tcp://HOST:PORT or udp://HOST:PORT, an IPv6 address in brackets"


class Address(t.NamedTuple):
    """Where a collector listens; ``kind`` is tcp or udp."""

    kind: str
    host: str
    port: int


def parse(text: str) -> Address:
    """Return the address that a text stands for.

    >>> parse("tcp://[2001:db8::1]:5170")
    Address(kind='tcp', host='2001:db8::1', port=5170)

    :raises ConntrackError: where it is none.
    """
    try:
        url = urllib.parse.urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise bad_value("collector", text, _FORM) from None
    if (
        url.scheme not in _KINDS
        or not host
        or not port
        or url.path
        or url.query
        or url.fragment
        or url.username is not None
    ):
        raise bad_value("collector", text, _FORM)
    return Address(url.scheme, host, port)


class Sender:
    """A connection to a collector.

    :ivar sent: how many lines the system took. Over UDP nobody knows whether they arrived.
    """

    def __init__(self, address: Address, connected: socket.socket) -> None:
        self.sent = 0
        self._address, self._socket = address, connected

    def send(self, lines: t.Sequence[bytes]) -> None:
        """Send lines, each of which ends with a line feed.

        :raises ConntrackError: when the collector does not take them; ``sent`` is what was sent
            before.
        """
        try:
            if self._address.kind == "tcp":
                self._socket.sendall(b"".join(lines))
            else:
                for line in lines:
                    self._socket.send(line.rstrip(b"\n"))
        except OSError as exc:
            raise _refused(self._address, exc, self.sent) from exc
        self.sent += len(lines)


@contextlib.contextmanager
def connected(address: Address) -> t.Iterator[Sender]:
    """Connect to a collector.

    :raises ConntrackError: when it does not answer, or goes away before it has read all.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=_KINDS[address.kind])
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(_first(found))
            opened.settimeout(SECONDS)
            sender = Sender(address, opened)
            yield sender
            if address.kind == "tcp":
                opened.shutdown(socket.SHUT_WR)
                opened.settimeout(_CLOSE_SECONDS)
                # one that took all may leave the connection open
                with contextlib.suppress(socket.timeout):
                    while opened.recv(4096):
                        pass
    except OSError as exc:
        if isinstance(exc, ConntrackError):
            raise
        raise _refused(address, exc, 0) from exc


def _first(found: t.Sequence[t.Any]) -> socket.socket:
    """Return a connection to the first address that takes one."""
    why: OSError = OSError("the name has no address")
    for family, kind, proto, dummy, where in found:
        opened = socket.socket(family, kind, proto)
        opened.settimeout(SECONDS)
        try:
            opened.connect(where)
            return opened
        except OSError as exc:
            why = exc
            opened.close()
    raise why


def _refused(address: Address, exc: OSError, sent: int) -> ConntrackError:
    host = f"[{address.host}]" if ":" in address.host else address.host
    said = exc.strerror or str(exc) or type(exc).__name__
    return ConntrackError(
        f"collector: {address.kind}://{host}:{address.port} does not take it: {said}. See whether"
        " it listens there.",
        sent=sent,
    )
