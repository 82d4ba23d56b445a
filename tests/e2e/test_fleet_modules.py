# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking before a roll-out, watching, and putting back, with a chain in the kernel; the playbooks
of a fleet are tested in tests/fleet.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import os
import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import converge as attach
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain.programs import SLOTS
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import content as ct_content
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import put_back, soak
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import present
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet.preflight import run as preflight
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netdev
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import archive as ct_archive
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import passing, traffic

__all__ = ["made", "rendered", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LEFT: dict[str, t.Any] = {"name": "left", "netns": None, "program": "ingress", "mode": "native"}
RIGHT: dict[str, t.Any] = {"name": "right", "netns": None, "program": "egress", "mode": "native"}
SIZES = {"table_size": 1024, "table_size6": 16, "half_open_size": 16, "half_open_size6": 16}


@pytest.fixture
def running(made: Chain, veth: None, monkeypatch: pytest.MonkeyPatch) -> c.Iterator[Chain]:
    """A chain, attached to ``left``."""
    made.ensure()
    attached(made, "present", LEFT)
    yield made
    attached(made, "absent")


def attached(chain: Chain, wanted: str, *interfaces: dict[str, t.Any]) -> None:
    attach.converge(
        wanted,
        interfaces or None,
        "native",
        False,
        chain.paths.pin_root,
        False,
        state_dir=chain.paths.state_dir,
    )


def look(
    chain: Chain, *interfaces: dict[str, t.Any], prefix: str, takeover: bool = False, **sizes: int
) -> dict[str, t.Any]:
    """What ct_preflight returns."""
    need = preflight.Need(
        interfaces, "auto", takeover, {**SIZES, **sizes}, False, "object", True, prefix
    )
    return preflight.check_host(chain.paths, need)


def watch(chain: Chain, seconds: float = 0.3, **more: t.Any) -> tuple[dict[str, t.Any], list[str]]:
    """What ct_soak returns: the figures, and those that are not well."""
    figures, troubles = soak.soak(chain.paths, soak.Watch(seconds, **more))
    return figures, [trouble.figure for trouble in troubles]


def test_a_host_that_can_take_it(running: Chain, tmp_path: pathlib.Path) -> None:
    stamps = running.stamps()
    found = look(running, LEFT, RIGHT, prefix=str(tmp_path))
    assert found["ok"] and found["problems"] == [] and found["kernel"]["missing_features"] == []
    assert [
        (one["name"], one["driver"], one["program"], one["foreign"]) for one in found["interfaces"]
    ] == [
        ("left", "veth", "ingress", False),
        ("right", "veth", None, False),
    ]
    assert all(one["native"] in (True, None) for one in found["interfaces"])
    assert found["chain"]["generation"] == 1 and found["chain"]["healthy"] and found["flows"] == 0
    assert found["disk"]["generation"] == 1 and found["disk"]["digest"] == found["chain"]["digest"]
    assert [one["name"] for one in found["before"]["interfaces"]] == ["left"] and found["before"][
        "command"
    ] is False
    assert running.paths.base in found["found"] and "XDP program ingress on left" in found["found"]
    assert running.stamps() == stamps, "nothing was changed"


def test_what_keeps_a_host_from_it_is_named(running: Chain, tmp_path: pathlib.Path) -> None:
    ifindex = netdev.link_facts("right").ifindex
    with bpf.closing(passing()) as program:
        netdev.xdp_set(ifindex, program, netdev.XDP_FLAGS["native"])
        found = look(
            running,
            LEFT,
            RIGHT,
            {**RIGHT, "name": "none"},
            prefix=str(tmp_path),
            takeover=False,
            **dict.fromkeys(SIZES, 1 << 26),
        )
        assert [one["field"] for one in found["problems"]] == [
            "table_size",
            "interfaces[1]",
            "interfaces[2].name",
        ] and not found["ok"]
        assert (
            "an XDP program that is not ours" in found["problems"][1]["problem"]
            and "takeover: true" in found["problems"][1]["mend"]
        )
        assert found["interfaces"][1]["foreign"]
        assert look(running, RIGHT, prefix=str(tmp_path), takeover=True)["ok"]
        netdev.xdp_set(ifindex, -1, netdev.XDP_FLAGS["native"])


def test_a_chain_that_is_well_under_traffic(running: Chain) -> None:
    with traffic(running):
        figures, troubles = watch(running)
    assert (
        troubles == []
        and figures["unseen"] == 0
        and figures["received"] > 0
        and figures["counted"] >= figures["received"]
    ), figures
    assert figures["flows"] == 1


def test_frames_that_go_another_way_are_told(running: Chain) -> None:
    with (
        bpf.closing(passing("ingress")) as program,
        bpf.closing(bpf.obj_get(running.paths.link(None, "left"))) as link,
    ):
        keys_before = soak.read_tables(running.paths.pin_root)["frames"]
        with traffic(running):
            own = running.observe().programs[SLOTS["ingress"]].id
            with bpf.closing(bpf.prog_get_fd_by_id(own)) as old:
                bpf.link_update(link, program, old)
                figures, troubles = watch(running, limits=soak.Limits(unseen=0))
                bpf.link_update(link, old, program)
    assert soak.read_tables(running.paths.pin_root)["frames"] >= keys_before
    assert troubles == ["faults", "unseen"] and figures["unseen"] > 0


def test_a_probe_and_a_fault(running: Chain) -> None:
    assert watch(running, probe=("false",))[1] == ["probe"]
    os.unlink(running.paths.seed_map)
    # not as the chain has it, and yet it leads there
    os.symlink(f"{running.paths.base}/active/map", running.paths.seed_map)
    figures, troubles = watch(running)
    assert troubles == ["faults"]
    assert (
        watch(running, faults=({"fault": "path_foreign", "object": running.paths.seed_map},))[1]
        == []
    )
    os.unlink(running.paths.seed_map)
    os.symlink("ebpf_conntrack/active/map", running.paths.seed_map)


def back(
    chain: Chain, before: dict[str, t.Any], prefix: str, check_mode: bool = False
) -> list[str]:
    plan, dummy, facts = put_back.put_back(chain.paths, before, prefix, check_mode, 5)
    assert facts["healthy"] or before["generation"] is None
    return [f"{step.action} {step.kind} {step.name}" for step in plan]


def test_a_host_gets_back_what_it_had(running: Chain, tmp_path: pathlib.Path) -> None:
    prefix = str(tmp_path)
    before = look(running, prefix=prefix)["before"]
    assert back(running, before, prefix) == [], "as it was"
    running.send(udp_frame(4000))

    running.ensure(running.want(timeouts={"udp": 7}))
    assert back(running, before, prefix) == ["change map settings"]

    running.ensure(running.changed(), keep=1)
    attached(running, "present", RIGHT)
    assert running.observe().generation == 2
    foretold = back(running, before, prefix, check_mode=True)
    assert back(running, before, prefix)[0] == foretold[0] == "prove generation 1"
    after = look(running, prefix=prefix)["before"]
    assert after == before and running.flows() and back(running, before, prefix) == []


def test_the_mode_and_the_kept_generations_come_back(
    running: Chain, tmp_path: pathlib.Path
) -> None:
    running.ensure(running.changed(), keep=2)
    before = look(running, prefix=str(tmp_path))["before"]
    assert (before["generation"], before["interfaces"][0]["mode"]) == (2, "native")
    running.ensure(dataclasses.replace(running.changed(), timeouts={"udp": 7}), keep=2)
    assert running.observe().generation == 2, "other settings, and no new generation"
    attach.converge(
        "present",
        [{**LEFT, "mode": "generic"}],
        "auto",
        False,
        running.paths.pin_root,
        False,
        state_dir=running.paths.state_dir,
    )
    assert [one["mode"] for one in present.attached(running.paths)] == ["generic"]
    back(running, before, str(tmp_path))
    have = running.observe()
    assert look(running, prefix=str(tmp_path))["before"] == before and have.generation == 2
    assert {1} <= {one.number for one in have.kept}, "nothing that was kept went"


def test_a_command_that_was_there_stays_and_one_that_was_not_goes(
    running: Chain, tmp_path: pathlib.Path
) -> None:
    prefix = str(tmp_path)
    without = look(running, prefix=prefix)["before"]
    ct_archive.converge(prefix, ct_content.want(), False, 5)
    command = tmp_path / "bin/ct"
    there = look(running, prefix=prefix)["before"]
    assert (without["command"], there["command"], command.exists()) == (False, True, True)
    assert back(running, there, prefix) == [] and command.exists()
    assert back(running, without, prefix) != [] and not command.exists()


def test_a_host_that_had_nothing_has_nothing_again(
    made: Chain, veth: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(made, prefix=str(tmp_path))["before"]
    assert before["generation"] is None
    made.ensure()
    attached(made, "present", LEFT)
    assert back(made, before, str(tmp_path))[0] == "detach xdp left"
    assert generation.observe(made.paths).generation is None and not os.path.exists(
        made.paths.state_dir
    )
    assert back(made, before, str(tmp_path)) == []


def test_a_generation_that_is_gone_can_not_come_back(
    running: Chain, tmp_path: pathlib.Path
) -> None:
    before = look(running, prefix=str(tmp_path))["before"]
    running.ensure(running.changed(), keep=0)
    with pytest.raises(ConntrackError, match="generation 1 is not pinned"):
        back(running, before, str(tmp_path))
