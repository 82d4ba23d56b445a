# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One definition, two languages: the C structs and numbers of files/bpf against
plugins/module_utils/chain, by the compiler's word.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import struct
import subprocess
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import events as chain_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states

pytest.importorskip("jinja2")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
if COMPILER is None:
    pytest.skip("no C compiler", allow_module_level=True)

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "files/bpf"

#: struct member by member, in the order of the Python codec's fields; "[n]" and bit-fields'
#: neighbours are members of their own.
KEY = ("lo_ip", "hi_ip", "lo_port", "hi_port", "proto", "role", "zone")
HALF = ("packets", "bytes", "td_end", "td_maxend", "td_maxwin", "td_maxack")
#: None stands for the byte of the bit-fields, which has no offset in C.
ENTRY: tuple[str | None, ...] = (
    *(f"half[0].{name}" for name in HALF),
    *(f"half[1].{name}" for name in HALF),
    *("ctl", "expires", "last_seen", "created", "last_seq", "last_ack", "last_end", "last_win"),
    None,
    *("last_flags", "scale", "retrans", "td_flags[0]", "td_flags[1]", "rel_packets", "rel_bytes"),
)
#: None stands for each byte that is not used.
EVENT: tuple[str | None, ...] = (
    "seq",
    "jiffies",
    "ktime",
    "what",
    "reason",
    "v6",
    *[None] * 5,
    "key",
    "entry",
)
MACROS = (
    "CTL_LOCK",
    "CTL_STATE",
    "CTL_SEEN_REPLY",
    "CTL_ASSURED",
    "CTL_ORIG_HI",
    "CTL_EGRESS",
    "CTL_VLANS_SHIFT",
)
STRUCTS = sorted(
    {
        kind
        for spec in chain_maps.maps()
        for kind in (spec.key, spec.value)
        if kind and kind.startswith("struct ")
    }
)
ENUMS: dict[str, dict[str, int]] = {
    "SLOT": dict(chain_programs.SLOTS),
    "META": dict(chain_maps.META),
    "COUNT": {name: number for number, name in enumerate(chain_counters.COUNTERS)},
    "TIMEOUT": {name: number for number, name in enumerate(chain_settings.TIMEOUTS)},
    "EVENT": {name: number for number, name in enumerate(chain_events.EVENT_KINDS)},
    "EVENTS": {name: number for number, name in enumerate(chain_events.EVENT_WORDS)},
    "PRED": {name: number for number, name in enumerate(chain_maps.FLOW_CLASSES)},
    "ADOPT": {name: number for number, name in enumerate(chain_programs.ADOPT_REQUESTS)},
    "KNOB": {name: number for number, name in enumerate(chain_settings.KNOBS)},
    "TCP": {name: number for number, name in enumerate(chain_states.TCP_STATES)},
    "SCTP": {name: number for number, name in enumerate(chain_states.SCTP_STATES)},
    "CHUNK": {name: number for number, name in enumerate(chain_states.SCTP_CHUNKS)},
    "CLASS": {name: number for number, name in enumerate(chain_states.TCP_CLASSES)},
}


