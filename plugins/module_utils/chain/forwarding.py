# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What forwarding past the stack passes by, and where the chain must not do it.

``look`` asks the kernel about an interface and its namespace; what it saw is judged by pure
functions. The rules:

- Frames whose VLAN tag travels beside them look untagged to the chain, which would send them on
  without it.
- nf_conntrack sees one packet in some seconds of what is forwarded. Of TCP it calls that invalid,
  unless it is told to be liberal.

What is not known counts as wrong.
"""

from __future__ import annotations

import contextlib
import re
import typing as t

from ..core.errors import ConntrackError
from ..kernel import bpf, bpffs, ethtool, netdev, netfilter, netns
from . import settings as chain_settings

#: IFLA_VLAN_PROTOCOL of include/uapi/linux/if_link.h, and IEEE 802.1ad's.
_VLAN_PROTOCOL, _8021AD = 5, b"\x88\xa8"
#: How the chain's text says what it forwards (files/bpf/enter.h.j2, tick()).
_IN_TEXT = re.compile(r"meta_at\(META_FORWARD\);\s*if \(pair\)\s*\*pair = (\d+);")


def of_text(text: str) -> str:
    """Return what a chain forwards, one of chain.FORWARDS, by its rendered text."""
    found = _IN_TEXT.search(text)
    number = int(found.group(1)) if found else 0
    return (
        chain_settings.FORWARDS[number]
        if number < len(chain_settings.FORWARDS)
        else chain_settings.FORWARDS[0]
    )


# ---------------------------------------------------------------- VLAN tags beside the frame
class Offload(t.NamedTuple):
    """What keeps a VLAN tag out of the frame.

    :ivar what: the feature and the interface, for people; "" where nothing is known of it.
    :ivar mend: the command that puts an end to it.
    """

    what: str
    mend: str


def _beside(
    features: t.Mapping[str, bool],
    names: t.Mapping[str, str],
    interface: str,
    of: str,
    where: str = "",
) -> t.Iterator[Offload]:
    for feature, said in names.items():
        if features.get(feature):
            yield Offload(f"{said} of {of} is on", f"Run ethtool -K {interface} {said} off{where}")


def card_offloads(name: str, features: t.Mapping[str, bool]) -> list[Offload]:
    """Return what takes tags out of the frames that an interface receives. Pure."""
    return list(
        _beside(features, {ethtool.RX_TAG: "rxvlan", ethtool.RX_STAG: ethtool.RX_STAG}, name, name)
    )


def veth_offloads(
    peer: str, features: t.Mapping[str, bool], service_tags: bool, where: str = ""
) -> list[Offload]:
    """Return what takes tags out of the frames that a veth receives: its other end, which leaves
    them to a card that there is none. Pure.

    :param service_tags: whether an interface on the other end sends tags of IEEE 802.1ad.
    :param where: goes behind a command that is to be run at the other end.
    """
    names = {
        ethtool.TX_TAG: "txvlan",
        **({ethtool.TX_STAG: ethtool.TX_STAG} if service_tags else {}),
    }
    return list(_beside(features, names, peer, f"the veth's other end {peer}", where))


def _veth(facts: netdev.LinkFacts) -> list[Offload]:
    unknown = [
        Offload(
            "",
            f"Bring the other end of {facts.name} into a namespace that ip netns lists, so that its"
            " VLAN offloads can be seen",
        )
    ]
    there = (
        netns.entered_where(lambda handle: netdev.namespace_id(handle) == facts.peer_nsid)
        if facts.peer_nsid is not None
        else contextlib.nullcontext(True)
    )
    try:
        with there as found:
            if not found:
                return unknown
            peer = netdev.link_facts(facts.peer_ifindex).name
            service_tags = any(
                data.get(_VLAN_PROTOCOL) == _8021AD
                for data in netdev.links_above(facts.peer_ifindex, "vlan")
            )
            return veth_offloads(
                peer,
                ethtool.features(peer),
                service_tags,
                " in the namespace of that end" if facts.peer_nsid is not None else "",
            )
    except OSError:  # the peer is being moved or its namespace dies
        return unknown


def offloads(facts: netdev.LinkFacts) -> list[Offload]:
    """Return what keeps VLAN tags out of the frames that an interface of the current namespace
    receives.
    """
    if facts.kind == "veth":
        return _veth(facts)
    try:
        return card_offloads(facts.name, ethtool.features(facts.name))
    except OSError:
        return [Offload("", f"Give an interface that ethtool -k {facts.name} can tell of")]


# ---------------------------------------------------------------- what was seen
class Seen(t.NamedTuple):
    """An interface through which the chain forwards, or is to.

    :ivar forward: what, one of chain.FORWARDS but the first.
    :ivar where: its namespace's name, None for the host's.
    """

    forward: str
    where: str | None
    rules: netfilter.Seen
    offloads: tuple[Offload, ...]

    @property
    def namespace(self) -> str:
        """The namespace for people."""
        return place(self.where)


def place(where: str | None) -> str:
    """Return a namespace for people."""
    return "the host's namespace" if where is None else f"namespace {where}"


def look(
    forward: str,
    where: str | None,
    facts: netdev.LinkFacts,
    rules: dict[str | None, netfilter.Seen],
) -> Seen:
    """Return what there is to know of an interface; call it inside its namespace.

    :param rules: what was seen of namespaces before, by their names; this one's is added.
    """
    if where not in rules:
        rules[where] = netfilter.look()
    return Seen(forward, where, rules[where], tuple(offloads(facts)))


def attached(forward: str, keys: t.Iterable[str]) -> dict[str, Seen]:
    """Return what there is to know of the interfaces that pins are named for, by those names; one
    that is gone is left out.

    :param forward: what the chain forwards; nothing is looked at where it forwards nothing.
    """
    found: dict[str, Seen] = {}
    rules: dict[str | None, netfilter.Seen] = {}
    for key in keys if forward != chain_settings.FORWARDS[0] else ():
        where, name = bpffs.interface_of(key)
        if where is None or netns.exists(where):
            with contextlib.suppress(bpf.BpfError), netns.entered(where):
                found[key] = look(forward, where, netdev.link_facts(name), rules)
    return found


def namespaces(seen: t.Iterable[Seen]) -> dict[str | None, netfilter.Seen]:
    """Return what was seen of the namespaces; where there is no interface yet, of the one that the
    caller is in.
    """
    return {one.where: one.rules for one in seen} or {None: netfilter.look()}


def problems(seen: Seen) -> list[tuple[str, str]]:
    """Return why the chain must not forward through an interface, each with the mend. Pure."""
    found = []
    for one in seen.offloads:
        if one.what:
            found.append(
                (
                    (
                        f"{one.what}, so the chain sees no VLAN tag, and would forward tagged"
                        " frames as untagged ones"
                    ),
                    one.mend,
                )
            )
        else:
            found.append(
                (
                    (
                        "whether VLAN tags are in its frames is not known, and tagged frames may be"
                        " forwarded as untagged ones"
                    ),
                    one.mend,
                )
            )
    if seen.rules.tracks and not seen.rules.liberal:
        sysctl = netfilter.LIBERAL.replace("/", ".")
        found.append(
            (
                (
                    f"nf_conntrack tracks in {seen.namespace}, and of TCP connections that are"
                    " forwarded it sees a segment in five seconds, which it calls invalid unless"
                    f" {sysctl} is 1"
                ),
                f"Set {sysctl}=1 in {seen.namespace}",
            )
        )
    return found


def refuse(field: str, label: str, seen: Seen) -> None:
    """:raises ConntrackError: where the chain must not forward through an interface."""
    for problem, mend in problems(seen):
        raise ConntrackError(
            f"{field}: {label}: the chain must not forward there (forward: {seen.forward}):"
            f" {problem}. {mend}, or load it with forward: off."
        )


def shown(rules: t.Mapping[str | None, netfilter.Seen]) -> str:
    """Return the rulesets that are passed by, for people; "" where there are none."""
    return "; ".join(
        f"{seen.shown} in {place(where)}" for where, seen in rules.items() if seen.rulesets != ()
    )


def as_dict(where: str | None, rules: netfilter.Seen) -> dict[str, t.Any]:
    """Return a namespace in the form in which modules report it."""
    bypassed = None if rules.rulesets is None else [one.as_dict() for one in rules.rulesets]
    return {
        "netns": where,
        "bypassed": bypassed,
        "nf_conntrack": rules.tracks,
        "tcp_be_liberal": rules.liberal,
    }
