# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forms in which ct graph draws: pure functions from a graph of ct.graph to text.

The pictures load nothing: no font, no script, no style sheet; what comes from the host is escaped.
"""

from __future__ import annotations

import typing as t

from . import captions, dot, html, mermaid, svg

#: What draws each form.
FORMS: dict[str, t.Callable[[captions.Graph], str]] = {
    "html": html.draw,
    "svg": svg.draw,
    "mermaid": mermaid.draw,
    "dot": dot.draw,
}
