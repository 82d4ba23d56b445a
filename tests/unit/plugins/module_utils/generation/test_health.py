# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with what was seen; the kernel is not asked."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    diagnosis,
    health,
    traffic,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    links as generation_links,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants

SETTINGS = chain_settings.settings_value(chain_jiffies.hz(), {}, {})
META = {"generation": 3, "layout": chain_layout.LAYOUT_VERSION, "ktime_ns": 1}


def program(slot: int, number: int) -> bpf.ProgInfo:
    name = next(name for name, at in chain_programs.SLOTS.items() if at == slot)
    return bpf.ProgInfo(number, bpf_constants.PROG_TYPE_XDP, name, "ab" * 8, 100, 0, 0, (), 0)


MAPS = {
    spec.name: bpf.MapInfo(
        200 + number,
        bpf_constants.MAP_TYPES[spec.kind],
        spec.name,
        spec.key_size,
        spec.value_size,
        spec.entries or 0,
        0,
    )
    for number, spec in enumerate(chain_maps.maps())
}
WHOLE = health.Seen(
    number=3,
    programs={slot: program(slot, 100 + slot) for slot in chain_programs.SLOTS.values()},
    slots={slot: 100 + slot for slot in chain_programs.SLOTS.values()},
    pinned=MAPS,
    used={name: [there] for name, there in MAPS.items()},
    meta=META,
    settings=SETTINGS,
)


def names(seen: health.Seen) -> list[tuple[str, str]]:
    return [(fault.fault, fault.object) for fault in health.judge(seen)]


def seen(**changes: t.Any) -> health.Seen:
    return dataclasses.replace(WHOLE, **changes)


def without(whole: t.Mapping[t.Any, t.Any], *keys: object) -> dict[t.Any, t.Any]:
    return {key: value for key, value in whole.items() if key not in keys}


# ---------------------------------------------------------------- one generation
def test_a_whole_generation_has_no_fault() -> None:
    assert names(WHOLE) == [] and WHOLE.maps == MAPS and WHOLE.layout == chain_layout.LAYOUT_VERSION


CT = chain_programs.SLOTS["ct"]
OTHER_JT = MAPS["jt"]._replace(id=999)
SHORT = SETTINGS[:-8]
NO_TABLES = chain_settings.SETTINGS_STRUCT.pack(
    *(
        number + 1 if at == 0 else number
        for at, number in enumerate(
            chain_settings.SETTINGS_STRUCT.unpack(SETTINGS[: chain_settings.SETTINGS_STRUCT.size])
        )
    )
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (seen(odd_pins={"prog/xdp_3": None}), ("pin_missing", "prog/xdp_3")),
        (seen(odd_pins={"map/jt": None}), ("pin_missing", "map/jt")),
        (seen(odd_pins={"map/ctt": "a program"}), ("pin_foreign", "map/ctt")),
        (seen(slots=without(WHOLE.slots or {}, CT)), ("slot_empty", f"jt[{CT}]")),
        (seen(slots={**(WHOLE.slots or {}), CT: 7}), ("slot_foreign", f"jt[{CT}]")),
        (seen(refused=(CT,)), ("attach_type", f"prog/xdp_{CT}")),
        (seen(used={**WHOLE.used, "jt": [OTHER_JT]}), ("map_replaced", "map/jt")),
        (
            seen(pinned={**MAPS, "frags": MAPS["frags"]._replace(value_size=8)}),
            ("map_shape", "map/frags"),
        ),
        (
            seen(pinned={**MAPS, "frags": MAPS["frags"]._replace(kind=1)}),
            ("map_shape", "map/frags"),
        ),
        (
            seen(pinned={**MAPS, "settings": MAPS["settings"]._replace(max_entries=2)}),
            ("map_shape", "map/settings"),
        ),
        (seen(meta={**META, "generation": 2}), ("meta_damaged", "map/meta")),
        (seen(meta={**META, "ktime_ns": 1 << 62}), ("meta_damaged", "map/meta")),
        (seen(meta=dict.fromkeys(META, 0)), ("meta_damaged", "map/meta")),
        (seen(settings=bytes(len(SETTINGS))), ("settings_damaged", "map/settings")),
        (
            seen(settings=chain_settings.settings_value(chain_jiffies.hz() + 1, {}, {})),
            ("settings_damaged", "map/settings"),
        ),
        (
            seen(settings=chain_settings.settings_value(chain_jiffies.hz(), {"udp": 0}, {})),
            ("settings_damaged", "map/settings"),
        ),
        (
            seen(settings=NO_TABLES.ljust(len(SETTINGS), b"\0")),
            ("settings_damaged", "map/settings"),
        ),
    ],
)
def test_each_fault_is_named(found: health.Seen, expected: tuple[str, str]) -> None:
    assert names(found) == [expected]
    (fault,) = health.judge(found)
    assert (
        fault.as_dict()
        == {
            "fault": expected[0],
            "object": expected[1],
            "detail": fault.detail,
            "repair": "ct load",
        }
        and fault.detail
    )


