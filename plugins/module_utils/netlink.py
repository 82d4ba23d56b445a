# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab in the kernel: what is there, and how a plan is applied. One process, one rtnetlink socket per namespace, no fork.

pyroute2's message classes encode what is sent. Its sockets and decoders are not used: a socket of Python's own opened inside a namespace costs
microseconds, and a dump of a thousand interfaces, read attribute by attribute, a tenth of what decoding it whole costs.

Marks, in the order in which a killed run could leave them behind: the file under a namespace's name holds the mark before the namespace is mounted
on it; the namespace's lo carries the mark as its alias before that; a link is created in the lab's group, and its alias replaces the group. So
nothing of ours is ever without a mark, and C(ip link) and C(ip netns) show them.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import importlib
import importlib.util
import json
import os
import resource
import socket
import struct
import sys
import time
import types
import typing as t

from . import ethtool, lock, netns, safe_path, topology, topology_plan
from . import plan as plans
from .errors import ConntrackError, bad_value
from .plan import Plan, Step
from .topology import Address, End, Have, HaveAddress, HaveLink, HaveRoute, Key, Recorded, Route, Sysctl, SysctlKey, Topology

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP_INTERRUPTED, _REPLACE, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x10, 0x100, 0x300, 0x200, 0x400
_ACK_TLVS = 0x200
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")

_IFF_UP, _IFF_NOARP, _IFF_MULTICAST = 0x1, 0x80, 0x1000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP = 1, 3, 4, 5, 16, 18, 20, 27
_OPERSTATE_UP = b"\x06"
_WITHOUT_STATS = struct.pack("=HHI", 8, 29, 8)  # the attribute IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: answers half as long
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_PROTO = 1, 2, 4, 8, 11
_IFA_F_SECONDARY, _IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_PERMANENT = 0x01, 0x02, 0x08, 0x80
_IFAPROT_KERNEL_LL = 3
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, weight, index
_TABLE_MAIN, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 0, 253, 1
_RTM_F_CLONED = 0x200
_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _ETHTOOL_DRVINFO_SIZE = 0x8946, 0x3, 196  # linux/sockios.h, linux/ethtool.h: struct ethtool_drvinfo

_FILES = 8192  # open files to ask for: two a namespace, a socket and the namespace itself, save opening both again for each kind of step
_VANISH_SECONDS = 5.0  # how long the links of a deleted namespace may take to vanish before they are deleted one by one
_RUN_SECONDS = 2.0  # how long to wait for links that went up; the kernel may take up to a second when many change
_POLL_SECONDS = 0.002
_TURNS = 4  # plans in one run: the first, what its sysctls changed elsewhere, what setting that right changed, and one to spare
_UNFINISHED = ".tmp"  # suffix of a record while it is written


# -- pyroute2 ---------------------------------------------------------------------------------------------------------------------------


class _Messages(t.NamedTuple):
    link: t.Any
    address: t.Any
    route: t.Any


_messages: _Messages | None = None


def messages() -> _Messages:
    """Return pyroute2's three message classes.

    Importing the whole package takes 0.1 s, its message classes 0.03 s: unless somebody has imported it, the package's own start-up code is left out.

    :raises ImportError: pyroute2 is missing.
    """
    global _messages
    if _messages is None:
        spec = importlib.util.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("pyroute2 is missing")
        stand_in = None
        if "pyroute2" not in sys.modules:
            stand_in = types.ModuleType("pyroute2")
            stand_in.__path__ = list(spec.submodule_search_locations)
            sys.modules["pyroute2"] = stand_in
        try:
            _messages = _import_messages()
        except Exception:
            if stand_in is None:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
            _messages = _import_messages()
        finally:
            if stand_in is not None and sys.modules.get("pyroute2") is stand_in:
                del sys.modules["pyroute2"]
    return _messages


def _import_messages() -> _Messages:
    rtnl = "pyroute2.netlink.rtnl."
    return _Messages(*(getattr(importlib.import_module(rtnl + name), name) for name in ("ifinfmsg", "ifaddrmsg", "rtmsg")))


# -- rtnetlink --------------------------------------------------------------------------------------------------------------------------


class NetlinkError(OSError):
    """The kernel refused a request; the text holds its own words where it gave some."""


def _attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """Return a message's attributes by number."""
    found: dict[int, bytes] = {}
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _u32(attributes: t.Mapping[int, bytes], kind: int, default: int = 0) -> int:
    raw = attributes.get(kind)
    return default if raw is None else int(_U32.unpack_from(raw)[0])


def _text(attributes: t.Mapping[int, bytes], kind: int) -> str:
    return attributes.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")


