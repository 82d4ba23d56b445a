# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fragments of one datagram, whatever is wrong with them: what the kernel puts together, and only
that, is tracked here.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import time
import typing as t

import hypothesis
import hypothesis.strategies as st
import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Chains
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, V6, Pair, Step
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

each_family = pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
#: Protocols that need no header, so that a fragment of any length is right by itself.
PLAIN, OTHER = 99, 100


@dataclasses.dataclass(frozen=True)
class Part:
    """One fragment: where it begins and how many bytes it has, whether more follow, its protocol,
    its ECN field.
    """

    start: int
    size: int
    more: bool = True
    proto: int = PLAIN
    ecn: int = 0

    def step(
        self, pair: Pair, ident: int, payload: bytes = bytes(1 << 17), side: str = "a"
    ) -> Step:
        """Return it as a frame."""
        src, dst = pair.ends(side)[:2]
        data, label = payload[self.start : self.start + self.size], f"{ident}: {self}"
        if len(src) == 4:
            return Step(
                side,
                frames.frame(
                    frames.ipv4(
                        src, dst, self.proto, data, ident, self.start, self.more, tos=self.ecn
                    )
                ),
                label,
            )
        packet = bytearray(
            frames.ipv6(
                src, dst, self.proto, data, [frames.ipv6_fragment(ident, self.start, self.more)]
            )
        )
        packet[1] |= self.ecn << 4
        return Step(side, frames.frame(bytes(packet)), label)


def parts(*found: tuple[t.Any, ...]) -> list[Part]:
    """Return fragments of tuples that hold what Part is made of."""
    return [Part(*one) for one in found]


#: By what is odd about them. Two fragments in their order are a run, and a part of a run is a
#: repetition; parts out of their order are none.
SETS: dict[str, list[Part]] = {
    "ends off a boundary": parts((0, 13), (8, 64, False)),
    "ends off a boundary, the rest after that": parts((0, 13), (16, 64, False), (8, 8)),
    "nothing is left of it": parts((0, 16), (16, 7), (16, 8, False), (0, 16), (16, 8, False)),
    "nothing in the last one": parts((0, 16), (16, 0, False), (16, 8, False)),
    "nothing, and more": parts((0, 16), (24, 0), (16, 8, False), (0, 16), (16, 8, False)),
    "within another one": parts((0, 32), (8, 8), (32, 8, False)),
    "within a run of two": parts((0, 16), (16, 16), (8, 16), (32, 8, False)),
    "within two that are no run": parts((16, 16), (0, 16), (8, 16), (32, 8, False)),
    "the end of another one, as the last": parts((0, 16), (8, 8, False), (16, 8, False), (0, 16)),
    "overlapping, and the sum adds up": parts((0, 16), (8, 16), (32, 8, False)),
    "overlapping backwards, and the sum adds up": parts((32, 8, False), (8, 16), (0, 16), (24, 8)),
    "beyond the end": parts((0, 8), (8, 8, False), (16, 8)),
    "beyond the end, which comes last": parts((24, 8), (8, 8, False), (0, 8), (16, 8)),
    "the end before what came": parts((16, 16), (8, 8, False), (0, 8)),
    "two ends": parts((16, 8, False), (8, 8, False), (0, 8), (8, 8)),
    "two ends, the second further on": parts((8, 8, False), (24, 8, False), (0, 8)),
    "the same end twice": parts((8, 8, False), (8, 8, False), (0, 8)),
    "all of them twice": parts((0, 8), (0, 8), (16, 8, False), (16, 8, False), (8, 8), (8, 8)),
    "again when it is whole": parts((0, 8), (8, 8, False), (0, 8), (8, 8, False)),
    "again when it is void": parts((0, 16), (8, 16), (0, 16), (16, 8, False)),
    "two protocols": parts((0, 16), (0, 16, True, OTHER), (16, 8, False, OTHER), (16, 8, False)),
    "another protocol's end": parts((0, 16), (16, 8, False, OTHER), (16, 8, False)),
    "ECN on one only": parts((0, 16, True, PLAIN, 2), (16, 8, False)),
    "ECN on all": parts((0, 16, True, PLAIN, 2), (16, 8, False, PLAIN, 3)),
    "ECN on one that comes again": parts((0, 16), (0, 16, True, PLAIN, 3), (16, 8, False)),
}


