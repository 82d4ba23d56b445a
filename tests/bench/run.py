# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measure, print tables, write build/bench.json, draw docs/design/bench.svg and
docs/design/scaling.svg.

    python tests/bench/run.py [--quick] [section ...]

Wants root, a set-up clone (`make setup`), and a machine with nothing else to do. QUICK=1 in the
environment is --quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import platform
import signal
import sys
import time

import harness
import plot

# What the sections, which main() imports, import the collection from.
sys.path[:0] = [str(harness.ROOT / ".ansible/collections")]

#: Each is a module with a function ``measure(options)`` that yields the rows.
SECTIONS = {
    "packet": "One packet through the chain",
    "scaling": "A packet in tables of all sizes, and on more CPUs",
    "forward": "What a router does with a packet",
    "stream": "A TCP connection over veth",
    "lab": "Building labs",
    "read": "Reading the flow table",
    "playbook": "make lab",
    "swap": "Generations that take over under load",
}
#: What takes long in any size; with QUICK it is measured when it is asked for by name.
LONG = {"stream", "playbook", "swap"}


def main() -> int:
    """Run the sections; 1 when one of them failed. A missed goal is told, and no failure: it
    depends on the machine and its load.
    """
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measure the collection next to floors and peers."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        default=os.environ.get("QUICK", "") not in ("", "0"),
        help=f"small sizes, few rounds, within a minute; without {', '.join(sorted(LONG))}",
    )
    parser.add_argument(
        "--output",
        default=str(harness.ROOT / "build/bench.json"),
        help="the report for machines (default: %(default)s)",
    )
    parser.add_argument(
        "section",
        nargs="*",
        choices=[[], *SECTIONS],
        help=f"what to measure: {', '.join(SECTIONS)} (default: all)",
    )
    args = parser.parse_args()
    options = harness.Options(quick=args.quick)
    # so that what was made is taken away, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda number, dummy: sys.exit(128 + number))
    if os.geteuid():
        parser.error("the benchmark makes namespaces and loads programs: run it as root")

    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians"
        f" of interleaved runs{', quick' if options.quick else ''}"
    )
    rows: list[harness.Row] = []
    failed = False
    for name in args.section or [name for name in SECTIONS if not (options.quick and name in LONG)]:
        start, before = time.monotonic(), len(rows)
        print(f"\n== {SECTIONS[name]} ({name})", flush=True)
        try:
            for row in importlib.import_module(name).measure(options):
                rows.append(row)
        except Exception as exc:  # one section's trouble is no reason to lose the others
            print(f"FAILED: {type(exc).__name__}: {exc}", file=sys.stderr)
            failed = True
        print(harness.show(rows[before:]))
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        harness.write(rows, args.output)
    whole = not options.quick and not failed and not args.section
    directory = harness.ROOT / "docs/design" if whole else pathlib.Path(args.output).parent
    drawn = plot.draw([row.as_dict() for row in rows], directory, plot.note(options.quick))
    missed = [row.label for row in rows if row.met is False]
    print(
        f"\n{len(rows)} rows in {args.output}"
        + "".join(f", {path.relative_to(path.parents[1])}" for path in drawn)
        + (f"; goals missed: {', '.join(missed)}" if missed else "; no goal missed")
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