class Channel:
    """An rtnetlink socket in the calling thread's namespace, and a descriptor of that namespace."""

    def __init__(self) -> None:
        self.netns_fd = netns.current_fd()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            with contextlib.suppress(OSError):  # kernels before 4.20 lack some: their answers are only wordier or poorer
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()
        os.close(self.netns_fd)

    def _send(self, message: t.Any, kind: int, flags: int) -> None:
        self._sequence += 1
        header = message["header"]
        header["type"], header["flags"], header["sequence_number"] = kind, flags | _REQUEST, self._sequence
        message.encode()
        self._socket.send(message.data)

    def _answers(self) -> t.Iterator[tuple[int, int, bytes, int, int]]:
        """Yield (type, flags, buffer, start of the payload, end) of each message that answers the last request."""
        while True:
            data = self._socket.recv(1 << 16)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, dummy = _HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    yield kind, flags, data, offset + _HEADER.size, offset + length
                offset += (length + 3) & ~3

    def request(self, message: t.Any, kind: int, flags: int = 0) -> None:
        """Send one change and wait for the kernel's answer.

        :raises NetlinkError: the kernel refused it.
        """
        self._send(message, kind, flags | _ACK)
        for answer, answer_flags, data, start, end in self._answers():
            if answer == _NLMSG_ERROR:
                _check(answer_flags, data, start, end)
                return

    def get_link(self, index: int = 0, name: str = "") -> tuple[bytes, int, int] | None:
        """Return one link's message as (buffer, start, end), or None when there is no such link."""
        wanted = _pack(_IFLA_IFNAME, name.encode() + b"\0") if name else b""
        self._send_raw(_GETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _WITHOUT_STATS + wanted)
        for kind, flags, data, start, end in self._answers():
            if kind == _NLMSG_ERROR:
                try:
                    _check(flags, data, start, end)
                except NetlinkError as exc:
                    if exc.errno == errno.ENODEV:
                        return None
                    raise
            return data, start, end
        return None

    def _send_raw(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags | _REQUEST, self._sequence, 0) + payload)

    def dump(self, kind: int, payload: bytes) -> list[tuple[bytes, int, int]]:
        """Return all messages of a dump as (buffer, start of the payload, end); begun anew when the kernel's tables changed meanwhile.

        :raises NetlinkError: the kernel refused it.
        """
        for attempt in range(5):
            self._send_raw(kind, _DUMP, payload)
            found: list[tuple[bytes, int, int]] = []
            interrupted = False
            for answer, flags, data, start, end in self._answers():
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if answer == _NLMSG_DONE:
                    break
                if answer == _NLMSG_ERROR:
                    _check(flags, data, start, end)
                found.append((data, start, end))
            if not interrupted or attempt == 4:
                return found
        return []


