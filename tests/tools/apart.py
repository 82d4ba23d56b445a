# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run pytest beside other suites that pin things: with a network, pins, namespaces' names, /run and
/var/lib of its own.

    unshare --net --mount --propagation private .venv/bin/python tests/tools/apart.py [pytest's
    arguments]

What the tests leave behind in there is a failure, as it is elsewhere.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import leftovers

#: What gives this process places of its own.
SET_UP = [
    ["mount", "-t", "tmpfs", "tmpfs", "/var/lib"],
    ["mount", "-t", "tmpfs", "tmpfs", "/run"],
    ["mkdir", "/run/netns", "/run/lock"],
    ["mount", "--bind", "/run/netns", "/run/netns"],
    ["mount", "--make-shared", "/run/netns"],
    ["mount", "-t", "sysfs", "sysfs", "/sys"],
    ["mount", "-t", "bpf", "bpf", leftovers.BPFFS],
    ["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"],
    ["ip", "link", "set", "lo", "up"],
]


def main(arguments: list[str]) -> int:
    """Set it up, run the tests, and look for what is left behind; return the exit status."""
    for command in SET_UP:
        subprocess.run(command, check=True)
    before = leftovers.snapshot()
    status = subprocess.call(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=pathlib.Path(__file__).resolve().parents[2],
    )
    # What other suites had mounted when this process got mounts of its own goes with them, hidden
    # as it is.
    left = [
        line
        for line in leftovers.differences(before, leftovers.snapshot())
        if not (line.startswith("mount ") and line.endswith(" is gone"))
        # suites that run meanwhile install the command there; make test looks at its very end
        and not line.startswith("file /usr/local/")
    ]
    print(
        "\n".join(
            ["FAIL left behind:", *(f"  {line}" for line in left)]
            if left
            else ["ok   nothing is left behind"]
        ),
        flush=True,
    )
    return status or int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
