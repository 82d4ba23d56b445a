# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages in docs/ and the README name all that there is, with the values that hold."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import counters as chain_counters
from ansible_collections.ebpf.conntrack.plugins.module_utils.chain import settings as chain_settings
from ansible_collections.ebpf.conntrack.plugins.module_utils.generation import diagnosis
from ansible_collections.ebpf.conntrack.plugins.module_utils.service import metrics as ct_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEMANTICS = (ROOT / "docs/reference/semantics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", chain_counters.COUNTERS)
def test_every_counter_is_explained(name: str) -> None:
    assert f"\n| `{name}` | " in SEMANTICS


@pytest.mark.parametrize(("name", "seconds"), chain_settings.TIMEOUTS.items())
def test_every_timeout_is_there_with_its_default(name: str, seconds: int) -> None:
    assert f"\n| `{name}` | {seconds} | " in SEMANTICS


@pytest.mark.parametrize(("name", "default"), chain_settings.KNOBS.items())
def test_every_switch_is_there_with_its_default(name: str, default: int) -> None:
    assert f"\n| `{name}` | {str(default).lower()} | " in SEMANTICS


@pytest.mark.parametrize(("name", "kind"), diagnosis.FAULTS.items())
def test_every_fault_is_explained(name: str, kind: diagnosis.Kind) -> None:
    assert f"\n| `{name}` | {kind.meaning} | " in (ROOT / "docs/reference/health.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(("name", "metric"), ct_metrics.METRICS.items())
def test_every_metric_is_explained(name: str, metric: ct_metrics.Metric) -> None:
    labels = "".join(f" `{label}`" for label in metric.labels)
    assert f"\n| `{name}` |{labels} | {metric.help} |\n" in (
        ROOT / "docs/reference/metrics.md"
    ).read_text(encoding="utf-8")


def test_the_readme_names_every_module_role_playbook_and_plugin() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path.stem for path in (ROOT / "plugins/modules").glob("*.py")]
    roles = [path.name for path in (ROOT / "roles").iterdir()]
    playbooks = [path.stem for path in (ROOT / "playbooks").glob("*.yml")]
    plugins = [
        f"| `{path.stem}` ({kind}) |"
        for kind in ("connection", "inventory")
        for path in (ROOT / "plugins" / kind).glob("*.py")
    ]
    assert [name for name in modules + roles + playbooks if f"`{name}`" not in readme] == []
    assert [row for row in plugins if row not in readme] == []


# ---------------------------------------------------------------- links and names of pages
def _pages() -> list[pathlib.Path]:
    """Every page of the repository."""
    return [path for path in _files() if path.suffix == ".md"]


@functools.cache
def _files() -> list[pathlib.Path]:
    """Every text of the collection itself: no hidden directory, nothing that a run made."""
    folders = "changelogs docs extensions files inventory meta playbooks plugins roles tests"
    found = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in _TEXT]
    for folder in folders.split():
        found += [
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.suffix in _TEXT and path.is_file() and not {".ansible", ".venv"} & {*path.parts}
        ]
    return found


_TEXT = {".c", ".h", ".j2", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MENTION = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.(?:md|svg)\b")


@functools.cache
def _anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(
            " ", "-"
        )
        for heading in headings
    }


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page in _pages():
        for link in _LINK.findall(_FENCE.sub("", page.read_text("utf-8"))):
            path, dummy, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (
                anchor and there.suffix == ".md" and anchor not in _anchors(there)
            ):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_every_page_that_is_named_is_there() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in _files()
        for name in _MENTION.findall(path.read_text("utf-8", errors="replace"))
        if not (ROOT / name).exists()
    ]
    assert broken == []


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f"]({page}" not in index and page != "index.md"] == []


# ---------------------------------------------------------------- names of functions
ARCHITECTURE = (ROOT / "docs/design/architecture.md").read_text(encoding="utf-8")
_FUNCTION = re.compile(r"`([\w./-]+\.(?:py|c|h|h\.j2)):([\w.]+)`")
_FILE = re.compile(r"`([\w-]+(?:/[\w.-]+)+\.(?:py|c|h|j2|yml))(?::[\w.]+)?`")
#: Where a file is looked for.
_BELOW = (ROOT, ROOT / "plugins/module_utils", ROOT / "files/bpf")


def _found(name: str) -> pathlib.Path | None:
    return next((below / name for below in _BELOW if (below / name).is_file()), None)


def _python_names(text: str) -> set[str]:
    """Return what a file defines: functions, classes, constants, and methods as Class.method."""
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)
            }
        for target in (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        ):
            names |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}
    return names


def _c_names(text: str) -> set[str]:
    """Return the functions, programs and macros that a C file defines."""
    return {
        *re.findall(r"^(?:PROG|STAGE)\((\w+)\)$", text, re.MULTILINE),
        *re.findall(r"^#define (\w+)", text, re.MULTILINE),
        *re.findall(r"^static [^;={]*?(\w+)\([^;{]*\)\n\{", text, re.MULTILINE),
    }


@pytest.mark.parametrize("name", sorted(set(_FILE.findall(ARCHITECTURE))))
def test_every_file_of_the_architecture_exists(name: str) -> None:
    assert _found(name), name


@pytest.mark.parametrize(("file", "name"), sorted(set(_FUNCTION.findall(ARCHITECTURE))))
def test_every_function_of_the_architecture_exists(file: str, name: str) -> None:
    path = _found(file)
    assert path, file
    text = path.read_text(encoding="utf-8")
    assert name in (_python_names(text) if path.suffix == ".py" else _c_names(text))


def test_the_walks_name_functions() -> None:
    sections = re.split(r"^## ", ARCHITECTURE, flags=re.MULTILINE)[1:]
    counts = {section.split("\n")[0]: len(_FUNCTION.findall(section)) for section in sections}
    for walk in ("A frame", "A playbook run", "`ct list`", "An upgrade", "Where to change"):
        assert counts[walk] >= 10, walk
