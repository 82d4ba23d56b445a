# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault that has a name is made for real: it is named, also in check mode, the next run mends
it, the one after that does nothing, and no flow is lost.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import dataclasses
import os
import socket
import subprocess
import threading
import time
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import layout as chain_layout
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import diagnosis
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    bpf,
    bpf_constants,
    netdev,
)
from ansible_collections.ebpf.conntrack.tests.e2e.support.waits import within
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    U32,
    U64,
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)

__all__ = ["made", "rendered", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FLOWS = 30


@pytest.fixture
def running(made: Chain, veth: None, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A chain with flows, attached to ``left``."""
    made.ensure()
    made.send(*(udp_frame(4000 + number) for number in range(FLOWS)))
    made.interface()
    return made


def bpftool(*argv: str) -> None:
    subprocess.run(["bpftool", *argv], check=True)


def pin(made: Chain, name: str) -> str:
    """The path of a pin of the active generation."""
    return os.path.join(made.paths.gen_dir(t.cast("int", made.observe().generation)), name)


def put(path: str, fd: int) -> None:
    """Pin something else in the place of what is there."""
    os.unlink(path)
    with bpf.closing(fd):
        bpf.obj_pin(fd, path)


def passing(name: str = "stranger", attach_type: int = bpf_constants.ATTACH_XDP) -> int:
    return bpf.prog_load(bpf.xdp_pass_insns(), name, attach_type=attach_type)


def another(made: Chain, name: str, **changes: t.Any) -> int:
    """A map like that of the chain, but for the changes, and empty."""
    info = made.observe().maps[name]._replace(**changes)
    return bpf.map_create(info.kind, info.name, info.key_size, info.value_size, info.max_entries)


# ---------------------------------------------------------------- what is done to it
def empty_the_jump_table(made: Chain) -> None:
    for slot in chain_programs.SLOTS.values():
        bpftool("map", "delete", "pinned", pin(made, "map/jt"), "key", str(slot), "0", "0", "0")


def empty_one_slot(made: Chain) -> None:
    bpftool(
        "map",
        "delete",
        "pinned",
        pin(made, "map/jt"),
        "key",
        str(chain_programs.SLOTS["ct"]),
        "0",
        "0",
        "0",
    )


def fill_a_slot_with_another_program(made: Chain) -> None:
    with bpf.closing(bpf.obj_get(pin(made, "map/jt"))) as jt, bpf.closing(passing()) as program:
        bpf.map_update(jt, U32.pack(chain_programs.SLOTS["ct"]), U32.pack(program))


def pin_a_program_of_another_attach_type(made: Chain) -> None:
    put(pin(made, "prog/xdp_3"), passing(attach_type=0))


def lose(*names: str) -> c.Callable[[Chain], None]:
    def damage(made: Chain) -> None:
        for path in [pin(made, name) for name in names]:
            os.unlink(path)

    return damage


def pin_a_map_as_program(made: Chain) -> None:
    put(pin(made, "prog/xdp_3"), another(made, "ctt"))


def pin_a_program_as_table(made: Chain) -> None:
    put(pin(made, "map/ctt"), passing())


def make_a_directory_in_the_place_of_a_program(made: Chain) -> None:
    path = pin(made, "prog/xdp_11")
    os.unlink(path)
    os.mkdir(path)


def pin_another_table(made: Chain) -> None:
    put(pin(made, "map/ctt_new"), another(made, "ctt_new"))


def pin_another_table_of_another_shape(made: Chain) -> None:
    put(pin(made, "map/ctt"), another(made, "ctt", value_size=8))


def forget_in_meta(made: Chain) -> None:
    for key in chain_maps.META.values():
        bpftool(
            "map",
            "update",
            "pinned",
            pin(made, "map/meta"),
            "key",
            str(key),
            "0",
            "0",
            "0",
            "value",
            *"00000000",
        )


def set_the_clock_ahead(made: Chain) -> None:
    with bpf.closing(bpf.obj_get(pin(made, "map/meta"))) as fd:
        bpf.map_update(
            fd, U32.pack(chain_maps.META["ktime_ns"]), U64.pack(time.monotonic_ns() + (1 << 40))
        )


def overwrite_settings(value: bytes) -> c.Callable[[Chain], None]:
    def damage(made: Chain) -> None:
        with bpf.closing(bpf.obj_get(pin(made, "map/settings"))) as fd:
            bpf.map_update(fd, U32.pack(0), value)

    return damage


def lose_the_link_to_the_active_generation(made: Chain) -> None:
    os.unlink(made.paths.active)


def let_the_link_lead_nowhere(made: Chain) -> None:
    os.unlink(made.paths.active)
    os.symlink("gen/77", made.paths.active)


def lose_a_path(made: Chain) -> None:
    os.unlink(made.paths.seed_map)


def run_a_stranger_in_the_link(made: Chain) -> None:
    with (
        bpf.closing(bpf.obj_get(made.paths.link(None, "left"))) as link,
        bpf.closing(passing()) as program,
    ):
        bpf.link_update(link, program)


def run_an_older_generation_in_the_link(made: Chain) -> None:
    with (
        bpf.closing(bpf.obj_get(made.paths.link(None, "left"))) as link,
        bpf.closing(passing("ingress")) as program,
    ):
        bpf.link_update(link, program)


def detach_the_link(made: Chain) -> None:
    bpftool("link", "detach", "pinned", made.paths.link(None, "left"))


def make_the_interface_anew(made: Chain) -> None:
    subprocess.run(["ip", "link", "del", "left"], check=True)
    subprocess.run(
        ["ip", "link", "add", "left", "type", "veth", "peer", "name", "right"], check=True
    )


SLOT = f"jt[{chain_programs.SLOTS['ct']}]"
NO_TABLES = chain_settings.SETTINGS_STRUCT.pack(
    *[0] * len(chain_states.TCP_ROWS),
    *chain_settings.SETTINGS_STRUCT.unpack(
        chain_settings.settings_value(chain_jiffies.hz(), {}, {})[
            : chain_settings.SETTINGS_STRUCT.size
        ]
    )[len(chain_states.TCP_ROWS) :],
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is done to the chain.

    :ivar faults: what is named, as (fault, object).
    :ivar mender: the module whose run mends it.
    """

    damage: c.Callable[[Chain], None]
    faults: set[tuple[str, str]]
    mender: str = "xdp_program"


CASES = {
    "jt emptied": Case(
        empty_the_jump_table,
        {("slot_empty", f"jt[{slot}]") for slot in chain_programs.SLOTS.values()},
    ),
    "one slot emptied": Case(empty_one_slot, {("slot_empty", SLOT)}),
    "foreign slot": Case(fill_a_slot_with_another_program, {("slot_foreign", SLOT)}),
    "mixed attach types": Case(
        pin_a_program_of_another_attach_type,
        {("slot_foreign", SLOT), ("attach_type", "prog/xdp_3")},
    ),
    "program unpinned": Case(lose("prog/xdp_3"), {("pin_missing", "prog/xdp_3")}),
    "tables unpinned": Case(
        lose("map/ctt", "map/ctt_new"), {("pin_missing", "map/ctt"), ("pin_missing", "map/ctt_new")}
    ),
    "counters unpinned": Case(
        lose("map/stats", "map/settings", "map/meta"),
        {("pin_missing", f"map/{name}") for name in ("stats", "settings", "meta")},
    ),
    "map for a program": Case(pin_a_map_as_program, {("pin_foreign", "prog/xdp_3")}),
    "program for a map": Case(pin_a_program_as_table, {("pin_foreign", "map/ctt")}),
    "directory for a program": Case(
        make_a_directory_in_the_place_of_a_program, {("pin_foreign", "prog/xdp_11")}
    ),
    "another table": Case(pin_another_table, {("map_replaced", "map/ctt_new")}),
    "another table of another shape": Case(
        pin_another_table_of_another_shape, {("map_replaced", "map/ctt"), ("map_shape", "map/ctt")}
    ),
    "meta zeroed": Case(forget_in_meta, {("meta_damaged", "map/meta")}),
    "clock ahead": Case(set_the_clock_ahead, {("meta_damaged", "map/meta")}),
    "settings zeroed": Case(
        overwrite_settings(bytes(chain_settings.SETTINGS_BYTES)),
        {("settings_damaged", "map/settings")},
    ),
    "settings without tables": Case(
        overwrite_settings(NO_TABLES.ljust(chain_settings.SETTINGS_BYTES, b"\0")),
        {("settings_damaged", "map/settings")},
    ),
    "active lost": Case(
        lose_the_link_to_the_active_generation, {("active_missing", "ebpf_conntrack/active")}
    ),
    "active dangling": Case(
        let_the_link_lead_nowhere, {("active_missing", "ebpf_conntrack/active")}
    ),
    "path lost": Case(lose_a_path, {("path_missing", "map")}),
    "older generation in the link": Case(
        run_an_older_generation_in_the_link, {("link_program", "left")}
    ),
    "stranger in the link": Case(
        run_a_stranger_in_the_link, {("link_program", "left")}, "xdp_attach"
    ),
    "link detached": Case(detach_the_link, {("link_stale", "left")}, "xdp_attach"),
    "interface made anew": Case(make_the_interface_anew, {("link_stale", "left")}, "xdp_attach"),
}


def attached(made: Chain, check_mode: bool = False) -> dict[str, t.Any]:
    """What xdp_attach returns."""
    return attach.converge(
        "present",
        [{"name": "left", "program": "ingress"}],
        "native",
        False,
        made.paths.pin_root,
        check_mode,
    )[0]


def named(made: Chain, faults: c.Iterable[diagnosis.Fault]) -> set[tuple[str, str]]:
    """Faults without words, paths below the pin root."""
    return {(fault.fault, fault.object.replace(f"{made.paths.pin_root}/", "")) for fault in faults}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named_and_mended(
    running: Chain, name: str, figure: c.Callable[[str, object], None]
) -> None:
    case = CASES[name]
    flows = set(running.flows())
    assert len(flows) == FLOWS
    assert (
        running.ensure() == ([], running.observe())
        and running.observe().faults == ()
        and not attached(running)["changed"]
    )
    case.damage(running)

    foretold, seen = running.ensure(check_mode=True)
    assert named(running, seen.faults) == case.faults
    facts = generation.facts(seen, running.paths)
    assert not facts["healthy"] and facts["faults"] == [fault.as_dict() for fault in seen.faults]
    if case.mender == "xdp_program":
        assert foretold
        done, have = running.ensure()
        assert done == foretold and have.faults == ()
        assert diagnosis.mended(seen.faults, have.faults) == facts["faults"]
    else:
        assert foretold == [] and running.ensure() == ([], seen), "nothing that xdp_program can do"
        for check_mode in (True, False):
            result = attached(running, check_mode)
            assert result["changed"] and [result["faults"], result["mended"]] == (
                [facts["faults"], []] if check_mode else [[], facts["faults"]]
            )
    have = running.observe()
    assert have.faults == () and generation.facts(have, running.paths)["healthy"]
    assert (
        running.ensure() == ([], have)
        and not attached(running)["changed"]
        and attached(running)["faults"] == []
    )
    assert {info.prog_id for info, dummy in have.links.values()} == {
        have.programs[chain_programs.SLOTS["ingress"]].id
    }
    assert set(running.flows()) == flows, "no flow is lost"
    running.send(udp_frame(4000))
    assert set(running.flows()) == flows, "and they are still found"
    figure("kinds of damage named and mended by the next run", f"{len(CASES)} of {len(CASES)}")


def test_what_only_people_can_mend_is_named(running: Chain) -> None:
    with bpf.closing(bpf.map_create(bpf_constants.MAP_TYPES["array"], "stray", 4, 4, 1)) as fd:
        bpf.obj_pin(fd, running.paths.link(None, "stray"))
    for dummy in range(2):
        plan, have = running.ensure()
        assert plan == [] and named(running, have.faults) == {("link_foreign", "stray")}
    os.unlink(running.paths.link(None, "stray"))
    assert running.observe().faults == ()
    os.unlink(running.paths.seed_map)
    os.symlink("elsewhere", running.paths.seed_map)
    result = attached(running)
    assert [(fault["fault"], fault["object"]) for fault in result["faults"]] == [
        ("path_foreign", running.paths.seed_map)
    ] and result["mended"] == []
    with pytest.raises(
        ConntrackError,
        match=f"^{running.paths.seed_map} is a symbolic link of somebody else, to elsewhere",
    ):
        running.ensure()


def test_another_releases_chain_is_not_judged(running: Chain) -> None:
    with bpf.closing(bpf.obj_get(pin(running, "map/meta"))) as fd:
        bpf.map_update(
            fd, U32.pack(chain_maps.META["layout"]), U64.pack(chain_layout.LAYOUT_VERSION + 1)
        )
    lose("prog/xdp_3")(running)
    assert running.observe().faults == ()


# ---------------------------------------------------------------- traffic
@contextlib.contextmanager
def traffic(made: Chain) -> c.Iterator[None]:
    """Send frames to ``left`` while a ``with`` block works."""
    stop = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("right", 0))

        def send() -> None:
            while not stop.wait(0.001):
                sender.send(udp_frame(4000))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            time.sleep(0.02)
            yield
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_an_interface_counts_what_it_receives_in_each_mode(running: Chain, mode: str) -> None:
    """What listening builds on; veth counts frames for a native program in another place than for
    others.
    """
    attach.converge(
        "present",
        [{"name": "left", "program": "ingress"}],
        mode,
        False,
        running.paths.pin_root,
        False,
    )
    before, counted = netdev.link_facts("left").received, running.stats()["tracked"]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("right", 0))
        for dummy in range(100):
            sender.send(udp_frame(4000))

    def counts() -> tuple[int, int]:
        return netdev.link_facts("left").received - before, running.stats()["tracked"] - counted

    assert within(lambda: counts() == (100, 100)), counts()


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_chain_that_works_is_not_suspected(running: Chain, mode: str) -> None:
    attach.converge(
        "present",
        [{"name": "left", "program": "ingress"}],
        mode,
        False,
        running.paths.pin_root,
        False,
    )
    before = running.stats()
    assert generation.listen(running.paths) == () and running.stats() == before, (
        "no traffic, and no frame of proof"
    )
    with traffic(running):
        assert generation.listen(running.paths) == ()
    assert running.stats()["untracked_not_ip"] == before["untracked_not_ip"]


