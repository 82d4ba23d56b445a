# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove a new generation before it takes over: the same frames through it and through the one that
runs, and what they make of each.

Both are built as shadows, so nothing that runs is touched, and no counter moves. The frames are
those of a capture, with the capture's clock: timeouts run as they did on the wire, however fast the
frames are sent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import typing as t

from ...chain import programs as chain_programs
from ...chain import settings as chain_settings
from ...core.errors import ConntrackError, bad_value
from ...core.plan import Plan, Step
from ...flows import codec as flow
from ...kernel.bpffs import Paths
from .. import manifest
from ..model import Have, Want
from .capture import Packet
from .dissect import dissect
from .shadow import Result, Shadow

HOOKS = ("both", *chain_programs.TRACKING_HOOKS)
ON_DIFFERENCE = ("warn", "fail")
#: How many frames of a capture are replayed, when nothing else is said, and at most.
LIMIT = 10000
LARGEST_LIMIT = 100000
#: How many differing frames, and how many differing flows, are listed; all are counted.
LISTED = 20
#: What BPF_PROG_TEST_RUN takes as one frame: an Ethernet header, and a page less the room before
#: and behind (net/bpf/test_run.c). Longer ones are what a capturing host has merged (GRO, TSO); XDP
#: never sees such.
_SHORTEST, _LONGEST = 14, 4096 - 256 - 320
#: Fields of a flow that only tell when it was looked at.
_CLOCKS = ("age", "idle")


class Frame(t.NamedTuple):
    """One frame to replay.

    :ivar number: its place in the capture, from 1.
    :ivar hook: where it comes in.
    :ivar data: its bytes.
    :ivar at_ns: time since the first frame.
    """

    number: int
    hook: str
    data: bytes
    at_ns: int


class Difference(t.NamedTuple):
    """Something of which the generations make different things: a frame (with number and hook), or
    a flow at the end.
    """

    what: str
    summary: str
    old: str
    new: str
    number: int | None = None
    hook: str | None = None

    def __str__(self) -> str:
        where = f" {self.number} ({self.hook})" if self.number else ""
        return f"{self.what}{where} {self.summary}: {self.old} -> {self.new}"


