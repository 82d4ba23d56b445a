# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text that came from elsewhere, as a terminal, a file of lines and a spreadsheet may have it."""

from __future__ import annotations

import re

#: What a terminal obeys, or what makes text look like another one: control characters (C0, DEL,
#: C1), what ends lines or turns the direction of writing
#: (Unicode, UAX 9), and halves of surrogate pairs, which are no text.
_UNPRINTABLE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: object, keep: str = "") -> str:
    """Return text with each such character as JSON escapes it, so that JSON stays what it was, and
    people see what there was.

    :param keep: those that stay, as the line ends of a text of several lines.

    >>> printable("r1" + chr(27) + "[2J") == "r1" + chr(92) + "u001b[2J"
    True
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", str(text)
    )
