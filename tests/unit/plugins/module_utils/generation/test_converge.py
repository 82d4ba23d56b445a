# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned from what is found; the kernel is not asked."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    diagnosis,
    migrate_plan,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, bpf_constants, bpffs

PATHS = bpffs.Paths("/sys/fs/bpf")
WANT = generation.Want("the sources", {"include/a.h": "a header"}, 65536)
SETTINGS = chain_settings.settings_value(250, {}, {})
EMPTY = diagnosis.Fault("slot_empty", "jt[3]", "slot 3 (ct) is empty")


def program(slot: int, number: int) -> bpf.ProgInfo:
    name = next(name for name, at in chain_programs.SLOTS.items() if at == slot)
    return bpf.ProgInfo(number, bpf_constants.PROG_TYPE_XDP, name, "ab" * 8, 100, 0, 0, (), 0)


def found(**changes: t.Any) -> generation.Have:
    """What a whole generation 3 of WANT looks like, but for the changes."""
    specs = chain_maps.maps(WANT.table_size, WANT.table_size6)
    whole = generation.Have(
        generation=3,
        digest=WANT.digest,
        layout=chain_layout.LAYOUT_VERSION,
        settings=SETTINGS,
        programs={slot: program(slot, 100 + slot) for slot in chain_programs.SLOTS.values()},
        maps={
            spec.name: bpf.MapInfo(
                200 + number,
                bpf_constants.MAP_TYPES[spec.kind],
                spec.name,
                spec.key_size,
                spec.value_size,
                spec.entries or 0,
                0,
            )
            for number, spec in enumerate(specs)
        },
        since="2026-01-01T00:00:00Z",
        state=generation.State(3, WANT.made_of, (3,)),
    )
    return dataclasses.replace(whole, **changes)


def link(prog_id: int, ifindex: int = 5) -> bpf.LinkInfo:
    return bpf.LinkInfo(77, prog_id, ifindex, bpf_constants.LINK_TYPE_XDP)


def kept(number: int, **changes: t.Any) -> generation.Generation:
    return dataclasses.replace(
        generation.Generation(number, f"{number:032x}", since="2025-01-01T00:00:00Z"), **changes
    )


def short(
    have: generation.Have, want: generation.Want = WANT, settings: bytes = SETTINGS, keep: int = 0
) -> list[tuple[str, str, str]]:
    return [
        (step.action, step.kind, step.name)
        for step in generation.plan_present(have, want, settings, generation.Policy(keep))
    ]


NOTHING = generation.Have(no_paths=tuple(PATHS.seed_links()))
OTHER = dataclasses.replace(WANT, text="other sources")
PATH_STEPS = [("create", "path", "/sys/fs/bpf/prog"), ("create", "path", "/sys/fs/bpf/map")]


# ---------------------------------------------------------------- present
def test_nothing_is_there() -> None:
    assert short(NOTHING) == [
        ("load", "generation", "1"),
        ("activate", "generation", "1"),
        *PATH_STEPS,
    ]


def test_all_is_as_wanted() -> None:
    assert short(found()) == []


def test_other_sources() -> None:
    assert short(found(), OTHER) == [
        ("load", "generation", "4"),
        ("activate", "generation", "4"),
        ("delete", "generation", "3"),
    ]


def test_a_changed_header_counts_too() -> None:
    assert short(found(), dataclasses.replace(WANT, headers={"include/a.h": "another header"}))[
        0
    ] == ("load", "generation", "4")


def test_other_settings_change_one_map() -> None:
    (step,) = generation.plan_present(
        found(), WANT, chain_settings.settings_value(250, {"udp": 7}, {})
    )
    assert (step.action, step.kind, step.name) == ("change", "map", "settings")
    assert "udp=30," in step.before and "udp=7," in step.after


def test_settings_of_an_older_release() -> None:
    (step,) = generation.plan_present(found(settings=bytes(80)), WANT, SETTINGS)
    assert step.before == "80 bytes"


def test_interfaces_go_to_the_new_generation_before_it_is_active() -> None:
    links = {
        "eth0%2E7": (link(100), "ingress"),
        "b@ns1": (link(101), "egress"),
        "gone": (link(100, ifindex=0), "ingress"),
        "foreign": (link(9), None),
    }
    steps = generation.plan_present(found(links=links), OTHER, SETTINGS, generation.Policy(0))
    assert [(step.action, step.name) for step in steps] == [
        ("load", "4"),
        ("replace", "eth0.7"),
        ("replace", "b@ns1"),
        ("activate", "4"),
        ("delete", "3"),
    ]
    assert [step.args for step in steps[1:3]] == [(4, "eth0%2E7"), (4, "b@ns1")]


