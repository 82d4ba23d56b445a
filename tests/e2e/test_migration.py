# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of another size or layout: every flow and every packet goes along, while traffic flows."""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import random
import resource
import socket
import struct
import subprocess
import threading
import time
import types
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import clock
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_batch,
    bpf_constants,
    bpffs,
    bpffs_mount,
    netdev,
    private_netns,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support import syscalls
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "files/bpf"
U32, U64 = struct.Struct("=I"), struct.Struct("=Q")
SIZE = 4096
ALIKE: t.Mapping[str, int] = types.MappingProxyType({})
TWICE = dict.fromkeys(render.SIZES, 2 * SIZE)
#: Interface, its peer, and the hook on it: what the initiators send comes in at the first, the
#: answers at the second.
SIDES = (("left", "right", "ingress"), ("left2", "right2", "egress"))


@dataclasses.dataclass
class Chain:
    """A chain below a pin root of its own."""

    paths: bpffs.Paths
    headers: dict[str, str]

    def want(self, sizes: t.Mapping[str, int]) -> generation.Want:
        """The chain as it comes with the collection, with tables of SIZE entries but for those
        given.
        """
        given: dict[str, t.Any] = {**dict.fromkeys(render.SIZES, SIZE), **sizes}
        text = render.render(str(SOURCES), render.Settings(**given))
        return generation.Want(text, self.headers, **given)

    def ensure(
        self,
        sizes: t.Mapping[str, int] = ALIKE,
        check_mode: bool = False,
        on_schema_change: str = "fail",
    ) -> tuple[list[dict[str, t.Any]], dict[str, int], list[str]]:
        """The plan that was done, the flows that it does not keep, and its warnings."""
        policy = generation.Policy(0, on_schema_change=on_schema_change)
        plan, dummy = generation.ensure(self.paths, self.want(sizes), check_mode, policy)
        return ([step.as_dict() for step in plan], *generation.outlook(plan))

    def send(self, *what: bytes, hook: str = "ingress") -> None:
        """Run frames through the active generation."""
        with bpf.closing(bpf.obj_get(self.paths.prog(chain_programs.SLOTS[hook]))) as fd:
            for frame in what:
                bpf.prog_test_run(fd, frame)

    def flows(self) -> dict[tuple[t.Any, ...], dict[str, t.Any]]:
        """Every flow's record by (protocol, initiator's address and port)."""
        found = {}
        with flow_table.FlowTables(self.paths.pin_root) as tables:
            for opened in tables.tables:
                decoder = flow.Decoder(opened.table, tables.clock())
                for dummy, keys, values in tables.batches(opened):
                    for shape, value, dummy_row in decoder.flows(decoder.rows(keys, values)):
                        record = flow.record(shape, value)
                        key = (record["proto"], record["orig"]["src"], record["orig"].get("sport"))
                        assert key not in found, "no flow stands in two tables"
                        found[key] = {**record, "table": opened.table.name}
        return found

    def counters(self) -> dict[str, int]:
        with flow_table.FlowTables(self.paths.pin_root) as tables:
            return tables.counters()

    def attach(self, state: str = "present") -> None:
        interfaces = [{"name": name, "program": hook} for name, dummy, hook in SIDES]
        attach.converge(state, interfaces, "native", False, self.paths.pin_root, False)

    def assert_settled(self) -> None:
        """Nothing is left to take over, and there is one generation."""
        have = generation.observe(self.paths)
        assert (have.source, have.faults, have.leftovers, have.kept) == (0, (), (), ())
        for name in ("pred", "pred6"):
            with bpf.closing(bpf.obj_get(self.paths.map(name))) as fd:
                assert [bpf.map_lookup(fd, U32.pack(index), 4) for index in range(2)] == [
                    None,
                    None,
                ]


@pytest.fixture(scope="module")
def headers() -> dict[str, str]:
    return render.read_headers(str(SOURCES))


@contextlib.contextmanager
def chain_below(headers: dict[str, str], directory: pathlib.Path) -> c.Iterator[Chain]:
    """A chain of which nothing is loaded yet; what was loaded goes at the end."""
    mounted = bpffs_mount.ensure_mounted(bpffs.STANDARD)
    root = f"{bpffs.STANDARD}/migrate{random.randrange(1 << 32):08x}"
    os.mkdir(root)
    try:
        yield Chain(bpffs.Paths(root, str(directory / "state")), headers)
    finally:
        generation.remove_tree(root)
        if mounted:
            bpffs_mount.release(bpffs.STANDARD)


@pytest.fixture
def made(headers: dict[str, str], tmp_path: pathlib.Path) -> c.Iterator[Chain]:
    """Nothing loaded yet."""
    with chain_below(headers, tmp_path) as made:
        yield made


