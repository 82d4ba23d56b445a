# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Makefile in a directory whose path holds a space."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest
from ansible_collections.ebpf.conntrack.tests.tools import tree


@pytest.mark.parametrize(
    ("target", "playbook"), [("lab", "playbooks/lab.yml"), ("clean", "playbooks/clean.yml")]
)
def test_the_lab_is_made_and_taken_away(target: str, playbook: str, tmp_path: pathlib.Path) -> None:
    place = tmp_path / "my clone"
    (place / ".venv/bin").mkdir(parents=True)
    shutil.copy2(tree.ROOT / "Makefile", place)
    program = place / ".venv/bin/ansible-playbook"
    program.write_text('#!/bin/sh\necho "$0 $*"\n')
    program.chmod(0o755)
    argv = ["make", "-s", target, "SETUP=true"]
    done = subprocess.run(
        argv,
        cwd=place,
        env=tree.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (
        0,
        "",
        f".venv/bin/ansible-playbook {playbook}\n",
    )
