# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab as it is wanted and as it is there: namespaces, links, addresses, routes and sysctls."""

from __future__ import annotations

import dataclasses
import socket
import typing as t
import zlib

from . import expectation

Key = tuple[t.Optional[str], str]
Address = tuple[bytes, int]
SysctlKey = tuple[t.Optional[str], str]
MARK_PREFIX = "ebpf.conntrack:"
RECORD_DIR = "/run/ebpf_conntrack"


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a veth link.

    :ivar netns: the namespace; None for the host's.
    :ivar mac: always set: links without a wished address get one derived from lab, namespace and
        name, so that drift shows.
    """

    name: str
    netns: str | None
    addresses: tuple[Address, ...]
    mtu: int
    mac: str

    @property
    def key(self) -> Key:
        """Return (namespace, name)."""
        return (self.netns, self.name)


@dataclasses.dataclass(frozen=True)
class Route:
    """One unicast route of the main table; ``via`` is None for a network right on the link."""

    netns: str | None
    dst: Address
    via: bytes | None
    dev: str
    metric: int

    @property
    def key(self) -> tuple[str | None, Address, int]:
        """Return what the kernel tells routes apart by: namespace, destination, metric."""
        return (self.netns, self.dst, self.metric)


@dataclasses.dataclass(frozen=True)
class Sysctl:
    """A value below /proc/sys.

    :ivar path: as below /proc/sys: ``net/ipv4/conf/all/forwarding``.
    :ivar optional: set by us and not by the user, so a kernel without it (IPv6 switched off) is no
        error.
    """

    netns: str | None
    path: str
    value: str
    optional: bool = False

    @property
    def key(self) -> SysctlKey:
        """Return (namespace, path)."""
        return (self.netns, self.path)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A whole lab. Without namespaces, links, routes and sysctls it is a lab that shall be gone.

    :ivar replace: whether namespaces that the lab has, and this one has not, are taken away.
    """

    lab: str
    router: str | None = None
    namespaces: tuple[str, ...] = ()
    links: tuple[tuple[End, End], ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    expect: tuple[expectation.Line, ...] = ()
    replace: bool = True

    @property
    def mark(self) -> str:
        """Return the ownership mark: the alias of a namespace's lo, the first word of a link's
        alias.
        """
        return MARK_PREFIX + self.lab

    @property
    def ends(self) -> dict[Key, End]:
        """Return all ends of links by key."""
        return {end.key: end for link in self.links for end in link}


def group_of(mark: str) -> int:
    """Return the link group that a link of the lab carries between its creation and its alias.

    The kernel takes a group in the message that creates a link, an alias only later; a run killed
    in between leaves a link of this group.
    """
    return zlib.crc32(mark.encode()) | 1  # group 0 is everybody's


def alias_of(mark: str, peer: Key) -> str:
    """Return the alias of a link end: the mark and the other end, for people and for us."""
    return f"{mark} {show_key(peer)}"


def show_key(key: Key) -> str:
    """Return an end of a link as people read it.

    >>> show_key(("ns1", "ns1-wan")), show_key((None, "ns1-lan"))
    ('ns1-wan@ns1', 'ns1-lan')
    """
    return key[1] if key[0] is None else f"{key[1]}@{key[0]}"


def show_ip(packed: bytes) -> str:
    """Return an address as text."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def show_address(address: Address) -> str:
    """Return address and prefix length as text."""
    return f"{show_ip(address[0])}/{address[1]}"


def show_dst(dst: Address) -> str:
    """Return a route's destination as text, ``default`` for the whole family."""
    return show_address(dst) if dst[1] else ("default" if len(dst[0]) == 4 else "default (IPv6)")


def show_sysctl(key: SysctlKey) -> str:
    """Return a sysctl as people write it; '/' and '.' change places, as in sysctl(8)."""
    dotted = key[1].translate(str.maketrans("/.", "./"))
    return dotted if key[0] is None else f"{dotted}@{key[0]}"


def broadcast_of(address: Address) -> bytes | None:
    """Return the broadcast address of an IPv4 address's network; None where there is none."""
    packed, prefix = address
    if len(packed) != 4 or prefix > 30:
        return None
    return (int.from_bytes(packed, "big") | (0xFFFFFFFF >> prefix)).to_bytes(4, "big")


def network_of(address: Address) -> Address:
    """Return the network of an address."""
    packed, prefix = address
    bits = len(packed) * 8
    value = int.from_bytes(packed, "big") >> (bits - prefix) << (bits - prefix)
    return value.to_bytes(len(packed), "big"), prefix


def contains(network: Address, ip: bytes) -> bool:
    """Say whether the address lies in the network."""
    return len(network[0]) == len(ip) and network_of((ip, network[1])) == network_of(network)


def link_local_of(mac: str) -> Address:
    """Return the IPv6 address that the kernel derives from a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return (
        b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:],
        64,
    )


def is_link_local(ip: bytes) -> bool:
    """Say whether it is an address of fe80::/10."""
    return len(ip) == 16 and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80


def show_place(netns: str | None) -> str:
    return "the host" if netns is None else f"namespace {netns}"


@dataclasses.dataclass(frozen=True)
class HaveAddress:
    """An address on an interface.

    :ivar permanent: without lifetime; the others belong to a DHCP client or to router
        advertisements.
    :ivar secondary: an IPv4 address that the kernel removes together with the first one of its
        network.
    :ivar automatic: made by the kernel (IPv6 link-local).
    :ivar failed: IPv6 duplicate address detection failed, it cannot be used.
    """

    address: Address
    broadcast: bytes | None = None
    permanent: bool = True
    secondary: bool = False
    automatic: bool = False
    failed: bool = False


@dataclasses.dataclass(frozen=True)
class HaveLink:
    """An interface.

    :ivar up: it shall run.
    :ivar running: it does: packets pass.
    :ivar peer_index: the ifindex of a veth's other end.
    :ivar vlan_offload: VLAN tags travel beside the frame, where no XDP program sees them; looked at
        on the lab's own veths.
    :ivar arp: and ``multicast``: switches without which neighbours are not found (ip link set arp,
        multicast).
    """

    key: Key
    ifindex: int
    kind: str | None
    alias: str
    group: int
    mtu: int
    mac: str
    up: bool
    running: bool
    peer_index: int
    addresses: tuple[HaveAddress, ...] = ()
    vlan_offload: bool = False
    arp: bool = True
    multicast: bool = True


@dataclasses.dataclass(frozen=True)
class HaveRoute:
    """A route of the main table; ``dev`` is None for one without a single next hop."""

    netns: str | None
    dst: Address
    via: bytes | None
    dev: str | None
    metric: int
    protocol: int

    @property
    def key(self) -> tuple[str | None, Address, int]:
        """Return what the kernel tells routes apart by."""
        return (self.netns, self.dst, self.metric)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A sysctl that the lab set.

    :ivar inode: of the namespace at that time: a namespace made anew has nothing to put back.
    :ivar previous: values before, by path, in the order in which to write them back: setting one
        ``conf/all`` value changes others.
    """

    wanted: str
    inode: int
    previous: t.Mapping[str, str]


@dataclasses.dataclass
class Have:
    """What the kernel has, as far as the lab is concerned.

    :ivar namespaces: of this lab, with inodes; also the lo of each that is down in ``lo_down``.
    :ivar foreign: other names in /run/netns, taken by namespaces or files that are not this lab's.
    :ivar bare: those of them that are no namespaces, with what they are (``file``, ``directory``).
    :ivar claimed: bare files in /run/netns that a killed run of this lab left.
    :ivar links: interfaces of the host and of the lab's namespaces, without lo.
    :ivar sysctls: current values; a missing key is a sysctl that does not exist.
    :ivar record: what this lab has set so far.
    :ivar other_claims: sysctls of the host that other labs need, with those labs' names.
    """

    host_inode: int = 0
    namespaces: dict[str, int] = dataclasses.field(default_factory=dict)
    lo_down: set[str] = dataclasses.field(default_factory=set)
    foreign: set[str] = dataclasses.field(default_factory=set)
    bare: dict[str, str] = dataclasses.field(default_factory=dict)
    claimed: set[str] = dataclasses.field(default_factory=set)
    links: dict[Key, HaveLink] = dataclasses.field(default_factory=dict)
    routes: list[HaveRoute] = dataclasses.field(default_factory=list)
    sysctls: dict[SysctlKey, str] = dataclasses.field(default_factory=dict)
    record: dict[SysctlKey, Recorded] = dataclasses.field(default_factory=dict)
    other_claims: dict[SysctlKey, str] = dataclasses.field(default_factory=dict)


def of_link(key: SysctlKey, ends: t.Container[Key]) -> bool:
    """Say whether the sysctl belongs to a link of the lab, as ``net/ipv4/conf/ns1-lan/rp_filter``
    does.
    """
    parts = key[1].split("/")
    return len(parts) == 5 and parts[2] in ("conf", "neigh") and (key[0], parts[3]) in ends


def record_path(lab: str) -> str:
    """Return the file that holds the sysctls' previous values; in /run, because a reboot resets
    both.
    """
    return f"{RECORD_DIR}/{lab}.json"


def is_ours(mark: str, link: HaveLink) -> bool:
    """Say whether the link carries the lab's mark, whole or from a creation that was cut short."""
    return link.alias.split(" ")[0] == mark or is_half_made(mark, link)


def is_half_made(mark: str, link: HaveLink) -> bool:
    """Say whether the link is one whose creation was cut short."""
    return not link.alias and link.group == group_of(mark)
