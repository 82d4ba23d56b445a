# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients can make the server do is bounded, and a request is what RFC 9112 lets it be; on
made-up tables.

tests/e2e/test_http.py has the answers, on real ones.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import socket
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    exchange as http_exchange,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import peer as http_peer
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import room as http_room
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    routes as http_routes,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    server as http_server,
)
from ansible_collections.ebpf.conntrack.tests.unit import flow_fakes as fakes

SECONDS = 20
HEAD = "Host: ct\r\nConnection: close\r\n\r\n"


class Tables(fakes.FakeTables):
    """Tables that can be endless, and count how often they are read."""

    open = 0
    most_open = 0
    read = 0
    lock = threading.Lock()

    def __init__(self, rows: c.Iterable[tuple[bytes, bytes]], endless: bool = False) -> None:
        super().__init__({"ctt": rows})
        self.endless = endless

    def __enter__(self) -> Tables:
        with Tables.lock:
            Tables.open += 1
            Tables.most_open = max(Tables.open, Tables.most_open)
        return self

    def __exit__(self, *dummy: object) -> None:
        with Tables.lock:
            Tables.open -= 1

    def batches(
        self, opened: flow_table.OpenTable
    ) -> c.Iterator[tuple[int, memoryview, memoryview]]:
        Tables.read += 1
        while True:
            yield from super().batches(opened)
            if not self.endless:
                return
            time.sleep(0.002)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> c.Iterator[c.Callable[..., None]]:
    """Lets the server read these flows."""
    Tables.open = Tables.most_open = Tables.read = 0

    def use(rows: c.Iterable[tuple[bytes, bytes]], endless: bool = False) -> None:
        kept = list(rows)
        monkeypatch.setattr(flow_table, "FlowTables", lambda pin_root: Tables(kept, endless))

    use(fakes.entry(sport=number) for number in range(1, 10))
    yield use


@pytest.fixture
def server(tmp_path: pathlib.Path) -> c.Iterator[http_server.Server]:
    """On a unix socket."""
    with serving(service_options.Address(str(tmp_path / "s"))) as made:
        yield made


@pytest.fixture
def tcp() -> c.Iterator[http_server.Server]:
    """On a loopback address."""
    with serving(service_options.Address("", host="127.0.0.1")) as made:
        yield made


@contextlib.contextmanager
def serving(address: service_options.Address) -> c.Iterator[http_server.Server]:
    log: list[str] = []
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(
            http_server.Server(bpffs.Paths("/sys/fs/bpf/nothing_here"), address, log=log.append)
        )
        made.start()
        try:
            yield made
        finally:
            stack.close()
    assert log == []


def dial(server: http_server.Server, text: str | bytes = "") -> socket.socket:
    made = socket.socket(server.address_family)
    made.settimeout(SECONDS)
    made.connect(server.socket.getsockname())
    made.sendall(text.encode() if isinstance(text, str) else text)
    return made


def everything(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            found += piece
    return found


def send(server: http_server.Server, text: str | bytes) -> tuple[int, bytes]:
    """Status and body of the answer to what is a request, or ought to be none; it closes the
    connection.
    """
    with dial(server, text) as connection:
        found = everything(connection)
    head, dummy, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ") and len(re.findall(rb"HTTP/1\.1 \d", found)) == 1, (
        text,
        found,
    )
    return int(head.split()[1]), body


def get(server: http_server.Server, target: str) -> tuple[int, dict[str, t.Any]]:
    host = "127.0.0.1" if server.address.host else "ct"
    status, body = send(server, f"GET {target} HTTP/1.0\r\nHost: {host}\r\n\r\n")
    return status, json.loads(body)


