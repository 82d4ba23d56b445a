# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line that enters a namespace, word by word."""

from __future__ import annotations

import pwd
import shlex

import pytest
from ansible_collections.ebpf.conntrack.plugins.connection import netns
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError


def test_root_enters_at_once() -> None:
    assert shlex.split(netns.wrapped("echo 'a b'", "ns1", False, "sudo -n", None)) == [
        "nsenter",
        "--net=/run/netns/ns1",
        "--",
        "/bin/sh",
        "-c",
        "echo 'a b'",
    ]


@pytest.mark.parametrize("name", ["../../proc/1/ns/net", "/proc/1/ns/net", "..", "", "a\0b"])
def test_a_namespace_has_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ConntrackError) as raised:
        netns.wrapped("id", name, False, "sudo -n", None)
    assert (
        raised.value.message
        == f"netns: {name!r} is not valid: give the name of a namespace, as ip netns list has it."
    )


def test_somebody_else_enters_with_sudo_and_is_themselves_inside() -> None:
    user = pwd.struct_passwd(("ann", "x", 1000, 100, "Ann", "/home/ann", "/bin/sh"))
    words = shlex.split(netns.wrapped("id", "ns1", True, "doas", user))
    assert words[:5] == ["doas", "nsenter", "--net=/run/netns/ns1", "--", "unshare"]
    who = [
        "setpriv",
        "--reuid=1000",
        "--regid=100",
        "--init-groups",
        "env",
        "HOME=/home/ann",
        "USER=ann",
        "LOGNAME=ann",
    ]
    assert words[-11:] == [*who, "/bin/sh", "-c", "id"]
