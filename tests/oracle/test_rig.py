# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig itself: right frames, a true reading of the kernel's table, and differences that are
found and told.
"""

from __future__ import annotations

import dataclasses
import logging
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, nf, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.frames import V4, V6
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.talk import Talk

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
scapy = pytest.importorskip("scapy.all")
OPTIONS = (
    frames.mss() + frames.SACK_PERMITTED + frames.timestamps(5, 6) + frames.NOP + frames.wscale(7)
)
STEPS = [
    step
    for pair in (V4, V6)
    for step in (
        *Talk(pair).open(options=OPTIONS).send("a", "PAU", 11).send("b", "RAEC").steps,
        pair.udp("a", 0),
        pair.udp("b", 7),
        pair.echo("a", 77),
        pair.echo("b", 77, reply=True),
    )
]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_frames_are_what_scapy_makes_of_them(step: frames.Step) -> None:
    """Somebody else's dissector gets the same fields out, and its checksums and lengths are the
    same bytes.
    """
    packet = scapy.Ether(step.frame)
    for layer in packet.layers():
        for computed in ("chksum", "cksum", "len", "plen", "dataofs", "ihl"):
            if computed in {field.name for field in layer.fields_desc}:
                packet[layer].delfieldval(computed)
    assert bytes(packet) == step.frame


def test_tags_options_and_fragments() -> None:
    """The seldom fields."""
    packet = scapy.Ether(
        frames.frame(
            frames.ipv4(
                V4.a, V4.b, 17, b"12345678", ident=9, offset=64, more=True, options=b"\x94\4\0\0"
            ),
            vlans=(5, 6),
        )
    )
    assert [layer.__name__ for layer in packet.layers()][:4] == ["Ether", "Dot1AD", "Dot1Q", "IP"]
    assert (
        packet[scapy.IP].id,
        packet[scapy.IP].frag,
        packet[scapy.IP].flags.MF,
        packet[scapy.IP].ihl,
    ) == (9, 8, True, 6)
    headers = [(0, b"\0" + b"\1\4" + bytes(4)), frames.ipv6_fragment(3, 16, True)]
    packet = scapy.Ether(frames.frame(frames.ipv6(V6.a, V6.b, 17, b"12345678", headers)))
    fragment = packet[scapy.IPv6ExtHdrFragment]
    assert (packet[scapy.IPv6].nh, fragment.nh, fragment.id, fragment.offset, fragment.m) == (
        0,
        17,
        3,
        2,
        1,
    )


def test_reading_the_table() -> None:
    """One line of each form that the kernel writes."""
    tcp = nf.parse(
        "ipv6     10 tcp      6 299 ESTABLISHED src=2001:0db8:0000:0000:0000:0000:0000:0001"
        " dst=2001:0db8:0000:0000:0000:0000:0000:0002 sport=1 dport=2 packets=3 bytes=4"
        " src=2001:0db8:0000:0000:0000:0000:0000:0002 dst=2001:0db8:0000:0000:0000:0000:0000:0001"
        " sport=2 dport=1 packets=5 bytes=6 [ASSURED] mark=0 zone=0 use=2"
    )
    orig, reply = ("2001:db8::1", "2001:db8::2", 1, 2), ("2001:db8::2", "2001:db8::1", 2, 1)
    assert tcp == view.Flow(
        "ipv6", "tcp", orig, reply, "ESTABLISHED", True, True, (3, 5), (4, 6), 299
    )
    icmp = nf.parse(
        "ipv4     2 icmp     1 29 src=1.2.3.4 dst=4.3.2.1 type=8 code=0 id=7 packets=1 bytes=28"
        " [UNREPLIED] src=4.3.2.1 dst=1.2.3.4 type=0 code=0 id=7 packets=0 bytes=0 mark=0 zone=0"
        " use=2"
    )
    assert (icmp.orig, icmp.reply, icmp.state) == (
        ("1.2.3.4", "4.3.2.1", 8, 0, 7),
        ("4.3.2.1", "1.2.3.4", 0, 0, 7),
        "NEW",
    )
    other = nf.parse(
        "ipv4     2 unknown  99 599 src=1.2.3.4 dst=4.3.2.1 packets=1 bytes=28 [UNREPLIED]"
        " src=4.3.2.1 dst=1.2.3.4 packets=0 bytes=0 mark=0 use=2"
    )
    assert (other.proto, other.orig) == ("99", ("1.2.3.4", "4.3.2.1"))


def test_outcomes(kernel: NfRig) -> None:
    """Each outcome is told from the others."""
    kernel.flush()
    udp, syn = V4.udp("a"), Talk().send("a", "S").steps[0]
    quoting = frames.frame(
        frames.ipv4(V4.b, V4.a, frames.ICMP, frames.icmp(3, 1, payload=udp.frame[14:]))
    )
    neighbour = frames.icmpv6(V6.a, V6.b, 135, 0, payload=V6.b)
    sent = [
        (udp.frame, "tracked"),
        (udp.frame, "tracked"),
        (quoting, "related"),
        (syn.frame, "tracked"),
        (syn.frame, "ignored"),
        (V4.tcp("a", "SF", 1).frame, "invalid"),
        (frames.frame(frames.ipv6(V6.a, V6.b, frames.ICMPV6, neighbour, hops=255)), "untracked"),
        (frames.ethernet(bytes(28), 0x0806), "unseen"),
        (frames.frame(frames.ipv4(V4.a, V4.b, frames.UDP, b"x" * 8, csum=1)), "unseen"),
    ]
    assert [kernel.step("a", frame).outcome for frame, dummy in sent] == [
        outcome for dummy, outcome in sent
    ]
    kernel.flush()
    assert kernel.flows() == {}


class Scripted:
    """A tracker that answers by heart."""

    def __init__(self, *answers: view.Seen) -> None:
        self.answers = list(answers)

    def step(self, side: str, frame: bytes) -> view.Seen:
        """Return the next answer."""
        return self.answers.pop(0)

    def look(self) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


FLOW = view.Flow(
    "ipv4", "udp", ("a", "b", 1, 2), ("b", "a", 2, 1), "NEW", False, False, (1, 0), (38, 0), 30
)


def seen(outcome: str = "tracked", *flows: view.Flow) -> view.Seen:
    """Return a view of the given flows."""
    return view.Seen(outcome, {(flow.proto, flow.orig): flow for flow in flows})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("timeout", 27, True),
        ("timeout", 28, False),
        ("packets", (2, 0), True),
        ("bytes", (39, 0), True),
        ("state", "REPLIED", True),
        ("assured", True, True),
    ],
)
def test_differences_are_found(field: str, value: t.Any, told: bool) -> None:
    """Anything that is not the same is told, but a timeout may be off by the time that the two
    readings are apart.
    """
    faults = compare.differences(
        seen("tracked", FLOW), seen("tracked", dataclasses.replace(FLOW, **{field: value}))
    )
    assert bool(faults) is told and all(fault.startswith(field) for fault in faults)


def test_differences_are_told() -> None:
    """The frames so far, both outcomes, the fault and both tables stand in the message."""
    kernel, chain = (
        Scripted(seen("tracked", FLOW), seen("invalid", FLOW)),
        Scripted(seen("tracked", FLOW), seen("tracked")),
    )
    other = Scripted(seen("tracked", FLOW), seen("invalid", FLOW))
    with pytest.raises(compare.Difference) as caught:
        compare.play(kernel, {"chain": chain, "other": other}, [V4.udp("a"), V4.udp("b", 77)])
    text = str(caught.value)
    assert "1 -> udp 40000>80 len 10" in text and "2 <- udp 80>40000 len 77" in text
    assert (
        "! outcome: kernel invalid, chain tracked" in text
        and f"! only kernel has {FLOW}" in text
        and "chain has nothing" in text
    )
    assert "other invalid" not in text.partition("!")[2] and f"other has {FLOW}" in text


def test_forms_of_the_chain_agree_on_details() -> None:
    """A frame that is invalid for different reasons is a difference."""
    flows = seen("invalid").flows
    views = {
        name: view.Seen("invalid", flows, detail)
        for name, detail in (("kernel", "invalid"), ("chain", "invalid_a"), ("fused", "invalid_b"))
    }
    assert compare.all_differences(views) == [
        "detail: {'chain': 'invalid_a', 'fused': 'invalid_b'}"
    ]
    assert compare.all_differences({**views, "fused": views["chain"]}) == []


def test_a_frame_that_never_reached_the_kernel() -> None:
    """It may be invalid or untracked for the chain, but not a flow."""
    assert not compare.differences(seen("unseen"), seen("invalid"))
    assert compare.differences(seen("unseen"), seen("tracked"))
