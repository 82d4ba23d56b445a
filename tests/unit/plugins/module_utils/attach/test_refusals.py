# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check run says of native XDP, by what the kernel and the driver say."""

from __future__ import annotations

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.attach import refusals
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import (
    ethtool,
    netdev,
    xdp_features,
)


@pytest.mark.parametrize(
    ("index", "kind", "driver", "able", "said"),
    [
        (7, "", "ixgbe", True, ""),
        (7, "", "fancy", False, "the driver fancy does not support XDP in native mode"),
        (7, "veth", "veth", False, "as many rx queues as the other end has tx queues"),
        (7, "bond", "bonding", False, ""),
        # Linux before 6.3 does not say
        (1, "", "", None, "the driver of this interface does not support XDP in native mode"),
        (7, "bridge", "bridge", None, "the driver bridge does not support"),
        (7, "vlan", "802.1Q VLAN Support", None, "does not support"),
        (7, "", "ixgbe", None, ""),
        (7, "veth", "veth", None, ""),
    ],
)
def test_native_is_refused_where_it_is_known_to_fail(
    index: int,
    kind: str,
    driver: str,
    able: bool | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        netdev,
        "link_facts",
        lambda number: netdev.LinkFacts(number, "x0", kind, 1500, 0, None, {}, 0),
    )
    monkeypatch.setattr(ethtool, "driver", lambda name: ethtool.Driver(driver, ""))
    monkeypatch.setattr(xdp_features, "native", lambda number: able)
    found = refusals.why_not_native(index)
    assert said in found and bool(said) == bool(found), found


def test_below_linux_5_15_nothing_on_top_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_release", lambda: (5, 14))
    assert refusals.upper_with_program(1) == ""
