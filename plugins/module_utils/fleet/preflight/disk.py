# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the state directory has room."""

from __future__ import annotations

import os
import typing as t

from .problem import Problem

#: Room that has to be left in the state directory: a manifest has some 100 KiB, an object file up
#: to 1.5 MiB, and each is written beside the one before.
DISK_BYTES = 4 << 20


def disk_room(directory: str) -> tuple[int, bool]:
    """Return (bytes that root can write below a directory, which need not exist yet; whether a file
    can be made there).
    """
    nearest = directory
    while not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    room = os.statvfs(nearest)
    return (
        room.f_bfree * room.f_frsize,
        room.f_files == 0 or room.f_ffree > 1,
    )  # some file systems do not count files


def judge_disk(directory: str, free: int, files: bool) -> t.Iterator[Problem]:
    """Return what is wrong with the room for the state directory."""
    if free < DISK_BYTES or not files:
        what = (
            f"{free >> 10} KiB are free, {DISK_BYTES >> 10} KiB are needed"
            if free < DISK_BYTES
            else "its file system can hold no more files"
        )
        yield Problem(
            "state_dir",
            directory,
            f"{directory}: {what}.",
            "Make room there, or give another state_dir.",
        )