def _pack(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTR.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _check(flags: int, data: bytes, start: int, end: int) -> None:
    """Raise when an error message is not the acknowledgement that it is otherwise."""
    (code,) = struct.unpack_from("=i", data, start)
    if code == 0:
        return
    words = ""
    if flags & _ACK_TLVS:
        words = _text(_attributes(data, start + 4 + _HEADER.size, end), 1)
    raise NetlinkError(-code, f"{os.strerror(-code)}{f' ({words})' if words else ''}")


# -- what is there ----------------------------------------------------------------------------------------------------------------------


def read_sysctl(path: str) -> str | None:
    """Return a sysctl of the calling thread's namespace, its white space made single blanks; None when there is none of that name."""
    try:
        with open(f"/proc/sys/{path}", encoding="ascii", errors="replace") as file:
            return " ".join(file.read().split())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # there, but it cannot be read, as net.ipv6.conf.*.stable_secret before it was set
        return ""


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespace."""
    with open(f"/proc/sys/{path}", "wb", buffering=0) as file:  # a buffer would try once more when it is closed
        file.write(f"{value}\n".encode())


def snapshot(path: str) -> dict[str, str]:
    """Return the values that setting ``path`` can change, in the order in which to write them back.

    Setting ``conf/all/X`` sets X on every interface and the default for later ones; IPv4 forwarding also turns accept_redirects round
    (Documentation/networking/ip-sysctl.rst).
    """
    paths = [path]
    name = topology.siblings(path)
    if name is not None:
        conf = path.rsplit("/", 2)[0]
        with contextlib.suppress(FileNotFoundError):
            others = sorted(set(os.listdir(f"/proc/sys/{conf}")) - {"all", "default"})
            paths += [f"{conf}/{entry}/{name}" for entry in ["default", *others]]
        if path == topology.FORWARDING[0]:
            paths.append("net/ipv4/conf/all/accept_redirects")
    values = ((p, read_sysctl(p)) for p in paths)
    return {p: value for p, value in values if value is not None}


def write_back(previous: t.Mapping[str, str]) -> None:
    """Write values back that differ; interfaces that are gone are left out."""
    for path, value in previous.items():
        if read_sysctl(path) not in (None, value):
            write_sysctl(path, value)


def _parse_link(netns_name: str | None, data: bytes, start: int, end: int) -> HaveLink:
    dummy, dummy, index, flags, dummy = _IFINFO.unpack_from(data, start)
    found = _attributes(data, start + _IFINFO.size, end)
    info = found.get(_IFLA_LINKINFO, b"")
    return HaveLink(
        key=(netns_name, _text(found, _IFLA_IFNAME)),
        ifindex=index,
        kind=_text(_attributes(info, 0, len(info)), 1) or None,
        alias=_text(found, _IFLA_IFALIAS),
        group=_u32(found, _IFLA_GROUP),
        mtu=_u32(found, _IFLA_MTU),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        running=found.get(_IFLA_OPERSTATE) == _OPERSTATE_UP,
        peer_index=_u32(found, _IFLA_LINK, index),
        arp=not flags & _IFF_NOARP,
        multicast=bool(flags & _IFF_MULTICAST),
    )


def _parse_address(data: bytes, start: int, end: int) -> tuple[int, HaveAddress]:
    family, prefix, flags, dummy, index = _IFADDR.unpack_from(data, start)
    found = _attributes(data, start + _IFADDR.size, end)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS) or b""
    flags = _u32(found, _IFA_FLAGS, flags)
    # Kernels before 5.18 do not say who made an address: their link-local ones are taken for the kernel's.
    made_by = found.get(_IFA_PROTO, b"\3" if packed[:1] == b"\xfe" else b"\0")[0]
    return index, HaveAddress(
        (packed, prefix),
        broadcast=found.get(_IFA_BROADCAST),
        permanent=bool(flags & _IFA_F_PERMANENT),
        secondary=family == socket.AF_INET and bool(flags & _IFA_F_SECONDARY),
        automatic=family == socket.AF_INET6 and made_by == _IFAPROT_KERNEL_LL,
        failed=bool(flags & _IFA_F_DADFAILED) and family == socket.AF_INET6,
    )


def _parse_route(netns_name: str | None, names: t.Mapping[int, str], data: bytes, start: int, end: int) -> HaveRoute | None:
    family, prefix, dummy, dummy, table, protocol, dummy, kind, flags = _RTMSG.unpack_from(data, start)
    if family not in (socket.AF_INET, socket.AF_INET6) or table != _TABLE_MAIN or kind != _UNICAST or flags & _RTM_F_CLONED:
        return None
    found = _attributes(data, start + _RTMSG.size, end)
    packed = found.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    dev = names.get(_u32(found, _RTA_OIF)) if _RTA_OIF in found else None
    return HaveRoute(netns_name, (packed, prefix), found.get(_RTA_GATEWAY), dev, _u32(found, _RTA_PRIORITY), protocol)


def interfaces(name: str | None) -> list[HaveLink]:
    """Return the interfaces of a namespace with their addresses, lo included; None is where the thread is. It needs no pyroute2.

    :raises ConntrackError: there is no such namespace.
    """
    with netns.entered(name):
        channel = Channel()
    try:
        links = [_parse_link(name, *message) for message in channel.dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + _WITHOUT_STATS)]
        addresses: dict[int, list[HaveAddress]] = {}
        for message in channel.dump(_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
            index, address = _parse_address(*message)
            addresses.setdefault(index, []).append(address)
    finally:
        channel.close()
    return [dataclasses.replace(link, addresses=tuple(addresses.get(link.ifindex, ()))) for link in links]


def default_route_indexes(name: str | None) -> set[int]:
    """Return the ifindexes out of which the default routes of a namespace go: for IPv4 and IPv6 each that with the lowest metric, all its next hops.

    :raises ConntrackError: there is no such namespace.
    """
    with netns.entered(name):
        channel = Channel()
    try:
        routes = channel.dump(_GETROUTE, _RTMSG.pack(0, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0))
    finally:
        channel.close()
    best: dict[int, tuple[int, set[int]]] = {}
    for data, start, end in routes:
        family, prefix, dummy, dummy, table, dummy, dummy, kind, flags = _RTMSG.unpack_from(data, start)
        if family not in (socket.AF_INET, socket.AF_INET6) or prefix or table != _TABLE_MAIN or kind != _UNICAST or flags & _RTM_F_CLONED:
            continue
        found = _attributes(data, start + _RTMSG.size, end)
        metric, indexes = _u32(found, _RTA_PRIORITY), _next_hops(found)
        if family not in best or metric < best[family][0]:
            best[family] = (metric, set())
        if metric == best[family][0]:  # of IPv6, each next hop may be a route of its own
            best[family][1].update(indexes)
    return {index for dummy, indexes in best.values() for index in indexes}


def _next_hops(attributes: t.Mapping[int, bytes]) -> t.Iterator[int]:
    """Yield the ifindexes that a route goes out of."""
    if _RTA_OIF in attributes:
        yield _u32(attributes, _RTA_OIF)
    hops, at = attributes.get(_RTA_MULTIPATH, b""), 0
    while at + _RTNEXTHOP.size <= len(hops):
        length, dummy, dummy, index = _RTNEXTHOP.unpack_from(hops, at)
        yield index
        at += max(length + 3 & ~3, _RTNEXTHOP.size)


def driver(interface: str) -> str:
    """Return the driver of an interface of the calling thread's namespace, as C(ethtool -i) has it; "" where it has none that it tells."""
    answer = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _ETHTOOL_DRVINFO_SIZE)
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(answer))  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError:  # lo, and whatever else has no driver
            return ""
    return answer.raw[4:36].split(b"\0")[0].decode("utf-8", "replace")


def unicast_addresses(name: str | None) -> list[str]:
    """Return the addresses under which others reach a namespace: those of its interfaces but lo, without link-local ones."""
    found = [address for link in interfaces(name) if link.ifindex != 1 and link.up for address in link.addresses]
    return [topology.show_ip(one.address[0]) for one in found if not topology.is_link_local(one.address[0]) and not one.failed]


