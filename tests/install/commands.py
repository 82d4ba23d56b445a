# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands as a user types them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess

RECAP = re.compile(r"^\S+ +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Place:
    """A directory to type commands in.

    :ivar path: the directory.
    :ivar env: the environment there.
    """

    path: pathlib.Path
    env: dict[str, str]

    def run(self, *argv: str) -> str:
        """Run a command with nothing on stdin; return what it printed. A failing command fails the
        test with its output.
        """
        done = subprocess.run(
            argv,
            cwd=self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}:\n{text}"
        return text


def changes(text: str) -> int:
    """Return how many changed tasks a playbook's recap tells, over all hosts."""
    recap = RECAP.findall(text)
    assert recap, f"no recap in:\n{text}"
    assert all((unreachable, failed) == ("0", "0") for dummy, unreachable, failed in recap), text
    return sum(int(changed) for changed, dummy, dummy2 in recap)
