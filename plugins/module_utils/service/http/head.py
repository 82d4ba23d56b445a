# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The head of a request of HTTP/1, read as RFC 9112 has it and not one bit more generously.

Where two readers of a request differ in where it ends, whoever wrote it can hide a second request
from one of them. So whatever the RFC lets a server refuse is refused here: folded headers, space
before the colon, lines that end with LF alone, a length that is given twice, a length beside a
transfer coding.
"""

from __future__ import annotations

import re
import typing as t

from ...core.errors import ConntrackError

#: Bytes of the request line, and of all headers together; headers.
LINE_BYTES, HEADER_BYTES, HEADERS = 1 << 16, 1 << 16, 100
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+)(?: (HTTP/[0-9]\.[0-9]))?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
#: RFC 9112 section 3.2 and RFC 3986 section 3.2.2: a name, an IPv4 address or an address in
#: brackets, and a port.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)


class BadHead(ConntrackError):
    """A head that is refused.

    :param status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Headers:
    """The headers of a request; their names are the same in upper and lower case."""

    def __init__(self, fields: t.Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in fields:
            self._values.setdefault(name.lower(), []).append(value)

    def all(self, name: str) -> list[str]:
        """Return what it has in each of its lines."""
        return self._values.get(name.lower(), [])

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()])

    def get(self, name: str, otherwise: str = "") -> str:
        """Return what it has, the lines joined as one list."""
        values = self._values.get(name.lower())
        return otherwise if values is None else ", ".join(values)


class Head(t.NamedTuple):
    """The head of a request.

    :ivar version: ``HTTP/1.0`` or ``HTTP/1.1``.
    """

    method: str
    target: str
    version: str
    headers: Headers

    @property
    def last(self) -> bool:
        """Whether the client wants the connection to end with the answer."""
        options = [option.strip().lower() for option in self.headers.get("Connection").split(",")]
        return self.version == "HTTP/1.0" or "close" in options


def _quoted(data: bytes) -> str:
    return repr(data[:80].decode("latin-1"))


def _line(file: t.BinaryIO, most: int, status: int, what: str) -> bytes | None:
    """Return a line without its end; None where the client ended before it did.

    :raises BadHead: for one that is too long, or has no proper end.
    """
    line = file.readline(most + 1)
    if len(line) > most:
        raise BadHead(status, f"{what}: more than {most} bytes.")
    if not line.endswith(b"\n"):
        return None
    if not line.endswith(b"\r\n"):
        raise BadHead(400, f"{what}: {_quoted(line)} ends with LF; lines end with CR LF.")
    return line[:-2]


def parse_request_line(line: bytes) -> tuple[str, str, str]:
    """Return method, target and version.

    >>> parse_request_line(b"GET /flows HTTP/1.1")
    ('GET', '/flows', 'HTTP/1.1')

    :raises BadHead: naming what is wrong.
    """
    found = _REQUEST.fullmatch(line)
    if not found:
        raise BadHead(
            400,
            f"Bad request: {_quoted(line)} is no request line; send METHOD TARGET HTTP/1.1, with"
            " single spaces and in ASCII.",
        )
    method, target, version = (
        part.decode("ascii") if part is not None else "" for part in found.groups()
    )
    if not version:
        raise BadHead(505, "Say the version of HTTP, 1.0 or 1.1, behind the path.")
    if not version.startswith("HTTP/1."):
        raise BadHead(505, f"Invalid HTTP version: {version!r}; 1.0 and 1.1 are served.")
    if method not in METHODS:
        raise BadHead(501, f"Unsupported method: {method!r}.")
    return method, target, "HTTP/1.0" if version == "HTTP/1.0" else "HTTP/1.1"


def parse_field(line: bytes) -> tuple[str, str]:
    """Return name and value of a header.

    >>> parse_field(b"Host:  ct ")
    ('Host', 'ct')

    :raises BadHead: naming what is wrong.
    """
    if line[:1] in (b" ", b"\t"):
        raise BadHead(
            400, f"Bad request: a header goes on in a second line, {_quoted(line)}; send it in one."
        )
    found = _FIELD.fullmatch(line)
    if not found:
        raise BadHead(
            400,
            f"Bad request: {_quoted(line)} is no header; send NAME: VALUE, with no space before the"
            " colon and no control characters.",
        )
    return found.group(1).decode("ascii"), found.group(2).decode("latin-1").strip(" \t")


def check(head: Head) -> None:
    """Refuse what would leave it open where the request ends, or whom it is for.

    :raises BadHead: naming the header.
    """
    hosts, lengths = head.headers.all("Host"), head.headers.all("Content-Length")
    if len(hosts) > 1:
        raise BadHead(400, f"Host: it is given {len(hosts)} times; give it once.")
    if not hosts and head.version == "HTTP/1.1":
        raise BadHead(
            400, "Host: it is missing, and HTTP/1.1 has it in every request; give a name, as ct."
        )
    if len(lengths) > 1:
        raise BadHead(400, f"Content-Length: it is given {len(lengths)} times; give it once.")
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
        raise BadHead(400, f"Content-Length: {lengths[0][:80]!r} is not valid: give a number.")
    if "Transfer-Encoding" in head.headers and (lengths or head.version == "HTTP/1.0"):
        raise BadHead(
            400,
            "Transfer-Encoding: it belongs neither to HTTP/1.0 nor beside Content-Length; send"
            " Content-Length alone.",
        )


def valid_host(value: str) -> bool:
    """Whether a value of the header Host can be one.

    >>> [valid_host(value) for value in ("ct", "[::1]:80", "", "a b", "user@a", "a,b/c")]
    [True, True, True, False, False, False]
    """
    return _HOST.fullmatch(value) is not None


def read(file: t.BinaryIO) -> Head | None:
    """Read the head of the next request; None where the client sends no more.

    :raises BadHead: for what is no request; what comes after it is not to be read.
    """
    line = _line(file, LINE_BYTES, 414, "the request line")
    if line == b"":  # RFC 9112 section 2.2: one empty line before it is let pass
        line = _line(file, LINE_BYTES, 414, "the request line")
    if line is None:
        return None
    method, target, version = parse_request_line(line)
    fields: list[tuple[str, str]] = []
    left = HEADER_BYTES
    while True:
        line = _line(file, left, 431, "the headers")
        if line is None:
            return None
        if not line:
            break
        if len(fields) == HEADERS:
            raise BadHead(431, f"Too many headers: {HEADERS} are taken at most.")
        left -= len(line) + 2
        fields.append(parse_field(line))
    head = Head(method, target, version, Headers(fields))
    check(head)
    return head
