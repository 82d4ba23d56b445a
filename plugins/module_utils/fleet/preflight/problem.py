# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps the chain off a host."""

from __future__ import annotations

import dataclasses

from ...core.errors import ConntrackError


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that keeps the chain off a host.

    :ivar field: the option it is about, or what of the host.
    :ivar value: what is there.
    :ivar problem: what is wrong with it, for people.
    :ivar mend: what to do about it.
    """

    field: str
    value: str
    problem: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        """Return the form in which the module reports it."""
        return dataclasses.asdict(self)


def problem_of(field: str, value: str, exc: ConntrackError) -> Problem:
    """Return the problem that an error of the library tells of; what follows its first sentence is
    how to mend it.
    """
    problem, dummy, mend = exc.message.partition(". ")
    return Problem(field, value, f"{problem.rstrip('.')}.", mend)
