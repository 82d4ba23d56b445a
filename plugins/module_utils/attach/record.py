# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which interfaces are to be attached, as the state directory keeps it for the next boot."""

from __future__ import annotations

import contextlib
import json
import os
import typing as t

from ..core import plan
from ..generation import links as generation_links
from ..generation import state_dir
from ..kernel import bpffs
from ..kernel.bpffs import Paths
from . import model as attach_model
from .model import Have, Want


# ---------------------------------------------------------------- what is written down
def plan_record(paths: bpffs.Paths, wants: t.Sequence[Want], whole: bool) -> plan.Plan:
    """Return the step that lets the state directory say what is to be attached after a reboot; none
    where it does not say what is to be loaded then.

    :param whole: whether ``wants`` are all that there is.
    """
    if state_dir.active(paths) is None:
        return []
    before = interfaces(paths)
    kept = {bpffs.interface_key(item["netns"], item["name"]): item for item in recorded(paths)}
    for want in wants:
        kept.pop(bpffs.interface_key(want.netns, want.name), None)
        if want.hook:
            kept[bpffs.interface_key(want.netns, want.name)] = {
                "name": want.name,
                "netns": want.netns,
                "program": want.hook,
                "mode": want.mode,
            }
    after = [] if whole else [item for dummy, item in sorted(kept.items())]
    if before == after:
        return []

    def shown(items: t.Sequence[t.Mapping[str, t.Any]]) -> str | None:
        return (
            ", ".join(
                f"{item['program']} on"
                f" {generation_links.interface(bpffs.interface_key(item['netns'], item['name']))}"
                for item in items
            )
            or None
        )

    return [
        plan.Step(
            "change",
            "manifest",
            "interfaces",
            "a reboot is to bring back what is attached",
            shown(before),
            shown(after),
            (before, after),
        )
    ]


def recorded(paths: bpffs.Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that are written down, each once and by its one name; an earlier
    release wrote down what it was given.
    """
    found = {(item["netns"], item["name"]): item for item in attach_model.looked(interfaces(paths))}
    return [
        {name: item[name] for name in ("name", "netns", "program", "mode")}
        for item in found.values()
    ]


def do_record(paths: bpffs.Paths, step: plan.Step) -> plan.Undo:
    before, after = step.args
    with contextlib.ExitStack() as undo:
        # also where it fails itself, for then it can be there without being safe on the disk
        undo.callback(write_interfaces, paths, before)
        write_interfaces(paths, after)
        return undo.pop_all().close


# ---------------------------------------------------------------- the whole
def record(want: Want, have: Have, step: plan.Step | None) -> dict[str, t.Any]:
    """Return one item of the result; ``step`` is a step that check mode did not do."""
    shown: dict[str, t.Any] = dict.fromkeys(("mode", "program", "program_id", "tag", "link_id"))
    if step is not None:
        shown.update(step.after or {})
    elif have.attached is not None:
        shown.update(have.attached.shown())
    return {
        "name": want.name,
        "netns": want.netns,
        "ifindex": have.ifindex or None,
        **shown,
        "chosen_by": want.chosen_by or None,
    }


def interfaces(paths: Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that are to be attached, as xdp_attach takes them; none where it is not
    written down, or can not be read.

    :raises OSError: where it is there and may not be read.
    :raises ConntrackError: where somebody else than root may change it; it names the file.
    """
    try:
        found = json.loads(
            state_dir.content(os.path.join(state_dir.directory(paths), state_dir.INTERFACES))
        )["interfaces"]
        return [
            {name: item[name] for name in ("name", "netns", "program", "mode")} for item in found
        ]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return []


def interfaces_stamp(paths: Paths) -> tuple[int, int] | None:
    """Return what changes whenever interfaces() does; None where nothing is written down."""
    try:
        found = os.stat(os.path.join(state_dir.directory(paths), state_dir.INTERFACES))
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def write_interfaces(paths: Paths, items: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Write down which interfaces are to be attached, likewise; without any, the file goes.

    :raises ConntrackError: naming the path, where the file system refuses.
    """
    path = os.path.join(state_dir.directory(paths), state_dir.INTERFACES)
    with state_dir.named(path, "which interfaces are attached"):
        if items:
            state_dir.replace(paths, path, {"pin_root": paths.pin_root, "interfaces": list(items)})
        else:
            _forget(paths, path)


def end_write_interfaces(paths: Paths) -> None:
    """Take away what a write_interfaces() left that was killed."""
    _forget(
        paths, os.path.join(state_dir.directory(paths), state_dir.INTERFACES + state_dir.UNFINISHED)
    )


def _forget(paths: Paths, path: str) -> None:
    """Remove a file, and the directories that are empty then."""
    state_dir.unlink(path)
    state_dir.tidy(paths)