def test_what_the_user_chose_is_no_fault() -> None:
    sized = {
        **MAPS,
        "ctt": MAPS["ctt"]._replace(max_entries=77),
        "stats": MAPS["stats"]._replace(max_entries=7),
    }
    chosen = chain_settings.settings_value(chain_jiffies.hz(), {"udp": 7}, {"tcp_loose": 0})
    assert (
        names(
            seen(
                pinned=sized, used={name: [there] for name, there in sized.items()}, settings=chosen
            )
        )
        == []
    )


def test_an_empty_jump_table_names_every_slot() -> None:
    assert names(seen(slots={})) == [
        ("slot_empty", f"jt[{slot}]") for slot in chain_programs.SLOTS.values()
    ]


def test_slots_of_guests_are_not_judged() -> None:
    assert names(seen(slots={**(WHOLE.slots or {}), 4: 7, 25: 8})) == []


def test_another_releases_generation_is_not_judged() -> None:
    other = seen(
        meta={**META, "layout": chain_layout.LAYOUT_VERSION + 1},
        pinned={**MAPS, "ctt": MAPS["ctt"]._replace(value_size=8)},
        slots={},
    )
    assert names(other) == [] and other.layout == chain_layout.LAYOUT_VERSION + 1


# ---------------------------------------------------------------- which maps hold the state
def test_the_maps_that_programs_use_are_the_chains() -> None:
    table = MAPS["ctt"]
    stray = table._replace(id=999)
    assert seen(pinned=without(MAPS, "ctt")).maps["ctt"] == table, "the pin is gone"
    assert seen(pinned={**MAPS, "ctt": stray}).maps["ctt"] == table, "another map stands at the pin"
    assert seen(used={**WHOLE.used, "ctt": [stray, table]}).maps["ctt"] == table, (
        "programs do not agree: the pin decides"
    )
    assert seen(used=without(WHOLE.used, "ctt")).maps["ctt"] == table, "no program uses it"
    assert "ctt" not in seen(pinned=without(MAPS, "ctt"), used=without(WHOLE.used, "ctt")).maps


def test_a_map_of_a_wrong_shape_is_not_handed_on() -> None:
    stray = MAPS["ctt"]._replace(id=999, value_size=8)
    assert "ctt" not in seen(pinned={**MAPS, "ctt": stray}, used=without(WHOLE.used, "ctt")).maps


def test_the_layout_where_meta_is_damaged_is_told_by_the_maps() -> None:
    nothing = dict.fromkeys(META, 0)
    assert seen(meta=nothing).layout == chain_layout.LAYOUT_VERSION
    assert (
        seen(meta=nothing, pinned={**MAPS, "ctt": MAPS["ctt"]._replace(value_size=8)}).layout == 0
    )


# ---------------------------------------------------------------- links
PROGRAMS = {0: program(0, 100), 1: program(1, 101), 3: program(3, 103)}


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (generation_links.Link(bpf.LinkInfo(77, 101, 5, bpf_constants.LINK_TYPE_XDP), True), []),
        (
            generation_links.Link(bpf.LinkInfo(77, 9, 5, bpf_constants.LINK_TYPE_XDP), True),
            ["link_program"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 103, 5, bpf_constants.LINK_TYPE_XDP), True),
            ["link_program"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 101, 0, bpf_constants.LINK_TYPE_XDP), False),
            ["link_stale"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 101, 5, bpf_constants.LINK_TYPE_XDP), False),
            ["link_moved"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 9, 5, bpf_constants.LINK_TYPE_XDP), False),
            ["link_moved", "link_program"],
        ),
        (generation_links.Link(None), ["link_foreign"]),
    ],
)
def test_links(link: generation_links.Link, expected: list[str]) -> None:
    faults = generation_links.judge_links({"eth0%2E7@ns1": link}, PROGRAMS)
    assert [fault.fault for fault in faults] == expected
    assert {fault.object for fault in faults} <= {"eth0.7@ns1"}


