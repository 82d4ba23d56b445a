# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow tables over HTTP, on a unix socket or a loopback address: sockets and connections.

It only reads. A thread serves each connection. What a client can make it do is bounded:
connections, requests that read flows, summaries and their groups, flows that are sorted, the time
for a request to come in and for a piece of an answer to be taken; most of it for each user of the
host besides. What a client that has left asked for is given up. No answer is written while a lock
is held, so a slow reader keeps nobody from anything but its own connection.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import socketserver
import stat
import sys
import threading
import time
import typing as t

from ...core import lock, stop
from ...core.errors import bad_value
from ...kernel import bpffs
from .. import metrics as ct_metrics
from .. import options as service_options
from ..options import Address
from . import peer as http_peer
from . import room as http_room
from . import routes
from .exchange import JSON
from .request import error_body

SOCKET_MODE = 0o660
#: Connections at once, and those of each user of the host, besides root.
CONNECTIONS, EACH_CONNECTIONS = 32, 16
#: Seconds that the end waits for connections to end.
_END_SECONDS = 5.0
_STANDARD = Address()


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
        address: Address = _STANDARD,
        sweeps: ct_metrics.Sweeps | None = None,
        log: t.Callable[[str], object] | None = None,
    ) -> None:
        self.address = address
        self.log = log or _log
        self.shared = routes.Shared(paths, sweeps, self.log)
        self._room = http_room.Room(CONNECTIONS, EACH_CONNECTIONS)
        self._open: dict[threading.Thread, http_room.Guest] = {}
        self._turned_away: collections.deque[socket.socket] = collections.deque()
        self._own: tuple[int, int] | None = None
        self._made_directory = False
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
                super().__init__(where, self._handler)
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

    def _handler(self, dummy: t.Any, client_address: t.Any, server: Server) -> routes.Handler:
        """Return what has answered all requests of the connection that this thread serves."""
        return routes.Handler(
            self.shared,
            self._open[threading.current_thread()],
            not self.address.socket,
            self.log,
            client_address,
            server,
        )

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
    body = error_body(
        f"{number} connections are open{by}, which is as many as are served at once. Try again"
        " later."
    )
    lines = [
        "HTTP/1.1 503 Service Unavailable",
        f"Content-Type: {JSON}",
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


def serve(paths: bpffs.Paths, address: Address, say: t.Callable[[str], object]) -> None:
    """Serve until the process is told to end (SIGTERM, SIGINT).

    :param say: takes a line once requests are answered.
    """
    with stop.Stop() as ending, Server(paths, address) as server:
        server.start()
        say(f"listening on {server.where}")
        ending.wait(None)