class Kernel:
    """The kernel, as one converging run sees it: one channel per namespace, opened when first needed."""

    def __init__(self) -> None:
        self._channels: collections.OrderedDict[str | None, Channel] = collections.OrderedDict()
        self._most = 0
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._indexes: dict[Key, int] = {}

    def __enter__(self) -> Kernel:
        soft, hard = self._files
        allowed = max(soft, _FILES) if hard == resource.RLIM_INFINITY else max(soft, min(hard, _FILES))
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        self._most = max(16, (min(allowed, _FILES) - 128) // 2)
        return self

    def __exit__(self, *dummy: object) -> None:
        for name in list(self._channels):
            self.forget(name)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)

    def channel(self, name: str | None) -> Channel:
        """Return the channel of a namespace; None is the one the run started in."""
        channel = self._channels.get(name)
        if channel is None:
            with netns.entered(name):
                channel = self.adopt(name, Channel())
        else:
            self._channels.move_to_end(name)
        return channel

    def adopt(self, name: str | None, channel: Channel) -> Channel:
        """Keep a channel for a namespace; the one unused for longest makes room."""
        self._channels[name] = channel
        if len(self._channels) > self._most:
            self.forget(next(iter(self._channels)))
        return channel

    def forget(self, name: str | None) -> None:
        """Close a namespace's channel: an open one keeps a deleted namespace alive."""
        channel = self._channels.pop(name, None)
        if channel is not None:
            channel.close()

    # -- observe --

    def observe(self, want: Topology, links_only: bool = False) -> Have:
        """Read what the lab's plan depends on.

        :param links_only: leave out addresses, routes, sysctls and the record.
        """
        have = Have(host_inode=netns.inode(None) or 0)
        mounted, bare = netns.names()
        have.claimed = {name for name in bare if netns.claim_of(name) == want.mark}
        have.bare = {name: netns.kind_of_file(name) for name in bare if name not in have.claimed}
        have.foreign = set(have.bare)
        self._observe_links(None, have, links_only)
        for name, inode in mounted.items():
            try:
                ours = self._observe_links(name, have, links_only, want.mark)
            except ConntrackError:
                if netns.inode(name) == inode:
                    raise
                continue  # removed since the listing
            if ours:
                have.namespaces[name] = inode
            else:
                have.foreign.add(name)
        if not links_only:
            self._observe_sysctls(want, have)
        return have

    def _observe_links(self, name: str | None, have: Have, links_only: bool, mark: str | None = None) -> bool:
        """Read one namespace's links, addresses and routes; say whether the namespace carries the mark (the host needs none)."""
        channel = self.channel(name)
        links: dict[int, HaveLink] = {}
        for message in channel.dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0) + _WITHOUT_STATS):
            link = _parse_link(name, *message)
            links[link.ifindex] = link
        loopback = links.pop(1, None)
        if mark is not None and (loopback is None or loopback.alias != mark):
            self.forget(name)
            return False
        if name is not None and loopback is not None and not loopback.up:
            have.lo_down.add(name)
        addresses: dict[int, list[HaveAddress]] = {}
        if not links_only:
            for message in channel.dump(_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
                index, address = _parse_address(*message)
                addresses.setdefault(index, []).append(address)
            names = {index: link.key[1] for index, link in links.items()}
            routes = (_parse_route(name, names, *m) for m in channel.dump(_GETROUTE, _RTMSG.pack(0, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)))
            have.routes += [route for route in routes if route is not None]
        offload = set() if links_only else self._vlan_offloads(name, links.values())
        for index, link in links.items():
            with_addresses = addresses.get(index)
            more = {**({"addresses": tuple(with_addresses)} if with_addresses else {}), **({"vlan_offload": True} if index in offload else {})}
            have.links[link.key] = HaveLink(**{**link.__dict__, **more}) if more else link
            self._indexes[link.key] = index
        return True

    def _vlan_offloads(self, name: str | None, links: t.Iterable[HaveLink]) -> set[int]:
        """Return the numbers of those veths with an alias, as a lab's have, whose VLAN tags travel beside the frame."""
        ours = [link for link in links if link.kind == "veth" and link.alias]
        found = set()
        with netns.entered(name if ours else None):
            for link in ours:
                with contextlib.suppress(OSError):  # gone since
                    features = ethtool.features(link.key[1])
                    if any(features.get(feature) for feature in ethtool.VLAN_OFFLOADS):
                        found.add(link.ifindex)
        return found

    def _observe_sysctls(self, want: Topology, have: Have) -> None:
        have.record = read_record(want.lab)
        have.other_claims = {key: lab for lab in other_labs(want.lab) for key in read_record(lab) if key[0] is None}
        paths: dict[str | None, dict[str, None]] = {}
        for sysctl in want.sysctls:
            paths.setdefault(sysctl.netns, {})[sysctl.path] = None
        for (name, path), recorded in have.record.items():
            paths.setdefault(name, {}).update(dict.fromkeys([path, *recorded.previous]))
        for name, wanted in paths.items():
            if name is None or name in have.namespaces:
                with netns.entered(name):
                    for path in wanted:
                        value = read_sysctl(path)
                        if value is not None:
                            have.sysctls[name, path] = value

    def wait_running(self, links: t.Iterable[HaveLink]) -> None:
        """Wait a moment for links that have just gone up: the kernel starts their queues in the background, and drops packets until then."""
        deadline = time.monotonic() + _RUN_SECONDS
        for link in links:
            channel = self.channel(link.key[0])
            while time.monotonic() < deadline:
                found = channel.get_link(link.ifindex)
                if found is None or _parse_link(link.key[0], *found).running:
                    break
                time.sleep(_POLL_SECONDS)

    # -- primitives --

    def index(self, key: Key) -> int:
        """Return a link's ifindex.

        :raises ConntrackError: there is no such link.
        """
        if key not in self._indexes:
            message = self.channel(key[0]).get_link(name=key[1])
            if message is None:
                raise ConntrackError(f"link {topology.show_key(key)} is not there: something else removed it")
            self._indexes[key] = _parse_link(key[0], *message).ifindex
        return self._indexes[key]

    def set_link(self, channel: Channel, index: int, name: str = "", **attributes: t.Any) -> None:
        """Change one link; attributes are named as in HaveLink (up, arp, multicast, alias, group, mtu, mac)."""
        message = messages().link()
        message["index"] = index
        flags = change = 0
        switches = {"up": (_IFF_UP, 0), "arp": (0, _IFF_NOARP), "multicast": (_IFF_MULTICAST, 0)}  # the flag when it is on, and when it is off
        for switch, (on, off) in switches.items():
            if switch in attributes:
                flags |= on if attributes.pop(switch) else off
                change |= on | off
        message["flags"], message["change"] = flags, change
        numbers = {"alias": "IFLA_IFALIAS", "group": "IFLA_GROUP", "mtu": "IFLA_MTU", "mac": "IFLA_ADDRESS"}
        message["attrs"] = [(numbers[k], v) for k, v in attributes.items()] + ([("IFLA_IFNAME", name)] if name else [])
        channel.request(message, _SETLINK)

    def new_veth(self, mark: str, one: End, two: End) -> None:
        """Create a veth with each end in its namespace, MAC and MTU set, in the lab's group."""
        group = topology.group_of(mark)

        def attributes(end: End) -> list[tuple[str, t.Any]]:
            return [("IFLA_IFNAME", end.name), ("IFLA_ADDRESS", end.mac), ("IFLA_MTU", end.mtu), ("IFLA_GROUP", group)]

        peer = attributes(two)
        if one.netns != two.netns:
            peer.append(("IFLA_NET_NS_FD", self.channel(two.netns).netns_fd))
        info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]})]}
        message = messages().link()
        message["attrs"] = [*attributes(one), ("IFLA_LINKINFO", info)]
        for end in (one, two):
            self._indexes.pop(end.key, None)
        channel = self.channel(one.netns)
        channel.request(message, _NEWLINK, _CREATE | _EXCL)

    def delete_link(self, mark: str, key: Key, index: int) -> bool:
        """Delete a link when it is still there and still ours; say whether it was."""
        channel = self.channel(key[0])
        found = channel.get_link(index)
        if found is None or not topology.is_ours(mark, _parse_link(key[0], *found)):
            return False
        message = messages().link()
        message["index"] = index
        try:
            channel.request(message, _DELLINK)
        except NetlinkError as exc:
            if exc.errno != errno.ENODEV:
                raise
        return True

    def address(self, key: Key, address: Address, present: bool) -> bool:
        """Add an address to a link for good, or take it away; say whether it was the other way before.

        IPv6 addresses are usable at once (no duplicate address detection).
        """
        packed, prefix = address
        text = topology.show_ip(packed)
        message = messages().address()
        message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        message["prefixlen"], message["index"] = prefix, self.index(key)
        if present and len(packed) == 16:
            message["flags"] = _IFA_F_NODAD
        message["attrs"] = [("IFA_LOCAL", text), ("IFA_ADDRESS", text)]
        broadcast = topology.broadcast_of(address)
        if broadcast is not None:
            message["attrs"].append(("IFA_BROADCAST", topology.show_ip(broadcast)))
        if present:
            return self._add(key[0], message, _NEWADDR)
        return self._delete(key[0], message, _DELADDR, errno.EADDRNOTAVAIL, errno.ENODEV)

    def route(self, route: Route | HaveRoute, present: bool) -> bool:
        """Set a route, in place of one with the same destination and metric, or take it away; say whether there was none, or one, before."""
        packed, prefix = route.dst
        message = messages().route()
        message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        message["dst_len"], message["table"] = prefix, _TABLE_MAIN
        message["proto"] = route.protocol if isinstance(route, HaveRoute) else topology.PROTO_BOOT
        message["type"] = _UNICAST
        message["scope"] = _SCOPE_LINK if len(packed) == 4 and route.via is None else _SCOPE_UNIVERSE
        attributes: list[tuple[str, t.Any]] = [("RTA_PRIORITY", route.metric)]
        if prefix:
            attributes.append(("RTA_DST", topology.show_ip(packed)))
        if route.via is not None:
            attributes.append(("RTA_GATEWAY", topology.show_ip(route.via)))
        if route.dev is not None:
            attributes.append(("RTA_OIF", self.index((route.netns, route.dev))))
        message["attrs"] = attributes
        if present:
            return self._add(route.netns, message, _NEWROUTE)
        return self._delete(route.netns, message, _DELROUTE, errno.ESRCH, errno.ENODEV)

    def _add(self, name: str | None, message: t.Any, kind: int) -> bool:
        """Add an object, or replace what is there; say whether nothing was."""
        try:
            self.channel(name).request(message, kind, _CREATE | _EXCL)
        except NetlinkError as exc:
            if exc.errno != errno.EEXIST:
                raise
            self.channel(name).request(message, kind, _CREATE | _REPLACE)
            return False
        return True

    def _delete(self, name: str | None, message: t.Any, kind: int, *missing: int) -> bool:
        """Delete an object; say whether it was there.

        :param missing: the kernel's numbers where it is not, or went with its link.
        """
        try:
            self.channel(name).request(message, kind)
        except NetlinkError as exc:
            if exc.errno not in missing:
                raise
            return False
        return True


