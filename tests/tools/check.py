# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop of one change: the quick gates and the unit tests, in less than a minute on two CPUs.

    .venv/bin/python tests/tools/check.py                       all of them, side by side
    .venv/bin/python tests/tools/check.py "ruff check" layers   some of them

What takes longer is "make lint" and "make test". The tree itself is looked at, no copy of it, so
that a run of "make test" may go on meanwhile.
"""

from __future__ import annotations

import collections.abc as c
import concurrent.futures
import dataclasses
import os
import pathlib
import sys
import threading
import time

from tree import ROOT, VENV, Argv, environment, names, run

COLLECTIONS = ROOT / ".ansible/collections"
#: The collection by its own name: a link that "make setup" makes.
LINK = COLLECTIONS / "ansible_collections/ebpf/conntrack"
#: Directories whose files are run as they stand and import each other by their bare names.
SCRIPTS = ("tests/bench", "tests/tools")
LAYERS = "tests/unit/test_layers.py"


@dataclasses.dataclass(frozen=True)
class Gate:
    """A command whose exit status says whether all is well."""

    name: str
    argv: Argv
    cwd: pathlib.Path = ROOT

    def passes(self) -> bool:
        """Run it; print one line, and what it printed when it fails."""
        start = time.monotonic()
        status, out = run(self.argv, self.cwd, environment(MYPYPATH=str(COLLECTIONS)), 10, True)
        verdict = "FAIL" if status else "ok  "
        lines = [f"{verdict} {self.name} ({time.monotonic() - start:.1f} s)"]
        print("\n".join([*lines, *([out.rstrip()] if status else [])]), flush=True)
        return status == 0


def types() -> list[Gate]:
    """Return the gates of mypy: the collection by its name, then each directory of scripts.

    Their cache is their own: that of "make lint" knows the files by other paths.
    """
    common: list[str | pathlib.Path] = [
        VENV / "mypy",
        "--config-file",
        ROOT / "pyproject.toml",
        "--cache-dir",
        ROOT / ".mypy_cache/check",
    ]
    python = [pathlib.PurePath(name) for name in names() if name.endswith(".py")]
    scripts = {where: [path for path in python if path.is_relative_to(where)] for where in SCRIPTS}
    apart = {path for paths in scripts.values() for path in paths}
    files = [LINK / path for path in python if path not in apart]
    return [
        Gate("mypy", [*common, *files], COLLECTIONS),
        *(
            Gate(
                f"mypy {where}",
                [*common, "--follow-imports", "silent", *(ROOT / path for path in paths)],
                ROOT / where,
            )
            for where, paths in scripts.items()
        ),
    ]


def pytest(*arguments: str) -> list[str]:
    """Return the command line of pytest."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def lanes() -> list[list[Gate]]:
    """Return what runs side by side: in each lane one gate after the other, the quickest first."""
    workers = str(len(os.sched_getaffinity(0)))
    return [
        [
            Gate("ruff check", [VENV / "ruff", "check", "."]),
            Gate("ruff format", [VENV / "ruff", "format", "--check", "."]),
            Gate("file headers", [sys.executable, "tests/tools/headers.py"]),
            Gate("layers", pytest(LAYERS)),
            *types(),
        ],
        [Gate("unit tests", pytest("-n", workers, f"--ignore={LAYERS}", "tests/unit"))],
    ]


def main(wanted: c.Sequence[str]) -> int:
    """Run the gates, or those of the names; return the exit status."""
    gates = lanes()
    known = [gate.name for lane in gates for gate in lane]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        known_text = ", ".join(known)
        print(f"check: no gate is called {', '.join(unknown)}; there are {known_text}")
        return 2
    start = time.monotonic()
    failed: list[str] = []
    lock = threading.Lock()

    def walk(lane: c.Iterable[Gate]) -> None:
        for gate in lane:
            if (not wanted or gate.name in wanted) and not gate.passes():
                with lock:
                    failed.append(gate.name)

    with concurrent.futures.ThreadPoolExecutor(len(gates)) as pool:
        list(pool.map(walk, gates))
    seconds = time.monotonic() - start
    print(f"FAIL {', '.join(failed)}" if failed else f"ok   all of it in {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
