# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the gates and the test suites by name, and say at the end how many checks passed and failed.

    .venv/bin/python tests/tools/run.py lint unit integration oracle e2e fleet install

A gate is one check; a suite has as many as pytest or ansible-test counts in it. A suite that is
missing, empty or breaks down counts as one failure. With ``all``, everything is run, and what the
tests leave behind on the machine is a failure too.
"""

from __future__ import annotations

import collections.abc as c
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import leftovers
from tree import BUILD, ROOT, SUPPORT, TREE, VENV, Argv, build_tarball, copy_tree, environment, run

#: The names of the jobs that nobody has taken yet, a line each.
QUEUE = BUILD / "jobs"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# ansible-test keeps its virtual environments under HOME: one of our own outlives "make clean" and
# stays off the user's.
HOME = ROOT / ".ansible/home"
# Directories whose files are run as they stand and import each other by their bare names.
SCRIPTS = ("tests/bench", "tests/tools")
PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class Tally:
    """How many checks passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def gate(name: str, argv: Argv, cwd: pathlib.Path = TREE, minutes: float = 10, **env: str) -> Tally:
    """Run one gate; show its output when it fails."""
    start = time.monotonic()
    status, out = run(argv, cwd, environment(**env), minutes, quiet=True)
    print(
        f"{'ok  ' if status == 0 else 'FAIL'} {name} ({time.monotonic() - start:.1f} s)", flush=True
    )
    if status:
        print(out, flush=True)
    return Tally(passed=1) if status == 0 else Tally(failed=1)


def ansible_test(*arguments: str) -> list[str]:
    """Return the command line of ansible-test."""
    return [str(VENV / "ansible-test"), *arguments, "--color", "no"]


def stand_in_for_get_pip() -> None:
    """Lay the script where ansible-test looks before it downloads one."""
    cache = HOME / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "tests/tools/get_pip.py", cache / "get_pip_24_2.py")


def sanity(*more: str) -> Tally:
    """Run what ansible-test finds fault with in all files, or but for those of ``more``."""
    argv = ansible_test("sanity", "--local", "--python", PYTHON, *more)
    return gate("ansible-test sanity", argv, minutes=20, HOME=str(HOME))


def lint(*more: str) -> Tally:
    """Run every gate.

    :param more: options of ansible-test sanity.
    """
    collections = str(BUILD)
    stand_in_for_get_pip()
    tally = gate("ruff check", [VENV / "ruff", "check", "--no-cache", "."], ROOT)
    tally += gate("ruff format", [VENV / "ruff", "format", "--no-cache", "--check", "."], ROOT)
    tally += gate("file headers", [sys.executable, ROOT / "tests/tools/headers.py", TREE])
    tally += mypy()
    tally += sanity(*more)
    tally += gate(
        "ansible-lint",
        [VENV / "ansible-lint", "--offline", "--profile", "production"],
        ANSIBLE_COLLECTIONS_PATH=collections,
        NO_COLOR="1",
    )
    docs: Argv = [
        VENV / "antsibull-docs",
        "lint-collection-docs",
        "--plugin-docs",
        "--validate-collection-refs",
        "all",
        "--disallow-unknown-collection-refs",
        ".",
    ]
    tally += gate("antsibull-docs", docs, ANSIBLE_COLLECTIONS_PATH=collections)
    tally += gate("antsibull-changelog", [VENV / "antsibull-changelog", "lint"])
    return tally + importer()


def mypy() -> Tally:
    """Check the types: the collection by its own name, then the directories of scripts, which
    import each other plainly.
    """
    scripts = [TREE / where for where in SCRIPTS]
    common: list[str | pathlib.Path] = [
        VENV / "mypy",
        "--config-file",
        ROOT / "pyproject.toml",
        "--cache-dir",
        ROOT / ".mypy_cache",
    ]
    files = [path for path in sorted(TREE.rglob("*.py")) if not set(scripts) & set(path.parents)]
    tally = gate("mypy", [*common, *files], BUILD, MYPYPATH=str(BUILD))
    for script in scripts:
        argv: Argv = [*common, "--follow-imports", "silent", *sorted(script.rglob("*.py"))]
        tally += gate(f"mypy {script.relative_to(TREE)}", argv, script, MYPYPATH=str(BUILD))
    return tally