# -- the record of previous sysctl values -----------------------------------------------------------------------------------------------


def other_labs(lab: str) -> list[str]:
    """Return the names of the other labs that have a record."""
    try:
        entries = sorted(os.listdir(topology.RECORD_DIR))
    except FileNotFoundError:
        return []
    return [entry[:-5] for entry in entries if entry.endswith(".json") and entry != f"{lab}.json"]


def read_record(lab: str) -> dict[SysctlKey, Recorded]:
    """Return what a lab has set, by sysctl; empty without a record.

    :raises ConntrackError: the record is damaged.
    """
    path = topology.record_path(lab)
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["sysctls"]
        return {(e["netns"], e["path"]): Recorded(e["wanted"], e["inode"], dict(e["previous"])) for e in entries}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConntrackError(f"{path} cannot be read ({exc}): remove it; the sysctls that the lab set then keep their present values.") from exc


def write_record(lab: str, record: t.Mapping[SysctlKey, Recorded]) -> None:
    """Write a lab's record in one rename; an empty one is removed."""
    path = topology.record_path(lab)
    if not record:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    entries = [{"netns": name, "path": sysctl, "wanted": r.wanted, "inode": r.inode, "previous": dict(r.previous)} for (name, sysctl), r in record.items()]
    try:
        with safe_path.create(path + _UNFINISHED) as file:
            file.write((json.dumps({"lab": lab, "sysctls": entries}, indent=1) + "\n").encode())
        os.replace(path + _UNFINISHED, path)
    except BaseException:
        _end_write(lab)
        raise


