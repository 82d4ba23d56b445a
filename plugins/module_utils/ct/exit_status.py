# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exit status of the command ``ct``, and what it means."""

from __future__ import annotations

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_STATUS = {
    DONE: "All is done, and all is well.",
    FAILED: (
        "It could not be done, or what was asked for is not there or not well: one line on standard"
        " error says what."
    ),
    USAGE: "The command line is wrong; nothing was read or changed.",
}
