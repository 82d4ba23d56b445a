# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each fault that has a name is made for real: it is named, also in check mode, the next run mends
it, the one after that does nothing, and no flow is lost.
"""

from __future__ import annotations