def _end_write(lab: str) -> None:
    """Take away what a write of a lab's record left that did not end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(topology.record_path(lab) + _UNFINISHED)


def _unfinished(lab: str) -> bool:
    """Tell whether a killed run left half a record, or the directory without one, but for its lock."""
    try:
        return all(name.endswith(lock.SUFFIX) for name in os.listdir(topology.RECORD_DIR)) or os.path.exists(topology.record_path(lab) + _UNFINISHED)
    except FileNotFoundError:
        return False


# -- apply ------------------------------------------------------------------------------------------------------------------------------


def _nothing(dummy_result: object) -> None:
    """Drop a result: what undoes a step returns none."""


def _set_vlan_offload(key: Key, on: bool) -> None:
    """Let an interface's VLAN tags travel beside its frames, or in them."""
    with netns.entered(key[0]):
        ethtool.set_features(key[1], dict.fromkeys(ethtool.VLAN_OFFLOADS, on))


class _Apply:
    """Applies the steps of one plan; each method takes a step's ``args`` and returns what undoes it."""

    def __init__(self, kernel: Kernel, want: Topology, have: Have, attachments: Attachments | None = None) -> None:
        self._kernel = kernel
        self._attachments = attachments
        self._want = want
        self._have = have
        self._claims: netns.Claims | None = None
        self._methods: dict[tuple[str, str], t.Callable[[t.Any], plans.Undo]] = {
            ("create", "netns"): self._create_netns,
            ("delete", "netns"): self._delete_netns,
            ("create", "link"): self._create_link,
            ("change", "link"): self._change_link,
            ("delete", "link"): self._delete_link,
            ("create", "address"): lambda args: self._set_address(args[0], args[1], present=True),
            ("delete", "address"): lambda args: self._set_address(args[0], args[1], present=False),
            ("create", "route"): self._set_route,
            ("change", "route"): self._set_route,
            ("delete", "route"): self._delete_route,
            ("change", "sysctl"): self._set_sysctl,
        }

    def __enter__(self) -> _Apply:
        return self

    def __exit__(self, *dummy: object) -> None:
        if self._claims is not None:
            self._claims.close()

    def __call__(self, step: Step) -> plans.Undo:
        """Apply one step."""
        if step.kind == "xdp" and self._attachments is not None:
            return self._attachments.do(step)
        if step.kind == "record":
            return self._hand_over(*step.args) if isinstance(step.args, tuple) else self._record(step.args)
        return self._methods[step.action, step.kind](step.args)

    def _create_netns(self, name: str) -> plans.Undo:
        if self._claims is None:
            self._claims = netns.Claims(self._want.mark)
        with netns.anonymous():
            channel = Channel()
        try:
            self._kernel.set_link(channel, 1, up=True, alias=self._want.mark)
            self._claims.mount(channel.netns_fd, name)
        except BaseException:
            channel.close()
            raise
        self._kernel.adopt(name, channel)
        return lambda: self._remove_netns(name)

    def _remove_netns(self, name: str) -> None:
        self._kernel.forget(name)
        netns.remove(name)

    def _delete_netns(self, name: str) -> plans.Undo:
        self._remove_netns(name)
        return plans.irrevocable

    def _create_link(self, args: tuple[End, End, list[Sysctl]]) -> plans.Undo:
        one, two, sysctls = args
        mark = self._want.mark
        self._kernel.new_veth(mark, one, two)
        try:
            for sysctl in sysctls:
                with netns.entered(sysctl.netns):
                    write_sysctl(sysctl.path, sysctl.value)
            for end, peer in ((one, two), (two, one)):
                channel = self._kernel.channel(end.netns)
                self._kernel.set_link(channel, 0, up=True, name=end.name, alias=topology.alias_of(mark, peer.key), group=0)
                _set_vlan_offload(end.key, False)
        except BaseException:
            self._remove_link(one.key)
            raise
        return lambda: self._remove_link(one.key)

    def _remove_link(self, key: Key) -> None:
        self._kernel.delete_link(self._want.mark, key, self._kernel.index(key))

    def _change_link(self, args: tuple[Key, int, dict[str, t.Any], dict[str, t.Any]]) -> plans.Undo:
        key, index, new, old = args
        self._set_link(key, index, new)
        return lambda: self._set_link(key, index, old)

    def _set_link(self, key: Key, index: int, wanted: t.Mapping[str, t.Any]) -> None:
        attributes = {name: value for name, value in wanted.items() if name != "vlan_offload"}
        if attributes:
            self._kernel.set_link(self._kernel.channel(key[0]), index, **attributes)
        if "vlan_offload" in wanted:
            _set_vlan_offload(key, wanted["vlan_offload"])

    def _delete_link(self, args: tuple[list[tuple[Key, int]], bool]) -> plans.Undo:
        alive, goes_with_namespace = args
        for key, index in alive:
            if goes_with_namespace and self._vanishes(key, index):
                continue
            self._kernel.delete_link(self._want.mark, key, index)
        return plans.irrevocable if alive else None

    def _vanishes(self, key: Key, index: int) -> bool:
        """Wait until the kernel has taken the link of a deleted namespace away; it works through all of them at once, in the background."""
        deadline = time.monotonic() + _VANISH_SECONDS
        channel = self._kernel.channel(key[0])
        while channel.get_link(index) is not None:
            if time.monotonic() > deadline:  # a process still lives in the namespace
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _set_address(self, key: Key, address: Address, present: bool) -> plans.Undo:
        if not self._kernel.address(key, address, present):
            return None
        return lambda: _nothing(self._kernel.address(key, address, not present))

    def _set_route(self, args: tuple[Route, HaveRoute | None]) -> plans.Undo:
        route, before = args
        if self._kernel.route(route, present=True):  # also where the one before went since it was seen
            return lambda: _nothing(self._kernel.route(route, present=False))
        return None if before is None else lambda: _nothing(self._kernel.route(before, present=True))

    def _delete_route(self, route: HaveRoute) -> plans.Undo:
        if not self._kernel.route(route, present=False):  # it went since it was seen, and is not ours to bring back
            return None
        return lambda: _nothing(self._kernel.route(route, present=True))

    def _set_sysctl(self, args: Sysctl | tuple[str | None, t.Mapping[str, str]]) -> plans.Undo:
        """Set one sysctl, or write a recorded set of them back."""
        name = args.netns if isinstance(args, Sysctl) else args[0]
        with netns.entered(name):
            if isinstance(args, Sysctl):
                before = snapshot(args.path)
                write_sysctl(args.path, args.value)
            else:
                before = {path: value for recorded in args[1] for path, value in snapshot(recorded).items()}
                write_back(args[1])

        def undo() -> None:
            with netns.entered(name):
                write_back(before)

        return undo

    def _record(self, wanted: list[tuple[Sysctl, t.Mapping[str, str] | None]]) -> plans.Undo:
        """Write down what the lab sets, and the values before, where an earlier run has not done so."""
        record: dict[SysctlKey, Recorded] = {}
        for sysctl, previous in wanted:
            if previous is None:
                with netns.entered(sysctl.netns):
                    previous = snapshot(sysctl.path)
            record[sysctl.key] = Recorded(sysctl.value, netns.inode(sysctl.netns) or 0, previous)
        write_record(self._want.lab, record)
        return lambda: write_record(self._want.lab, self._have.record)

    def _hand_over(self, heir: str, key: SysctlKey, previous: t.Mapping[str, str]) -> plans.Undo:
        """Give the values from before this lab to another lab that needs the same sysctl."""
        before = read_record(heir)
        write_record(heir, {**before, key: Recorded(before[key].wanted, before[key].inode, previous)})
        return lambda: write_record(heir, before)