def test_an_interface_of_another_generation_is_taken_back() -> None:
    links = {"eth0": (link(100), "ingress"), "eth1": (link(900), "ingress")}
    assert short(found(links=links, leftovers=("4",))) == [
        ("replace", "link", "eth1"),
        ("delete", "generation", "4"),
    ]


def legacy(
    want: generation.Want,
    policy: str = "fail",
    flows: t.Mapping[str, t.Any] | None = None,
    **old: t.Any,
) -> migrate_plan.Legacy:
    """What generation 4 gets of generation 3, which is as this release makes it but for ``old``."""
    there = dataclasses.replace(migrate_plan.wanted(3, "/sys/fs/bpf/gen/3", WANT.maps), **old)
    inherited = migrate_plan.decide(
        there, migrate_plan.wanted(4, "/sys/fs/bpf/gen/4", want.maps), policy
    )
    return migrate_plan.Legacy(inherited, migrate_plan.Census(flows or {}))


def test_another_size_moves_the_flows_to_what_is_active_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bpf, "possible_cpus", lambda: 4)
    links = {"eth0": (link(100), "ingress")}
    want = dataclasses.replace(OTHER, table_size=1024)
    steps = generation.plan_present(
        found(links=links), want, SETTINGS, legacy=legacy(want, flows={"ctt": {(True, 3): 600}})
    )
    assert [step.action for step in steps] == ["load", "activate", "replace", "move"]
    assert (steps[3].kind, steps[3].name, steps[3].before, steps[3].after) == (
        "map",
        "ctt",
        "ctt: 65536 entries",
        "ctt: 1024 entries",
    )
    assert (
        steps[3].reason
        == "another size: what they hold is taken over; 88 flows of ctt can not be kept"
    )
    dropped, warnings = generation.outlook(steps)
    assert dropped == {"ctt": 88} and len(warnings) == 1


def test_what_starts_empty_is_a_step_of_its_own() -> None:
    infos = dict(migrate_plan.wanted(3, "", WANT.maps).infos)
    infos["stats"] = infos["stats"]._replace(max_entries=7)
    steps = generation.plan_present(found(), OTHER, SETTINGS, legacy=legacy(OTHER, infos=infos))
    assert [(step.action, step.name) for step in steps[:3]] == [
        ("load", "4"),
        ("change", "stats"),
        ("activate", "4"),
    ]
    assert "starts empty" in steps[1].reason and steps[1].before == "7 entries"


def test_what_is_forgotten_is_a_step_of_its_own() -> None:
    steps = generation.plan_present(
        found(), OTHER, SETTINGS, legacy=legacy(OTHER, "drop", {"ctt": {(True, 3): 600}}, layout=9)
    )
    assert (steps[1].action, steps[1].before, steps[1].after) == ("change", "600 flows", "0 flows")
    assert "forgotten" in steps[1].reason and generation.outlook(steps)[0] == {"ctt": 600}


def test_faults_are_the_reason_for_a_new_generation() -> None:
    lost = diagnosis.Fault("pin_missing", "prog/xdp_3", "the pin of ct is missing")
    step = generation.plan_present(found(faults=(EMPTY, lost)), WANT, SETTINGS)[0]
    assert (step.action, step.name, step.reason) == (
        "load",
        "4",
        "slot 3 (ct) is empty; the pin of ct is missing",
    )


@pytest.mark.parametrize(
    "name", [name for name, kind in diagnosis.FAULTS.items() if kind.mend != "generation"]
)
def test_no_generation_is_built_for_what_it_does_not_mend(name: str) -> None:
    assert short(found(faults=(diagnosis.Fault(name, "", ""),))) == []


def test_what_killed_runs_left_goes_and_their_numbers_are_not_used_again() -> None:
    assert short(found(leftovers=("2", "5_new"))) == [
        ("delete", "generation", "2"),
        ("delete", "generation", "5_new"),
    ]
    steps = short(dataclasses.replace(NOTHING, leftovers=("7", "8_new")))
    assert steps[0] == ("load", "generation", "9") and steps[-2:] == [
        ("delete", "generation", "7"),
        ("delete", "generation", "8_new"),
    ]


def test_missing_paths_alone_need_no_compiler() -> None:
    assert short(found(no_paths=NOTHING.no_paths)) == PATH_STEPS


