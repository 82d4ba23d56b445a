# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A topology as an operator writes it, parsed and checked. Pure: nothing here touches the kernel.

What it becomes is in model.py. A lab that shall be gone is an empty Topology: everything that
carries the lab's mark is then too much.

An end of a link is named by its key, (namespace, interface); the namespace None is the host's.
People read it as C(ns1-wan@ns1) or C(ns1-lan). Addresses and networks are pairs (packed bytes,
prefix length), so that no spelling of an IPv6 address matters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import re
import typing as t

from ..core.errors import ConntrackError, bad_value, did_you_mean
from . import expectation
from . import model as lab_model
from . import sysctls as lab_sysctls
from .model import End, Route, Sysctl, Topology

#: Protocols (rtnetlink's RTPROT_*) of routes that people and scripts add: boot is what C(ip route
#: add) writes. Other routes are never removed.
PROTO_BOOT, PROTO_STATIC = 3, 4
MANAGED_PROTOCOLS = frozenset({PROTO_BOOT, PROTO_STATIC})
DEFAULT_MTU = 1500
_MTU_RANGE = (68, 65535)
MTU_IPV6 = 1280  # below it the kernel takes IPv6 off the interface (RFC 8200, section 5)
# by length of the packed address: what the kernel gives a route without a metric
DEFAULT_METRIC = {4: 0, 16: 1024}
_METRIC_MAX = 0xFFFFFFFF
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_LAB_NAME_MAX, _NETNS_NAME_MAX, _LINK_NAME_MAX = 32, 64, 15
# the loopback, and two directories of /proc/sys/net/ipv4/conf
_RESERVED_LINKS = frozenset({"lo", "all", "default"})
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
#: Other names of the same value (net/ipv4/devinet.c, ctl_forward_entry).
_SAME = {"net/ipv4/ip_forward": lab_sysctls.FORWARDING[0]}
#: A number as the kernel reads it (lib/kstrtox.c with base 0): hexadecimal, octal or decimal.
_NUMBER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)\Z")
_DEFAULT_NAMESPACES: list[dict[str, t.Any]] = [
    {"name": "ns1", "routes": [{"dst": "default", "via": "172.20.56.1", "dev": "ns1-wan"}]},
    {"name": "ns2", "routes": [{"dst": "default", "via": "172.30.56.1", "dev": "ns2-wan"}]},
]
_DEFAULT_LINKS: list[dict[str, t.Any]] = [
    {
        "ends": [
            {"name": "ns1-wan", "netns": "ns1", "addresses": ["172.20.56.105/24"]},
            {"name": "ns1-lan", "addresses": ["172.20.56.1/24"]},
        ]
    },
    {
        "ends": [
            {"name": "ns2-wan", "netns": "ns2", "addresses": ["172.30.56.105/24"]},
            {"name": "ns2-lan", "addresses": ["172.30.56.1/24"]},
        ]
    },
]
_DEFAULT_EXPECT: list[dict[str, t.Any]] = [
    {"ping": {"from": "ns1", "to": "ns2"}},
    {"flow": {"from": "ns1", "to": "ns2", "proto": "tcp", "port": 80}},
    {"flow": {"from": "ns1", "to": "ns2", "proto": "udp", "port": 53}},
    {"untracked": 0},
]
_FIELDS = {
    "lab": frozenset(
        {"name", "router", "namespaces", "links", "sysctls", "routes", "expect", "replace"}
    ),
    "namespace": frozenset({"name", "sysctls", "routes"}),
    "link": frozenset({"ends"}),
    "end": frozenset({"name", "netns", "addresses", "mtu", "mac"}),
    "route": frozenset({"dst", "via", "dev", "metric"}),
}


