# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames that are replayed where no capture is given: the file is up to date, leaves nothing
out, and nf_conntrack makes the same of it.
"""

from __future__ import annotations

import io
import logging

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import jiffies as chain_jiffies
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import capture
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay import run as replay
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation.replay.shadow import Shadow
from ansible_collections.ebpf.conntrack.tests.oracle.conftest import Play
from ansible_collections.ebpf.conntrack.tests.oracle.rig import replay_set
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import SOURCES

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
scapy = pytest.importorskip("scapy.all")

#: What no frame is counted as where nothing is limited and the chain is whole.
FAILURES = {
    "untracked_rate",
    "untracked_no_entry",
    "untracked_contended",
    "untracked_no_meta",
    "untracked_no_slot",
}
HOOKS = {"a": "ingress", "b": "egress"}
CONVERSATIONS = replay_set.conversations()


def test_the_file_is_up_to_date() -> None:
    assert replay_set.FILE.read_bytes() == capture.write(replay_set.packets()), (
        "run python tests/oracle/rig/replay_set.py"
    )


def test_scapy_reads_the_same_frames() -> None:
    read = scapy.rdpcap(str(replay_set.FILE))
    assert [bytes(packet) for packet in read] == [step.frame for step in replay_set.steps()]


def test_each_frame_comes_in_where_it_was_meant_to() -> None:
    """By the rule that makes two sides of a capture."""
    frames = replay.frames_of(replay_set.packets(), "both")
    assert [frame.number for frame in frames] == list(range(1, len(frames) + 1))
    meant = [HOOKS[step.side] for step in replay_set.steps()]
    assert [frame.number for frame, hook in zip(frames, meant) if frame.hook != hook] == []


@pytest.mark.parametrize("fused", [False, True])
def test_every_outcome_is_among_them(fused: bool) -> None:
    headers, settings, frames = (
        render.read_headers(str(SOURCES)),
        chain_settings.settings_value(chain_jiffies.hz(), {}, {}),
        replay.frames_of(replay_set.packets(), "both"),
    )
    text = render.render(str(SOURCES), render.Settings(fused=fused))
    with Shadow(text, headers, settings, chain_jiffies.hz(), len(frames)) as shadow:
        report = replay.compare(frames, None, shadow, True)
    assert report.verdicts == {"new": {"pass": len(frames)}}
    assert {name for name, dummy in chain_counters.OUTCOMES} - report.counters[
        "new"
    ].keys() == FAILURES
    assert sum(
        number
        for name, number in report.counters["new"].items()
        if name in dict(chain_counters.OUTCOMES)
    ) == len(frames)
    assert {"created", "reopened", "deleted_reset", "deleted_expired"} <= report.counters[
        "new"
    ].keys()


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if not name.endswith("different")])
def test_nf_conntrack_makes_the_same_of_it(play: Play, name: str) -> None:
    """Frame by frame; the time that passes in it is waited for."""
    play(CONVERSATIONS[name])


def test_what_is_written_is_what_is_read() -> None:
    packets = [*replay_set.packets(), capture.Packet(b"x" * 20, 7, True)]
    assert capture.read(io.BytesIO(capture.write(packets)), "memory", len(packets)) == packets
