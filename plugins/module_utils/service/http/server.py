# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow tables over HTTP, on a unix socket or a loopback address. It only reads.

A thread serves each connection. What a client can make it do is bounded: connections, requests that
read flows, summaries and their groups, flows that are sorted, the time for a request to come in and
for a piece of an answer to be taken; most of it for each user of the host besides. What a client
that has left asked for is given up. No answer is written while a lock is held, so a slow reader
keeps nobody from anything but its own connection.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import http.server
import io
import ipaddress
import json
import os
import re
import socket
import socketserver
import stat
import sys
import threading
import time
import typing as t
import urllib.parse

from ...core import lock, stop
from ...core.errors import ConntrackError, bad_value
from ...flows import codec as flow
from ...flows import collect as flow_collect
from ...flows import filter as flow_filter
from ...flows import output as flow_output
from ...flows import progress
from ...flows import read as flow_read
from ...flows import table as flow_table
from ...generation import converge as generation
from ...kernel import bpffs
from .. import metrics as ct_metrics
from .. import options as service_options
from .. import status as ct_status
from ..options import Address
from . import head as http_head
from . import peer as http_peer
from . import room as http_room

SOCKET_MODE = 0o660
#: Connections at once; of those, requests that read flows; of those, ones that sort more than
#: SORTED of them, which takes memory for each.
CONNECTIONS, READERS, SORTERS = 32, 8, 1
SORTED = 10_000
#: Requests for a summary, and for metrics. One summary is made at a time, the others wait; those
#: who ask for metrics share one reading.
SUMMARIES, SCRAPES = 4, 8
#: The same for each user of the host, besides root.
EACH_CONNECTIONS, EACH_READERS, EACH_SUMMARIES, EACH_SCRAPES = 16, 4, 2, 4
#: Flows that are sorted without a limit of SORTED, and groups of a summary: some 350 and 600 bytes
#: each.
MOST_SORTED, MOST_GROUPS = 250_000, 100_000
#: Seconds that a summary waits for its turn, and between two looks whether its client still does.
_TURN_SECONDS, _LOOK_SECONDS = 30.0, 0.1
#: Seconds for a request to be there after the one before, and for each piece of an answer to be
#: taken.
REQUEST_SECONDS, PIECE_SECONDS = 30.0, 30.0
BODY_BYTES = 1 << 16
_QUERY_FIELDS = 500
#: Seconds that the end waits for connections to end.
_END_SECONDS = 5.0
#: Seconds for which what a refused client still sends is taken in.
_DRAIN_SECONDS = 1.0
_JSON = "application/json"
_MEDIA = {
    "json": _JSON,
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "table": "text/plain; charset=utf-8",
    "conntrack": "text/plain; charset=utf-8",
}
#: What may stand once in a query of /flows, besides flow_filter's words.
_FORM_WORDS = ("output", "extended", "window")
#: What a client of the original is told besides the sentence.
_FORWARD_OK, _FORWARD_FAILED = 200, 500
_BAD_JSON, _BAD_ACTION, _NO_ANSWER = 1100, 1101, 1201
#: The states under the names that the original has for them; others are the record's in lower case.
_FORWARD_STATES = {"ESTABLISHED": "est", "REPLIED": "rpl"}
#: A target that is a whole URL: whom it is for, and the rest.
_URL = re.compile(r"[Hh][Tt][Tt][Pp]://([^/?]*)(.*)")
T = t.TypeVar("T")
Put = t.Callable[[bytes], object]


