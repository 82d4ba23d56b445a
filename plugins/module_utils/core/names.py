# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that were misspelt: of variables that begin as those of a role or a playbook do, and of
keys. Pure.
"""

from __future__ import annotations

import re
import typing as t

#: How near a name is to be one that was meant (difflib's ratio): to be proposed, and to be taken
#: for a misspelling where others may have such names, too.
_NEAR, _SURELY = 0.6, 0.75


def nearest(name: str, known: t.Iterable[str], least: float = _NEAR) -> str | None:
    """Return the known name that is nearest, None where none is near.

    >>> nearest("topolgy", ("topology", "lab")), nearest("colour", ("topology", "lab"))
    ('topology', None)
    """
    import difflib  # where something is wrong only: imports are most of a module's run on a target

    found = difflib.get_close_matches(name, list(known), 1, least)
    return found[0] if found else None


def mentioned(text: str, owner: str) -> set[str]:
    """Return the names of variables that begin with an owner's name in a text.

    >>> sorted(mentioned("{{ lab_hosts | default(netns_lab_name) }}", "lab"))
    ['lab_hosts']
    """
    return set(re.findall(rf"\b{owner}_[a-z0-9_]*[a-z0-9]\b", text))


def unknown(names: t.Iterable[str], owner: str, known: t.Collection[str], alone: bool) -> list[str]:
    """Return what is to be said of variables that the owner does not have, a sentence each.

    :param names: of variables; those that do not begin with the owner's name are let pass.
    :param alone: whether such names are the owner's alone, as those of a role are. Else only what
        is nearly one of its names is taken for a misspelling.
    """
    head = f"{owner}_"
    tails = {name[len(head) :]: name for name in known if name.startswith(head)}
    said = []
    for name in sorted({name for name in names if name.startswith(head)} - set(known)):
        near = nearest(name[len(head) :], tails, _NEAR if alone else _SURELY)
        if near is not None or alone:
            said.append(
                f"{name}: there is no such variable of {owner}."
                + (f" Did you mean {tails[near]}?" if near is not None else "")
            )
    return said
