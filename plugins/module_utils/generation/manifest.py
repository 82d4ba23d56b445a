# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state directory: what each generation is made of, so that it can be built again, after a
reboot too.

Layout, for one ``pin_root``::

    <state_dir>/<pin_root, encoded>/<N>.json    the manifest of generation N, while that is pinned
    .../<N>.o               the object file that it is built from, where it is not built by bcc
    .../active -> <N>.json  the generation in use
    .../interfaces.json     what xdp_attach attached and has not detached since

All of it is root's, and nobody else's to change: root loads and attaches what it says. Directories
have mode 0700 and files 0600.

A manifest is written before its generation is active and goes with it. The pins are what counts:
where the two disagree, the next run mends the directory. The interfaces are written down before
they are attached or detached, so a run that is killed in between is finished by a reboot.

What others need is read(), which gives a model.Want that can be built::

    want = manifest.read(paths, number)  # of one generation that is pinned
    want = manifest.read(paths, state_dir.active(paths))  # of that in use, now or before a reboot
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import typing as t

from ..build import object as object_file
from ..build import render
from ..build.object import Built
from ..core import calendar
from ..core.errors import ConntrackError
from ..kernel import pins
from ..kernel.bpffs import Paths
from . import state_dir
from .model import OBJECT, State, Want

_OBJECT = ".o"


def manifest(paths: Paths, number: int) -> str:
    """Return the path of one generation's manifest."""
    return os.path.join(state_dir.directory(paths), f"{number}{state_dir.MANIFEST_SUFFIX}")


def object_path(paths: Paths, number: int) -> str:
    """Return the path of the object file that a generation is built from."""
    return os.path.join(state_dir.directory(paths), f"{number}{_OBJECT}")


def _load(paths: Paths, number: int) -> dict[str, t.Any] | None:
    """Return a manifest; None where there is none that can be read.

    :raises ConntrackError: see _content().
    """
    try:
        found = json.loads(state_dir.content(manifest(paths, number)))
        return found if isinstance(found, dict) and isinstance(found["made_of"], dict) else None
    except (FileNotFoundError, ValueError, KeyError, RecursionError):
        return None


def read(paths: Paths, number: int | None) -> Want | None:
    """Return what a generation is made of; None where no manifest tells, or not the whole of it.

    :raises OSError: where the manifest is there and may not be read.
    :raises ConntrackError: where somebody else than root may change it; it names the file.
    """
    found = None if number is None else _load(paths, number)
    if found is None:
        return None
    try:
        want = Want.of(*render.unpack(found["rendered"]), found["made_of"])
    except (ConntrackError, KeyError, TypeError):
        return None
    if want.digest != found["made_of"].get("digest"):
        return None
    if want.build == OBJECT:
        built = _built(paths, number, found)
        return None if built is None else dataclasses.replace(want, object=built)
    return want


def _built(paths: Paths, number: int | None, found: t.Mapping[str, t.Any]) -> Built | None:
    """Return the object file that a manifest speaks of; None where it is not there, or not whole.

    :raises ConntrackError: see _content().
    """
    if number is None:
        return None
    path = object_path(paths, number)
    try:
        manifest = object_file.parse(json.dumps(found["object"]), path)
    except (ConntrackError, KeyError):
        return None
    try:
        data = state_dir.content(path)
    except FileNotFoundError:
        return None
    return Built(manifest, data) if hashlib.sha256(data).hexdigest() == manifest.sha256 else None


def look(paths: Paths) -> State:
    """Return what is there.

    :raises OSError: where it may not be read.
    """
    try:
        names = sorted(os.listdir(state_dir.directory(paths)))
    except (FileNotFoundError, NotADirectoryError):
        return State()
    number = state_dir.active(paths)
    found, kept = None, False
    # what somebody else may have changed tells nothing, and is written again
    with contextlib.suppress(ConntrackError):
        found = None if number is None else _load(paths, number)
        kept = found is not None and _built(paths, number, found) is not None
    numbers = (one for one in map(state_dir.number_of, names) if one is not None)
    known = {
        state_dir.ACTIVE,
        state_dir.INTERFACES,
        *(
            f"{name[: -len(state_dir.MANIFEST_SUFFIX)]}{_OBJECT}"
            for name in names
            if state_dir.number_of(name) is not None
        ),
    }
    strays = tuple(
        name for name in names if name not in known and state_dir.number_of(name) is None
    )
    return State(
        number,
        found["made_of"] if found else None,
        tuple(sorted(numbers)),
        strays,
        state_dir.INTERFACES in names,
        kept,
    )


def write(paths: Paths, number: int, want: Want) -> None:
    """Write a generation's manifest: as a whole or not at all, and on the disk when this returns.

    The object file that it is built from comes first; where none is given, the one that is there
    stays.

    :raises ConntrackError: naming the path, where the file system refuses.
    """
    path = manifest(paths, number)
    built = want.object
    if want.build == OBJECT and built is None:
        # an object that others may have changed is not kept
        with contextlib.suppress(ConntrackError):
            built = _built(paths, number, _load(paths, number) or {})
    content: dict[str, t.Any] = {
        "generation": number,
        "pin_root": paths.pin_root,
        "made_of": want.made_of,
        "rendered": render.pack(want.text, want.headers),
        "boot_id": boot_id(),
        "written": calendar.utc(time.time()),
    }
    with state_dir.named(path):
        if want.build == OBJECT and built is not None:
            content["object"] = built.manifest.as_dict()
            if want.object is not None:
                state_dir.replace(paths, object_path(paths, number), want.object.data)
        state_dir.replace(paths, path, content)
        if want.build != OBJECT:
            state_dir.unlink(object_path(paths, number))


def activate(paths: Paths, number: int | None) -> None:
    """Call a generation the one in use; None: none.

    :raises ConntrackError: naming the path, where the file system refuses.
    """
    path = state_dir.active_link(paths)
    with state_dir.named(path):
        if number is None:
            pins.remove_symlink("", path)
            state_dir.tidy(paths)
        else:
            pins.swap_symlink(f"{number}{state_dir.MANIFEST_SUFFIX}", path)
            state_dir.sync(os.path.dirname(path))


def forget(paths: Paths, name: str) -> None:
    """Remove one file, a manifest with its object, and the directories that are empty then."""
    state_dir.unlink(os.path.join(state_dir.directory(paths), name))
    number = state_dir.number_of(name)
    if number is not None:
        state_dir.unlink(object_path(paths, number))
    state_dir.tidy(paths)


def forget_generation(paths: Paths, number: int) -> None:
    """Remove a generation's manifest, and the directories that are empty then."""
    forget(paths, f"{number}{state_dir.MANIFEST_SUFFIX}")


def boot_id() -> str:
    """Return what the kernel names this boot by."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
