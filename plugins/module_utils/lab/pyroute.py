# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message classes of pyroute2, which encode what the lab sends."""

from __future__ import annotations

import importlib.util
import sys
import types
import typing as t


class _Messages(t.NamedTuple):
    link: t.Any
    address: t.Any
    route: t.Any


_messages: _Messages | None = None


def messages() -> _Messages:
    """Return pyroute2's three message classes.

    Importing the whole package takes 0.1 s, its message classes 0.03 s: unless somebody has
    imported it, the package's own start-up code is left out.

    :raises ImportError: pyroute2 is missing.
    """
    global _messages
    if _messages is None:
        spec = importlib.util.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("pyroute2 is missing")
        stand_in = None
        if "pyroute2" not in sys.modules:
            stand_in = types.ModuleType("pyroute2")
            stand_in.__path__ = list(spec.submodule_search_locations)
            sys.modules["pyroute2"] = stand_in
        try:
            _messages = _import_messages()
        except Exception:
            if stand_in is None:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
            _messages = _import_messages()
        finally:
            if stand_in is not None and sys.modules.get("pyroute2") is stand_in:
                del sys.modules["pyroute2"]
    return _messages


def _import_messages() -> _Messages:
    rtnl = "pyroute2.netlink.rtnl."
    return _Messages(
        *(
            getattr(importlib.import_module(rtnl + name), name)
            for name in ("ifinfmsg", "ifaddrmsg", "rtmsg")
        )
    )
