# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces an entry means; pure, what there is is written down."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import chains, select
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import model as attach_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach.select import Candidate
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

THERE = [
    Candidate("ens4", "virtio_net"),
    Candidate("ens3", "virtio_net", True),
    Candidate("ens5", "e1000"),
    Candidate("br0", "bridge"),
]


def look(netns: str | None) -> list[Candidate]:
    if netns == "gone":
        raise ConntrackError("netns: there is no namespace 'gone'; there are: none.")
    return THERE if netns is None else [Candidate("ens3", "veth")]


def chosen(*items: dict[str, t.Any]) -> list[tuple[str | None, str, str, str | None]]:
    found, missing, left_out = select.resolve(items, look)
    assert missing == [] and left_out == []
    return [(one.get("netns"), one["name"], one["field"], one.get("chosen_by")) for one in found]


def why(*items: dict[str, t.Any]) -> str:
    (one,) = select.resolve(items, look).missing
    return one.message


@pytest.mark.parametrize(
    ("item", "names"),
    [
        ({"pattern": "ens*"}, ["ens3", "ens4", "ens5"]),
        ({"pattern": "ens[45]"}, ["ens4", "ens5"]),
        ({"pattern": "*"}, ["br0", "ens3", "ens4", "ens5"]),
        ({"driver": "virtio_net"}, ["ens3", "ens4"]),
        ({"default_route": True}, ["ens3"]),
        ({"driver": "virtio_net", "pattern": "*4"}, ["ens4"]),
        ({"driver": "virtio_net", "default_route": True}, ["ens3"]),
        ({"driver": "virtio_net", "default_route": False}, ["ens3", "ens4"]),
        ({"name": "whatever"}, ["whatever"]),
    ],
)
def test_what_fits(item: dict[str, t.Any], names: list[str]) -> None:
    assert [name for dummy, name, dummy2, dummy3 in chosen(item)] == names


def test_an_interface_belongs_to_the_entry_that_names_it_else_to_the_first_that_fits() -> None:
    assert chosen({"default_route": True}, {"pattern": "ens*"}, {"name": "ens5"}) == [
        (None, "ens3", "interfaces[0]", "default route"),
        (None, "ens4", "interfaces[1]", "pattern ens*"),
        (None, "ens5", "interfaces[2]", None),
    ]
    assert chosen({"pattern": "ens3"}, {"pattern": "ens3", "netns": "ns1"}) == [
        (None, "ens3", "interfaces[0]", "pattern ens3"),
        ("ns1", "ens3", "interfaces[1]", "pattern ens3"),
    ]


def test_what_was_chosen_keeps_the_rest_of_its_entry() -> None:
    found = select.resolve(
        [
            {
                "pattern": "br*",
                "driver": None,
                "default_route": False,
                "program": "ingress",
                "mode": "generic",
            }
        ],
        look,
    ).found
    (want,) = attach_model.parse("present", found, "auto")
    assert want == attach_model.Want(
        "interfaces[0]", "br0", None, "ingress", "generic", "pattern br*"
    )


def test_nothing_fits() -> None:
    assert (
        why({"name": "ens3"}, {"pattern": "eth*", "driver": "veth"})
        == "interfaces[1]: pattern eth*, driver veth: no interface in the host's namespace fits;"
        " there are: br0 (driver bridge), ens3 (driver virtio_net, default route), ens4 (driver"
        " virtio_net), ens5 (driver e1000). Correct the entry, or make the interface first."
    )
    assert "namespace ns1 fits; there are: ens3 (driver veth)." in why(
        {"default_route": True, "netns": "ns1"}
    )
    assert (
        "every interface in the host's namespace that fits belongs to another entry: ens3 to"
        " interfaces[1]." in why({"default_route": True}, {"name": "ens3"})
    )
    assert why({"pattern": "*", "netns": "gone"}).startswith(
        "interfaces[0].netns: there is no namespace 'gone'"
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {},
            (
                r"interfaces\[0\]: it says no interface: give its name, or pattern, driver or"
                r" default_route: true"
            ),
        ),
        ({"default_route": False}, "it says no interface"),
        (
            {"name": "ens3", "driver": "veth"},
            (
                r"interfaces\[0\]\.driver: 'veth' is not valid: the entry names the interface"
                r" 'ens3' already"
            ),
        ),
        ({"pattern": ""}, r"interfaces\[0\]\.pattern: '' is not valid"),
        ({"pattern": "*", "program": None}, r"interfaces\[0\]\.program: is missing"),
        ({"pattern": "*", "netns": "a/b"}, r"interfaces\[0\]\.netns"),
    ],
)
def test_bad_entries_are_refused_before_anything_is_looked_at(
    item: dict[str, t.Any], message: str
) -> None:
    with pytest.raises(ConntrackError, match=message):
        attach_model.parse("present", [{"program": "ingress", **item}], "auto")


# ---------------------------------------------------------------- what is left out
HOST = [
    Candidate("br0", "bridge", True, below=frozenset({"ens3", "ens3.7"})),
    Candidate("ens3", "virtio_net", altnames=("enp0s3", "uplink")),
    Candidate("ens3.7", "802.1Q VLAN Support", below=frozenset({"ens3"})),
    Candidate("ens4", "virtio_net"),
    Candidate("wg0", "wireguard", unfit="its frames have no Ethernet header (hardware type 65534)"),
]