# ---------------------------------------------------------------- the server
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers requests from its making on, once ``start()`` or ``serve_forever()`` was called. Use
    as a context manager or call ``close()``.

    :param paths: of the chain; it need not be loaded.
    :param address: see service_options.parse_address().
    :param sweeps: what the service that the server is a part of tells of its sweeps.
    :param log: takes a line about what went wrong and nobody is told.
    :ivar where: where it listens, for people.
    :raises ConntrackError: when the socket or the port can not be had.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        paths: bpffs.Paths,
        address: Address = Address(),  # noqa: B008  it does not change
        sweeps: ct_metrics.Sweeps | None = None,
        log: t.Callable[[str], object] | None = None,
    ) -> None:
        self.paths, self.address, self.sweeps = paths, address, sweeps
        self.log = log or _log
        self.health = Fresh(lambda: _health(paths))
        self.readers, self.sorters = (
            http_room.Places(READERS, EACH_READERS),
            http_room.Places(SORTERS, SORTERS),
        )
        self.summaries, self.scrapes = (
            http_room.Places(SUMMARIES, EACH_SUMMARIES),
            http_room.Places(SCRAPES, EACH_SCRAPES),
        )
        self.summing = threading.Lock()
        self._room = http_room.Room(CONNECTIONS, EACH_CONNECTIONS)
        self._open: dict[threading.Thread, http_room.Guest] = {}
        self._turned_away: collections.deque[socket.socket] = collections.deque()
        self._own: tuple[int, int] | None = None
        self._made_directory = False
        self._exporter: ct_metrics.Exporter | None = None
        self._thread: threading.Thread | None = None
        self.address_family = (
            socket.AF_UNIX
            if address.socket
            else socket.AF_INET6
            if ":" in address.host
            else socket.AF_INET
        )
        where: t.Any = address.socket or (address.host, address.port)
        with contextlib.ExitStack() as held:
            if address.socket:
                directory = os.path.dirname(address.socket)
                self._made_directory = not os.path.isdir(directory)
                held.enter_context(lock.held(directory, make=0o755))
            try:
                super().__init__(where, _Handler)
            except OSError as exc:
                field, value = (
                    ("socket", address.socket)
                    if address.socket
                    else ("listen", f"{address.host}:{address.port}")
                )
                raise bad_value(
                    field, value, f"it can not be had: {exc.strerror}; give another"
                ) from exc
        bound = self.socket.getsockname()
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.where = address.socket or f"http://{host}:{bound[1]}/"

    def server_bind(self) -> None:
        """Bind; a socket that nobody listens on any more is replaced. Nobody can connect before it
        listens, and by then it has its group and mode.
        """
        path = self.address.socket
        if not path:
            super().server_bind()
            return
        _make_way(path)
        self.socket.bind(path)
        found = os.stat(path)
        self._own = found.st_dev, found.st_ino
        if self.address.group:
            os.chown(path, -1, service_options.group_id(self.address.group))
        os.chmod(path, SOCKET_MODE)

    @property
    def exporter(self) -> ct_metrics.Exporter:
        """What answers /metrics.

        :raises ConntrackError: where the library is missing.
        """
        if self._exporter is None:
            from .. import metrics as ct_metrics

            self._exporter = ct_metrics.Exporter(self.paths, self.health.get, self.sweeps, self.log)
        return self._exporter

    def start(self) -> Server:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(
            target=self.serve_forever, args=(None,), name="http", daemon=True
        )  # it wakes for connections only
        self._thread.start()
        return self

    def close(self) -> None:
        """End: no new connections, those that are open are cut, and the socket goes."""
        if self._thread is not None:
            end = threading.Thread(target=self.shutdown)
            end.start()
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # which wakes it
            end.join()
            self._thread.join()
        self.server_close()
        while self._turned_away:
            self._turned_away.pop().close()
        deadline = time.monotonic() + _END_SECONDS
        for thread, guest in list(self._open.items()):
            with contextlib.suppress(OSError):
                guest.connection.shutdown(socket.SHUT_RDWR)
            thread.join(max(deadline - time.monotonic(), 0))

    def server_close(self) -> None:
        """Close the listening socket, and take away its file where it is still ours."""
        super().server_close()
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.address.socket) if self._own else None
            if found is not None and (found.st_dev, found.st_ino) == self._own:
                os.unlink(self.address.socket)
        self._own = None
        if self._made_directory:
            with contextlib.suppress(OSError):  # in use
                os.rmdir(os.path.dirname(self.address.socket))

    def __exit__(self, *dummy: object) -> None:
        self.close()

    def process_request(self, request: t.Any, client_address: t.Any) -> None:
        """Give a connection a thread; where there is no room, in place of one that waits for its
        client, or say at once that there are too many.
        """
        peer = http_peer.of(request, client_address)
        try:
            guest, victim = self._room.admit(request, peer)
        except http_room.Full as exc:
            self._turn_away(request, exc.alone)
            return
        if victim is not None:
            self._cut(victim)
        thread = threading.Thread(target=self._serve, args=(guest, client_address), daemon=True)
        self._open[thread] = guest
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            del self._open[thread]
            self._room.leave(guest)
            raise

    def guest(self) -> http_room.Guest:
        """Return the connection that this thread serves."""
        return self._open[threading.current_thread()]

    def _turn_away(self, request: socket.socket, alone: bool) -> None:
        """Answer without reading. The connection stays open until others were turned away, or its
        client, which is still sending, would lose the answer.
        """
        _say_full(
            request, EACH_CONNECTIONS if alone else CONNECTIONS, " by this user" if alone else ""
        )
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        self._turned_away.append(request)
        while len(self._turned_away) > CONNECTIONS:
            self._turned_away.popleft().close()

    @staticmethod
    def _cut(guest: http_room.Guest) -> None:
        """End a connection for another one. Its thread, which waits for the client, ends it."""
        waits = guest.waits
        if waits is not None and waits[0] != http_room.ANSWER:
            _say_full(guest.connection, CONNECTIONS)
        with contextlib.suppress(OSError):
            guest.connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, guest: http_room.Guest, client_address: t.Any) -> None:
        try:
            self.process_request_thread(guest.connection, client_address)
        finally:
            self._room.leave(guest)
            del self._open[threading.current_thread()]

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """Tell of what nobody foresaw; that clients go away or are too slow is no news."""
        exc = sys.exc_info()[1]
        if not isinstance(exc, (ConnectionError, socket.timeout)):
            self.log(f"a request failed: {type(exc).__name__}: {exc}")


