# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command ``ct`` is made of: the packages of the library, and what its parser says of it.

Runs where Ansible runs, so that a module on a target need not bring all of that along to see that
nothing is to be done.
"""

from __future__ import annotations

import os

from ..core.errors import ConntrackError
from ..kernel import bpffs
from ..service import archive as ct_archive
from . import cli, manual

_PACKAGE = "ebpf_conntrack"
#: The first lines of the archive: until the command takes Ctrl-C itself the kernel ends it, for an
#: exception in the middle of an import may be dropped.
_BEGIN = (
    "import signal\nif signal.getsignal(signal.SIGINT) is signal.default_int_handler:\n   "
    " signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
)
#: The packages that the command is made of: all that ct may import, and itself.
PACKAGES = (
    "core",
    "kernel",
    "chain",
    "flows",
    "build",
    "generation",
    "lab",
    "attach",
    "handoff",
    "service",
    "ct",
)
_LIBRARY = os.path.dirname(os.path.dirname(__file__))


def sources() -> dict[str, str]:
    """Return the text of each file that the command needs, by its path below the library.

    A directory becomes a package by an empty __init__.py: zipimport finds no other.

    :raises ConntrackError: where one can not be read.
    """
    found: dict[str, str] = {}
    for package in PACKAGES:
        for directory, below, names in os.walk(os.path.join(_LIBRARY, package)):
            below[:] = [name for name in below if not name.startswith("__")]
            where = os.path.relpath(directory, _LIBRARY)
            found[os.path.join(where, "__init__.py")] = ""
            for name in names:
                if name.endswith(".py"):
                    found[os.path.join(where, name)] = _read(os.path.join(directory, name))
    return dict(sorted(found.items()))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        raise ConntrackError(
            f"{path} can not be read: {exc.strerror}. Install the collection again."
        ) from exc


def content(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> ct_archive.Content:
    """Return what the command's files are made of.

    :param pin_root: what holds where the command is not told otherwise; likewise the next one.
    """
    start = (
        f"{_BEGIN}import sys\nfrom {_PACKAGE}.ct.cli import"
        f" main\nsys.exit(main(pin_root={pin_root!r}, state_dir={state_dir!r}))\n"
    )
    modules = {
        "__main__.py": start,
        f"{_PACKAGE}/__init__.py": "",
        **{f"{_PACKAGE}/{name}": text for name, text in sources().items()},
    }
    parser = cli.parser(pin_root, state_dir)
    return ct_archive.Content(modules, manual.man_page(parser), manual.bash_completion(parser))


def want(pin_root: str = bpffs.STANDARD, state_dir: str = bpffs.STATE_DIR) -> ct_archive.Want:
    """Return the same for ct_archive.converge()."""
    made = content(pin_root, state_dir)
    return ct_archive.Want(made.digest, lambda: made)
