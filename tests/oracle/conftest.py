# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two rigs, built once for all suites, and the knobs that both have."""

from __future__ import annotations

import typing as t

import hypothesis
import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig

# Every run tries the same cases: a red run is red for everybody. fuzz.py is for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("fixed")

Play = t.Callable[..., tuple[view.Seen, view.Seen]]


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

    def both(steps: t.Sequence[frames.Step], rules: compare.Rules = compare.ALL) -> tuple[view.Seen, view.Seen]:
        return compare.play(kernel, chain, steps, rules)

    return both


Tune = t.Callable[..., None]


@pytest.fixture
def tune(kernel: NfRig, chain: ChainRig) -> t.Iterator[Tune]:
    """``tune(timeouts={"udp": 1}, knobs={"tcp_loose": 0})`` sets both sides by the chain's names, until the test ends."""
    before: dict[str, int] = {}

    def both(timeouts: t.Mapping[str, int] | None = None, knobs: t.Mapping[str, int] | None = None) -> None:
        named = {**{timeout_sysctl(name): value for name, value in (timeouts or {}).items()}, **(knobs or {})}
        for name, value in named.items():
            before.setdefault(name, kernel.sysctl(name, value))
        chain.settings(timeouts, knobs)

    yield both
    for name, value in before.items():
        kernel.sysctl(name, value)
    chain.settings()


def timeout_sysctl(name: str) -> str:
    """Return the kernel's name of one of the chain's timeouts.

    >>> timeout_sysctl("tcp_syn_sent"), timeout_sysctl("udp_stream"), timeout_sysctl("icmp")
    ('tcp_timeout_syn_sent', 'udp_timeout_stream', 'icmp_timeout')
    """
    proto, dummy, state = name.partition("_")
    return f"{proto}_timeout_{state}" if state else f"{proto}_timeout"
