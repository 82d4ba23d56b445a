# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables of a generation hold, described so that another release can tell, compare and
translate it.

Each generation carries its description in the map ``schema``, which is there exactly as long as its
tables are, and a digest of it in ``meta``. Where the description differs from this release's,
entries go from one to the other field by field, by name. Nothing here touches the kernel.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import typing as t

from ..chain import counters as chain_counters
from ..chain import layout as chain_layout
from ..chain import maps as chain_maps
from ..chain import states as chain_states
from ..core.errors import ConntrackError, is_whole
from . import codec as flow

#: layout: chain.LAYOUT_VERSION. keys, entry: (name, code in Python's struct) of each field. ctl:
#: the mask of each part of the control word. states: names by number. tables: (family, kind) of
#: each flow table. maps: (kind, key size, value size) of each map that is handed on. counters:
#: names by index.
Description = dict[str, t.Any]
#: Parts of the control word that tell what is being done with the entry in its table; they do not
#: go along.
_PASSING = ("lock",)
#: Flow tables that hold all of a family's flows: those of layout 1.
ALL = "all"
_TCP = 6
_STATES = {_TCP: "tcp", 132: "sctp"}


@functools.lru_cache(None)
def text() -> str:
    """Return the description of this release's tables, as the map ``schema`` holds it."""
    return json.dumps(describe(), separators=(",", ":"))


def describe() -> Description:
    """Return the description of this release's tables."""
    return {
        "layout": chain_layout.LAYOUT_VERSION,
        "keys": {
            family: list(map(list, fields)) for family, fields in chain_layout.KEY_FIELDS.items()
        },
        "entry": list(map(list, chain_layout.ENTRY_FIELDS)),
        "ctl": dict(chain_layout.CTL_PARTS),
        "states": {"tcp": list(chain_states.TCP_STATES), "sctp": list(chain_states.SCTP_STATES)},
        "tables": {table.name: [table.family, table.flow_class] for table in flow.TABLES},
        "maps": {
            spec.name: [spec.kind, spec.key_size, spec.value_size]
            for spec in chain_maps.maps()
            if spec.inherited
        },
        "counters": {
            "stats": list(chain_counters.COUNTERS),
            "deletions": list(chain_counters.DELETIONS),
        },
    }


def digest(description: Description) -> int:
    """Return 64 bits of what entries are made of. Counters are carried over by name, whatever they
    are, so they do not count.
    """
    told = {
        name: value for name, value in description.items() if name not in ("layout", "counters")
    }
    return int.from_bytes(
        hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).digest()[
            :8
        ],
        "big",
    )


def packed() -> bytes:
    """Return the value of the map ``schema``."""
    return text().encode().ljust(chain_maps.SCHEMA_BYTES, b"\0")


def parse(raw: bytes) -> Description | None:
    """Return the description that a map ``schema`` holds; None where it holds none."""
    try:
        found = json.loads(raw.rstrip(b"\0"))
    except ValueError:
        return None
    return found if isinstance(found, dict) and set(describe()) <= set(found) else None


#: The codes that fields of keys and entries may have, and bounds that no release's description
#: comes near.
_KEY_CODES, _ENTRY_CODES = frozenset(("4s", "16s", "B", "H", "I")), frozenset("BHIQ")
_MOST_FIELDS, _MOST_NAME = 256, 64


def whole(found: object) -> bool:
    """Tell whether what another host says of its tables has the form of a description, all of it:
    what is made of it is then bounded, whoever wrote it.
    """
    return (
        isinstance(found, dict)
        and set(describe()) <= set(found)
        and all(_PARTS[part](found[part]) for part in _PARTS)
    )


def _is_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MOST_NAME
        and value.isascii()
        and value.isprintable()
    )


def _are_fields(value: object, codes: t.Collection[str], needed: t.Collection[str]) -> bool:
    """Tell whether these are fields of a struct, each with a name of its own."""
    if (
        not isinstance(value, list)
        or len(value) > _MOST_FIELDS
        or any(not isinstance(one, list) or len(one) != 2 for one in value)
    ):
        return False
    names = [one[0] for one in value]
    if not all(map(_is_name, names)) or not all(
        isinstance(one[1], str) and one[1] in codes for one in value
    ):
        return False
    return len(set(names)) == len(names) and set(needed) <= set(names)


