# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the collection with other versions of ansible-core and pyroute2: what
docs/reference/compatibility.md tells.

    .venv/bin/python tests/tools/versions.py [--list] [NAME ...]

Each release of ansible-core gets a venv under .ansible/versions with the newest Python for it that
the machine has, and runs the unit tests; each with each pyroute2, in a venv of the system's Python,
builds the lab, attaches the chain, sends traffic through it, does so again, and takes it away, in
places of its own. NAMEs choose releases and parts, of those that --list shows. The table is
printed, and kept in build/versions.json.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import apart
import leftovers
import run as gates
from tree import BUILD, ROOT, TREE, Argv, copy_tree, environment, run

VENVS = ROOT / ".ansible/versions"
SYSTEM = "/usr/bin/python3"
#: What the unit tests need besides ansible-core, in the versions of constraints.txt.
UNIT = (
    "pytest",
    "pytest-timeout",
    "pytest-mock",
    "pytest-xdist",
    "hypothesis",
    "mock",
    "pyte",
    "scapy",
)
RECAP = re.compile(r"^\S+ +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Controller:
    """A release of ansible-core, and the Python that runs it.

    :ivar wanted: what pip is asked for.
    :ivar python: the Python's version.
    """

    wanted: str
    python: str

    @property
    def name(self) -> str:
        return (
            f"{self.wanted.partition('==')[2].removesuffix('.*') or 'newest'}-python{self.python}"
        )


CONTROLLERS = (
    Controller("ansible-core==2.19.*", "3.11"),
    Controller("ansible-core==2.20.*", "3.12"),
    Controller("ansible-core", "3.13"),
)
UNIT_TESTS, IMPORTS = "unit", "import"
#: The Pythons that may run modules, the oldest and the newest.
TARGETS = ("3.9", "3.13")
#: By name: what pip is asked for, for the target.
LIBRARIES = {"pyroute2-0.7.2": "pyroute2==0.7.2", "pyroute2-0.9": "pyroute2==0.9.*"}


@dataclasses.dataclass(frozen=True)
class Line:
    """What one check said."""

    what: str
    versions: str
    passed: bool
    said: str
    seconds: float


def python(version: str) -> str | None:
    """Return an interpreter of that version: the system's, one on the path, or pyenv's; None where
    the machine has none.
    """
    ours = sorted(
        pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv")).glob(
            f"versions/{version}.*/bin/python3"
        )
    )
    for candidate in (
        SYSTEM,
        shutil.which(f"python{version}", path=environment()["PATH"]),
        *map(str, reversed(ours)),
    ):
        if candidate and os.path.exists(candidate):
            told = subprocess.run(
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if told.stdout.strip() == version:
                return candidate
    return None


def pinned(names: c.Iterable[str]) -> list[str]:
    """Return requirements with the versions of constraints.txt."""
    known = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    return [f"{name}=={known[name]}" if name in known else name for name in names]


def venv(name: str, interpreter: str, wanted: c.Sequence[str], *flags: str) -> pathlib.Path:
    """Return the Python of a venv that holds what is wanted; made where it is missing or holds
    something else.

    :raises RuntimeError: with what pip said.
    """
    directory = VENVS / name
    stamp, content = directory / ".wanted", " ".join([interpreter, *flags, *wanted])
    if not stamp.exists() or stamp.read_text("utf-8") != content:
        shutil.rmtree(directory, ignore_errors=True)
        pip: Argv = [
            directory / "bin/python",
            "-m",
            "pip",
            "install",
            "-q",
            "--no-input",
            "--disable-pip-version-check",
            *wanted,
        ]
        make: Argv = [interpreter, "-m", "venv", *flags, directory]
        for argv in (make, pip):
            status, out = run(argv, ROOT, environment(), 15, quiet=True)
            if status:
                raise RuntimeError(out)
        stamp.write_text(content, "utf-8")
    return directory / "bin/python"


def version_of(interpreter: pathlib.Path, package: str) -> str:
    """Return the version of a package that an interpreter has."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def unit_tests(controller: pathlib.Path) -> tuple[bool, str]:
    """Run the unit tests with a controller's Python; return whether they passed, and the line that
    tells how many.
    """
    status, out = run(
        [controller, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"],
        ROOT,
        environment(),
        15,
        quiet=True,
    )
    if status:
        print(out, flush=True)
    return status == 0, (out.strip().splitlines() or ["nothing"])[-1].strip("= ")


def imports(interpreter: str) -> tuple[bool, str]:
    """Compile and import all that runs on targets with an interpreter, by ansible-test; return
    whether it can be.
    """
    gates.HOME.mkdir(parents=True, exist_ok=True)
    gates.stand_in_for_get_pip()
    env = environment(HOME=str(gates.HOME))
    env["PATH"] = f"{pathlib.Path(interpreter).parent}:{env['PATH']}"
    for test in ("compile", "import"):
        argv = gates.ansible_test(
            "sanity",
            "--local",
            "--python",
            pathlib.Path(os.path.realpath(interpreter)).name.removeprefix("python"),
            "--test",
            test,
        )
        status, out = run(argv, TREE, env, 10, quiet=True)
        if status:
            print(out, flush=True)
            return False, f"ansible-test sanity --test {test} ended with {status}"
    return True, "all that runs on targets compiles and can be imported"


def lab(controller: pathlib.Path, target: pathlib.Path) -> tuple[bool, str]:
    """Run the playbooks and the inventory in places of their own; return whether all went well, and
    what changed.
    """
    with tempfile.TemporaryDirectory() as directory:
        status, out = run(
            [
                "unshare",
                "--net",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                __file__,
                "--inside",
                controller,
                target,
                directory,
            ],
            ROOT,
            environment(),
            15,
            quiet=True,
        )
    if status:
        print(out, flush=True)
    return status == 0, (out.strip().splitlines() or ["nothing"])[-1]


def inside(controller: pathlib.Path, target: pathlib.Path, directory: pathlib.Path) -> int:
    """Do what lab() is for, on a machine of this process's own; return the exit status."""
    for command in apart.SET_UP:
        subprocess.run(command, check=True)
    before = leftovers.snapshot()
    host = {"ansible_connection": "local", "ansible_python_interpreter": str(target)}
    (directory / "hosts.yml").write_text(
        json.dumps({"all": {"hosts": {"localhost": host}}}), "utf-8"
    )
    (directory / "lab.yml").write_text(
        json.dumps({"plugin": "ebpf.conntrack.netns_lab", "python": str(target), "machine": ""}),
        "utf-8",
    )
    variables = {
        "xdp_ct_install": False,
        "netns_lab_install": False,
        "xdp_ct_service": False,
        "xdp_ct_prefix": str(directory / "prefix"),
    }
    (directory / "vars.json").write_text(json.dumps(variables), "utf-8")
    env = environment(ANSIBLE_DEPRECATION_WARNINGS="True", ANSIBLE_NOCOLOR="1")

    def ansible(tool: str, inventory: str, *argv: str) -> str:
        command = [str(controller.parent / tool), "-i", str(directory / inventory), *argv]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout + done.stderr, flush=True)
        if done.returncode:
            raise SystemExit(f"{tool} {argv[-1]} ended with {done.returncode}")
        return done.stdout + done.stderr

    changed, warnings = [], 0
    for name in ("lab", "lab", "clean"):
        if name == "clean":
            ansible(
                "ansible",
                "lab.yml",
                "endpoints",
                "-m",
                "ansible.builtin.command",
                "-a",
                "ip -brief address",
            )
        text = ansible(
            "ansible-playbook",
            "hosts.yml",
            str(ROOT / f"playbooks/{name}.yml"),
            "-e",
            f"@{directory / 'vars.json'}",
        )
        changed.append(sum(int(found[0]) for found in RECAP.findall(text)))
        warnings += text.count("[DEPRECATION WARNING]")
    left = leftovers.differences(before, leftovers.snapshot())
    print("\n".join(left))
    print(
        f"changed {changed[0]}, then {changed[1]}; taken away {changed[2]}; {len(left)} left;"
        f" {warnings} deprecation warnings",
        flush=True,
    )
    return int(changed[1] != 0 or bool(left))


