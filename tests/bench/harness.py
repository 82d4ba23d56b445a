# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every section of the benchmark shares: interleaved runs, medians, tables, the
machine-readable report.
"""

from __future__ import annotations

import collections
import collections.abc as c
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import time
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A measurement that did not do what it claims to have done, or a section that cannot run
    here.
    """


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to measure.

    :ivar quick: small sizes and few rounds; every section together ends within a minute.
    """

    quick: bool

    @property
    def fused(self) -> bool:
        """Whether to measure the fused form where one form is enough: compiling it takes twice as
        long, which is too long in a quick run.
        """
        return not self.quick

    def pick(self, full: t.Any, quick: t.Any) -> t.Any:
        """Return the size to use: ``full``, or ``quick`` in a quick run."""
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Sample:
    """The values that one case gave, one a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, next to a peer measured in the same rounds.

    :ivar goal: the highest ratio that is wanted, or with ``absolute`` the highest value of
        ``ours``; None where there is no goal.
    :ivar axis: what the rows of one name differ by, where they are the points of a curve; ``at`` is
        the point.
    """

    section: str
    name: str
    unit: str
    ours: Sample
    peer_name: str | None = None
    peer: Sample | None = None
    goal: float | None = None
    absolute: bool = False
    axis: str | None = None
    at: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.at is None else f"{self.name}, {amount(self.at)} {self.axis}"

    @property
    def ratio(self) -> float | None:
        return self.ours.median / self.peer.median if self.peer and self.peer.median else None

    @property
    def met(self) -> bool | None:
        reached = self.ours.median if self.absolute else self.ratio
        return None if self.goal is None or reached is None else reached <= self.goal

    def as_dict(self) -> dict[str, t.Any]:
        """Return the row as it stands in the report file; ``min`` and ``max`` are those of
        ``ours``.
        """
        peer = self.peer
        return {
            "section": self.section,
            "name": self.label,
            "unit": self.unit,
            "ours": self.ours.median,
            "min": self.ours.low,
            "max": self.ours.high,
            "n": len(self.ours.values),
            "peer_name": self.peer_name,
            "peer": peer.median if peer else None,
            "peer_min": peer.low if peer else None,
            "peer_max": peer.high if peer else None,
            "ratio": self.ratio,
            "goal": self.goal,
            "goal_is": None if self.goal is None else "value" if self.absolute else "ratio",
            "met": self.met,
            "curve": None if self.at is None else self.name,
            "axis": self.axis,
            "at": self.at,
        }


def interleave(
    cases: c.Mapping[str, c.Callable[[], float | dict[str, float]]], rounds: int
) -> dict[str, Sample]:
    """Run every case once a round, each round starting with another one, so that a slow spell of
    the machine hits all alike.

    :param cases: for each name, a function that measures once and returns the value, or several
        values by their own names.
    """
    names = list(cases)
    values: dict[str, list[float]] = collections.defaultdict(list)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            got = cases[name]()
            for key, value in got.items() if isinstance(got, dict) else [(name, got)]:
                values[key].append(value)
    return {name: Sample(tuple(got)) for name, got in values.items()}


def seconds(work: c.Callable[[], t.Any]) -> float:
    """Return how long ``work`` takes on the wall clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def command(
    words: c.Sequence[str], text: str | None = None, cwd: pathlib.Path | None = None
) -> str:
    """Run a peer's command and return what it printed; a failure ends the section.

    :param text: what it reads from its standard input.
    """
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise BenchError(
            f"{' '.join(words[:4])} ended with {done.returncode}:"
            f" {(done.stdout + done.stderr).strip()[-2000:]}"
        )
    return done.stdout


@contextlib.contextmanager
def one_cpu() -> c.Iterator[None]:
    """Stay on one CPU."""
    home = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(home)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, home)


def expect(what: str, got: object, want: object) -> None:
    """Hold a measurement to what it must have done."""
    if got != want:
        raise BenchError(f"{what}: {got!r}, but it must be {want!r}")


def table(head: c.Sequence[str], rows: c.Iterable[c.Sequence[str]]) -> str:
    """Return an aligned table: first column to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None) -> str:
    """Return a value with three to four significant digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def amount(number: int) -> str:
    """Return a number for people, a power of two in units of such."""
    for shift, unit in ((20, "M"), (10, "k")):
        if number >= 1 << shift and not number % (1 << shift):
            return f"{number >> shift}{unit}"
    return str(number)


def show(rows: c.Sequence[Row]) -> str:
    """Return the rows of one section as a table."""

    def goal(row: Row) -> str:
        if row.goal is None:
            return ""
        verdict = {True: "met", False: "MISSED", None: "not measured"}[row.met]
        return f"<= {row.goal:g}{' ' + row.unit if row.absolute else 'x'} {verdict}"

    return table(
        ("", "unit", "median", "min", "max", "n", "peer", "median", "min", "max", "ratio", "goal"),
        (
            (
                row.label,
                row.unit,
                *(number(v) for v in (row.ours.median, row.ours.low, row.ours.high)),
                str(len(row.ours.values)),
                row.peer_name or "",
                *(
                    number(v) if row.peer else ""
                    for v in (
                        (row.peer.median, row.peer.low, row.peer.high) if row.peer else (None,) * 3
                    )
                ),
                f"{row.ratio:.2f}" if row.ratio is not None else "",
                goal(row),
            )
            for row in rows
        ),
    )


def write(rows: c.Iterable[Row], output: str) -> None:
    """Write the report for machines: a list with one object a row."""
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(
        json.dumps([row.as_dict() for row in rows], indent=1) + "\n", encoding="utf-8"
    )
    os.replace(beside, path)
