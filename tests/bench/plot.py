# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two pictures of the benchmark's report, as SVG: bars of the main measurements next to their
peers, and the curves.

    python tests/bench/plot.py [build/bench.json [directory]]

`make bench` draws them into docs/design/ after a full run, else into build/.
"""

from __future__ import annotations

import collections
import collections.abc as c
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import sys
import typing as t
from xml.sax.saxutils import escape

import harness

ReportRow = dict[str, t.Any]

#: What the bars show: section, and names without the variant. A name is there once with all its
#: variants and peers.
MAIN = (
    ("packet", r"established (TCP|UDP|TCP over IPv6) \(repeat\)"),
    ("packet", r"new TCP flow, table 128k"),
    ("packet", r"random hit in 1M TCP flows"),
    ("forward", r"(1 flow|[0-9]+ flows|new flows), forwarded in XDP"),
    ("lab", r"lab of (100|1000) namespaces: build"),
    ("read", r"1M flows: (summary|JSON lines)"),
    ("playbook", r"make lab, second run"),
)
VARIANT = re.compile(r", (chain|fused)\b")

OURS, FUSED, PEER, INK, FAINT = "#1f6feb", "#0b3d91", "#b9bec5", "#1f2328", "#6e7781"
LINES = {"chain": OURS, "fused": FUSED, "": OURS}
FONT = 'font-family="Helvetica, Arial, sans-serif"'
WIDTH = 1120


@dataclasses.dataclass(frozen=True)
class Bar:
    """One value with its spread."""

    label: str
    value: float
    low: float
    high: float
    ours: bool


def split(name: str) -> tuple[str, str]:
    """Return a name without its variant, and the variant.

    >>> split("established TCP, fused (repeat)")
    ('established TCP (repeat)', 'fused')
    """
    found = VARIANT.search(name)
    return VARIANT.sub("", name), found[1] if found else ""


def groups(rows: c.Iterable[ReportRow]) -> dict[tuple[str, str], list[Bar]]:
    """Return the bars of each main measurement by its name and unit: ours by variant, then the
    peers.
    """
    rows = list(rows)
    found: dict[tuple[str, str], dict[str, Bar]] = collections.defaultdict(dict)
    for section, pattern in MAIN:
        for row in rows:
            subject, variant = split(row["name"])
            if row["section"] != section or not re.fullmatch(pattern, subject):
                continue
            bars = found[subject, row["unit"]]
            bars[variant or "ours"] = Bar(
                variant or "ours", row["ours"], row["min"], row["max"], True
            )
            if row["peer_name"] and row["peer_name"] not in bars:
                bars[row["peer_name"]] = Bar(
                    row["peer_name"], row["peer"], row["peer_min"], row["peer_max"], False
                )
    return {key: sorted(bars.values(), key=lambda one: not one.ours) for key, bars in found.items()}


def text(
    x: float,
    y: float,
    words: str,
    size: int = 12,
    colour: str = INK,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"'
        f' text-anchor="{anchor}"{weight} {FONT}>{escape(words)}</text>'
    )


def picture(title: str, note: str, height: float, parts: c.Iterable[str]) -> str:
    """Return a whole SVG document."""
    head = (
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}"'
            f' viewBox="0 0 {WIDTH} {height:.0f}">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>',
        text(24, 34, title, 18, bold=True),
        text(24, 54, note, 12, FAINT),
    )
    return "\n".join([*head, *parts, "</svg>", ""])


def bars(rows: c.Iterable[ReportRow], note: str) -> str:
    """Return the picture of the main measurements; shorter bars are better. The bars of one group
    share a scale.
    """
    column, line, label = WIDTH / 2, 17, 175
    room = column - label - 150
    heights, parts = [72.0, 72.0], []
    for (subject, unit), group in groups(rows).items():
        side = heights.index(min(heights))
        x, y = 24 + side * column, heights[side]
        parts.append(
            text(x, y + 12, f"{subject.removesuffix(' (repeat)')} [{unit}]", 13, bold=True)
        )
        longest, best = max(one.high for one in group), min(one.value for one in group if one.ours)
        for number, one in enumerate(group):
            top = y + 20 + number * line
            colour = (FUSED if one.label == "fused" else OURS) if one.ours else PEER
            width = max(room * one.value / longest, 1)
            middle, start = top + line / 2 - 1, x + label
            parts += [
                text(start - 8, top + 12, one.label, 12, INK if one.ours else FAINT, "end"),
                (
                    f'<rect x="{start:.1f}" y="{top:.1f}" width="{width:.1f}" height="{line - 4}"'
                    f' fill="{colour}"/>'
                ),
                (
                    f'<path d="M{start + room * one.low / longest:.1f}'
                    f' {middle:.1f}H{start + room * one.high / longest:.1f}" stroke="{INK}"'
                    ' stroke-width="1"/>'
                ),
            ]
            ratio = "" if one.ours or not one.value else f" (ours {best / one.value:.2f}x)"
            parts.append(
                text(
                    start + room * one.high / longest + 6,
                    top + 12,
                    f"{harness.number(one.value)}{ratio}",
                    12,
                    INK if one.ours else FAINT,
                )
            )
        heights[side] = y + 20 + len(group) * line + 18
    return picture(
        "What it costs, next to its peers (shorter is better)",
        f"{note}; thin lines: lowest to highest",
        max(heights) + 6,
        parts,
    )


def nice(highest: float) -> float:
    """Return a round number that is at least ``highest``."""
    power = 10 ** math.floor(math.log10(highest))
    return float(
        next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest)
    )


def curves(rows: c.Iterable[ReportRow], note: str) -> str:
    """Return the picture of the curves: a panel for each measurement, a line for each variant and
    peer, from 0 up.
    """
    panels: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        if row["curve"] is not None:
            subject, variant = split(row["curve"])
            lines = panels.setdefault((subject, row["unit"], row["axis"]), {})
            lines.setdefault(variant, {})[row["at"]] = row["ours"]
            if row["peer_name"]:
                lines.setdefault(row["peer_name"], {})[row["at"]] = row["peer"]
    width, height, parts = WIDTH / 3, 250.0, []
    for number, ((subject, unit, axis), lines) in enumerate(panels.items()):
        left, top = number % 3 * width + 62, number // 3 * height + 104
        parts += panel(subject, unit, axis, lines, left, top, width - 120, height - 100)
    return picture("How it scales", note, 76 + math.ceil(len(panels) / 3) * height, parts)


def panel(
    subject: str,
    unit: str,
    axis: str,
    lines: c.Mapping[str, c.Mapping[int, float]],
    left: float,
    top: float,
    wide: float,
    high: float,
) -> list[str]:
    """Return the parts of one panel; what lies along is doubled from mark to mark."""
    points = sorted({at for line in lines.values() for at in line})
    most = nice(max(value for line in lines.values() for value in line.values()))
    low, span = math.log2(points[0]), max(math.log2(points[-1]) - math.log2(points[0]), 1)
    parts = [text(left - 38, top - 14, f"{subject} [{unit}]", 13, bold=True)]
    for share in (0, 0.5, 1):
        y = top + high * (1 - share)
        parts += [
            f'<path d="M{left:.1f} {y:.1f}h{wide:.1f}" stroke="#d8dee4"/>',
            text(left - 6, y + 4, f"{most * share:g}", 11, FAINT, "end"),
        ]
    for at in points:
        parts.append(
            text(
                left + wide * (math.log2(at) - low) / span,
                top + high + 16,
                harness.amount(at),
                11,
                FAINT,
                "middle",
            )
        )
    parts.append(text(left + wide / 2, top + high + 32, axis, 11, FAINT, "middle"))
    taken: list[float] = []
    for name, line in sorted(lines.items(), key=lambda item: item[1][max(item[1])]):
        colour = LINES.get(name, FAINT)
        places = [
            (left + wide * (math.log2(at) - low) / span, top + high * (1 - value / most))
            for at, value in sorted(line.items())
        ]
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" fill="none"'
            f' stroke="{colour}" stroke-width="2"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        # names of lines that end close together stand above each other
        y = min([places[-1][1] + 4, *(other - 13 for other in taken)])
        taken.append(y)
        parts.append(text(places[-1][0] + 8, y, name or "ours", 11, colour))
    return parts


def draw(rows: c.Collection[ReportRow], directory: pathlib.Path, note: str) -> list[pathlib.Path]:
    """Write the pictures for which the report has rows and return their paths."""
    made = []
    for name, wanted, paint in (
        ("bench.svg", bool(groups(rows)), bars),
        ("scaling.svg", any(row["curve"] for row in rows), curves),
    ):
        if wanted:
            made.append(directory / name)
            made[-1].write_text(paint(rows, note), encoding="utf-8")
    return made


def note(quick: bool = False) -> str:
    """Return what every picture says about where its numbers come from."""
    kernel = ".".join(platform.release().split(".")[:2])
    return (
        f"Linux {kernel}, {os.cpu_count()} CPUs; medians of interleaved"
        f" runs{', a quick run' if quick else ''}"
    )


if __name__ == "__main__":
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else harness.ROOT / "build/bench.json"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent
    for made in draw(json.loads(source.read_text(encoding="utf-8")), target, note()):
        print(made)
