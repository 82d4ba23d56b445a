# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab sends to the kernel: namespaces, links, addresses, routes, and what is there."""

from __future__ import annotations

import collections
import contextlib
import errno
import resource
import socket
import time
import typing as t

from ..core.errors import ConntrackError
from ..kernel import ethtool, netlink, netns, rtnetlink, sysctls
from ..kernel.netlink import NetlinkError
from . import model as lab_model
from . import namespaces, pyroute, topology
from . import observe as lab_observe
from . import record as lab_record
from .channel import Channel
from .model import Address, End, Have, HaveAddress, HaveLink, HaveRoute, Key, Route, Topology

# open files to ask for: two a namespace, a socket and the namespace itself, save opening both again
# for each kind of step
_FILES = 8192
# how long the links of a deleted namespace may take to vanish before they are deleted one by one
VANISH_SECONDS = 5.0
# how long to wait for links that went up; the kernel may take up to a second when many change
_RUN_SECONDS = 2.0
POLL_SECONDS = 0.002


class Kernel:
    """The kernel, as one converging run sees it: one channel per namespace, opened when first
    needed.
    """

    def __init__(self) -> None:
        self._channels: collections.OrderedDict[str | None, Channel] = collections.OrderedDict()
        self._most = 0
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._indexes: dict[Key, int] = {}

    def __enter__(self) -> Kernel:
        soft, hard = self._files
        allowed = (
            max(soft, _FILES) if hard == resource.RLIM_INFINITY else max(soft, min(hard, _FILES))
        )
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
        have.claimed = {name for name in bare if namespaces.claim_of(name) == want.mark}
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

    def _observe_links(
        self, name: str | None, have: Have, links_only: bool, mark: str | None = None
    ) -> bool:
        """Read one namespace's links, addresses and routes; say whether the namespace carries the
        mark (the host needs none).
        """
        channel = self.channel(name)
        links: dict[int, HaveLink] = {}
        for message in channel.dump(
            rtnetlink.GETLINK, rtnetlink.IFINFO.pack(0, 0, 0, 0, 0) + rtnetlink.WITHOUT_STATS
        ):
            link = lab_observe.parse_link(name, *message)
            links[link.ifindex] = link
        loopback = links.pop(1, None)
        if mark is not None and (loopback is None or loopback.alias != mark):
            self.forget(name)
            return False
        if name is not None and loopback is not None and not loopback.up:
            have.lo_down.add(name)
        addresses: dict[int, list[HaveAddress]] = {}
        if not links_only:
            for message in channel.dump(rtnetlink.GETADDR, rtnetlink.IFADDR.pack(0, 0, 0, 0, 0)):
                index, address = lab_observe.parse_address(*message)
                addresses.setdefault(index, []).append(address)
            names = {index: link.key[1] for index, link in links.items()}
            main_table = rtnetlink.RTMSG.pack(0, 0, 0, 0, rtnetlink.TABLE_MAIN, 0, 0, 0, 0)
            messages = channel.dump(rtnetlink.GETROUTE, main_table)
            routes = (lab_observe.parse_route(name, names, *one) for one in messages)
            have.routes += [route for route in routes if route is not None]
        offload = set() if links_only else self._vlan_offloads(name, links.values())
        for index, link in links.items():
            with_addresses = addresses.get(index)
            more = {
                **({"addresses": tuple(with_addresses)} if with_addresses else {}),
                **({"vlan_offload": True} if index in offload else {}),
            }
            have.links[link.key] = HaveLink(**{**link.__dict__, **more}) if more else link
            self._indexes[link.key] = index
        return True

    def _vlan_offloads(self, name: str | None, links: t.Iterable[HaveLink]) -> set[int]:
        """Return the numbers of those veths with an alias, as a lab's have, whose VLAN tags travel
        beside the frame.
        """
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
        have.record = lab_record.read_record(want.lab)
        have.other_claims = {
            key: lab
            for lab in lab_record.other_labs(want.lab)
            for key in lab_record.read_record(lab)
            if key[0] is None
        }
        paths: dict[str | None, dict[str, None]] = {}
        for sysctl in want.sysctls:
            paths.setdefault(sysctl.netns, {})[sysctl.path] = None
        for (name, path), recorded in have.record.items():
            paths.setdefault(name, {}).update(dict.fromkeys([path, *recorded.previous]))
        for name, wanted in paths.items():
            if name is None or name in have.namespaces:
                with netns.entered(name):
                    for path in wanted:
                        value = sysctls.read_sysctl(path)
                        if value is not None:
                            have.sysctls[name, path] = value

    def wait_running(self, links: t.Iterable[HaveLink]) -> None:
        """Wait a moment for links that have just gone up: the kernel starts their queues in the
        background, and drops packets until then.
        """
        deadline = time.monotonic() + _RUN_SECONDS
        for link in links:
            channel = self.channel(link.key[0])
            while time.monotonic() < deadline:
                found = channel.get_link(link.ifindex)
                if found is None or lab_observe.parse_link(link.key[0], *found).running:
                    break
                time.sleep(POLL_SECONDS)

    # -- primitives --

    def index(self, key: Key) -> int:
        """Return a link's ifindex.

        :raises ConntrackError: there is no such link.
        """
        if key not in self._indexes:
            message = self.channel(key[0]).get_link(name=key[1])
            if message is None:
                raise ConntrackError(
                    f"link {lab_model.show_key(key)} is not there: something else removed it"
                )
            self._indexes[key] = lab_observe.parse_link(key[0], *message).ifindex
        return self._indexes[key]

    def set_link(self, channel: Channel, index: int, name: str = "", **attributes: t.Any) -> None:
        """Change one link; attributes are named as in HaveLink (up, arp, multicast, alias, group,
        mtu, mac).
        """
        message = pyroute.messages().link()
        message["index"] = index
        flags = change = 0
        switches = {
            "up": (rtnetlink.IFF_UP, 0),
            "arp": (0, rtnetlink.IFF_NOARP),
            "multicast": (rtnetlink.IFF_MULTICAST, 0),
        }  # the flag when it is on, and when it is off
        for switch, (on, off) in switches.items():
            if switch in attributes:
                flags |= on if attributes.pop(switch) else off
                change |= on | off
        message["flags"], message["change"] = flags, change
        numbers = {
            "alias": "IFLA_IFALIAS",
            "group": "IFLA_GROUP",
            "mtu": "IFLA_MTU",
            "mac": "IFLA_ADDRESS",
        }
        message["attrs"] = [(numbers[k], v) for k, v in attributes.items()] + (
            [("IFLA_IFNAME", name)] if name else []
        )
        channel.request(message, rtnetlink.SETLINK)

    def new_veth(self, mark: str, one: End, two: End) -> None:
        """Create a veth with each end in its namespace, MAC and MTU set, in the lab's group."""
        group = lab_model.group_of(mark)

        def attributes(end: End) -> list[tuple[str, t.Any]]:
            return [
                ("IFLA_IFNAME", end.name),
                ("IFLA_ADDRESS", end.mac),
                ("IFLA_MTU", end.mtu),
                ("IFLA_GROUP", group),
            ]

        peer = attributes(two)
        if one.netns != two.netns:
            peer.append(("IFLA_NET_NS_FD", self.channel(two.netns).netns_fd))
        info = {
            "attrs": [
                ("IFLA_INFO_KIND", "veth"),
                ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}),
            ]
        }
        message = pyroute.messages().link()
        message["attrs"] = [*attributes(one), ("IFLA_LINKINFO", info)]
        for end in (one, two):
            self._indexes.pop(end.key, None)
        channel = self.channel(one.netns)
        channel.request(message, rtnetlink.NEWLINK, netlink.CREATE | netlink.EXCL)

    def delete_link(self, mark: str, key: Key, index: int) -> bool:
        """Delete a link when it is still there and still ours; say whether it was."""
        channel = self.channel(key[0])
        found = channel.get_link(index)
        if found is None or not lab_model.is_ours(mark, lab_observe.parse_link(key[0], *found)):
            return False
        message = pyroute.messages().link()
        message["index"] = index
        try:
            channel.request(message, rtnetlink.DELLINK)
        except NetlinkError as exc:
            if exc.errno != errno.ENODEV:
                raise
        return True

    def address(self, key: Key, address: Address, present: bool) -> bool:
        """Add an address to a link for good, or take it away; say whether it was the other way
        before.

        IPv6 addresses are usable at once (no duplicate address detection).
        """
        packed, prefix = address
        text = lab_model.show_ip(packed)
        message = pyroute.messages().address()
        message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        message["prefixlen"], message["index"] = prefix, self.index(key)
        if present and len(packed) == 16:
            message["flags"] = rtnetlink.IFA_F_NODAD
        message["attrs"] = [("IFA_LOCAL", text), ("IFA_ADDRESS", text)]
        broadcast = lab_model.broadcast_of(address)
        if broadcast is not None:
            message["attrs"].append(("IFA_BROADCAST", lab_model.show_ip(broadcast)))
        if present:
            return self._add(key[0], message, rtnetlink.NEWADDR)
        return self._delete(key[0], message, rtnetlink.DELADDR, errno.EADDRNOTAVAIL, errno.ENODEV)

    def route(self, route: Route | HaveRoute, present: bool) -> bool:
        """Set a route, in place of one with the same destination and metric, or take it away; say
        whether there was none, or one, before.
        """
        packed, prefix = route.dst
        message = pyroute.messages().route()
        message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        message["dst_len"], message["table"] = prefix, rtnetlink.TABLE_MAIN
        message["proto"] = route.protocol if isinstance(route, HaveRoute) else topology.PROTO_BOOT
        message["type"] = rtnetlink.UNICAST
        message["scope"] = (
            rtnetlink.SCOPE_LINK
            if len(packed) == 4 and route.via is None
            else rtnetlink.SCOPE_UNIVERSE
        )
        attributes: list[tuple[str, t.Any]] = [("RTA_PRIORITY", route.metric)]
        if prefix:
            attributes.append(("RTA_DST", lab_model.show_ip(packed)))
        if route.via is not None:
            attributes.append(("RTA_GATEWAY", lab_model.show_ip(route.via)))
        if route.dev is not None:
            attributes.append(("RTA_OIF", self.index((route.netns, route.dev))))
        message["attrs"] = attributes
        if present:
            return self._add(route.netns, message, rtnetlink.NEWROUTE)
        return self._delete(route.netns, message, rtnetlink.DELROUTE, errno.ESRCH, errno.ENODEV)

    def _add(self, name: str | None, message: t.Any, kind: int) -> bool:
        """Add an object, or replace what is there; say whether nothing was."""
        try:
            self.channel(name).request(message, kind, netlink.CREATE | netlink.EXCL)
        except NetlinkError as exc:
            if exc.errno != errno.EEXIST:
                raise
            self.channel(name).request(message, kind, netlink.CREATE | netlink.REPLACE)
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
