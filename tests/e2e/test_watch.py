# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ct watch on real traffic, held against conntrack -E; what is lost, saved, and handed on."""

from __future__ import annotations

import collections
import collections.abc as c
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import events as chain_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netns
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, installed
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    SIZES,
    SOURCES,
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import FLOWS, running

__all__ = ["installed", "made", "rendered", "running", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SECONDS = 60  # to wait for what must come
#: More than there is room for.
MANY = chain_events.EVENTS_BYTES // (chain_layout.EVENT.size + 8) + 1000


def until(true: c.Callable[[], object], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclasses.dataclass
class Watcher:
    """A ct watch that runs."""

    process: subprocess.Popen[str]
    out: pathlib.Path
    err: pathlib.Path

    def lines(self) -> list[str]:
        return self.out.read_text("utf-8").splitlines()

    def records(self) -> list[dict[str, t.Any]]:
        return [json.loads(line) for line in self.lines()]

    def notes(self) -> str:
        return self.err.read_text("utf-8")

    def end(self, how: int = signal.SIGINT) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(how)
        assert self.process.wait(SECONDS) == 0, self.notes()


def watched(paths: t.Any) -> int:
    """Whether the chain is told to tell."""
    try:
        with bpf.closing(bpf.obj_get(paths.map(chain_maps.EVENTS_WORDS_MAP))) as fd:
            return int.from_bytes(
                bpf.map_lookup(
                    fd, chain_events.EVENT_WORDS.index("watched").to_bytes(4, "little"), 8
                )
                or b"",
                "little",
            )
    except FileNotFoundError:
        return 0


@pytest.fixture
def watch(tmp_path: pathlib.Path) -> c.Iterator[c.Callable[..., Watcher]]:
    """Starts ct watch, and waits until it listens."""
    started: list[Watcher] = []

    def start(ct: Ct, paths: t.Any, *words: str, listens: bool = True) -> Watcher:
        out, err = (tmp_path / f"{len(started)}.{name}" for name in ("out", "err"))
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            process = subprocess.Popen(
                ct.argv("watch", *words),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
            )
        started.append(Watcher(process, out, err))
        if listens:
            until(lambda: watched(paths) or process.poll() is not None, err.read_text("utf-8"))
            assert process.poll() is None, err.read_text("utf-8")
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.terminate()
            one.process.wait(SECONDS)


@pytest.fixture(scope="module", params=[False, True], ids=["chain", "fused"])
def lab(request: pytest.FixtureRequest) -> c.Iterator[Wire]:
    """A lab whose chain has events."""
    with Wire(events=True, fused=request.param) as one:
        yield one


@pytest.fixture
def told(lab: Wire) -> c.Iterator[Wire]:
    lab.reset()
    yield lab
    lab.reset()


@contextlib.contextmanager
def conntrack_events(wire: Wire, out: pathlib.Path) -> c.Iterator[None]:
    """Let conntrack -E write into a file meanwhile, which it does to the end."""
    with open(out, "wb") as stdout, netns.entered(wire.ns("router")):
        process = subprocess.Popen(
            ["conntrack", "-E", "-b", "4194304"], stdout=stdout, stderr=subprocess.DEVNULL
        )
    try:
        until(
            lambda: any(
                str(process.pid) in line.split()
                for line in wire.run("router", "cat", "/proc/net/netlink").splitlines()
            ),
            "it listens",
        )
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)


def stories(lines: c.Iterable[str]) -> dict[str, list[str]]:
    """What is told of each connection, without the time left, in the order in which connections
    begin.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    for line in lines:
        parts = re.fullmatch(r" *\[(\w+)\] (\w+ +\d+ )(.*)", line.rstrip())
        assert parts, line
        event, proto, words = parts.groups()
        # who deleted it, besides
        words = re.sub(r" \[USERSPACE\].*", "", re.sub(r"^\d+ ", "", words))
        tuple_of = " ".join(re.findall(r"(?:src|dst|sport|dport|type|id)=\S+", words)[:4])
        found[proto + tuple_of].append(f"{event} {words}")
    return dict(found)


def traffic(wire: Wire) -> None:
    """Connections of each kind: closed by both, refused, answered, not answered, a stream."""
    tcp = wire.connect(40001)
    tcp.exchange()
    tcp.close()
    refused = wire.open("client", socket.SOCK_STREAM)
    refused.bind((CLIENT, 40002))
    with pytest.raises(ConnectionRefusedError):
        refused.connect((SERVER, PORT + 7))
    wire.run("client", "ping", "-c", "2", "-i", "0.2", SERVER)
    client, server = wire.udp("client", 40003), wire.udp("server", PORT)
    for pause in (0, 2.2):
        time.sleep(pause)
        client.sendto(b"x", (SERVER, PORT))
        server.sendto(b"yy", server.recvfrom(10)[1])
        client.recv(10)
    client.sendto(b"x", (SERVER, PORT))
    server.recv(10)


def all_destroyed(events: pathlib.Path) -> bool:
    """Return whether the flows of traffic() that are deleted at once are in a file of events."""
    return events.read_text("utf-8").count("[DESTROY]") == 3


# ---------------------------------------------------------------- what is told
def test_the_story_of_each_connection_is_conntracks(
    told: Wire,
    installed: str,
    watch: c.Callable[..., Watcher],
    tmp_path: pathlib.Path,
    figure: c.Callable[[str, object], None],
) -> None:
    ct, paths, theirs = (
        Ct(installed, told.chain.paths.pin_root),
        told.chain.paths,
        tmp_path / "theirs",
    )
    mine = watch(ct, paths, "-o", "conntrack")
    with conntrack_events(told, theirs):
        traffic(told)
        told.run("router", "conntrack", "-D", "-p", "udp")
        told.run("router", "conntrack", "-D", "-p", "icmp")
        assert ct("flush", "--proto", "udp,icmp", "--yes") == "2 flows deleted\n"
        for told_by in (mine.out, theirs):
            until(functools.partial(all_destroyed, told_by), told_by.read_text("utf-8"))
    mine.end()
    expected = stories(theirs.read_text("utf-8").splitlines())
    assert stories(mine.lines()) == expected and len(expected) == 4
    assert sum(map(len, expected.values())) >= 14
    assert (
        f"{len(mine.lines())} events were read, none was lost. 0 entries made room" in mine.notes()
    )
    assert not watched(paths), "nobody watches any more"
    figure("events that ct watch and conntrack -E tell alike", len(mine.lines()))


def test_records_and_filters(
    told: Wire, installed: str, watch: c.Callable[..., Watcher], tmp_path: pathlib.Path
) -> None:
    ct, paths, saved = (
        Ct(installed, told.chain.paths.pin_root),
        told.chain.paths,
        str(tmp_path / "events"),
    )
    every = watch(ct, paths, "-o", "jsonl", "--save", saved)
    tcp = told.connect(40001)
    tcp.exchange()
    client, server = told.udp("client", 40003), told.udp("server", PORT)
    client.sendto(b"x", (SERVER, PORT))
    server.recv(10)
    tcp.close()
    until(
        lambda: any(record["state"] == "TIME_WAIT" for record in every.records()),
        every.out.read_text("utf-8"),
    )
    assert "have one reader at a time" in ct.refuses(
        "watch", status=1
    ) and f"process {every.process.pid}" in ct.refuses("watch", status=1)
    here = {
        (one["proto"], one["state"], one["assured"], one["orig"]["sport"])
        for one in ct.json("list")
    }
    every.end(signal.SIGTERM)
    records = every.records()
    assert [record["seq"] for record in records] == list(
        range(records[0]["seq"], records[0]["seq"] + len(records))
    )
    assert [record["event"] for record in records if record["proto"] == "udp"] == ["new"]
    states = [record["state"] for record in records if record["proto"] == "tcp"]
    assert states[:3] == ["SYN_SENT", "SYN_RECV", "ESTABLISHED"] and states[-1] == "TIME_WAIT"
    assert records[0]["orig"]["packets"] == 1 and records[0]["time"] < records[-1]["time"]
    # replayed: the same, through the same filters, and as the flows that were there at the end
    assert (
        ct("watch", "--input", saved, "-o", "jsonl")
        == every.out.read_text("utf-8")
        == pathlib.Path(saved).read_text("utf-8")
    )
    udp = [
        json.loads(line)
        for line in ct("watch", "--input", saved, "-o", "jsonl", "--proto", "udp").splitlines()
    ]
    assert udp == [record for record in records if record["proto"] == "udp"]
    assert len(ct("watch", "--input", saved, "--event", "update", "--limit", "2").splitlines()) == 2
    assert {
        (one["proto"], one["state"], one["assured"], one["orig"]["sport"])
        for one in ct.json("list", "--input", saved)
    } == here and len(here) == 2
    assert ct("count", "--input", saved, "--state", "time_wait") == "1\n"


def test_limit_and_live_filters_end_it(
    told: Wire, installed: str, watch: c.Callable[..., Watcher]
) -> None:
    ct, paths = Ct(installed, told.chain.paths.pin_root), told.chain.paths
    one = watch(ct, paths, "--dport", str(PORT), "--event", "new", "--limit", "1")
    client = told.udp("client")
    for port in (PORT + 1, PORT, PORT + 2):
        client.sendto(b"x", (SERVER, port))
    assert one.process.wait(SECONDS) == 0
    (line,) = one.lines()
    assert f"-> {SERVER}:{PORT}  NEW, unreplied" in line and " new " in line


def test_what_is_lost_is_counted(
    told: Wire,
    installed: str,
    watch: c.Callable[..., Watcher],
    figure: c.Callable[[str, object], None],
) -> None:
    ct, paths = Ct(installed, told.chain.paths.pin_root), told.chain.paths
    slow = watch(ct, paths, "-o", "jsonl")
    slow.process.send_signal(signal.SIGSTOP)
    with bpf.closing(bpf.obj_get(paths.prog(chain_programs.SLOTS["ingress"]))) as entry:
        for number in range(MANY):
            bpf.prog_test_run(entry, udp_frame(1000 + number))
    told.chain.recount()
    slow.process.send_signal(signal.SIGCONT)
    until(lambda: "were lost: the buffer had no room" in slow.notes(), "it says so")
    slow.end()
    numbers = [record["seq"] for record in slow.records()]
    want = r"(\d+) were lost for want of room \(new \d+, update 0, destroy 0\)"
    lost = int(re.findall(want, slow.notes())[0])
    assert len(set(numbers)) == len(numbers) and len(numbers) + lost == MANY and lost >= 1000
    assert f"{len(numbers)} events were read" in slow.notes()
    evicted = int(re.findall(r"(\d+) entries made room", slow.notes())[0])
    assert evicted >= MANY - 2 * SIZES["table_size"], slow.notes()
    figure(
        "events of a flood that a stopped ct watch read, and counted as lost",
        f"{len(numbers)}, {lost}",
    )


# ---------------------------------------------------------------- generations
def test_it_goes_on_with_the_next_generation(
    running: Chain, installed: str, watch: c.Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    ct = Ct(installed, running.paths.pin_root, running.paths.state_dir)
    long = {"udp": 36000}  # compiling can take longer than a flow lives
    running.ensure(running.want(timeouts=long))
    running.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    one = watch(ct, running.paths, "-o", "jsonl", listens=False)
    until(lambda: "generation 1 runs, without events" in one.notes(), "it says so")

    def with_events(**sizes: int) -> t.Any:
        return running.want(
            render.render(str(SOURCES), render.Settings(**{**SIZES, **sizes}, events=True)),
            timeouts=long,
            **sizes,
        )

    running.ensure(with_events())
    until(lambda: watched(running.paths), "it goes over")
    running.send(udp_frame(30001))
    dummy, have = running.ensure(with_events(half_open_size=2 * SIZES["table_size"]))
    assert have.faults == () and have.maps["events"].id
    running.send(udp_frame(30002))
    until(
        lambda: (
            "generation 3 took over from generation 2, and goes on with the same buffer"
            in one.notes()
        ),
        one.notes(),
    )
    until(lambda: len(one.records()) == 2, "it goes on")
    ports = [(record["seq"], record["orig"]["sport"]) for record in one.records()]
    assert ports == [(0, 30001), (1, 30002)]
    running.ensure(with_events(), keep=1)
    running.send(udp_frame(30003))
    running.roll_back()
    running.send(udp_frame(30004))
    until(lambda: len(one.records()) == 4, "nothing is missed on the way back")
    dummy, have = running.ensure(running.want(timeouts=long))
    until(lambda: "without events: nothing comes" in one.notes().splitlines()[-1], "it says so")
    assert have.faults == () and "events" not in have.maps and running.reachable() == FLOWS + 4
    one.end()
    assert "4 events were read, none was lost" in one.notes()


def test_what_is_refused(told: Wire, installed: str, tmp_path: pathlib.Path) -> None:
    ct = Ct(installed, told.chain.paths.pin_root)
    assert "event: 'end' is not valid: give some of new, update, destroy" in ct.refuses(
        "watch", "--event", "end", status=2
    )
    assert "save: '/nowhere/x' is not valid" in ct.refuses(
        "watch", "--save", "/nowhere/x", status=1
    )
    (tmp_path / "x").write_text('{"event": "new"}\n', "utf-8")
    assert "is no event: give a file that ct watch" in ct.refuses(
        "watch", "--input", str(tmp_path / "x"), status=1
    )
    assert re.search("[Rr]un as root", ct.refuses("watch", status=1, user=65534))
