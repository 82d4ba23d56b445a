# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sysctls of the calling thread's namespace, by their path below /proc/sys."""

from __future__ import annotations


def read_sysctl(path: str) -> str | None:
    """Return a sysctl of the calling thread's namespace, its white space made single blanks; None
    when there is none of that name.
    """
    try:
        with open(f"/proc/sys/{path}", encoding="ascii", errors="replace") as file:
            return " ".join(file.read().split())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        # there, but it cannot be read, as net.ipv6.conf.*.stable_secret before it was set
        return ""


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespace."""
    # a buffer would try once more when it is closed
    with open(f"/proc/sys/{path}", "wb", buffering=0) as file:
        file.write(f"{value}\n".encode())
