# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of sources: each file once, behind what it includes; errors name file and line."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.build import sources
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import programs as chain_programs
from ansible_collections.ebpf.conntrack.plugins.module_utils.core.errors import ConntrackError

SOURCES = pathlib.Path(__file__).resolve().parents[5] / "files/bpf"
PROGRAMS = [*chain_programs.SLOTS, chain_programs.ADOPT]


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small directory of sources: two programs, three headers."""
    for name, text in (
        ("stages/one.c", '/* first */\n#include "lib/c.h"\nint one;\n'),
        ("stages/two.c", '#include "lib/c.h"\n#include "templates/b.h.j2"\nint two;\n'),
        ("lib/a.h", "#include <linux/bpf.h>\nint a;\n"),
        ("lib/c.h", '#include "lib/a.h"\n\nint c;\n'),
        ("templates/b.h.j2", '#include "lib/a.h"\t/* for a */\nint b;\n'),
        (sources.MAIN, "all"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def failure(tree: pathlib.Path, *programs: str) -> str:
    with pytest.raises(ConntrackError) as raised:
        sources.read_in_order(str(tree), programs or ("one", "two"))
    return raised.value.message


def test_each_file_stands_once_behind_what_it_includes(tree: pathlib.Path) -> None:
    assert sources.read_in_order(str(tree), ["one", "two"]) == {
        "lib/a.h": "#include <linux/bpf.h>\nint a;\n",
        "lib/c.h": "\n\nint c;\n",
        "stages/one.c": "/* first */\n\nint one;\n",
        "templates/b.h.j2": "\nint b;\n",
        "stages/two.c": "\n\nint two;\n",
    }


def test_a_missing_file_is_named_with_the_line_that_includes_it(tree: pathlib.Path) -> None:
    (tree / "lib/a.h").unlink()
    assert (
        failure(tree)
        == f"src: {tree}/lib/a.h is not there: {tree}/lib/c.h line 1 includes lib/a.h."
    )
    assert (
        failure(tree, "three")
        == f"src: {tree}/stages/three.c is not there: each stage has a file of its name."
    )


@pytest.mark.parametrize(
    ("name", "circle"),
    [
        ("lib/a.h", "lib/a.h -> lib/a.h"),
        ("lib/c.h", "lib/c.h -> lib/a.h -> lib/c.h"),
        ("stages/one.c", "stages/one.c -> lib/c.h -> lib/a.h -> stages/one.c"),
    ],
)
def test_a_circle_is_named_with_the_line_that_closes_it(
    tree: pathlib.Path, name: str, circle: str
) -> None:
    (tree / "lib/a.h").write_text(f'int a;\n#include "{name}"\n', encoding="utf-8")
    assert failure(tree) == f"src: {tree}/lib/a.h line 2 includes {name}, in a circle: {circle}."


@pytest.mark.parametrize("name", ["c.h", "/etc/passwd", "lib/../../x.h", "../lib/c.h", "lib/", ""])
def test_a_name_that_leads_out_of_the_folders(tree: pathlib.Path, name: str) -> None:
    (tree / "stages/one.c").write_text(f'int x;\n#include "{name}"\n', encoding="utf-8")
    assert failure(tree) == (
        f'src: {tree}/stages/one.c line 2 includes "{name}": name a file in one of the folders'
        " stages, lib, templates, as lib/flow.h."
    )


def test_all_in_one_folder_is_refused_with_what_to_do(tmp_path: pathlib.Path) -> None:
    for name in ("chain.c.j2", "ct.c"):
        (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(ConntrackError, match=r"start from a copy of the collection's files/bpf"):
        sources.check_layout(str(tmp_path))


def test_names_of_the_chains_files(tree: pathlib.Path) -> None:
    names = {"one.c", "two.c", "a.h", "c.h", "b.h.j2", "chain.c.j2"}
    assert sources.file_names(str(tree)) == names
    assert sources.file_names(str(tree / "nowhere")) == set()


def test_nothing_lies_in_the_collections_folders_that_no_program_includes() -> None:
    there = {
        f"{folder}/{path.name}"
        for folder in sources.FOLDERS
        for path in (SOURCES / folder).iterdir()
    }
    assert there == {*sources.read_in_order(str(SOURCES), PROGRAMS), sources.MAIN}


def test_each_name_is_defined_in_a_file_that_is_included_or_includes() -> None:
    """What a file uses of the chain's functions, structs and macros is above it in the text for the
    reason that it says so, and not because another program's file came first.
    """
    texts = {
        name: re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
        for name, text in sources.read_in_order(str(SOURCES), PROGRAMS).items()
    }
    home: dict[str, set[str]] = {}
    for name, text in texts.items():
        for found in (
            re.findall(r"^#define (\w+)", text, re.MULTILINE),
            re.findall(r"^(?:struct|union|enum) (\w+) \{", text, re.MULTILINE),
            re.findall(r"^static __always_inline [^;{]*?\b(\w+)\([^;{]*\)\n\{", text, re.MULTILINE),
        ):
            for word in found:
                home.setdefault(word, set()).add(name)
    missing = []
    for name, text in texts.items():
        alone: set[str] = set()
        wanted = [name]
        while wanted:
            file = wanted.pop()
            if file not in alone:
                alone.add(file)
                wanted += re.findall(
                    r'^#include "(.*?)"', (SOURCES / file).read_text("utf-8"), re.MULTILINE
                )
        missing += [
            (name, word)
            for word in set(re.findall(r"\b([a-zA-Z]\w*)\b(?=\()", text)) & set(home)
            if not alone & home[word]
        ]
    # declared where they are used, defined behind it: what guests and forwarding do with a finding
    assert {word for dummy, word in missing} <= {"guests_told", "guests_after", "forward_turn"}