def until(what: c.Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---------------------------------------------------------------- a request is what the RFC lets it
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: ct\r\n\r\n"
BODY = '{"action": "QueryForward"}'
POST = f"POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        # whom it is for
        ("GET /flows HTTP/1.1\r\n\r\n", 400, "Host: it is missing"),
        ("GET /flows HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host: it is given 2 times"),
        ("GET /flows HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n", 400, "Host: it is given 2 times"),
        ("GET /flows HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host: it is given 2 times"),
        ("GET /flows HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host: 'a b' is not valid"),
        ("GET /flows HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "is not valid"),
        ("GET /flows HTTP/1.1\r\nHost: user@ct\r\n\r\n", 400, "is not valid"),
        ("GET http:///flows HTTP/1.1\r\nHost: ct\r\n\r\n", 400, "is no address"),
        ("GET http://user@ct/flows HTTP/1.1\r\nHost: ct\r\n\r\n", 400, "is no address"),
        ("GET ftp://ct/flows HTTP/1.1\r\nHost: ct\r\n\r\n", 400, "is no address"),
        ("GET /flows#x HTTP/1.1\r\nHost: ct\r\n\r\n", 400, "fragment"),
        # where it ends
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345"
            + SMUGGLED,
            400,
            "Content-Length: it is given 2 times",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n12345"
            + SMUGGLED,
            400,
            "Content-Length: it is given 2 times",
        ),
        (
            "GET /flows HTTP/1.1\r\nHost: ct\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n"
            + SMUGGLED,
            400,
            "Content-Length: it is given 2 times",
        ),
        *(
            (
                f"POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: {value}\r\n\r\n{SMUGGLED}",
                400,
                "Content-Length: ",
            )
            for value in (
                "",
                "+5",
                "-1",
                "5, 5",
                "5 5",
                "0x5",
                "1e1",
                "5;",
                "\u0665".encode().decode("latin-1"),
            )
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: 5\r\nTransfer-Encoding:"
            " chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
            400,
            "Transfer-Encoding: ",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nTransfer-Encoding: chunked\r\nContent-Length:"
            " 0\r\n\r\n0\r\n\r\n" + SMUGGLED,
            400,
            "Transfer-Encoding: ",
        ),
        (
            "GET /flows HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
            400,
            "Transfer-Encoding: ",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nTransfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
            411,
            "Content-Length",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nTransfer-Encoding : chunked\r\nContent-Length:"
            " 5\r\n\r\n12345" + SMUGGLED,
            400,
            "no space before the colon",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nContent-Length : 5\r\n\r\n12345" + SMUGGLED,
            400,
            "no space before the colon",
        ),
        (
            "POST / HTTP/1.1\r\nHost: ct\r\nX: y\r\n Content-Length: 5\r\n\r\n12345" + SMUGGLED,
            400,
            "goes on in a second line",
        ),
        ("GET /flows HTTP/1.1\r\n Host: ct\r\n\r\n", 400, "goes on in a second line"),
        ("GET /flows HTTP/1.1\nHost: ct\n\n" + SMUGGLED, 400, "ends with LF"),
        ("GET /flows HTTP/1.1\r\nHost: ct\nX: y\r\n\r\n", 400, "ends with LF"),
        (
            "GET /flows HTTP/1.1\r\nHost: ct\r\nX: y\rContent-Length: 5\r\n\r\n",
            400,
            "control characters",
        ),
        ("GET /flows HTTP/1.1\r\nHost: ct\r\nX: a\0b\r\n\r\n", 400, "control characters"),
        ("GET /flows HTTP/1.1\r\nHost: ct\r\nno colon\r\n\r\n", 400, "is no header"),
        ("GET /flows HTTP/1.1\r\nHost: ct\r\n: no name\r\n\r\n", 400, "is no header"),
        (
            "GET /flows HTTP/1.1\r\nHost: ct\r\nExpect: a miracle\r\nX: y\r\n\r\n".replace(
                "GET /flows", "POST /"
            ).replace("X: y", "Content-Length: 2"),
            417,
            "Expect",
        ),
        # the request line
        ("GET  /flows HTTP/1.1\r\n" + HEAD, 400, "single spaces"),
        ("GET /flows  HTTP/1.1\r\n" + HEAD, 400, "single spaces"),
        ("GET\t/flows HTTP/1.1\r\n" + HEAD, 400, "no request line"),
        (" GET /flows HTTP/1.1\r\n" + HEAD, 400, "no request line"),
        ("GET /fl\0ws HTTP/1.1\r\n" + HEAD, 400, "no request line"),
        ("GET /fl\u00f6ws HTTP/1.1\r\n" + HEAD, 400, "in ASCII"),
        ("GET /flows http/1.1\r\n" + HEAD, 400, "no request line"),
        ("GET /flows HTTP/1.10\r\n" + HEAD, 400, "no request line"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "Invalid HTTP version"),
        ("get /flows HTTP/1.1\r\n" + HEAD, 501, "Unsupported method"),
        ("\r\n\r\nGET /flows HTTP/1.1\r\n" + HEAD, 400, "no request line"),
        (f"GET /flows HTTP/1.1\r\nHost: ct\r\nX: {'y' * 70_000}\r\n\r\n", 431, "65"),
        ("GET /flows HTTP/1.1\r\nHost: ct\r\n" + f"X: {'y' * 700}\r\n" * 99 + "\r\n", 431, ""),
        ("GET /flows%00 HTTP/1.1\r\n" + HEAD, 404, "/flows%00: there is nothing here"),
        ("GET /flows?proto=%00 HTTP/1.1\r\n" + HEAD, 400, "proto: '\\\\x00' is not valid"),
        ("GET //flows HTTP/1.1\r\n" + HEAD, 404, "//flows: there is nothing here"),
        ("GET /../flows HTTP/1.1\r\n" + HEAD, 404, "nothing here"),
    ],
)
def test_what_is_no_request(
    server: http_server.Server, tables: object, text: str, status: int, words: str
) -> None:
    """It is answered once, and nothing after it is taken for a request."""
    found, body = send(server, text.encode("latin-1"))
    assert (found, list(json.loads(body))) == (status, ["error"]) and words in body.decode(), body


