# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests cover a file: its mirror in tests/unit, those that its place in the tree asks for,
and those that import it, the nearest first.

All of it is decided by the texts of the files; nothing is read or run here.
"""

from __future__ import annotations

import ast
import collections
import collections.abc as c
import dataclasses
import difflib
import fnmatch
import os
import pathlib
import re

COLLECTION = ("ansible_collections", "ebpf", "conntrack")
LIBRARY = "plugins/module_utils/"
TARGETS = "tests/integration/targets/"
#: A file for the text that asks for one.
EXAMPLE = "plugins/module_utils/chain/settings.py"
#: What is run, in this order; the other suites take hosts, browsers or an installation.
SUITES = ("unit", "oracle", "e2e", "integration")
OTHER_SUITES = ("host", "fleet", "install", "picture")
#: Files about work on the collection.
PROJECT = (".editorconfig", ".pre-commit-config.yaml", "CHANGELOG.rst", "changelogs/", "galaxy.yml")
#: Tests of a part of the tree, whatever they import: where a file lies, and patterns of tests.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (LIBRARY, ("tests/unit/test_layers.py", "tests/unit/test_examples.py")),
    ("plugins/modules/", ("tests/unit/test_meta.py", "tests/unit/test_docs.py")),
    (
        "files/bpf/",
        ("tests/unit/*test_layout.py", "tests/unit/*test_render.py", "tests/oracle/*test_*.py"),
    ),
    ("roles/", ("tests/unit/test_meta.py", "tests/e2e/*test_playbooks.py")),
    ("playbooks/", ("tests/unit/test_meta.py", "tests/e2e/*test_playbooks.py")),
    ("meta/", ("tests/unit/test_meta.py",)),
    ("docs/", ("tests/unit/test_docs.py",)),
    ("README.md", ("tests/unit/test_docs.py",)),
    ("Makefile", ("tests/unit/test_makefile.py",)),
    *((place, ("tests/unit/test_project.py",)) for place in PROJECT),
)


@dataclasses.dataclass(frozen=True)
class Covering:
    """The tests that cover a file.

    :param tests: what is run by suite: files, or names of integration targets.
    :param further: how many tests of these suites reach the file by more imports.
    :param elsewhere: other suites that reach it.
    """

    tests: dict[str, list[str]]
    further: int = 0
    elsewhere: tuple[str, ...] = ()


def suite(node: str) -> str | None:
    """Return the suite that a test belongs to; None for what is no test.

    >>> suite("tests/e2e/test_ct.py"), suite("tests/e2e/wire.py")
    ('e2e', None)
    """
    if node.startswith(TARGETS):
        return "integration"
    path = pathlib.PurePath(node)
    is_test = path.parts[0] == "tests" and fnmatch.fnmatch(path.name, "test_*.py")
    return path.parts[1] if is_test else None


def node_of(file: str) -> str:
    """Return what stands for a file in the graph: its role or integration target, else itself.

    >>> node_of("roles/xdp_ct/tasks/main.yml"), node_of("playbooks/lab.yml")
    ('roles/xdp_ct', 'playbooks/lab.yml')
    """
    parts = file.split("/")
    if parts[0] == "roles" and len(parts) > 2:
        return "/".join(parts[:2])
    return "/".join(parts[:4]) if file.startswith(TARGETS) and len(parts) > 4 else file


def imported(file: str, text: str, files: c.Container[str]) -> set[str]:
    """Return the files of the tree that a Python file imports, by whatever way."""
    here = file.split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            start = here[: len(here) - node.level + 1] if node.level else []
            wanted = [[*start, *module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in wanted:
            # of the collection, of the file's own package, or beside it, as scripts do
            whole = name[3:] if tuple(name[:3]) == COLLECTION else name
            for parts in (whole, whole[:-1], [*here, *whole], [*here, *whole[:-1]]):
                path = "/".join(parts) + ".py"
                if path in files:
                    found.add(path)
                    break
    return found - {file}


def mentioned(text: str, files: c.Container[str], roles: c.Iterable[str]) -> set[str]:
    """Return the modules, roles and playbooks that a text names."""
    found: set[str] = set()
    for name in re.findall(r"\bebpf\.conntrack\.(\w+)|[\"'](\w+)[\"']", text):
        places = (f"plugins/{kind}/{name[0] or name[1]}.py" for kind in ("modules", "action"))
        found.update(place for place in places if place in files)
    for name in re.findall(r"\b(\w+\.yml)\b|\bebpf\.conntrack\.(\w+)", text):
        place = f"playbooks/{name[0] or name[1] + '.yml'}"
        found.update({place} if place in files else ())
    words = set(re.findall(r"\w+", text))
    return found | {f"roles/{role}" for role in roles if role in words}


def users(texts: c.Mapping[str, str]) -> dict[str, set[str]]:
    """Return for each node those that import or name it."""
    roles = {file.split("/")[1] for file in texts if re.match(r"roles/\w+/", file)}
    targets = {file.split("/")[3] for file in texts if file.startswith(TARGETS)}
    found: dict[str, set[str]] = collections.defaultdict(set)
    for file, text in texts.items():
        uses: set[str] = set()
        if file.endswith(".py"):
            uses |= imported(file, text, texts)
        if file.startswith(("tests/", "roles/", "playbooks/")):
            uses |= mentioned(text, texts, roles)
        if file.startswith(TARGETS) and file.endswith("/meta/main.yml"):
            uses |= {TARGETS + name for name in targets if re.search(rf"\b{name}\b", text)}
        for use in uses:
            found[node_of(use)].add(node_of(file))
    return found


def distances(file: str, texts: c.Mapping[str, str]) -> dict[str, int]:
    """Return all that reaches a file, with the number of steps."""
    graph = users(texts)
    found, queue = {node_of(file): 0}, [node_of(file)]
    while queue:
        node = queue.pop(0)
        for user in sorted(graph[node] - set(found)):
            found[user] = found[node] + 1
            queue.append(user)
    return found


def mirrors(file: str, files: c.Iterable[str]) -> set[str]:
    """Return the unit tests that a plugin has by its place and name.

    >>> mirrors("plugins/filter/fleet.py", ["tests/unit/plugins/filter/test_fleet.py"])
    {'tests/unit/plugins/filter/test_fleet.py'}
    """
    path = pathlib.PurePath(file)
    where = "tests/unit" / path.parent
    patterns = (f"{where}/test_{path.stem}.py", f"{where}/test_{path.stem}_*.py")
    return {one for one in files if any(fnmatch.fnmatch(one, pattern) for pattern in patterns)}


def always(file: str, files: c.Collection[str]) -> set[str]:
    """Return the tests that a file has by its place in the tree; a test covers itself."""
    patterns = [pattern for place, tests in RULES if file.startswith(place) for pattern in tests]
    if file.endswith("/conftest.py"):
        patterns.append(f"{file.rpartition('/')[0]}/*test_*.py")
    own = {one for one in files if any(fnmatch.fnmatch(one, pattern) for pattern in patterns)}
    return own | mirrors(file, files) | ({node_of(file)} if suite(node_of(file)) else set())


def covering(file: str, texts: c.Mapping[str, str], depth: int = 1) -> Covering:
    """Return the tests that cover a file.

    In each suite these are the ones that reach it by at most ``depth`` imports, or where there are
    none the ones that reach it by the fewest; and those that its place asks for.

    :param texts: of all files of the tree, by their paths.
    """
    certain = always(file, texts)
    reached = distances(file, texts)
    by_suite: dict[str, list[str]] = collections.defaultdict(list)
    for node in sorted(certain | set(reached), key=lambda node: (node not in certain, node)):
        by_suite[suite(node) or ""].append(node)
    by_suite["integration"] = [
        node for node in by_suite["integration"] if "hidden" not in texts[f"{node}/aliases"].split()
    ]
    tests, further = {}, 0
    for name in SUITES:
        steps = {node: reached[node] for node in by_suite[name] if node in reached}
        most = max(depth, min(steps.values(), default=0))
        near = [node for node in by_suite[name] if node in certain or steps[node] <= most]
        further += len(by_suite[name]) - len(near)
        if near:
            tests[name] = sorted(near, key=lambda node: 0 if node in certain else steps[node])
    return Covering(tests, further, tuple(name for name in OTHER_SUITES if by_suite[name]))


class Refusal(Exception):
    """No file of the tree was given; the text says what to give."""


def chosen(given: str, known: c.Collection[str], root: pathlib.Path, here: pathlib.Path) -> str:
    """Return the path, below the root, of the file that was asked for.

    :param known: the files of the tree, by their paths below its root.
    :param here: what a relative path is relative to.
    :raises Refusal: when it is no file of the tree.
    """
    if not given:
        raise Refusal(f"no file is given. Give one of the tree: make test-for FILE={EXAMPLE}")
    path = pathlib.Path(os.path.normpath(here / given))
    name = str(path.relative_to(root)) if path.is_relative_to(root) else given
    if name in known:
        return name
    if any(one.startswith(f"{name}/") for one in known):
        raise Refusal(f"{given} is a directory. Give a file of it.")
    same = [one for one in known if one.endswith(f"/{path.name}")]
    like = sorted(same) or difflib.get_close_matches(name, known, 3)
    mend = f"Did you mean {' or '.join(like)}?" if like else "Give its path from the root."
    raise Refusal(f"{given} is no file of the tree. {mend}")


def described(file: str, found: Covering, depth: int) -> str:
    """Return what is going to be run, for people."""
    lines = [f"tests for {file}:"]
    lines += [f"  {name}: {test}" for name, tests in found.tests.items() for test in tests]
    if not found.tests:
        lines.append("  none; make check and make lint look at it")
    if found.further:
        lines.append(f"  {found.further} more reach it by more imports: DEPTH={depth + 1} for more")
    lines += [f"  not run here: make test-{name} reaches it as well" for name in found.elsewhere]
    return "\n".join(lines)