def parse(description: t.Mapping[str, t.Any]) -> Topology:
    """Check a lab's description and return it as a Topology.

    :param description: ``name``, ``router``, ``namespaces``, ``links``, ``sysctls``, ``routes``,
        ``expect`` as the module netns_lab documents them. Missing keys and None mean the default;
        with neither namespaces nor links, the default topology is meant.
    :raises ConntrackError: naming the field, the value and the mending.
    """
    _check_fields("lab", "description", description)
    name, router = description.get("name"), description.get("router")
    lab = check_name("name", "lab" if name is None else name, _LAB_NAME_MAX)
    if router is not None:
        check_name("router", router, _NETNS_NAME_MAX)
    namespaces, links, expect = (
        description.get(name) for name in ("namespaces", "links", "expect")
    )
    if namespaces is None and links is None:
        namespaces, links = _DEFAULT_NAMESPACES, _DEFAULT_LINKS
        expect = _DEFAULT_EXPECT if expect is None else expect
    namespaces, links = _list_of_dicts("namespaces", namespaces), _list_of_dicts("links", links)

    names = _parse_names(namespaces, router)
    parsed_links = _parse_links(lab, router, names, links)
    ends = {end.key: end for link in parsed_links for end in link}
    _check_macs(parsed_links)
    _check_addresses(parsed_links)
    on_host = any(netns is None for netns, dummy in ends)

    wanted: dict[lab_model.SysctlKey, Sysctl] = {}
    routes: dict[tuple[str | None, lab_model.Address, int], Route] = {}
    owners: list[tuple[str, str | None, t.Mapping[str, t.Any]]] = [("", router, description)]
    owners += [(f"namespaces[{i}].", item["name"], item) for i, item in enumerate(namespaces)]
    reach = _reach(ends)
    for prefix, netns, item in owners:
        _parse_sysctls(f"{prefix}sysctls", netns, item.get("sysctls"), wanted)
        _parse_routes(f"{prefix}routes", netns, item.get("routes"), reach.get(netns, {}), routes)
    if router is not None or on_host:
        for path in lab_sysctls.FORWARDING:
            wanted.setdefault((router, path), Sysctl(router, path, "1", optional=True))
    for sysctl in _without_dad(parsed_links):
        wanted.setdefault(sysctl.key, sysctl)
    lines = _parse_expect(expect, names, reach)
    parts = (tuple(names), tuple(parsed_links), tuple(routes.values()), tuple(wanted.values()))
    return Topology(lab, router, *parts, lines, description.get("replace") is not False)


def _parse_expect(
    expect: t.Any,
    names: t.Iterable[str],
    reach: t.Mapping[str | None, t.Mapping[str, tuple[lab_model.Address, ...]]],
) -> tuple[expectation.Line, ...]:
    """Check the lines of ``expect`` against the namespaces and their addresses."""
    addresses = {
        name: [
            lab_model.show_ip(ip)
            for ends in reach.get(name, {}).values()
            for ip, dummy in ends
            if not lab_model.is_link_local(ip)
        ]
        for name in names
    }
    return tuple(
        expectation.resolved(line, addresses, "of the lab") for line in expectation.parse(expect)
    )


def _without_dad(links: t.Iterable[tuple[End, End]]) -> t.Iterator[Sysctl]:
    """Yield the sysctls that make IPv6 usable at once where a link has an IPv6 address.

    Its addresses are added without duplicate address detection, but the kernel also tests each
    link's own link-local address for a second or two, and does not ask for neighbours before.
    """
    for link in links:
        if any(len(packed) == 16 for end in link for packed, dummy in end.addresses):
            for end in link:
                yield Sysctl(end.netns, f"net/ipv6/conf/{end.name}/accept_dad", "0", optional=True)


def of_default(path: str) -> str:
    """Return the path of the value that later interfaces get, for a path of one interface; other
    paths as they are.
    """
    parts = path.split("/")
    if len(parts) == 5 and parts[2] in ("conf", "neigh") and parts[3] != "all":
        parts[3] = "default"
    return "/".join(parts)


def without_missing(topology: Topology, exists: t.Callable[[str], bool]) -> Topology:
    """Return the topology without the sysctls of our own choice that this kernel lacks, such as
    IPv6 forwarding where IPv6 is off.

    :param exists: says whether a path below /proc/sys exists.
    """
    return dataclasses.replace(
        topology,
        sysctls=tuple(s for s in topology.sysctls if not s.optional or exists(of_default(s.path))),
    )


