# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a kernel that lacks something; no kernel is asked."""

from __future__ import annotations

import contextlib
import errno
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import features
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpf, netdev


def refusing(number: int, words: str = "") -> t.Callable[[], None]:
    def probe() -> None:
        raise bpf.BpfError(number, "bpf_prog_load(probe)", words)

    return probe


def works() -> None:
    """A feature that is there."""


def test_a_kernel_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEATURES", (("one", "4.8", works), ("two", "5.9", works)))
    features.check()


def test_what_is_missing_is_named_with_its_release_and_the_kernels_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        features,
        "FEATURES",
        (
            ("one", "4.8", works),
            ("two", "5.6", refusing(errno.EINVAL, "unknown func bpf_jiffies64#118")),
            ("three", "5.9", refusing(errno.EINVAL)),
        ),
    )
    with pytest.raises(ConntrackError) as raised:
        features.check()
    message = raised.value.message
    assert (
        message.startswith("this kernel lacks what the chain needs: two (since Linux 5.6; ")
        and "unknown func bpf_jiffies64#118" in message
    )
    assert "three (since Linux 5.9" in message and "one" not in message
    assert len(raised.value.facts["missing_features"]) == 2


def test_without_rights_nothing_is_said_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEATURES", (("one", "4.8", refusing(errno.EPERM)),))
    with pytest.raises(
        ConntrackError,
        match=r"refuses BPF to this user: run as root, or with the capabilities CAP_BPF",
    ):
        features.check()


def test_links_are_tried_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[t.Any] = []

    @contextlib.contextmanager
    def anonymous() -> t.Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    def create(dummy: int, ifindex: int, **options: int) -> int:
        seen.append(ifindex)
        return -1

    monkeypatch.setattr(bpf, "prog_load", lambda *dummy: -1)
    monkeypatch.setattr(features.private_netns, "anonymous", anonymous)
    monkeypatch.setattr(netdev, "link_create", create)
    (probe,) = (probe for name, dummy, probe in features.FEATURES if "links" in name)
    probe()
    assert seen == ["in", 1, "out"]


def test_instructions_have_eight_bytes() -> None:
    assert features._insn(0xB7, 1, 2, -8, 3) == bytes((0xB7, 0x21, 0xF8, 0xFF, 3, 0, 0, 0))
