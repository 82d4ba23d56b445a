# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host can take the wanted chain, and how it is before: nothing is changed.

``check_host`` asks the host; what it saw is judged by pure functions, each of which returns
Problems.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import typing as t

from ...build import features
from ...chain import maps as chain_maps
from ...chain import settings as chain_settings
from ...core.errors import ConntrackError
from ...generation import converge as generation
from ...generation import state_dir
from ...kernel import bpf, bpffs, pins
from ...service import archive as ct_archive
from .. import soak
from . import disk as preflight_disk
from . import interfaces as preflight_interfaces
from . import libraries as preflight_libraries
from . import memory as preflight_memory
from . import present
from . import problem as preflight_problem
from .memory import Memory
from .problem import Problem


@dataclasses.dataclass(frozen=True)
class Need:
    """What is wanted of the host.

    :ivar sizes: entries of the tables, by the names of chain.maps().
    :ivar forward: what the chain is to forward, one of chain.FORWARDS.
    :ivar forward_unfiltered: whether that may pass the firewall by.
    """

    interfaces: t.Sequence[t.Mapping[str, t.Any]]
    mode: str
    takeover: bool
    sizes: t.Mapping[str, int]
    events: bool
    build: str
    install: bool
    prefix: str = ct_archive.PREFIX
    forward: str = chain_settings.FORWARDS[0]
    forward_unfiltered: bool = False


def check_host(paths: bpffs.Paths, need: Need) -> dict[str, t.Any]:
    """Return the module's result.

    :raises ConntrackError: without the rights to look.
    """
    if os.geteuid() != 0:
        raise ConntrackError(
            "Looking at BPF and at what is attached needs root: run the task with become: true."
        )
    problems: list[Problem] = []
    libraries, manager = (
        preflight_libraries.observe_libraries(need.build),
        preflight_libraries.manager(),
    )
    problems += preflight_libraries.judge_libraries(libraries, manager, need.install)
    release = platform.release()
    result: dict[str, t.Any] = {
        "kernel": {"release": release, "machine": platform.machine(), "missing_features": None},
        "libraries": [{**dataclasses.asdict(one), "good": one.good} for one in libraries],
        "would_install": preflight_libraries.would_install(libraries, manager, need.install),
        "interfaces": [],
        "forwarding": preflight_interfaces.observe_forwarding(need.forward, need.interfaces),
        "chain": None,
        "before": None,
        "flows": None,
        "figures": None,
        "memory": None,
        "python": sys.version.partition(" ")[0],
    }
    checks: tuple[tuple[str, str, t.Callable[[], object]], ...] = (
        ("pin_root", paths.pin_root, lambda: bpffs.check(paths.pin_root)),
        ("pin_root", paths.pin_root, lambda: pins.check_places(paths)),
        ("state_dir", paths.state_dir, lambda: state_dir.check(paths)),
    )
    for field, value, check in checks:
        try:
            check()
        except ConntrackError as exc:
            problem = preflight_problem.problem_of(field, value, exc)
            if not any(one.problem == problem.problem for one in problems):
                problems.append(problem)
    problems += preflight_interfaces.judge_unfiltered(need.forward, need.forward_unfiltered)
    free, files = preflight_disk.disk_room(state_dir.directory(paths))
    problems += preflight_disk.judge_disk(paths.state_dir, free, files)
    result["disk"] = {"path": paths.state_dir, "free_bytes": free}
    if (
        libraries[0].found is not None
    ):  # without it nothing can be asked of BPF; it is a problem, or will be installed
        try:
            problems += _observe_bpf(paths, need, result)
        except ConntrackError:
            if not {"pin_root", "state_dir"} & {
                problem.field for problem in problems
            }:  # which keep all else from being looked at
                raise
    result["problems"] = [problem.as_dict() for problem in problems]
    result["ok"] = not problems
    return result


def _observe_bpf(paths: bpffs.Paths, need: Need, result: dict[str, t.Any]) -> t.Iterator[Problem]:
    missing = features.missing()
    result["kernel"]["missing_features"] = missing
    for one in missing:
        yield Problem(
            "kernel",
            result["kernel"]["release"],
            f"it lacks {one}.",
            "Boot a kernel of that release or later.",
        )
    have = generation.observe(paths)
    facts = generation.facts(have, paths)
    result["chain"] = {
        name: facts[name]
        for name in ("generation", "digest", "healthy", "faults", "since", "kept", "settings")
    }
    result["disk"].update(present.on_disk(paths))
    result["before"] = present.before(paths, have, need.prefix)
    result["found"] = present.traces(paths, need.prefix)
    with contextlib.suppress(ConntrackError):  # nothing is loaded, or what is has another layout
        figures = soak.read_tables(paths.pin_root)
        result["figures"], result["flows"] = figures, figures["flows"]
    wanted, cpus = chain_maps.maps(**need.sizes, events=need.events), bpf.possible_cpus()
    memory = Memory(
        preflight_memory.needed_bytes(wanted, have.maps, cpus)
        + (preflight_memory.COMPILER_BYTES if need.build == "bcc" else 0),
        sum(
            preflight_memory.table_bytes(
                preflight_memory.kind_of(info),
                info.key_size,
                info.value_size,
                info.max_entries,
                cpus,
            )
            for info in have.maps.values()
        ),
        preflight_memory.available(),
        preflight_memory.memlock(result["kernel"]["release"]),
    )
    result["memory"] = dataclasses.asdict(memory)
    yield from preflight_memory.judge_memory(memory)
    result["interfaces"], problems = preflight_interfaces.observe_interfaces(
        paths, need.interfaces, need.mode, need.takeover, need.forward
    )
    yield from problems
