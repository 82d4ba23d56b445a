# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection: requests are read with deadlines, answers are sent whole or piece by piece."""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import socket
import socketserver
import time
import typing as t

from ...core.errors import bad_value
from . import head as http_head
from . import peer as http_peer
from . import room as http_room
from .request import Refusal, Target, error_body, is_loopback, parse_target

#: Seconds for a request to be there after the one before, and for each piece of an answer to be
#: taken.
REQUEST_SECONDS, PIECE_SECONDS = 30.0, 30.0
BODY_BYTES = 1 << 16
#: Seconds for which what a refused client still sends is taken in.
_DRAIN_SECONDS = 1.0
JSON = "application/json"
Put = t.Callable[[bytes], object]


class _Patient(io.RawIOBase):
    """What a client sends, as long as it comes before the deadline."""

    def __init__(self, guest: http_room.Guest) -> None:
        self._connection, self._guest = guest.connection, guest
        self.deadline = 0.0
        self.what = http_room.HEAD

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: t.Any) -> int:
        """Read what is there.

        :raises socket.timeout: when the time is over.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout
        self._connection.settimeout(left)
        with self._guest.waiting(self.what):
            return self._connection.recv_into(buffer)


class _Left(ConnectionError):
    """The client is gone, so nobody is there to answer."""


class Exchange(http.server.BaseHTTPRequestHandler):
    """Serves one connection: reads each request, and has it answered.

    :param guest: the connection, as the server counts it.
    :param over_tcp: whether it came over TCP, where a page in a browser on this host can ask, too.
    :param log: takes a line about what went wrong and nobody is told.
    """

    protocol_version = "HTTP/1.1"

    def __init__(
        self,
        guest: http_room.Guest,
        over_tcp: bool,
        log: t.Callable[[str], object],
        client_address: t.Any,
        server: socketserver.BaseServer,
    ) -> None:
        self.guest, self.over_tcp, self.log = guest, over_tcp, log
        super().__init__(guest.connection, client_address, server)  # which serves it

    def setup(self) -> None:
        """Prepare to read and write with deadlines."""
        self.connection = self.request
        self._input = _Patient(self.guest)
        self.streaming = self.unread = False
        self.rfile = io.BufferedReader(self._input)
        self.wfile = t.cast("io.BufferedIOBase", self)

    def finish(self) -> None:
        """Take in what a client still sends after its answer: a connection that is closed on it
        would lose the answer on its way.
        """
        if self.unread:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                self._input.deadline = time.monotonic() + _DRAIN_SECONDS
                while self._input.read(BODY_BYTES):
                    pass
        self.rfile.close()

    def write(self, piece: bytes) -> None:
        """Send a piece of an answer: http.server writes to ``wfile``.

        :raises socket.timeout: when it was not taken in time.
        """
        self.connection.settimeout(PIECE_SECONDS)  # for all of it together
        with self.guest.waiting(http_room.ANSWER):
            self.connection.sendall(piece)

    def flush(self) -> None:
        """Do nothing: all was sent."""

    def handle_one_request(self) -> None:
        """Read and answer a request."""
        self._input.deadline, self._input.what = time.monotonic() + REQUEST_SECONDS, http_room.HEAD
        self.streaming = self.unread = False
        self.close_connection = True
        self.command, self.path, self.request_version, self.requestline = "", "", "HTTP/1.1", ""
        try:
            head = http_head.read(t.cast("t.BinaryIO", self.rfile))
            if head is None or self.guest.cut:
                return
            self._input.what = http_room.BODY
            self.command, self.path, self.request_version, self.head = (
                head.method,
                head.target,
                head.version,
                head.headers,
            )
            self.close_connection = head.last
            self.dispatch()
        except http_head.BadHead as exc:
            self.unread = self.close_connection = (
                True  # where the next request would begin nobody knows
            )
            with contextlib.suppress(ConnectionError, socket.timeout):
                self.refuse(exc.status, exc.message)
        except (ConnectionError, socket.timeout):  # the client went away, or sends or takes nothing
            self.close_connection = True

    def version_string(self) -> str:
        """Return what the header Server says."""
        return "ebpf.conntrack"

    def log_message(self, format: str, *args: t.Any) -> None:
        """Say nothing: what a request did is in its answer."""

    def dispatch(self) -> None:
        """Answer a request, or say why not."""
        raise NotImplementedError

    def target_here(self) -> Target:
        """Return what the request is for, where it is for this server: a page in a browser on this
        host can ask over TCP under a name that leads here.

        :raises ConntrackError: where target or host is not valid; and what comes after it is not
            looked at.
        """
        close, self.close_connection = self.close_connection, True
        url = parse_target(self.path)
        # the host in the target holds in place of the header's (RFC 9112 section 3.2.2)
        for host in [*self.head.all("Host"), *([url.host] if url.host is not None else [])]:
            if not self.over_tcp:
                if not http_head.valid_host(host):
                    raise bad_value(
                        "Host", host[:100], "give a name or an address, and a port if you like"
                    )
            elif not is_loopback(host):
                raise Refusal(
                    421, f"Host: {host[:100]!r} is none of this server's: use its loopback address."
                )
        self.close_connection = close
        return url

    def check_client(self) -> None:
        """:raises _Left: where the client is gone."""
        if self.guest.cut or http_peer.gone(self.connection):
            raise _Left

    @contextlib.contextmanager
    def place(self, places: http_room.Places, what: str) -> t.Iterator[None]:
        """Around what only a bounded number does at once.

        :raises Refusal: where there are as many.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(places.taken(self.guest))
            except http_room.Full as exc:
                many = (
                    f"{places.each} {what} for this user, which is as many as one has"
                    if exc.alone
                    else f"{places.total} {what}, which is as many as are"
                )
                raise Refusal(
                    503, f"{many} at once. Try again later.", {"Retry-After": "1"}
                ) from None
            yield

    def refuse(
        self,
        status: int,
        message: str,
        headers: t.Mapping[str, str] | None = None,
        more: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        """Answer with an error."""
        if self.streaming:
            # it ends without its last chunk, so the reader knows that it is not whole
            self.log(f"{self.path}: an answer was broken off: {message}")
            self.close_connection = True
            return
        self.answer(status, JSON, error_body(message, more), headers)

    def answer(
        self, status: int, kind: str, body: bytes, headers: t.Mapping[str, str] | None = None
    ) -> None:
        """Send an answer whose length is known."""
        self.send_head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.write(body)

    def send_head(self, status: int, kind: str, headers: t.Mapping[str, str]) -> None:
        """Send the status and the headers of an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.unread:  # what was not read is no request
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def stream(self, kind: str, produce: t.Callable[[Put], object]) -> None:
        """Send what ``produce`` puts, piece by piece. The head goes with the first one, so that
        what fails before is answered with an error.
        """
        chunked = self.request_version != "HTTP/1.0"

        def put(piece: bytes) -> None:
            if not self.streaming:
                if not chunked:
                    self.close_connection = True
                self.streaming = True
                self.send_head(200, kind, {"Transfer-Encoding": "chunked"} if chunked else {})
            # flows.table lets it rest while it reads, which may take as long here as the reader
            # likes
            gc.enable()
            if piece:
                self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

        if self.command == "HEAD":
            self.send_head(200, kind, {"Transfer-Encoding": "chunked"} if chunked else {})
            return
        produce(put)
        if chunked:
            self.write(b"0\r\n\r\n")

    def read_body(self) -> bytes:
        """Return the request's body.

        :raises Refusal: when it is too large, or nobody can tell how large.
        """
        lengths = self.head.all("Content-Length")
        if not lengths:
            raise Refusal(
                411,
                "the length of the body is not told: send the header Content-Length, and no"
                " Transfer-Encoding.",
            )
        length = lengths[0].lstrip("0") or "0"
        if len(length) > 15 or int(length) > BODY_BYTES:
            raise Refusal(413, f"the body has {length[:20]} bytes: {BODY_BYTES} are taken at most.")
        expected = self.head.get("Expect").strip().lower()
        if expected == "100-continue" and self.request_version != "HTTP/1.0":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif expected:
            raise Refusal(
                417, f"Expect: {expected[:100]!r} is not valid: give 100-continue, or leave it out."
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _Left
        self.unread = False
        return body
