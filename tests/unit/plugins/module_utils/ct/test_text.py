# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ct prints: every counter at its stage, every state with its reason."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import states as chain_states
from ansible_collections.ebpf.conntrack.plugins.module_utils.ct import text as ct_text
from ansible_collections.ebpf.conntrack.plugins.module_utils.flows import codec as flow

SOURCES = pathlib.Path(__file__).resolve().parents[5] / "files/bpf"
#: Headers that a stage's program is made of besides its own file.
HEADERS = {
    "ingress, egress": ("templates/enter.h.j2", "lib/packet.h"),
    "ct, ct6": ("lib/track.h", "lib/entry.h", "lib/icmp.h"),
}
LAST = "prs_tcp ... prs_gre"


@pytest.mark.parametrize("stage", ct_text.STAGES)
def test_a_stage_counts_what_stands_at_it(stage: str) -> None:
    programs = (
        ("prs_tcp", "prs_udp", "prs_icmp", "prs_icmp6", "prs_sctp", "prs_gre")
        if stage == LAST
        else stage.split(", ")
    )
    text = "".join(
        (SOURCES / name).read_text("utf-8")
        for name in (*(f"stages/{name}.c" for name in programs), *HEADERS.get(stage, ()))
    )
    counted = {name.lower() for name in re.findall(r"COUNT_(\w+)", text)}
    assert set(ct_text.STAGES[stage]) <= counted


def test_every_outcome_stands_at_one_stage() -> None:
    names = [name for names in ct_text.STAGES.values() for name in names]
    assert sorted(names) == sorted(name for name, dummy in chain_counters.OUTCOMES)


def test_every_state_has_a_reason() -> None:
    assert set(ct_text.STATES_WHY["tcp"]) == set(chain_states.TCP_STATES)
    assert set(ct_text.STATES_WHY["sctp"]) == {*chain_states.SCTP_STATES[1:], *flow.PLAIN_STATES}


@pytest.mark.parametrize(
    ("proto", "state", "timeout", "idle", "name"),
    [
        ("tcp", "ESTABLISHED", 431990, 9, "tcp_established"),
        ("tcp", "ESTABLISHED", 298, 2, "tcp_max_retrans"),
        ("tcp", "TIME_WAIT", 120, 0, "tcp_time_wait"),
        ("udp", "ESTABLISHED", 119, 0, "udp_stream"),
        ("icmp", "REPLIED", 29, 0, "icmp"),
        ("253", "NEW", 599, 0, "generic"),
        ("udp", "NEW", 77, 0, ""),
    ],
)
def test_the_timeout_that_holds(proto: str, state: str, timeout: int, idle: int, name: str) -> None:
    record = {
        "proto": proto,
        "state": state,
        "assured": False,
        "seen_reply": False,
        "timeout": timeout,
        "idle": idle,
    }
    said = ct_text.why(record, chain_settings.TIMEOUTS)[-1]
    assert (f"the timeout {name} is" in said) == bool(name) and ("the timeout" in said) == bool(
        name
    ), said
