# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has of the collection already, and how its chain is before a run."""

from __future__ import annotations

import contextlib
import os
import socket
import typing as t

from ...attach import record as attach_record
from ...chain import programs as chain_programs
from ...chain import settings as chain_settings
from ...core import safe_path
from ...core.errors import ConntrackError
from ...generation import converge as generation
from ...generation import manifest, pinned_objects, state_dir
from ...kernel import bpf, bpffs, netdev
from ...service import archive as ct_archive
from ...service import status as ct_status
from ...service import unit as ct_unit


def traces(
    paths: bpffs.Paths, prefix: str = ct_archive.PREFIX, unit_directory: str = ct_unit.DIRECTORY
) -> list[str]:
    """Return all that there is of the collection on the host: pins, links, files, directories, and
    our programs on interfaces of this namespace.
    """
    found = [
        path
        for path in (paths.base, state_dir.directory(paths), bpffs.RUN_DIR)
        if os.path.lexists(path)
    ]
    found += [
        path
        for path, target in paths.seed_links().items()
        if os.path.islink(path) and os.readlink(path) == target
    ]
    files = [
        *(
            os.path.join(prefix, name)
            for name in (ct_archive.COMMAND, ct_archive.MANUAL, ct_archive.COMPLETION)
        ),
        *(os.path.join(unit_directory, name) for name in (ct_unit.NAME, ct_unit.RESTORE_NAME)),
    ]
    found += [path for path in files if is_ours(path)]
    for index, name in socket.if_nameindex():
        with contextlib.suppress(bpf.BpfError):  # gone since
            for number in netdev.link_facts(index).xdp.values():
                info = pinned_objects.program(number)
                if (
                    info is not None
                    and info.name in chain_programs.HOOKS
                    and _uses_jump_table(info)
                ):
                    found.append(f"XDP program {info.name} on {name}")
    return found


def _uses_jump_table(info: bpf.ProgInfo) -> bool:
    for number in info.map_ids:
        with bpf.closing(bpf.map_get_fd_by_id(number)) as fd:
            if bpf.map_info(fd).name == "jt":
                return True
    return False


def is_ours(path: str) -> bool:
    """Tell whether a file is one that the collection has made."""
    try:
        return ct_archive.MARK.encode() in safe_path.read(path)
    except (OSError, ConntrackError):
        return False


def attached(paths: bpffs.Paths) -> list[dict[str, t.Any]]:
    """Return the interfaces that the chain is attached to through its links, as xdp_attach takes
    them.
    """
    return [
        {
            "name": want.name,
            "netns": want.netns,
            "program": there.attached.program.hook,
            "mode": there.attached.mode,
        }
        for want, there in ct_status.attached(paths)
        if there.attached is not None and there.attached.program.hook in chain_programs.HOOKS
    ]


def before(paths: bpffs.Paths, have: generation.Have, prefix: str) -> dict[str, t.Any]:
    """Return what a run that goes wrong has to put back, as ct_put_back takes it."""
    dummy, timeouts, knobs = (
        chain_settings.settings_of(have.settings)
        if len(have.settings) == chain_settings.SETTINGS_BYTES
        else (0, {}, {})
    )
    return {
        "generation": have.generation,
        "digest": have.digest if have.generation is not None else None,
        "timeouts": timeouts,
        "settings": knobs,
        "interfaces": attached(paths),
        "command": is_ours(os.path.join(prefix, ct_archive.COMMAND)),
        "service": is_ours(os.path.join(ct_unit.DIRECTORY, ct_unit.NAME)),
    }


def on_disk(paths: bpffs.Paths) -> dict[str, t.Any]:
    """Return what is written down in the state directory."""
    there = manifest.look(paths)
    return {
        "generation": there.active,
        "digest": None if there.made_of is None else there.made_of.get("digest"),
        "generations": list(there.numbers),
        "interfaces": attach_record.interfaces(paths),
    }
