# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests on the wire: the access list that comes with the collection, programs that are pinned, and
what becomes of both when a generation follows.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import guests
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import CLIENT, PORT, SERVER, Wire
from ansible_collections.ebpf.conntrack.tests.oracle.rig import frames
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "files/bpf/guests/acl.c"
ACL = {"slot": "acl", "src": str(SOURCE)}
OPEN_PORT, SHUT_PORT = 7777, 7778
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
#: enum acl_setting, acl_mode and acl_hit of acl.c
MODE, FRAGMENTS = 0, 1
COUNT, DROP = 0, 1
UNSOLICITED, FRAGMENT, UNCLEAR = 0, 1, 2
NOT_COMING = 0.4  # seconds to wait for what must not come
U32 = struct.Struct("=I")
XDP_DROP, XDP_PASS = 1, 2


def bpftool(*words: str) -> t.Any:
    """Return what bpftool says, as data."""
    return json.loads(
        subprocess.run(["bpftool", "-j", *words], check=True, capture_output=True, text=True).stdout
        or "null"
    )


def jump_table(root: str) -> dict[int, int]:
    """Program id by slot, as bpftool sees them."""
    rows = bpftool("map", "dump", "pinned", f"{root}/map/jt")
    number = {
        tuple(f"0x{byte:02x}" for byte in U32.pack(slot)): slot
        for slot in range(chain_programs.JT_ENTRIES)
    }
    return {
        number[tuple(row["key"])]: int.from_bytes(
            bytes(int(byte, 16) for byte in row["value"]), "little"
        )
        for row in rows
        if "value" in row
    }


@dataclasses.dataclass
class Acl:
    """The access list in a lab, used as an operator uses it."""

    wire: Wire

    def pin(self, name: str) -> str:
        return f"{self.wire.chain.paths.pin_root}/map/{name}"

    def set(self, setting: int, value: int) -> None:
        bpftool(
            "map",
            "update",
            "pinned",
            self.pin("acl_set"),
            "key",
            *hexed(U32.pack(setting)),
            "value",
            *hexed(U32.pack(value)),
        )

    def rule(
        self, proto: int, dport: int, source: str = "0.0.0.0", bits: int = 0, may: int = 1
    ) -> None:
        key = (
            struct.pack("=IBx", 32 + 96 + bits, proto)
            + struct.pack("!H", dport)
            + bytes(10)
            + b"\xff\xff"
            + socket.inet_aton(source)
        )
        bpftool(
            "map",
            "update",
            "pinned",
            self.pin("acl_rules"),
            "key",
            *hexed(key),
            "value",
            *hexed(U32.pack(may)),
        )

    def rules(self) -> list[t.Any]:
        return [row["key"] for row in bpftool("map", "dump", "pinned", self.pin("acl_rules"))]

    def hits(self) -> tuple[int, ...]:
        with bpf.closing(bpf.obj_get(self.pin("acl_hits"))) as fd:
            return tuple(
                sum(int.from_bytes(one, "little") for one in bpf.percpu_value(fd, index, 8))
                for index in range(3)
            )

    def counts(self) -> dict[str, int]:
        with bpf.closing(bpf.obj_get(self.pin("guest_stats"))) as fd:
            return guests.counts(fd, chain_programs.GUEST_SLOTS["acl"])

    def dropped(self) -> int:
        return self.counts()["dropped"]

    def clear(self) -> None:
        """As it is when it was just loaded, but for the counts."""
        for key in self.rules():
            subprocess.run(
                ["bpftool", "map", "delete", "pinned", self.pin("acl_rules"), "key", *key],
                check=True,
            )
        self.set(MODE, COUNT)
        self.set(FRAGMENTS, 0)


def hexed(raw: bytes) -> list[str]:
    return [f"0x{byte:02x}" for byte in raw]


@pytest.fixture(scope="module", params=[False, True], ids=["chain", "fused"])
def guarded(request: pytest.FixtureRequest) -> c.Iterator[Wire]:
    """The lab with the access list, in both forms of the chain."""
    with Wire(fused=request.param, asked=[ACL]) as made:
        yield made


