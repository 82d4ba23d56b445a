# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests "make test-for" takes for a file."""

from __future__ import annotations

import doctest
import fnmatch
import pathlib

import pytest
from ansible_collections.ebpf.conntrack.tests.tools import covering, tree

ROOT = pathlib.Path("/clone")
NAME = "ansible_collections.ebpf.conntrack"
LIBRARY = f"{NAME}.plugins.module_utils"
UNIT = "tests/unit/plugins/module_utils"
TARGETS = "tests/integration/targets"
PAGE = "docs/" + "guide/lab.md"
#: low is imported by high, which the module one imports.
TREE = {
    "README.md": "",
    PAGE: "",
    "files/bpf/stages/ct.c": "",
    "meta/runtime.yml": "",
    "playbooks/there.yml": "- import_role:\n    name: ebpf.conntrack.shop\n",
    "plugins/action/one.py": "",
    "plugins/module_utils/a/low.py": "import os\n",
    "plugins/module_utils/b/high.py": "def late():\n    from ..a import low\n",
    "plugins/module_utils/b/alone.py": "",
    "plugins/modules/one.py": "from ..module_utils.b.high import x\n",
    "roles/shop/tasks/main.yml": "- ebpf.conntrack.one:\n",
    "tests/e2e/conftest.py": "",
    "tests/e2e/test_far.py": f"from {NAME}.tests.e2e import wire\n",
    "tests/e2e/test_playbooks.py": "PLAY = 'playbooks/there.yml'\n",
    "tests/e2e/wire.py": f"from {LIBRARY}.b import high\n",
    "tests/fleet/test_fleet.py": f"import {LIBRARY}.a.low\n",
    f"{TARGETS}/hid/aliases": "hidden\n",
    f"{TARGETS}/hid/tasks/main.yml": "- ebpf.conntrack.one:\n",
    f"{TARGETS}/one/aliases": "needs/root\n",
    f"{TARGETS}/one/meta/main.yml": "dependencies:\n  - hid\n",
    f"{TARGETS}/one/tasks/main.yml": "- ebpf.conntrack.one:\n",
    f"{TARGETS}/two/aliases": "",
    f"{TARGETS}/two/files/made.py": f"from {LIBRARY}.a.low import name\n",
    "tests/oracle/rig/frames.py": "",
    "tests/oracle/test_more.py": f"from {NAME}.tests.oracle.rig import frames\n",
    "tests/tools/beside.py": "",
    "tests/tools/script.py": "import beside\n",
    f"{UNIT}/a/test_low.py": f"from {LIBRARY}.a import low\n",
    f"{UNIT}/a/test_low_more.py": "",
    f"{UNIT}/b/test_high.py": f"from {LIBRARY}.b import high\n",
    "tests/unit/test_docs.py": "",
    "tests/unit/test_layers.py": "",
    "tests/unit/test_layout.py": "",
    "tests/unit/test_meta.py": "",
}


def taken(file: str, depth: int = 1) -> dict[str, list[str]]:
    return covering.covering(file, TREE, depth).tests


def test_the_mirror_and_the_importers_come_first() -> None:
    found = covering.covering("plugins/module_utils/a/low.py", TREE)
    assert found.tests == {
        "unit": [
            f"{UNIT}/a/test_low.py",
            f"{UNIT}/a/test_low_more.py",
            "tests/unit/test_layers.py",
        ],
        "e2e": ["tests/e2e/test_far.py"],
        "integration": [f"{TARGETS}/two"],
    }
    assert found.elsewhere == ("fleet",)
    # the unit tests of high, the target one, and the playbook's tests
    assert found.further == 3