# -- before anything is changed ---------------------------------------------------------------------------------------------------------


def check_sysctls_exist(want: Topology, have: Have) -> None:
    """Refuse sysctls that do not exist where they shall be set; those of links to come are left to ``probe``.

    :raises ConntrackError: naming the first.
    """
    ends = want.ends
    for sysctl in want.sysctls:
        known = sysctl.netns is None or sysctl.netns in have.namespaces
        if known and sysctl.key not in have.sysctls and not topology.of_link(sysctl.key, ends):
            raise _no_sysctl(sysctl)


def _no_sysctl(sysctl: Sysctl) -> ConntrackError:
    place = "on this host" if sysctl.netns is None else "in a network namespace of this kernel"
    return bad_value("sysctls", topology.show_sysctl(sysctl.key), f"there is no such sysctl {place}: correct the name, or load the module that brings it")


def probe(plan: Plan) -> dict[SysctlKey, str]:
    """Try in a namespace without a name what only the kernel can say: whether it has veth links, and takes the sysctls' values.

    :return: those values that the kernel shows otherwise than they were written (``0x1``, ``8080,8081``, a shortened address), as it shows them.
    :raises ConntrackError: naming the missing feature, or the value.
    """
    shown: dict[SysctlKey, str] = {}
    wanted = [step.args for step in plan if step.kind == "sysctl" and isinstance(step.args, Sysctl)]
    new_links = [step.args for step in plan if step.kind == "link" and step.action == "create"]
    wanted += [sysctl for dummy, dummy, sysctls in new_links for sysctl in sysctls]
    if not wanted and not new_links:
        return shown
    tried: dict[tuple[str, str, bool], str] = {}
    with netns.anonymous(), Kernel() as kernel:
        if new_links:
            _probe_veth(kernel)
        for sysctl in wanted:
            attempt = (topology.of_default(sysctl.path), sysctl.value, sysctl.netns is None)  # the links are not in here
            if attempt not in tried:
                tried[attempt] = _probe_sysctl(sysctl, attempt[0])
            if tried[attempt] != sysctl.value:
                shown[sysctl.key] = tried[attempt]
    return shown


