# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces that somebody typed: they have to be there."""

from __future__ import annotations

import typing as t

from ..core.errors import ConntrackError
from ..kernel import bpffs
from . import converge as attach
from . import observe as attach_observe
from . import record as attach_record


def check_typed(
    paths: bpffs.Paths, state: str, interfaces: t.Sequence[t.Mapping[str, t.Any]], mode: str
) -> None:
    """Refuse interfaces that are not there, where no earlier task could have made them: somebody
    typed their names.

    One that is gone, and of which there is still a link or a note, can be detached.

    :raises ConntrackError: naming the first that is missing, and what there is; and a program that
        is not loaded.
    """
    wants = attach.choose(state, interfaces, mode, False)[0]
    attach_observe.open_hooks(paths, wants, False)
    noted = {
        bpffs.interface_key(one["netns"], one["name"]) for one in attach_record.interfaces(paths)
    }
    for want, have in zip(wants, attach_observe.observe(paths, wants)):
        traces = have.pinned is not None or bpffs.interface_key(want.netns, want.name) in noted
        if have.missing and (want.hook or not traces):
            raise ConntrackError(have.missing)
