# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How flows look in a picture by their state: colour and dash."""

from __future__ import annotations

import typing as t


class Phase(t.NamedTuple):
    """States that look alike.

    :ivar light: the colour on a light ground; ``dark`` on a dark one.
    :ivar dash: SVG's stroke-dasharray, so that colour is not all that tells them apart.
    """

    light: str
    dark: str
    dash: str
    dot: str
    states: tuple[str, ...]


PHASES = {
    "established": Phase("#1a7f37", "#3fb950", "", "solid", ("ESTABLISHED",)),
    "replied": Phase("#0969da", "#58a6ff", "", "solid", ("REPLIED",)),
    "opening": Phase(
        "#9a6700",
        "#d29922",
        "7 4",
        "dashed",
        (
            "NEW",
            "SYN_SENT",
            "SYN_SENT2",
            "SYN_RECV",
            "COOKIE_WAIT",
            "COOKIE_ECHOED",
            "HEARTBEAT_SENT",
        ),
    ),
    "closing": Phase(
        "#8250df",
        "#bc8cff",
        "2 3",
        "dotted",
        (
            "FIN_WAIT",
            "CLOSE_WAIT",
            "LAST_ACK",
            "TIME_WAIT",
            "SHUTDOWN_SENT",
            "SHUTDOWN_RECD",
            "SHUTDOWN_ACK_SENT",
        ),
    ),
    "closed": Phase("#cf222e", "#ff7b72", "8 3 2 3", "dashed", ("CLOSE", "CLOSED")),
}
OTHER = Phase("#57606a", "#8b949e", "", "solid", ())
_PHASE_OF = {state: name for name, phase in PHASES.items() for state in phase.states}


def phase_of(state: str) -> str:
    """Return the name of a state's phase; ``other`` for a state that no phase has."""
    return _PHASE_OF.get(state, "other")


def phase_named(name: str) -> Phase:
    """Return a phase by its name."""
    return PHASES.get(name, OTHER)
