# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine is like before and after, and where the commands are typed."""

from __future__ import annotations

import collections.abc as c
import os
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.tools import leftovers, tree


@pytest.fixture(scope="module")
def untouched() -> c.Iterator[None]:
    """Hold that the machine is after the module's tests what it was before."""
    before = leftovers.snapshot()
    yield
    assert leftovers.differences(before, leftovers.snapshot()) == []


@pytest.fixture(scope="session")
def plain_environment() -> dict[str, str]:
    """Return what a login shell has, and what pip needs to find its packages here."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("PIP_", "SSL_")) or k.lower().endswith("_proxy")
    }
    return {
        **kept,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.environ["HOME"],
        "LANG": "C.UTF-8",
    }


@pytest.fixture(scope="session")
def copied_tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a copy of the project as a clone would have it, under a name that is not the
    collection's.
    """
    return tree.copy_tree(tmp_path_factory.mktemp("clone") / "some-other.name")