@pytest.mark.parametrize(
    "text",
    [
        "\r\nGET /flows?limit=1 HTTP/1.1\r\n" + HEAD,
        "GET http://ct/flows?limit=1 HTTP/1.1\r\nhost: other\r\nconnection: CLOSE\r\n\r\n",
        "GET /flows?limit=1 HTTP/1.0\r\n\r\n",
        "GET /flows?limit=1 HTTP/1.9\r\n" + HEAD,
        (
            "GET /flows?limit=1 HTTP/1.1\r\nHost:ct\r\nX: \xfc\t. \r\nX:\r\nConnection: a,"
            " close\r\n\r\n"
        ),
        "GET /flows?limit=1 HTTP/1.1\r\nContent-Length: 000\r\n" + HEAD,
        f"{POST}\r\n{BODY}",
    ],
)
def test_what_is_a_request(server: http_server.Server, tables: object, text: str) -> None:
    assert send(server, text.encode("latin-1"))[0] == 200


def test_a_whole_url_names_the_host(tcp: http_server.Server, tables: object) -> None:
    """In place of the header, which a page in a browser cannot set either; both are looked at."""
    for target, host, status in (
        ("http://127.0.0.1/flows", "127.0.0.1", 200),
        ("http://ct.example.org/flows", "127.0.0.1", 421),
        ("http://127.0.0.1/flows", "ct.example.org", 421),
        ("/flows", "[", 421),
    ):
        assert (
            send(tcp, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")[0]
            == status
        ), (target, host)


def test_whoever_waits_to_send_is_asked_to_go_on(
    server: http_server.Server, tables: object
) -> None:
    with dial(server, f"{POST}Expect: 100-continue\r\n\r\n") as connection:
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY.encode())
        assert b"200 OK" in everything(connection)
    assert (
        send(server, f"POST / HTTP/1.1\r\nContent-Length: 70000\r\nExpect: 100-continue\r\n{HEAD}")[
            0
        ]
        == 413
    )


@pytest.mark.parametrize("size", [http_exchange.BODY_BYTES, http_exchange.BODY_BYTES + 1])
def test_the_largest_body(server: http_server.Server, tables: object, size: int) -> None:
    text = (
        f"POST / HTTP/1.1\r\nContent-Length: {size}\r\n{HEAD}".encode() + BODY.ljust(size).encode()
    )
    assert send(server, text)[0] == (200 if size == http_exchange.BODY_BYTES else 413)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (
            b'{"action": "QueryForward", "traceId": "\\ud800"}',
            400,
            "traceId: '\\\\ud800' is not valid",
        ),
        (b'{"action": "QueryForward", "traceId": "a\\udfffb"}', 400, "traceId: "),
        (b'{"action": "QueryForward", "traceId": "\\ud83d\\ude00"}', 200, "\U0001f600"),
        (b'{"action": "\\ud800", "traceId": "x"}', 400, "is not known"),
        (b'{"action": "\\ud800", "traceId": "\\ud800"}', 400, "traceId: "),
        (b'{"action": ' + b"[" * 400 + b"]" * 400 + b"}", 400, "is not known"),
        (b"[" * 60_000, 400, "no request in JSON"),
        (b'{"action": 1e999}', 400, "is not known"),
        (b'{"action": "' + b"x" * 60_000 + b'"}', 400, "is not known"),
        (b'{"traceId": 1, "action": "QueryForward"}', 400, "no request in JSON"),
        (b'{"traceId": "\xff"}', 400, "no request in JSON"),
        (b"\xff\xfe\x00", 400, "no request in JSON"),
    ],
)
def test_whatever_stands_in_a_body_has_an_answer(
    server: http_server.Server, tables: object, body: bytes, status: int, words: str
) -> None:
    found, answer = send(
        server, f"POST / HTTP/1.0\r\nContent-Length: {len(body)}\r\n{HEAD}".encode() + body
    )
    assert found == status and words in answer.decode() and len(answer) < 4000, answer[:500]
    json.loads(answer)


