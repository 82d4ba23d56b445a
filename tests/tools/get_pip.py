# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put pip into the virtual environment that runs this: a stand-in for the script that ansible-test
would download.

ansible-test calls it by way of a file it keeps in its cache; the pip wheel inside the interpreter's
ensurepip does as well.
"""

from __future__ import annotations

import ensurepip

if __name__ == "__main__":
    ensurepip.bootstrap(default_pip=True)
