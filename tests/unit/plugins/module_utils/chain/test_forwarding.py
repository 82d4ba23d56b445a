# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What forwarding passes by, and where it is refused, by what was seen; no kernel is asked."""

from __future__ import annotations

import pathlib
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import redirect
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import forwarding
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    ethtool,
    netdev,
    netfilter,
    netlink,
    xdp_features,
)

SOURCES = str(pathlib.Path(__file__).resolve().parents[5] / "files/bpf")
QUIET = netfilter.Seen((), False, False)
DROP = netfilter.Ruleset("inet", "filter", "forward", "drop")


def refused(call: t.Callable[[], object]) -> str:
    with pytest.raises(ConntrackError) as caught:
        call()
    return caught.value.message


@pytest.mark.parametrize("forward", chain_settings.FORWARDS)
def test_a_text_says_what_it_forwards(forward: str) -> None:
    assert forwarding.of_text(render.render(SOURCES, render.Settings(forward=forward))) == forward
    assert forwarding.of_text("int x;") == "off"


# ---------------------------------------------------------------- rulesets
def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def base_chain(
    family: int, table: str, name: str, hook: int | None, policy: int | None
) -> tuple[int, dict[int, bytes]]:
    hooked = (
        attribute(4, attribute(1, struct.pack("!I", hook)) + attribute(2, bytes(4)))
        if hook is not None
        else b""
    )
    said = attribute(5, struct.pack("!I", policy)) if policy is not None else b""
    return family, netlink.attributes(
        attribute(1, table.encode() + b"\0") + attribute(3, name.encode() + b"\0") + hooked + said
    )


def test_base_chains_of_the_forward_hook() -> None:
    tables = [(2, {1: b"asleep\0", 2: struct.pack("!I", 1)}), (1, {1: b"asleep\0", 2: bytes(4)})]
    chains = [
        base_chain(1, "filter", "forward", 2, 0),
        base_chain(2, "nat", "FORWARD", 2, 1),
        base_chain(10, "x", "y", 2, 1),
        base_chain(7, "b", "f", 2, 1),
        base_chain(1, "filter", "input", 1, 0),
        base_chain(1, "filter", "ours", None, None),  # one that others jump to
        base_chain(5, "netdev", "egress", 2, 1),  # hook numbers of a device are others
        base_chain(2, "asleep", "f", 2, 0),
        base_chain(1, "asleep", "f", 2, 0),  # the same name in another family
    ]
    shown = [one.shown for one in netfilter.forward_chains(tables, chains)]
    assert shown == [
        "inet filter forward (policy drop)",
        "ip nat FORWARD (policy accept)",
        "ip6 x y (policy accept)",
        "bridge b f (policy accept)",
        "inet asleep f (policy drop)",
    ]
    assert netfilter.Ruleset("ip6", "mangle", None, None).shown == "the table mangle of ip6tables"
    assert netfilter.Seen(None, True, False).shown.startswith("not known")


def rule(family: int, *expressions: tuple[str, str]) -> tuple[int, dict[int, bytes]]:
    def one(name: str, xt: str) -> bytes:
        return attribute(
            1, attribute(1, name.encode() + b"\0") + attribute(2, attribute(1, xt.encode() + b"\0"))
        )

    return family, {4: b"".join(one(*expression) for expression in expressions)}


@pytest.mark.parametrize(
    ("rules", "tracks"),
    [
        ([], False),
        ([rule(1, ("payload", ""), ("cmp", ""), ("counter", ""))], False),
        ([rule(1, ("meta", "")), rule(1, ("counter", ""), ("ct", ""))], True),
        ([rule(2, ("masq", ""))], True),
        ([rule(2, ("match", "conntrack"))], True),
        ([rule(10, ("target", "DNAT"))], True),
        ([rule(2, ("match", "comment"), ("target", "LOG"))], False),
        ([rule(7, ("ct", ""))], False),  # a bridge's own, which routers do not meet
    ],
)
def test_rules_that_have_nf_conntrack_track(
    rules: list[tuple[int, dict[int, bytes]]], tracks: bool
) -> None:
    assert netfilter.rules_track(rules) == tracks


# ---------------------------------------------------------------- VLAN tags
def on(*features: str) -> dict[str, bool]:
    return {name: name in features for name in ethtool.VLAN_OFFLOADS}


def test_what_keeps_tags_out_of_the_frame() -> None:
    assert forwarding.card_offloads("eth0", on(ethtool.TX_TAG, ethtool.TX_STAG)) == [], (
        "what it sends has its tag still"
    )
    (one,) = forwarding.card_offloads("eth0", on(ethtool.RX_TAG))
    assert one == forwarding.Offload("rxvlan of eth0 is on", "Run ethtool -K eth0 rxvlan off")
    (one,) = forwarding.card_offloads("eth0", on(ethtool.RX_STAG))
    assert one.mend == "Run ethtool -K eth0 rx-vlan-stag-hw-parse off"
    assert forwarding.veth_offloads("ns1-wan", on(ethtool.RX_TAG, ethtool.RX_STAG), True) == []
    (one,) = forwarding.veth_offloads(
        "ns1-wan", on(ethtool.TX_TAG, ethtool.TX_STAG), False, " in the namespace of that end"
    )
    assert one.mend == "Run ethtool -K ns1-wan txvlan off in the namespace of that end"
    assert len(forwarding.veth_offloads("ns1-wan", on(ethtool.TX_TAG, ethtool.TX_STAG), True)) == 2


