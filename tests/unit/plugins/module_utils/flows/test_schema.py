# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions of tables, and entries that go from one to another."""

from __future__ import annotations

import copy
import functools
import operator
import struct
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema

HERE = schema.describe()
TCP, UDP, SCTP = 6, 17, 132
KEY = chain_layout.KEY4.pack(b"\x0a\0\0\1", b"\x0a\0\0\2", 0x1234, 0x5000, TCP, 0, 0)


def changed(edit: t.Callable[[schema.Description], object]) -> schema.Description:
    other = copy.deepcopy(HERE)
    edit(other)
    return other


def entry(description: schema.Description, **fields: int) -> bytes:
    """An entry with these fields; a dot is written as two underscores."""
    given = {name.replace("__", "."): value for name, value in fields.items()}
    assert set(given) <= {name for name, dummy in description["entry"]}
    return chain_layout.codec(description["entry"]).pack(
        *(given.get(name, 0) for name, dummy in description["entry"])
    )


def read(description: schema.Description, value: bytes) -> dict[str, int]:
    return {
        name: number
        for (name, dummy), number in zip(
            description["entry"], chain_layout.codec(description["entry"]).unpack(value)
        )
    }


def field(description: schema.Description, name: str) -> list[str]:
    return next(one for one in description["entry"] if one[0] == name)


def test_the_map_holds_the_description() -> None:
    assert len(schema.packed()) == chain_maps.SCHEMA_BYTES > 2 * len(schema.text()), (
        "and there is room for more"
    )
    assert schema.parse(schema.packed()) == HERE


@pytest.mark.parametrize(
    "raw",
    [bytes(64), b"{" + bytes(63), b"[1]" + bytes(61), b'{"layout": 2}' + bytes(9)],
    ids=["nothing", "half", "a list", "too little"],
)
def test_what_is_no_description(raw: bytes) -> None:
    assert schema.parse(raw) is None


def test_fields_fill_the_structs() -> None:
    sizes = {
        family: struct.calcsize("=" + "".join(code for dummy, code in fields))
        for family, fields in HERE["keys"].items()
    }
    assert sizes == {"ipv4": chain_layout.KEY4.size, "ipv6": chain_layout.KEY6.size}
    assert chain_layout.codec(HERE["entry"]).size == chain_layout.ENTRY.size
    masks = list(HERE["ctl"].values())
    assert sum(masks) == functools.reduce(operator.or_, masks), (
        "no part of the control word stands on another"
    )


EDITS: dict[str, t.Callable[[schema.Description], object]] = {
    "entry created was Q and is I": lambda there: field(there, "created").__setitem__(1, "Q"),
    "entry colour is gone": lambda there: there["entry"].append(["colour", "I"]),
    "entry scale is new": lambda there: there["entry"].remove(["scale", "B"]),
    "entry: the fields have another order": lambda there: there["entry"].reverse(),
    "ctl assured was 0x40000000000 and is 0x20": lambda there: there["ctl"].update(assured=1 << 42),
    "keys ipv6 was": lambda there: there["keys"]["ipv6"].pop(),
    "states tcp was": lambda there: there["states"]["tcp"].append("ZOMBIE"),
    "tables ctt_new is new": lambda there: there["tables"].pop("ctt_new"),
    "maps frags was": lambda there: there["maps"]["frags"].__setitem__(2, 999),
}


@pytest.mark.parametrize("told", EDITS)
def test_what_differs_is_told_and_changes_the_digest(told: str) -> None:
    there = changed(EDITS[told])
    assert any(one.startswith(told) for one in schema.differences(there, HERE)), schema.differences(
        there, HERE
    )
    assert schema.digest(there) != schema.digest(HERE)


def test_counters_and_the_version_are_no_part_of_the_digest() -> None:
    there = changed(lambda other: other.update(layout=99, counters={"stats": [], "deletions": []}))
    assert schema.digest(there) == schema.digest(HERE) and schema.differences(there, HERE) == []


def test_layout_1_is_what_it_was() -> None:
    """Frozen: entries of it are still around, whatever this release calls its own."""
    one = schema.KNOWN[1]
    assert chain_layout.codec(one["entry"]).format == "=QQIIIIQQIIIIQIIIIIIHBBBBBBII"
    assert [chain_layout.codec(one["keys"][family]).format for family in ("ipv4", "ipv6")] == [
        "=4s4sHHBBH",
        "=16s16sHHBBH",
    ]
    assert [name for name, dummy in one["entry"]][12:16] == [
        "ctl",
        "expires",
        "last_seen",
        "created",
    ]
    assert (
        len(one["counters"]["stats"]),
        one["counters"]["stats"].index("created"),
        one["counters"]["stats"][-1],
    ) == (40, 34, "insert_failed")
    assert one["ctl"]["assured"] == 0x20 and one["states"]["tcp"].index("ESTABLISHED") == 3
    assert schema.alike(one, HERE), "its entries need no translation"


