# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts in the order of a connection, where it is known, and not where it is not."""

from __future__ import annotations

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import path as flow_path

#: clients - a - b - c - servers, and a way around b
NETS = {
    "a": ["10.1.0.1/24", "10.2.0.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"],
    "b": ["10.2.0.2/24", "10.3.0.1/24", "2001:db8:2::2/64", "2001:db8:3::1/64"],
    "c": ["10.3.0.2/24", "10.4.0.1/24"],
    "b2": ["10.2.0.3/24", "10.3.0.3/24"],
}
CLIENT, SERVER = "10.1.0.9", "10.4.0.9"


@pytest.fixture
def paths() -> flow_path.Paths:
    return flow_path.Paths(
        {host: flow_path.parse_networks("networks", words) for host, words in NETS.items()}
    )


def test_the_networks_between_hosts_tell_their_order(paths: flow_path.Paths) -> None:
    assert paths.ordered(("c", "a", "b"), CLIENT, SERVER) == (("a", "b", "c"), True)
    assert paths.ordered(("c", "a", "b"), SERVER, CLIENT) == (("c", "b", "a"), True)
    assert paths.ordered(("b", "a"), "2001:db8:1::9", "2001:db8:3::9") == (("a", "b"), True)


def test_one_end_is_enough(paths: flow_path.Paths) -> None:
    assert paths.ordered(("a", "b"), CLIENT, "192.0.2.1") == (("a", "b"), True)
    assert paths.ordered(("b", "a"), "192.0.2.1", CLIENT) == (("b", "a"), True)


@pytest.mark.parametrize(
    ("hosts", "src", "dst"),
    [
        (("a", "b"), "192.0.2.1", "192.0.2.2"),  # nobody is attached to either end
        (("a", "b", "b2", "c"), CLIENT, SERVER),  # b before b2, or after it
        (("a", "c"), CLIENT, SERVER),  # what is between them is not known
        (("b", "b2"), "10.2.0.9", "10.3.0.9"),  # side by side
    ],
)
def test_what_is_not_known_is_not_guessed(
    paths: flow_path.Paths, hosts: tuple[str, ...], src: str, dst: str
) -> None:
    assert paths.ordered(hosts, src, dst) == (tuple(sorted(hosts)), False)


def test_a_single_host_needs_no_order() -> None:
    assert flow_path.Paths({"x": ()}).ordered(("x",), CLIENT, SERVER) == (("x",), True)


def test_the_narrowest_network_has_an_address() -> None:
    networks = {"wide": ["10.0.0.1/8", "10.200.0.1/24"], "near": ["10.1.0.1/24", "10.200.0.2/24"]}
    paths = flow_path.Paths(
        {host: flow_path.parse_networks("networks", words) for host, words in networks.items()}
    )
    assert paths.ordered(("wide", "near"), CLIENT, "10.9.9.9") == (("near", "wide"), True)


def test_many_hosts_are_not_tried() -> None:
    names = tuple(f"h{number:02}" for number in range(flow_path.MOST_HOSTS + 1))
    paths = flow_path.Paths(
        dict.fromkeys(names, flow_path.parse_networks("networks", ["10.0.0.0/8"]))
    )
    assert paths.ordered(names, CLIENT, SERVER) == (names, False)
    assert paths.ordered(names[:-1], CLIENT, SERVER) == (names[:-1], False), (
        "all are alike, which is soon seen"
    )


def test_networks_that_tell_nothing() -> None:
    assert (
        flow_path.parse_networks(
            "networks", ["127.0.0.1/8", "fe80::1/64", "169.254.1.1/16", "::1/128", "0.0.0.0/0"]
        )
        == ()
    )
    with pytest.raises(
        ConntrackError, match=r"^sources\[1\]\.networks: 'eth0' is not valid: give a network as"
    ):
        flow_path.parse_networks("sources[1].networks", ["eth0"])