def held_against(kernel: NfRig, chains: Chains, steps: t.Sequence[Step]) -> list[view.Seen]:
    """Send the steps through all trackers; after each they agree, on whether an IPv4 datagram is
    waited for or void, too. Return what the chain made of them.

    :raises Difference: where they do not.
    """
    trackers: dict[str, compare.Tracker] = {"kernel": kernel, **chains}
    for tracker in trackers.values():
        tracker.flush()
    seen: list[dict[str, view.Seen]] = []
    for number, step in enumerate(steps, 1):
        before = kernel.voided()
        views, took = compare.step_all(trackers, step.side, step.frame)
        seen.append(views)
        faults = compare.all_differences(views, lag=took)
        detail = views["chain"].detail
        if views["kernel"].outcome == "unseen" and step.frame[12:14] == b"\x08\0":
            void = kernel.voided() != before
            faults += (
                [f"void: kernel {void}, chain {detail}"]
                if detail != ("untracked_fragment" if void else "fragment")
                else []
            )
        if faults:
            raise compare.Difference(compare.report(steps[:number], seen, faults))
    return [views["chain"] for views in seen]


@each_family
@pytest.mark.parametrize("name", SETS)
def test_set(kernel: NfRig, chains: Chains, pair: Pair, name: str) -> None:
    """As they come, and backwards."""
    for found in (SETS[name], SETS[name][::-1]):
        ident = frames.new_ident()
        held_against(kernel, chains, [part.step(pair, ident) for part in found])


def test_a_part_off_a_boundary_is_no_loss(kernel: NfRig, chains: Chains) -> None:
    """What the next one repeats is cut off, and the datagram counts."""
    ident = frames.new_ident()
    seen = held_against(
        kernel, chains, [part.step(V4, ident) for part in SETS["ends off a boundary"]]
    )
    assert [one.detail for one in seen] == ["fragment", "tracked"]
    assert [flow.bytes for flow in seen[-1].flows.values()] == [(20 + 72, 0)]


starts, sizes = (
    st.sampled_from([0, 8, 16, 24, 32]),
    st.sampled_from([8, 16, 24, 8, 16, 24, 32, 0, 3, 13, 20, 31]),
)
anything = st.builds(
    Part,
    starts,
    sizes,
    st.booleans(),
    st.sampled_from([PLAIN] * 6 + [OTHER]),
    st.sampled_from([0] * 12 + [1, 2, 3]),
)


@st.composite
def whole(draw: st.DrawFn) -> list[Part]:
    """Return a datagram that is cut at some places, its parts in any order, with some others among
    them.
    """
    cuts = sorted(draw(st.sets(st.sampled_from([8, 16, 24, 32, 40]), min_size=1, max_size=4)))
    ends = [*cuts, cuts[-1] + draw(st.integers(1, 20))]
    cut = [Part(start, end - start, end != ends[-1]) for start, end in zip([0, *cuts], ends)]
    return draw(
        st.permutations(cut + draw(st.lists(st.one_of(anything, st.sampled_from(cut)), max_size=3)))
    )


@pytest.mark.parametrize("pair", frames.PAIRS.values(), ids=frames.PAIRS)
@hypothesis.settings(max_examples=200)
@hypothesis.given(found=st.one_of(whole(), st.lists(anything, min_size=1, max_size=7)))
def test_any_set(kernel: NfRig, chains: Chains, pair: Pair, found: list[Part]) -> None:
    """Whatever comes under one identification."""
    ident = frames.new_ident()
    held_against(kernel, chains, [part.step(pair, ident) for part in found])