def test_a_chain_that_counts_nothing(running: Chain) -> None:
    """All pins, slots and links agree, but the program lets everything pass."""
    flows = set(running.flows())
    with (
        bpf.closing(passing("ingress")) as program,
        bpf.closing(bpf.obj_get(pin(running, "map/jt"))) as jt,
        bpf.closing(bpf.obj_get(running.paths.link(None, "left"))) as link,
    ):
        os.unlink(pin(running, "prog/xdp_0"))
        bpf.obj_pin(program, pin(running, "prog/xdp_0"))
        bpf.map_update(jt, U32.pack(0), U32.pack(program))
        bpf.link_update(link, program)
    assert running.observe().faults == () and generation.listen(running.paths) == (), (
        "without traffic nothing can be told"
    )
    with traffic(running):
        heard = generation.listen(running.paths)
        assert named(running, heard) == {("chain_dead", "left")}
        assert [fault["fault"] for fault in attached(running)["faults"]] == ["chain_dead"]
        plan, have = generation.ensure(running.paths, running.want(), heard=heard)
        assert [step.action for step in plan] == [
            "load",
            "replace",
            "activate",
            "delete",
        ] and have.faults == ()
        assert plan[0].reason == heard[0].detail
        assert generation.listen(running.paths) == ()
    assert set(running.flows()) == flows
    assert running.ensure()[0] == []


def test_frames_that_go_past_a_chain_that_works(running: Chain) -> None:
    run_a_stranger_in_the_link(running)
    with traffic(running):
        heard = generation.listen(running.paths)
        assert named(running, heard) == {("frames_unseen", "left")}
        plan, have = generation.ensure(running.paths, running.want(), heard=heard)
        assert plan == [], "a new generation would not help"
        assert named(running, have.faults) == {("frames_unseen", "left"), ("link_program", "left")}
        result = attached(running)
        assert [fault["fault"] for fault in result["mended"]] == ["link_program"] and result[
            "faults"
        ] == []
        assert generation.listen(running.paths) == ()
