# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two trackers side by side, held against each other after each frame."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from . import frames, view

#: Seconds by which the rest of a timeout may differ: both sides cut to whole seconds, and not at the same instant.
SLACK = 2

#: What the chain may call a frame that never reached nf_conntrack: the stack had dropped it, or kept it for reassembly.
UNSEEN = ("invalid", "untracked")


class Tracker(t.Protocol):
    """What a rig offers."""

    def step(self, side: str, frame: bytes) -> view.Seen:
        """Track one frame."""

    def look(self) -> None:
        """Note the table as it is now: time has passed."""

    def flush(self) -> None:
        """Empty the table."""


class Difference(AssertionError):
    """The trackers do not agree; the message tells the frames so far and both tables."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as the same.

    :ivar each: compare after each frame; else only after the last.
    :ivar outcomes: compare what was made of the frame, not only the table.
    :ivar slack: seconds by which timeouts may differ.
    """

    each: bool = True
    outcomes: bool = True
    slack: int = SLACK


#: The strictest rules.
ALL = Rules()


def play(kernel: Tracker, chain: Tracker, steps: t.Sequence[frames.Step], rules: Rules = ALL) -> tuple[view.Seen, view.Seen]:
    """Send the steps through both trackers, from empty tables; return what they made of the last one, the kernel's view first.

    :raises Difference: where they do not agree.
    """
    kernel.flush()
    chain.flush()
    seen = [(view.Seen("unseen", {}), view.Seen("unseen", {}))]
    for number, step in enumerate(steps, 1):
        if step.wait:
            time.sleep(step.wait)
            kernel.look()
            chain.look()
        seen.append((kernel.step(step.side, step.frame), chain.step(step.side, step.frame)))
        if rules.each or number == len(steps):
            faults = differences(*seen[-1], rules)
            if faults:
                raise Difference(report(steps[:number], seen[1:], faults))
    return seen[-1]


def differences(kernel: view.Seen, chain: view.Seen, rules: Rules = ALL) -> list[str]:
    """Return in what the two views differ, one line each."""
    found = []
    same = chain.outcome == kernel.outcome or (kernel.outcome == "unseen" and chain.outcome in UNSEEN)
    if rules.outcomes and not same:
        found.append(f"outcome: kernel {kernel.outcome}, chain {chain.outcome} ({chain.detail})")
    for key in sorted({*kernel.flows, *chain.flows}, key=repr):
        ours, theirs = chain.flows.get(key), kernel.flows.get(key)
        if ours is None or theirs is None:
            found.append(f"only the {'kernel' if ours is None else 'chain'} has {theirs or ours}")
            continue
        for field in dataclasses.fields(view.Flow):
            mine, its = getattr(ours, field.name), getattr(theirs, field.name)
            if mine != its and (field.name != "timeout" or abs(mine - its) > rules.slack):
                found.append(f"{field.name}: kernel {its}, chain {mine}")
    return found


def report(steps: t.Sequence[frames.Step], seen: t.Sequence[tuple[view.Seen, view.Seen]], faults: t.Sequence[str]) -> str:
    """Return the difference as people read it: each frame with both outcomes, then both tables."""
    lines = ["the trackers differ after:"]
    for number, (step, (kernel, chain)) in enumerate(zip(steps, seen), 1):
        lines.append(f"  {number:2} {str(step):70} kernel {kernel.outcome:9} chain {chain.outcome} {chain.detail}")
    lines += [f"  ! {fault}" for fault in faults]
    for name, last in zip(("kernel", "chain"), seen[-1]):
        lines += [f"  {name} has {flow}" for flow in last.flows.values()] or [f"  {name} has nothing"]
    return "\n".join(lines)