@pytest.fixture
def wires() -> c.Iterator[None]:
    """The veth pairs of SIDES, in a namespace without a name, which the test runs in."""
    with private_netns.anonymous():
        for name, peer, dummy in SIDES:
            subprocess.run(
                ["ip", "link", "add", name, "type", "veth", "peer", "name", peer], check=True
            )
            for end in (name, peer):
                subprocess.run(["ip", "link", "set", end, "addrgenmode", "none", "up"], check=True)
        yield


# ---------------------------------------------------------------- traffic
@dataclasses.dataclass
class Talk:
    """One flow of which packets go both ways, and how many went.

    :ivar proto: frames.TCP or frames.UDP.
    :ivar octets: how many bytes went in IPv4 packets of UDP.
    """

    proto: int
    family: int
    number: int
    sent: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    octets: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    sequence: list[int] = dataclasses.field(default_factory=lambda: [1001, 5001])

    @property
    def ends(self) -> tuple[bytes, bytes]:
        if self.family == 6:
            return frames.address(f"fd00::{self.number + 1:x}"), frames.address("fd01::1")
        return frames.address(f"10.1.{self.number >> 8}.{self.number & 255}"), frames.address(
            "10.2.0.1"
        )

    @property
    def key(self) -> tuple[t.Any, ...]:
        return "tcp" if self.proto == frames.TCP else "udp", frames.text(self.ends[0]), 40000

    def frame(self, reply: bool, flags: str = "", data: bytes = b"") -> bytes:
        """The next packet of one side. A TCP segment acknowledges what the other had sent before
        its last one.
        """
        self.sent[reply] += 1
        src, dst = self.ends[:: -1 if reply else 1]
        sport, dport = (80, 40000) if reply else (40000, 80)
        if self.proto == frames.UDP:
            self.octets[reply] += 28 + len(data)
            return frames.frame(
                frames.ip(src, dst, frames.UDP, frames.udp(src, dst, sport, dport, data))
            )
        opening = flags.startswith("S")
        seq = self.sequence[reply] - opening
        ack = (
            0
            if flags == "S"
            else max(
                self.sequence[not reply] - (0 if opening or flags == "A" else 100),
                1001 if reply else 5001,
            )
        )
        self.sequence[reply] += len(data)
        segment = frames.tcp(src, dst, sport, dport, seq, ack, frames.tcp_flags(flags), 60000, data)
        return frames.frame(frames.ip(src, dst, frames.TCP, segment))

    def opening(self) -> list[tuple[bool, bytes]]:
        """What opens the flow: (whether it is the answering side's, frame)."""
        if self.proto == frames.UDP:
            return [(False, self.frame(False, data=bytes(10)))]
        return [
            (False, self.frame(False, "S")),
            (True, self.frame(True, "SA")),
            (False, self.frame(False, "A")),
        ]

    def round(self) -> list[tuple[bool, bytes]]:
        return [(side, self.frame(side, "PA", bytes(100))) for side in (False, True)]


class Traffic:
    """A thread that lets talks go on, until it is told to stop; it opens one more for each round
    where they are to be ``fresh``.
    """

    def __init__(self, talks: list[Talk], fresh: bool = True) -> None:
        self.talks = talks
        self._fresh = fresh
        self._stop = threading.Event()
        self._ends = []
        for dummy, peer, dummy_hook in SIDES:
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            end.bind((peer, 0))
            self._ends.append(end)
        self._thread = threading.Thread(target=self._run)
        self._before, self._sent = received(), 0
        self._sending = threading.Lock()

    def send(self, what: list[tuple[bool, bytes]]) -> None:
        for side, frame in what:
            self._ends[side].send(frame)
        with self._sending:
            self._sent += len(what)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._fresh:
                kind = self.talks[len(self.talks) % 3]
                fresh = Talk(kind.proto, kind.family, len(self.talks))
                self.send(fresh.opening())
                self.talks.append(fresh)
            for talk in self.talks:
                self.send(talk.round())
            time.sleep(0.0005)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            end.close()
        assert within(lambda: received() - self._before == self._sent - dropped()), (
            received() - self._before,
            self._sent,
            dropped(),
        )


def received() -> int:
    """Packets that came in at the chain's ends."""
    return sum(netdev.link_facts(name).received for name, dummy, dummy_hook in SIDES)


def dropped() -> int:
    """Packets that the interfaces did not take."""
    lines = pathlib.Path("/proc/thread-self/net/dev").read_text(encoding="utf-8")
    return sum(
        int(lines.split(f"{name}:")[1].split()[column])
        for name, peer, dummy in SIDES
        for name, column in ((name, 3), (peer, 11))
    )


