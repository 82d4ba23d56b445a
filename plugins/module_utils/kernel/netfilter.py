# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rulesets look at what a namespace forwards, and whether nf_conntrack tracks there: asked of
the kernel, without nft or iptables.

nf_tables answers over netlink (include/uapi/linux/netfilter/nf_tables.h); of the older iptables the
kernel names the tables that a namespace has.
"""

from __future__ import annotations

import errno
import struct
import typing as t

from . import netlink, sysctls

_NF_TABLES = 10
_GET_TABLES, _GET_CHAINS, _GET_RULES = 1, 4, 7
_NFGENMSG = struct.Struct("!BBH")
_BE32 = struct.Struct("!I")
#: enum nft_table_attributes, nft_chain_attributes, nft_hook_attributes, nft_rule_attributes,
#: nft_expr_attributes
_TABLE_NAME, _TABLE_FLAGS, _DORMANT = 1, 2, 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER = 1
_RULE_EXPRESSIONS, _LIST_ELEMENT, _EXPRESSION_NAME, _EXPRESSION_DATA, _XT_NAME = 4, 1, 1, 2, 1
#: NFPROTO_*, of the families whose hook number 2 is the forward hook (NF_INET_FORWARD,
#: NF_BR_FORWARD).
_FAMILIES = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}
_FORWARD = 2
_POLICIES = {0: "drop", 1: "accept"}
#: Expressions of rules that have a namespace's packets tracked from then on (those that call
#: nf_ct_netns_get()); the last two stand for iptables' own.
_TRACKING = {"ct", "nat", "masq", "redir", "connlimit", "synproxy", "flow_offload"}
_XT = {"match", "target"}
_XT_NAMES = (
    "conntrack state connbytes connlabel connlimit connmark cluster helper CONNMARK CONNSECMARK CT"
    " DNAT MASQUERADE NETMAP REDIRECT SNAT SYNPROXY"
)
_XT_TRACKING = frozenset(_XT_NAMES.split())
#: Tables of iptables that have a chain on the forward hook, and where the kernel names those that a
#: namespace has.
_LEGACY_TABLES = ("filter", "mangle", "security")
_LEGACY = {"ip": "ip_tables", "ip6": "ip6_tables"}
_NO_NF_TABLES = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_TRIES = 10
LIBERAL, _COUNT = "net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_count"


class Ruleset(t.NamedTuple):
    """What is on the forward hook.

    :ivar family: ``inet``, ``ip``, ``ip6`` or ``bridge``.
    :ivar chain: of nf_tables; None for a table of iptables that no nft shows.
    :ivar policy: what becomes of a packet that no rule decides on; None where it cannot be told.
    """

    family: str
    table: str
    chain: str | None
    policy: str | None

    @property
    def shown(self) -> str:
        """The ruleset for people, by the names that nft and iptables have."""
        if self.chain is None:
            return (
                f"the table {self.table} of {'ip6tables' if self.family == 'ip6' else 'iptables'}"
            )
        return f"{self.family} {self.table} {self.chain} (policy {self.policy or 'not known'})"

    def as_dict(self) -> dict[str, t.Any]:
        """Return the form in which modules report it."""
        return self._asdict()


class Seen(t.NamedTuple):
    """A namespace's netfilter.

    :ivar rulesets: those of the forward hook; None where the kernel does not tell.
    :ivar tracks: whether nf_conntrack tracks what is forwarded there.
    :ivar liberal: whether it takes TCP segments out of the window as good.
    """

    rulesets: tuple[Ruleset, ...] | None
    tracks: bool
    liberal: bool

    @property
    def shown(self) -> str:
        """The rulesets for people."""
        if self.rulesets is None:
            return "not known: the kernel does not tell its rulesets"
        return ", ".join(one.shown for one in self.rulesets) or "none"


def _dump(command: int) -> t.Iterator[tuple[int, dict[int, bytes]]]:
    """Return (family, attributes) of each of the namespace's tables, chains or rules.

    :raises OSError: where the kernel refuses it, or they change all the while.
    """
    with netlink.Socket(netlink.NETFILTER, most=1 << 18) as sock:
        for dummy in range(_TRIES):
            found, interrupted = sock.dump_once(_NF_TABLES << 8 | command, _NFGENMSG.pack(0, 0, 0))
            if not interrupted:
                return (
                    (data[start], netlink.attributes(data, start + _NFGENMSG.size, end))
                    for data, start, end in found
                )
    raise OSError(errno.EINTR, "nf_tables changes while it is read")


def _number(raw: bytes | None) -> int | None:
    return _BE32.unpack(raw)[0] if raw is not None and len(raw) == _BE32.size else None


def forward_chains(
    tables: t.Iterable[tuple[int, dict[int, bytes]]],
    chains: t.Iterable[tuple[int, dict[int, bytes]]],
) -> list[Ruleset]:
    """Return the base chains of the forward hook, by what nf_tables told of tables and chains.
    Pure. A dormant table has none: it looks at nothing.
    """
    asleep = {
        (family, one[_TABLE_NAME])
        for family, one in tables
        if (_number(one.get(_TABLE_FLAGS)) or 0) & _DORMANT
    }
    found = []
    for family, one in chains:
        hook = netlink.attributes(one.get(_CHAIN_HOOK, b""))
        if (
            family in _FAMILIES
            and (family, one[_CHAIN_TABLE]) not in asleep
            and _number(hook.get(_HOOK_NUMBER)) == _FORWARD
        ):
            policy = _POLICIES.get(t.cast("int", _number(one.get(_CHAIN_POLICY))))
            found.append(
                Ruleset(
                    _FAMILIES[family],
                    netlink.text(one[_CHAIN_TABLE]),
                    netlink.text(one[_CHAIN_NAME]),
                    policy,
                )
            )
    return found


def rules_track(rules: t.Iterable[tuple[int, dict[int, bytes]]]) -> bool:
    """Tell whether one of nf_tables' rules has what a namespace forwards tracked. Pure."""
    for family, rule in rules:
        if family not in _FAMILIES or _FAMILIES[family] == "bridge":
            continue
        for raw in netlink.values_of(rule.get(_RULE_EXPRESSIONS, b""), _LIST_ELEMENT):
            one = netlink.attributes(raw)
            name = netlink.text(one.get(_EXPRESSION_NAME, b""))
            xt = (
                netlink.text(netlink.attributes(one.get(_EXPRESSION_DATA, b"")).get(_XT_NAME, b""))
                if name in _XT
                else ""
            )
            if name in _TRACKING or xt in _XT_TRACKING:
                return True
    return False


