# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible as users have it, before a fleet: the collection installed from its tarball, playbooks of
theirs, hosts reached by SSH.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import time
import typing as t

from ansible_collections.ebpf.conntrack.tests.fleet.fleet import Fleet
from ansible_collections.ebpf.conntrack.tests.tools import tree

RECAP = re.compile(r"^(\S+) +: (ok=.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Played:
    """How a playbook ended.

    :ivar status: the exit status.
    :ivar text: what it printed.
    :ivar seconds: how long it took.
    :ivar memory: the most that one of its processes had, in MiB.
    """

    status: int
    text: str
    seconds: float
    memory: float

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """What became of each host: ok, changed, unreachable, failed and so on, by name."""
        return {
            host: {
                name: int(number) for name, number in (word.split("=") for word in words.split())
            }
            for host, words in RECAP.findall(self.text)
        }

    def changed(self) -> dict[str, int]:
        """Return how many tasks changed something on each host; the test fails when something else
        failed.
        """
        assert self.status == 0, self.text
        return {host: told["changed"] for host, told in self.recap.items()}


class Playing:
    """A playbook that runs."""

    def __init__(
        self, argv: list[str], cwd: pathlib.Path, env: dict[str, str], output: pathlib.Path
    ) -> None:
        self._output = output
        self._started = time.monotonic()
        with output.open("wb") as out:
            self.process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def text(self) -> str:
        """Return what it has printed by now."""
        return self._output.read_text("utf-8", "replace")

    def until(self, words: str, seconds: float = 120, after: str = "") -> None:
        """Wait until it has printed something, after something else."""
        deadline = time.monotonic() + seconds
        while words not in self.text()[self.text().find(after) :]:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def wait(self) -> Played:
        """Wait for its end."""
        dummy, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return Played(
            self.process.returncode,
            self.text(),
            time.monotonic() - self._started,
            usage.ru_maxrss / 1024,
        )


class Controller:
    """Somebody with a home directory, in which the collection is installed.

    :param home: an empty directory.
    """

    def __init__(self, fleet: Fleet, home: pathlib.Path) -> None:
        self.fleet = fleet
        self.home = home
        (home / "clone").mkdir()
        tarball = tree.build_tarball(tree.copy_tree(home / "clone/c"), home)
        self._run(
            str(tree.VENV / "ansible-galaxy"), "collection", "install", "--offline", str(tarball)
        )
        self._plays = 0

    def _environment(self) -> dict[str, str]:
        kept = tree.environment()
        return {
            "PATH": kept["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "ANSIBLE_FORKS": str(max(5, len(self.fleet.hosts()))),
        }

    def _run(self, *argv: str) -> None:
        done = subprocess.run(
            argv,
            cwd=self.home,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(
        self, what: str | list[dict[str, t.Any]], limit: str | None = "fleet", **variables: t.Any
    ) -> Playing:
        """Let a playbook run.

        :param what: the name of an installed one, or plays.
        :param limit: the hosts; None for those that the playbook names.
        """
        self._plays += 1
        if not isinstance(what, str):
            path = self.home / f"play{self._plays}.yml"
            path.write_text(json.dumps(what), "utf-8")
            what = str(path)
        limited = ["--limit", limit] if limit else []
        argv = [
            str(tree.VENV / "ansible-playbook"),
            "-i",
            str(self.fleet.inventory()),
            what,
            *limited,
            "-e",
            json.dumps(variables),
        ]
        return Playing(
            self.fleet.argv(*argv),
            self.home,
            self._environment(),
            self.home / f"play{self._plays}.log",
        )

    def play(
        self, what: str | list[dict[str, t.Any]], limit: str | None = "fleet", **variables: t.Any
    ) -> Played:
        """Run a playbook to its end."""
        return self.start(what, limit, **variables).wait()

    def role(self, limit: str = "fleet", **variables: t.Any) -> Played:
        """Run the role xdp_ct."""
        return self.play(ROLE, limit, **variables)


ROLE: list[dict[str, t.Any]] = [
    {"hosts": "fleet", "gather_facts": False, "roles": ["ebpf.conntrack.xdp_ct"]}
]