@pytest.mark.parametrize(
    ("rules", "offloads", "words"),
    [
        (QUIET, (), []),
        (netfilter.Seen((DROP,), True, True), (), []),
        (
            netfilter.Seen((DROP,), True, False),
            (),
            [
                "Set net.netfilter.nf_conntrack_tcp_be_liberal=1 in namespace gw, or load it with"
                " forward: off."
            ],
        ),
        (netfilter.Seen(None, True, False), (), ["nf_conntrack tracks in namespace gw"]),
        (
            QUIET,
            (forwarding.Offload("rxvlan of eth0 is on", "Run ethtool -K eth0 rxvlan off"),),
            ["rxvlan of eth0 is on", "Run ethtool -K eth0 rxvlan off"],
        ),
        (QUIET, (forwarding.Offload("", "Look."),), ["is not known"]),
    ],
)
def test_refusals(
    rules: netfilter.Seen, offloads: tuple[forwarding.Offload, ...], words: list[str]
) -> None:
    seen = forwarding.Seen("all", "gw", rules, offloads)
    if not words:
        forwarding.refuse("interfaces[0]", "eth0@gw", seen)
        return
    message = refused(lambda: forwarding.refuse("interfaces[0]", "eth0@gw", seen))
    assert message.startswith(
        "interfaces[0]: eth0@gw: the chain must not forward there (forward: all): "
    ) and all(one in message for one in words)


# ---------------------------------------------------------------- ports
def facts(kind: str, peer_xdp: dict[str, int] | None = None) -> netdev.LinkFacts:
    return netdev.LinkFacts(7, "x0", kind, 1500, 8, None, peer_xdp or {}, 0, bytes(6))


@pytest.mark.parametrize(
    ("told", "driver", "mode", "takes"),
    [
        (True, "somebody", "generic", True),  # the kernel knows better
        (False, "i40e", "native", False),
        (None, "i40e", "native", True),
        (None, "i40e", "generic", False),
        (None, "i40e", None, False),
        (None, "e1000e", "native", False),
        (None, "", "native", False),
    ],
)
def test_who_takes_redirected_frames(
    told: bool | None, driver: str, mode: str | None, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xdp_features, "takes_redirected", lambda ifindex: told)
    monkeypatch.setattr(ethtool, "driver", lambda name: ethtool.Driver(driver, ""))
    assert redirect.transmits(facts(""), mode) is takes


@pytest.mark.parametrize(
    ("told", "peer", "takes"),
    [
        (True, {}, True),
        (False, {"native": 1}, False),
        (None, {"native": 1}, True),
        (None, {"generic": 1}, False),
    ],
)
def test_a_veth_is_as_its_other_end(
    told: bool | None, peer: dict[str, int], takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xdp_features, "takes_redirected", lambda ifindex: told)
    monkeypatch.setattr(netdev, "link_facts", lambda interface, nsid=None: facts("veth", peer))
    assert redirect.transmits(facts("veth"), "native") is takes


def test_a_port_names_the_rulesets_that_are_passed_by() -> None:
    port = redirect.Port("eth0", 2, bytes(6), True, DROP.shown)
    (step,) = redirect.make_plan({}, [port], ())
    assert step.reason.endswith(
        "rulesets of the forward hook that they do not meet: inet filter forward (policy drop)"
    )
    assert redirect.make_plan({port.key: port.flags}, [port], ()) == []


# ---------------------------------------------------------------- generations
@pytest.mark.parametrize("action", ["load", "activate"])  # a new one, and one that is gone back to
def test_a_generation_does_not_take_over_where_it_must_not_forward(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        plan.Step(action, "generation", "2", "because", None, None),
        plan.Step("delete", "generation", "1", "because", None, None),
    ]
    seen = {"eth0": forwarding.Seen("all", None, netfilter.Seen((DROP,), True, True), ())}
    monkeypatch.setattr(forwarding, "attached", lambda forward, keys: seen)
    found = generation._plan_forwarding(steps, generation.Have(), "all", action)
    assert [step.reason for step in found] == [
        (
            "because; rulesets of the forward hook that what it forwards does not meet: inet filter"
            " forward (policy drop) in the host's namespace"
        ),
        "because",
    ]
    seen["eth0"] = seen["eth0"]._replace(rules=netfilter.Seen((DROP,), True, False))
    assert "nf_conntrack_tcp_be_liberal=1" in refused(
        lambda: generation._plan_forwarding(steps, generation.Have(), "all", action)
    )
    assert generation._plan_forwarding(steps, generation.Have(), "off", action) == steps
    assert generation._plan_forwarding(steps[1:], generation.Have(), "all", action) == steps[1:], (
        "nothing takes over"
    )
