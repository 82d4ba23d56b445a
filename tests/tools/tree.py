# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The project's directories, its tools' environment, a clean copy of its tree and its tarball."""

from __future__ import annotations

import collections.abc as c
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
#: See tests/support/compiled.py.
SUPPORT = ROOT / "tests/support"
TREE = BUILD / "ansible_collections/ebpf/conntrack"
VENV = ROOT / ".venv/bin"

Argv = c.Sequence[str | pathlib.Path]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment for tools: the venv and the system first, no version manager's shims,
    nothing of Ansible's from outside.
    """
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(
            ("ANSIBLE_", "PYENV", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKE")
        )
    }
    if str(SUPPORT) in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        env["PYTHONPATH"] = str(SUPPORT)  # what a suite starts compiles nothing twice
    env["PATH"] = f"{VENV}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**env, **extra}


def run(
    argv: Argv, cwd: pathlib.Path, env: dict[str, str], minutes: float, quiet: bool
) -> tuple[int, str]:
    """Run a command in a process group of its own; return its exit status and, when quiet, what it
    printed.

    When the time is over the whole group is killed and the status is 124, as timeout(1) has it.
    """
    # A file, not a pipe: a process left behind keeps a pipe open, and reading it would never end.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
        to = out if quiet else None
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=to,
            start_new_session=True,
        ) as process:
            try:
                status = process.wait(minutes * 60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                status = 124
        out.seek(0)
        return status, out.read() + (
            f"stopped after {minutes:g} minutes\n" if status == 124 else ""
        )


def names() -> list[str]:
    """Return the files that git knows of, or would: changes not yet committed count, ignored files
    do not.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # one deleted and not yet committed is listed too
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


def copy_tree(target: pathlib.Path = TREE) -> pathlib.Path:
    """Copy the files of ``names()`` to ``target``; return it."""
    shutil.rmtree(target, ignore_errors=True)
    for name in names():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    # A repository of its own: tools that ask git what is here would otherwise find a directory that
    # the outer one ignores.
    subprocess.run(["git", "init", "-q", str(target)], check=True)
    return target


def build_tarball(tree: pathlib.Path = TREE, target: pathlib.Path = BUILD) -> pathlib.Path:
    """Build the collection from a copied tree into ``target``; return the tarball.

    :raises RuntimeError: with what the tool printed.
    """
    for old in target.glob("*.tar.gz"):
        old.unlink()
    argv: Argv = [
        VENV / "ansible-galaxy",
        "collection",
        "build",
        "--force",
        "--output-path",
        target,
        tree,
    ]
    status, out = run(argv, target, environment(), 5, quiet=True)
    found = list(target.glob("*.tar.gz"))
    if status or len(found) != 1:
        raise RuntimeError(out)
    return found[0]