def test_deletions_come_last() -> None:
    links = {"eth0": (link(100), "ingress")}
    actions = [
        action
        for action, dummy, dummy in short(
            found(links=links, leftovers=("2",), no_paths=NOTHING.no_paths), OTHER
        )
    ]
    assert actions == ["load", "replace", "activate", "create", "create", "delete", "delete"]


def test_another_layout_matters_to_a_new_generation_alone() -> None:
    assert short(found(layout=9)) == []


# ---------------------------------------------------------------- what is kept, what is written dow
@pytest.mark.parametrize(
    ("keep", "gone"),
    [(0, ["3", "2", "1"]), (1, ["2", "1"]), (2, ["1"]), (3, []), (16, [])],
)
def test_the_last_good_generations_are_kept(keep: int, gone: list[str]) -> None:
    have = found(kept=(kept(2), kept(1)), state=generation.State(3, WANT.made_of, (1, 2, 3)))
    assert [
        name for action, dummy, name in short(have, OTHER, keep=keep) if action == "delete"
    ] == gone


def test_fewer_are_kept_without_a_new_one() -> None:
    have = found(kept=(kept(2), kept(1)))
    assert short(have, keep=2) == []
    assert short(have, keep=1) == [("delete", "generation", "1")]


def test_a_generation_that_is_not_whole_is_not_kept() -> None:
    have = found(kept=(kept(2, faults=(EMPTY,)), kept(1)))
    steps = generation.plan_present(have, WANT, SETTINGS, generation.Policy(1))
    assert [(step.name, step.reason) for step in steps] == [("2", "slot 3 (ct) is empty")]
    broken = dataclasses.replace(
        have, faults=(diagnosis.Fault("pin_missing", "prog/xdp_3", "the pin of ct is missing"),)
    )
    assert [name for action, dummy, name in short(broken, keep=1) if action == "delete"] == [
        "3",
        "2",
    ]


def test_what_was_rolled_back_from_goes() -> None:
    have = found(kept=(kept(5), kept(4), kept(2)))
    assert [one.number for one in have.rejected] == [5, 4] and [
        one.number for one in have.earlier
    ] == [2]
    assert short(have, keep=1) == [("delete", "generation", "5"), ("delete", "generation", "4")]
    assert short(have, OTHER, keep=1)[0] == ("load", "generation", "6")


@pytest.mark.parametrize(
    "state",
    [
        generation.State(),
        generation.State(2, WANT.made_of, (3,)),
        generation.State(3, None, ()),
        generation.State(3, OTHER.made_of, (3,)),
    ],
)
def test_what_is_not_written_down_is_written_again(state: generation.State) -> None:
    assert short(found(state=state)) == [("change", "manifest", "3")]
    assert ("change", "manifest", "3") not in short(found(state=state), OTHER), (
        "the new one's is written with it"
    )


def test_settings_are_written_down_with_their_change() -> None:
    want = dataclasses.replace(WANT, timeouts={"udp": 7})
    assert short(found(), want, chain_settings.settings_value(250, {"udp": 7}, {})) == [
        ("change", "map", "settings")
    ]


def test_files_of_generations_that_are_gone_go() -> None:
    state = generation.State(3, WANT.made_of, (1, 2, 3, 9), ("4.json.new",))
    assert short(found(state=state, kept=(kept(2),)), keep=1) == [
        ("delete", "manifest", name) for name in ("1.json", "9.json", "4.json.new")
    ]
    after_a_reboot = dataclasses.replace(NOTHING, state=state)
    assert short(after_a_reboot)[0] == ("load", "generation", "10")
    assert [name for action, dummy, name in short(after_a_reboot) if action == "delete"] == [
        "1.json",
        "2.json",
        "3.json",
        "9.json",
        "4.json.new",
    ]
    assert len(generation.plan_absent(after_a_reboot)) == 5


# ---------------------------------------------------------------- rolled back
def earlier(number: int = 2, **changes: t.Any) -> generation.Generation:
    """A kept generation with programs of its own, and with the flow tables of the active one."""
    programs = {slot: program(slot, 1000 * number + slot) for slot in chain_programs.SLOTS.values()}
    return kept(
        number,
        **{
            "layout": chain_layout.LAYOUT_VERSION,
            "programs": programs,
            "maps": found().maps,
            **changes,
        },
    )