def _say_full(connection: socket.socket, number: int, by: str = "") -> None:
    """Answer that there are too many, without waiting."""
    body = _error_body(
        f"{number} connections are open{by}, which is as many as are served at once. Try again"
        " later."
    )
    lines = [
        "HTTP/1.1 503 Service Unavailable",
        f"Content-Type: {_JSON}",
        f"Content-Length: {len(body)}",
        "Retry-After: 1",
        "Connection: close",
        "",
        "",
    ]
    with contextlib.suppress(OSError):
        connection.send(
            "\r\n".join(lines).encode() + body, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        )


def _log(line: str) -> None:
    sys.stderr.write(f"ct serve: {' '.join(line.split())}\n")


def _make_way(path: str) -> None:
    """Take away a socket that nobody listens on.

    :raises ConntrackError: for anything else.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise bad_value(
            "socket",
            path,
            "something else than a socket stands there; move it, or give another path",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except socket.timeout:
            pass
    raise bad_value(
        "socket",
        path,
        "another process serves there; end it (systemctl stop ct), or give another path",
    )


class Fresh(t.Generic[T]):
    """Does something that takes a while once for all who ask meanwhile: each gets what was begun
    after it asked.
    """

    def __init__(self, make: t.Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._done: tuple[float, T] | None = None

    def get(self) -> T:
        """Return what was made."""
        asked = time.monotonic()
        with self._lock:
            if self._done is None or self._done[0] < asked:
                began = time.monotonic()
                self._done = began, self._make()
            return self._done[1]


def _health(paths: bpffs.Paths) -> dict[str, t.Any]:
    """Return the generation and all that keeps it from working."""
    have = generation.observe(paths)
    if have.generation is None:
        raise flow_table.NoChain(f"{paths.base}: no chain is loaded there. Run xdp_program.")
    faults = ct_status.faults(paths, have)
    return {
        "healthy": not faults,
        "generation": have.generation,
        "digest": have.digest,
        "since": have.since,
        "faults": faults,
    }


# ---------------------------------------------------------------- requests
class Refusal(ConntrackError):
    """A request that is answered with an error.

    :param status: of HTTP.
    :param headers: that go with it.
    :param body: what the answer holds besides the sentence.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: t.Mapping[str, str] | None = None,
        body: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers, self.body = status, headers or {}, body or {}


def _error_body(message: str, more: t.Mapping[str, t.Any] | None = None) -> bytes:
    # half of a surrogate pair, which only a client can have sent, is written as JSON writes it
    return f"{flow_output.dumps({**(more or {}), 'error': message})}\n".encode(
        errors="backslashreplace"
    )


class Target(t.NamedTuple):
    """What a request is for.

    :ivar host: that the target itself names, None where it does not.
    """

    path: str
    query: str
    host: str | None = None


