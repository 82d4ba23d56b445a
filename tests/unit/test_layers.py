# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages of plugins/module_utils: which may import which, and how large they may be.

A package imports packages to its left only. Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import collections.abc as c
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "plugins/module_utils"
NAME = "ansible_collections.ebpf.conntrack.plugins.module_utils"
#: Each may import those before it; those of one group do not import each other.
ORDER = (
    ("core",),
    ("kernel",),
    ("chain",),
    ("flows", "build"),
    ("generation", "lab"),
    ("attach",),
    ("handoff",),
    ("service",),
    ("ct",),
    ("fleet",),
)
PACKAGES = [package for group in ORDER for package in group]
#: The largest share of the lines that a package may have, in percent.
LARGEST_SHARE = 20
#: Lines of code, without comments, docstrings and blank lines, that a file may have.
LONGEST_FILE = 500
#: Lines of code of all that xdp_attach imports, which is what a host that only attaches is sent.
ATTACH_CLOSURE = 5_500


@functools.lru_cache(None)
def imported(text: str, path: pathlib.PurePath) -> tuple[tuple[str, ...], ...]:
    """Return what a file imports of the library: the parts of a module's name, or of a name in it.

    :param path: of the file below the library.
    """
    return tuple(_imported(text, path))


def _imported(text: str, path: pathlib.PurePath) -> c.Iterator[tuple[str, ...]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                start = [*path.parts[: len(path.parts) - node.level], *module]
            elif (node.module or "").startswith(NAME):
                start = module[len(NAME.split(".")) :]
            else:
                continue
            yield from ((*start, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names if alias.name.startswith(NAME))
            yield from (tuple(name[len(NAME.split(".")) :]) for name in names)


def file_of(name: tuple[str, ...]) -> pathlib.PurePath:
    """Return the file, below the library, that a name of imported() lies in."""
    for parts in (name, name[:-1]):
        if (LIBRARY.joinpath(*parts)).with_suffix(".py").is_file():
            return pathlib.PurePath(*parts).with_suffix(".py")
    raise AssertionError(f"nothing is there of the name {'.'.join(name)}")


def files() -> dict[pathlib.PurePath, str]:
    """Return the text of each file by its path below the library."""
    found = {path.relative_to(LIBRARY): path.read_text("utf-8") for path in LIBRARY.rglob("*.py")}
    return dict(sorted(found.items()))


def turned_imports(texts: dict[pathlib.PurePath, str]) -> list[str]:
    """Return the imports that lead to the right, or across a group."""
    rank = {package: number for number, group in enumerate(ORDER) for package in group}
    return [
        f"{path} imports {'.'.join(name)}"
        for path, text in texts.items()
        for name in imported(text, path)
        if name[0] != path.parts[0] and rank[name[0]] >= rank[path.parts[0]]
    ]


def circles(texts: dict[pathlib.PurePath, str]) -> list[str]:
    """Return the files that import each other, by whatever way."""
    leads = {path: {file_of(name) for name in imported(text, path)} for path, text in texts.items()}
    left = dict(leads)
    while True:
        used = set[pathlib.PurePath]().union(*left.values())
        ends = {path for path, others in left.items() if path not in used or not others & set(left)}
        if not ends:
            return sorted(map(str, left))
        left = {path: others for path, others in left.items() if path not in ends}


def closure(start: pathlib.Path) -> set[pathlib.PurePath]:
    """Return the files of the library that a module needs on a target."""
    texts, found = files(), set[pathlib.PurePath]()
    wanted = {file_of(name) for name in imported(start.read_text("utf-8"), pathlib.PurePath("x"))}
    while wanted:
        path = wanted.pop()
        found.add(path)
        wanted |= {file_of(name) for name in imported(texts[path], path)} - found
    return found


def lines_of_code(text: str) -> int:
    """Return how many lines of a file are neither blank, nor comment, nor docstring."""
    documented = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            documented |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    code = (
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    return len(set(code) - documented)


def test_every_file_is_in_a_package() -> None:
    assert {path.parts[0] for path in files()} == set(PACKAGES)


def test_packages_import_to_their_left_only() -> None:
    assert turned_imports(files()) == []


def test_files_do_not_import_each_other_in_a_circle() -> None:
    assert circles(files()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ..lab import topology",
        "def late():\n    from ..fleet.soak import Soak",
        "import typing as t\nif t.TYPE_CHECKING:\n    from ..ct import cli",
        f"from {NAME}.service import unit",
        f"import {NAME}.attach.converge",
    ],
)
def test_a_turned_import_is_found(line: str) -> None:
    path = pathlib.PurePath("generation/plan.py")
    texts = {**files(), path: f"{files()[path]}\n{line}\n"}
    assert len(turned_imports(texts)) == 1


def test_a_circle_is_found() -> None:
    path = pathlib.PurePath("core/errors.py")
    assert str(path) in circles({**files(), path: f"{files()[path]}\nfrom . import lock\n"})


def test_no_package_is_too_large() -> None:
    lines = {
        package: sum(text.count("\n") for path, text in files().items() if path.parts[0] == package)
        for package in PACKAGES
    }
    share = {package: 100 * count // sum(lines.values()) for package, count in lines.items()}
    assert max(share.values()) <= LARGEST_SHARE, share


def test_no_file_is_too_long() -> None:
    long = {
        str(path): lines_of_code(text)
        for path, text in files().items()
        if lines_of_code(text) > LONGEST_FILE
    }
    assert long == {}


def test_hosts_that_only_attach_carry_little() -> None:
    needed = closure(ROOT / "plugins/modules/xdp_attach.py")
    assert not [path for path in needed if path.parts[0] == "lab"]
    lines = {str(path): lines_of_code(files()[path]) for path in needed}
    assert sum(lines.values()) <= ATTACH_CLOSURE, lines


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_what_it_may_import(package: str) -> None:
    """Its README has the purpose, and the packages to its left in the order of this file."""
    text = (LIBRARY / package / "README.md").read_text("utf-8")
    group = next(number for number, group in enumerate(ORDER) if package in group)
    left = [name for names in ORDER[:group] for name in names]
    found = re.search(r"^May import: (.*)\.$", text, re.MULTILINE)
    assert found and found[1] == (", ".join(left) or "nothing of ours")


def test_unit_tests_of_the_library_import_no_plugin_of_the_controller() -> None:
    """ansible-test runs them where those have nothing of Ansible's controller."""
    controller = re.compile(
        r"plugins\.(action|connection|filter|inventory)\b|^(from|import) ansible\.plugins", re.M
    )
    tests = (ROOT / "tests/unit/plugins/module_utils").rglob("*.py")
    assert [str(path) for path in tests if controller.search(path.read_text("utf-8"))] == []
