# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two rigs, built once for all suites, and the knobs that both have."""

from __future__ import annotations

import typing as t

import hypothesis
import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils import chain as chain_data
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig

# Every run tries the same cases: a red run is red for everybody. fuzz.py is for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("fixed")

Play = t.Callable[..., t.Tuple[view.Seen, view.Seen]]


@pytest.fixture(scope="session")
def kernel() -> t.Iterator[NfRig]:
    """The kernel's tracker."""
    with NfRig() as rig:
        yield rig


@pytest.fixture(scope="session")
def chain() -> t.Iterator[ChainRig]:
    """The chain."""
    with ChainRig() as rig:
        yield rig


@pytest.fixture(scope="session")
def play(kernel: NfRig, chain: ChainRig) -> Play:
    """``play(steps, rules)`` sends steps through both and compares; see compare.play."""

    def both(steps: t.Sequence[frames.Step], rules: compare.Rules = compare.Rules()) -> tuple[view.Seen, view.Seen]:
        return compare.play(kernel, chain, steps, rules)

    return both


@pytest.fixture
def tune(kernel: NfRig, chain: ChainRig) -> t.Iterator[t.Callable[..., None]]:
    """``tune(udp=1, tcp_loose=0)`` sets timeouts and knobs by the chain's names on both sides, until the test ends."""
    before: dict[str, int] = {}

    def both(**values: int) -> None:
        for name, value in values.items():
            before.setdefault(name, kernel.sysctl(sysctl_name(name), value))
        timeouts = {name: value for name, value in values.items() if name in chain_data.TIMEOUTS}
        chain.settings(timeouts, {name: value for name, value in values.items() if name in chain_data.KNOBS})

    yield both
    for name, value in before.items():
        kernel.sysctl(sysctl_name(name), value)
    chain.settings()


def sysctl_name(name: str) -> str:
    """Return the kernel's name of a timeout or knob of the chain. The number of retransmissions and their timeout have one name there."""
    if name not in chain_data.TIMEOUTS or name in chain_data.KNOBS:
        return name
    proto, dummy, state = name.partition("_")
    return "_".join([proto, "timeout", state]) if state else f"{proto}_timeout"