def test_alike_needs_the_same_bytes() -> None:
    assert schema.alike(HERE, HERE)
    assert schema.alike(HERE, changed(lambda other: other["ctl"].update(more=1 << 50))), (
        "a new bit is 0 in what is there"
    )
    assert schema.alike(changed(lambda other: other["ctl"].update(lock=1 << 40)), HERE), (
        "a lock does not go along"
    )
    for told, edit in EDITS.items():
        if told.startswith(("entry", "ctl", "keys", "states")):
            assert not schema.alike(changed(edit), HERE), told


@pytest.mark.parametrize(("assured", "table"), [(True, "ctt6"), (False, "ctt6_new")])
def test_where_flows_belong(assured: bool, table: str) -> None:
    assert schema.destination(HERE, "ipv6", assured) == table
    assert schema.destination(schema.KNOWN[1], "ipv6", assured) == "ctt6"


def test_fields_go_by_name() -> None:
    old = changed(
        lambda other: (
            other["entry"].remove(["scale", "B"]),
            other["entry"].insert(3, ["colour", "Q"]),
            other["entry"].reverse(),
        )
    )
    got = read(
        HERE,
        schema.Translator(old, HERE).entry(
            "ipv4", KEY, entry(old, orig__packets=5, related__bytes=7, created=9, colour=3)
        ),
    )
    assert {name: number for name, number in got.items() if number} == {
        "orig.packets": 5,
        "related.bytes": 7,
        "created": 9,
    }


def test_widths_change() -> None:
    def edit(other: schema.Description) -> None:
        for name, code in (
            ("orig.packets", "I"),
            ("expires", "Q"),
            ("last_win", "I"),
            ("retrans", "H"),
        ):
            field(other, name)[1] = code

    old = changed(edit)
    got = read(
        HERE,
        schema.Translator(old, HERE).entry(
            "ipv4",
            KEY,
            entry(old, orig__packets=5, expires=(7 << 32) + 11, last_win=70000, retrans=300),
        ),
    )
    assert got["orig.packets"] == 5, "wider"
    assert got["expires"] == 11, "narrower, a clock wraps"
    assert (got["last_win"], got["retrans"]) == (0xFFFF, 0xFF), (
        "narrower, a number stays as large as can be"
    )


def test_parts_of_the_control_word_move() -> None:
    def edit(other: schema.Description) -> None:
        other["ctl"].update(assured=1 << 61, state=0x1F << 56, vlan_outer=0xFFF << 40)

    old = changed(edit)
    word = 1 << 61 | 3 << 56 | 123 << 40 | old["ctl"]["lock"] | old["ctl"]["orig_hi"]
    got = read(
        HERE,
        schema.Translator(old, changed(lambda other: other["ctl"].update(state=0x1F))).entry(
            "ipv4", KEY, entry(old, ctl=word)
        ),
    )
    assert (
        got["ctl"]
        == chain_layout.CTL_ASSURED
        | 3
        | 123 << chain_layout.CTL_VLAN_OUTER_SHIFT
        | chain_layout.CTL_ORIG_HI
    ), "and nobody holds the lock"


@pytest.mark.parametrize(
    ("proto", "state", "then"), [(TCP, 1, 0), (TCP, 0, 1), (SCTP, 2, 2), (UDP, 1, 1)]
)
def test_states_go_by_their_name(proto: int, state: int, then: int) -> None:
    def edit(other: schema.Description) -> None:
        other["states"]["tcp"][:2] = other["states"]["tcp"][1::-1]

    key = chain_layout.KEY4.pack(b"\x0a\0\0\1", b"\x0a\0\0\2", 1, 2, proto, 0, 0)
    old = changed(edit)
    assert (
        read(HERE, schema.Translator(old, HERE).entry("ipv4", key, entry(old, ctl=state)))["ctl"]
        == then
    )


def test_keys_go_by_name() -> None:
    old = changed(lambda other: other["keys"]["ipv4"].reverse())
    fields = dict(
        zip((name for name, dummy in HERE["keys"]["ipv4"]), chain_layout.KEY4.unpack(KEY))
    )
    there = chain_layout.codec(old["keys"]["ipv4"]).pack(
        *(fields[name] for name, dummy in old["keys"]["ipv4"])
    )
    assert schema.Translator(old, HERE).key("ipv4", there) == KEY


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda other: other["keys"]["ipv4"].append(["vrf", "I"]), "key ipv4"),
        (lambda other: other["keys"]["ipv6"].pop(), "key ipv6"),
        (lambda other: other["ctl"].update(pinned=1 << 50), "ctl pinned"),
        (lambda other: other["ctl"].update(state=0x1F << 50), "ctl state"),
        (lambda other: other["states"]["tcp"].append("ZOMBIE"), "state tcp ZOMBIE"),
    ],
)
def test_what_has_no_place_is_refused(
    edit: t.Callable[[schema.Description], object], told: str
) -> None:
    with pytest.raises(ConntrackError, match=f"can not be translated: {told} has no place"):
        schema.Translator(changed(edit), HERE)
