# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chain on the interfaces of a lab: whoever removes an interface detaches it.

The kernel detaches a program from an interface that goes, and our link then holds nothing:
``link_stale``, for which nobody would feel responsible. So the plan of a lab detaches the
interfaces that it removes, in every pin root that is known on the host, and attaches those that it
makes again.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..attach import converge as attach
from ..attach import record as attach_record
from ..core import lock
from ..core.errors import ConntrackError
from ..core.plan import Plan, Step, Undo, irrevocable
from ..generation import pinned_objects
from ..kernel import bpffs
from ..lab.model import Key, show_key
from . import restore


class Attachments:
    """What of the chain stands on the interfaces of this host.

    :param pin_root: where it may be pinned, besides the pin roots that the state directory knows
        of.
    """

    def __init__(
        self,
        pin_root: str = bpffs.STANDARD,
        state_dir: str = bpffs.STATE_DIR,
        patience: float = lock.SECONDS,
    ) -> None:
        known = (f"/{bpffs.decode(name)}" for name in pinned_objects.names(state_dir))
        self._paths = [bpffs.Paths(root, state_dir) for root in dict.fromkeys((pin_root, *known))]
        self._patience = patience

    def _attached(self) -> dict[Key, list[bpffs.Paths]]:
        """Return, for each interface, where links are pinned for it or it is written down."""
        found: dict[Key, list[bpffs.Paths]] = {}
        for paths in self._paths:
            written = (
                bpffs.interface_key(item["netns"], item["name"])
                for item in attach_record.interfaces(paths)
            )
            for key in dict.fromkeys((*pinned_objects.names(paths.link_dir), *written)):
                found.setdefault(bpffs.interface_of(key), []).append(paths)
        return found

    def around(self, plan: Plan) -> Plan:
        """Return a lab's plan with what is to be done about the chain: to detach it first, to
        attach it last.
        """
        ends = _ends(plan)
        if not any(ends):
            return plan
        namespaces, gone, made = ends
        before: Plan = []
        after: Plan = []
        for key, places in self._attached().items():
            for paths in places:
                label = show_key(key)
                if key in made and (key in gone or key[0] in namespaces):
                    after.append(
                        Step(
                            "attach",
                            "xdp",
                            label,
                            "the interface is made again",
                            None,
                            paths.pin_root,
                            (paths, key),
                        )
                    )
                elif key in gone or key[0] in namespaces:
                    before.append(
                        Step(
                            "detach",
                            "xdp",
                            label,
                            "the interface goes",
                            paths.pin_root,
                            None,
                            (paths, key),
                        )
                    )
        return [*before, *plan, *after]

    def do(self, step: Step) -> Undo:
        """Apply one of these steps."""
        paths, key = step.args
        return (
            self._detach(paths, key)
            if step.action == "detach"
            else self._attach(paths, show_key(key))
        )

    def _detach(self, paths: bpffs.Paths, key: Key) -> Undo:
        kept = [
            item for item in attach_record.interfaces(paths) if (item["netns"], item["name"]) == key
        ]
        self._converge("absent", paths, [{"name": key[1], "netns": key[0]}])
        return (lambda: self._converge("present", paths, kept)) if kept else irrevocable

    def _converge(
        self, wanted: str, paths: bpffs.Paths, interfaces: list[dict[str, t.Any]]
    ) -> None:
        attach.converge(
            wanted,
            interfaces,
            "auto",
            False,
            paths.pin_root,
            False,
            self._patience,
            paths.state_dir,
        )

    def _attach(self, paths: bpffs.Paths, label: str) -> Undo:
        """Attach an interface as it is written down.

        What can not be attached is no reason to take the lab back: its link stays, and is named as
        ``link_stale`` with the command that repairs it.
        """
        if os.path.isdir(paths.base):
            with contextlib.suppress(ConntrackError):
                restore.attach_again(paths, patience=self._patience, only=[label])
        return None


def _ends(plan: Plan) -> tuple[set[str], set[Key], set[Key]]:
    """Return the namespaces that a lab's plan deletes, the interfaces that it deletes, and those
    that it makes.
    """
    namespaces, gone, made = set(), set(), set()
    for step in plan:
        if (step.action, step.kind) == ("delete", "netns"):
            namespaces.add(step.args)
        elif (step.action, step.kind) == ("delete", "link"):
            gone |= {key for key, dummy in step.args[0]}
        elif (step.action, step.kind) == ("create", "link"):
            made |= {end.key for end in step.args[:2]}
    return namespaces, gone, made