@pytest.mark.parametrize(
    ("link", "repairs"),
    [
        (
            generation_links.Link(bpf.LinkInfo(77, 101, 0, bpf_constants.LINK_TYPE_XDP)),
            ["ct detach eth0.7@ns1"],
        ),  # the interface is gone
        (
            generation_links.Link(
                bpf.LinkInfo(77, 101, 0, bpf_constants.LINK_TYPE_XDP), there=True, hook="egress"
            ),
            ["ct attach eth0.7@ns1 --program egress"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 9, 0, bpf_constants.LINK_TYPE_XDP), there=True),
            ["ct attach eth0.7@ns1 --program PROGRAM"],
        ),
        (
            generation_links.Link(
                bpf.LinkInfo(77, 9, 5, bpf_constants.LINK_TYPE_XDP), True, True, "ingress"
            ),
            ["ct load"],
        ),
        (
            generation_links.Link(bpf.LinkInfo(77, 9, 5, bpf_constants.LINK_TYPE_XDP), True, True),
            ["ct attach eth0.7@ns1 --program PROGRAM"],
        ),
    ],
)
def test_a_fault_of_a_link_names_the_command_that_repairs_it(
    link: generation_links.Link, repairs: list[str]
) -> None:
    assert [
        fault.repair for fault in generation_links.judge_links({"eth0%2E7@ns1": link}, PROGRAMS)
    ] == repairs


def test_each_kind_of_fault_says_what_repairs_it() -> None:
    assert all(diagnosis.Fault(name, "thing", "").repair for name in diagnosis.FAULTS)
    assert {
        diagnosis.Fault(name, "x", "").repair
        for name, kind in diagnosis.FAULTS.items()
        if kind.mend in ("generation", "write", "update")
    } == {"ct load"}


# ---------------------------------------------------------------- listening
class Traffic:
    """Both counts over time, in steps of one look.

    :ivar counted: what the chain has counted by each look; the last stays.
    :ivar received: likewise, what the interfaces received.
    """

    def __init__(self, counted: list[int], received: list[int]) -> None:
        self.looks, self.numbers = 0, (counted, received)

    def __call__(self, which: int) -> int:
        return self.numbers[which][min(self.looks, len(self.numbers[which]) - 1)]

    def wait(self, dummy: float) -> None:
        self.looks += 1

    def frames(self) -> int:
        return traffic.stands_still(lambda: self(0), lambda: self(1), self.wait)


def rising(start: int, step: int) -> list[int]:
    return list(itertools.islice(itertools.count(start, step), 400))


@pytest.mark.parametrize(
    ("counted", "received", "looks"),
    [
        (rising(5, 1), rising(7, 1), 1),  # all is well
        ([5], [7], 20),  # no traffic
        ([5, 5, 5, 6], [7], 3),  # the card is late
        ([5], [7, 7, 9], 170),  # the card tells of frames that were counted before
        (
            [5] * 30 + [6],
            [7] * 10 + [9] * 19 + [12],
            30,
        ),  # frames come in bursts, and the chain is late
        ([5] * 21 + [6], rising(7, 1), 21),
    ],
)
def test_a_chain_that_lives(counted: list[int], received: list[int], looks: int) -> None:
    traffic = Traffic(counted, received)
    assert traffic.frames() == 0
    assert traffic.looks == looks


def test_a_chain_that_is_dead() -> None:
    traffic = Traffic([5], rising(7, 2))
    assert traffic.frames() == 42 and traffic.looks <= 22
    assert Traffic([5], [7] * 20 + [8] * 99 + [9]).frames() == 2, "a card that tells once a second"


# ---------------------------------------------------------------- the whole
def test_what_a_run_mended() -> None:
    empty, unseen, stale = (
        diagnosis.Fault(name, name, "") for name in ("slot_empty", "frames_unseen", "link_stale")
    )
    assert diagnosis.mended([empty, unseen, stale], [stale]) == [empty.as_dict()]
    assert {kind.mend for kind in diagnosis.FAULTS.values()} == set(diagnosis.MENDS)
