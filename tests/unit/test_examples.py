# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples in docstrings of the collection's own code show what the code does."""

from __future__ import annotations

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "plugins").rglob("*.py")
    if "\n    >>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples(path: pathlib.Path) -> None:
    name = ".".join(("ansible_collections.ebpf.conntrack", *path.with_suffix("").parts))
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed
