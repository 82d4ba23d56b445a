# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python imports this when it starts with this directory in PYTHONPATH: once the bcc front end is
imported, it compiles nothing twice. See compiled.py.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import typing as t

FRONT_END = "ansible_collections.ebpf.conntrack.plugins.module_utils.build.bcc"


class Finder(importlib.abc.MetaPathFinder):
    """Finds the front end as all other finders do, and lets it compile each text once."""

    def find_spec(
        self,
        fullname: str,
        path: t.Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the front end, None for everything else."""
        if fullname != FRONT_END:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            whole = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                whole(module)
                importlib.import_module("compiled").install()

            vars(spec.loader)["exec_module"] = exec_module
        return spec


sys.meta_path.insert(0, Finder())