def _are_masks(value: object) -> bool:
    """Tell whether these are parts of a control word: each has bits in a row, and no two have the
    same.
    """
    if not isinstance(value, dict) or "state" not in value or not all(map(_is_name, value)):
        return False
    taken = 0
    for mask in value.values():
        if (
            not is_whole(mask)
            or not 0 < mask < 1 << 64
            or mask & taken
            or (mask >> _shift(mask)) & ((mask >> _shift(mask)) + 1)
        ):
            return False
        taken |= mask
    return value["state"] >> _shift(value["state"]) <= 0xFF


def _are_names(value: object) -> bool:
    """Tell whether these are lists of names by name."""
    return isinstance(value, dict) and all(
        _is_name(name)
        and isinstance(names, list)
        and len(names) <= _MOST_FIELDS
        and all(map(_is_name, names))
        and len(set(names)) == len(names)
        for name, names in value.items()
    )


#: What each part of a description has to be. Tables, maps and counters are not looked at where
#: flows come from another host.
_PARTS: dict[str, t.Callable[[t.Any], bool]] = {
    "layout": lambda value: is_whole(value) and 0 < value < 1 << 32,
    "keys": lambda value: (
        isinstance(value, dict)
        and bool(value)
        and all(
            _is_name(name) and _are_fields(one, _KEY_CODES, ("proto",))
            for name, one in value.items()
        )
    ),
    "entry": lambda value: _are_fields(
        value, _ENTRY_CODES, ("ctl", "expires", "last_seen", "created")
    ),
    "ctl": _are_masks,
    "states": _are_names,
}


def differences(old: Description, new: Description) -> list[str]:
    """Return what differs between what entries are made of, for people, the counters left out."""
    found = []
    for part in ("keys", "tables", "maps", "states", "ctl"):
        for name in sorted({*old[part], *new[part]}):
            found += _difference(
                f"{part} {name}", _named(old[part].get(name)), _named(new[part].get(name))
            )
    fields_old, fields_new = dict(old["entry"]), dict(new["entry"])
    for name in dict.fromkeys((*fields_old, *fields_new)):
        found += _difference(f"entry {name}", fields_old.get(name), fields_new.get(name))
    if not found and old["entry"] != new["entry"]:
        found.append("entry: the fields have another order")
    return found


def _named(value: t.Any) -> str | None:
    return (
        value
        if value is None or isinstance(value, str)
        else hex(value)
        if isinstance(value, int)
        else json.dumps(value)
    )


def _difference(what: str, old: str | None, new: str | None) -> list[str]:
    if old == new:
        return []
    if old is None or new is None:
        return [f"{what} is {'new' if old is None else 'gone'}"]
    return [f"{what} was {old} and is {new}"]


def alike(old: Description, new: Description) -> bool:
    """Return whether entries can stay as they are, byte for byte, in the tables of the other."""
    kept = {name: mask for name, mask in old["ctl"].items() if name not in _PASSING}
    return (
        all(old[part] == new[part] for part in ("keys", "entry", "states"))
        and kept.items() <= new["ctl"].items()
        and not _sum(kept) & _sum(_added(old, new))
    )


def _added(old: Description, new: Description) -> dict[str, int]:
    return {name: mask for name, mask in new["ctl"].items() if name not in old["ctl"]}


def _sum(masks: t.Mapping[str, int]) -> int:
    return functools.reduce(lambda one, other: one | other, masks.values(), 0)


def destination(new: Description, family: str, assured: bool) -> str:
    """Return the flow table that holds such flows."""
    kinds = {kind: name for name, (of, kind) in new["tables"].items() if of == family}
    return kinds[ALL] if ALL in kinds else kinds[chain_maps.FLOW_CLASSES[assured]]


# ---------------------------------------------------------------- translating
def _codec(fields: t.Sequence[t.Sequence[str]]) -> struct.Struct:
    return chain_layout.codec((name, code) for name, code in fields)


