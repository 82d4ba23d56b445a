# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab, built once, in which each test that asks for ``wire`` finds both trackers empty; and the
figures that tests print.
"""

from __future__ import annotations

import collections.abc as c
import json
import os
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.e2e.support.wire import Wire
from ansible_collections.ebpf.conntrack.tests.support import compiled

#: Where the figures go besides; the README's reliability table is made of them.
REPORT = pathlib.Path(__file__).resolve().parents[2] / "build/reliability.json"
#: Notes what a test measured: (what, value).
Figure = c.Callable[[str, object], None]
_FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> None:
    """No text of the chain is compiled twice, whichever process wants it."""
    compiled.install_everywhere()


@pytest.fixture(scope="session")
def lab_on_the_wire() -> c.Iterator[Wire]:
    """Return the lab; it goes whatever the tests do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Wire() as made:
        yield made


@pytest.fixture
def wire(lab_on_the_wire: Wire) -> c.Iterator[Wire]:
    """Return the lab with both trackers empty."""
    lab_on_the_wire.reset()
    yield lab_on_the_wire
    lab_on_the_wire.reset()


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Figure:
    """Return a function that notes what a test measured, (what, value); the run prints all of them
    at its end.
    """
    noted = pytestconfig.stash.setdefault(_FIGURES, {})

    def note(what: str, value: object) -> None:
        noted[what] = str(value)

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the figures, and keep them for those who want to compare runs."""
    noted = config.stash.get(_FIGURES, {})
    if not noted:
        return
    terminalreporter.section("figures")
    for what, value in noted.items():
        terminalreporter.write_line(f"{what}: {value}")
    REPORT.parent.mkdir(exist_ok=True)
    known = json.loads(REPORT.read_text("utf-8")) if REPORT.exists() else {}
    REPORT.write_text(json.dumps({**known, **noted}, indent=1) + "\n", "utf-8")