def offsets(codec: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each field of a codec."""
    codes = [
        code
        for count, code in re.findall(r"(\d*)([a-zA-Z])", codec.format)
        for code in ([f"{count}s"] if code == "s" else code * int(count or 1))
    ]
    found, at = [], 0
    for code in codes:
        size = struct.calcsize(f"={code}")
        found.append((at, size))
        at += size
    assert at == codec.size
    return found


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, t.Any]:
    """What a C compiler makes of the sources: sizes, offsets, values."""
    text = render.render(str(SOURCES), render.Settings(1024))
    stub = (SOURCES / "stub/include/linux/kconfig.h").read_text(encoding="utf-8")
    parts = [
        "#define offsetof(type, member) __builtin_offsetof(type, member)",
        stub,
        "#include <linux/if_ether.h>",
        "#include <linux/in6.h>",
        *(
            "\n".join(build_bcc.source_lines(text, name))
            for name in ("templates/defs.h.j2", "lib/flow.h")
        ),
        "int printf(const char *, ...);",
        "int main(void)\n{",
    ]
    values = {
        f"sizeof {name}": f"sizeof({name})"
        for name in (
            "struct flow",
            "struct ct_half",
            "struct ct_settings",
            "struct ct_event",
            *STRUCTS,
        )
    }
    for where, members in (
        ("ct_key", KEY),
        ("ct_key6", KEY),
        ("ct_entry", ENTRY),
        ("ct_event", EVENT),
    ):
        for member in members:
            if member:
                values[f"{where}.{member}"] = (
                    f"offsetof(struct {where}, {member}) << 8 | sizeof(((struct {where}"
                    f" *)0)->{member})"
                )
    values.update(
        (name, name)
        for name in (*MACROS, "NR_TIMEOUTS", "NR_KNOBS", "CTL_VLAN_SHIFT", "VLAN_VID_BITS")
    )
    values.update(
        (f"{prefix}_{name.upper()}", f"{prefix}_{name.upper()}")
        for prefix, names in ENUMS.items()
        for name in names
    )
    parts += [
        'printf("{");',
        *(
            f'printf("\\"{name}\\": %llu, ", (unsigned long long)({code}));'
            for name, code in values.items()
        ),
    ]
    parts += ['printf("\\"end\\": 0}");', "return 0;\n}\n"]
    directory = tmp_path_factory.mktemp("layout")
    (directory / "layout.c").write_text("\n".join(parts), encoding="utf-8")
    subprocess.run(
        [str(COMPILER), "-w", "-o", directory / "layout", directory / "layout.c"], check=True
    )
    return t.cast(
        "dict[str, t.Any]",
        json.loads(
            subprocess.run(
                [directory / "layout"], check=True, capture_output=True, text=True
            ).stdout
        ),
    )


def test_the_parsed_packet_fits_every_drivers_metadata(c: dict[str, t.Any]) -> None:
    assert c["sizeof struct flow"] == 32, "the kernel grants 32 bytes everywhere, in steps of 4"


def test_an_entry_has_the_size_that_was_chosen(c: dict[str, t.Any]) -> None:
    assert (c["sizeof struct ct_key"], c["sizeof struct ct_half"], c["sizeof struct ct_entry"]) == (
        chain_layout.KEY4.size,
        chain_layout.HALF.size,
        chain_layout.ENTRY.size,
    )
    assert (chain_layout.KEY4.size, chain_layout.HALF.size, chain_layout.ENTRY.size) == (
        16,
        32,
        112,
    )
    assert c["sizeof struct ct_event"] == chain_layout.EVENT.size == 3 * 64 - 8, (
        "with the ring buffer's own 8 bytes three cache lines"
    )


@pytest.mark.parametrize("name", STRUCTS)
def test_maps_have_room_for_their_structs(c: dict[str, t.Any], name: str) -> None:
    for spec in chain_maps.maps():
        if spec.key == name:
            assert c[f"sizeof {name}"] == spec.key_size, spec.name
        if spec.value == name:
            assert c[f"sizeof {name}"] == spec.value_size, spec.name


@pytest.mark.parametrize(
    ("name", "members", "codec"),
    [
        ("ct_key", KEY, chain_layout.KEY4),
        ("ct_key6", KEY, chain_layout.KEY6),
        ("ct_entry", ENTRY, chain_layout.ENTRY),
        ("ct_event", EVENT, chain_layout.EVENT),
    ],
)
def test_every_field_stands_where_the_codec_looks(
    c: dict[str, t.Any], name: str, members: tuple[str | None, ...], codec: struct.Struct
) -> None:
    assert len(offsets(codec)) == len(members)
    for member, (at, size) in zip(members, offsets(codec)):
        if member:
            assert divmod(c[f"{name}.{member}"], 256) == (at, size), member


@pytest.mark.parametrize("prefix", ENUMS)
def test_numbers(c: dict[str, t.Any], prefix: str) -> None:
    assert {name: c[f"{prefix}_{name.upper()}"] for name in ENUMS[prefix]} == ENUMS[prefix]


def test_bits_of_the_control_word(c: dict[str, t.Any]) -> None:
    assert {name: c[name] for name in MACROS} == {
        name: vars(chain_maps).get(name, vars(chain_layout).get(name)) for name in MACROS
    }
    assert (c["CTL_VLAN_SHIFT"], c["CTL_VLAN_SHIFT"] + c["VLAN_VID_BITS"]) == (
        chain_layout.CTL_VLAN_OUTER_SHIFT,
        chain_layout.CTL_VLAN_INNER_SHIFT,
    )
    bits = [c[name] for name in MACROS[:-1]]
    assert sum(bits) == 0x80000000000000FF, (
        "none stands on another, and the VLAN fields begin above them"
    )
    assert c["CTL_VLANS_SHIFT"] == 8 and c["CTL_VLAN_SHIFT"] + 2 * c["VLAN_VID_BITS"] < 63


def test_the_description_names_what_the_structs_hold(c: dict[str, t.Any]) -> None:
    """schema.describe() is made of these."""
    for fields in chain_layout.KEY_FIELDS.values():
        assert tuple(name for name, dummy in fields) == KEY
    assert tuple(name for name, dummy in chain_layout.HALF_FIELDS) == HALF
    there = {
        "half[0]": "orig",
        "half[1]": "reply",
        "td_flags[0]": "orig.td_flags",
        "td_flags[1]": "reply.td_flags",
    }
    names = []
    for member in ENTRY:
        half, dot, name = (member or "last").partition(".")
        names.append(there.get(half, half) + dot + name)
    assert [
        {"rel_packets": "related.packets", "rel_bytes": "related.bytes"}.get(name, name)
        for name in names
    ] == [name for name, dummy in chain_layout.ENTRY_FIELDS]


def test_the_description_has_every_part_of_the_control_word(c: dict[str, t.Any]) -> None:
    width = (1 << c["VLAN_VID_BITS"]) - 1
    assert {
        **{name[4:].lower(): c[name] for name in MACROS[:-1]},
        "vlans": 3 << c["CTL_VLANS_SHIFT"],
        "vlan_outer": width << c["CTL_VLAN_SHIFT"],
        "vlan_inner": width << c["CTL_VLAN_SHIFT"] + c["VLAN_VID_BITS"],
    } == chain_layout.CTL_PARTS


def test_settings_hold_every_timeout_and_knob(c: dict[str, t.Any]) -> None:
    assert (c["NR_TIMEOUTS"], c["NR_KNOBS"]) == (
        len(chain_settings.TIMEOUTS),
        len(chain_settings.KNOBS),
    )
