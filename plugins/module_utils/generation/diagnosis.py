# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a chain, what it means, and what mends it."""

from __future__ import annotations

import dataclasses
import typing as t


# ---------------------------------------------------------------- what can be wrong
class Kind(t.NamedTuple):
    """One kind of fault.

    :ivar meaning: what it means, for the documentation.
    :ivar mend: what the next run does about it, a value of MENDS.
    :ivar repair: what an operator does about it at once, a command where there is one; ``{object}``
        stands for the fault's object.
    """

    meaning: str
    mend: str
    repair: str = "ct load"


#: What takes a fault away: a new generation, a write, a link's update or care for a link without an
#: interface by xdp_program; xdp_attach on the interface; or only people.
MENDS = ("generation", "write", "update", "link", "attach", "operator")
_LOOK_AT_OFFLOADS = "look at what runs on the interfaces (bpftool net, ethtool -k {object})"
_FOLLOW = (
    "ct attach --program PROGRAM, with the name that the interface has now, or ct detach {object}"
)
FAULTS = {
    "active_missing": Kind(
        "generations are loaded, but the link to the active one is missing or leads nowhere",
        "generation",
    ),
    "pin_missing": Kind("a pin of the active generation is missing", "generation"),
    "pin_foreign": Kind("something else stands at a pin of the active generation", "generation"),
    "slot_empty": Kind("a slot of the jump table is empty", "generation"),
    "slot_foreign": Kind(
        "a slot of the jump table holds another program than the one that is pinned for it",
        "generation",
    ),
    "attach_type": Kind(
        "a program has another attach type than the rest, so that the kernel refuses it in one jump"
        " table with them",
        "generation",
    ),
    "map_replaced": Kind("another map is pinned than the programs use", "generation"),
    "map_shape": Kind(
        "a map has another type, key, value or number of entries than the chain's", "generation"
    ),
    "meta_damaged": Kind(
        "what the generation says of itself, or its clock, is not true", "generation"
    ),
    "settings_damaged": Kind("the settings are none that the loader writes", "write"),
    "chain_dead": Kind(
        "interfaces receive and nothing is counted, nor is a frame of proof", "generation"
    ),
    "frames_unseen": Kind(
        "interfaces receive and nothing is counted, although a frame of proof is",
        "operator",
        _LOOK_AT_OFFLOADS,
    ),
    "path_missing": Kind("the path prog or map below pin_root is missing", "write"),
    "path_foreign": Kind(
        "the path prog or map below pin_root is not the chain's",
        "operator",
        "move {object} away, then ct load",
    ),
    "link_program": Kind(
        "an interface runs another program than the active generation's", "update"
    ),
    "link_stale": Kind("a pinned link holds no interface any more", "link", "ct detach {object}"),
    "link_moved": Kind(
        "a pinned link holds another interface than it is named for: that one was renamed, or moved"
        " to another namespace",
        "attach",
        _FOLLOW,
    ),
    "forward_unsafe": Kind(
        "the chain forwards through an interface where it must not: VLAN tags travel beside its"
        " frames, or nf_conntrack would refuse",
        "operator",
    ),
    "link_foreign": Kind(
        "something that is no XDP link stands among the pinned links",
        "operator",
        "remove the pin of {object} from the directory link",
    ),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    :ivar fault: a name of FAULTS.
    :ivar object: what it is about: a pin below the active generation, ``jt[<slot>]``, an interface,
        a path.
    :ivar detail: the whole, for people.
    :ivar repair: what an operator does about it; that of its kind where nothing else is given.
    """

    fault: str
    object: str
    detail: str
    repair: str = ""

    def __post_init__(self) -> None:
        """Take the repair of its kind where none is given."""
        if not self.repair:
            object.__setattr__(self, "repair", FAULTS[self.fault].repair.format(object=self.object))

    def as_dict(self) -> dict[str, str]:
        """Return the form in which modules report it."""
        return dataclasses.asdict(self)


def mended(before: t.Iterable[Fault], after: t.Iterable[Fault]) -> list[dict[str, str]]:
    """Return, as modules report them, the faults that a run took away; it takes no credit for what
    only people mend.
    """
    left = {(fault.fault, fault.object) for fault in after}
    return [
        fault.as_dict()
        for fault in before
        if (fault.fault, fault.object) not in left and FAULTS[fault.fault].mend != "operator"
    ]


def mended_by(faults: t.Iterable[Fault], mend: str) -> list[Fault]:
    """Return those faults that a ``mend`` of MENDS takes away."""
    return [fault for fault in faults if FAULTS[fault.fault].mend == mend]
