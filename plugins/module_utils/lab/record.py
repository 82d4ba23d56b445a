# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a lab: what its sysctls were before, so that they can be put back."""

from __future__ import annotations

import contextlib
import json
import os
import typing as t

from ..core import lock, safe_path
from ..core.errors import ConntrackError
from . import model as lab_model
from .model import Recorded, SysctlKey

_UNFINISHED = ".tmp"  # suffix of a record while it is written


def other_labs(lab: str) -> list[str]:
    """Return the names of the other labs that have a record."""
    try:
        entries = sorted(os.listdir(lab_model.RECORD_DIR))
    except FileNotFoundError:
        return []
    return [entry[:-5] for entry in entries if entry.endswith(".json") and entry != f"{lab}.json"]


def read_record(lab: str) -> dict[SysctlKey, Recorded]:
    """Return what a lab has set, by sysctl; empty without a record.

    :raises ConntrackError: the record is damaged.
    """
    path = lab_model.record_path(lab)
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["sysctls"]
        return {
            (e["netns"], e["path"]): Recorded(e["wanted"], e["inode"], dict(e["previous"]))
            for e in entries
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConntrackError(
            f"{path} cannot be read ({exc}): remove it; the sysctls that the lab set then keep"
            " their present values."
        ) from exc


def write_record(lab: str, record: t.Mapping[SysctlKey, Recorded]) -> None:
    """Write a lab's record in one rename; an empty one is removed."""
    path = lab_model.record_path(lab)
    if not record:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    entries = [
        {
            "netns": name,
            "path": sysctl,
            "wanted": r.wanted,
            "inode": r.inode,
            "previous": dict(r.previous),
        }
        for (name, sysctl), r in record.items()
    ]
    try:
        with safe_path.create(path + _UNFINISHED) as file:
            file.write((json.dumps({"lab": lab, "sysctls": entries}, indent=1) + "\n").encode())
        os.replace(path + _UNFINISHED, path)
    except BaseException:
        end_write(lab)
        raise


def end_write(lab: str) -> None:
    """Take away what a write of a lab's record left that did not end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(lab_model.record_path(lab) + _UNFINISHED)


def unfinished(lab: str) -> bool:
    """Tell whether a killed run left half a record, or the directory without one, but for its
    lock.
    """
    try:
        return all(
            name.endswith(lock.SUFFIX) for name in os.listdir(lab_model.RECORD_DIR)
        ) or os.path.exists(lab_model.record_path(lab) + _UNFINISHED)
    except FileNotFoundError:
        return False