def parse_target(target: str) -> Target:
    """Return what a request target (RFC 9112 section 3.2) names: a path, or a whole URL as a proxy
    gets it.

    >>> parse_target("/flows?proto=tcp")
    Target(path='/flows', query='proto=tcp', host=None)
    >>> parse_target("http://ct/healthz")
    Target(path='/healthz', query='', host='ct')

    :raises ConntrackError: for what is neither.
    """
    if "#" in target:
        raise ConntrackError(
            f"{target[:100]!r} has a fragment (#), which is no part of a request; leave it out, or"
            " write %23."
        )
    host = None
    if not target.startswith("/") and "://" in target:
        found = _URL.fullmatch(target)
        host = found.group(1) if found else ""
        if found is None or not host or not http_head.valid_host(host):
            raise ConntrackError(
                f"{target[:100]!r} is no address of anything here; give a path, as /flows."
            )
        target = found.group(2) if found.group(2).startswith("/") else f"/{found.group(2)}"
    path, dummy, query = target.partition("?")
    return Target(path, query, host)


def parse_words(query: str, known: t.Collection[str]) -> dict[str, t.Any]:
    """Return the words of a query string as flow_filter takes them: lists of what stands between
    commas, or was given again.

    >>> parse_words("proto=tcp,udp&dport=80&dport=443&limit=5", ("proto", "dport", "limit"))
    {'proto': ['tcp', 'udp'], 'dport': ['80', '443'], 'limit': '5'}

    :raises ConntrackError: for a word that is not known, or one that is given twice and may not be.
    """
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise ConntrackError(f"the query has more than {_QUERY_FIELDS} words.") from None
    found: dict[str, t.Any] = {}
    for word, value in pairs:
        if word not in known:
            raise ConntrackError(
                f"{word} is no word of this query. "
                + (f"Give some of {', '.join(known)}." if known else "It takes none.")
            )
        if word == "assured" and not value:
            value = "true"
        if word in ("limit", "sort", *_FORM_WORDS):
            if word in found:
                raise bad_value(word, value, "it is given twice; give it once")
            found[word] = value
        else:
            found.setdefault(word, []).extend(value.split(","))
    return found


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


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Prepare to read and write with deadlines."""
        self.connection = self.request
        self._guest = self.server.guest()
        self._input = _Patient(self._guest)
        self._streaming = self._unread = False
        self.rfile = io.BufferedReader(self._input)
        self.wfile = t.cast("io.BufferedIOBase", self)

    def finish(self) -> None:
        """Take in what a client still sends after its answer: a connection that is closed on it
        would lose the answer on its way.
        """
        if self._unread:
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
        with self._guest.waiting(http_room.ANSWER):
            self.connection.sendall(piece)

    def flush(self) -> None:
        """Do nothing: all was sent."""

    def handle_one_request(self) -> None:
        """Read and answer a request."""
        self._input.deadline, self._input.what = time.monotonic() + REQUEST_SECONDS, http_room.HEAD
        self._streaming = self._unread = False
        self.close_connection = True
        self.command, self.path, self.request_version, self.requestline = "", "", "HTTP/1.1", ""
        try:
            head = http_head.read(t.cast("t.BinaryIO", self.rfile))
            if head is None or self._guest.cut:
                return
            self._input.what = http_room.BODY
            self.command, self.path, self.request_version, self.head = (
                head.method,
                head.target,
                head.version,
                head.headers,
            )
            self.close_connection = head.last
            self._dispatch()
        except http_head.BadHead as exc:
            # where the next request would begin nobody knows
            self._unread = self.close_connection = True
            with contextlib.suppress(ConnectionError, socket.timeout):
                self._refuse(exc.status, exc.message)
        except (ConnectionError, socket.timeout):  # the client went away, or sends or takes nothing
            self.close_connection = True

    def version_string(self) -> str:
        """Return what the header Server says."""
        return "ebpf.conntrack"

    def log_message(self, format: str, *args: t.Any) -> None:
        """Say nothing: what a request did is in its answer."""

    # ------------------------------------------------------------ answering
    def _dispatch(self) -> None:
        """Answer a request, or say why not."""
        self._unread = (
            "Transfer-Encoding" in self.head
            or self.head.get("Content-Length", "0").strip("0") != ""
        )
        try:
            with _asked():
                url = self._for_here()
            methods = ROUTES.get(url.path)
            if methods is None:
                raise Refusal(
                    404,
                    f"{url.path}: there is nothing here. Ask for"
                    f" {', '.join(path for path in ROUTES if path != '/')}.",
                )
            run = methods.get("GET" if self.command == "HEAD" else self.command)
            if run is None:
                allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
                raise Refusal(
                    405,
                    f"{self.command} does not go with {url.path}: use {allowed}.",
                    {"Allow": allowed},
                )
            run(self, url.query)
        except Refusal as exc:
            self._refuse(exc.status, exc.message, exc.headers, exc.body)
        except flow_collect.TooMany as exc:
            self._refuse(422, exc.message)
        except ConntrackError as exc:
            self._refuse(503, exc.message)
        except (ConnectionError, socket.timeout):
            raise
        except OSError as exc:
            self._refuse(500, f"the system refuses it: {exc}.")
        except Exception as exc:  # whatever it is, the client is to hear of it, and the log as well
            self.server.log(f"{self.path[:100]}: {type(exc).__name__}: {exc}")
            self._refuse(500, "the server failed at it; its log says how.")

    def _for_here(self) -> Target:
        """Return what the request is for, where it is for this server: a page in a browser on this
        host can ask over TCP under a name that leads here.

        :raises ConntrackError: where target or host is not valid; and what comes after it is not
            looked at.
        """
        close, self.close_connection = self.close_connection, True
        url = parse_target(self.path)
        # the host in the target holds in place of the header's (RFC 9112 section 3.2.2)
        for host in [*self.head.all("Host"), *([url.host] if url.host is not None else [])]:
            if self.server.address.socket:
                if not http_head.valid_host(host):
                    raise bad_value(
                        "Host", host[:100], "give a name or an address, and a port if you like"
                    )
            elif not _is_loopback(host):
                raise Refusal(
                    421, f"Host: {host[:100]!r} is none of this server's: use its loopback address."
                )
        self.close_connection = close
        return url

    def _here(self) -> None:
        """:raises _Left: where the client is gone."""
        if self._guest.cut or http_peer.gone(self.connection):
            raise _Left

    def _read_for_client(self, tables: flow_table.FlowTables) -> flow_table.Source:
        """Return tables whose reading ends when the client leaves."""
        return t.cast("flow_table.Source", progress.Watched(tables, lambda dummy: self._here()))

    @contextlib.contextmanager
    def _place(self, places: http_room.Places, what: str) -> t.Iterator[None]:
        """Around what only a bounded number does at once.

        :raises Refusal: where there are as many.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(places.taken(self._guest))
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

    def _refuse(
        self,
        status: int,
        message: str,
        headers: t.Mapping[str, str] | None = None,
        more: t.Mapping[str, t.Any] | None = None,
    ) -> None:
        # it ends without its last chunk, so the reader knows that it is not whole
        if self._streaming:
            self.server.log(f"{self.path}: an answer was broken off: {message}")
            self.close_connection = True
            return
        self._answer(status, _JSON, _error_body(message, more), headers)

    def _answer(
        self, status: int, kind: str, body: bytes, headers: t.Mapping[str, str] | None = None
    ) -> None:
        """Send an answer whose length is known."""
        self._head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.write(body)

    def _head(self, status: int, kind: str, headers: t.Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        if self._unread:  # what was not read is no request
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _stream(self, kind: str, produce: t.Callable[[Put], object]) -> None:
        """Send what ``produce`` puts, piece by piece. The head goes with the first one, so that
        what fails before is answered with an error.
        """
        chunked = self.request_version != "HTTP/1.0"

        def put(piece: bytes) -> None:
            if not self._streaming:
                if not chunked:
                    self.close_connection = True
                self._streaming = True
                self._head(200, kind, {"Transfer-Encoding": "chunked"} if chunked else {})
            # flow_table lets it rest while it reads, which may take as long here as the reader
            # likes
            gc.enable()
            if piece:
                self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

        if self.command == "HEAD":
            self._head(200, kind, {"Transfer-Encoding": "chunked"} if chunked else {})
            return
        produce(put)
        if chunked:
            self.write(b"0\r\n\r\n")

    def _read_body(self) -> bytes:
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
        self._unread = False
        return body

    # ------------------------------------------------------------ what there is
    def _flows(self, text: str) -> None:
        words = parse_or_refuse(
            text, (*(word for word in flow_filter.QUERY_WORDS if word != "group_by"), *_FORM_WORDS)
        )
        with _asked():
            form = words.pop("output", "json")
            if form not in flow_output.FORMATS:
                raise bad_value("output", form, f"give one of {', '.join(flow_output.FORMATS)}")
            extended, window = (
                flow_filter.flag(word, words.pop(word, "") or "true") if word in words else False
                for word in ("extended", "window")
            )
            query = flow_filter.parse_query(words)
            writer = flow_output.writer(form, query.fields, extended, window)
            if extended and form != "conntrack":
                raise bad_value("extended", True, "it belongs to output=conntrack")
        self._list(_MEDIA[form], query, writer, window)

    def _list(
        self, kind: str, query: flow_filter.Query, writer: flow_output.Writer, window: bool = False
    ) -> None:
        """Stream flows."""
        all_sorted = query.sort is not None and (query.limit is None or query.limit > SORTED)
        with contextlib.ExitStack() as held:
            held.enter_context(
                self._place(self.server.readers, "requests for flows are being answered")
            )
            if all_sorted:
                held.enter_context(
                    self._place(
                        self.server.sorters,
                        f"request has all flows sorted (give a limit of at most {SORTED}, or leave"
                        " sort out)",
                    )
                )
            tables = self._read_for_client(
                held.enter_context(flow_table.FlowTables(self.server.paths.pin_root))
            )
            self._stream(
                kind,
                lambda put: flow_read.read(
                    tables,
                    query,
                    writer,
                    put,
                    summary=False,
                    window=window,
                    listing=False,
                    most_sorted=MOST_SORTED if all_sorted else None,
                ),
            )

    def _summary(self, text: str) -> None:
        words = parse_or_refuse(text, (*flow_filter.FILTER_WORDS, "group_by", "limit"))
        with _asked():
            query = flow_filter.parse_query(words)
            if "limit" in words and not query.group_by:
                raise ConntrackError(
                    "limit: it belongs to group_by; leave it out, or say by what to group."
                )
        if not query.group_by:
            query = flow_filter.Query(query.filters, limit=0)
        with (
            self._place(self.server.summaries, "summaries are asked for"),
            self._turn(),
            flow_table.FlowTables(self.server.paths.pin_root) as tables,
        ):
            reading = flow_read.read(self._read_for_client(tables), query, most_groups=MOST_GROUPS)
        found = t.cast("dict[str, t.Any]", reading.summary)
        if query.group_by:
            found = {**found, "groups": reading.groups, "group_count": reading.group_count}
        self._answer(200, _JSON, f"{flow_output.dumps(found)}\n".encode())

    @contextlib.contextmanager
    def _turn(self) -> t.Iterator[None]:
        """Around the one summary that is made at a time.

        :raises Refusal: where that takes too long.
        """
        deadline = time.monotonic() + _TURN_SECONDS
        while not self.server.summing.acquire(timeout=_LOOK_SECONDS):
            self._here()
            if time.monotonic() > deadline:
                raise Refusal(
                    503,
                    f"another summary has been made for {_TURN_SECONDS:g} s. Try again later.",
                    {"Retry-After": "10"},
                )
        try:
            yield
        finally:
            self.server.summing.release()

    def _healthz(self, text: str) -> None:
        parse_or_refuse(text, ())
        try:
            found = self.server.health.get()
        except ConntrackError as exc:
            raise Refusal(
                503, exc.message, body={"healthy": False, "generation": None, "faults": []}
            ) from exc
        if not found["healthy"]:
            raise Refusal(
                503,
                "; ".join(f"{fault['fault']} {fault['object']}" for fault in found["faults"]),
                body=found,
            )
        self._answer(200, _JSON, f"{flow_output.dumps(found)}\n".encode())

    def _metrics(self, text: str) -> None:
        parse_or_refuse(text, ())
        from .. import metrics as ct_metrics

        try:
            with self._place(self.server.scrapes, "requests for metrics are being answered"):
                body, kind = self.server.exporter.answer(self.head.get("Accept"))
        except ct_metrics.NoLibrary as exc:
            raise Refusal(501, exc.message) from exc
        self._answer(200, kind, body)

    def _forward(self, text: str) -> None:
        """Answer the one request that the original knows."""
        parse_or_refuse(text, ())
        body = self._read_body()
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict) or not isinstance(asked.get("traceId", ""), str):
            raise _forward_refusal(
                400, _BAD_JSON, 'the body is no request in JSON: send {"action": "QueryForward"}.'
            )
        trace, action = asked.get("traceId", ""), asked.get("action", "")
        if any("\ud800" <= sign <= "\udfff" for sign in trace):
            raise _forward_refusal(
                400,
                _BAD_JSON,
                f"traceId: {trace[:100]!r} is not valid: half of a surrogate pair is no text; leave"
                " it out.",
            )
        if action != "QueryForward":
            shown = repr(action[:100]) if isinstance(action, str) else "what is given"
            raise _forward_refusal(
                400, _BAD_ACTION, f"action: {shown} is not known: send QueryForward.", trace
            )
        try:
            self._list(_JSON, flow_filter.parse_query({}), ForwardWriter(trace))
        except Refusal:
            raise
        except ConntrackError as exc:
            if self._streaming:
                raise
            raise _forward_refusal(503, _NO_ANSWER, exc.message, trace) from exc