@dataclasses.dataclass
class Report:
    """What came of a replay.

    :ivar generation: the running generation's number; None where there is none.
    :ivar reason: why nothing was compared, or not all; empty where all was.
    :ivar compared: whether frames were compared.
    :ivar frames: how many were replayed; ``skipped`` were not, being too short or too long for a
        test run; ``cut`` are not whole in the capture.
    :ivar frame_differences: of how many frames the generations make different things; likewise
        ``flow_differences``.
    :ivar flows: how many each side had at the end, by side.
    :ivar verdicts: how many frames got which, by side; ``counters`` likewise what they counted.
    :ivar differences: the first ones.
    """

    generation: int | None = None
    reason: str = ""
    compared: bool = False
    frames: int = 0
    skipped: int = 0
    cut: int = 0
    frame_differences: int = 0
    flow_differences: int = 0
    flows: dict[str, int] = dataclasses.field(default_factory=dict)
    verdicts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    counters: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    differences: list[Difference] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        """Return the form in which modules return it."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "differences": [one._asdict() for one in self.differences],
        }

    @property
    def differs(self) -> str:
        """How many differences there are, for people; empty where there are none."""
        counts = ((self.frame_differences, "frame"), (self.flow_differences, "flow"))
        return " and ".join(
            f"{number} {what}{'s' if number > 1 else ''}" for number, what in counts if number
        )


# ---------------------------------------------------------------- the frames
def check_limit(limit: int) -> None:
    """:raises ConntrackError: naming the option, its value and what it may be."""
    if not 1 <= limit <= LARGEST_LIMIT:
        raise bad_value("replay.limit", limit, f"give 1 to {LARGEST_LIMIT} frames")


def frames_of(packets: t.Sequence[Packet], hook: str) -> list[Frame]:
    """Return the frames to replay, each with its hook; those that no test run takes are left out.

    :param hook: where all come in; or ``both``, for a capture of both directions: hosts live on
        either side, whoever is seen to send first on the ingress side, with whom he talks on the
        other. What is not IP comes in where the frame before did.
    """
    sides: dict[bytes, int] = {}
    found, side = [], 0
    for number, packet in enumerate(packets, 1):
        if not _SHORTEST <= len(packet.data) <= _LONGEST:
            continue
        if hook == "both":
            src, dst, dummy = dissect(packet.data)
            if src:
                side = sides[src] if src in sides else 1 - sides[dst] if dst in sides else 0
                sides.setdefault(src, side)
                sides.setdefault(dst, 1 - side)
        found.append(
            Frame(
                number,
                chain_programs.TRACKING_HOOKS[side] if hook == "both" else hook,
                packet.data,
                packet.at_ns - packets[0].at_ns,
            )
        )
    return found


# ---------------------------------------------------------------- run and compare
def compare(frames: t.Sequence[Frame], old: Shadow | None, new: Shadow, timeouts: bool) -> Report:
    """Send the frames through both, one after the other, and then hold their tables against each
    other.

    :param old: None to see only what the new one makes of them.
    :param timeouts: whether the flows' timeouts are compared: not where they were set to other
        values.
    """
    report = Report(compared=old is not None, frames=len(frames))
    shadows = {name: shadow for name, shadow in (("old", old), ("new", new)) if shadow}
    verdicts: dict[str, collections.Counter[str]] = {
        name: collections.Counter() for name in shadows
    }
    for frame in frames:
        results = {
            name: shadow.run(frame.hook, frame.data, frame.at_ns)
            for name, shadow in shadows.items()
        }
        for name, result in results.items():
            verdicts[name][result.verdict] += 1
        if old and results["old"] != results["new"]:
            report.frame_differences += 1
            if report.frame_differences <= LISTED:
                report.differences.append(_frame_difference(frame, results["old"], results["new"]))
    report.verdicts = {name: dict(counted) for name, counted in verdicts.items()}
    report.counters = {name: shadow.totals for name, shadow in shadows.items()}
    if old and old.layout != new.layout:
        report.reason = "the flow tables were not compared: their layouts differ"
        return report
    tables = {name: shadow.flows() for name, shadow in shadows.items()}
    report.flows = {name: len(table) for name, table in tables.items()}
    if old:
        found = flow_differences(tables["old"], tables["new"], timeouts)
        report.flow_differences = len(found)
        report.differences += found[:LISTED]
    return report


def _frame_difference(frame: Frame, old: Result, new: Result) -> Difference:
    return Difference(
        "frame", dissect(frame.data).text, str(old), str(new), frame.number, frame.hook
    )


def flow_differences(
    old: t.Mapping[t.Any, flow.Record], new: t.Mapping[t.Any, flow.Record], timeouts: bool
) -> list[Difference]:
    """Return the flows that are not the same in both tables, each with the fields that differ."""
    ignored = _CLOCKS if timeouts else (*_CLOCKS, "timeout")
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        sides = [_flat(table[key], ignored) if key in table else None for table in (old, new)]
        if sides[0] == sides[1]:
            continue
        summary = _flow_name(old[key] if key in old else new[key])
        found.append(
            Difference("flow", summary, _shown(sides[0], sides[1]), _shown(sides[1], sides[0]))
        )
    return sorted(found)  # a table has no order that holds


def _flat(record: flow.Record, ignored: t.Collection[str]) -> dict[str, t.Any]:
    """Return a record with its parts' fields under dotted names."""
    flat: dict[str, t.Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": one for inner, one in _flat(value, ()).items()})
        elif name not in ignored:
            flat[name] = value
    return flat


def _shown(mine: t.Mapping[str, t.Any] | None, other: t.Mapping[str, t.Any] | None) -> str:
    """Return one side of a difference: the fields that the other side has otherwise."""
    if mine is None:
        return "no such flow"
    if other is None:
        return f"{mine['state']}, {mine['orig.packets']} and {mine['reply.packets']} packets"
    return ", ".join(
        f"{name} {mine.get(name)}"
        for name in {**mine, **other}
        if mine.get(name) != other.get(name)
    )


def _flow_name(record: flow.Record) -> str:
    orig = record["orig"]
    ends = [
        flow.endpoint(orig[address], orig.get(port))
        for address, port in (("src", "sport"), ("dst", "dport"))
    ]
    more = "".join(f" {name} {value}" for name, value in record.get("icmp", {}).items())
    return f"{record['proto']} {ends[0]} > {ends[1]}{more}"


# ---------------------------------------------------------------- as a step of a plan
class Proof:
    """What ``generation.ensure`` calls between plan and apply; keeps the report.

    :param packets: what to replay.
    :param hook: see frames_of().
    :param on_difference: ``fail`` keeps the new generation from taking over.
    :param paths: where the running generation stands, and what it was made of.
    """

    def __init__(
        self, packets: t.Sequence[Packet], hook: str, on_difference: str, paths: Paths
    ) -> None:
        self._packets, self._frames = packets, frames_of(packets, hook)
        self._on_difference, self._paths = on_difference, paths
        self.report = Report(reason="no other sources are to be loaded")

    def __call__(self, plan: Plan, have: Have, want: Want, settings: bytes) -> Plan:
        """Return the plan with what the replay came to as its first step, where it loads other
        sources than those that run.

        :raises ConntrackError: where the generations differ, or can not be compared, and that is to
            fail; with the report in the fact ``replay``.
        """
        load = next(
            (step for step in plan if (step.action, step.kind) == ("load", "generation")), None
        )
        if load is None or have.digest == want.digest:
            return plan
        number = load.name
        with contextlib.ExitStack() as made:
            old, reason = self._old(made, have, settings)
            self.report = Report(have.generation, reason, compared=not reason)
            self._check(number)
            new = made.enter_context(self._shadow(want, settings, settings))
            self.report = compare(
                self._frames, old, new, _timeouts(have.settings) == _timeouts(settings)
            )
        self.report.generation = have.generation
        self.report.reason = reason or self.report.reason
        self.report.skipped = len(self._packets) - len(self._frames)
        self.report.cut = sum(packet.cut for packet in self._packets)
        self._check(number)
        return [self._step(number), *plan]

    def _check(self, number: str) -> None:
        if self._on_difference == "fail" and self.warning:
            raise ConntrackError(
                f"verify generation {number}: {self.warning} The running generation stays.",
                replay=self.report.as_dict(),
            )

    def _old(
        self, made: contextlib.ExitStack, have: Have, settings: bytes
    ) -> tuple[Shadow | None, str]:
        """Return a shadow of the running generation, or why there is none."""
        number = have.generation
        if number is None:
            return None, "no generation is loaded yet"
        sources = manifest.read(self._paths, number)
        if sources is None:
            return (
                None,
                (
                    f"the sources of generation {number} are not known: the state directory has no"
                    " manifest of it"
                ),
            )
        if sources.digest != have.digest:
            return (
                None,
                (
                    f"the manifest of generation {number} is not that of what runs: its digest is"
                    f" {sources.digest}, the chain's {have.digest}"
                ),
            )
        try:
            return made.enter_context(self._shadow(sources, have.settings, settings)), ""
        except ConntrackError as exc:  # another compiler
            return (
                None,
                f"the sources of generation {number} can not be loaded any more: {exc.message}",
            )

    def _shadow(self, sources: Want, settings: bytes, here: bytes) -> Shadow:
        """:param here: the settings that are wanted, which tell the host's jiffies a second."""
        maps, built = (
            os.path.join(self._paths.active, "map"),
            sources.object.data if sources.object is not None else None,
        )
        return Shadow(
            sources.text,
            sources.headers,
            settings,
            chain_settings.settings_of(here)[0],
            len(self._frames),
            maps,
            built,
        )

    @property
    def warning(self) -> str:
        """What a user has to know; empty where all is as it was, or there was nothing to compare
        with.
        """
        report = self.report
        if report.generation is None:
            return ""
        if report.differs:
            listed = "".join(f"\n- {one}" for one in report.differences)
            return (
                f"{report.differs} differ between generation {report.generation} and the new one,"
                f" of {report.frames} frames that were replayed:{listed}\n"
            )
        return "" if report.compared else f"the generations were not compared: {report.reason}."

    def _step(self, number: str) -> Step:
        report = self.report
        frames = f"{report.frames} frames"
        outcomes = ", ".join(f"{name} {count}" for name, count in report.counters["new"].items())
        if not report.compared:
            return Step(
                "verify",
                "generation",
                number,
                f"{frames} replayed, not compared: {report.reason}",
                None,
                outcomes,
            )
        if not report.differs:
            but = f", but {report.reason}" if report.reason else ""
            return Step(
                "verify",
                "generation",
                number,
                f"{frames} replayed: the same as generation {report.generation}{but}",
                outcomes,
                outcomes,
            )
        sides = (
            "; ".join(
                f"{one.what}{f' {one.number}' if one.number else ''} {one.summary}:"
                f" {getattr(one, side)}"
                for one in report.differences
            )
            for side in ("old", "new")
        )
        return Step(
            "verify",
            "generation",
            number,
            f"{frames} replayed: {report.differs} differ from generation {report.generation}",
            *sides,
        )


def _timeouts(settings: bytes) -> dict[str, int]:
    return (
        chain_settings.settings_of(settings)[1]
        if len(settings) == chain_settings.SETTINGS_BYTES
        else {}
    )