def resolved(*items: dict[str, t.Any]) -> select.Choice:
    return select.resolve([{"program": "ingress", **item} for item in items], lambda dummy: HOST)


def names(*items: dict[str, t.Any]) -> list[tuple[str, str]]:
    return [(one["name"], one["field"]) for one in resolved(*items).found]


@pytest.mark.parametrize("pattern", ["enp*", "uplink", "ens3"])
def test_a_pattern_may_fit_any_name(pattern: str) -> None:
    assert names({"pattern": pattern}) == [("ens3", "interfaces[0]")]


def test_an_interface_with_several_names_that_fit_is_chosen_once() -> None:
    assert names({"pattern": "en*3"}) == [("ens3", "interfaces[0]")]


def test_a_pattern_leaves_out_what_the_chain_cannot_track_on_and_says_so() -> None:
    found, missing, left_out = resolved({"pattern": "[we]*[04]"})
    assert [one["name"] for one in found] == ["ens4"] and missing == []
    assert left_out == [
        "interfaces[0]: pattern [we]*[04]: left out: wg0 (its frames have no Ethernet header"
        " (hardware type 65534))."
    ]


@pytest.mark.parametrize("item", [{"pattern": "wg*"}, {"driver": "wireguard"}])
def test_nothing_but_what_it_cannot_track_on(item: dict[str, t.Any]) -> None:
    (one,) = resolved(item).missing
    assert (
        one.message.startswith("interfaces[0]: ")
        and "is left; left out: wg0 (its frames have no Ethernet header" in one.message
    )


def test_of_one_entry_the_lower_interface_is_taken() -> None:
    found, dummy, left_out = resolved({"pattern": "*"})
    assert [one["name"] for one in found] == ["ens3", "ens4"]
    assert (
        "br0 (its packets are counted on ens3 of interfaces[0] already)" in left_out[0]
        and "ens3.7 (" in left_out[0]
        and "wg0 (" in left_out[0]
    )


def test_a_name_and_an_earlier_entry_come_first() -> None:
    assert names({"pattern": "*"}, {"name": "br0"}) == [
        ("ens4", "interfaces[0]"),
        ("br0", "interfaces[1]"),
    ]
    assert names({"default_route": True}, {"pattern": "*"}) == [
        ("br0", "interfaces[0]"),
        ("ens4", "interfaces[1]"),
    ]
    (one,) = resolved({"name": "br0"}, {"pattern": "ens3*"}).missing
    assert "ens3 (its packets are counted on br0 of interfaces[0] already)" in one.message


def test_what_does_not_track_is_not_in_the_way() -> None:
    assert names({"name": "br0", "program": "pass"}, {"pattern": "ens3"}) == [
        ("br0", "interfaces[0]"),
        ("ens3", "interfaces[1]"),
    ]
    assert [name for name, dummy in names({"pattern": "*", "program": "pass"})] == [
        "br0",
        "ens3",
        "ens3.7",
        "ens4",
        "wg0",
    ]


# ---------------------------------------------------------------- a chain for each namespace
def entry(netns: str | None, program: str = "ingress") -> dict[str, t.Any]:
    return {"name": "eth0", "netns": netns, "program": program}


def roots(
    *items: dict[str, t.Any], per_netns: bool = True, every: bool = False
) -> dict[str, list[str | None]]:
    found = chains.chains(items, "/sys/fs/bpf", per_netns, every)
    assert [one["main"] for one in (found[::-1] if every else found)] == [True] + [False] * (
        len(found) - 1
    )
    assert every or sum(len(one["interfaces"]) for one in found) == len(items)
    return {one["pin_root"]: [item["netns"] for item in one["interfaces"]] for one in found}


def test_one_chain_where_one_namespace_is_tracked_or_no_more_is_wished_for() -> None:
    assert roots() == {"/sys/fs/bpf": []}
    assert roots(entry(None), entry(None)) == {"/sys/fs/bpf": [None, None]}
    assert roots(entry("r1"), entry("r1"), entry("h", "pass")) == {"/sys/fs/bpf": ["r1", "r1", "h"]}
    assert roots(entry("r1"), entry("r2"), per_netns=False) == {"/sys/fs/bpf": ["r1", "r2"]}


def test_a_chain_for_each_namespace() -> None:
    assert roots(entry("r1"), entry("r.2"), entry("r1", "egress")) == {
        "/sys/fs/bpf/r1": ["r1", "r1"],
        "/sys/fs/bpf/r%2E2": ["r.2"],
    }
    assert roots(entry("r1"), entry(None)) == {"/sys/fs/bpf/r1": ["r1"], "/sys/fs/bpf": [None]}
    assert roots(entry("h", "pass"), entry("r2"), entry("r1"), entry("r1", "pass")) == {
        "/sys/fs/bpf/r2": ["h", "r2"],
        "/sys/fs/bpf/r1": ["r1", "r1"],
    }


def test_all_that_may_be_there() -> None:
    assert list(roots(every=True)) == ["/sys/fs/bpf"]
    assert list(roots({"name": "r1", "netns": "r1"}, entry("r2", "pass"), every=True)) == [
        "/sys/fs/bpf/r1",
        "/sys/fs/bpf/r2",
        "/sys/fs/bpf",
    ]
    assert list(roots(entry(None), entry("r1"), every=True)) == [
        "/sys/fs/bpf/r1",
        "/sys/fs/bpf",
    ], "the directory that holds the others is the last"
