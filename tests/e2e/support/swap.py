# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Established flows, frames at the highest rate that the kernel makes them, and generations that
take over from each other meanwhile.

A sender is a program that BPF_PROG_TEST_RUN runs again and again, each time on a frame that goes
out for real (BPF_F_TEST_XDP_LIVE_FRAMES): it gives the frame the next flow's port, and counts it.
The frames go over a veth to the chain, at one hook or at both, and on into a stack that they are
not for. What the chain counts, each flow for itself, is then held against what was sent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import socket
import struct
import subprocess
import threading
import time
import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import table as flow_table
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    bpffs,
    bpffs_mount,
    private_netns,
)
from ansible_collections.ebpf.conntrack.tests.oracle.rig import chain_rig, frames

FIRST_PORT = 10000
SERVER_PORT = 80
_PAYLOAD = 0xF000  # two bytes that take up again what the port adds to the checksum
#: Frames a call: the kernel takes some 20 ms to begin and to end one, in which it sends none.
_REPEAT = 1 << 17
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")


# ---------------------------------------------------------------- the sender
def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, off, imm)


def _program(counter: int, ifindex: int, flows: int, port_at: int, payload_at: int) -> bytes:
    """Return the instructions of a sender (Documentation/bpf/standardization/instruction-set.rst).

    :param counter: fd of an array of one u64, how many frames were made.
    :param port_at: where in the frame the flow's port is.
    """
    make = (
        _insn(0x85, imm=1)  # bpf_map_lookup_elem: r0 is the counter
        + _insn(0x15, 0, off=16)  # none: out
        + _insn(0x79, 1, 0)  # r1 = *r0
        + _insn(0xBF, 2, 1)
        + _insn(0x07, 2, imm=1)
        + _insn(0x7B, 0, 2)  # *r0 = r1 + 1
        + _insn(0x97, 1, imm=flows)  # r1 %= flows
        + _insn(0xB7, 3, imm=_PAYLOAD)
        + _insn(0x1F, 3, 1)  # r3 = payload - r1
        + _insn(0x07, 1, imm=FIRST_PORT)
        + _insn(0xDC, 1, imm=16)  # to network order
        + _insn(0xDC, 3, imm=16)
        + _insn(0x6B, 7, 1, off=port_at)
        + _insn(0x6B, 7, 3, off=payload_at)
        + _insn(0xB7, 1, imm=ifindex)
        + _insn(0xB7, 2)
        + _insn(0x85, imm=23)  # bpf_redirect
        + _insn(0x95)
    )
    return (
        _insn(0x61, 7, 1, off=0)  # r7 = ctx->data
        + _insn(0x61, 8, 1, off=4)  # r8 = ctx->data_end
        + _insn(0xBF, 2, 7)
        + _insn(0x07, 2, imm=payload_at + 2)
        + _insn(0x2D, 2, 8, off=5 + len(make) // 8)  # too short: out
        + _insn(0x62, 10, off=-4)  # the key, 0
        + _insn(0xBF, 2, 10)
        + _insn(0x07, 2, imm=-4)
        + _insn(0x18, 1, 1, imm=counter)
        + _insn(0)
        + make
        + _insn(0xB7)  # out: r0 = XDP_ABORTED
        + _insn(0x95)
    )


@dataclasses.dataclass(frozen=True)
class Way:
    """Frames of one family that come in at one hook.

    :ivar family: a key of frames.PAIRS.
    :ivar hook: of chain.TRACKING_HOOKS.
    """

    family: str
    hook: str

    @property
    def pair(self) -> frames.Pair:
        """The two hosts."""
        return dataclasses.replace(frames.PAIRS[self.family], aport=FIRST_PORT, bport=SERVER_PORT)

    def frame(self) -> bytes:
        """Return a segment of the first flow, with two bytes of data."""
        src, dst, sport, dport = self.pair.ends("a" if self.hook == "ingress" else "b")
        seq, ack = (101, 301) if self.hook == "ingress" else (301, 101)
        segment = frames.tcp(
            src,
            dst,
            sport,
            dport,
            seq,
            ack,
            frames.tcp_flags("PA"),
            8192,
            _PAYLOAD.to_bytes(2, "big"),
        )
        return frames.frame(frames.ip(src, dst, frames.TCP, segment))


class Sender:
    """Sends one way's frames out of an interface of the current namespace."""

    def __init__(self, way: Way, interface: str, flows: int) -> None:
        self.way, self.flows = way, flows
        self._frame = way.frame()
        port_at = 14 + (40 if way.family == "ipv6" else 20) + (0 if way.hook == "ingress" else 2)
        self._counter = bpf.map_create(bpf_constants.MAP_TYPES["array"], "made", 4, 8, 1)
        self._program = bpf.prog_load(
            _program(
                self._counter,
                socket.if_nametoindex(interface),
                flows,
                port_at,
                len(self._frame) - 2,
            ),
            "sender",
        )

    def send(self) -> None:
        """Send so many frames as one call makes."""
        bpf.prog_test_run(
            self._program,
            self._frame,
            repeat=_REPEAT,
            flags=bpf_constants.BPF_F_TEST_XDP_LIVE_FRAMES,
        )

    @property
    def sent(self) -> int:
        """How many frames were sent."""
        return int(
            _U64.unpack(bpf.map_lookup(self._counter, _U32.pack(0), _U64.size) or bytes(8))[0]
        )

    def of_flow(self, number: int) -> int:
        """Return how many of the frames were of one flow."""
        return (self.sent + self.flows - 1 - number) // self.flows

    def close(self) -> None:
        for fd in (self._program, self._counter):
            bpf.close(fd)


@contextlib.contextmanager
def sending(senders: t.Sequence[Sender]) -> t.Iterator[None]:
    """Let the senders send in turn while a ``with`` block works. They do so in one thread: on one
    CPU no queue between them and the chain runs over.

    :raises Exception: what ended the sending before its time.
    """
    stop = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            for sender in itertools.cycle(senders):
                if stop.is_set():
                    return
                sender.send()
        except Exception as exc:  # those who wait for the block shall see it
            errors.append(exc)

    thread = threading.Thread(target=run, daemon=True)  # it inherits the namespace
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- the lab
@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    :ivar sent: frames that the senders made.
    :ivar received: frames that the attached interfaces received.
    :ivar dropped: frames that found the interface's queue full, so that nobody received them.
    :ivar counted: frames that the chain counted, by outcome.
    :ivar lost_flows: flows that were there before and are not now.
    :ivar wrong_flows: flows whose packets are not those that were sent, or that are not established
        any more.
    :ivar missing: packets that those flows lack.
    :ivar seconds: how long the senders sent.
    """

    swaps: int
    sent: int
    received: int
    dropped: int
    counted: dict[str, int]
    flows: int
    lost_flows: int
    wrong_flows: int
    missing: int
    seconds: float

    @property
    def unseen(self) -> int:
        """Frames that came in and were not counted."""
        return self.received - sum(self.counted.values())


class Load:
    """Two interfaces with the chain, senders on the other ends, and flows that both directions of
    were seen. Use as a context manager.

    :param ways: what is sent.
    :param flows: TCP connections of each family.
    """

    def __init__(self, ways: t.Sequence[Way], flows: int, state_dir: str) -> None:
        self.ways, self.flows = ways, flows
        self.paths = bpffs.Paths(
            os.path.join(bpffs.STANDARD, f"swap_{secrets.token_hex(4)}"), state_dir
        )
        self.headers = render.read_headers(str(chain_rig.SOURCES))
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Load:
        with contextlib.ExitStack() as undo:
            bpffs_mount.ensure_mounted(bpffs.STANDARD)
            os.mkdir(self.paths.pin_root)
            undo.callback(generation.remove_tree, self.paths.pin_root)
            undo.enter_context(private_netns.anonymous())
            for hook in chain_programs.TRACKING_HOOKS:
                subprocess.run(
                    ["ip", "link", "add", hook, "type", "veth", "peer", "name", f"to-{hook}"],
                    check=True,
                )
                for name in (hook, f"to-{hook}"):
                    subprocess.run(
                        ["ip", "link", "set", name, "addrgenmode", "none", "up"], check=True
                    )
                # so that a veth without a program takes frames, too: what happens to them is then
                # for the chain alone
                subprocess.run(
                    ["ethtool", "-K", hook, "gro", "on"], check=True, stdout=subprocess.DEVNULL
                )
            self.take_over("first")
            undo.callback(generation.remove, self.paths)
            self.attach()
            undo.callback(self.attach, "absent")
            self._establish()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *dummy: object) -> None:
        self._undo.close()

    def attach(self, state: str = "present") -> None:
        """Attach the chain to both interfaces, or detach it."""
        attach.converge(
            state,
            [{"name": hook, "program": hook} for hook in chain_programs.TRACKING_HOOKS],
            "native",
            False,
            self.paths.pin_root,
            False,
        )

    def attach_anew(self) -> None:
        """Detach and attach, as those do who have no link to update."""
        self.attach("absent")
        self.attach()

    def want(self, mark: str, size: int = 0) -> generation.Want:
        """Return a chain whose sources differ by a mark; ``size`` is that of its tables, by default
        twice what is needed.
        """
        size = size or 1 << (2 * self.flows).bit_length()
        return generation.Want(
            f"{render.render(str(chain_rig.SOURCES), render.Settings(size, size))}\n/* {mark} */\n",
            self.headers,
            size,
            table_size6=size,
        )

    def take_over(self, mark: str, size: int = 0) -> list[str]:
        """Load a generation and let it take over; return the actions that this took."""
        plan, dummy = generation.ensure(self.paths, self.want(mark, size))
        return [step.action for step in plan]

    def _establish(self) -> None:
        """Open the flows by hand-shakes."""
        entries = {
            side: bpf.obj_get(self.paths.prog(chain_programs.SLOTS[hook]))
            for side, hook in chain_rig.HOOKS.items()
        }
        for family in {way.family for way in self.ways}:
            for number in range(self.flows):
                pair = dataclasses.replace(
                    frames.PAIRS[family], aport=FIRST_PORT + number, bport=SERVER_PORT
                )
                for side, flags, seq, ack in (
                    ("a", "S", 100, 0),
                    ("b", "SA", 300, 101),
                    ("a", "A", 101, 301),
                ):
                    bpf.prog_test_run(entries[side], pair.tcp(side, flags, seq, ack).frame)
        for fd in entries.values():
            bpf.close(fd)

    # ------------------------------------------------------------ what was counted
    def counters(self) -> dict[str, int]:
        """Return the chain's outcomes by name, those that are not 0."""
        with bpf.closing(bpf.obj_get(self.paths.map("stats"))) as fd:
            numbers = {
                name: sum(_U64.unpack(one)[0] for one in bpf.percpu_value(fd, index, 8))
                for index, name in enumerate(chain_counters.COUNTERS)
            }
        return {name: numbers[name] for name, dummy in chain_counters.OUTCOMES if numbers[name]}

    def packets(self) -> dict[tuple[str, int], tuple[int, int, str]]:
        """Return (packets of the initiator, of the other side, state) of each flow, by family and
        number.
        """
        found = {}
        with flow_table.FlowTables(self.paths.pin_root) as tables:
            now = tables.clock()
            for opened in tables.tables:
                decoder = flow.Decoder(opened.table, now)
                for dummy, keys, values in tables.batches(opened):
                    for shape, row in [
                        (shape, v) for shape, v, dummy in decoder.flows(decoder.rows(keys, values))
                    ]:
                        one = flow.record(shape, row)
                        key = (one["family"], one["orig"]["sport"] - FIRST_PORT)
                        found[key] = (one["orig"]["packets"], one["reply"]["packets"], one["state"])
        return found

    @staticmethod
    def interfaces() -> tuple[int, int]:
        """Return how many frames the attached interfaces received, and how many they had no room
        for.
        """
        links = json.loads(
            subprocess.run(["ip", "-j", "-s", "link"], check=True, capture_output=True).stdout
        )
        found = [
            link["stats64"]["rx"]
            for link in links
            if link["ifname"] in chain_programs.TRACKING_HOOKS
        ]
        return sum(rx["packets"] for rx in found), sum(rx["dropped"] for rx in found)

    def run(self, swaps: int, swap: t.Callable[[int], object]) -> Result:
        """Send all ways' frames while ``swap`` is called so many times.

        :param swap: called with the turn's number, from 0.
        """
        senders = [Sender(way, f"to-{way.hook}", self.flows) for way in self.ways]
        before, counters, (received, dropped) = self.packets(), self.counters(), self.interfaces()
        start = time.monotonic()
        with sending(senders):
            for turn in range(swaps):
                swap(turn)
        seconds = time.monotonic() - start
        after, now = self.packets(), self.interfaces()
        counted = {
            name: number - counters.get(name, 0)
            for name, number in self.counters().items()
            if number != counters.get(name, 0)
        }
        more: collections.Counter[tuple[str, int, str]] = collections.Counter()
        for sender in senders:
            more.update(
                {
                    (sender.way.family, number, sender.way.hook): sender.of_flow(number)
                    for number in range(self.flows)
                }
            )
            sender.close()
        expected = {
            key: (one[0] + more[(*key, "ingress")], one[1] + more[(*key, "egress")], "ESTABLISHED")
            for key, one in before.items()
        }
        there = {key: after[key] for key in before if key in after}
        return Result(
            swaps=swaps,
            sent=more.total(),
            received=now[0] - received,
            dropped=now[1] - dropped,
            counted=counted,
            flows=len(before),
            lost_flows=len(before) - len(there),
            wrong_flows=sum(expected[key] != one for key, one in there.items()),
            missing=sum(sum(expected[key][:2]) - sum(one[:2]) for key, one in there.items()),
            seconds=seconds,
        )