def test_what_nobody_foresaw_has_an_answer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def fail(pin_root: str) -> t.NoReturn:
        raise KeyError("a fault")

    monkeypatch.setattr(flow_table, "FlowTables", fail)
    with http_server.Server(
        bpffs.Paths("/x"), service_options.Address(str(tmp_path / "s")), log=log.append
    ) as server:
        server.start()
        assert get(server, "/summary")[0] == get(server, "/flows")[0] == 500
    assert log == ["/summary: KeyError: 'a fault'", "/flows: KeyError: 'a fault'"]


def test_pipelined_requests_are_answered_in_their_order(
    server: http_server.Server, tables: object
) -> None:
    one = "GET /flows?limit=0&output=csv HTTP/1.1\r\nHost: ct\r\n\r\n"
    with dial(
        server,
        f"{POST.replace('Connection: close', 'X: y')}\r\n{BODY}{one}GET /nothing HTTP/1.1\r\nHost:"
        f" ct\r\n\r\nGET /flows HTTP/1.1\r\n\r\n{one}",
    ) as connection:
        found = everything(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", found) == [b"200", b"200", b"404", b"400"]


# ---------------------------------------------------------------- a client that leaves
@pytest.mark.parametrize(
    "target",
    [
        "/summary",
        "/summary?group_by=src",
        "/flows?sort=bytes&limit=1",
        "/flows?src=192.0.2.1",
        "/flows?output=jsonl",
    ],
)
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_what_it_asked_for_is_given_up(
    request: pytest.FixtureRequest, tables: c.Callable[..., None], kind: str, target: str
) -> None:
    """The table never ends; only that nobody is there any more does."""
    server: http_server.Server = request.getfixturevalue("server" if kind == "unix" else "tcp")
    tables([fakes.entry(sport=number) for number in range(1, 10)], endless=True)
    with dial(server, f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        until(lambda: Tables.read)
        assert Tables.open == 1
    until(lambda: Tables.open == 0)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_whoever_only_sends_no_more_is_answered(
    request: pytest.FixtureRequest, tables: object, kind: str
) -> None:
    """As nc -N does, and socat."""
    server: http_server.Server = request.getfixturevalue("server" if kind == "unix" else "tcp")
    for target in ("/summary", "/flows"):
        with dial(server, f"GET {target} HTTP/1.0\r\n\r\n") as connection:
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 OK" in everything(connection)


def test_abandoned_summaries_keep_nobody_waiting(
    server: http_server.Server, tables: c.Callable[..., None]
) -> None:
    tables([fakes.entry()], endless=True)
    for dummy in range(30):
        with dial(server, f"GET /summary?group_by=src HTTP/1.1\r\n{HEAD}"):
            pass
    tables([fakes.entry()])
    began = time.monotonic()
    assert (
        get(server, "/summary?group_by=src")[1]["group_count"] == 1 and time.monotonic() - began < 5
    )
    assert Tables.most_open <= 1


def test_summaries_have_a_bound(server: http_server.Server, tables: c.Callable[..., None]) -> None:
    """One is made at a time, some wait for it, and others are told to ask again later."""
    tables([fakes.entry()], endless=True)
    with contextlib.ExitStack() as held:
        for dummy in range(http_routes.SUMMARIES):
            held.enter_context(dial(server, f"GET /summary HTTP/1.1\r\n{HEAD}"))
        until(lambda: len(server.shared.summaries) == http_routes.SUMMARIES)
        status, body = get(server, "/summary")
        assert status == 503 and body["error"].startswith(
            f"{http_routes.SUMMARIES} summaries are asked for, which is as many as are at once"
        )
        assert Tables.most_open == 1 and get(server, "/flows?limit=1")[0] == 200
    until(lambda: not len(server.shared.summaries))


def test_groups_and_sorting_have_a_bound(
    server: http_server.Server, tables: c.Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_routes, "MOST_GROUPS", 20)
    monkeypatch.setattr(http_routes, "MOST_SORTED", 20)
    for number, status in ((20, 200), (21, 422)):
        tables(fakes.entry(sport=port) for port in range(1, number + 1))
        found, body = get(server, "/summary?group_by=src,sport&limit=1")
        assert found == status and (
            body["group_count"] == 20
            if status == 200
            else "group_by: src,sport makes more than 20 groups" in body["error"]
        )
        assert get(server, "/summary?group_by=src")[1]["group_count"] == 1
        found, listed = get(server, "/flows?sort=sport")
        assert found == status and (
            len(listed) == 20
            if status == 200
            else "sort: more than 20 flows match" in listed["error"]
        )
        assert (
            get(server, "/flows?sort=sport&limit=5")[0]
            == get(server, "/flows?sort=sport&sport=7")[0]
            == 200
        )


# ---------------------------------------------------------------- room
def healthy(server: http_server.Server) -> bool:
    """Whether it is answered: here, that there is no chain."""
    status, body = get(server, "/healthz")
    return status == 503 and "healthy" in body


SLOW = {
    "silent": "",
    "in the head": "GET /hea",
    "in the headers": "GET /healthz HTTP/1.1\r\nHost: ",
    "in the body": "POST / HTTP/1.1\r\nHost: ct\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("number", [http_server.CONNECTIONS, 3 * http_server.CONNECTIONS + 5])
@pytest.mark.parametrize("how", list(SLOW))
def test_slow_clients_keep_nobody_out(
    server: http_server.Server, tables: object, how: str, number: int
) -> None:
    with contextlib.ExitStack() as held:
        for dummy in range(number):
            held.enter_context(dial(server, SLOW[how]))
        for dummy in range(3):
            assert healthy(server) and get(server, "/flows?limit=1")[0] == 200
        assert threading.active_count() < 3 * http_server.CONNECTIONS


def test_who_takes_no_answer_goes_when_there_is_no_room(
    server: http_server.Server, tables: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_room, "STALLED_SECONDS", 0.05)
    asked = "GET /healthz HTTP/1.1\r\nHost: ct\r\n\r\n" * 20_000
    with contextlib.ExitStack() as held:
        for dummy in range(http_server.CONNECTIONS):
            made = held.enter_context(dial(server))
            made.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for at in range(0, len(asked), 4096):
                    made.sendall(asked[at : at + 4096].encode())
        until(lambda: healthy(server))


def test_what_is_worked_on_is_never_cut(
    server: http_server.Server, tables: c.Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS", 3)
    server._room.total = 3
    tables([fakes.entry()], endless=True)
    with contextlib.ExitStack() as held:
        for dummy in range(3):
            held.enter_context(dial(server, f"GET /flows?src=192.0.2.1 HTTP/1.1\r\n{HEAD}"))
        until(lambda: Tables.open == 3)
        status, body = get(server, "/healthz")
        assert (
            status == 503
            and "3 connections are open, which is as many as are served at once" in body["error"]
        )
        assert Tables.open == 3
    until(lambda: Tables.open == 0)


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    """Who is at the other end from now on."""
    now: dict[str, t.Any] = {"peer": http_peer.Peer("uid 1000", False)}
    monkeypatch.setattr(http_peer, "of", lambda connection, address: now["peer"])
    return now


def test_each_user_has_a_share(
    server: http_server.Server, tables: c.Callable[..., None], users: dict[str, t.Any]
) -> None:
    """What one takes is not all, whatever it is; root is not bounded so."""
    tables([fakes.entry()], endless=True)
    with contextlib.ExitStack() as held:
        for dummy in range(http_routes.EACH_READERS):
            held.enter_context(dial(server, f"GET /flows?src=192.0.2.1 HTTP/1.1\r\n{HEAD}"))
        until(lambda: Tables.open == http_routes.EACH_READERS)
        for dummy in range(http_routes.EACH_SUMMARIES):
            held.enter_context(dial(server, f"GET /summary HTTP/1.1\r\n{HEAD}"))
        until(lambda: len(server.shared.summaries) == http_routes.EACH_SUMMARIES)
        assert (
            "for this user, which is as many as one has at once"
            in get(server, "/flows?limit=1")[1]["error"]
        )
        assert "for this user" in get(server, "/summary")[1]["error"]
        users["peer"] = http_peer.Peer("uid 1001", False)
        assert get(server, "/flows?limit=1")[0] == 200
        users["peer"] = http_peer.Peer("uid 0", True)
        for dummy in range(http_routes.READERS - http_routes.EACH_READERS):
            held.enter_context(dial(server, f"GET /flows?src=192.0.2.1 HTTP/1.1\r\n{HEAD}"))
        until(lambda: len(server.shared.readers) == http_routes.READERS)
        assert "as many as are at once" in get(server, "/flows?limit=1")[1]["error"]
    until(lambda: not len(server.shared.readers) + len(server.shared.summaries))


def test_the_connections_of_a_user_make_room_for_its_own(
    server: http_server.Server, tables: object, users: dict[str, t.Any]
) -> None:
    with contextlib.ExitStack() as held:
        own = [
            held.enter_context(dial(server, "GET /"))
            for dummy in range(http_server.EACH_CONNECTIONS)
        ]
        assert healthy(server)
        told = select.select(own, [], [], SECONDS)[0]
        assert len(told) == 1 and b"connections are open" in everything(told[0]), (
            "the one that waited longest is told"
        )
        users["peer"] = http_peer.Peer("uid 1001", False)
        others = [
            held.enter_context(dial(server, "GET /"))
            for dummy in range(http_server.EACH_CONNECTIONS)
        ]
        assert healthy(server) and len(others) == http_server.EACH_CONNECTIONS


# ---------------------------------------------------------------- who it is
def test_a_unix_socket_says_who(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        client.connect(str(tmp_path / "s"))
        with listening.accept()[0] as served:
            assert http_peer.of(served, "") == http_peer.Peer(
                f"uid {os.geteuid()}", True
            ) and not http_peer.gone(served)
            client.shutdown(socket.SHUT_WR)
            assert not http_peer.gone(served)
            client.close()
            assert http_peer.gone(served)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1"])
def test_tcp_on_this_host_says_who(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening, socket.socket(family) as client:
        listening.bind((host, 0))
        listening.listen()
        client.connect(listening.getsockname())
        with listening.accept()[0] as served:
            assert http_peer.of(served, client.getsockname()) == http_peer.Peer(
                f"uid {os.geteuid()}", True
            ) and not http_peer.gone(served)
            client.shutdown(socket.SHUT_WR)
            until(lambda: served.recv(1) == b"")
            assert not http_peer.gone(served), "its process still has the socket"
            client.close()
            assert http_peer.gone(served)


def test_another_user_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user is asked of the kernel; where that does not answer, the address stands for it, and
    its end for its going.
    """
    other = 65534 if os.geteuid() == 0 else os.geteuid()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        pid = os.fork()
        if not pid:
            try:
                os.setuid(other)
                with socket.create_connection(listening.getsockname()) as connection:
                    connection.recv(1)
            finally:
                os._exit(0)
        served, address = listening.accept()
        with served:
            assert http_peer.of(served, address) == http_peer.Peer(
                f"uid {other}", other == os.geteuid()
            )
            monkeypatch.setattr(http_peer, "owner", lambda connection: None)
            assert http_peer.of(served, address) == http_peer.Peer(
                "address 127.0.0.1", False
            ) and not http_peer.gone(served)
        os.waitpid(pid, 0)


def test_http_client_is_content(server: http_server.Server, tables: object) -> None:
    """Python's own client on one connection."""
    connection = http.client.HTTPConnection("ct", timeout=SECONDS)
    connection.sock = dial(server)
    for target, status in (
        ("/flows", 200),
        ("/summary", 200),
        ("/nothing", 404),
        ("/flows?proto=x", 400),
        ("/flows?output=csv", 200),
    ):
        connection.request("GET", target)
        answer = connection.getresponse()
        assert (answer.status, answer.read() != b"") == (status, True)
    connection.close()
