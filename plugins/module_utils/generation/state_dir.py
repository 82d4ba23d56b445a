# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state directory: files that are written whole or not at all, and only root can change."""

from __future__ import annotations

import contextlib
import json
import os
import typing as t

from ..core import safe_path
from ..core.errors import ConntrackError, bad_value
from ..kernel import bpffs
from ..kernel.bpffs import Paths

INTERFACES = "interfaces.json"
UNFINISHED = ".new"
MANIFEST_SUFFIX = ".json"
ACTIVE = "active"


def active_link(paths: Paths) -> str:
    """Return the path of the symlink to the manifest of the generation in use."""
    return os.path.join(directory(paths), ACTIVE)


def number_of(name: str) -> int | None:
    """Return the generation whose manifest has that name; None for other files."""
    stem, dummy, suffix = name.partition(".")
    return int(stem) if f".{suffix}" == MANIFEST_SUFFIX and stem.isdigit() else None


def active(paths: Paths) -> int | None:
    """Return the number of the generation in use, or before a reboot in use, as the state directory
    has it.
    """
    try:
        name = os.readlink(active_link(paths))
    except OSError:
        return None
    return number_of(name)


# ---------------------------------------------------------------- reading
def directory(paths: Paths) -> str:
    """Return the directory of one ``pin_root``."""
    return os.path.join(paths.state_dir, bpffs.encode(paths.pin_root.lstrip("/")))


def content(path: str) -> bytes:
    """Return what a file of ours holds.

    :raises OSError: where it is not there, or may not be read.
    :raises ConntrackError: where somebody else than root may change it, or let another one take its
        place.
    """
    data = safe_path.read(path, trusted=True)
    safe_path.refuse_foreign_way(path)
    return data


# ---------------------------------------------------------------- writing
def check(paths: Paths) -> None:
    """Check without changing anything that the state directory can be written to.

    :raises ConntrackError: naming the path that is in the way.
    """
    where = paths.state_dir
    bpffs.check_text(paths)
    nearest = directory(paths)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise bad_value("state_dir", where, f"{nearest} is not a directory; give another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise bad_value(
            "state_dir",
            where,
            f"{nearest} can not be written to; run as root, mount it writable, or give another"
            " directory",
        )
    safe_path.refuse_foreign_way(directory(paths))
    safe_path.refuse_foreign(directory(paths))


@contextlib.contextmanager
def named(path: str, what: str = "the manifest of the generation") -> t.Iterator[None]:
    """:raises ConntrackError: for what the file system refuses: a full disk, a read-only one."""
    try:
        yield
    except OSError as exc:
        raise ConntrackError(
            f"{path}: {what} can not be kept: {exc.strerror}. Make room or rights for it, or give"
            " another state_dir."
        ) from exc


def replace(paths: Paths, path: str, content: t.Mapping[str, t.Any] | bytes) -> None:
    safe_path.make_dirs(os.path.dirname(path), 0o700)
    # where others may make names, as in /tmp, one could have been first since check()
    safe_path.refuse_foreign(os.path.dirname(path))
    data = (
        content if isinstance(content, bytes) else (json.dumps(content, indent=1) + "\n").encode()
    )
    try:
        with safe_path.create(path + UNFINISHED) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + UNFINISHED, path)
    except OSError:
        unlink(path + UNFINISHED)
        tidy(paths)
        raise
    sync(os.path.dirname(path))


def unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def leaves_a_directory(paths: Paths) -> bool:
    """Tell whether there is a directory that _tidy() has still to remove, after a run that could
    not for instance.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.isdir(directory(paths)) or not os.listdir(paths.state_dir)
    return False


def tidy(paths: Paths) -> None:
    for one in (directory(paths), paths.state_dir):
        with contextlib.suppress(OSError):  # not there, or in use
            os.rmdir(one)


def sync(where: str) -> None:
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