def back(have: generation.Have, number: int | None = None) -> list[tuple[str, str, str]]:
    return [
        (step.action, step.kind, step.name) for step in generation.plan_rolled_back(have, number)
    ]


def refusal(have: generation.Have, number: int | None = None) -> str:
    with pytest.raises(ConntrackError) as raised:
        generation.plan_rolled_back(have, number)
    return raised.value.message


def test_going_back() -> None:
    links = {"eth0": (link(100), "ingress"), "eth1": (link(2000), "ingress")}
    assert back(found(kept=(earlier(2), earlier(1)), links=links)) == [
        ("prove", "generation", "2"),
        ("replace", "link", "eth0"),
        ("activate", "generation", "2"),
    ]


def test_going_back_to_a_table_of_its_own() -> None:
    have = found(kept=(earlier(2),), links={"eth0": (link(100), "ingress")})
    old = dataclasses.replace(
        migrate_plan.wanted(3, "/sys/fs/bpf/gen/3", WANT.maps), infos=have.maps
    )
    infos = {**have.maps, "ctt": have.maps["ctt"]._replace(id=999, max_entries=131072)}
    inherited = migrate_plan.decide(old, dataclasses.replace(old, number=2, infos=infos), "migrate")
    steps = generation.plan_rolled_back(have, legacy=migrate_plan.Legacy(inherited))
    assert [step.action for step in steps] == ["prove", "activate", "replace", "move"]
    assert (steps[3].name, steps[3].before, steps[3].after) == (
        "ctt",
        "ctt: 65536 entries",
        "ctt: 131072 entries",
    )
    assert inherited.shared == {spec.name for spec in chain_maps.maps() if spec.inherited} - {"ctt"}


def test_gone_back_already() -> None:
    have = found(kept=(earlier(4), earlier(2)))
    assert back(have) == back(have, 3) == []
    assert back(have, 2)[0] == ("prove", "generation", "2") and back(have, 4)[0] == (
        "prove",
        "generation",
        "4",
    )
    mended = found(
        kept=(earlier(4),),
        state=generation.State(4, None, (3, 4), ("x.new",)),
        links={"eth0": (link(4000), "ingress")},
        leftovers=("5",),
        no_paths=NOTHING.no_paths,
    )
    assert back(mended) == [
        ("change", "manifest", "3"),
        ("replace", "link", "eth0"),
        *PATH_STEPS,
        ("delete", "generation", "5"),
        ("delete", "manifest", "x.new"),
    ]


def test_the_last_good_one_is_gone_back_to() -> None:
    broken = earlier(2, faults=(EMPTY,))
    assert back(found(kept=(broken, earlier(1))))[0] == ("prove", "generation", "1")
    assert refusal(found(kept=(broken,))).startswith(
        "generation 2 can not take over: slot 3 (ct) is empty. Kept are: generation 2, "
    )
    assert refusal(found(kept=(broken, earlier(1))), 2).startswith(
        "generation 2 can not take over: slot 3 (ct) is empty. Kept are: "
    )


def test_nothing_to_go_back_to() -> None:
    assert refusal(NOTHING) == "no chain is loaded, so there is nothing to go back from."
    assert refusal(found()).startswith(
        "there is no generation before 3 to go back to: none is kept; the option keep "
    )
    assert (
        refusal(found(kept=(kept(2),)), 1)
        == f"generation 1 is not pinned: kept are: generation 2, digest {2:032x}, active since"
        " 2025-01-01T00:00:00Z."
    )


# ---------------------------------------------------------------- absent
def test_nothing_to_take_away() -> None:
    assert generation.plan_absent(NOTHING) == []


def test_taking_away() -> None:
    have = found(leftovers=("2",), links={"gone@ns1": (link(100, ifindex=0), "ingress")})
    steps = generation.plan_absent(have)
    assert [(step.action, step.kind, step.name) for step in steps] == [
        ("delete", "link", "gone@ns1"),
        ("delete", "generation", "3"),
        ("delete", "generation", "2"),
    ]
    assert all(step.after is None for step in steps)


def test_taking_away_is_refused_while_attached() -> None:
    with pytest.raises(
        ConntrackError, match=r"^the chain is attached to eth0\.7, b@ns1: detach it first"
    ):
        generation.plan_absent(
            found(links={"eth0%2E7": (link(100), "ingress"), "b@ns1": (link(5), None)})
        )