#: What is answered: by path the methods, and what answers them.
ROUTES: dict[str, dict[str, t.Callable[[_Handler, str], None]]] = {
    "/flows": {"GET": _Handler._flows},
    "/summary": {"GET": _Handler._summary},
    "/metrics": {"GET": _Handler._metrics},
    "/healthz": {"GET": _Handler._healthz},
    "/": {"POST": _Handler._forward},
}


@contextlib.contextmanager
def _asked() -> t.Iterator[None]:
    """Around what only looks at the request: an error there is the client's."""
    try:
        yield
    except Refusal:
        raise
    except ConntrackError as exc:
        raise Refusal(400, exc.message) from exc


def parse_or_refuse(text: str, known: t.Collection[str]) -> dict[str, t.Any]:
    """Return the words of a query; see parse_words().

    :raises Refusal: when they are wrong.
    """
    with _asked():
        return parse_words(text, known)


def _is_loopback(host: str) -> bool:
    """Whether a header Host names this host by a loopback address."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- the original's request
def _forward_refusal(status: int, code: int, message: str, trace: str = "") -> Refusal:
    said = {
        "errors": [{"code": code, "msg": message}],
        "code": _FORWARD_FAILED,
        **({"traceId": trace} if trace else {}),
    }
    return Refusal(status, message, body=said)


def forward_line(shape: flow.Shape, v: flow.Values) -> str:
    """Return a flow as the original's answer has it: first what the initiator sends, then what
    comes back.

    ``rx`` is what the initiator sent, ``tx`` what it got. ICMP errors that quote the flow are
    counted for both directions together, and stand with the first.
    """
    state = _FORWARD_STATES.get(shape.state, shape.state.lower())
    # the id of an ICMP query is the port of the side that asks
    ports = (
        (v[flow.SPORT], v[flow.DPORT])
        if shape.ported
        else (v[flow.SPORT], 0)
        if shape.icmp
        else (0, 0)
    )

    def half(
        first: int, ports: tuple[object, object], way: str, packets: object, octets: object
    ) -> str:
        src, dst, dummy, dummy, number, size = v[first : first + 6]
        return (
            f"{state} period={v[flow.TIMEOUT]} src={src} dst={dst} sport={ports[0]}"
            f" dport={ports[1]} {way}bytes={size} {way}pkts={number} {way}relbytes={octets}"
            f" {way}relpkts={packets}"
        )

    there = half(flow.SRC, ports, "rx", v[flow.RELATED_PACKETS], v[flow.RELATED_BYTES])
    return f"{shape.proto} {there} {half(flow.REPLY_SRC, (ports[1], ports[0]), 'tx', 0, 0)}"


class ForwardWriter(flow_output.JsonWriter):
    """The answer to QueryForward: an object whose ``Conn`` has a line for each flow.

    :param trace: what the client calls its request.
    """

    def __init__(self, trace: str) -> None:
        super().__init__()
        self._head = flow_output.dumps(
            {"code": _FORWARD_OK, **({"traceId": trace} if trace else {}), "Conn": []}
        )[:-2]

    def begin(self) -> bytes:
        """Return all that stands before the first line."""
        return self._head.encode()

    def line(self, item: flow.Flow) -> str:
        """Return the line of one flow, with what parts it from the one before."""
        return ",\n" + flow_output.dumps(forward_line(item[0], item[1]))

    def end(self) -> bytes:
        """Close the list and the object."""
        return super().end()[:-1] + b"}\n"


# ---------------------------------------------------------------- alone
def serve(paths: bpffs.Paths, address: Address, say: t.Callable[[str], object]) -> None:
    """Serve until the process is told to end (SIGTERM, SIGINT).

    :param say: takes a line once requests are answered.
    """
    with stop.Stop() as ending, Server(paths, address) as server:
        server.start()
        say(f"listening on {server.where}")
        ending.wait(None)