@pytest.fixture
def acl(guarded: Wire) -> c.Iterator[Acl]:
    """The access list, dropping, without rules."""
    guarded.reset()
    made = Acl(guarded)
    made.clear()
    made.set(MODE, DROP)
    yield made
    guarded.reset()


def knock(wire: Wire, port: int) -> bool:
    """Connect from outside to a port of the client's; whether somebody is heard."""
    knocking = wire.open("server", socket.SOCK_STREAM)
    knocking.settimeout(NOT_COMING)
    try:
        knocking.connect((CLIENT, port))
    except TimeoutError:
        return False
    return True


def listening(wire: Wire, port: int) -> socket.socket:
    listener = wire.open("client", socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((CLIENT, port))
    listener.listen(8)
    return listener


# ---------------------------------------------------------------- what the access list does
def test_what_was_begun_inside_passes(acl: Acl) -> None:
    wire, before, hits = acl.wire, acl.counts(), acl.hits()
    tcp = wire.connect()
    tcp.exchange(20_000, 200_000)
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.sendto(b"question", (SERVER, PORT))
    server.sendto(b"answer", server.recvfrom(100)[1])
    assert client.recv(100) == b"answer"
    assert "2 received" in wire.run("client", "ping", "-c", "2", "-i", "0.2", SERVER)
    wire.only("tcp", state="ESTABLISHED", assured=True, dir="ingress")
    wire.only("udp", state="REPLIED", dir="ingress")
    tcp.close()
    wire.only("tcp", state="TIME_WAIT")
    after = acl.counts()
    assert after["dropped"] == before["dropped"] and acl.hits() == hits
    assert after["passed"] - before["passed"] == after["seen"] - before["seen"] > 20


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_what_was_not_asked_for_is_dropped_counted_and_leaves_no_flow(acl: Acl, proto: int) -> None:
    wire, before, hits, counters = acl.wire, acl.dropped(), acl.hits(), acl.wire.counters()
    if proto == TCP:
        listening(wire, OPEN_PORT)
        assert not knock(wire, OPEN_PORT)
    else:
        client = wire.udp("client", OPEN_PORT)
        client.settimeout(NOT_COMING)
        wire.udp("server").sendto(b"hello", (CLIENT, OPEN_PORT))
        with pytest.raises(TimeoutError):
            client.recv(100)
    dropped = acl.dropped() - before
    assert dropped >= 1
    assert acl.hits() == (hits[UNSOLICITED] + dropped, hits[FRAGMENT], hits[UNCLEAR])
    after = wire.counters()
    assert after["tracked"] - counters["tracked"] == dropped, (
        "the outcome stays what the tracker said"
    )
    assert (
        after["created"] - counters["created"]
        == after["deleted_dropped"] - counters["deleted_dropped"]
        == dropped
    )
    assert wire.records("tcp") == wire.records("udp") == [] and not [
        one for one in wire.kernel() if one.proto in ("tcp", "udp")
    ]


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_rule_lets_a_port_in_and_nothing_else(acl: Acl, proto: int) -> None:
    wire = acl.wire
    acl.rule(proto, OPEN_PORT, "172.30.0.0", 16)
    if proto == TCP:
        kept = [listening(wire, port) for port in (OPEN_PORT, SHUT_PORT)]
        assert knock(wire, OPEN_PORT) and not knock(wire, SHUT_PORT)
        wire.only("tcp", state="ESTABLISHED", dir="egress", assured=True)
        del kept
    else:
        opened, shut = (wire.udp("client", port) for port in (OPEN_PORT, SHUT_PORT))
        shut.settimeout(NOT_COMING)
        outside = wire.udp("server")
        for port in (SHUT_PORT, OPEN_PORT):
            outside.sendto(b"hello", (CLIENT, port))
        assert opened.recv(100) == b"hello"
        with pytest.raises(TimeoutError):
            shut.recv(100)
        wire.only("udp", state="NEW", dir="egress")
    acl.rule(proto, OPEN_PORT, SERVER, 32, may=0)
    wire.flush()
    if proto == TCP:
        assert not knock(wire, OPEN_PORT), "a longer prefix is an exception"


def test_what_was_let_in_goes_on_when_the_rule_goes(acl: Acl) -> None:
    wire = acl.wire
    acl.rule(TCP, OPEN_PORT)
    listener, knocking = listening(wire, OPEN_PORT), wire.open("server", socket.SOCK_STREAM)
    knocking.connect((CLIENT, OPEN_PORT))
    inside, dummy = listener.accept()
    acl.clear()
    acl.set(MODE, DROP)
    knocking.sendall(b"still here")
    inside.settimeout(5)
    assert inside.recv(100) == b"still here"
    inside.close()
    assert not knock(wire, OPEN_PORT)


def test_errors_about_a_flow_pass_and_others_do_not(acl: Acl) -> None:
    wire, hits = acl.wire, acl.hits()
    client = wire.udp("client")
    client.connect((SERVER, SHUT_PORT))
    client.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)
    assert wire.only("udp", state="NEW", dir="ingress")["related"]["packets"] == 1
    assert acl.hits() == hits
    before = acl.dropped()
    ip = frames.ipv4(
        frames.address(CLIENT),
        frames.address(SERVER),
        UDP,
        frames.udp(frames.address(CLIENT), frames.address(SERVER), 1, 2),
    )
    error = frames.icmp(3, 3, payload=ip)
    wire.open("server", socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(error, (CLIENT, 0))
    assert wait_for(lambda: acl.dropped() - before) == 1
    assert acl.hits() == (hits[UNSOLICITED], hits[FRAGMENT], hits[UNCLEAR] + 1)


def wait_for(number: c.Callable[[], int], at_least: int = 1) -> int:
    """Wait until a number is there, for five seconds at most; return it."""
    deadline = time.monotonic() + 5
    while number() < at_least and time.monotonic() < deadline:
        time.sleep(0.01)
    return number()


def test_counting_only_lets_everything_in(acl: Acl) -> None:
    wire, hits, before = acl.wire, acl.hits(), acl.counts()
    acl.set(MODE, COUNT)
    listener = listening(wire, OPEN_PORT)
    assert knock(wire, OPEN_PORT)
    listener.close()
    assert acl.hits()[UNSOLICITED] == hits[UNSOLICITED] + 1, "the SYN; what follows was answered"
    after = acl.counts()
    assert after["dropped"] == before["dropped"] and after["seen"] > before["seen"]


def test_fragments_pass_only_when_they_are_let(acl: Acl) -> None:
    wire, hits = acl.wire, acl.hits()
    client, server = wire.udp("client"), wire.udp("server", PORT)
    client.settimeout(NOT_COMING)
    client.sendto(b"long answer, please", (SERVER, PORT))
    there = server.recvfrom(100)[1]
    server.sendto(bytes(4000), there)
    with pytest.raises(TimeoutError):
        client.recv(5000)
    assert acl.hits() == (
        hits[UNSOLICITED],
        hits[FRAGMENT] + 2,
        hits[UNCLEAR],
    ), "of three, the one that completes the datagram belongs to the flow"
    acl.set(FRAGMENTS, 1)
    server.sendto(bytes(4000), there)
    client.settimeout(5)
    assert len(client.recv(5000)) == 4000


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
def test_both_families_alike(acl: Acl, pair: frames.Pair) -> None:
    """Frame by frame, for the lab has no IPv6."""
    entries = acl.wire.chain.entries

    def verdict(step: frames.Step) -> int:
        return bpf.prog_test_run(entries[step.side], step.frame).retval

    with (
        bpf.closing(
            bpf.obj_get(acl.wire.chain.paths.prog(chain_programs.SLOTS["ingress"]))
        ) as ingress,
        bpf.closing(
            bpf.obj_get(acl.wire.chain.paths.prog(chain_programs.SLOTS["egress"]))
        ) as egress,
    ):
        entries = {"a": ingress, "b": egress}
        assert verdict(pair.udp("b")) == XDP_DROP
        assert acl.wire.chain.records() == []
        assert verdict(pair.udp("a")) == XDP_PASS
        assert verdict(pair.udp("b")) == XDP_PASS
        assert verdict(pair.tcp("b", "S", 1, 0, 100)) == XDP_DROP
        assert verdict(pair.echo("b", 9)) == XDP_DROP
        arp = frames.Step("b", frames.ethernet(bytes(28), 0x0806), "ARP")
        assert verdict(arp) == XDP_PASS
    assert len(acl.wire.chain.records()) == 1


# ---------------------------------------------------------------- generations
def test_a_new_generation_keeps_the_list_and_its_rules_under_traffic(
    acl: Acl, figure: c.Callable[[str, object], None]
) -> None:
    wire = acl.wire
    acl.rule(UDP, OPEN_PORT)
    rules, identity, before = (
        acl.rules(),
        bpftool("map", "show", "pinned", acl.pin("acl_rules"))["id"],
        acl.dropped(),
    )
    opened, shut = (wire.udp("client", port) for port in (OPEN_PORT, SHUT_PORT))
    outside, ended = wire.udp("server"), threading.Event()
    sent = 0

    def unsolicited() -> None:
        nonlocal sent
        while not ended.is_set():
            outside.sendto(b"shut", (CLIENT, SHUT_PORT))
            outside.sendto(b"open", (CLIENT, OPEN_PORT))
            sent += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=unsolicited)
    thread.start()
    try:
        want, swaps = wire.chain.want([ACL]), 2
        for number in range(swaps):
            generation.ensure(
                wire.chain.paths,
                dataclasses.replace(want, text=f"{want.text}\n/* {number} {time.monotonic()} */\n"),
            )
    finally:
        ended.set()
        thread.join()
    assert wait_for(lambda: acl.dropped() - before, sent) == sent
    shut.setblocking(False)
    with pytest.raises(BlockingIOError):
        shut.recv(100)
    heard = 0
    opened.setblocking(False)
    try:
        while opened.recv(100):
            heard += 1
    except BlockingIOError:
        pass
    assert heard > 0
    assert (
        acl.rules() == rules
        and bpftool("map", "show", "pinned", acl.pin("acl_rules"))["id"] == identity
    )
    have = generation.observe(wire.chain.paths)
    assert have.faults == () and set(have.guest_maps) == {"acl_set", "acl_rules", "acl_hits"}
    assert jump_table(wire.chain.paths.pin_root) == {
        slot: info.id for slot, info in have.programs.items()
    }
    figure(
        "guests: generation swaps with an access list, packets that it had to drop, let in by"
        " mistake",
        f"{swaps}, {sent}, 0",
    )


