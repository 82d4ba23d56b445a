# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ct load`` without Ansible: the chain comes back after all pins are gone, with other settings,
and from a directory.
"""

from __future__ import annotations

import os

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_ct import Ct, installed
from ansible_collections.ebpf.conntrack.tests.e2e.test_generation import (
    SOURCES,
    TABLE_SIZE,
    Chain,
    made,
    rendered,
    udp_frame,
    veth,
)
from ansible_collections.ebpf.conntrack.tests.e2e.test_health import running

__all__ = ["installed", "made", "rendered", "running", "veth"]  # fixtures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Building(Ct):
    """The command as its shebang runs it, with the system's packages."""

    def argv(self, *words: str) -> list[str]:
        return [word for word in super().argv(*words) if word != "-S"]


def test_the_chain_comes_back_after_a_reboot(installed: str, running: Chain) -> None:
    bare, host = (
        kind(installed, running.paths.pin_root, running.paths.state_dir) for kind in (Ct, Building)
    )
    before = running.observe()
    assert bare("load") == "nothing to do\n", "what is in place takes no bcc"
    # a reboot leaves no pin, and the state directory
    generation.remove_tree(running.paths.pin_root)
    foretold = bare("load", "--dry-run")
    assert (
        foretold.startswith("would load generation 2: no chain is loaded\n")
        and "would delete manifest 1.json" in foretold
    )
    assert (
        "bcc 0.26 or newer is needed and was not found" in bare.refuses("load", status=1)
        and running.observe().generation is None
    )
    status, written = host.asked("", "load")  # on a terminal, where it shows that it is at work
    assert (
        status == 0
        and written.endswith(foretold.replace("would ", "").replace("\n", "\r\n"))
        and "loading the chain, 00:0" in written
    )
    after = running.observe()
    assert (after.generation, after.digest, after.settings, after.faults) == (
        2,
        before.digest,
        before.settings,
        (),
    )
    running.send(udp_frame(4000))
    assert len(running.flows()) == 1 and bare("load") == "nothing to do\n"

    assert bare("load", "--set", "timeouts.udp=77").startswith(
        "change map settings: timeouts or switches differ"
    )
    assert (
        chain_settings.settings_of(running.observe().settings)[1]["udp"] == 77
        and bare("load") == "nothing to do\n"
    ), "it holds from then on"

    lines = host(
        "load", str(SOURCES), "--set", f"table_size={2 * TABLE_SIZE}", "--set", "checksum=strict"
    ).splitlines()
    assert lines[0].startswith("load generation 3: the sources, what is compiled into them")
    loaded = running.observe()
    assert (
        loaded.maps["ctt"].max_entries == 2 * TABLE_SIZE
        and [one.number for one in loaded.kept] == [2]
        and len(running.flows()) == 1
    )
    assert (
        chain_settings.settings_of(loaded.settings)[1]["udp"] == 77
        and bare("load") == "nothing to do\n"
    )
    assert "it is compiled in; give the directory" in bare.refuses(
        "load", "--set", "fused=true", status=2
    )