def test_beyond_what_a_datagram_holds(kernel: NfRig, chains: Chains) -> None:
    """The kernel waits for the rest of an IPv4 datagram that can not be; here it is told at once,
    and nothing comes of it either.
    """
    trackers: dict[str, compare.Tracker] = {"kernel": kernel, **chains}
    for last in (Part(65528, 16, False), Part(65512, 24, False)):
        ident = frames.new_ident()
        steps = [last, Part(0, 8), last, Part(8, 8)]
        for one in trackers.values():
            one.flush()
            for part in steps:
                seen = one.step("a", part.step(V4, ident).frame)
                assert not seen.flows
                assert seen.outcome in ("unseen", "untracked", "fragment")


@pytest.fixture
def impatient(kernel: NfRig) -> t.Iterator[None]:
    """The kernel waits for one second."""
    names = ("net/ipv4/ipfrag_time", "net/netfilter/nf_conntrack_frag6_timeout")
    before = {name: kernel.set(name, 1) for name in names}
    yield
    for name, value in before.items():
        kernel.set(name, value)


@pytest.mark.usefixtures("impatient")
def test_identification_that_is_used_again(kernel: NfRig, chains: Chains) -> None:
    """After its time a datagram is forgotten: what comes under its identification is another one,
    however long ago that was.
    """
    trackers: dict[str, compare.Tracker] = {"kernel": kernel, **chains}
    hz = chain_jiffies.hz()
    late = {
        frames.new_ident(): jiffies
        for jiffies in (0, 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 100 * hz)
    }
    for tracker in trackers.values():
        tracker.flush()
    timed_out = kernel.timed_out()
    for pair in (V6, V4):  # the kernel counts only IPv4's, so they come last
        for ident in late:
            for part in parts((0, 16), (32, 8, False)):
                compare.step_all(trackers, "a", part.step(pair, ident).frame)
    until(lambda: kernel.timed_out() >= timed_out + len(late))
    for chain in chains.values():
        assert chain.age_fragments(late) == 2 * len(late)
    for pair in (V6, V4):
        for ident in late:
            for part in parts((0, 24), (24, 8, False)):
                seen = compare.step_all(trackers, "a", part.step(pair, ident).frame)[0]
                assert not compare.all_differences(seen, lag=5)
            assert seen["chain"].detail == "tracked"