def _lines(name: str) -> list[str]:
    try:
        with open(f"/proc/thread-self/net/{name}", encoding="ascii") as lines:
            return lines.read().split()
    except FileNotFoundError:  # the kernel, or this namespace, has no such tables
        return []


def look() -> Seen:
    """Return how the netfilter of the calling thread's namespace is; nothing is changed."""
    liberal, count = sysctls.read_sysctl(LIBERAL), sysctls.read_sysctl(_COUNT)
    legacy = {family: _lines(f"{name}_names") for family, name in _LEGACY.items()}
    matches = {
        word
        for name in _LEGACY.values()
        for word in (*_lines(f"{name}_matches"), *_lines(f"{name}_targets"))
    }
    rulesets: tuple[Ruleset, ...] | None
    try:
        rulesets, by_rule = (
            tuple(forward_chains(_dump(_GET_TABLES), _dump(_GET_CHAINS))),
            rules_track(_dump(_GET_RULES)),
        )
    except OSError as exc:
        if exc.errno not in _NO_NF_TABLES:
            rulesets, by_rule = None, True  # unknown: the careful answer
        else:
            rulesets, by_rule = (), False
    if rulesets is not None:
        rulesets += tuple(
            Ruleset(family, table, None, None)
            for family, tables in legacy.items()
            for table in tables
            if table in _LEGACY_TABLES
        )
    # what iptables' rules say is not told, only what they could: a table of addresses to translate,
    # or a match that is there
    by_legacy = any(tables for tables in legacy.values()) and (
        any("nat" in tables for tables in legacy.values()) or bool(matches & _XT_TRACKING)
    )
    tracks = liberal is not None and (by_rule or by_legacy or count not in (None, "0"))
    return Seen(rulesets, tracks, liberal not in (None, "0"))
