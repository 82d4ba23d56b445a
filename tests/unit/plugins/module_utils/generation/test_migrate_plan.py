# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of each map in the next generation."""

from __future__ import annotations

import copy
import dataclasses
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import schema
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import migrate_plan
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants

INHERITED = {spec.name for spec in chain_maps.maps() if spec.inherited}
SIZE = 10240
HERE = schema.describe()


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "possible_cpus", lambda: 4)


def maps(*sizes: int) -> migrate_plan.Maps:
    return migrate_plan.wanted(3, "/sys/fs/bpf/gen/3", chain_maps.maps(*(sizes or (SIZE,) * 4)))


def of(
    layout: int, description: schema.Description | None, **infos: dict[str, t.Any]
) -> migrate_plan.Maps:
    """Maps of another layout, some of them with other facts."""
    known = description or HERE
    entries = {
        "frags": chain_maps.FRAG_QUEUES,
        **{name: len(names) for name, names in known["counters"].items()},
    }
    found = {
        name: bpf.MapInfo(
            1, bpf_constants.MAP_TYPES[kind], name, key, value, entries.get(name, SIZE), 0
        )
        for name, (kind, key, value) in known["maps"].items()
    }
    found.update({name: found[name]._replace(**changes) for name, changes in infos.items()})
    digest = schema.digest(description) if description and layout not in schema.KNOWN else 0
    return migrate_plan.Maps(3, "/sys/fs/bpf/gen/3", description, layout, digest, found)


def other(edit: t.Callable[[schema.Description], object]) -> schema.Description:
    there = copy.deepcopy(HERE)
    edit(there)
    return there


WIDER = other(lambda there: there["entry"].append(["colour", "I"]))
LAYOUT_1 = of(1, schema.KNOWN[1])


def test_the_same_is_handed_on() -> None:
    got = migrate_plan.decide(maps(), maps())
    assert got.shared == INHERITED and not got.goes_over and not got.empty


def test_events_go_on_where_both_have_them() -> None:
    plain, told = (
        maps(),
        migrate_plan.wanted(3, "/sys/fs/bpf/gen/3", chain_maps.maps(*(SIZE,) * 4, events=True)),
    )
    names = {spec.name for spec in chain_maps.EVENT_MAPS}
    assert migrate_plan.decide(told, told).shared == INHERITED | names
    for old, new in ((plain, told), (told, plain)):
        got = migrate_plan.decide(old, new)
        assert got.shared == INHERITED and not got.goes_over and not got.empty
    other_size = dataclasses.replace(
        told, infos={**told.infos, "events": told.infos["events"]._replace(max_entries=4096)}
    )
    assert migrate_plan.decide(other_size, told).shared == INHERITED
    resized = migrate_plan.wanted(
        3, "/sys/fs/bpf/gen/3", chain_maps.maps(2 * SIZE, SIZE, SIZE, SIZE, events=True)
    )
    assert migrate_plan.decide(told, resized).shared == (INHERITED - {"ctt"}) | names


def test_another_size_moves_that_table_alone() -> None:
    got = migrate_plan.decide(maps(), maps(2 * SIZE, SIZE, SIZE, SIZE))
    assert (got.moved, got.destinations, got.translated, got.reason) == (
        ("ctt",),
        ("ctt",),
        False,
        "another size",
    )
    assert got.shared == INHERITED - {"ctt"} and not got.counts


def test_other_counters_are_added_by_name() -> None:
    old = maps()
    names = {
        "stats": [*chain_counters.COUNTERS[:7], "retired"],
        "deletions": list(chain_counters.DELETIONS),
    }
    there = {**HERE, "counters": names}
    infos = {**old.infos, "stats": old.infos["stats"]._replace(max_entries=8)}
    got = migrate_plan.decide(dataclasses.replace(old, description=there, infos=infos), maps())
    assert (got.counters, got.moved) == (("stats",), ()) and got.shared == INHERITED - {"stats"}


def test_counters_whose_names_nobody_knows_start_anew() -> None:
    old = maps()
    infos = {**old.infos, "stats": old.infos["stats"]._replace(max_entries=7)}
    got = migrate_plan.decide(dataclasses.replace(old, infos=infos), maps())
    assert (got.counters, got.empty) == ((), ("stats",))


@pytest.mark.parametrize("policy", ["fail", "migrate"])
def test_layout_1_is_known(policy: str) -> None:
    got = migrate_plan.decide(LAYOUT_1, maps(), policy)
    assert (got.moved, got.translated, got.counters) == (
        ("ctt", "ctt6"),
        False,
        ("stats", "deletions"),
    )
    assert set(got.destinations) == {"ctt", "ctt_new", "ctt6", "ctt6_new"} and got.shared == {
        "frags"
    }
    assert got.counts, "all of them could be of one kind"