def test_a_greater_depth_takes_more() -> None:
    found = taken("plugins/module_utils/a/low.py", 3)
    assert found["unit"][-1] == f"{UNIT}/b/test_high.py"
    assert found["integration"] == [f"{TARGETS}/two", f"{TARGETS}/one"]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "plugins/modules/one.py",
            {
                "unit": ["tests/unit/test_docs.py", "tests/unit/test_meta.py"],
                "e2e": ["tests/e2e/test_playbooks.py"],
                "integration": [f"{TARGETS}/one"],
            },
        ),
        (
            "plugins/action/one.py",
            {"e2e": ["tests/e2e/test_playbooks.py"], "integration": [f"{TARGETS}/one"]},
        ),
        (
            "files/bpf/stages/ct.c",
            {"unit": ["tests/unit/test_layout.py"], "oracle": ["tests/oracle/test_more.py"]},
        ),
        (
            "roles/shop/tasks/main.yml",
            {"unit": ["tests/unit/test_meta.py"], "e2e": ["tests/e2e/test_playbooks.py"]},
        ),
        (
            "playbooks/there.yml",
            {"unit": ["tests/unit/test_meta.py"], "e2e": ["tests/e2e/test_playbooks.py"]},
        ),
        (PAGE, {"unit": ["tests/unit/test_docs.py"]}),
        ("README.md", {"unit": ["tests/unit/test_docs.py"]}),
        ("meta/runtime.yml", {"unit": ["tests/unit/test_meta.py"]}),
        ("tests/oracle/rig/frames.py", {"oracle": ["tests/oracle/test_more.py"]}),
        ("tests/e2e/wire.py", {"e2e": ["tests/e2e/test_far.py"]}),
        (
            "tests/e2e/conftest.py",
            {"e2e": ["tests/e2e/test_far.py", "tests/e2e/test_playbooks.py"]},
        ),
        ("tests/unit/test_docs.py", {"unit": ["tests/unit/test_docs.py"]}),
        (f"{TARGETS}/two/aliases", {"integration": [f"{TARGETS}/two"]}),
        (f"{TARGETS}/hid/tasks/main.yml", {"integration": [f"{TARGETS}/one"]}),
        ("tests/tools/script.py", {}),
        ("plugins/module_utils/b/alone.py", {"unit": ["tests/unit/test_layers.py"]}),
    ],
)
def test_what_covers_other_files(file: str, expected: dict[str, list[str]]) -> None:
    assert taken(file) == expected


def test_scripts_import_each_other_by_bare_names() -> None:
    assert covering.distances("tests/tools/beside.py", TREE) == {
        "tests/tools/beside.py": 0,
        "tests/tools/script.py": 1,
    }


def test_what_is_run_is_said() -> None:
    found = covering.Covering({"unit": ["tests/unit/test_docs.py"]}, 2, ("fleet",))
    assert covering.described("README.md", found, 1).split("\n") == [
        "tests for README.md:",
        "  unit: tests/unit/test_docs.py",
        "  2 more reach it by more imports: DEPTH=2 for more",
        "  not run here: make test-fleet reaches it as well",
    ]
    assert "  none; make check and make lint look at it" in covering.described(
        "x", covering.Covering({}), 1
    )


@pytest.mark.parametrize(
    ("given", "here", "file"),
    [
        ("README.md", ROOT, "README.md"),
        ("./docs/../README.md", ROOT, "README.md"),
        ("/clone/README.md", ROOT / "docs", "README.md"),
        ("../README.md", ROOT / "docs", "README.md"),
    ],
)
def test_a_file_may_be_given_in_several_ways(given: str, here: pathlib.Path, file: str) -> None:
    assert covering.chosen(given, TREE, ROOT, here) == file


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "",
            "no file is given. Give one of the tree:"
            " make test-for FILE=plugins/module_utils/chain/settings.py",
        ),
        ("docs", "docs is a directory. Give a file of it."),
        (
            "low.py",
            "low.py is no file of the tree. Did you mean plugins/module_utils/a/low.py?",
        ),
        ("REDAME.md", "REDAME.md is no file of the tree. Did you mean README.md?"),
        ("/etc/motd", "/etc/motd is no file of the tree. Give its path from the root."),
    ],
)
def test_anything_else_is_refused_with_the_mend(given: str, said: str) -> None:
    with pytest.raises(covering.Refusal) as caught:
        covering.chosen(given, TREE, ROOT, ROOT)
    assert str(caught.value) == said


def test_each_rule_leads_to_tests_of_this_tree() -> None:
    names = [str(path.relative_to(tree.ROOT)) for path in (tree.ROOT / "tests").rglob("test_*.py")]
    for place, patterns in covering.RULES:
        assert (tree.ROOT / place).exists(), place
        for pattern in patterns:
            assert fnmatch.filter(names, pattern), pattern


def test_examples() -> None:
    assert doctest.testmod(covering).failed == 0
    assert (tree.ROOT / covering.EXAMPLE).is_file()