def _probe_veth(kernel: Kernel) -> None:
    one, two = (End(name, None, (), topology.DEFAULT_MTU, f"02:00:00:00:00:0{i}") for i, name in ((1, "probe0"), (2, "probe1")))
    try:
        kernel.new_veth("", one, two)
    except NetlinkError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            raise ConntrackError(f"This kernel has no veth links (CONFIG_VETH): load the module veth, or boot a kernel that has it. It says: {exc}") from exc
        raise


def _probe_sysctl(sysctl: Sysctl, path: str) -> str:
    """Return a value as the kernel shows it once it is written."""
    try:
        write_sysctl(path, sysctl.value)
        return read_sysctl(path) or sysctl.value
    except (FileNotFoundError, NotADirectoryError):
        if sysctl.netns is not None:  # on the host it was found; some exist only there
            raise _no_sysctl(sysctl) from None
    except OSError as exc:
        if sysctl.netns is not None or exc.errno not in (errno.EACCES, errno.EPERM):
            raise bad_value(f"sysctls.{topology.show_sysctl(sysctl.key)}", sysctl.value, f"the kernel says {exc.strerror}: correct the value") from exc
    return topology.decimal(sysctl.value)  # it exists on the host only, and can not be tried


# -- all of it --------------------------------------------------------------------------------------------------------------------------


class Result(t.NamedTuple):
    """What a run found and did.

    :ivar plan: the steps, applied unless it was a check.
    :ivar facts: the lab as it is after the run (in check mode: as it was).
    """

    plan: Plan
    facts: dict[str, t.Any]


class Attachments(t.Protocol):
    """What of the chain stands on the lab's interfaces; see lab_attachments."""

    def around(self, plan: Plan) -> Plan:
        """Return the plan with the steps that the chain needs before and after it."""

    def do(self, step: Step) -> plans.Undo:
        """Apply one of these steps."""


def converge(want: Topology, check: bool = False, patience: float = lock.SECONDS, attachments: Attachments | None = None) -> Result:
    """Make the lab what is wanted, changing only what differs.

    A sysctl can change what no step is about: other sysctls, addresses, routes. So where one was set the plan is made again, until nothing is left to
    be done.

    :param want: from topology.parse or topology.absent.
    :param check: only plan.
    :param patience: how long to wait for another run, in seconds.
    :param attachments: takes care of the chain on interfaces that go; None: nobody does.
    :raises ConntrackError: foreign objects, a sysctl or a feature that the kernel lacks, settings that change each other without end, or a step that
        failed (then ``applied`` and ``rolled_back``).
    :raises ImportError: pyroute2 is missing.
    """
    if os.geteuid() != 0:
        raise ConntrackError("Network namespaces need root: run as root, with become for instance.")
    want = topology.without_missing(want, lambda path: os.path.exists(f"/proc/sys/{path}"))
    found = _planned(want, check, attachments)
    if check or (found is not None and not (found[1] or _unfinished(want.lab))):
        have, plan = t.cast("tuple[Have, Plan]", found)
        return Result(plan, topology_plan.facts(want, have))
    with Kernel() as kernel:
        with lock.held(topology.RECORD_DIR, patience, make=0o755), _tidied():
            _end_write(want.lab)
            plan = _settle(kernel, want, attachments)
            with plans.applied(plan):
                have = kernel.observe(want, links_only=True)
        with plans.applied(plan):
            kernel.wait_running([link for key in want.ends if (link := have.links.get(key)) and not link.running])
    return Result(plan, topology_plan.facts(want, have))


def _settle(kernel: Kernel, want: Topology, attachments: Attachments | None) -> Plan:
    """Apply plans until nothing is left to be done; return all their steps.

    :raises ConntrackError: see converge().
    """
    done: Plan = []
    for dummy in range(_TURNS):
        with plans.applied(done) if done else contextlib.nullcontext():
            have, plan = _plan(kernel, want, attachments)  # another run may have changed what was read before
            with _Apply(kernel, want, have, attachments) as do:
                plans.apply(plan, do)
        done += plan
        if not any(_reaches_further(step) for step in plan):
            return done
    again = ", ".join(dict.fromkeys(step.name for step in plan))
    with plans.applied(done):
        raise ConntrackError(f"Lab {want.lab!r} does not come to rest: {again} had to be set {_TURNS} times, so they change each other. Remove one of them.")


def _reaches_further(step: Step) -> bool:
    """Say whether a step sets a sysctl, by itself or with the link that it makes."""
    return step.kind == "sysctl" or (step.action, step.kind) == ("create", "link") and bool(step.args[2])


def _planned(want: Topology, check: bool, attachments: Attachments | None) -> tuple[Have, Plan] | None:
    """Return what is there and the plan; None where another run seems to be in the middle of its work."""
    try:
        with Kernel() as kernel:
            return _plan(kernel, want, attachments)
    except (ConntrackError, OSError):
        if check:
            raise
    return None


@contextlib.contextmanager
def _tidied() -> t.Iterator[None]:
    """Remove the directory of the records afterwards, when none is in it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(topology.RECORD_DIR)


def _plan(kernel: Kernel, want: Topology, attachments: Attachments | None) -> tuple[Have, Plan]:
    have = kernel.observe(want)
    check_sysctls_exist(want, have)
    plan = topology_plan.make(want, have)
    shown = probe(plan)
    if shown:
        plan = topology_plan.make(topology.with_values(want, shown), have)
    return have, plan if attachments is None else attachments.around(plan)