def checks(chosen: c.Collection[str]) -> c.Iterator[Line]:
    """Yield one line for each check, and for each release that the machine has no Python for."""
    every = (IMPORTS, UNIT_TESTS, *LIBRARIES)
    parts = [name for name in every if name in chosen or not set(every) & set(chosen)]
    if IMPORTS in parts:
        copy_tree()
        for version in TARGETS:
            found = python(version)
            if found is not None:
                yield timed(
                    "import", f"target's Python {version}", functools.partial(imports, found)
                )
    names = [one.name for one in CONTROLLERS if one.name in chosen] or [
        one.name for one in CONTROLLERS
    ]
    targets = {
        name: venv(name, SYSTEM, [LIBRARIES[name]], "--system-site-packages")
        for name in parts
        if name in LIBRARIES
    }
    for controller in (one for one in CONTROLLERS if one.name in names):
        interpreter = python(controller.python)
        if interpreter is None:
            yield Line(
                controller.name,
                "",
                True,
                f"left out: the machine has no Python {controller.python}",
                0,
            )
            continue
        ours = venv(
            controller.name,
            interpreter,
            [controller.wanted, LIBRARIES["pyroute2-0.9"], *pinned(UNIT)],
        )
        versions = f"ansible-core {version_of(ours, 'ansible-core')}, Python {controller.python}"
        if UNIT_TESTS in parts:
            yield timed(
                "unit tests",
                f"{versions}, pyroute2 {version_of(ours, 'pyroute2')}",
                functools.partial(unit_tests, ours),
            )
        for target in targets.values():
            yield timed(
                "lab",
                f"{versions}, pyroute2 {version_of(target, 'pyroute2')}",
                functools.partial(lab, ours, target),
            )


def timed(what: str, versions: str, check: c.Callable[[], tuple[bool, str]]) -> Line:
    """Return the line of a check."""
    start = time.monotonic()
    passed, said = check()
    return Line(what, versions, passed, said, round(time.monotonic() - start, 1))


def main(names: list[str]) -> int:
    """Run the checks that are named, or all; return the exit status."""
    if names[:1] == ["--inside"]:
        return inside(*map(pathlib.Path, names[1:4]))
    known = [*(controller.name for controller in CONTROLLERS), IMPORTS, UNIT_TESTS, *LIBRARIES]
    if names == ["--list"] or set(names) - set(known):
        print("\n".join(known))
        return int(names != ["--list"])
    lines = []
    for line in checks(names):
        print(
            f"{'ok  ' if line.passed else 'FAIL'} {line.what}: {line.versions}: {line.said}"
            f" ({line.seconds} s)",
            flush=True,
        )
        lines.append(line)
    BUILD.mkdir(exist_ok=True)
    report = BUILD / "versions.json"
    known_lines = json.loads(report.read_text("utf-8")) if report.exists() and names else []
    kept = [
        one
        for one in known_lines
        if (one["what"], one["versions"]) not in {(line.what, line.versions) for line in lines}
    ]
    report.write_text(
        json.dumps([*kept, *map(dataclasses.asdict, lines)], indent=1) + "\n", "utf-8"
    )
    failed = sum(not line.passed for line in lines)
    print(f"{len(lines) - failed} passed, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
