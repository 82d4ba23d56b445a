# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of this collection's making, or a test's, can stay behind on a machine: seen without the
collection's own code.
"""

from __future__ import annotations

import pathlib

BPFFS = "/sys/fs/bpf"
Snapshot = dict[str, str]

SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/conf/*/disable_ipv6",
)

COMMAND = (
    "/usr/local/bin/ct",
    "/usr/local/share/man/man8/ct.8",
    "/usr/local/share/bash-completion/completions/ct",
)


def snapshot() -> Snapshot:
    """Return what is there now: one name for each object, with its value where it has one."""
    seen: Snapshot = {}
    for kind, directory in (
        ("netns", "/run/netns"),
        ("link", "/sys/class/net"),
        ("state", "/run/ebpf_conntrack"),
        ("state", "/var/lib/ebpf_conntrack"),
    ):
        path = pathlib.Path(directory)
        if path.is_dir():
            seen.update((f"{kind} {entry.name}", "") for entry in path.iterdir())
    for path in pathlib.Path(BPFFS).rglob("*"):
        seen[f"pin {path}"] = ""
    for line in pathlib.Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        dummy, where, kind = line.split()[:3]
        if kind in ("bpf", "nsfs"):
            seen[f"mount {where}"] = kind
    if pathlib.Path("/etc/systemd/system/ct.service").exists():
        seen["unit ct.service"] = ""
    seen.update((f"file {name}", "") for name in COMMAND if pathlib.Path(name).exists())
    for pattern in SYSCTLS:
        for path in pathlib.Path("/proc/sys").glob(pattern):
            seen[f"sysctl {path.relative_to('/proc/sys')}"] = path.read_text(
                encoding="utf-8"
            ).strip()
    return seen


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return one line for each object that is new, gone or of another value."""
    return (
        [f"{name} is left" for name in sorted(after.keys() - before.keys())]
        + [f"{name} is gone" for name in sorted(before.keys() - after.keys())]
        + [
            f"{name} is {after[name]!r}, was {before[name]!r}"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ]
    )