def opened(count: int) -> list[Talk]:
    """Talks over IPv4 and IPv6, of TCP and UDP."""
    kinds = ((frames.TCP, 4), (frames.UDP, 4), (frames.TCP, 6))
    return [Talk(*kinds[number % 3], number) for number in range(count)]


def assert_all_there(made: Chain, talks: list[Talk], before: dict[str, int], idle: int = 0) -> None:
    """Each flow has each of its packets, and each packet was tracked; ``idle`` are flows of
    fill().
    """
    flows, after = made.flows(), made.counters()
    assert dropped() == 0
    wrong = {
        talk.key: (talk.sent, flows.get(talk.key))
        for talk in talks
        if talk.key not in flows or packets(flows[talk.key]) != talk.sent
    }
    assert not wrong, (
        f"{len(wrong)} of {len(talks)}: {next(iter(wrong.items()))};"
        f" { ({n: after[n] - before[n] for n in after if after[n] != before[n]}) }"
    )
    assert len(flows) == len(talks) + idle
    assert after["tracked"] - before["tracked"] == sum(sum(talk.sent) for talk in talks)
    assert after["created"] - before["created"] == len(talks)
    assert {flows[talk.key]["state"] for talk in talks if talk.proto == frames.TCP} == {
        "ESTABLISHED"
    }


def packets(record: dict[str, t.Any]) -> list[int]:
    return [record["orig"]["packets"], record["reply"]["packets"]]


def fill(
    made: Chain,
    table: str,
    number: int,
    idle: c.Callable[[int], int] = lambda number: 0,
    assured: c.Callable[[int], bool] = lambda number: True,
) -> None:
    """Write so many TCP flows over IPv4 into a table, without traffic."""
    with flow_table.FlowTables(made.paths.pin_root) as tables:
        now, rate = tables.clock().jiffies, tables.clock().hz
    with bpf.closing(bpf.obj_get(made.paths.map(table))) as fd:
        for start in range(0, number, 16384):
            some = range(start, min(start + 16384, number))
            keys = (
                chain_layout.KEY4.pack(
                    (0x0A000000 + one).to_bytes(4, "big"),
                    b"\xac\x10\0\1",
                    0x409C,
                    0x5000,
                    frames.TCP,
                    0,
                    0,
                )
                for one in some
            )
            values = []
            for one in some:
                seen = now - idle(one) * rate
                fields = dict.fromkeys((name for name, dummy in chain_layout.ENTRY_FIELDS), 0)
                fields.update(
                    {
                        "orig.packets": one + 1,
                        "reply.packets": 2,
                        "ctl": (
                            3
                            | chain_layout.CTL_SEEN_REPLY
                            | chain_layout.CTL_ASSURED * assured(one)
                        ),
                    }
                )
                fields.update(
                    expires=(now + 1000 * rate) & 0xFFFFFFFF,
                    last_seen=seen & 0xFFFFFFFF,
                    created=seen // rate,
                )
                values.append(chain_layout.ENTRY.pack(*fields.values()))
            bpf_batch.map_update_batch(fd, b"".join(keys), b"".join(values), len(some))


# ---------------------------------------------------------------- another size
def test_tables_change_their_size_under_traffic(
    made: Chain, wires: None, figure: c.Callable[[str, object], None]
) -> None:
    made.ensure()
    made.attach()
    before, talks = made.counters(), opened(60)
    with Traffic(talks):
        for sizes in (
            dict.fromkeys(render.SIZES, 4 * SIZE),
            {"table_size": 4 * SIZE, "half_open_size6": 2 * SIZE},
            {},
        ):
            time.sleep(0.1)
            foretold = made.ensure(sizes, check_mode=True)
            done, lost, dummy = made.ensure(sizes)
            assert foretold[0] == done and lost == {}
            assert [step["action"] for step in done] == [
                "load",
                "activate",
                "replace",
                "replace",
                "move",
                "delete",
            ]
    assert_all_there(made, talks, before)
    made.assert_settled()
    figure(
        "tables resized under traffic: flows kept, packets missing in them",
        f"{len(talks)} of {len(talks)}, 0 of {sum(sum(talk.sent) for talk in talks)}",
    )
    made.attach("absent")


