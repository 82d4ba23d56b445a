# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts a lab makes; pure, the lab is written down."""

from __future__ import annotations

import typing as t

from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import inventory as lab_inventory
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import model as lab_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import sysctls as lab_sysctls
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab.model import (
    Have,
    HaveAddress,
    HaveLink,
    Recorded,
)

SMALL: dict[str, t.Any] = {
    "name": "small",
    "router": "gw.1",
    "namespaces": [{"name": "client"}],
    "links": [
        {
            "ends": [
                {"name": "eth0", "netns": "client", "addresses": ["10.0.1.2/24", "fd00::2/64"]},
                {"name": "in", "addresses": ["10.0.1.1/24"]},
            ]
        }
    ],
}


def test_the_default_lab_has_the_machine_as_its_router() -> None:
    nodes = lab_inventory.of_topology(topology.parse({}))
    assert [(node.netns, node.forwards) for node in nodes] == [
        ("ns1", False),
        ("ns2", False),
        (None, True),
    ]
    machine = nodes[2].variables()
    assert machine["netns_role"] == "router" and not machine.keys() & {
        "ansible_netns",
        "xdp_ct_pin_root",
        "xdp_ct_prefix",
    }


def test_a_described_lab() -> None:
    client, router = lab_inventory.of_topology(topology.parse(SMALL))
    found = client.variables()
    assert (
        found["ansible_netns"],
        found["netns_role"],
        found["ansible_host"],
        found["netns_addresses"],
    ) == (
        "client",
        "endpoint",
        "10.0.1.2",
        ["10.0.1.2", "fd00::2"],
    )
    (eth0,) = found["netns_interfaces"]
    assert (eth0["name"], eth0["addresses"], eth0["mtu"]) == (
        "eth0",
        ["10.0.1.2/24", "fd00::2/64"],
        1500,
    )
    assert (eth0["peer"], eth0["peer_netns"]) == ("in", "gw.1")
    assert (router.netns, router.variables()["netns_role"]) == ("gw.1", "router")
    assert router.variables()["xdp_ct_pin_root"] == "/sys/fs/bpf/gw%2E1", (
        "the BPF file system takes no dots"
    )


def test_a_namespace_that_its_sysctls_let_forward_is_a_router() -> None:
    described = {
        **SMALL,
        "namespaces": [{"name": "client", "sysctls": {"net.ipv4.conf.all.forwarding": 1}}],
    }
    assert all(node.forwards for node in lab_inventory.of_topology(topology.parse(described)))


def link(key: lab_model.Key, alias: str, *addresses: HaveAddress) -> HaveLink:
    return HaveLink(key, 7, "veth", alias, 0, 1400, "02:00:00:00:00:01", True, True, 8, addresses)


def test_a_lab_that_is_there() -> None:
    local = HaveAddress((b"\xfe\x80" + bytes(13) + b"\1", 64), automatic=True)
    links = [
        link(
            ("client", "eth0"),
            "ebpf.conntrack:small to-client",
            HaveAddress((b"\x0a\0\1\2", 24)),
            local,
        ),
        link(("client", "wg0"), "", HaveAddress((b"\x0a\0\2\2", 24))),
        link((None, "to-client"), "ebpf.conntrack:small eth0@client"),
        link((None, "eth0"), "", HaveAddress((b"\x0a\0\3\2", 24))),
    ]
    forwarding = lab_sysctls.FORWARDING[0]
    record = {
        (None, forwarding): Recorded("1", 1, {}),
        ("client", forwarding): Recorded("1", 99, {}),
    }
    machine, client = lab_inventory.of_lab(
        "small", Have(1, {"client": 2}, links={one.key: one for one in links}, record=record)
    )[::-1]
    assert [
        (one["name"], one["addresses"], one["peer"], one["peer_netns"]) for one in client.interfaces
    ] == [
        ("eth0", ["10.0.1.2/24"], "to-client", None),
        ("wg0", ["10.0.2.2/24"], None, None),
    ]
    assert not client.forwards, "the record is of a namespace before this one"
    assert machine.forwards and [
        (one["name"], one["peer_netns"]) for one in machine.interfaces
    ] == [("to-client", "client")]
