# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make lab` on a machine that is set up, its second run, and Ansible's own share: a play of as many tasks that do nothing."""

from __future__ import annotations

import collections.abc as c
import os
import re
import tempfile

import harness

#: Highest seconds of the first and of the second run.
GOAL_FIRST, GOAL_AGAIN = 15.0, 8.0

PLAYBOOK = str(harness.ROOT / ".venv/bin/ansible-playbook")
RECAP = re.compile(r"^(?P<host>\S+) +: ok=(?P<ok>\d+) +changed=(?P<changed>\d+).* failed=(?P<failed>\d+)", re.MULTILINE)


def play(*words: str) -> dict[str, int]:
    """Run a command that plays a playbook and return the recap, summed up over the hosts."""
    found = list(RECAP.finditer(harness.command(words, cwd=harness.ROOT)))
    if not found:
        raise harness.BenchError(f"{' '.join(words)}: no recap in the output")
    return {key: sum(int(host[key]) for host in found) for key in ("ok", "changed", "failed")}


def lab_is_there() -> bool:
    """Tell whether somebody uses the default lab already."""
    return any(os.path.exists(f"/run/netns/{name}") for name in ("ns1", "ns2"))


def round_of(left: bool) -> dict[str, float]:
    """Time a first run (where no lab was ``left`` by its user), a second one, and a play of as many empty tasks."""
    times: dict[str, float] = {}
    recap: dict[str, int] = {}

    def lab() -> None:
        recap.update(play("make", "lab"))

    if not left:
        times["first"] = harness.seconds(lab)
        harness.expect("a first run changes something", recap["changed"] > 0, True)
    times["again"] = harness.seconds(lab)
    harness.expect("changed by the second run", recap["changed"], 0)
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as empty:
        task = "    - ansible.builtin.debug:\n        msg: nothing\n"
        empty.write("- hosts: localhost\n  gather_facts: false\n  tasks:\n" + task * recap["ok"])
        empty.flush()
        times["empty"] = harness.seconds(lambda: play(PLAYBOOK, empty.name))
    return times


def measure(options: harness.Options) -> c.Iterator[harness.Row]:
    """Measure; a lab that was there before stays, and then there is no first run to measure."""
    left = lab_is_there()

    def one() -> dict[str, float]:
        try:
            return round_of(left)
        finally:
            if not left:
                play(PLAYBOOK, "playbooks/clean.yml")

    got = harness.interleave({"lab": one}, options.pick(3, 1))
    if "first" in got:
        yield harness.Row("playbook", "make lab, first run", "s", got["first"], goal=GOAL_FIRST, absolute=True)
    yield harness.Row("playbook", "make lab, second run", "s", got["again"], "as many debug tasks", got["empty"], GOAL_AGAIN, absolute=True)