def test_a_smaller_table_keeps_the_assured_and_latest(made: Chain) -> None:
    """And says before how many it can not keep."""
    made.ensure()
    fill(made, "ctt", 1500, idle=lambda number: number // 10, assured=lambda number: number >= 500)
    room = 1024 - bpf.possible_cpus() * min(1024 // bpf.possible_cpus() // 2, 128)
    foretold, lost, warnings = made.ensure({"table_size": 1024}, check_mode=True)
    assert lost == {"ctt": 1500 - room}
    assert warnings == [
        f"ctt: {1500 - room} of 1500 flows can not be kept, there is room for {room}: the assured"
        " and latest ones are kept."
    ]
    assert f"{1500 - room} flows of ctt can not be kept" in next(
        step["reason"] for step in foretold if step["action"] == "move"
    )
    assert len(made.flows()) == 1500, "check mode"
    assert made.ensure({"table_size": 1024}) == (foretold, lost, warnings)
    kept = {packets(record)[0] - 1 for record in made.flows().values()}
    sure = room // 10 * 10
    assert len(kept) == room and all(record["assured"] for record in made.flows().values())
    assert set(range(500, 500 + sure)) <= kept <= set(range(500, 510 + sure)), (
        "the latest; those of one second are equal"
    )
    made.assert_settled()


def test_a_flow_that_nobody_lets_go_of_is_moved_all_the_same(made: Chain) -> None:
    made.ensure()
    fill(made, "ctt", 40)
    with bpf.closing(bpf.obj_get(made.paths.map("ctt"))) as fd:
        count, keys, values = next(
            bpf.map_batches(fd, chain_layout.KEY4.size, chain_layout.ENTRY.size)
        )
        fields = list(chain_layout.ENTRY.unpack(bytes(values[: chain_layout.ENTRY.size])))
        fields[12] |= chain_layout.CTL_LOCK
        bpf.map_update(fd, bytes(keys[: chain_layout.KEY4.size]), chain_layout.ENTRY.pack(*fields))
    made.ensure({"table_size": 2 * SIZE})
    assert len(made.flows()) == count == 40
    made.assert_settled()


def test_flows_whose_time_is_over_are_counted_once(made: Chain) -> None:
    made.ensure()
    made.send(*(talk.opening()[0][1] for talk in opened(9)))
    with flow_table.FlowTables(made.paths.pin_root) as tables:
        now = tables.clock().jiffies
        for opened_table in tables.tables:
            for count, keys, values in list(tables.batches(opened_table)):
                for number in range(count):
                    fields = list(
                        chain_layout.ENTRY.unpack(
                            bytes(
                                values[
                                    number * chain_layout.ENTRY.size : (number + 1)
                                    * chain_layout.ENTRY.size
                                ]
                            )
                        )
                    )
                    fields[13] = now & 0xFFFFFFFF
                    size = opened_table.table.key.size
                    bpf.map_update(
                        opened_table.fd,
                        bytes(keys[number * size : (number + 1) * size]),
                        chain_layout.ENTRY.pack(*fields),
                    )
    made.ensure(TWICE)
    assert made.flows() == {}
    assert {
        name: number
        for name, number in made.counters().items()
        if name.startswith(("created", "deleted"))
    }["deleted_expired"] == 9
    assert made.counters()["created"] == 9


@pytest.mark.parametrize(
    ("call", "turn"),
    [("bpf LINK_UPDATE", 1), ("bpf LINK_UPDATE", 2), ("bpf PROG_TEST_RUN", 4)],
)
def test_a_run_that_is_killed_while_flows_go_over_loses_none(
    made: Chain, wires: None, call: str, turn: int
) -> None:
    """Between the interfaces, and while flows are moved; the chain works on, and the next run goes
    on, with the same or with other sources.
    """
    made.ensure()
    made.attach()
    fill(made, "ctt", 300)
    before, talks = made.counters(), opened(60)
    with Traffic(talks):
        time.sleep(0.05)
        assert syscalls.killed(lambda: made.ensure(TWICE), syscalls.is_call(call), turn)
        time.sleep(0.05)
        sizes = TWICE if turn == 2 else {"table_size": 3 * SIZE}
        foretold = made.ensure(sizes, check_mode=True)
        done, lost, dummy = made.ensure(sizes)
        assert foretold[0] == done and "move" in [step["action"] for step in done] and lost == {}
    assert_all_there(made, talks, before, idle=300)
    made.assert_settled()
    made.attach("absent")


def test_a_run_that_is_refused_while_interfaces_are_switched_goes_back(
    made: Chain, wires: None
) -> None:
    """The flows that the new tables had already go back as well."""
    made.ensure()
    made.attach()
    before, talks, turns = made.counters(), opened(60), 0

    def refuse(dummy: int, event: syscalls.Event) -> syscalls.Answer:
        nonlocal turns
        turns += event.name == "bpf LINK_UPDATE"
        if event.name != "bpf LINK_UPDATE" or turns != 2:
            return None
        time.sleep(0.05)  # while packets move their flows
        return syscalls.Refuse(errno.EIO)

    with Traffic(talks):
        time.sleep(0.05)
        with pytest.raises(ConntrackError, match="EIO") as raised:
            syscalls.outcome(lambda: made.ensure(TWICE), refuse)
        assert raised.value.facts["not_rolled_back"] == []
    assert_all_there(made, talks, before)
    assert generation.observe(made.paths).generation == 1
    made.assert_settled()
    made.attach("absent")


def test_a_million_flows_go_over_under_traffic(
    made: Chain,
    wires: None,
    figure: c.Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made.ensure({"table_size": 1 << 20})
    made.attach()
    fill(made, "ctt", 1_000_000)
    switched: list[float] = []
    update = bpf.link_update

    def timed(*fds: int) -> None:
        switched.append(time.monotonic())
        update(*fds)

    monkeypatch.setattr(bpf, "link_update", timed)
    before, talks, rss = (
        made.counters(),
        opened(60),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    with Traffic(talks):
        done, lost, dummy = made.ensure({"table_size": 1 << 21})
        spent = time.monotonic() - switched[0]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss) / 1024
    assert lost == {} and "move" in [step["action"] for step in done]
    with flow_table.FlowTables(made.paths.pin_root) as tables:
        kept = sum(
            count
            for opened_table in tables.tables
            for count, dummy, dummy in tables.batches(opened_table)
        )
    assert kept == 1_000_000 + len(talks)
    after = made.counters()
    assert dropped() == 0 and after["tracked"] - before["tracked"] == sum(
        sum(talk.sent) for talk in talks
    )
    figure(
        "a table of 1000000 flows resized under traffic",
        f"{spent:.1f} s from the switch on, {grown:.0f} MB more memory, 0 lost",
    )
    made.attach("absent")


# ---------------------------------------------------------------- another layout
def later_layout() -> schema.Description:
    """A layout that this release knows nothing of: fields in another order, one more, one wider,
    two narrower, one gone, bits elsewhere.
    """
    there = schema.describe()
    there["layout"] = 7
    fields = dict(map(tuple, there["entry"]))
    fields.update({"orig.packets": "I", "related.packets": "Q", "last_win": "I", "colour": "Q"})
    del fields["retrans"]
    there["entry"] = sorted(
        map(list, fields.items()),
        key=lambda field: (field[0] != "ctl", -struct.calcsize(field[1]), field[0]),
    )
    there["ctl"] = {
        **there["ctl"],
        "assured": 1 << 60,
        "seen_reply": 1 << 41,
        "state": 0xF << 4,
        "orig_hi": 1 << 61,
        "egress": 1 << 59,
    }
    there["ctl"]["vlan_outer"] = 0xFFF << 42
    there["counters"] = {
        "stats": ["created", "retired", "tracked"],
        "deletions": ["deleted_flushed"],
    }
    size = chain_layout.codec(map(tuple, there["entry"])).size
    for table in there["tables"]:
        there["maps"][table] = [*there["maps"][table][:2], size]
    return there


#: A chain that counts UDP packets over IPv4, in entries under their lock, and begins flows that it
#: does not know from the side that it sees, as each release's does.
OLD_CHAIN = """
#include <linux/bpf.h>
struct key { u32 lo, hi; u16 lo_port, hi_port; u8 proto, role; u16 zone; };
struct entry { %(fields)s } __attribute__((packed));
BPF_TABLE_PINNED("array", int, u64, meta, %(meta)d, "%(maps)s/meta");
BPF_TABLE_PINNED("percpu_array", int, u64, stats, %(stats)d, "%(maps)s/stats");
BPF_TABLE_PINNED("lru_hash", struct key, struct entry, %(table)s, %(size)d, "%(maps)s/%(table)s");
static inline int track(struct xdp_md *ctx, int reply)
{
        void *data = (void *)(long)ctx->data;
        struct key key = {};
        struct entry *e;
        u32 *ip = data + 26;
        u16 *port = data + 34;
        u64 *n, seen, now = bpf_jiffies64();
        u32 octets;
        int i, at = 2;

        if (data + 42 > (void *)(long)ctx->data_end)
                return XDP_PASS;
        n = meta.lookup(&at);
        if (n && !*n) {
                *n = now;
                at = 3;
                n = meta.lookup(&at);
                if (n)
                        *n = bpf_ktime_get_ns();
        }
        if (*(u16 *)(data + 12) != __builtin_bswap16(0x0800))
                return XDP_PASS;
        octets = __builtin_bswap16(*(u16 *)(data + 16));
        key.lo = ip[reply];
        key.hi = ip[!reply];
        key.lo_port = port[reply];
        key.hi_port = port[!reply];
        key.proto = *(u8 *)(data + 23);
        e = %(table)s.lookup(&key);
        if (!e) {
                struct entry blank = {};

                blank.ctl = reply ? %(orig_hi)dULL : 0;
                blank.created = now / %(hz)d;
                blank.expires = (u32)now + 100000;
                %(table)s.insert(&key, &blank);
                e = %(table)s.lookup(&key);
        }
        if (!e)
                return XDP_PASS;
#pragma clang loop unroll(disable)
        for (i = 0; i < 256; i++) {
                seen = *(volatile u64 *)&e->ctl;
                if (!(seen & (1ULL << 63)) &&
                    __sync_val_compare_and_swap(&e->ctl, seen, seen | 1ULL << 63) == seen)
                        goto locked;
        }
        return XDP_PASS;
locked:
        if (reply == !(seen & %(orig_hi)dULL)) {
                e->reply_packets++;
                e->reply_bytes += octets;
                seen |= %(seen_reply)dULL;
        } else {
                e->orig_packets++;
                e->orig_bytes += octets;
        }
        e->last_seen = now;
        e->expires = (u32)now + 100000;
        __sync_lock_test_and_set(&e->ctl, seen);
        at = %(tracked)d;
        n = stats.lookup(&at);
        if (n)
                __sync_fetch_and_add(n, 1);
        return XDP_PASS;
}
int ingress(struct xdp_md *ctx) { return track(ctx, 0); }
int egress(struct xdp_md *ctx) { return track(ctx, 1); }
"""
TYPES = {"Q": "u64", "I": "u32", "H": "u16", "B": "u8"}


class Old:
    """Generation 1 of another layout, made by hand, byte for byte, as its release pins it; attached
    to SIDES.
    """

    def __init__(self, made: Chain, there: schema.Description) -> None:
        self.there, self.made, self.table = (
            there,
            made,
            "ctt" if there["layout"] == 1 else "ctt_new",
        )
        self.codec = chain_layout.codec(map(tuple, there["entry"]))
        directory = made.paths.gen_dir(1)
        for name in ("prog", "map"):
            os.makedirs(f"{directory}/{name}")
        self.maps = {}
        sizes = {
            "meta": 8 if there["layout"] == 1 else len(chain_maps.META),
            **{name: len(names) for name, names in there["counters"].items()},
        }
        shapes = {"meta": ["array", 4, 8], "settings": ["array", 4, 64], **there["maps"]}
        if there["layout"] != 1:
            shapes["schema"] = ["array", 4, chain_maps.SCHEMA_BYTES]
        for name, (kind, key, value) in shapes.items():
            entries = sizes.get(name, 1 if name in ("settings", "schema") else SIZE)
            self.maps[name] = bpf.map_create(
                bpf_constants.MAP_TYPES[kind], name, key, value, entries
            )
            bpf.obj_pin(self.maps[name], f"{directory}/map/{name}")
        self.meta(layout=there["layout"], generation=1)
        if there["layout"] != 1:
            self.meta(schema=schema.digest(there))
            bpf.map_update(
                self.maps["schema"],
                U32.pack(0),
                json.dumps(there).encode().ljust(chain_maps.SCHEMA_BYTES, b"\0"),
            )
        self._load(directory)
        os.symlink("gen/1", made.paths.active)
        for path, target in made.paths.seed_links().items():
            os.symlink(target, path)
        made.attach()

    def meta(self, **values: int) -> None:
        for name, value in values.items():
            bpf.map_update(self.maps["meta"], U32.pack(chain_maps.META[name]), U64.pack(value))

    def _load(self, directory: str) -> None:
        import bcc

        fields = " ".join(
            f"{TYPES[code]} {name.replace('.', '_')};" for name, code in self.there["entry"]
        )
        names = self.there["counters"]["stats"]
        text = OLD_CHAIN % {
            "fields": fields,
            "maps": f"{directory}/map",
            "meta": bpf.map_info(self.maps["meta"]).max_entries,
            "stats": len(names),
            "table": self.table,
            "size": SIZE,
            "seen_reply": self.there["ctl"]["seen_reply"],
            "orig_hi": self.there["ctl"]["orig_hi"],
            "hz": chain_jiffies.hz(),
            "tracked": names.index("tracked"),
        }
        os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES / "stub")
        module = bcc.BPF(text=text.encode(), cflags=build_bcc.flags())
        for name in ("ingress", "egress"):
            program = module.load_func(
                name.encode(), bcc.BPF.XDP, attach_type=bpf_constants.ATTACH_XDP
            )
            bpf.obj_pin(program.fd, f"{directory}/prog/xdp_{chain_programs.SLOTS[name]}")
        module.cleanup()

    def now(self) -> tuple[int, int]:
        """jiffies64 of this instant, and jiffies a second."""
        with bpf.closing(bpf.obj_get(self.made.paths.prog(chain_programs.SLOTS["ingress"]))) as fd:
            bpf.prog_test_run(fd, bytes(60))  # it takes the clock with its first packet
        raw = {
            name: U64.unpack(
                bpf.map_lookup(self.maps["meta"], U32.pack(chain_maps.META[name]), 8) or b""
            )[0]
            for name in ("jiffies", "ktime_ns")
        }
        return clock.jiffies_now(raw), chain_jiffies.hz()

    def write(self, table: str, key: bytes, parts: t.Mapping[str, int], **fields: int) -> None:
        """Write an entry; ``parts`` are those of the control word, a field's dot is written as two
        underscores.
        """
        ctl = 0
        for name, number in parts.items():
            mask = self.there["ctl"][name]
            ctl |= number * (mask & -mask)
        given = {"ctl": ctl, **{name.replace("__", "."): value for name, value in fields.items()}}
        bpf.map_update(
            self.maps[table],
            key,
            self.codec.pack(*(given.get(name, 0) for name, dummy in self.there["entry"])),
        )

    def close(self) -> None:
        for fd in self.maps.values():
            bpf.close(fd)


def key_of(talk: Talk) -> bytes:
    src, dst = talk.ends
    ports = struct.unpack("=HH", struct.pack("!HH", 40000, 80))
    return (chain_layout.KEY6 if talk.family == 6 else chain_layout.KEY4).pack(
        src, dst, *ports, talk.proto, 0, 0
    )


LAYOUTS: dict[str, tuple[c.Callable[[], schema.Description], str]] = {
    "layout 1": (lambda: schema.KNOWN[1], "fail"),
    "a layout that nobody knows": (later_layout, "migrate"),
}
IDLE = 300
#: Connections of which the new chain misses more than a window.
AHEAD = 40


def write_talking(old: Old, talks: c.Iterable[Talk]) -> None:
    """Write the flows of which packets go both ways."""
    now, rate = old.now()
    for talk in talks:
        # in a table that holds all flows some are assured; each goes on being found, whichever
        # side's packets the old chain still gets
        parts = (
            {"seen_reply": 1, "assured": 1} if old.there["layout"] == 1 and talk.number % 2 else {}
        )
        times = {
            "created": now // rate,
            "expires": (now + 1000 * rate) & 0xFFFFFFFF,
            "last_end": (now + rate * 900) & 0xFFFFFFFF,
        }
        old.write(old.table, key_of(talk), parts, **times)


def write_idle(old: Old, idle: c.Iterable[Talk]) -> None:
    """Write flows of both families, assured and not, that say nothing meanwhile."""
    now, rate = old.now()
    for talk in idle:
        assured = talk.number % 3 > 0
        names = (
            {"ipv4": "ctt", "ipv6": "ctt6"}
            if old.there["layout"] == 1 or assured
            else {"ipv4": "ctt_new", "ipv6": "ctt6_new"}
        )
        parts = {
            "state": 3 if assured else 2,
            "assured": assured,
            "seen_reply": 1,
            "egress": talk.number & 1,
            "vlans": 1,
            "vlan_outer": 77,
        }
        old.write(
            names[f"ipv{talk.family}"],
            key_of(talk),
            parts,
            orig__packets=talk.number,
            reply__bytes=1 << 40,
            related__packets=3,
            created=now // rate - 50,
            last_seen=(now - 7 * rate) & 0xFFFFFFFF,
            expires=(now + 1000 * rate) & 0xFFFFFFFF,
        )


def write_ahead(old: Old, ahead: c.Iterable[Talk]) -> None:
    """Write connections with the windows that the new chain is going to find."""
    now, rate = old.now()
    for talk in ahead:
        behind = 0 if old.there["layout"] == 1 else 1 << 19
        sides = {"orig": talk.sequence[0], "reply": talk.sequence[1]}
        windows = {
            f"{side}__{name}": at - behind
            for side, at in sides.items()
            for name in ("td_end", "td_maxend", "td_maxack")
        }
        windows |= dict.fromkeys(("orig__td_maxwin", "reply__td_maxwin"), 60000)
        times = {"created": now // rate, "expires": (now + 1000 * rate) & 0xFFFFFFFF}
        old.write(
            "ctt", key_of(talk), {"state": 3, "assured": 1, "seen_reply": 1}, **windows, **times
        )


def write_counters(old: Old, created: int) -> None:
    """Write what the old chain counted."""
    for name, number in {"created": created, "tracked": 5}.items():
        values = bpf.percpu_value(old.maps["stats"], old.there["counters"]["stats"].index(name), 8)
        values[0] = U64.pack(number)
        bpf.map_update(
            old.maps["stats"],
            U32.pack(old.there["counters"]["stats"].index(name)),
            b"".join(values),
        )
    deleted = old.there["counters"]["deletions"].index("deleted_flushed")
    bpf.map_update(old.maps["deletions"], U32.pack(deleted), U64.pack(4))


def assert_idle_kept(
    flows: dict[tuple[t.Any, ...], dict[str, t.Any]], idle: c.Iterable[Talk]
) -> None:
    """The flows of write_idle() are as they were written."""
    for talk in idle:
        record, assured = flows[talk.key], talk.number % 3 > 0
        assert (
            record["table"]
            == {(4, True): "ctt", (4, False): "ctt_new", (6, True): "ctt6", (6, False): "ctt6_new"}[
                talk.family, assured
            ]
        )
        assert (record["state"], record["assured"], record["seen_reply"]) == (
            "ESTABLISHED" if assured else "SYN_RECV",
            assured,
            True,
        )
        assert (
            record["orig"]["packets"],
            record["reply"]["bytes"],
            record["related"]["packets"],
            record["vlan"],
        ) == (talk.number, 1 << 40, 3, [77])
        assert (
            record["dir"] == ("ingress", "egress")[talk.number & 1]
            and 50 <= record["age"] < 200
            and 7 <= record["idle"] < 150
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_is_taken_over_under_traffic(
    made: Chain, wires: None, figure: c.Callable[[str, object], None], layout: str
) -> None:
    make, policy = LAYOUTS[layout]
    there = make()
    old = Old(made, there)
    talks = [Talk(frames.UDP, 4, number) for number in range(60)]
    idle = [Talk(frames.TCP, (4, 6)[number % 2], number) for number in range(1000, 1000 + IDLE)]
    ahead = [
        Talk(frames.TCP, 4, number, sequence=[1 << 20, 1 << 31])
        for number in range(2000, 2000 + AHEAD)
    ]
    switched = 0

    def run_ahead(dummy: int, event: syscalls.Event) -> None:
        """Between the two interfaces: the answers are seen by the old chain alone, and are long
        ones.
        """
        nonlocal switched
        switched += event.name == "bpf LINK_UPDATE"
        if event.name == "bpf LINK_UPDATE" and switched == 2:
            for talk in ahead:
                traffic.send(talk.round())
                talk.sequence[1] += 1 << 19

    try:
        write_talking(old, talks)
        write_idle(old, idle)
        write_ahead(old, ahead)
        write_counters(old, IDLE + AHEAD + len(talks))
        with Traffic(talks, fresh=False) as traffic:
            time.sleep(0.2)
            assert made.ensure(check_mode=True, on_schema_change="drop")[1] != {}, (
                "all flows would be forgotten"
            )
            if policy != "fail":
                with pytest.raises(
                    ConntrackError,
                    match=(
                        "ctl assured was 0x1000000000000000 and is 0x20.*Nothing was changed.*three"
                        " ways on"
                    ),
                ):
                    made.ensure()
                assert generation.observe(made.paths).leftovers == ()
            done, lost, warnings = syscalls.outcome(
                lambda: made.ensure(on_schema_change=policy), run_ahead
            )
            assert lost == {} and warnings == [] and "move" in [step["action"] for step in done]
            traffic.send(
                [packet for talk in ahead for dummy in range(3) for packet in talk.round()]
            )
    finally:
        old.close()
    flows, counters = made.flows(), made.counters()
    assert dropped() == 0
    wrong = {
        talk.key: (talk.sent, flows.get(talk.key))
        for talk in talks
        if talk.key not in flows or packets(flows[talk.key]) != talk.sent
    }
    assert not wrong, f"{len(wrong)} of {len(talks)}: {next(iter(wrong.items()))}"
    odd = {
        talk.key: (talk.octets, flows[talk.key])
        for talk in talks
        if flows[talk.key]["reply"]["bytes"] != talk.octets[1]
    }
    assert not odd, f"{len(odd)} of {len(talks)}: {next(iter(odd.items()))}"
    assert_idle_kept(flows, idle)
    assert [talk.sent for talk in ahead] == [[4, 4]] * AHEAD
    missing = [8 - sum(packets(flows[talk.key])) for talk in ahead]
    # of layout 1 a connection may miss a packet while the interfaces are switched one after the
    # other: docs/guide/upgrades.md
    assert sum(missing) <= (layout == "layout 1"), "each is within its window"
    assert len(flows) == len(talks) + IDLE + AHEAD
    assert (
        counters["tracked"] == 5 + sum(sum(talk.sent) for talk in (*talks, *ahead))
        and counters["deleted_flushed"] == 4
    )
    assert counters["created"] == IDLE + AHEAD + len(talks), "none was made anew"
    made.assert_settled()
    figure(
        f"flows kept when {layout} is taken over under traffic, packets missing in them",
        f"{len(flows)} of {len(talks) + IDLE + AHEAD}, 0",
    )
    made.attach("absent")
