# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files about work on the collection: they agree with each other and with what they name."""

from __future__ import annotations

import configparser
import fnmatch
import pathlib
import re
import shlex
import typing as t

import pytest
import yaml
from ansible_collections.ebpf.conntrack.tests.tools import tree

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.rst").read_text("utf-8")
FRAGMENTS = sorted((ROOT / "changelogs/fragments").glob("*.yml"))
#: How the changelog lists plugins and modules, which antsibull-changelog takes from themselves.
PLUGIN = re.compile(r"- ebpf\.conntrack\.(\w+) - ")


def loaded(path: pathlib.Path) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", yaml.safe_load(path.read_text("utf-8")))


def entries(fragment: dict[str, t.Any]) -> set[str]:
    """Return the lines of the changelog that a fragment makes."""
    return {
        f"- {entry}" if isinstance(told, list) else str(entry)
        for told in fragment.values()
        for entry in (told if isinstance(told, list) else [told])
    }


# ---------------------------------------------------------------- the changelog
@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_the_changelog_has_each_fragment(path: pathlib.Path) -> None:
    """Where one is missing: make changelog."""
    assert sorted(entries(loaded(path)) - set(CHANGELOG.splitlines())) == []


def test_the_changelog_has_nothing_else() -> None:
    """Where there is more, a fragment was changed: make changelog."""
    told = set[str]().union(*(entries(loaded(path)) for path in FRAGMENTS))
    listed = {line for line in CHANGELOG.splitlines() if line.startswith("- ")}
    assert sorted(line for line in listed - told if not PLUGIN.match(line)) == []


def test_the_changelog_lists_every_module_under_the_version() -> None:
    version = loaded(ROOT / "galaxy.yml")["version"]
    assert f"\nv{version}\n" in CHANGELOG
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}
    assert modules <= set(PLUGIN.findall(CHANGELOG))


# ---------------------------------------------------------------- the tools' settings
def test_hooks_run_gates_that_there_are_and_fetch_nothing() -> None:
    gates = (ROOT / "tests/tools/check.py").read_text("utf-8")
    for repository in loaded(ROOT / ".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            python, script, gate = shlex.split(hook["entry"])
            assert (hook["language"], python, script) == (
                "system",
                ".venv/bin/python",
                "tests/tools/check.py",
            )
            assert f'Gate("{gate}"' in gates


def test_editors_and_ruff_have_the_same_limit_of_lines() -> None:
    text = (ROOT / ".editorconfig").read_text("utf-8")
    editor = configparser.ConfigParser()
    editor.read_string(text.replace("root = true", "", 1))
    said = re.search(r"^line-length = (\d+)$", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert said and editor["*.py"]["max_line_length"] == said[1]


# ---------------------------------------------------------------- the tarball
def test_what_is_only_for_work_on_the_collection_stays_out_of_the_tarball() -> None:
    """Of the hidden files the linter's settings go along: Galaxy's importer reads them."""
    ignored = loaded(ROOT / "galaxy.yml")["build_ignore"]
    hidden = {name.partition("/")[0] for name in tree.names() if name.startswith(".")}
    left = {name for name in hidden if not any(fnmatch.fnmatch(name, one) for one in ignored)}
    assert left == {".ansible-lint"}