def absent(name: str | None) -> Topology:
    """Return the lab of that name as one that shall be gone.

    :raises ConntrackError: the name is no lab's name.
    """
    return Topology(check_name("name", "lab" if name is None else name, _LAB_NAME_MAX))


def check_name(field: str, name: t.Any, longest: int) -> str:
    """Return the name when it is a usable one.

    :raises ConntrackError: it is too long, empty, or holds other characters than the kernel, a path
        and a shell all take.
    """
    if not isinstance(name, str) or not _NAME.match(name) or len(name) > longest:
        raise bad_value(
            field,
            name,
            f"give 1 to {longest} characters of a-z, A-Z, 0-9, '_', '.' and '-', the first no '.'"
            " or '-'",
        )
    return name


def _check_fields(kind: str, field: str, item: t.Any) -> None:
    if not isinstance(item, t.Mapping):
        raise bad_value(field, item, "give a dictionary")
    unknown = sorted(str(key) for key in item if key not in _FIELDS[kind])
    if unknown:
        error = bad_value(field, unknown[0], f"the keys are {', '.join(sorted(_FIELDS[kind]))}")
        raise ConntrackError(error.message + did_you_mean(unknown[0], _FIELDS[kind]))


def _list_of_dicts(field: str, value: t.Any) -> list[t.Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise bad_value(field, value, "give a list")
    return list(value)


def _parse_names(namespaces: list[t.Any], router: str | None) -> list[str]:
    names: dict[str, None] = {}
    for i, item in enumerate(namespaces):
        _check_fields("namespace", f"namespaces[{i}]", item)
        name = check_name(f"namespaces[{i}].name", item.get("name"), _NETNS_NAME_MAX)
        if name in names:
            raise bad_value(
                f"namespaces[{i}].name",
                name,
                "it is there twice: give each namespace a name of its own",
            )
        names[name] = None
    if router is not None:
        names.setdefault(router)
    return list(names)


def _parse_links(
    lab: str, router: str | None, names: t.Collection[str], links: list[t.Any]
) -> list[tuple[End, End]]:
    known, seen = set(names), set()
    result = []
    for i, link in enumerate(links):
        _check_fields("link", f"links[{i}]", link)
        ends = _list_of_dicts(f"links[{i}].ends", link.get("ends"))
        if len(ends) != 2:
            raise bad_value(f"links[{i}].ends", len(ends), "a veth link has exactly two ends")
        pair = []
        for j, item in enumerate(ends):
            field = f"links[{i}].ends[{j}]"
            end = _parse_end(field, lab, router, item)
            if end.netns is not None and end.netns not in known:
                raise bad_value(
                    f"{field}.netns", end.netns, "it is not declared: add it to namespaces"
                )
            if end.key in seen:
                raise bad_value(
                    f"{field}.name",
                    end.name,
                    f"{lab_model.show_key(end.key)} is there twice: give each end in a namespace a"
                    " name of its own",
                )
            seen.add(end.key)
            pair.append(end)
        result.append((pair[0], pair[1]))
    return result


def _parse_end(field: str, lab: str, router: str | None, item: t.Any) -> End:
    _check_fields("end", field, item)
    name = check_name(f"{field}.name", item.get("name"), _LINK_NAME_MAX)
    if name in _RESERVED_LINKS:
        raise bad_value(f"{field}.name", name, "the kernel uses that name itself: choose another")
    netns = item.get("netns") or router
    if netns is not None and not isinstance(netns, str):
        raise bad_value(f"{field}.netns", netns, "give the name of a namespace")
    addresses: dict[lab_model.Address, None] = {}
    given = item.get("addresses")
    if given is not None and not isinstance(given, (list, tuple)):
        raise bad_value(f"{field}.addresses", given, "give a list")
    for k, text in enumerate(given or ()):
        address = _parse_address(f"{field}.addresses[{k}]", text)
        if address in addresses:
            raise bad_value(f"{field}.addresses[{k}]", text, "it is there twice: remove one")
        addresses[address] = None
    mtu = item.get("mtu")
    if mtu is None:
        mtu = DEFAULT_MTU
    if (
        isinstance(mtu, bool)
        or not isinstance(mtu, int)
        or not _MTU_RANGE[0] <= mtu <= _MTU_RANGE[1]
    ):
        raise bad_value(f"{field}.mtu", mtu, f"give {_MTU_RANGE[0]} to {_MTU_RANGE[1]}")
    if mtu < MTU_IPV6 and any(len(packed) == 16 for packed, dummy in addresses):
        raise bad_value(
            f"{field}.mtu",
            mtu,
            f"IPv6 needs at least {MTU_IPV6}: give that, or remove the IPv6 addresses",
        )
    mac = item.get("mac")
    return End(
        name,
        netns,
        tuple(addresses),
        mtu,
        _default_mac(lab, netns, name) if mac is None else _parse_mac(f"{field}.mac", mac),
    )


def _default_mac(lab: str, netns: str | None, name: str) -> str:
    """Return a locally administered address that is the same in every run."""
    digest = hashlib.sha256(f"{lab}\0{netns or ''}\0{name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x02" + digest[:5])


def _parse_mac(field: str, text: t.Any) -> str:
    mac = text.lower().replace("-", ":") if isinstance(text, str) else ""
    if not _MAC.match(mac):
        raise bad_value(field, text, "give six pairs of hex digits such as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise bad_value(
            field,
            text,
            "an interface needs a unicast address other than zero: the first pair must be even",
        )
    return mac


def _parse_address(field: str, text: t.Any) -> lab_model.Address:
    mend = (
        "give an IPv4 or IPv6 address with its prefix length such as 172.20.56.1/24 or"
        " 2001:db8::1/64"
    )
    if not isinstance(text, str) or "/" not in text:
        raise bad_value(field, text, mend)
    try:
        parsed = ipaddress.ip_interface(text)
    except ValueError as exc:
        raise bad_value(field, text, f"{exc}; {mend}") from exc
    ip, prefix = parsed.ip, parsed.network.prefixlen
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or str(ip) == "255.255.255.255":
        raise bad_value(
            field, text, "an interface needs a unicast address that is no loopback address"
        )
    address = (ip.packed, prefix)
    if (
        prefix < len(ip.packed) * 8 - 1
        and len(ip.packed) == 4
        and ip.packed in (lab_model.network_of(address)[0], lab_model.broadcast_of(address))
    ):
        raise bad_value(
            field, text, "it is the network's own or its broadcast address: give a host's"
        )
    return address


def _check_macs(links: t.Iterable[tuple[End, End]]) -> None:
    for i, (one, two) in enumerate(links):
        if one.mac == two.mac:
            raise bad_value(
                f"links[{i}].ends[1].mac", two.mac, "both ends have it: give each end its own"
            )


def _check_addresses(links: t.Iterable[tuple[End, End]]) -> None:
    """Refuse an address twice among the ends that one namespace sees: its own, and those right
    behind its links.
    """
    seen: dict[tuple[str | None, bytes], lab_model.Key] = {}
    for i, link in enumerate(links):
        for netns in dict.fromkeys(end.netns for end in link):
            for j, end in enumerate(link):
                for k, (ip, dummy) in enumerate(end.addresses):
                    if seen.setdefault(
                        (netns, ip), end.key
                    ) != end.key and not lab_model.is_link_local(ip):
                        field = f"links[{i}].ends[{j}].addresses[{k}]"
                        raise bad_value(
                            field,
                            lab_model.show_ip(ip),
                            f"{lab_model.show_key(seen[netns, ip])} has it too: give each end"
                            " its own",
                        )


def _reach(
    ends: t.Mapping[lab_model.Key, End],
) -> dict[str | None, dict[str, tuple[lab_model.Address, ...]]]:
    """Return, for each namespace, the addresses of each of its interfaces."""
    reach: dict[str | None, dict[str, tuple[lab_model.Address, ...]]] = {}
    for (netns, name), end in ends.items():
        reach.setdefault(netns, {})[name] = end.addresses
    return reach


def sysctl_path(field: str, key: t.Any) -> str:
    """Return a sysctl's path below /proc/sys from either way of writing it (sysctl(8): the first
    separator tells).

    :raises ConntrackError: it is no name of a sysctl of the network.
    """
    text = key if isinstance(key, str) else ""
    first = re.search(r"[./]", text)
    if first and first.group() == ".":
        text = text.translate(str.maketrans("./", "/."))
    parts = text.split("/")
    if (
        parts[0] != "net"
        or len(parts) < 3
        or any(part in ("", ".", "..") or not part.isprintable() or " " in part for part in parts)
    ):
        raise bad_value(
            field,
            key,
            "give the name of a sysctl that a namespace has of its own, such as"
            " net.ipv4.conf.all.forwarding",
        )
    path = "/".join(parts)
    return _SAME.get(path, path)


def decimal(value: str) -> str:
    """Return a sysctl's value with its numbers as the kernel shows them.

    >>> decimal("0x1 010 -0x2 +7 cubic")
    '1 8 -2 7 cubic'
    """
    return " ".join(map(_decimal, value.split()))


def _decimal(word: str) -> str:
    found = _NUMBER.match(word)
    if not found:
        return word
    sign, digits = found.groups()
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    try:
        return str(int(f"{sign}{digits}", base))
    except ValueError:  # 08 is no octal number: the kernel will say so
        return word


def with_values(want: Topology, values: t.Mapping[lab_model.SysctlKey, str]) -> Topology:
    """Return the lab with other values of some sysctls."""
    return dataclasses.replace(
        want,
        sysctls=tuple(
            dataclasses.replace(s, value=values.get(s.key, s.value)) for s in want.sysctls
        ),
    )


def _parse_sysctls(
    field: str, netns: str | None, given: t.Any, result: dict[lab_model.SysctlKey, Sysctl]
) -> None:
    if given is None:
        return
    if not isinstance(given, t.Mapping):
        raise bad_value(field, given, "give a dictionary of names and values")
    for key, value in given.items():
        path = sysctl_path(field, key)
        if isinstance(value, bool):
            value = int(value)
        text = " ".join(str(value).split()) if isinstance(value, (int, str)) else ""
        if not text:
            raise bad_value(f"{field}.{key}", value, "give a number or a text")
        if (netns, path) in result:
            raise bad_value(f"{field}.{key}", value, "the sysctl is there twice: remove one")
        result[netns, path] = Sysctl(netns, path, text)


def _parse_routes(
    field: str,
    netns: str | None,
    given: t.Any,
    reach: t.Mapping[str, tuple[lab_model.Address, ...]],
    result: dict[tuple[str | None, lab_model.Address, int], Route],
) -> None:
    for i, item in enumerate(_list_of_dicts(field, given)):
        _check_fields("route", f"{field}[{i}]", item)
        route = _parse_route(f"{field}[{i}]", netns, item, reach)
        if route.key in result:
            raise bad_value(
                f"{field}[{i}].dst",
                item.get("dst"),
                "the namespace has a route to it with that metric already: remove one",
            )
        result[route.key] = route


def _parse_route(
    field: str,
    netns: str | None,
    item: t.Mapping[str, t.Any],
    reach: t.Mapping[str, tuple[lab_model.Address, ...]],
) -> Route:
    via_text, dev = item.get("via"), item.get("dev")
    via: bytes | None = None
    if via_text is not None:
        try:
            via = ipaddress.ip_address(via_text if isinstance(via_text, str) else "").packed
        except ValueError as exc:
            raise bad_value(
                f"{field}.via", via_text, "give the IPv4 or IPv6 address of the next router"
            ) from exc
    dst = _parse_dst(f"{field}.dst", item.get("dst"), via)
    if via is not None and len(via) != len(dst[0]):
        raise bad_value(f"{field}.via", via_text, "it must be of the same family as dst")
    if dev is None and via is None:
        raise bad_value(field, item.get("dst"), "give via, dev or both")
    if dev is not None and dev not in reach:
        have = ", ".join(reach) or "none"
        raise bad_value(
            f"{field}.dev",
            dev,
            f"it is no link of the lab in {lab_model.show_place(netns)} (there: {have})",
        )
    if via is not None:
        dev = _check_via(f"{field}.via", netns, via, dev, reach)
    metric = item.get("metric")
    if metric is None:
        metric = DEFAULT_METRIC[len(dst[0])]
    if isinstance(metric, bool) or not isinstance(metric, int) or not 0 <= metric <= _METRIC_MAX:
        raise bad_value(f"{field}.metric", metric, f"give 0 to {_METRIC_MAX}")
    if len(dst[0]) == 16 and metric == 0:
        metric = DEFAULT_METRIC[16]  # the kernel reads 0 so
    return Route(netns, dst, via, t.cast(str, dev), metric)


def _parse_dst(field: str, text: t.Any, via: bytes | None) -> lab_model.Address:
    if text == "default":
        size = 4 if via is None else len(via)
        return bytes(size), 0
    mend = "give a network such as 10.0.0.0/8, one address, or default"
    try:
        network = ipaddress.ip_network(text if isinstance(text, str) else "")
    except ValueError as exc:
        raise bad_value(
            field, text, f"{exc}; {mend}" if isinstance(text, str) and text else mend
        ) from exc
    return network.network_address.packed, network.prefixlen


def _check_via(
    field: str,
    netns: str | None,
    via: bytes,
    dev: str | None,
    reach: t.Mapping[str, tuple[lab_model.Address, ...]],
) -> str:
    """Return the interface on whose network ``via`` lies; it must not be an address of the
    namespace itself.
    """
    text = lab_model.show_ip(via)
    if any(via == ip for addresses in reach.values() for ip, dummy in addresses):
        raise bad_value(
            field,
            text,
            f"it is an address of {lab_model.show_place(netns)} itself: give the next router's",
        )
    if lab_model.is_link_local(via):
        if dev is None:
            raise bad_value(field, text, "a link-local address needs dev besides")
        return dev
    fitting = [
        (address[1], name)
        for name, addresses in reach.items()
        if dev in (None, name)
        for address in addresses
        if lab_model.contains(lab_model.network_of(address), via)
    ]
    if not fitting:
        there = ", ".join(
            f"{lab_model.show_address(lab_model.network_of(a))} on {name}"
            for name, addresses in reach.items()
            if dev in (None, name)
            for a in addresses
        )
        raise bad_value(
            field,
            text,
            f"{lab_model.show_place(netns)} does not reach it: its networks are {there or 'none'}",
        )
    return max(fitting)[1]


def split_sysctls(want: Topology) -> tuple[list[Sysctl], list[Sysctl]]:
    """Return the sysctls to set before the links are made (links take ``conf/default`` from them)
    and those of the links themselves.

    Only the first are recorded: the others vanish with their link. Forwarding comes first, because
    it changes redirects (net/ipv4/devinet.c, inet_forward_change()), then ``conf/all``, because it
    changes the other values of its name, then ``conf/default``, which interfaces that have no value
    of their own take up (devinet_copy_dflt_conf()).
    """
    ends = want.ends
    late = [s for s in want.sysctls if lab_model.of_link(s.key, ends)]
    early = [s for s in want.sysctls if not lab_model.of_link(s.key, ends)]
    return sorted(early, key=_rank), late


def _rank(sysctl: Sysctl) -> int:
    """Return the position of a sysctl among those that are set: what changes others comes first."""
    if sysctl.path in lab_sysctls.FORWARDING:
        return 0
    return (
        1
        if lab_sysctls.CONF_ALL.match(sysctl.path)
        else 2
        if "/conf/default/" in sysctl.path
        else 3
    )
