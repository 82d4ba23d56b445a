# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all unit tests: they change nothing of the machine that they run on, and none
takes longer than a minute.
"""

from __future__ import annotations

import collections.abc as c
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.core import lock

#: Seconds for one test.
LONGEST = 60


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bound the time of each unit test; not where ansible-test runs each in a process of its own,
    whose parent the bound would end.
    """
    if config.pluginmanager.hasplugin("timeout") and not config.pluginmanager.hasplugin(
        "ansible_forked"
    ):
        here = pathlib.Path(__file__).parent
        for item in items:
            if here in item.path.parents and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def locks_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[None]:
    """Lock files lie in a directory of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "RUN_DIR", str(tmp_path_factory.mktemp("facts") / "run"), raising=False)
        yield
