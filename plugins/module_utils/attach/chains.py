# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which chains the entries of C(interfaces) need: one for each namespace in which packets are
tracked, where that is wished for.
"""

from __future__ import annotations

import typing as t

from ..chain.programs import TRACKING_HOOKS
from ..kernel import bpffs
from . import select


def chains(
    items: t.Sequence[select.Item], pin_root: str, per_netns: bool, every: bool = False
) -> list[dict[str, t.Any]]:
    """Return the chains that entries of ``interfaces`` need, each with ``pin_root``, its
    ``interfaces``, and whether it is the ``main`` one.

    A chain's tables count a packet once for each namespace in which it is tracked, so each
    namespace has a chain of its own, where there are several and that is wished for. What does not
    track belongs to a chain of its namespace, or else to the first: it counts nothing.

    :param per_netns: whether that is wished for.
    :param every: also the chain at ``pin_root``, and those of namespaces in which nothing is
        tracked: what may be there from before. That at ``pin_root`` is the last, since its
        directory holds the others.
    """
    tracked = dict.fromkeys(
        item.get("netns") for item in items if every or item.get("program") in TRACKING_HOOKS
    )
    if every:
        tracked.pop(None, None)
        tracked[None] = None
    if not per_netns or len(tracked) < 2:
        return [{"pin_root": pin_root, "interfaces": list(items), "main": True}]
    main = None if every else next(iter(tracked))
    return [
        {
            "pin_root": bpffs.own_root(netns, pin_root) if netns else pin_root,
            "interfaces": [
                item
                for item in items
                if (item.get("netns") if item.get("netns") in tracked else main) == netns
            ],
            "main": netns == main,
        }
        for netns in tracked
    ]
