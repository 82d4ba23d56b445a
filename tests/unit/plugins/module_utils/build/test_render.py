# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rendering the chain: one text, lines that can be found again, and errors that name file and
line.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import sys
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import bcc as build_bcc
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import render
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import events as chain_events
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import maps as chain_maps
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import (
    model as generation_model,
)

pytest.importorskip("jinja2")

SOURCES = pathlib.Path(__file__).resolve().parents[5] / "files/bpf"


@pytest.fixture
def sources(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the collection's sources, to be changed."""
    return pathlib.Path(shutil.copytree(SOURCES, tmp_path / "bpf"))


def failure(sources: pathlib.Path) -> str:
    with pytest.raises(ConntrackError) as raised:
        render.render(str(sources), render.Settings())
    return raised.value.message


def test_every_program_and_every_map_is_in_the_one_text() -> None:
    text = render.render(str(SOURCES), render.Settings(table_size=4096))
    for name in chain_programs.SLOTS:
        assert re.search(rf"^(PROG|STAGE)\({name}\)$", text, re.MULTILINE), name
    assert re.search(rf"^PROG\({chain_programs.ADOPT}\)$", text, re.MULTILINE)
    for spec in chain_maps.maps(4096):
        if spec.value is None:
            continue  # no program reads it
        assert f'{spec.name}, {spec.entries}, "{render.MAP_DIR}/{spec.name}")' in text
    assert "{{" not in text and "{%" not in text


def test_without_events_no_function_of_the_chain_does_anything_for_them() -> None:
    off, on = (
        render.render(str(SOURCES), render.Settings(events=events)) for events in (False, True)
    )
    assert (
        "ringbuf" not in off and "events_count" not in off and generation_model.EVENTS_ON not in off
    )
    bodies = re.findall(
        r"^static __always_inline void event_(take|leave|send)\((?:[^{]*)\n\{\n\}$",
        off,
        re.MULTILINE,
    )
    assert bodies == ["take", "leave", "send"], "each is empty"
    assert generation_model.EVENTS_ON in on
    assert f'EVENT_RING(events, {chain_events.EVENTS_BYTES}, "{render.MAP_DIR}/events");' in on
    assert [generation_model.Want(text, {}, 16).maps[-1].name for text in (off, on)] == [
        "schema",
        "events",
    ]


def test_the_same_sources_and_settings_give_the_same_text() -> None:
    texts = [render.render(str(SOURCES), render.Settings(size)) for size in (4096, 4096, 8192)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("name", ["stages/ct.c", "stages/prs_udp.c", "lib/packet.h"])
def test_lines_are_found_again_in_their_files(name: str) -> None:
    text = render.render(str(SOURCES), render.Settings())
    lines = (SOURCES / name).read_text("utf-8").rstrip("\n").split("\n")
    expected = ["" if line.startswith('#include "') else line for line in lines]
    assert build_bcc.source_lines(text, name)[: len(expected)] == expected


@pytest.mark.parametrize("size", [15, 0, -1, (1 << 26) + 1])
@pytest.mark.parametrize("name", ["table_size", "table_size6"])
def test_a_table_size_out_of_range(name: str, size: int) -> None:
    with pytest.raises(
        ConntrackError, match=rf"^{name}: {size} is not valid: give 16 to 67108864 entries\.$"
    ):
        render.check_settings(render.Settings(**t.cast("dict[str, t.Any]", {name: size})))


@pytest.mark.parametrize("size", [16, 1 << 26, 1000])
def test_a_table_size_in_range(size: int) -> None:
    render.check_settings(render.Settings(table_size=size, table_size6=size))


def test_no_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file"):
        assert (
            failure(path)
            == f"src: {str(path)!r} is not valid: give a readable directory that holds the chain's"
            " sources."
        )


@pytest.mark.parametrize("name", ["templates/chain.c.j2", "stages/ct.c", "lib/flow.h"])
def test_a_missing_file_is_named(sources: pathlib.Path, name: str) -> None:
    (sources / name).unlink()
    assert failure(sources).startswith(f"src: {sources / name} is not there")


def test_a_syntax_error_of_a_template_names_file_and_line(sources: pathlib.Path) -> None:
    path = sources / "stages/ct.c"
    path.write_text(path.read_text(encoding="utf-8") + "\n{% if %}\n", encoding="utf-8")
    line = path.read_text(encoding="utf-8").count("\n")
    assert re.fullmatch(rf"src: {path} line {line}: .+\.", failure(sources))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
    ],
)
def test_an_error_in_an_expression_names_file_and_line(
    sources: pathlib.Path, code: str, words: str
) -> None:
    path = sources / "templates/defs.h.j2"
    path.write_text(f"/* one */\n{code}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    message = failure(sources)
    assert message.startswith(f"src: {path} line 2: ") and words in message


def test_a_file_that_is_no_text(sources: pathlib.Path) -> None:
    (sources / "stages/ct.c").write_bytes(b"\xff\xfe")
    message = failure(sources)
    assert message.startswith(f"src: {sources}") and "can not be read" in message


def test_headers_are_the_stub_tree(sources: pathlib.Path) -> None:
    headers = render.read_headers(str(sources))
    assert "include/linux/kconfig.h" in headers and headers == render.read_headers(str(SOURCES))
    shutil.rmtree(sources / "stub")
    with pytest.raises(ConntrackError, match=rf"^src: {sources}/stub is not there"):
        render.read_headers(str(sources))


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "jinja2 is missing" in failure(SOURCES) and "python3-jinja2" in failure(SOURCES)


def test_packing() -> None:
    text, headers = render.render(str(SOURCES), render.Settings()), {"include/a.h": "é"}
    assert render.unpack(render.pack(text, headers)) == (text, headers)


@pytest.mark.parametrize("packed", ["", "int x;", "AAAA", "eJyLjgUAARUAuQ==", "eJwDAAAAAAE="])
def test_what_nobody_packed(packed: str) -> None:
    with pytest.raises(
        ConntrackError, match=r"^rendered: it is filled in from src and can not be given\.$"
    ):
        render.unpack(packed)
