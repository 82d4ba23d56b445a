# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables over HTTP: held against the command ct, on real flows, with clients that are slow,
silent, many, or nobody.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import typing as t
import urllib.parse

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import delete as flow_delete
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpffs
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import (
    options as service_options,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    exchange as http_exchange,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    routes as http_routes,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.service.http import (
    server as http_server,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import (
    NOBODY,
    Ct,
    ct,
    installed,
    lines_of,
    still,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import FLOWS, empty_one_slot, running

__all__ = ["ct", "installed", "made", "rendered", "running", "veth"]  # fixtures

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(60)]

#: A group that every system has, and nobody in it.
GROUP = "games"
SECONDS = 20


class Answer(t.NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> t.Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error."""
        return str(self.json()["error"])


class Connection(http.client.HTTPConnection):
    """To a unix socket, or to a URL."""

    def __init__(self, where: str) -> None:
        url = urllib.parse.urlsplit(where)
        super().__init__(url.hostname or "localhost", url.port or 80, timeout=SECONDS)
        self._path = "" if url.scheme else where

    def connect(self) -> None:
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def ask(
    where: str, target: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> Answer:
    """One request, on a connection of its own."""
    connection = Connection(where)
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def dial(where: str, text: str = "") -> socket.socket:
    """A connection on which this much was sent."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(SECONDS)
    made.connect(where)
    made.sendall(text.encode())
    return made


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@contextlib.contextmanager
def serving(ct: Ct, *words: str) -> c.Iterator[str]:
    """Run ``ct serve``; give where it listens. It ends on a signal, and says nothing else."""
    with subprocess.Popen(
        ct.argv("serve", *words), env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert (
                process.stdout is not None and select.select([process.stdout], [], [], SECONDS)[0]
            )
            line = process.stdout.readline()
            assert line.startswith("listening on "), process.communicate()[1]
            yield line.rsplit(" ", 1)[1].strip()
            assert process.poll() is None
        finally:
            process.terminate()
            out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture
def place() -> c.Iterator[str]:
    """The path of a socket that other users can reach."""
    directory = tempfile.mkdtemp(prefix="ct_http_")
    os.chmod(directory, 0o755)
    yield os.path.join(directory, "ct.sock")
    shutil.rmtree(directory)


@pytest.fixture
def served(ct: Ct, place: str) -> c.Iterator[str]:
    """The command serves three flows."""
    with serving(ct, "--socket", place, "--group", GROUP) as where:
        assert where == place
        yield where


@dataclasses.dataclass
class Here:
    """A server in this process."""

    where: str
    log: list[str]


@contextlib.contextmanager
def here(paths: t.Any, place: str) -> c.Iterator[Here]:
    log: list[str] = []
    with http_server.Server(paths, service_options.parse_address(place), log=log.append) as server:
        server.start()
        yield Here(place, log)
    assert not os.path.exists(place)


def fill(wire: Wire, number: int) -> None:
    """Make half-open flows."""
    with bpf.closing(bpf.obj_get(wire.chain.paths.prog(chain_programs.SLOTS["ingress"]))) as entry:
        for sport in range(20_000, 20_000 + number):
            bpf.prog_test_run(entry, udp_frame(sport))
    wire.chain.recount()


# ---------------------------------------------------------------- what is answered
def test_flows_are_what_ct_list_prints(ct: Ct, served: str) -> None:
    fields = "proto,state,src,dst,sport,dport,bytes,reply.packets,dir"
    asked = {
        "": (),
        "proto=tcp": ("--proto", "tcp"),
        "proto=tcp,icmp&state=established&state=REPLIED": (
            "--proto",
            "tcp,icmp",
            "--state",
            "established",
            "--state",
            "REPLIED",
        ),
        f"src={CLIENT}/32&dport={PORT}&assured": (
            "--src",
            f"{CLIENT}/32",
            "--dport",
            str(PORT),
            "--assured",
        ),
        "sort=-bytes&limit=2": ("--sort=-bytes", "--limit", "2"),
        f"addr={SERVER}&min_bytes=100&idle_for=0&sort=bytes": (
            "--addr",
            SERVER,
            "--min-bytes",
            "100",
            "--idle-for",
            "0",
            "--sort",
            "bytes",
        ),
        "dst=192.0.2.0%2F24": ("--dst", "192.0.2.0/24"),
    }
    kinds = {
        "json": "application/json",
        "jsonl": "application/x-ndjson",
        "csv": "text/csv",
        "table": "text/plain",
    }
    for (query, words), (form, kind) in zip(asked.items(), itertools.cycle(kinds.items())):
        answer = ask(served, f"/flows?output={form}&fields={fields}&{query}")
        assert (
            answer.status,
            answer.headers["Content-Type"].partition(";")[0],
            answer.headers["Transfer-Encoding"],
        ) == (200, kind, "chunked")
        assert answer.body.decode() == ct("list", "-o", form, "--fields", fields, *words), (
            form,
            query,
        )
    assert still(ask(served, "/flows").json()) == still(ct.json("list"))
    assert lines_of(ask(served, "/flows?output=conntrack").body.decode()) == lines_of(
        ct("list", "-o", "conntrack")
    )
    assert len(ask(served, "/flows").json()) == 3
    assert "td_end" in ask(served, "/flows?proto=tcp&window").json()[0]["window"]["orig"]
    assert ask(served, "/flows?output=conntrack&extended=true&proto=udp").body.startswith(
        b"ipv4     2 udp"
    )


def test_summary_is_that_of_ct(ct: Ct, served: str) -> None:
    for query, words in (("", ()), ("?proto=tcp", ("--proto", "tcp"))):
        assert {**ask(served, f"/summary{query}").json(), "clock": 0} == {
            **ct.json("summary", *words),
            "clock": 0,
        }
    found = ask(served, "/summary?group_by=proto&limit=2").json()
    assert (found["groups"], found["group_count"]) == (
        ct.json("count", "--group-by", "proto", "--limit", "2")["groups"],
        3,
    )


def test_the_original_is_answered(served: str, ct: Ct) -> None:
    answer = ask(served, "/", "POST", b'{"action": "QueryForward", "traceId": "a\\"b"}').json()
    assert (answer["code"], answer["traceId"], list(answer)) == (
        200,
        'a"b',
        ["code", "traceId", "Conn"],
    )
    lines = {line.split()[0]: line.split() for line in answer["Conn"]}
    assert set(lines) == {"tcp", "udp", "icmp"}
    for record in ct.json("list"):
        there = lines[record["proto"]]
        state = {"ESTABLISHED": "est", "REPLIED": "rpl"}[record["state"]]
        half = len(there) // 2 + 1
        for words, side, way in ((there[1:half], "orig", "rx"), (there[half:], "reply", "tx")):
            wanted = record[side]
            sport, dport = wanted.get("sport", 0), wanted.get("dport", 0)
            if "icmp" in record:
                sport, dport = (
                    (record["icmp"]["id"], 0) if side == "orig" else (0, record["icmp"]["id"])
                )
            assert (
                words[0] == state and abs(int(words[1].partition("=")[2]) - record["timeout"]) <= 2
            )
            assert words[2:6] == [
                f"src={wanted['src']}",
                f"dst={wanted['dst']}",
                f"sport={sport}",
                f"dport={dport}",
            ]
            assert words[6:] == [
                f"{way}bytes={wanted['bytes']}",
                f"{way}pkts={wanted['packets']}",
                f"{way}relbytes=0",
                f"{way}relpkts=0",
            ]
    assert list(ask(served, "/", "POST", b'{"action": "QueryForward"}').json()) == ["code", "Conn"]
    for body, code, words in (
        (b"{", 1100, "no request in JSON"),
        (b'{"action": "Drop", "traceId": "x"}', 1101, "'Drop' is not known"),
        (b"[]", 1100, ""),
    ):
        refused = ask(served, "/", "POST", body)
        assert refused.status == 400 and words in refused.error
        assert (refused.json()["code"], refused.json()["errors"][0]["code"]) == (500, code)


@pytest.mark.parametrize(
    ("request_line", "status", "words"),
    [
        ("GET /flow", 404, "/flow: there is nothing here. Ask for /flows"),
        ("GET /flows/", 404, "nothing here"),
        ("GET /flows\r\n", 505, "Say the version"),
        ("POST /flows", 405, "POST does not go with /flows: use GET, HEAD"),
        ("DELETE /flows", 405, "use GET, HEAD"),
        ("GET /", 405, "GET does not go with /: use POST"),
        ("PATCH /summary", 405, "use GET, HEAD"),
        ("OPTIONS /healthz", 405, "use GET, HEAD"),
        ("MAKE /flows", 501, "Unsupported method"),
        ("GET /flows?proto=tpc", 400, "proto: 'tpc' is not valid: give icmp, tcp"),
        ("GET /flows?proto=", 400, "proto: '' is not valid"),
        ("GET /flows?dport=80,http", 400, "dport[1]: 'http' is not valid"),
        ("GET /flows?src=10.0.0.300", 400, "src: '10.0.0.300' is not valid"),
        ("GET /flows?colour=red", 400, "colour is no word of this query"),
        ("GET /flows?group_by=src", 400, "group_by is no word"),
        ("GET /flows?output=xml", 400, "output: 'xml' is not valid: give one of json"),
        ("GET /flows?limit=1&limit=2", 400, "limit: '2' is not valid: it is given twice"),
        ("GET /flows?sort=size", 400, "sort: 'size' is not valid"),
        ("GET /flows?extended", 400, "it belongs to output=conntrack"),
        ("GET /flows?output=csv&window", 400, "window: True is not valid"),
        ("GET /flows?output=conntrack&fields=src", 400, "fields:"),
        ("GET /summary?limit=1", 400, "limit: it belongs to group_by"),
        ("GET /summary?sort=bytes", 400, "sort is no word"),
        ("GET /healthz?a=b", 400, "a is no word of this query. It takes none"),
        ("GET http://[/flows", 400, "no address"),
        ("GET /flows HTTP/3.0", 505, "Invalid HTTP version"),
        (f"GET /{'x' * 70_000}", 414, ""),
        ("GET /flows HTTP/1.1\r\n" + "a: b\r\n" * 200, 431, "Too many headers"),
        ("POST /", 411, "send the header Content-Length"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked", 411, "Content-Length"),
        ("POST / HTTP/1.1\r\nContent-Length: 65537", 413, "65536 are taken at most"),
        ("nonsense", 400, "Bad request"),
    ],
)
def test_what_is_refused(idle: str, request_line: str, status: int, words: str) -> None:
    version = "" if "HTTP/" in request_line or " " not in request_line else " HTTP/1.1"
    with dial(
        idle, f"{request_line}{version}\r\nHost: ct\r\nConnection: close\r\n\r\n"
    ) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = json.loads(answer.read())
    assert answer.status == status and words in body["error"], body
    assert (answer.getheader("Allow") is not None) == (status == 405)
    assert answer.getheader("Connection") == "close"


@pytest.fixture(scope="module")
def idle() -> c.Iterator[str]:
    """A server without a chain."""
    with tempfile.TemporaryDirectory() as directory:
        place = os.path.join(directory, "sub/ct.sock")
        with http_server.Server(
            bpffs.Paths("/sys/fs/bpf/nothing_here"),
            service_options.parse_address(place),
        ) as server:
            server.start()
            yield place
        assert os.listdir(directory) == []


def test_without_a_chain_it_says_so(idle: str) -> None:
    for target in ("/flows", "/summary", "/healthz"):
        answer = ask(idle, target)
        assert answer.status == 503 and "Run xdp_program" in answer.error, target
        assert ask(idle, target, "HEAD").status == 503
    answer = ask(idle, "/", "POST", b'{"action": "QueryForward"}')
    assert (answer.status, answer.json()["errors"][0]["code"]) == (
        503,
        1201,
    ) and "Run xdp_program" in answer.error


def test_head_and_many_requests_on_one_connection(served: str) -> None:
    connection = Connection(served)
    for target in (
        "/flows",
        "/summary?proto=udp",
        "/healthz",
        "/nothing",
        "/flows?proto=x",
        "/summary",
    ):
        connection.request("GET", target)
        whole = connection.getresponse()
        body = whole.read()
        used = connection.sock
        connection.request("HEAD", target)
        head = connection.getresponse()
        assert (head.status, head.read(), head.getheader("Content-Type")) == (
            whole.status,
            b"",
            whole.getheader("Content-Type"),
        ) and body
        assert connection.sock is used, "it stays open"
    connection.close()
    with dial(served, "GET /flows?output=csv HTTP/1.0\r\n\r\n") as old:
        first, dummy, lines = everything(old).partition(b"\r\n\r\n")
    assert b"chunked" not in first and lines.startswith(b"family,") and lines.count(b"\n") == 4


def test_a_body_that_is_refused_does_not_cost_the_answer(served: str) -> None:
    """It is sent as a whole before the answer is read."""
    for method, target, status in (
        ("POST", "/", 413),
        ("PUT", "/flows", 405),
        ("GET", "/nothing", 404),
    ):
        assert ask(served, target, method, bytes(1 << 20)).status == status
    assert ask(served, "/flows?limit=1", body=b"x").status == 200


@pytest.mark.parametrize(
    ("size", "status"),
    [
        (http_exchange.BODY_BYTES - 1, 503),
        (http_exchange.BODY_BYTES, 503),
        (http_exchange.BODY_BYTES + 1, 413),
    ],
)
def test_a_body_of_64_kib_is_taken_and_no_more(idle: str, size: int, status: int) -> None:
    assert http_exchange.BODY_BYTES == 65536
    answer = ask(idle, "/", "POST", b'{"action": "QueryForward"}'.ljust(size))
    assert (
        answer.status == status
        and (
            "Run xdp_program"
            if status == 503
            else f"the body has {size} bytes: 65536 are taken at most"
        )
        in answer.error
    )


# ---------------------------------------------------------------- who may ask
ASK = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'GET"
    " /flows HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
)


def test_a_group_may_read_and_no_more(ct: Ct, served: str) -> None:
    assert os.stat(served).st_mode & 0o777 == 0o660
    argv = ["/usr/bin/python3", "-I", "-c", ASK, served]
    gid = os.stat(served).st_gid
    assert gid != 0
    member = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[gid],
    )
    head, dummy, body = member.stdout.partition("\n\n")
    assert "200 OK" in head and len(json.loads(body)) == 3
    for groups in ([gid], []):
        done = subprocess.run(
            ct.argv("attach", "lo", "--program", "ingress"),
            env={},
            check=False,
            capture_output=True,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=groups,
            cwd="/",
        )
        assert done.returncode == 1 and "root" in done.stderr
    stranger = subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    assert stranger.returncode == 1 and "PermissionError" in stranger.stderr


def test_tcp_on_this_host_only(ct: Ct) -> None:
    with serving(ct, "--listen", "127.0.0.1:0") as where:
        assert where.startswith("http://127.0.0.1:") and len(ask(where, "/flows").json()) == 3
        curl = subprocess.run(
            [
                "curl",
                "-sS",
                "--noproxy",
                "*",
                "--compressed",
                f"{where}flows?proto=tcp&output=jsonl",
            ],
            check=True,
            capture_output=True,
        )
        assert json.loads(curl.stdout)["proto"] == "tcp"
        port = urllib.parse.urlsplit(where).port
        assert (
            ask(where, "/flows", Host=f"localhost:{port}").status
            == ask(where, "/flows", Host="[::1]").status
            == 200
        )
        for host in (
            "ct.example.org",
            f"192.0.2.1:{port}",
            "localhost.example.org",
            "",
            "[",
            "127.0.0.1.example.org",
        ):
            answer = ask(where, "/flows", Host=host)
            assert answer.status == 421 and "use its loopback address" in answer.error
        assert "it can not be had: Address already in use" in ct.refuses(
            "serve", "--listen", f"127.0.0.1:{port}", status=1
        )
    assert "listen: '0.0.0.0:80' is not valid: give a loopback address" in ct.refuses(
        "serve", "--listen", "0.0.0.0:80", status=2
    )


def test_a_socket_of_its_own(ct: Ct, place: str) -> None:
    directory = os.path.dirname(place)
    left = socket.socket(socket.AF_UNIX)
    left.bind(place)
    left.close()
    with serving(ct, "--socket", place):
        assert (os.stat(place).st_mode & 0o777, os.stat(place).st_gid) == (0o660, 0)
        assert "another process serves there" in ct.refuses("serve", "--socket", place, status=1)
        assert len(ask(place, "/flows").json()) == 3
    assert os.listdir(directory) == []
    pathlib.Path(place).write_text("mine", "utf-8")
    assert "something else than a socket stands there" in ct.refuses(
        "serve", "--socket", place, status=1
    )
    assert pathlib.Path(place).read_text("utf-8") == "mine"
    assert "there is no such group; make it: groupadd" in ct.refuses(
        "serve", "--group", "no_such_group", status=2
    )


@pytest.mark.parametrize("kind", ["a socket", "a file", "a link to a socket"])
def test_what_another_process_put_there_meanwhile_stays(place: str, kind: str) -> None:
    """The socket of a server whose path was taken over, as by the next one of its kind, is not the
    server's to remove.
    """
    server = http_server.Server(
        bpffs.Paths("/sys/fs/bpf/nothing_here"), service_options.parse_address(place)
    ).start()
    other = socket.socket(socket.AF_UNIX)
    elsewhere = f"{place}.other"
    os.unlink(place)
    if kind == "a file":
        pathlib.Path(place).write_text("mine", "utf-8")
    else:
        other.bind(place if kind == "a socket" else elsewhere)
        other.listen()
    if kind == "a link to a socket":
        os.symlink(elsewhere, place)
    before = os.lstat(place)
    server.close()
    assert os.lstat(place) == before
    if kind != "a file":
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)
    with pytest.raises(
        ConntrackError,
        match=(
            "another process serves there" if kind == "a socket" else "something else than a socket"
        ),
    ):
        http_server.Server(
            bpffs.Paths("/sys/fs/bpf/nothing_here"), service_options.parse_address(place)
        )
    assert os.lstat(place) == before, "nor is it taken for one that nobody listens on"
    other.close()
    for path in {place, elsewhere} & {
        os.path.join(os.path.dirname(place), name) for name in os.listdir(os.path.dirname(place))
    }:
        os.unlink(path)


# ---------------------------------------------------------------- the chain changes
def test_healthz_names_what_is_wrong(running: Chain, place: str) -> None:
    with here(running.paths, place) as server:
        found = ask(server.where, "/healthz").json()
        assert (found["healthy"], found["generation"], found["faults"]) == (True, 1, [])
        assert len(ask(server.where, "/flows").json()) == FLOWS
        empty_one_slot(running)
        answer = ask(server.where, "/healthz")
        assert (
            answer.status == 503 and answer.error == f"slot_empty jt[{chain_programs.SLOTS['ct']}]"
        )
        assert (
            answer.json()["faults"] == [fault.as_dict() for fault in running.observe().faults]
            and not answer.json()["healthy"]
        )
        assert len(ask(server.where, "/flows").json()) == FLOWS, (
            "what is there can be read all the same"
        )


def test_a_chain_that_comes_changes_and_goes(
    made: Chain, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with here(made.paths, place) as server:
        assert ask(server.where, "/healthz").status == 503
        made.ensure()
        made.send(*(udp_frame(4000 + number) for number in range(3)))
        assert (
            ask(server.where, "/healthz").json()["generation"] == 1
            and len(ask(server.where, "/flows").json()) == 3
        )
        made.ensure(made.changed())
        assert (
            ask(server.where, "/healthz").json()["generation"] == 2
            and len(ask(server.where, "/flows").json()) == 3
        )
        generation.remove(made.paths)
        assert ask(server.where, "/healthz").status == ask(server.where, "/flows").status == 503
        assert server.log == []


# ---------------------------------------------------------------- readers that are slow, silent, ma
MANY = 400
LISTING = "GET /flows HTTP/1.1\r\nHost: x\r\n\r\n"


TAKEN = b"HTTP/1.1 200"


def slow(where: str, listing: str = LISTING) -> socket.socket:
    """A reader that takes nothing of what it asked for, which is more than the kernel keeps for
    it.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        made = dial(where, listing * 10)
        if made.recv(len(TAKEN), socket.MSG_PEEK | socket.MSG_WAITALL) == TAKEN:
            return made
        made.close()  # whoever was answered just before still counts
        assert time.monotonic() < deadline


def test_a_slow_reader_keeps_nobody_from_anything(ct: Ct, wire: Wire, place: str) -> None:
    fill(wire, MANY)
    number = ct.json("count")["count"]
    assert number > 100
    with here(wire.chain.paths, place) as server, contextlib.ExitStack() as held:
        readers = [
            held.enter_context(slow(server.where)) for dummy in range(http_routes.READERS - 1)
        ]
        assert (
            len(ask(server.where, "/flows").json())
            == ask(server.where, "/summary").json()["flows"]
            == number
        )
        with flow_table.writing(wire.chain.paths.pin_root, patience=0) as tables:
            assert flow_delete.sweep(tables) == 0
        assert ct("flush", "--proto", "tcp", "--yes") == "1 flow deleted\n"
        wire.connect().exchange()  # packets go on as well
        assert len(ask(server.where, "/flows?proto=tcp").json()) == 1
        readers.append(held.enter_context(slow(server.where)))
        refused = ask(server.where, "/flows?limit=1")
        assert (refused.status, refused.headers["Retry-After"]) == (
            503,
            "1",
        ) and "as many as are at once" in refused.error
        assert ask(server.where, "/summary").status == ask(server.where, "/healthz").status == 200
        for connection in readers:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert len(json.loads(answer.read())) == number, "what it began to take it gets"
            connection.close()
        deadline = time.monotonic() + SECONDS
        while ask(server.where, "/flows?limit=1").status != 200:
            assert time.monotonic() < deadline
        assert server.log == []


def test_who_takes_nothing_is_cut_off(
    wire: Wire, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(wire, MANY)
    monkeypatch.setattr(http_exchange, "PIECE_SECONDS", 0.2)
    monkeypatch.setattr(http_exchange, "REQUEST_SECONDS", 0.5)
    with here(wire.chain.paths, place) as server:
        with (
            slow(server.where) as reader,
            dial(server.where) as silent,
            dial(server.where, "GET /flows HT") as stuck,
        ):
            assert everything(silent) == everything(stuck) == b""
            whole = everything(reader)
            assert whole.startswith(b"HTTP/1.1 200") and not whole.endswith(b"0\r\n\r\n"), (
                "the reader can tell that it is not all"
            )
        with dial(server.where) as dripping:  # each byte in time, but not the request
            began = time.monotonic()
            with pytest.raises(BrokenPipeError):
                while time.monotonic() - began < SECONDS:
                    dripping.sendall(b"G")
                    time.sleep(0.05)
        assert len(ask(server.where, "/flows").json()) > 100 and server.log == []


def test_connections_have_a_bound(idle: str) -> None:
    """The slow ones among them make room for those who ask at once, however many they are."""
    with contextlib.ExitStack() as held:
        slow_ones = [
            held.enter_context(dial(idle, "GET /hea"))
            for dummy in range(3 * http_server.CONNECTIONS)
        ]
        for dummy in range(5):
            assert "Run xdp_program" in ask(idle, "/healthz").error
        refused = http.client.HTTPResponse(slow_ones[0])
        refused.begin()
        assert (refused.status, refused.headers["Retry-After"]) == (
            503,
            "1",
        ) and "connections are open" in json.loads(refused.read())["error"]
        slow_ones[-1].sendall(b"lthz HTTP/1.0\r\n\r\n")
        assert b"Run xdp_program" in everything(slow_ones[-1]), (
            "one that has room goes on as slowly as it likes"
        )


#: Keeps every connection that it gets, each of them slow, as one user; says how many were turned
#: away for being its own.
HOLD = """
import socket, sys
held = []
for text in [b"GET /hea"] * 40 + [b"GET /flows HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 10] * 8:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
    held[-1].sendall(text)
refused = 0
for one in held[-8:]:
    answer = b""
    while b"}" not in answer:
        answer += one.recv(1 << 12)
    refused += b"for this user" in answer
print(refused, flush=True)
sys.stdin.read()
"""


def test_a_user_of_the_group_keeps_nobody_out(wire: Wire, place: str) -> None:
    """Whoever may read has a share of what there is, by the user that the kernel tells."""
    fill(wire, MANY)
    with here(wire.chain.paths, place):
        os.chmod(place, 0o666)
        argv = ["/usr/bin/python3", "-I", "-c", HOLD, place]
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        ) as holding:
            assert holding.stdin is not None and holding.stdout is not None
            assert int(holding.stdout.readline()) == 8 - http_routes.EACH_READERS
            for target in ("/healthz", "/flows?limit=1", "/summary", "/flows?sort=bytes"):
                assert ask(place, target).status == 200, target
            holding.stdin.close()


def test_sorting_all_is_for_one_at_a_time(wire: Wire, place: str) -> None:
    fill(wire, MANY)
    with (
        here(wire.chain.paths, place) as server,
        slow(server.where, LISTING.replace("flows", "flows?sort=sport")),
    ):
        refused = ask(server.where, "/flows?sort=bytes")
        assert refused.status == 503 and "give a limit of at most 10000" in refused.error
        assert len(ask(server.where, "/flows?sort=bytes&limit=5").json()) == 5


def test_it_ends_in_the_middle_of_an_answer(ct: Ct, wire: Wire, place: str) -> None:
    fill(wire, MANY)
    before = threading.active_count()
    with here(wire.chain.paths, place), slow(place):
        assert threading.active_count() > before
    assert threading.active_count() == before
    with serving(ct, "--socket", place) as where, slow(where):
        assert len(ask(where, "/flows").json()) > 100


def test_it_ends_with_either_signal(ct: Ct, place: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            ct.argv("serve", "--socket", place),
            env={},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert (
                process.stdout is not None
                and process.stdout.readline() == f"listening on {place}\n".encode()
            )
            process.send_signal(number)
            assert (process.wait(SECONDS), process.stderr and process.stderr.read()) == (0, b"")
        assert not os.path.exists(place)
