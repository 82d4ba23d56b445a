# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sysctls that setting one changes, and how they are put back."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ..kernel import sysctls


def snapshot(path: str) -> dict[str, str]:
    """Return the values that setting ``path`` can change, in the order in which to write them back.

    Setting ``conf/all/X`` sets X on every interface and the default for later ones; IPv4 forwarding
    also turns accept_redirects round (Documentation/networking/ip-sysctl.rst).
    """
    paths = [path]
    name = siblings(path)
    if name is not None:
        conf = path.rsplit("/", 2)[0]
        with contextlib.suppress(FileNotFoundError):
            others = sorted(set(os.listdir(f"/proc/sys/{conf}")) - {"all", "default"})
            paths += [f"{conf}/{entry}/{name}" for entry in ["default", *others]]
        if path == FORWARDING[0]:
            paths.append("net/ipv4/conf/all/accept_redirects")
    values = ((p, sysctls.read_sysctl(p)) for p in paths)
    return {p: value for p, value in values if value is not None}


def write_back(previous: t.Mapping[str, str]) -> None:
    """Write values back that differ; interfaces that are gone are left out."""
    for path, value in previous.items():
        if sysctls.read_sysctl(path) not in (None, value):
            sysctls.write_sysctl(path, value)


FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")
CONF_ALL = re.compile(r"net/ipv[46]/conf/all/([^/]+)\Z")


def siblings(path: str) -> str | None:
    """Return the name of the value that setting this path changes on all interfaces, or None."""
    found = CONF_ALL.match(path)
    return found.group(1) if found else None
