# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests that cover a file, the quick suites first.

    .venv/bin/python tests/tools/tests_for.py plugins/module_utils/ct/top.py
    .venv/bin/python tests/tools/tests_for.py --list --depth 2 files/bpf/ct.c

covering.py decides which they are. Each suite is run, also after one that failed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pathlib
import sys

from covering import TARGETS, Covering, Refusal, chosen, covering, described
from run import HOME, PYTHON, ansible_test, bpf_file_system, gate, stand_in_for_get_pip
from tree import ROOT, copy_tree, environment, names, run

#: Files whose text says what they use.
READ = (".py", ".yml", "aliases")


def run_target(name: str) -> bool:
    """Run an integration target on the system's Python; return whether it passed."""
    where = ("--controller", f"origin:python={PYTHON}")
    target = ("--target", f"controller:python={PYTHON}@{os.path.realpath(sys.executable)}")
    allowed = ("--allow-root", "--allow-destructive")
    argv = ansible_test("integration", name, *where, *target, *allowed)
    return not gate(f"integration {name}", argv, minutes=15, HOME=str(HOME)).failed


def run_tests(found: Covering) -> bool:
    """Run the suites one after the other; return whether all passed."""
    passed = True
    with bpf_file_system(bool(set(found.tests) - {"unit"})):
        for suite, tests in found.tests.items():
            print(f"\n=== {suite}", flush=True)
            if suite == "integration":
                for test in tests:
                    passed &= run_target(test.removeprefix(TARGETS))
            else:
                argv = [sys.executable, "-m", "pytest", *tests]
                passed &= run(argv, ROOT, environment(), 60, quiet=False)[0] == 0
    return passed


def main() -> int:
    """Say what covers the file, and run it."""
    parser = argparse.ArgumentParser(description="Run the tests that cover a file.")
    parser.add_argument("file", nargs="?", default="")
    parser.add_argument("--list", action="store_true", help="only say which they are")
    parser.add_argument("--depth", type=int, default=1, help="imports between a test and the file")
    args = parser.parse_args()
    known = names()
    try:
        file = chosen(args.file, known, ROOT, pathlib.Path.cwd())
    except Refusal as exc:
        print(f"test-for: {exc}", file=sys.stderr)
        return 2
    texts = {
        name: (ROOT / name).read_text("utf-8") if name.endswith(READ) else "" for name in known
    }
    found = covering(file, texts, args.depth)
    print(described(file, found, args.depth), flush=True)
    if args.list or not found.tests:
        return 0
    if "integration" not in found.tests:
        return 0 if run_tests(found) else 1
    HOME.mkdir(parents=True, exist_ok=True)
    # ansible-test works on the copy in build/, which runs share: one waits for the other
    with (HOME / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copy_tree()
        stand_in_for_get_pip()
        return 0 if run_tests(found) else 1


if __name__ == "__main__":
    sys.exit(main())