def test_a_list_that_is_taken_away_is_gone(acl: Acl) -> None:
    wire = acl.wire
    root, slot = wire.chain.paths.pin_root, chain_programs.GUEST_SLOTS["acl"]
    listener = listening(wire, OPEN_PORT)
    assert not knock(wire, OPEN_PORT)
    acl.rule(TCP, SHUT_PORT)
    try:
        plan, have = generation.ensure(wire.chain.paths, wire.chain.want())
        assert [step.action for step in plan if step.kind == "generation"][:2] == [
            "load",
            "activate",
        ]
        assert slot not in have.programs and have.guest_maps == {} and slot not in jump_table(root)
        assert not os.path.exists(f"{root}/prog/xdp_{slot}") and not os.path.exists(
            acl.pin("acl_rules")
        )
        wire.flush()
        assert knock(wire, OPEN_PORT)
        assert generation.ensure(wire.chain.paths, wire.chain.want())[0] == []
    finally:
        dummy, have = generation.ensure(wire.chain.paths, wire.chain.want([ACL]))
    listener.close()
    assert slot in have.programs and acl.rules() == [], "what comes back begins anew"
    assert generation.ensure(wire.chain.paths, wire.chain.want([ACL]))[0] == []


# ---------------------------------------------------------------- programs that are pinned
def instructions(*words: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=BBhi", *word) for word in words)


EXIT = (0x95, 0, 0, 0)
DROPPER = instructions((0xB7, 0, 0, XDP_DROP), EXIT)
#: Takes the metadata off, as docs/guide/guests.md wants it (r2 = 32; bpf_xdp_adjust_meta(ctx, r2)),
#: and passes the frame.
PASSER = instructions((0xB7, 2, 0, 32), (0x85, 0, 0, 54), (0xB7, 0, 0, XDP_PASS), EXIT)
NOT_XDP = instructions((0xB7, 0, 0, 0), EXIT)
NOTHING = "GUEST(nothing)\n{\n\treturn guest_next(ctx);\n}\n"


@dataclasses.dataclass
class Bare:
    """A chain on no interface, beside pins of somebody else."""

    rig: ChainRig
    tmp: pathlib.Path
    pins: list[str] = dataclasses.field(default_factory=list)

    def pin(self, insns: bytes, name: str, **how: t.Any) -> str:
        path = os.path.join(self.rig.paths.pin_root, name)
        with bpf.closing(bpf.prog_load(insns, name, **how)) as fd:
            bpf.obj_pin(fd, path)
        self.pins.append(path)
        return path

    def source(self, text: str, name: str = "mine.c") -> str:
        path = self.tmp / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def ensure(
        self, *asked: dict[str, t.Any], check_mode: bool = False
    ) -> tuple[list[t.Any], generation.Have]:
        return generation.ensure(self.rig.paths, self.rig.want(asked), check_mode)

    def run(self, frame: bytes) -> tuple[int, bytes]:
        with bpf.closing(bpf.obj_get(self.rig.paths.prog(chain_programs.SLOTS["ingress"]))) as fd:
            ran = bpf.prog_test_run(fd, frame)
            return ran.retval, ran.data_out

    def counts(self, slot: int) -> dict[str, int]:
        with bpf.closing(bpf.obj_get(self.rig.paths.map("guest_stats"))) as fd:
            return guests.counts(fd, slot)

    def seen_by(self, *slots: int) -> list[int]:
        return [self.counts(slot)["seen"] for slot in slots]


@pytest.fixture(scope="module")
def rig_without_a_lab() -> c.Iterator[ChainRig]:
    """A chain; the tests leave in it what they will."""
    with ChainRig() as rig:
        yield rig


@pytest.fixture
def bare(rig_without_a_lab: ChainRig, tmp_path: pathlib.Path) -> c.Iterator[Bare]:
    """The same, with room for this test's programs."""
    made = Bare(rig_without_a_lab, tmp_path)
    yield made
    for path in made.pins:
        if os.path.exists(path):
            os.unlink(path)


FRAME = frames.V4.udp("a").frame


def test_a_pinned_program_is_taken_as_it_is(bare: Bare) -> None:
    path = bare.pin(PASSER, "passer")
    asked = {"slot": "21", "pinned": path}
    mine = bpftool("prog", "show", "pinned", path)
    plan, have = bare.ensure(asked)
    assert [step.action for step in plan][:2] == ["load", "activate"]
    shown = next(
        program
        for program in generation.facts(have, bare.rig.paths)["programs"]
        if program["slot"] == 21
    )
    assert (shown["name"], shown["id"], shown["tag"]) == (mine["name"], mine["id"], mine["tag"])
    assert (
        bpftool("prog", "show", "pinned", shown["pin"])["id"]
        == mine["id"]
        == jump_table(bare.rig.paths.pin_root)[21]
    )
    before = bare.counts(21)
    assert bare.run(FRAME) == (XDP_PASS, FRAME)
    assert bare.counts(21) == {
        **before,
        "seen": before["seen"] + 1,
    }, "what it does with a frame nobody can count"
    assert bare.ensure(asked)[0] == [], "a second run changes nothing"
    os.unlink(path)
    assert bare.run(FRAME) == (XDP_PASS, FRAME), "the generation holds it"
    bare.pin(DROPPER, "passer")
    plan, have = bare.ensure(asked)
    assert [step.action for step in plan][:2] == [
        "load",
        "activate",
    ], "another program behind the same path is another guest"
    assert bare.run(FRAME)[0] == XDP_DROP, "a chain whose guest drops everything can be proved, too"


def test_guests_run_in_the_order_of_their_slots(bare: Bare) -> None:
    path = bare.pin(DROPPER, "dropper")
    first = {"slot": "nat", "src": bare.source(NOTHING)}
    last = {"slot": 29, "src": bare.source(NOTHING.replace("nothing", "last"), "last.c")}
    bare.ensure(last, {"slot": "22", "pinned": path}, first)
    seen = bare.seen_by(5, 22, 29)
    assert bare.run(FRAME)[0] == XDP_DROP
    assert bare.seen_by(5, 22, 29) == [seen[0] + 1, seen[1] + 1, seen[2]]


def test_an_empty_slot_is_passed_over_named_and_filled_again(bare: Bare) -> None:
    sources = {
        slot: {
            "slot": slot,
            "src": bare.source(NOTHING.replace("nothing", f"g{slot}"), f"g{slot}.c"),
        }
        for slot in (4, 5, 21)
    }
    dummy, have = bare.ensure(*sources.values())
    seen = bare.seen_by(4, 5, 21)
    for slot in (4, 21):
        subprocess.run(
            [
                "bpftool",
                "map",
                "delete",
                "pinned",
                f"{bare.rig.paths.pin_root}/map/jt",
                "key",
                *hexed(U32.pack(slot)),
            ],
            check=True,
        )
    assert bare.run(FRAME) == (XDP_PASS, FRAME)
    assert bare.seen_by(4, 5, 21) == [seen[0], seen[1] + 1, seen[2]]
    faults = " ".join(map(str, generation.observe(bare.rig.paths).faults))
    assert "slot 4 (acl)" in faults and "slot 21 (21)" in faults
    plan, have = bare.ensure(*sources.values())
    assert plan and have.faults == () and set(jump_table(bare.rig.paths.pin_root)) >= {4, 5, 21}
    assert bare.run(FRAME) == (XDP_PASS, FRAME)
    assert bare.seen_by(4, 5, 21) == [seen[0] + 1, seen[1] + 2, seen[2] + 1]


def test_going_back_brings_the_guests_of_then_with_what_their_maps_held(bare: Bare) -> None:
    """With one that drops everything, so that no frame of proof passes."""
    text = (
        'GUEST_MAP(kept, "array", int, u32, 1, 0);\nGUEST(dropper)\n{\n\tint i ='
        " 0;\n\n\tkept.lookup(&i);\n\treturn guest_drop(ctx, f);\n}\n"
    )
    dummy, have = bare.ensure({"slot": 21, "src": bare.source(text)})
    with bpf.closing(bpf.obj_get(bare.rig.paths.map("kept"))) as fd:
        bpf.map_update(fd, bytes(4), U32.pack(7))
    bare.ensure()
    assert bare.run(FRAME) == (XDP_PASS, FRAME)
    dummy, back = generation.roll_back(bare.rig.paths)
    assert (back.generation, back.faults, back.programs[21].id) == (
        have.generation,
        (),
        have.programs[21].id,
    )
    assert bare.run(FRAME)[0] == XDP_DROP and bare.counts(21)["dropped"] >= 1
    with bpf.closing(bpf.obj_get(bare.rig.paths.map("kept"))) as fd:
        assert bpf.map_lookup(fd, bytes(4), 4) == U32.pack(7)


def test_the_example_of_the_docs_can_be_loaded_and_counts(bare: Bare) -> None:
    page = (SOURCE.parents[3] / "docs/guide/guests.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    bare.ensure({"slot": 21, "src": bare.source(example)})
    steps = (
        frames.V4.tcp("a", "S", 1, 0, 100),
        frames.V4.tcp("a", "S", 1, 0, 100),
        frames.V4.udp("a"),
    )
    assert {bare.run(step.frame) for step in steps} == {(XDP_PASS, step.frame) for step in steps}
    with bpf.closing(bpf.obj_get(bare.rig.paths.map("seen_syns"))) as fd:
        assert sum(int.from_bytes(one, "little") for one in bpf.percpu_value(fd, 0, 8)) == 1


# ---------------------------------------------------------------- what is refused
REFUSED = {
    "no pin": (
        lambda bare: {"slot": 21, "pinned": f"{bare.rig.paths.pin_root}/nothing"},
        [r"guests\[0\]\.pinned: .*nothing' is not valid: No such file"],
    ),
    "a map": (
        lambda bare: {"slot": 21, "pinned": bare.rig.paths.map("ctt")},
        [r"it is a map; give an XDP program"],
    ),
    "another kind of program": (
        lambda bare: {"slot": 21, "pinned": bare.pin(NOT_XDP, "filter", kind=1, attach_type=0)},
        [r"it is a program of type 1; give an XDP program"],
    ),
    "another attach type": (
        lambda bare: {"slot": 21, "pinned": bare.pin(PASSER, "untyped", attach_type=0)},
        [
            r"one jump table with the chain \(Invalid argument\): it has to be loaded with"
            r" expected_attach_type BPF_XDP \(37\)"
        ],
    ),
    "C syntax": (
        lambda bare: {"slot": 4, "src": bare.source(NOTHING.replace(";", ""))},
        [
            r"compiling the chain failed",
            r"mine\.c:3:\d+: error: expected ';'",
            r"return guest_next\(ctx\)",
        ],
    ),
    "an unchecked access": (
        lambda bare: {
            "slot": 4,
            "src": bare.source(
                NOTHING.replace(
                    "\treturn",
                    "\tif (*(volatile u8 *)((void *)(long)ctx->data + 60))\n\t\treturn"
                    " XDP_DROP;\n\treturn",
                )
            ),
        },
        [
            r"loading nothing failed",
            r"invalid access to packet",
            r"mine\.c:3: if \(\*\(volatile u8",
        ],
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_can_not_be_a_guest_changes_nothing(bare: Bare, fault: str) -> None:
    make, patterns = REFUSED[fault]
    asked = make(bare)
    before = (
        jump_table(bare.rig.paths.pin_root),
        os.listdir(bare.rig.paths.gen),
        os.listdir(bare.rig.paths.pin_root),
    )
    with pytest.raises(ConntrackError) as raised:
        bare.ensure(asked)
    for pattern in patterns:
        assert re.search(pattern, raised.value.message), raised.value.message
    assert (
        jump_table(bare.rig.paths.pin_root),
        os.listdir(bare.rig.paths.gen),
        os.listdir(bare.rig.paths.pin_root),
    ) == before


def test_a_map_of_another_shape_needs_another_name(bare: Bare) -> None:
    text = 'GUEST_MAP(mine, "hash", u32, u64, 16, 0);\n' + NOTHING
    bare.ensure({"slot": 4, "src": bare.source(text)})
    before = jump_table(bare.rig.paths.pin_root)
    for old, new, words in (
        ("u32", "u64", "key_size 4, now 8"),
        ('"hash"', '"lru_hash"', "type 1, now 9"),
    ):
        with pytest.raises(
            ConntrackError,
            match=(
                f"guests: the map mine has another shape in the running generation: {words}. Give"
                " it another name"
            ),
        ):
            bare.ensure({"slot": 4, "src": bare.source(text.replace(old, new, 1))})
        assert jump_table(bare.rig.paths.pin_root) == before
    dummy, have = bare.ensure(
        {"slot": 4, "src": bare.source(text.replace("u32", "u64").replace("mine", "mine2"))}
    )
    assert set(have.guest_maps) == {"mine2"}
