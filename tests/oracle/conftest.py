# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rigs, built once for all suites, and the knobs that all of them have."""

from __future__ import annotations

import contextlib
import random
import typing as t

import hypothesis
import pytest
from ansible_collections.ebpf.conntrack.tests.oracle.rig import compare, frames, view
from ansible_collections.ebpf.conntrack.tests.oracle.rig.chain_rig import ChainRig
from ansible_collections.ebpf.conntrack.tests.oracle.rig.nf import NfRig
from ansible_collections.ebpf.conntrack.tests.support import compiled

# Every run tries the same cases: a red run is red for everybody. fuzz.py is for new ones.
hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--shuffle SEED`` runs the tests in another order: none may need what another one leaves
    behind. ``--every-form`` compares random traffic with all forms of the chain, which takes long.
    """
    parser.addoption(
        "--every-form", action="store_true", help="compare random traffic with all forms, too"
    )
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)


Play = t.Callable[..., view.Seen]
Chains = dict[str, ChainRig]

#: The forms of the chain that are compared: each stage a program, the entry programs that do the
#: common packets themselves, and those that forward them.
#: Some are made by clang and some by bcc, so that each case meets both forms of both front ends.
FORMS: dict[str, dict[str, t.Any]] = {
    "chain": {},
    "fused": {"fused": True, "build": "clang"},
    "forward": {"fused": True, "forward": "all"},
}
#: The form that random traffic meets, unless --every-form is given.
RANDOM = "fused"
#: What is compared besides, and has no tests of its own.
BESIDES: dict[str, dict[str, t.Any]] = {"chain, by clang": {"build": "clang"}}


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> None:
    """No text of the chain is compiled twice, whichever process wants it."""
    compiled.install_everywhere()


@pytest.fixture(scope="session")
def kernel() -> t.Iterator[NfRig]:
    """The kernel's tracker."""
    with NfRig() as rig:
        yield rig


@pytest.fixture(scope="session")
def chains() -> t.Iterator[Chains]:
    """The chain in all its forms."""
    with contextlib.ExitStack() as rigs:
        yield {
            name: rigs.enter_context(ChainRig(checksum="strict", **form))
            for name, form in {**FORMS, **BESIDES}.items()
        }


@pytest.fixture(params=FORMS)
def chain(chains: Chains, request: pytest.FixtureRequest) -> ChainRig:
    """The chain in one of its forms, after the other."""
    return chains[request.param]


@pytest.fixture(scope="session")
def play(kernel: NfRig, chains: Chains) -> Play:
    """``play(steps, rules)`` sends steps through the kernel and all forms of the chain, and
    compares; see compare.play.
    """

    def everywhere(steps: t.Sequence[frames.Step], rules: compare.Rules = compare.ALL) -> view.Seen:
        return compare.play(kernel, chains, steps, rules)

    return everywhere


@pytest.fixture(scope="session")
def random_chains(chains: Chains, pytestconfig: pytest.Config) -> Chains:
    """The chain in the form that random traffic meets; directed tests meet all of them."""
    return chains if pytestconfig.getoption("--every-form") else {RANDOM: chains[RANDOM]}


@pytest.fixture(scope="session")
def play_random(kernel: NfRig, random_chains: Chains) -> Play:
    """``play`` for random traffic."""

    def everywhere(steps: t.Sequence[frames.Step], rules: compare.Rules = compare.ALL) -> view.Seen:
        return compare.play(kernel, random_chains, steps, rules)

    return everywhere


Tune = t.Callable[..., None]


@pytest.fixture
def tune(kernel: NfRig, chains: Chains) -> t.Iterator[Tune]:
    """``tune(timeouts={"udp": 1}, knobs={"tcp_loose": 0})`` sets all sides by the chain's names,
    until the test ends.
    """
    before: dict[str, int] = {}

    def everywhere(
        timeouts: t.Mapping[str, int] | None = None, knobs: t.Mapping[str, int] | None = None
    ) -> None:
        named = {
            **{timeout_sysctl(name): value for name, value in (timeouts or {}).items()},
            **(knobs or {}),
        }
        for name, value in named.items():
            before.setdefault(name, kernel.sysctl(name, value))
        for rig in chains.values():
            rig.settings(timeouts, knobs)

    yield everywhere
    for name, value in before.items():
        kernel.sysctl(name, value)
    for rig in chains.values():
        rig.settings()


def timeout_sysctl(name: str) -> str:
    """Return the kernel's name of one of the chain's timeouts.

    >>> timeout_sysctl("tcp_syn_sent"), timeout_sysctl("udp_stream"), timeout_sysctl("icmp")
    ('tcp_timeout_syn_sent', 'udp_timeout_stream', 'icmp_timeout')
    """
    proto, dummy, state = name.partition("_")
    return f"{proto}_timeout_{state}" if state else f"{proto}_timeout"
