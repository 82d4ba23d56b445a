# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trackers side by side, held against each other after each frame."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from . import frames, view

#: Seconds by which the rest of a timeout may differ: both sides cut to whole seconds, and not at
#: the same instant.
SLACK = 2

#: What the chain may call a frame that never reached nf_conntrack: the stack had dropped it, or
#: kept it for reassembly.
UNSEEN = ("fragment", "invalid", "untracked")


class Tracker(t.Protocol):
    """What a rig offers."""

    def step(self, side: str, frame: bytes) -> view.Seen:
        """Track one frame."""

    def look(self) -> None:
        """Note the table as it is now: time has passed."""

    def flush(self) -> None:
        """Empty the table."""


class Difference(AssertionError):
    """The trackers do not agree; the message tells the frames so far and all tables."""


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


def play(
    kernel: Tracker,
    chains: t.Mapping[str, Tracker],
    steps: t.Sequence[frames.Step],
    rules: Rules = ALL,
) -> view.Seen:
    """Send the steps through all trackers, from empty tables; return what the kernel made of the
    last one.

    :param chains: what is held against the kernel, by its name in messages. Among each other they
        must agree on every detail.
    :raises Difference: where they do not agree.
    """
    trackers = {"kernel": kernel, **chains}
    for tracker in trackers.values():
        tracker.flush()
    seen: list[dict[str, view.Seen]] = []
    lag = 0.0
    for number, step in enumerate(steps, 1):
        if step.wait:
            time.sleep(step.wait)
            for tracker in trackers.values():
                tracker.look()
        views, took = step_all(trackers, step.side, step.frame)
        seen.append(views)
        lag = max(lag, took)
        if rules.each or number == len(steps):
            faults = all_differences(views, rules, lag)
            if faults:
                raise Difference(report(steps[:number], seen, faults))
    return seen[-1]["kernel"] if seen else view.Seen("unseen", {})


def step_all(
    trackers: t.Mapping[str, Tracker], side: str, frame: bytes
) -> tuple[dict[str, view.Seen], float]:
    """Send a frame through all trackers; return what they made of it, and how many seconds passed
    from the first to the last.
    """
    start = time.monotonic()
    seen = {name: tracker.step(side, frame) for name, tracker in trackers.items()}
    return seen, time.monotonic() - start


def all_differences(
    seen: t.Mapping[str, view.Seen], rules: Rules = ALL, lag: float = 0
) -> list[str]:
    """Return in what the kernel's view and those of the chains differ, and those of the chains
    among each other.

    :param lag: so many seconds one tracker had a frame later than another, at most: on a busy
        machine that is more than the slack.
    """
    rules = dataclasses.replace(rules, slack=rules.slack + int(lag))
    views = dict(seen)
    kernel = views.pop("kernel")
    found = [
        fault for name, one in views.items() for fault in differences(kernel, one, rules, name)
    ]
    details = {name: one.detail for name, one in views.items()}
    return found + ([f"detail: {details}"] if len(set(details.values())) > 1 else [])


def differences(
    kernel: view.Seen, chain: view.Seen, rules: Rules = ALL, name: str = "chain"
) -> list[str]:
    """Return in what the two views differ, one line each."""
    found = []
    same = chain.outcome == kernel.outcome or (
        kernel.outcome == "unseen" and chain.outcome in UNSEEN
    )
    if rules.outcomes and not same:
        found.append(f"outcome: kernel {kernel.outcome}, {name} {chain.outcome} ({chain.detail})")
    for key in sorted({*kernel.flows, *chain.flows}, key=repr):
        ours, theirs = chain.flows.get(key), kernel.flows.get(key)
        if ours is None or theirs is None:
            found.append(f"only {'kernel' if ours is None else name} has {theirs or ours}")
            continue
        for field in dataclasses.fields(view.Flow):
            mine, its = getattr(ours, field.name), getattr(theirs, field.name)
            if mine != its and (field.name != "timeout" or abs(mine - its) > rules.slack):
                found.append(f"{field.name}: kernel {its}, {name} {mine}")
    return found


def report(
    steps: t.Sequence[frames.Step],
    seen: t.Sequence[t.Mapping[str, view.Seen]],
    faults: t.Sequence[str],
) -> str:
    """Return the difference as people read it: each frame with all outcomes, then all tables."""
    lines = ["the trackers differ after:"]
    for number, (step, views) in enumerate(zip(steps, seen), 1):
        made = "  ".join(
            f"{name} {one.outcome if one.detail in ('', one.outcome) else one.detail:9}"
            for name, one in views.items()
        )
        lines.append(f"  {number:2} {str(step):70} {made}")
    lines += [f"  ! {fault}" for fault in faults]
    for name, last in seen[-1].items():
        lines += [f"  {name} has {flow}" for flow in last.flows.values()] or [
            f"  {name} has nothing"
        ]
    return "\n".join(lines)