def importer() -> Tally:
    """Build the tarball and let Galaxy's importer judge it."""
    try:
        tarball = build_tarball()
    except RuntimeError as exc:
        print(f"FAIL collection build\n{exc}", flush=True)
        return Tally(failed=1)
    print("ok   collection build", flush=True)
    status, out = run(
        ["bash", "tests/tools/setup.sh", "importer"], ROOT, environment(), 10, quiet=True
    )
    if status:
        print(f"FAIL galaxy-importer: cannot install it\n{out}", flush=True)
        return Tally(passed=1, failed=1)
    config = BUILD / "importer.cfg"
    config.write_text(
        "[galaxy-importer]\nRUN_ANSIBLE_TEST = False\nRUN_FLAKE8 = False\nOFFLINE_ANSIBLE_LINT ="
        " True\nCHECK_REQUIRED_TAGS = True\n",
        encoding="utf-8",
    )
    venv = ROOT / ".venv/importer/bin"
    path = f"{venv}:{environment()['PATH']}"
    return Tally(passed=1) + gate(
        "galaxy-importer",
        [venv / "python", "-m", "galaxy_importer.main", str(tarball)],
        BUILD,
        GALAXY_IMPORTER_CONFIG=str(config),
        PATH=path,
    )


def pytest(
    name: str, minutes: float, *arguments: str, start: Argv = (sys.executable, "-m", "pytest")
) -> Tally:
    """Run one suite of tests/ with pytest, in the tree itself; count what its report holds.

    :param arguments: what to run, when it is not all of the suite.
    """
    report = BUILD / f"junit-{name}.xml"
    report.unlink(missing_ok=True)
    argv = [*start, *(arguments or (f"tests/{name}",)), f"--junitxml={report}"]
    status, dummy = run(argv, ROOT, environment(), minutes, quiet=False)
    tally = Tally()
    if report.exists():
        suites = list(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
        count = {
            key: sum(int(suite.get(key, "0")) for suite in suites)
            for key in ("tests", "failures", "errors", "skipped")
        }
        bad = count["failures"] + count["errors"]
        tally = Tally(count["tests"] - bad - count["skipped"], bad, count["skipped"])
    if status and not tally.failed:
        print(f"FAIL tests/{name}: pytest ended with status {status}", flush=True)
        tally += Tally(failed=1)
    return tally


def unit() -> Tally:
    """Run the unit tests."""
    return pytest("unit", 5)


def ansible_test_units() -> Tally:
    """Run the unit tests as ansible-test runs those of a collection."""
    argv = ansible_test("units", "--local", "--python", PYTHON)
    return gate("ansible-test units", argv, minutes=20, HOME=str(HOME))


def faults_everywhere() -> Tally:
    """Break the modules at each of their system calls; make test does so at some."""
    os.environ["FAULT_SITES"] = "all"
    return pytest("faults", 90, "tests/e2e/test_faults.py")


def oracle_long() -> Tally:
    """Run the differential suite in another order, with all of its random traffic in each form."""
    os.environ["RANDOM_TRAFFIC"] = "all"
    return pytest("oracle", 90, "tests/oracle", "--every-form", "--shuffle", "1")


def integration() -> Tally:
    """Run each integration target with ansible-test, on the system's Python, which sees the
    system's libraries.
    """
    targets = sorted(
        path.parent.name
        for path in (TREE / "tests/integration/targets").glob("*/aliases")
        if "hidden" not in path.read_text(encoding="utf-8").split()
    )
    if not targets:
        print("FAIL no integration targets", flush=True)
        return Tally(failed=1)
    # Read as variables by ansible-test: see tests/support/compiled.py.
    (TREE / "tests/integration/integration_config.yml").write_text(
        f"program_cache: {SUPPORT}\n", encoding="utf-8"
    )
    system = os.path.realpath(sys.executable)
    where = [
        "--controller",
        f"origin:python={PYTHON}",
        "--target",
        f"controller:python={PYTHON}@{system}",
    ]
    return sum(
        (
            gate(
                f"integration {name}",
                ansible_test("integration", name, *where, "--allow-root", "--allow-destructive"),
                minutes=15,
                HOME=str(HOME),
            )
            for name in targets
        ),
        Tally(),
    )


IN_PLACES_OF_ITS_OWN = (
    "unshare",
    "--net",
    "--mount",
    "--propagation",
    "private",
    sys.executable,
    "tests/tools/apart.py",
)


#: make test has no time for the others.
IN_TEST = ("-m", "not only_in_test_long")


def e2e_here() -> Tally:
    """Run what e2e_apart() does not."""
    return pytest("e2e", 35, "tests/e2e", *IN_TEST, *(f"--ignore={path}" for path in APART))


def fleet_here() -> Tally:
    """Run the tests of a fleet that show most in little time."""
    return pytest("fleet", 10, "tests/fleet/test_rollout.py", "-m", "not only_in_test_fleet")


def e2e_apart(number: int) -> Tally:
    """Run one of GROUPS: tests that can do with a network, pins and directories of their own."""
    files = (f"tests/e2e/test_{name}.py" for name in GROUPS[number])
    return pytest(f"e2e-apart-{number}", 35, *IN_TEST, *files, start=IN_PLACES_OF_ITS_OWN)


def oracle_apart() -> Tally:
    """Run the differential suite beside other tests."""
    return pytest("oracle", 30, "tests/oracle", start=IN_PLACES_OF_ITS_OWN)


SUITES: dict[str, c.Callable[[], Tally]] = {
    "lint": lint,
    "unit": unit,
    "integration": integration,
    "oracle": lambda: pytest("oracle", 30),
    "e2e": lambda: pytest("e2e", 50),
    "host": lambda: pytest("host", 8),
    "fleet": lambda: pytest("fleet", 60, "tests/fleet", "--ignore=tests/fleet/test_vm.py"),
    "install": lambda: pytest("install", 10),
}


def molecule() -> Tally:
    """Run the scenarios of extensions/molecule in the copied tree."""
    venv = ROOT / ".venv/molecule/bin"
    env = {
        "ANSIBLE_COLLECTIONS_PATH": str(BUILD),
        "PATH": f"{venv}:{environment()['PATH']}",
        "NO_COLOR": "1",
        "HOME": str(HOME),
    }
    return gate(
        "molecule", [venv / "molecule", "test", "--all"], TREE / "extensions", minutes=15, **env
    )


#: Suites that run only when they are named, for what they need takes long to install.
ON_DEMAND: dict[str, c.Callable[[], Tally]] = {
    "picture": lambda: pytest("picture", 10),
    "vm": lambda: pytest("vm", 40, "tests/fleet/test_vm.py"),
    "units": ansible_test_units,
    "sanity": sanity,
    "e2e-long": lambda: pytest("e2e", 60, "tests/e2e", "-m", "only_in_test_long"),
    "faults": faults_everywhere,
    "oracle-long": oracle_long,
    "molecule": molecule,
}

#: Suites that pin things, in directories of their own.
KERNEL_SUITES = {
    *("integration", "oracle", "oracle-long", "e2e", "e2e-long", "faults"),
    *("picture", "molecule"),
}
#: Files of tests/e2e that touch nothing of the machine's but through namespaces, those that take
#: long first; each group is one job.
GROUPS = (
    ("generation",),
    ("guests", "forward"),
    ("health", "http"),
    ("replay", "objects", "watch"),
    ("migration", "migration_merge", "swap"),
    ("ct", "ct_graph", "ct_load", "ct_top", "metrics"),
    ("floods", "fleet_modules", "inventory", "rollout_role"),
    ("netns_lab", "restore", "lab_attachments"),
)
APART = [f"tests/e2e/test_{name}.py" for group in GROUPS for name in group]
#: When everything is run, a second process takes one of these after the other, and so does this one
#: when it is done with HERE: two CPUs have something to do until the end.
JOBS: dict[str, c.Callable[[], Tally]] = {
    # what runs on hosts; ruff and mypy look at the tests, and pylint would take minutes for them
    "lint": functools.partial(lint, "--exclude", "tests/"),
    "oracle": oracle_apart,
    "unit": unit,
    **{
        f"e2e, apart, {number + 1}": functools.partial(e2e_apart, number)
        for number in range(len(GROUPS))
    },
}
#: Meanwhile these are run. ansible-lint takes what the integration tests leave for a moment for
#: ours, so those come late.
HERE: dict[str, c.Callable[[], Tally]] = {
    "e2e": e2e_here,
    **{name: SUITES[name] for name in ("integration", "host")},
    "fleet": fleet_here,
    "install": SUITES["install"],
}


@contextlib.contextmanager
def bpf_file_system(wanted: bool) -> c.Iterator[None]:
    """Have a BPF file system where distributions mount it; one that was missing goes again. That
    the collection mounts it itself is tested elsewhere.
    """
    missing = (
        wanted
        and os.geteuid() == 0
        and not any(
            line.split()[1] == leftovers.BPFFS
            for line in pathlib.Path("/proc/self/mounts").read_text("utf-8").splitlines()
        )
    )
    if missing:
        subprocess.run(["mount", "-t", "bpf", "bpf", leftovers.BPFFS], check=True)
    try:
        yield
    finally:
        if missing:
            subprocess.run(["umount", leftovers.BPFFS], check=True)


def orphans() -> list[str]:
    """Kill the processes that outlived the suites which started them; return their command lines.

    They are found as children: this process is the subreaper of all that descends from it.
    """
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = (
                stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            )
            if int(parent) != os.getpid() or state == "Z":
                continue
            found.append(
                (stat.parent / "cmdline")
                .read_text(encoding="utf-8", errors="replace")
                .replace("\0", " ")
                .strip()
            )
            os.kill(int(stat.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def left_behind(before: leftovers.Snapshot) -> Tally:
    """Compare the machine with what it was; name what is there now and was not, or went away."""
    lines = [f"process {line}" for line in orphans()] + leftovers.differences(
        before, leftovers.snapshot()
    )
    print(
        "\n".join(
            [
                f"{'FAIL' if lines else 'ok  '} nothing is left behind",
                *(f"  {line}" for line in lines),
            ]
        ),
        flush=True,
    )
    return Tally(failed=1) if lines else Tally(passed=1)


def main(names: list[str]) -> int:
    """Check the names and run the suites; the last line tells the sum."""
    if names == ["--aside"]:
        return aside()
    unknown = set(names) - set(SUITES) - set(ON_DEMAND) - {"all"}
    if unknown or not names:
        print(
            f"usage: run.py all | {' '.join([*SUITES, *ON_DEMAND])}"
            + (f"; not known: {', '.join(sorted(unknown))}" if unknown else ""),
            file=sys.stderr,
        )
        return 2
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs share build/: one waits for the other
        return run_suites(list(SUITES) if "all" in names else names, everything="all" in names)


def run_suites(names: list[str], everything: bool) -> int:
    """Run the suites one after the other, or in two processes when it is everything, and then look
    for what is left behind; return the exit status.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = leftovers.snapshot()
    BUILD.mkdir(exist_ok=True)
    copy_tree()
    results: dict[str, Tally] = {}
    known = {**SUITES, **ON_DEMAND}
    with (
        bpf_file_system(bool(KERNEL_SUITES & set(names))),
        beside(everything, results),
    ):
        for name, suite in HERE.items() if everything else [(name, known[name]) for name in names]:
            results[name] = timed(name, suite)
        if everything:
            results.update(work())
    if everything:
        results["clean"] = left_behind(before)
    total = sum(results.values(), Tally())
    print("\n" + "\n".join(f"{name:12} {tally}" for name, tally in results.items()))
    print(f"{total}", flush=True)
    return 1 if total.failed else 0


def timed(name: str, suite: c.Callable[[], Tally]) -> Tally:
    """Run one suite between two lines that name it."""
    print(f"\n=== {name}", flush=True)
    start = time.monotonic()
    tally = suite()
    print(f"--- {name}: {tally} in {time.monotonic() - start:.0f} s", flush=True)
    return tally


def work() -> dict[str, Tally]:
    """Take jobs until none is left; return what they counted."""
    return {name: timed(name, JOBS[name]) for name in iter(next_job, None)}


def next_job() -> str | None:
    """Take the next of JOBS, that no other process has taken; None when none is left."""
    with QUEUE.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        names = file.read().splitlines()
        file.seek(0)
        file.write("".join(f"{name}\n" for name in names[1:]))
        file.truncate()
    return names[0] if names else None


@contextlib.contextmanager
def beside(wanted: bool, results: dict[str, Tally]) -> c.Iterator[None]:
    """Let a process of its own work() meanwhile; show what it printed when both are done."""
    if not wanted:
        yield
        return
    QUEUE.write_text("".join(f"{name}\n" for name in JOBS), encoding="utf-8")
    told, printed = BUILD / "aside.json", BUILD / "aside.log"
    told.unlink(missing_ok=True)
    with printed.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--aside"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield
            process.wait()
        finally:
            process.kill()
            process.wait()
    print(printed.read_text(encoding="utf-8", errors="replace"), flush=True)
    found = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    results.update((name, Tally(*counted)) for name, counted in found.items())
    results.update((name, Tally(failed=1)) for name in JOBS if name not in results)


def aside() -> int:
    """Work for beside(); what was counted goes to a file."""
    found = {name: dataclasses.astuple(tally) for name, tally in work().items()}
    (BUILD / "aside.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
