# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service tells systemd, and what it is told: sd_notify(3), sd_watchdog_enabled(3) and
sd-daemon(3) in Python. Without systemd nothing is told.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from ..core.printable import printable

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6


def notify(**fields: str | int) -> None:
    """Tell the manager, as ``notify(READY=1, STATUS="...")``. A manager that does not listen is no
    reason to fail.

    >>> notify(READY=1)
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    address = f"\0{where[1:]}" if where.startswith("@") else where
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(
            "".join(f"{name}={value}\n" for name, value in fields.items()).encode(), address
        )


def watchdog_seconds() -> float | None:
    """Return after how long without a word the manager takes this process for dead; None where it
    does not.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


def log(priority: int, text: str) -> None:
    """Write one line to standard error, for the journal with its priority."""
    prefix = f"<{priority}>" if "JOURNAL_STREAM" in os.environ else ""
    sys.stderr.write(f"{prefix}{printable(' '.join(text.split()))}\n")
    sys.stderr.flush()
