# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The symbolic links among the pins: moved from one moment to the next, and refused where they are
foreign.
"""

from __future__ import annotations

import contextlib
import os

from ..core import safe_path
from ..core.errors import ConntrackError
from . import bpffs
from .bpffs import Paths

_SWAPPED_IN = "%new"  # a symlink on its way to its place; no name that encode() made ends so


# ---------------------------------------------------------------- symlinks
def check_symlink(path: str, target_prefix: str) -> None:
    """Refuse a path that somebody else holds.

    :param target_prefix: what the target of our symlink starts with.
    :raises ConntrackError: when ``path`` is something else than such a symlink.
    """
    kind = bpffs.kind_at(path)
    if kind is None:
        return
    if kind != bpffs.LINK:
        raise ConntrackError(
            f"{path} is {kind} of somebody else. Move it away, or give another pin_root."
        )
    safe_path.refuse_foreign(path)
    with contextlib.suppress(FileNotFoundError):  # another run has just taken it away
        target = os.readlink(path)
        if not target.startswith(target_prefix):
            raise ConntrackError(
                f"{path} is a symbolic link of somebody else, to {target}. Move it away, or give"
                " another pin_root."
            )


def check_places(paths: Paths) -> None:
    """Refuse a pin_root in which something foreign stands where the chain has its own.

    :raises ConntrackError: when ``prog`` or ``map`` is no symlink of ours, or one of our
        directories, those of generations among them, is something else.
    """
    for path, target in paths.seed_links().items():
        check_symlink(path, target)
    inside: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        inside += (os.path.join(paths.gen, name) for name in os.listdir(paths.gen))
    for path in (paths.base, paths.gen, paths.link_dir, *inside):
        kind = bpffs.kind_at(path)
        if kind not in (None, bpffs.DIRECTORY):
            raise ConntrackError(
                f"{path} is {kind} of somebody else. Move it away, or give another pin_root."
            )


def swap_symlink(target: str, path: str) -> None:
    """Let ``path`` lead to ``target`` from one moment to the next: a new symlink beside it and one
    rename.

    :raises ConntrackError: when something that is no symlink stands at ``path``.
    """
    if os.path.lexists(path) and not os.path.islink(path):
        check_symlink(path, target)
    end_swap(path)
    os.symlink(target, path + _SWAPPED_IN)
    try:
        os.rename(path + _SWAPPED_IN, path)
    except OSError:
        end_swap(path)
        raise


def end_swap(path: str) -> None:
    """Take away what a killed swap_symlink() left beside ``path``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + _SWAPPED_IN)


def remove_symlink(target_prefix: str, path: str) -> None:
    """Take our symlink away, and what a killed swap_symlink() left beside it; what is not ours
    stays.

    :param target_prefix: what the target of our symlink starts with.
    """
    end_swap(path)
    if os.path.islink(path) and os.readlink(path).startswith(target_prefix):
        os.unlink(path)