@pytest.mark.parametrize(
    "layout",
    [chain_layout.LAYOUT_VERSION, chain_layout.LAYOUT_VERSION + 1],
    ids=["the same version", "another version"],
)
def test_another_layout_by_policy(layout: int) -> None:
    old = of(layout, WIDER)
    with pytest.raises(ConntrackError) as raised:
        migrate_plan.decide(old, maps())
    for told in (
        f"layout {layout} ",
        f"layout {chain_layout.LAYOUT_VERSION} ",
        "entry colour is gone",
        "migrate",
        "drop",
        "fail, the default",
        "Nothing was changed",
    ):
        assert told in raised.value.message
    got = migrate_plan.decide(old, maps(), "migrate")
    assert got.translated and got.moved == ("ctt_new", "ctt", "ctt6_new", "ctt6")
    got = migrate_plan.decide(old, maps(), "drop")
    assert got.forgotten and set(got.empty) == INHERITED and not got.goes_over and got.counts


def test_drop_drops_nothing_of_the_same_layout() -> None:
    assert migrate_plan.decide(maps(), maps(), "drop").shared == INHERITED


def test_what_has_no_description_can_not_be_translated() -> None:
    old = dataclasses.replace(of(9, None), digest=7)
    with pytest.raises(
        ConntrackError,
        match="layout 9 .*it does not tell what they are made of.*Nothing was changed",
    ):
        migrate_plan.decide(old, maps())
    with pytest.raises(ConntrackError, match="layout 9 and no description"):
        migrate_plan.decide(old, maps(), "migrate")
    assert migrate_plan.decide(old, maps(), "drop").forgotten


def test_a_map_that_is_not_what_it_should_be_is_named() -> None:
    old = of(
        1, schema.KNOWN[1], ctt={"kind": bpf_constants.MAP_TYPES["array"], "key_size": 4, "id": 77}
    )
    for policy in ("fail", "migrate"):
        with pytest.raises(
            ConntrackError,
            match=(
                r"gen/3/map/ctt \(map 77, ctt\) is a array with keys of 4 .* not a lru_hash with 16"
                r" and 112"
            ),
        ):
            migrate_plan.decide(old, maps(), policy)
    assert migrate_plan.decide(old, maps(), "drop").forgotten


def test_nothing_is_left_of_the_old_maps() -> None:
    got = migrate_plan.decide(migrate_plan.Maps(3, "", None, 0, 0, {}), maps())
    assert not got.goes_over and not got.shared and not got.empty


@pytest.mark.parametrize(
    ("entries", "room"), [(65536, 65536 - 4 * 128), (1024, 1024 - 4 * 128), (64, 32), (16, 8)]
)
def test_room_is_what_one_cpu_surely_gets(entries: int, room: int) -> None:
    got = migrate_plan.decide(maps(), maps(entries, SIZE, SIZE, SIZE))
    assert got.room("ctt") == room


def census(**flows: dict[tuple[bool, int], int]) -> migrate_plan.Census:
    return migrate_plan.Census(flows)


def test_what_can_not_be_kept_is_told_before() -> None:
    got = migrate_plan.decide(maps(), maps(1024, SIZE, SIZE, SIZE))
    assert got.counts
    full = census(ctt={(False, 3): 400, (True, 3): 200})
    assert got.dropped(full) == {"ctt": 88}
    assert got.warnings(full) == [
        "ctt: 88 of 600 flows can not be kept, there is room for 512: the assured and latest ones"
        " are kept."
    ]
    assert got.warnings(census(ctt={(False, 3): 500})) == [
        "ctt: 500 flows will fill 98% of the room that there is."
    ]
    assert got.warnings(census(ctt={(False, 3): 400})) == [] == got.warnings(census())


def test_what_is_forgotten_is_told_before() -> None:
    got = migrate_plan.decide(of(9, WIDER), maps(), "drop")
    flows = census(ctt={(False, 3): 400}, ctt6_new={(True, 0): 7})
    assert got.dropped(flows) == {"ctt": 400, "ctt6_new": 7}
    assert got.warnings(flows) == [
        "407 flows are forgotten: the tables' layout changes and on_schema_change is drop."
    ]
    assert got.warnings(census()) == []


def test_the_assured_and_latest_are_kept() -> None:
    flows = {(True, 0): 4, (False, 100): 3, (False, 7): 2, (True, 9): 5}
    assert migrate_plan.cutoff(flows, 14) is None
    assert migrate_plan.cutoff(flows, 13) == ((True, 9), 4)
    assert migrate_plan.cutoff(flows, 9) == ((True, 0), 4)
    assert migrate_plan.cutoff(flows, 4) == ((False, 100), 2)
    assert migrate_plan.cutoff(flows, 0) == ((False, 7), 0)
    assert migrate_plan.cutoff(flows, -3) == ((False, 7), 0)
