# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flow as people name it."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import address as flow_address

RECORD: dict[str, t.Any] = {
    "proto": "tcp",
    "orig": {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 5, "dport": 80},
}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("tcp 10.0.0.1:5 10.0.0.2:80", True),
        ("tcp 10.0.0.1:5 -> 10.0.0.2:80", True),
        ("6 10.0.0.2:80 10.0.0.1:5", True),
        ("tcp 10.0.0.1 10.0.0.2:80", True),
        ("tcp 10.0.0.1 10.0.0.2", True),
        ("tcp 10.0.0.1:80 10.0.0.2:5", False),
        ("tcp 10.0.0.1:5 10.0.0.3:80", False),
    ],
)
def test_either_direction_is_meant(text: str, meant: bool) -> None:
    assert flow_address.parse(text).matches(RECORD) is meant


def test_ipv6() -> None:
    wanted = flow_address.parse("udp [2001:DB8:0::1]:53 2001:db8::2")
    assert wanted.ends == (
        flow_address.End("2001:db8::1", 53),
        flow_address.End("2001:db8::2", None),
    )
    assert set(wanted.query.filters.values) == {"proto", "addr", "port"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp",
        "tcp 10.0.0.1",
        "tcp a b",
        "xyz 10.0.0.1 10.0.0.2",
        "icmp 10.0.0.1:5 10.0.0.2",
        "tcp 10.0.0.1:99999 10.0.0.2",
        "tcp 1 2 3",
    ],
)
def test_what_is_no_tuple_is_named(text: str) -> None:
    with pytest.raises(ConntrackError, match="is not valid: (give|flows)"):
        flow_address.parse(text)


@pytest.mark.parametrize(
    "text", ["tcp 10.0.0.1 2001:db8::1", "tcp [2001:db8::1]:5 10.0.0.2:80", "icmp ::1 127.0.0.1"]
)
def test_ends_of_two_families_are_refused(text: str) -> None:
    with pytest.raises(ConntrackError, match="both ends of a flow are of one family"):
        flow_address.parse(text)


@pytest.mark.parametrize(
    "text", ["tcp ::ffff:10.0.0.1 10.0.0.2:80", "tcp [::ffff:10.0.0.1]:5 [::ffff:a00:2]:80"]
)
def test_an_ipv4_mapped_address_is_the_ipv4_address(text: str) -> None:
    assert flow_address.parse(text).matches(RECORD)


def test_zones_and_networks_are_no_addresses() -> None:
    for end in ("fe80::1%eth0", "10.0.0.1/32"):
        with pytest.raises(ConntrackError, match="give an address"):
            flow_address.parse(f"tcp {end} 10.0.0.2")
