# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of xdp_object: what it sends to the build host."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.action import xdp_object, xdp_program
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import clang as build_clang
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

pytest.importorskip("jinja2")


def test_the_same_text_goes_along_as_to_a_target() -> None:
    args: dict[str, t.Any] = {"dest": "objects", "fused": True}
    text, headers = render.unpack(xdp_object.packed(args, str)["rendered"])
    prelude = headers.pop(build_clang.PRELUDE)
    assert (text, headers) == render.unpack(xdp_program.rendered({"fused": True}, str)["rendered"])
    assert "#define PROG(name)" in prelude


@pytest.mark.parametrize("name", ["state", "table_size", "half_open_size6"])
def test_what_makes_no_other_object_is_no_option(name: str) -> None:
    with pytest.raises(ConntrackError, match=f"{name}: it is no option of xdp_object"):
        xdp_object.packed({"dest": "objects", name: 1}, str)