def _shift(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


class Translator:
    """Entries of one description in the form of another: fields by name, new ones 0, those that are
    gone left out.

    A number that does not fit a narrower field stays the largest that does, but for clocks and
    sequence numbers, which wrap.

    TCP windows begin anew, from the next segment of each side: until the flow is handed over its
    packets are tracked elsewhere, and windows that stopped meanwhile would refuse what comes after
    (as in the kernel's nf_flow_table_core.c, flow_offload_fixup_tcp()).

    :raises ConntrackError: where keys, states or parts of the control word have no place in the new
        one.
    """

    def __init__(self, old: Description, new: Description) -> None:
        lost = []
        for family, fields in old["keys"].items():
            if sorted(map(tuple, fields)) != sorted(map(tuple, new["keys"].get(family, []))):
                lost.append(f"key {family}")
        self._parts = []
        for name, mask in old["ctl"].items():
            if name in _PASSING:
                continue
            to = new["ctl"].get(name, 0)
            if not to or to >> _shift(to) < mask >> _shift(mask):
                lost.append(f"ctl {name}")
            elif name != "state":
                self._parts.append((mask, _shift(mask), _shift(to)))
        # no description names this bit; where the others are the same ones it is free on both
        # sides, or means the same
        self._unnamed = chain_layout.CTL_AGGREGATED if old["ctl"] == new["ctl"] else 0
        self._states = {}
        for machine, names in old["states"].items():
            known = {name: number for number, name in enumerate(new["states"].get(machine, []))}
            lost += [f"state {machine} {name}" for name in names if name not in known]
            self._states[machine] = [known.get(name, 0) for name in names]
        if lost:
            raise ConntrackError(
                f"the tables' layout can not be translated: {', '.join(lost)} has no place in this"
                " release's."
            )
        self._state_shifts = _shift(old["ctl"]["state"]), _shift(new["ctl"]["state"])
        self._state_mask = old["ctl"]["state"]
        self._old_entry, self._new_entry = _codec(old["entry"]), _codec(new["entry"])
        self._keys = {}
        for family, fields in old["keys"].items():
            at = [name for name, dummy in fields]
            self._keys[family] = (
                _codec(fields),
                _codec(new["keys"][family]),
                [at.index(name) for name, dummy in new["keys"][family]],
                at.index("proto"),
            )
        at = [name for name, dummy in old["entry"]]
        self._fields = [
            (at.index(name) if name in at else None, name, struct.calcsize(f"={code}") * 8)
            for name, code in new["entry"]
        ]
        self._ctl = at.index("ctl")

    def key(self, family: str, key: bytes) -> bytes:
        """Return the key of a flow."""
        old, new, order, dummy = self._keys[family]
        fields = old.unpack(key)
        return new.pack(*(fields[at] for at in order))

    def entry(self, family: str, key: bytes, value: bytes) -> bytes:
        """Return the entry of a flow, whose old key is given; nobody holds its lock."""
        proto = self._keys[family][0].unpack(key)[self._keys[family][3]]
        fields = self._old_entry.unpack(value)
        values = []
        for at, name, bits in self._fields:
            number = 0 if at is None else fields[at]
            if name == "ctl":
                number = self.control(proto, number)
            elif name in _WINDOWS and proto == _TCP:
                number = 0
            elif number >> bits:
                number = number & (1 << bits) - 1 if name in _WRAPPING else (1 << bits) - 1
            values.append(number)
        return self._new_entry.pack(*values)

    def control(self, proto: int, ctl: int) -> int:
        """Return the control word of a flow of this protocol."""
        state = (ctl & self._state_mask) >> self._state_shifts[0]
        numbers = self._states.get(_STATES.get(proto, ""))
        if numbers and state < len(numbers):
            state = numbers[state]
        word = state << self._state_shifts[1] | ctl & self._unnamed
        for mask, shift, to in self._parts:
            word |= (ctl & mask) >> shift << to
        return word


#: What a side's window is taken from anew where it is 0.
_WINDOWS = frozenset(("orig.td_maxwin", "reply.td_maxwin"))
#: Fields of which the low bits count.
_WRAPPING = frozenset(
    (
        "expires",
        "last_seen",
        "created",
        "last_seq",
        "last_ack",
        "last_end",
        *(
            f"{side}.{name}"
            for side in ("orig", "reply")
            for name in ("td_end", "td_maxend", "td_maxack")
        ),
    )
)


# ---------------------------------------------------------------- layouts of earlier releases
def _words(text: str) -> list[str]:
    return text.split()


#: Layout 1, whose generations carry no description: all flows of a family in one table.
_LAYOUT_1: Description = {
    "layout": 1,
    "keys": {
        family: [
            ["lo_ip", address],
            ["hi_ip", address],
            ["lo_port", "H"],
            ["hi_port", "H"],
            ["proto", "B"],
            ["role", "B"],
            ["zone", "H"],
        ]
        for family, address in (("ipv4", "4s"), ("ipv6", "16s"))
    },
    "entry": [
        *(
            [f"{side}.{name}", code]
            for side in ("orig", "reply")
            for name, code in zip(
                ("packets", "bytes", "td_end", "td_maxend", "td_maxwin", "td_maxack"), "QQIIII"
            )
        ),
        *(
            [name, code]
            for name, code in zip(
                (
                    "ctl",
                    "expires",
                    "last_seen",
                    "created",
                    "last_seq",
                    "last_ack",
                    "last_end",
                    "last_win",
                ),
                "QIIIIIIH",
            )
        ),
        *(
            [name, "B"]
            for name in (
                "last",
                "last_flags",
                "scale",
                "retrans",
                "orig.td_flags",
                "reply.td_flags",
            )
        ),
        ["related.packets", "I"],
        ["related.bytes", "I"],
    ],
    "ctl": {
        "lock": 1 << 63,
        "state": 0xF,
        "seen_reply": 1 << 4,
        "assured": 1 << 5,
        "orig_hi": 1 << 6,
        "egress": 1 << 7,
        "vlans": 3 << 8,
        "vlan_outer": 0xFFF << 16,
        "vlan_inner": 0xFFF << 28,
    },
    "states": {
        "tcp": _words(
            "NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSE"
            " SYN_SENT2"
        ),
        "sctp": _words(
            "NONE CLOSED COOKIE_WAIT COOKIE_ECHOED ESTABLISHED SHUTDOWN_SENT SHUTDOWN_RECD"
            " SHUTDOWN_ACK_SENT HEARTBEAT_SENT"
        ),
    },
    "tables": {"ctt": ["ipv4", ALL], "ctt6": ["ipv6", ALL]},
    "maps": {
        "stats": ["percpu_array", 4, 8],
        "deletions": ["array", 4, 8],
        "ctt": ["lru_hash", 16, 112],
        "ctt6": ["lru_hash", 40, 112],
        "frags": ["lru_hash", 40, 152],
    },
    "counters": {
        "stats": _words(
            "tracked related fragment invalid_ip_header invalid_ext_headers invalid_l4_short"
            " invalid_checksum invalid_tcp_header invalid_tcp_flags invalid_tcp_state"
            " invalid_tcp_new invalid_tcp_window invalid_tcp_rst invalid_icmp_type"
            " invalid_icmp_error invalid_gre invalid_sctp_chunks invalid_sctp_new invalid_sctp_tag"
            " invalid_sctp_state ignored_tcp_syn ignored_tcp_state ignored_tcp_window ignored_sctp"
            " untracked_not_ip untracked_eth_short untracked_vlan_depth untracked_pppoe"
            " untracked_nd untracked_fragment untracked_no_entry untracked_contended"
            " untracked_no_meta untracked_no_slot created reopened deleted_reset deleted_expired"
            " deleted_flushed insert_failed"
        ),
        "deletions": ["deleted_expired", "deleted_flushed"],
    },
}
#: Layouts that this release knows how to go on from, whatever ``on_schema_change`` says but drop.
KNOWN: dict[int, Description] = {1: _LAYOUT_1}
