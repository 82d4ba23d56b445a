# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter that finds misspelt variables of the roles and playbooks."""

from __future__ import annotations

import collections.abc as c
import functools
import pathlib
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import names

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.lru_cache(None)
def _texts() -> str:
    """Return the text of all roles and playbooks: a variable that none of them mentions means
    nothing to them.
    """
    paths = [
        path
        for directory in ("roles", "playbooks")
        for path in sorted((_ROOT / directory).rglob("*.yml"))
    ]
    return "\n".join(path.read_text("utf-8") for path in paths)


@functools.lru_cache(None)
def known(owner: str) -> frozenset[str]:
    """Return the variables of a role or a playbook, by the word that they begin with."""
    return frozenset(names.mentioned(_texts(), owner))


def ct_unknown(found: t.Any, *owners: str) -> list[str]:
    """Return what is to be said of misspelt variables."""
    if not isinstance(found, c.Iterable) or isinstance(found, (str, c.Mapping)):
        raise AnsibleFilterError("ct_unknown: give a list of names")
    listed = [str(name) for name in found]
    roles = {path.name for path in (_ROOT / "roles").iterdir()}
    return [
        said
        for owner in owners
        for said in names.unknown(listed, owner, known(owner), owner in roles)
    ]


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return them."""
        return {"ct_unknown": ct_unknown}