# ---------------------------------------------------------------- input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeouts": {"udp": 0}}, "timeouts.udp: 0 is not valid: give 1 to 2147482 seconds."),
        (
            {"timeouts": {"tcp_established": 2147483}},
            "timeouts.tcp_established: 2147483 is not valid: give 1 to 2147482 seconds.",
        ),
        (
            {"timeouts": {"sctp": 5}},
            f"timeouts: 'sctp' is not valid: known are {', '.join(chain_settings.TIMEOUTS)}.",
        ),
        (
            {"knobs": {"tcp_max_retrans": 256}},
            "settings.tcp_max_retrans: 256 is not valid: give 1 to 255.",
        ),
        ({"knobs": {"tcp_loose": 2}}, "settings.tcp_loose: 2 is not valid: give 0 to 1."),
        ({"keep": 17}, "keep: 17 is not valid: give 0 to 16 generations."),
        ({"keep": -1}, "keep: -1 is not valid: give 0 to 16 generations."),
        (
            {"knobs": {"nf_x": 1}},
            f"settings: 'nf_x' is not valid: known are {', '.join(chain_settings.KNOBS)}.",
        ),
    ],
)
def test_bad_values(changes: dict[str, t.Any], message: str) -> None:
    policy = generation.Policy(changes.get("keep", 1))
    with pytest.raises(ConntrackError) as raised:
        generation.check(
            dataclasses.replace(
                WANT, **{name: value for name, value in changes.items() if name != "keep"}
            ),
            policy,
        )
    assert raised.value.message == message


def test_every_timeout_fits_at_the_highest_tick_rate() -> None:
    low, high = 1, 2147482
    generation.check(
        dataclasses.replace(WANT, timeouts=dict.fromkeys(chain_settings.TIMEOUTS, high))
    )
    hz, timeouts, dummy = chain_settings.settings_of(
        chain_settings.settings_value(1000, dict.fromkeys(chain_settings.TIMEOUTS, high), {})
    )
    assert set(timeouts.values()) == {high} and hz * high < 1 << 31
    generation.check(
        dataclasses.replace(
            WANT, timeouts=dict.fromkeys(chain_settings.TIMEOUTS, low), knobs=chain_settings.KNOBS
        )
    )


def test_the_digest_covers_all_that_is_compiled() -> None:
    texts = [
        WANT,
        OTHER,
        dataclasses.replace(WANT, headers={}),
        dataclasses.replace(WANT, headers={"include/b.h": "a header"}),
    ]
    digests = [want.digest for want in texts]
    assert len(set(digests)) == len(digests) and all(len(digest) == 32 for digest in digests)
    assert dataclasses.replace(WANT, timeouts={"udp": 5}).digest == WANT.digest


# ---------------------------------------------------------------- output
def test_facts() -> None:
    facts = generation.facts(found(faults=(EMPTY,)), PATHS)
    assert (facts["generation"], facts["healthy"]) == (3, False)
    assert facts["faults"] == [
        {
            "fault": "slot_empty",
            "object": "jt[3]",
            "detail": "slot 3 (ct) is empty",
            "repair": "ct load",
        }
    ]
    assert facts["programs"][0] == {
        "slot": 0,
        "name": "ingress",
        "id": 100,
        "tag": "ab" * 8,
        "pin": "/sys/fs/bpf/prog/xdp_0",
    }
    (ctt,) = (entry for entry in facts["maps"] if entry["name"] == "ctt")
    assert (ctt["type"], ctt["max_entries"], ctt["pin"]) == (
        "lru_hash",
        65536,
        "/sys/fs/bpf/map/ctt",
    )
    assert facts["settings"] == {
        "hz": 250,
        "timeouts": chain_settings.TIMEOUTS,
        **chain_settings.KNOBS,
    }
    assert (facts["since"], facts["kept"]) == ("2026-01-01T00:00:00Z", [])


def test_facts_of_what_is_kept() -> None:
    older = {"digest": f"{2:032x}", "since": "2025-01-01T00:00:00Z", "faults": []}
    assert generation.facts(found(kept=(kept(4), kept(2))), PATHS)["kept"] == [
        {**older, "generation": 4, "digest": f"{4:032x}", "rejected": True},
        {**older, "generation": 2, "rejected": False},
    ]


def test_facts_of_nothing() -> None:
    facts = generation.facts(NOTHING, PATHS)
    assert facts == {
        "generation": None,
        "digest": None,
        "healthy": False,
        "faults": [],
        "pin_root": "/sys/fs/bpf",
        "programs": [],
        "maps": [],
        "settings": {},
        "since": None,
        "kept": [],
    }