def until(true: t.Callable[[], bool]) -> None:
    """Wait until something is true, which takes a second or two."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---------------------------------------------------------------- lengths that headers claim
def pieces(
    pair: Pair,
    proto: int,
    payload: bytes,
    cuts: tuple[int, ...],
    side: str = "a",
    behind: bytes = b"",
) -> list[Step]:
    """Return a datagram in parts; without cuts it is an atomic fragment, which IPv6 alone has.

    :param behind: destination options that stand behind the fragment header.
    """
    if behind:
        payload, proto = bytes([proto]) + behind[1:] + payload, 60
    ident, ends = frames.new_ident(), [*cuts, len(payload)]
    found = [
        Part(start, end - start, end != len(payload), proto) for start, end in zip([0, *cuts], ends)
    ]
    return [part.step(pair, ident, payload, side) for part in found]


def segment(
    pair: Pair, side: str, words: int, size: int, flags: str, seq: int, ack: int = 0
) -> bytes:
    """Return a TCP segment of so many bytes whose data offset claims so many words."""
    src, dst, sport, dport = pair.ends(side)
    return frames.tcp(
        src,
        dst,
        sport,
        dport,
        seq,
        ack,
        frames.tcp_flags(flags),
        8192,
        bytes(size - 20),
        doff=words,
    )


OPTIONS = b"\0\0\1\4" + bytes(4)


@each_family
@pytest.mark.parametrize("behind", [b"", OPTIONS], ids=["", "options before it"])
@pytest.mark.parametrize("words", [5, 9, 10, 11, 15])
@pytest.mark.parametrize("cuts", [(), (24,), (24, 32)])
def test_data_offset(
    kernel: NfRig, chains: Chains, pair: Pair, cuts: tuple[int, ...], words: int, behind: bytes
) -> None:
    """A TCP header ends within its datagram: a SYN whose header does not makes no entry, and in an
    open connection it changes nothing.
    """
    if pair is V4:
        cuts, behind = cuts or (32,), b""
    cuts = tuple(cut + len(behind) for cut in cuts)
    for order in (1, -1):
        seen = held_against(
            kernel,
            chains,
            pieces(pair, frames.TCP, segment(pair, "a", words, 40, "S", 1), cuts, behind=behind)[
                ::order
            ],
        )
        assert (seen[-1].detail, len(seen[-1].flows)) == (
            ("tracked", 1) if words <= 10 else ("invalid_tcp_header", 0)
        )


@each_family
@pytest.mark.parametrize("flags", ["R", "RA", "A", "FA"])
@pytest.mark.parametrize("opening", [1, 2, 3])
def test_data_offset_in_a_connection(
    kernel: NfRig, chains: Chains, pair: Pair, opening: int, flags: str
) -> None:
    """Such a segment neither opens nor assures nor closes what is there."""
    talk = Talk(pair).open()
    begun, number = talk.steps[:opening], talk.next["a"]
    lying = pieces(
        pair,
        frames.TCP,
        segment(pair, "a", 15, 40, flags, number, talk.next["b"] if "A" in flags else 0),
        (24,),
    )
    before, *dummy, last = held_against(kernel, chains, [*begun, *lying])[opening - 1 :]
    assert last.detail == "invalid_tcp_header"
    assert [(flow.state, flow.assured, flow.packets) for flow in last.flows.values()] == [
        (flow.state, flow.assured, flow.packets) for flow in before.flows.values()
    ]


def test_options_end_with_the_fragment(chains: Chains) -> None:
    """What a frame carries behind its IP packet is no TCP option: a window scale there counts for
    nothing.
    """
    whole = segment(V4, "a", 8, 48, "S", 1)
    for filler in (bytes(8), frames.NOP + frames.wscale(7) + bytes(4)):
        first, last = pieces(V4, frames.TCP, whole[:20] + bytes([1, 1, 1, 1]) + whole[24:], (24,))
        for chain in chains.values():
            chain.flush()
            chain.run("a", first.frame + filler)
            assert chain.run("a", last.frame) == "tracked"
            assert [entry[chain_scale()] for entry in chain.entries_now()] == [0]


@functools.lru_cache(None)
def chain_scale() -> int:
    """Return where the window scale stands in what entries_now() returns."""
    # three clocks are one number there
    return [name for name, dummy in chain_layout.ENTRY_FIELDS].index("scale") - 2


@pytest.mark.parametrize("coverage", [0, 8, 24, 40, 41, 65535])
def test_udplite_coverage(kernel: NfRig, chains: Chains, coverage: int) -> None:
    """A UDP-Lite checksum covers no more than the datagram has; its value is not looked at in
    fragments.
    """
    was = kernel.sysctl("checksum", 0)
    try:
        for pair in (V4, V6):
            body = struct.pack(">HHHH", *pair.ends("a")[2:], coverage, 1) + bytes(32)
            seen = held_against(kernel, chains, pieces(pair, frames.UDPLITE, body, (16,)))
            assert seen[-1].detail == ("tracked" if coverage <= 40 else "invalid_l4_short")
    finally:
        kernel.sysctl("checksum", was)


@each_family
@pytest.mark.parametrize("size", [28, 31, 32, 40])
def test_sctp_init_that_is_cut_off(kernel: NfRig, chains: Chains, pair: Pair, size: int) -> None:
    """INIT has 20 bytes at least, wherever they are."""
    whole = frames.sctp(
        *pair.ends("a")[2:], 0, frames.chunk(1, struct.pack(">IIHHI", 7, 1000, 1, 1, 1) + bytes(8))
    )[:size]
    whole = (
        whole[:8] + struct.pack("<I", frames.crc32c(whole[:8] + bytes(4) + whole[12:])) + whole[12:]
    )
    last = held_against(kernel, chains, pieces(pair, frames.SCTP, whole, (24,)))[-1]
    assert last.detail == ("tracked" if size >= 32 else "invalid_sctp_chunks")
