# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is loaded again: the last chain with the changes that are asked for, the same text that the
sources give.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    converge as generation,
)
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import manifest, reload
from ansible_collections.ebpf.conntrack.plugins.module_utils.kernel import bpffs

pytest.importorskip("jinja2")

SOURCES = str(pathlib.Path(__file__).resolve().parents[5] / "files/bpf")
SIZES = {"table_size": 1024, "table_size6": 2048, "half_open_size": 4096, "half_open_size6": 8192}
GUEST = '\n#define GUEST_SLOT 4\n#line 1 "a.c"\nGUEST(some)\n{}\n'


def chain(**settings: t.Any) -> generation.Want:
    sizes: dict[str, t.Any] = {name: settings[name] for name in render.SIZES}
    return generation.Want(
        render.render(SOURCES, render.Settings(**settings)), render.read_headers(SOURCES), **sizes
    )


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> bpffs.Paths:
    """A host on which generation 3 was loaded, before a reboot."""
    made = bpffs.Paths("/sys/fs/bpf/reload", str(tmp_path / "state"))
    manifest.write(
        made, 3, dataclasses.replace(chain(**SIZES), timeouts={"udp": 40}, knobs={"tcp_loose": 0})
    )
    manifest.activate(made, 3)
    return made


def refused(*args: t.Any) -> str:
    with pytest.raises(ConntrackError) as raised:
        reload.wanted(*args)
    return raised.value.message


def test_other_sizes_give_the_text_that_the_sources_give() -> None:
    for name in render.SIZES:
        other = {**SIZES, name: 1 << 20}
        assert reload.resized(chain(**SIZES), {name: 1 << 20}) == chain(**other) != chain(**SIZES)


def test_the_last_one_comes_back_as_it_was(paths: bpffs.Paths) -> None:
    assert reload.wanted(paths) == manifest.read(paths, 3)
    changed = reload.wanted(
        paths, reload.parse(["timeouts.icmp=9", "settings.tcp_loose=true", "table_size = 64"])
    )
    assert (changed.timeouts, changed.knobs) == ({"udp": 40, "icmp": 9}, {"tcp_loose": 1})
    assert changed.text == chain(**{**SIZES, "table_size": 64}).text and changed.table_size == 64


def test_a_directory_takes_the_last_sizes_and_settings(paths: bpffs.Paths) -> None:
    assert reload.wanted(paths, source=SOURCES) == manifest.read(paths, 3)
    fused = reload.wanted(
        paths,
        reload.parse(["fused=yes", "forward=all", "forward_unfiltered=yes", "half_open_size6=16"]),
        SOURCES,
    )
    assert fused.text == chain(
        **{**SIZES, "half_open_size6": 16}, fused=True, forward="all"
    ).text and fused.timeouts == {"udp": 40}
    elsewhere = bpffs.Paths("/sys/fs/bpf/other", paths.state_dir)
    assert reload.wanted(elsewhere, source=SOURCES).text == render.render(
        SOURCES, render.Settings()
    )


def test_what_can_not_be_loaded(paths: bpffs.Paths) -> None:
    assert "does not tell what was loaded below /sys/fs/bpf/other" in refused(
        bpffs.Paths("/sys/fs/bpf/other", paths.state_dir)
    )
    assert (
        refused(paths, reload.parse(["checksum=strict"]))
        == "set: 'checksum' is not valid: it is compiled in; give the directory of the sources,"
        " too."
    )
    with_guest = chain(**SIZES)
    manifest.write(paths, 3, dataclasses.replace(with_guest, text=with_guest.text + GUEST))
    assert refused(paths, reload.Changes(), SOURCES).startswith(
        "guests: the last generation has some, in slot acl"
    )


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("udp", "set: 'udp' is not valid: give NAME=VALUE, as timeouts.udp=60"),
        ("udp=60", "set: 'udp' is not valid: known are table_size,"),
        ("timeouts.udp=long", "timeouts.udp: 'long' is not valid: give a whole number"),
        ("timeouts.udp=0", "timeouts.udp: 0 is not valid: give 1 to"),
        (
            "settings.tcp_max_retrans=300",
            "settings.tcp_max_retrans: 300 is not valid: give 1 to 255",
        ),
        ("table_size=1", "table_size: 1 is not valid: give 16 to"),
        ("checksum=md5", "checksum: 'md5' is not valid: give one of off"),
        ("events=2", "events: 2 is not valid: give true or false"),
        ("fused=3", "fused: 3 is not valid: give true or false"),
    ],
)
def test_a_bad_change(word: str, words: str) -> None:
    with pytest.raises(ConntrackError) as raised:
        reload.parse([word])
    assert raised.value.message.startswith(words)
