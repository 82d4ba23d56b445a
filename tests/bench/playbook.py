# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make lab` on a machine that is set up, its second run, and Ansible's own share: plays of as many
tasks that do nothing.

Tasks of two kinds: `debug` runs on the controller, `ping` is a module, whose process on the target
is what most tasks pay for.
"""

from __future__ import annotations

import collections.abc as c
import functools
import os
import re
import tempfile

import harness

#: Highest seconds of the first run, and of the second one beyond a play of as many `debug` tasks.
GOAL_FIRST, GOAL_BEYOND = 15.0, 4.0

#: A task that does nothing, by its name in the report.
EMPTY = {"debug": "ansible.builtin.debug:\n        msg: nothing", "ping": "ansible.builtin.ping:"}

PLAYBOOK = str(harness.ROOT / ".venv/bin/ansible-playbook")
RECAP = re.compile(
    r"^(?P<host>\S+) +: ok=(?P<ok>\d+) +changed=(?P<changed>\d+).* failed=(?P<failed>\d+)",
    re.MULTILINE,
)


def play(*words: str) -> dict[str, int]:
    """Run a command that plays a playbook and return the recap, summed up over the hosts."""
    found = list(RECAP.finditer(harness.command(words, cwd=harness.ROOT)))
    if not found:
        raise harness.BenchError(f"{' '.join(words)}: no recap in the output")
    return {key: sum(int(host[key]) for host in found) for key in ("ok", "changed", "failed")}


def lab_is_there() -> bool:
    """Tell whether somebody uses the default lab already."""
    return any(os.path.exists(f"/run/netns/{name}") for name in ("ns1", "ns2"))


def empty(kind: str, count: int) -> None:
    """Play ``count`` tasks that do nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as book:
        book.write(
            "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
            + f"    - {EMPTY[kind]}\n" * count
        )
        book.flush()
        harness.expect(f"{kind} tasks played", play(PLAYBOOK, book.name)["ok"], count)


def round_of(left: bool, kinds: c.Iterable[str]) -> dict[str, float]:
    """Time a first run (where no lab was ``left`` by its user), a second one, and plays of as many
    empty tasks of each kind.
    """
    times: dict[str, float] = {}
    recap: dict[str, int] = {}

    def lab() -> None:
        recap.update(play("make", "lab"))

    if not left:
        times["first"] = harness.seconds(lab)
        harness.expect("a first run changes something", recap["changed"] > 0, True)
    times["again"] = harness.seconds(lab)
    harness.expect("changed by the second run", recap["changed"], 0)
    for kind in kinds:
        times[kind] = harness.seconds(functools.partial(empty, kind, recap["ok"]))
    times["beyond"] = times["again"] - times["debug"]
    return times


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure; a lab that was there before stays, and then there is no first run to measure."""
    left = lab_is_there()
    kinds = options.pick(tuple(EMPTY), ("debug",))

    def one() -> dict[str, float]:
        try:
            return round_of(left, kinds)
        finally:
            if not left:
                play(PLAYBOOK, "playbooks/clean.yml")

    got = harness.interleave({"lab": one}, options.pick(3, 1))
    if "first" in got:
        yield harness.Row(
            "playbook", "make lab, first run", "s", got["first"], goal=GOAL_FIRST, absolute=True
        )
    for kind in kinds:
        yield harness.Row(
            "playbook",
            "make lab, second run",
            "s",
            got["again"],
            f"as many {kind} tasks",
            got[kind],
        )
    yield harness.Row(
        "playbook",
        "make lab, second run, beyond as many debug tasks",
        "s",
        got["beyond"],
        goal=GOAL_BEYOND,
        absolute=True,
    )
