# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's description, its errors, and the plans made from it; no kernel needed."""

from __future__ import annotations

import copy
import dataclasses
import socket
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.plan import Plan, as_dicts
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import model as lab_model
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import plan as lab_plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import sysctls as lab_sysctls
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab import topology
from ansible_collections.ebpf.conntrack.plugins.module_utils.lab.model import (
    Have,
    HaveAddress,
    HaveLink,
    HaveRoute,
    Key,
    Recorded,
    Topology,
)

V4_FORWARDING, V6_FORWARDING = lab_sysctls.FORWARDING


def ip(text: str) -> bytes:
    """Return an address packed."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def address(text: str) -> lab_model.Address:
    """Return an address with its prefix length."""
    host, dummy, prefix = text.partition("/")
    return ip(host), int(prefix)


LAB: dict[str, t.Any] = {
    "name": "office",
    "router": "gw",
    "namespaces": [
        {
            "name": "a",
            "routes": [
                {"dst": "default", "via": "10.0.1.1"},
                {"dst": "default", "via": "2001:db8:1::1"},
            ],
        },
        {"name": "b", "routes": [{"dst": "default", "via": "10.0.2.1"}]},
    ],
    "links": [
        {
            "ends": [
                {"name": "eth0", "netns": "a", "addresses": ["10.0.1.2/24", "2001:db8:1::2/64"]},
                {"name": "to-a", "addresses": ["10.0.1.1/24", "2001:db8:1::1/64"]},
            ]
        },
        {
            "ends": [
                {"name": "eth0", "netns": "b", "addresses": ["10.0.2.2/24"]},
                {"name": "to-b", "addresses": ["10.0.2.1/24"]},
            ]
        },
    ],
}


def have_after(want: Topology) -> Have:
    """Return the state in which everything is as wanted: what the kernel shows after a run."""
    have = Have(host_inode=1, namespaces={name: 100 + i for i, name in enumerate(want.namespaces)})
    index: dict[str | None, int] = {}
    numbers: dict[Key, int] = {}
    for key in want.ends:
        index[key[0]] = index.get(key[0], 1) + 1
        numbers[key] = index[key[0]]
    for one, two in want.links:
        for end, peer in ((one, two), (two, one)):
            addresses = tuple(HaveAddress(a, lab_model.broadcast_of(a)) for a in end.addresses)
            automatic = HaveAddress(lab_model.link_local_of(end.mac), automatic=True)
            have.links[end.key] = HaveLink(
                end.key,
                numbers[end.key],
                "veth",
                lab_model.alias_of(want.mark, peer.key),
                0,
                end.mtu,
                end.mac,
                up=True,
                running=True,
                peer_index=numbers[peer.key],
                addresses=(*addresses, automatic),
            )
    have.routes = [
        HaveRoute(r.netns, r.dst, r.via, r.dev, r.metric, topology.PROTO_BOOT) for r in want.routes
    ]
    have.sysctls = {s.key: s.value for s in want.sysctls}
    early, dummy = topology.split_sysctls(want)
    have.record = {
        s.key: Recorded(s.value, have.namespaces[s.netns] if s.netns else 1, {s.path: "0"})
        for s in early
    }
    return have


def change_link(have: Have, key: Key, **fields: t.Any) -> None:
    """Change what is there of a link."""
    have.links[key] = dataclasses.replace(have.links[key], **fields)


def brief(plan: Plan) -> list[str]:
    """Return the steps as text, with their reasons."""
    return [f"{s.action} {s.kind} {s.name}: {s.reason}" for s in plan]


def planned(have: Have, lab: dict[str, t.Any] | None = None) -> list[str]:
    """Plan the lab on what is there."""
    return brief(lab_plan.make(topology.parse(LAB if lab is None else lab), have))


@pytest.fixture
def have() -> Have:
    """The lab as it is after a run."""
    return have_after(topology.parse(LAB))


# -- the description
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    [
        {},
        {
            "name": None,
            "router": None,
            "namespaces": None,
            "links": None,
            "sysctls": None,
            "routes": None,
        },
    ],
)
def test_default_topology(description: dict[str, t.Any]) -> None:
    lab = topology.parse(description)
    assert (lab.lab, lab.router, lab.namespaces) == ("lab", None, ("ns1", "ns2"))
    ends = {
        lab_model.show_key(end.key): [lab_model.show_address(a) for a in end.addresses]
        for end in lab.ends.values()
    }
    assert ends == {
        "ns1-wan@ns1": ["172.20.56.105/24"],
        "ns1-lan": ["172.20.56.1/24"],
        "ns2-wan@ns2": ["172.30.56.105/24"],
        "ns2-lan": ["172.30.56.1/24"],
    }
    assert [
        (r.netns, lab_model.show_dst(r.dst), lab_model.show_ip(r.via or b""), r.dev)
        for r in lab.routes
    ] == [
        ("ns1", "default", "172.20.56.1", "ns1-wan"),
        ("ns2", "default", "172.30.56.1", "ns2-wan"),
    ]
    assert {s.key: s.value for s in lab.sysctls} == {
        (None, V4_FORWARDING): "1",
        (None, V6_FORWARDING): "1",
    }


def test_router_takes_the_ends_without_namespace_and_forwards() -> None:
    lab = topology.parse({"router": "rt"})
    assert lab.namespaces == ("ns1", "ns2", "rt")
    assert ("rt", "ns1-lan") in lab.ends
    assert {s.netns for s in lab.sysctls} == {"rt"}


def test_without_an_end_on_the_host_the_host_is_left_alone() -> None:
    lab = topology.parse(
        {
            "namespaces": [{"name": "a"}, {"name": "b"}],
            "links": [{"ends": [{"name": "x", "netns": "a"}, {"name": "x", "netns": "b"}]}],
        }
    )
    assert lab.sysctls == ()


def test_forwarding_can_be_set_otherwise() -> None:
    lab = topology.parse({"sysctls": {"net.ipv4.conf.all.forwarding": False}})
    assert {s.path: s.value for s in lab.sysctls} == {V4_FORWARDING: "0", V6_FORWARDING: "1"}


def test_ipv6_links_do_without_duplicate_address_detection() -> None:
    assert {s.key for s in topology.parse(LAB).sysctls if s.path.endswith("accept_dad")} == {
        ("a", "net/ipv6/conf/eth0/accept_dad"),
        ("gw", "net/ipv6/conf/to-a/accept_dad"),
    }


def test_own_sysctls_that_the_kernel_lacks_are_left_out() -> None:
    lab = topology.parse({**LAB, "sysctls": {"net.ipv6.conf.all.proxy_ndp": 1}})
    without = topology.without_missing(lab, lambda path: "ipv6" not in path)
    assert [s.path for s in without.sysctls] == ["net/ipv6/conf/all/proxy_ndp", V4_FORWARDING]


def test_macs_are_unicast_local_the_same_each_time_and_all_different() -> None:
    macs = [end.mac for end in topology.parse(LAB).ends.values()]
    assert macs == [end.mac for end in topology.parse(LAB).ends.values()]
    assert len(set(macs)) == 4
    assert all(mac.startswith("02:") for mac in macs)


def test_spellings() -> None:
    lab = copy.deepcopy(LAB)
    lab["links"][0]["ends"][0].update(
        mac="02-AA-00-00-00-01", addresses=["10.0.1.2/255.255.255.0", "2001:DB8:1:0::2/64"]
    )
    end = topology.parse(lab).ends["a", "eth0"]
    assert end.mac == "02:aa:00:00:00:01"
    assert end.addresses == (address("10.0.1.2/24"), address("2001:db8:1::2/64"))


def test_routes_find_their_link_and_metric() -> None:
    lab = copy.deepcopy(LAB)
    lab["routes"] = [
        {"dst": "10.7.0.0/16", "via": "10.0.2.2", "metric": 5},
        {"dst": "2001:db8:7::/48", "via": "fe80::1", "dev": "to-b"},
    ]
    routes = {lab_model.show_dst(r.dst): r for r in topology.parse(lab).routes if r.netns == "gw"}
    assert (routes["10.7.0.0/16"].dev, routes["10.7.0.0/16"].metric) == ("to-b", 5)
    assert (routes["2001:db8:7::/48"].dev, routes["2001:db8:7::/48"].metric) == ("to-b", 1024)


def test_the_more_specific_network_reaches_a_router() -> None:
    lab = copy.deepcopy(LAB)
    lab["links"][0]["ends"][1]["addresses"] = ["10.0.0.1/8"]
    lab["links"][0]["ends"][0]["addresses"] = ["10.0.1.2/8"]
    del lab["namespaces"][0]["routes"]
    lab["routes"] = [{"dst": "192.0.2.0/24", "via": "10.0.2.2"}]
    assert {route.dev for route in topology.parse(lab).routes if route.netns == "gw"} == {"to-b"}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.conf.all.rp_filter", "net/ipv4/conf/all/rp_filter"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_both_ways_of_writing_a_sysctl(key: str, path: str) -> None:
    assert topology.sysctl_path("x", key) == path
    assert (
        lab_model.show_sysctl((None, "net/ipv4/conf/eth0.5/rp_filter"))
        == "net.ipv4.conf.eth0/5.rp_filter"
    )


def test_the_same_address_in_namespaces_that_do_not_meet_is_fine() -> None:
    ends = [
        {"name": "x", "addresses": ["10.0.0.1/24"]},
        {"name": "y", "addresses": ["10.0.0.2/24"]},
    ]
    links = [
        {"ends": [{**end, "netns": f"{tenant}{end['name']}"} for end in ends]} for tenant in "ab"
    ]
    topology.parse(
        {
            "namespaces": [{"name": f"{tenant}{end}"} for tenant in "ab" for end in "xy"],
            "links": links,
        }
    )


def put(*path: t.Any, value: t.Any) -> dict[str, t.Any]:
    """Return the lab with one value changed."""
    lab = copy.deepcopy(LAB)
    place: t.Any = lab
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return lab


END = ("links", 0, "ends", 0)
ROUTE = ("namespaces", 0, "routes", 0)
BAD = [
    (put("colour", value=1), "description: 'colour'"),
    (put("name", value="-x"), "name: '-x'"),
    (put("name", value="x" * 33), "name: 'xxx"),
    (put("router", value="../x"), "router: '../x'"),
    (put("namespaces", value={"name": "a"}), "namespaces: "),
    (put("namespaces", 0, value="a"), r"namespaces\[0\]: 'a'"),
    (put("namespaces", 0, "name", value="a/b"), r"namespaces\[0\].name: 'a/b'"),
    (put("namespaces", 0, "name", value=""), r"namespaces\[0\].name: ''"),
    (put("namespaces", 0, "name", value="x" * 65), r"namespaces\[0\].name: 'x"),
    (put("namespaces", 1, "name", value="a"), r"namespaces\[1\].name: 'a' .* twice"),
    (put("namespaces", 0, "mtu", value=5), r"namespaces\[0\]: 'mtu'"),
    (put("links", value="x"), "links: 'x'"),
    (put("links", 0, "kind", value="veth"), r"links\[0\]: 'kind'"),
    (put("links", 0, "ends", value=[{"name": "x"}]), r"links\[0\].ends: 1"),
    (put(*END, "color", value=1), r"links\[0\].ends\[0\]: 'color'"),
    (
        put(*END, "name", value="sixteen-chars-xx"),
        r"links\[0\].ends\[0\].name: 'sixteen-chars-xx' .* 1 to 15",
    ),
    (put(*END, "name", value=None), r"links\[0\].ends\[0\].name: None"),
    (put(*END, "name", value="lo"), r"links\[0\].ends\[0\].name: 'lo'"),
    (put(*END, "name", value=".."), r"links\[0\].ends\[0\].name: '..'"),
    (
        put(*END, "netns", value="nowhere"),
        r"links\[0\].ends\[0\].netns: 'nowhere' .* add it to namespaces",
    ),
    (
        put("links", 1, "ends", 1, "name", value="to-a"),
        r"links\[1\].ends\[1\].name: 'to-a' .* to-a@gw is there twice",
    ),
    (
        put(*END, "addresses", value="10.0.1.2/24"),
        r"links\[0\].ends\[0\].addresses: '10.0.1.2/24' .* list",
    ),
    (put(*END, "addresses", value=["10.0.1.2"]), r"addresses\[0\]: '10.0.1.2' .* prefix length"),
    (put(*END, "addresses", value=["10.0.1.256/24"]), r"addresses\[0\]: '10.0.1.256/24'"),
    (put(*END, "addresses", value=["10.0.1.2/33"]), r"addresses\[0\]: '10.0.1.2/33'"),
    (put(*END, "addresses", value=["10.0.1.2/-1"]), r"addresses\[0\]"),
    (put(*END, "addresses", value=[7]), r"addresses\[0\]: 7"),
    (put(*END, "addresses", value=["224.0.0.1/24"]), "unicast"),
    (put(*END, "addresses", value=["127.0.0.1/8"]), "loopback"),
    (put(*END, "addresses", value=["::/64"]), "unicast"),
    (put(*END, "addresses", value=["10.0.1.0/24"]), "network's own"),
    (put(*END, "addresses", value=["10.0.1.255/24"]), "broadcast"),
    (
        put(*END, "addresses", value=["10.0.1.2/24", "10.0.1.2/24"]),
        r"addresses\[1\]: '10.0.1.2/24' .* twice",
    ),
    (
        put(*END, "addresses", value=["10.0.1.1/24"]),
        r"links\[0\].ends\[1\].addresses\[0\]: '10.0.1.1' .* eth0@a has it too",
    ),
    (
        put("links", 1, "ends", 0, "addresses", value=["10.0.1.2/24"]),
        r"links\[1\].ends\[0\].addresses\[0\]: '10.0.1.2' .* eth0@a has it too",
    ),
    (put(*END, "mtu", value=67), r"mtu: 67 .* 68 to 65535"),
    (put(*END, "mtu", value=65536), "mtu: 65536"),
    (put(*END, "mtu", value="1500"), "mtu: '1500'"),
    (put(*END, "mtu", value=True), "mtu: True"),
    (put(*END, "mtu", value=1279), "IPv6 needs at least 1280"),
    (put(*END, "mac", value="02:00"), "mac: '02:00'"),
    (put(*END, "mac", value="01:00:00:00:00:01"), "unicast"),
    (put(*END, "mac", value="00:00:00:00:00:00"), "zero"),
    (
        put(
            "links",
            0,
            "ends",
            value=[
                {**LAB["links"][0]["ends"][0], "mac": "02:00:00:00:00:01"},
                {"name": "y", "mac": "02:00:00:00:00:01"},
            ],
        ),
        "both ends",
    ),
    (put(*ROUTE, "dst", value="10.0.0.0/33"), r"namespaces\[0\].routes\[0\].dst: '10.0.0.0/33'"),
    (put(*ROUTE, "dst", value="10.0.0.1/8"), "host bits"),
    (put(*ROUTE, "dst", value=None), r"routes\[0\].dst: None"),
    (put(*ROUTE, "gateway", value="10.0.1.1"), r"routes\[0\]: 'gateway'"),
    (
        put(*ROUTE, "via", value="10.0.9.1"),
        (
            r"routes\[0\].via: '10.0.9.1' .* namespace a does not reach it: its networks are"
            r" 10.0.1.0/24 on eth0"
        ),
    ),
    (put(*ROUTE, "via", value="10.0.1.2"), r"routes\[0\].via: '10.0.1.2' .* itself"),
    (put(*ROUTE, "via", value="ten"), r"routes\[0\].via: 'ten'"),
    (put(*ROUTE, "via", value="fe80::1"), "needs dev"),
    (put(*ROUTE, value={"dst": "10.0.0.0/8", "via": "2001:db8:1::1"}), "same family"),
    (put(*ROUTE, value={"dst": "10.0.0.0/8"}), "via, dev or both"),
    (put(*ROUTE, "dev", value="eth1"), r"routes\[0\].dev: 'eth1' .* namespace a \(there: eth0\)"),
    (put(*ROUTE, "metric", value=-1), "metric: -1"),
    (
        put("namespaces", 0, "routes", 1, value=LAB["namespaces"][0]["routes"][0]),
        "with that metric already",
    ),
    (
        put("routes", value=[{"dst": "10.7.0.0/16", "via": "192.0.2.1"}]),
        r"^routes\[0\].via: '192.0.2.1' .* namespace gw does not reach it",
    ),
    (put("sysctls", value={"kernel.panic": 1}), r"sysctls: 'kernel.panic'"),
    (put("sysctls", value={"net.ipv4/../../kernel.panic": 1}), "sysctls: "),
    (put("sysctls", value={"net.ipv4.tcp_rmem": [1, 2]}), r"sysctls.net.ipv4.tcp_rmem: "),
    (put("sysctls", value={"net.ipv4.tcp_rmem": ""}), r"sysctls.net.ipv4.tcp_rmem: "),
    (put("sysctls", value={"net.ipv4.ip_forward": 1, "net/ipv4/ip_forward": 0}), "twice"),
    (put("sysctls", value=["x"]), "sysctls: "),
]


@pytest.mark.parametrize(("lab", "words"), BAD)
def test_bad_input_is_refused_with_field_value_and_mending(
    lab: dict[str, t.Any], words: str
) -> None:
    with pytest.raises(ConntrackError, match=words) as caught:
        topology.parse(lab)
    assert " is not valid: " in caught.value.message


def test_a_bad_lab_name_cannot_be_removed() -> None:
    with pytest.raises(ConntrackError, match="name: '../x'"):
        topology.absent("../x")


# -- plans
# --------------------------------------------------------------------------------------------------


def test_the_whole_plan_on_an_empty_machine() -> None:
    nothing = Have(host_inode=1)
    assert planned(nothing) == [
        "create netns a: it does not exist",
        "create netns b: it does not exist",
        "create netns gw: it does not exist",
        (
            "create record /run/ebpf_conntrack/office.json: the values from before come back when"
            " the lab goes"
        ),
        "change sysctl net.ipv4.conf.all.forwarding@gw: the namespace is new",
        "change sysctl net.ipv6.conf.all.forwarding@gw: the namespace is new",
        "create link eth0@a - to-a@gw: it does not exist",
        "create link eth0@b - to-b@gw: it does not exist",
        "create address 10.0.1.2/24 on eth0@a: it is not there",
        "create address 2001:db8:1::2/64 on eth0@a: it is not there",
        "create address 10.0.1.1/24 on to-a@gw: it is not there",
        "create address 2001:db8:1::1/64 on to-a@gw: it is not there",
        "create address 10.0.2.2/24 on eth0@b: it is not there",
        "create address 10.0.2.1/24 on to-b@gw: it is not there",
        "create route default in namespace a: it is not there",
        "create route default (IPv6) in namespace a: it is not there",
        "create route default in namespace b: it is not there",
    ]


def test_nothing_to_do(have: Have) -> None:
    assert planned(have) == []


def test_steps_show_before_and_after(have: Have) -> None:
    change_link(have, ("gw", "to-a"), mtu=1400, up=False)
    assert as_dicts(lab_plan.make(topology.parse(LAB), have))[0] == {
        "action": "change",
        "kind": "link",
        "name": "to-a@gw",
        "reason": "mtu is 1400, wanted 1500; it is down",
        "before": {"mtu": 1400, "up": False},
        "after": {"mtu": 1500, "up": True},
    }


def test_vlan_tags_stay_in_the_frames(have: Have) -> None:
    change_link(have, ("b", "eth0"), vlan_offload=True)
    (step,) = lab_plan.make(topology.parse(LAB), have)
    assert step.as_dict() == {
        "action": "change",
        "kind": "link",
        "name": "eth0@b",
        "reason": (
            "VLAN tags travel beside its frames (rxvlan, txvlan), where no XDP program sees them"
        ),
        "before": {"vlan_offload": True},
        "after": {"vlan_offload": False},
    }


def test_lo_down(have: Have) -> None:
    have.lo_down.add("a")
    assert planned(have) == ["change link lo@a: it is down"]


def test_address_too_much_and_missing(have: Have) -> None:
    link = have.links["b", "eth0"]
    extra = HaveAddress(address("10.0.2.9/24"), ip("10.0.2.255"))
    change_link(have, link.key, addresses=(extra, *link.addresses[1:]))
    assert planned(have) == [
        "delete address 10.0.2.9/24 on eth0@b: the lab has no such address on this link",
        "create address 10.0.2.2/24 on eth0@b: it is not there",
        "create route default in namespace b: it goes with the last address of its link",
    ]


def test_addresses_of_dhcp_and_the_kernel_are_left_alone(have: Have) -> None:
    link = have.links["b", "eth0"]
    others = (
        HaveAddress(address("10.0.2.9/24"), ip("10.0.2.255"), permanent=False),
        HaveAddress(address("fe80::5/64"), automatic=True),
    )
    change_link(have, link.key, addresses=(*link.addresses, *others))
    assert planned(have) == []


def test_secondary_addresses_are_added_again_behind_a_deleted_primary_one(have: Have) -> None:
    link = have.links["b", "eth0"]
    first = HaveAddress(address("10.0.2.9/24"), ip("10.0.2.255"))
    change_link(
        have, link.key, addresses=(first, dataclasses.replace(link.addresses[0], secondary=True))
    )
    assert (
        "create address 10.0.2.2/24 on eth0@b: it may go with the first address of its network"
        in planned(have)
    )


def test_an_address_that_another_host_has_is_made_anew(have: Have) -> None:
    link = have.links["a", "eth0"]
    change_link(
        have,
        link.key,
        addresses=(
            link.addresses[0],
            dataclasses.replace(link.addresses[1], failed=True),
            link.addresses[2],
        ),
    )
    assert planned(have) == [
        "delete address 2001:db8:1::2/64 on eth0@a: duplicate address detection failed for it",
        "create address 2001:db8:1::2/64 on eth0@a: it is not there",
    ]


def test_a_lost_link_local_address_comes_back(have: Have) -> None:
    link = have.links["a", "eth0"]
    change_link(have, link.key, addresses=link.addresses[:2])
    (step,) = planned(have)
    assert step.endswith("/64 on eth0@a: IPv6 finds no neighbours without a link-local address")
    mine = HaveAddress(lab_model.link_local_of(link.mac))
    change_link(have, link.key, addresses=(*link.addresses[:2], mine))
    assert planned(have) == []


def test_link_local_address_of_a_mac() -> None:
    assert (
        lab_model.show_address(lab_model.link_local_of("02:a3:0f:a6:26:e7"))
        == "fe80::a3:fff:fea6:26e7/64"
    )


@pytest.mark.parametrize(
    ("protocol", "steps"), [(topology.PROTO_BOOT, 1), (topology.PROTO_STATIC, 1), (2, 0), (186, 0)]
)
def test_routes_that_people_add_are_removed_others_stay(
    have: Have, protocol: int, steps: int
) -> None:
    have.routes.append(HaveRoute("a", address("10.9.0.0/16"), ip("10.0.1.1"), "eth0", 0, protocol))
    assert (
        planned(have)
        == ["delete route 10.9.0.0/16 in namespace a: the lab has no such route"][:steps]
    )


def test_a_route_that_goes_elsewhere_is_changed(have: Have) -> None:
    have.routes[0] = dataclasses.replace(have.routes[0], via=ip("10.0.1.99"))
    assert planned(have) == ["change route default in namespace a: it goes via 10.0.1.99 dev eth0"]


def test_a_sysctl_that_drifted(have: Have) -> None:
    have.sysctls["gw", V4_FORWARDING] = "0"
    assert planned(have) == ["change sysctl net.ipv4.conf.all.forwarding@gw: it is 0"]


def test_setting_all_interfaces_sets_single_ones_again(have: Have) -> None:
    lab = {**LAB, "sysctls": {"net.ipv4.conf.default.forwarding": 0}}
    have = have_after(topology.parse(lab))
    assert planned(have, lab) == []
    have.sysctls["gw", V4_FORWARDING] = "0"
    assert planned(have, lab) == [
        "change sysctl net.ipv4.conf.all.forwarding@gw: it is 0",
        (
            "change sysctl net.ipv4.conf.default.forwarding@gw: setting it for all interfaces"
            " changes this one"
        ),
    ]


def test_a_new_link_gets_its_sysctls_itself(have: Have) -> None:
    lab = put("namespaces", 1, "sysctls", value={"net.ipv4.conf.eth0.rp_filter": 2})
    new = Have(host_inode=1)
    plan = lab_plan.make(topology.parse(lab), new)
    (link,) = [s for s in plan if s.name == "eth0@b - to-b@gw"]
    assert link.after["sysctls"] == {"net.ipv4.conf.eth0.rp_filter@b": "2"}
    assert "change sysctl net.ipv4.conf.eth0.rp_filter@b: it is 0" not in brief(plan)
    have.sysctls["b", "net/ipv4/conf/eth0/rp_filter"] = "0"
    assert planned(have, lab) == ["change sysctl net.ipv4.conf.eth0.rp_filter@b: it is 0"]


def test_links_and_namespaces_too_much(have: Have) -> None:
    lab = copy.deepcopy(LAB)
    del lab["namespaces"][1], lab["links"][1]
    assert planned(have, lab) == [
        "delete netns b: the lab has no such namespace any more",
        (
            "delete link eth0@b - to-b@gw: the lab has no such link any more; it goes with its"
            " namespace"
        ),
    ]


@pytest.mark.parametrize(
    "fields",
    [{"peer_index": 77}, {"alias": "ebpf.conntrack:office eth9@a"}, {"kind": "dummy"}],
    ids=["other peer", "other name", "other kind"],
)
def test_a_link_that_is_another_is_made_anew(have: Have, fields: dict[str, t.Any]) -> None:
    change_link(have, ("gw", "to-b"), **fields)
    steps = planned(have)
    assert steps[-4:] == [
        "create link eth0@b - to-b@gw: it is made anew",
        "create address 10.0.2.2/24 on eth0@b: it is not there",
        "create address 10.0.2.1/24 on to-b@gw: it is not there",
        "create route default in namespace b: it is not there",
    ]
    assert any(step.startswith("delete link ") for step in steps)


def test_half_made_objects_of_a_killed_run(have: Have) -> None:
    mark = topology.parse(LAB).mark
    for key in (("b", "eth0"), ("gw", "to-b")):
        change_link(have, key, alias="", group=lab_model.group_of(mark))
    del have.namespaces["a"]
    del have.links["a", "eth0"], have.links["gw", "to-a"]
    have.claimed.add("a")
    steps = planned(have)
    assert "delete link eth0@b: a run that was cut short left it half made" in steps
    assert "create netns a: a run that was cut short left only the name" in steps
    gone = brief(lab_plan.make(topology.absent("office"), have))
    assert "delete netns a: a run that was cut short left the name behind" in gone


def test_foreign_objects_are_all_named_at_once(have: Have) -> None:
    have.foreign = {"a", "unrelated"}
    change_link(have, ("gw", "to-b"), alias="")
    with pytest.raises(ConntrackError) as caught:
        planned(have)
    assert caught.value.facts["foreign"] == ["network namespace a", "link to-b@gw"]
    assert (
        "Lab 'office' did not make what is already there: network namespace a, link to-b@gw."
        in caught.value.message
    )


def test_a_mark_is_matched_whole() -> None:
    link = HaveLink(
        (None, "x"), 2, "veth", "ebpf.conntrack:lab2 y", 0, 1500, "02:00:00:00:00:01", True, True, 3
    )
    assert not lab_model.is_ours("ebpf.conntrack:lab", link)
    assert lab_model.is_ours("ebpf.conntrack:lab2", link)


def test_a_foreign_route_of_the_host_is_refused() -> None:
    lab = {"routes": [{"dst": "10.7.0.0/16", "via": "172.20.56.105"}]}
    have = have_after(topology.parse(lab))
    assert planned(have, lab) == []
    have.routes = [r for r in have.routes if r.netns] + [
        HaveRoute(None, address("10.7.0.0/16"), ip("192.0.2.1"), "eth0", 0, 3)
    ]
    with pytest.raises(ConntrackError, match="route 10.7.0.0/16 through eth0 on the host"):
        planned(have, lab)


# -- sysctls' values from before
# --------------------------------------------------------------------------------------------------


def test_absent_takes_everything_away_and_puts_sysctls_back() -> None:
    have = have_after(topology.parse({}))
    have.record[None, V4_FORWARDING] = Recorded(
        "1", 1, {V4_FORWARDING: "0", "net/ipv4/conf/eth0/forwarding": "1"}
    )
    have.sysctls[None, "net/ipv4/conf/eth0/forwarding"] = "1"
    assert brief(lab_plan.make(topology.absent("lab"), have)) == [
        "delete netns ns1: the lab has no such namespace any more",
        "delete netns ns2: the lab has no such namespace any more",
        (
            "delete link ns1-lan - ns1-wan@ns1: the lab has no such link any more; it goes with its"
            " namespace"
        ),
        (
            "delete link ns2-lan - ns2-wan@ns2: the lab has no such link any more; it goes with its"
            " namespace"
        ),
        "change sysctl net.ipv4.conf.all.forwarding: the value from before the lab comes back",
        "change sysctl net.ipv6.conf.all.forwarding: the value from before the lab comes back",
        "delete record /run/ebpf_conntrack/lab.json: the lab sets nothing any more",
    ]


def test_a_topology_that_may_not_replace_another_one_is_refused() -> None:
    other = {"namespaces": [{"name": "client"}], "links": []}
    have = have_after(topology.parse({}))
    with pytest.raises(
        ConntrackError,
        match="lab 'lab' is there with namespaces that this topology does not have: ns1, ns2",
    ):
        lab_plan.make(topology.parse({**other, "replace": False}), have)
    assert lab_plan.make(topology.parse({"replace": False}), have) == [], "the same one"
    with pytest.raises(ConntrackError, match="does not have: client"):
        lab_plan.make(topology.parse({"replace": False}), have_after(topology.parse(other)))
    assert lab_plan.make(topology.parse({**other, "replace": True}), have)[0].action == "delete"
    more = {"namespaces": [{"name": "client"}, {"name": "more"}], "links": [], "replace": False}
    assert [
        step.name
        for step in lab_plan.make(topology.parse(more), have_after(topology.parse(other)))
        if step.kind == "netns"
    ] == ["more"]


@pytest.mark.parametrize("field", ["name", "router"])
def test_an_empty_name_is_not_the_default_one(field: str) -> None:
    with pytest.raises(ConntrackError, match=f"{field}: '' is not valid"):
        topology.parse({field: ""})
    if field == "name":
        with pytest.raises(ConntrackError, match="name: '' is not valid"):
            topology.absent("")


def test_absent_of_nothing() -> None:
    assert lab_plan.make(topology.absent("lab"), Have(host_inode=1, foreign={"ns1"})) == []


def test_a_value_that_was_right_before_is_not_put_back() -> None:
    have = have_after(topology.parse({}))
    have.record = {key: Recorded("1", 1, {key[1]: "1"}) for key in have.record}
    assert not [s for s in lab_plan.make(topology.absent("lab"), have) if s.kind == "sysctl"]


def test_another_labs_sysctl_is_handed_over() -> None:
    have = have_after(topology.parse({}))
    have.other_claims = {(None, V4_FORWARDING): "second"}
    steps = brief(lab_plan.make(topology.absent("lab"), have))
    reason = (
        "lab 'second' needs net.ipv4.conf.all.forwarding too: it puts the value from before back"
        " when it goes"
    )
    assert f"change record /run/ebpf_conntrack/second.json: {reason}" in steps
    assert (
        "change sysctl net.ipv4.conf.all.forwarding: the value from before the lab comes back"
        not in steps
    )


def test_the_record_follows_what_is_wanted(have: Have) -> None:
    lab = {**LAB, "sysctls": {"net.ipv4.tcp_syncookies": 0}}
    have.sysctls["gw", "net/ipv4/tcp_syncookies"] = "1"
    plan = lab_plan.make(topology.parse(lab), have)
    assert [s.kind for s in plan] == ["record", "sysctl"]
    assert plan[0].after == [
        "net.ipv4.conf.all.forwarding@gw",
        "net.ipv6.conf.all.forwarding@gw",
        "net.ipv4.tcp_syncookies@gw",
    ]
    previous = {sysctl.path: known for sysctl, known in plan[0].args}
    assert previous == {
        V4_FORWARDING: {V4_FORWARDING: "0"},
        V6_FORWARDING: {V6_FORWARDING: "0"},
        "net/ipv4/tcp_syncookies": None,
    }


def test_a_record_of_a_namespace_made_anew_is_written_again(have: Have) -> None:
    have.namespaces["gw"] = 999
    assert planned(have) == [
        "change record /run/ebpf_conntrack/office.json: the values from before come back when the"
        " lab goes"
    ]


# -- facts
# --------------------------------------------------------------------------------------------------


def test_facts(have: Have) -> None:
    have.links[None, "eth0"] = HaveLink(
        (None, "eth0"), 2, None, "", 0, 1500, "02:00:00:00:00:01", True, True, 2
    )
    facts = lab_plan.facts(topology.parse(LAB), have)
    assert facts["namespaces"] == [
        {"name": "a", "inode": 100},
        {"name": "b", "inode": 101},
        {"name": "gw", "inode": 102},
    ]
    assert [(link["netns"], link["name"], link["peer"]) for link in facts["links"]] == [
        ("a", "eth0", "to-a@gw"),
        ("b", "eth0", "to-b@gw"),
        ("gw", "to-a", "eth0@a"),
        ("gw", "to-b", "eth0@b"),
    ]
    assert facts["links"][0]["state"] == "up"
